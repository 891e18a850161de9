"""What people write about a run, and its end: note, rename, tag, rm."""

import argparse
import json
from typing import Any

from moe_core.commands.common import add, plain, report
from moe_core.commands.terminal import agreed


def declare(commands: Any) -> None:
    note = add(commands, "note", note_command, "write a note about a run, or print it")
    note.add_argument(
        "text", nargs="?", metavar="TEXT", help='the note; "" takes it away; without it the note is printed'
    )
    rename = add(commands, "rename", rename_command, "give a run a name that lists and pages show; its folder stays")
    rename.add_argument("called", metavar="NAME", help='the new name; "" for its id again')
    tag = add(commands, "tag", tag_command, "tag a run, by which lists are filtered, or print its tags")
    tag.add_argument("tags", nargs="*", metavar="TAG")
    tag.add_argument("--remove", nargs="+", action="extend", default=[], metavar="TAG", help="take these tags away")
    rm = add(commands, "rm", rm_command, "delete runs that no process trains", run=False)
    rm.add_argument("names", nargs="+", metavar="RUN", help="an id, a unique beginning of one, a name, or a path")
    rm.add_argument("--yes", action="store_true", help="do not ask")


def note_command(arguments: argparse.Namespace) -> int:
    from moe_core.runs import change_notes, open_run

    run = open_run(arguments.run, arguments.runs)
    notes = written(run) if arguments.text is None else change_notes(run.path, note=arguments.text)
    line = (
        plain(notes.note, keep="\n") if arguments.text is None else f"{run.id}: {'noted' if notes.note else 'no note'}"
    )
    print(json.dumps({"event": "note", "run": run.id, "note": notes.note}) if arguments.json else line)
    return 0


def rename_command(arguments: argparse.Namespace) -> int:
    from moe_core.runs import change_notes, open_run

    run = open_run(arguments.run, arguments.runs)
    notes = change_notes(run.path, name=arguments.called)
    line = f"{run.id} is called {notes.name}" if notes.name else f"{run.id} has no other name"
    report(arguments, {"event": "rename", "run": run.id, "name": notes.name}, line)
    return 0


def tag_command(arguments: argparse.Namespace) -> int:
    from moe_core.runs import change_notes, open_run

    run = open_run(arguments.run, arguments.runs)
    changed = arguments.tags or arguments.remove
    notes = change_notes(run.path, add=arguments.tags, remove=arguments.remove) if changed else written(run)
    line = f"{run.id}: {', '.join(notes.tags) or 'no tag'}"
    report(arguments, {"event": "tag", "run": run.id, "tags": list(notes.tags)}, line)
    return 0


def written(run: Any) -> Any:
    """What is written about a run; ValueError if that cannot be read."""
    from moe_core.runs import read_notes

    notes = read_notes(run.path)
    if notes.problem:
        raise ValueError(notes.problem)
    return notes


def rm_command(arguments: argparse.Namespace) -> int:
    """Say what goes, ask once, delete. A run that trains is refused before anything is deleted."""
    from moe_core.runs import StoreError, is_alive, remove_run
    from moe_core.runs.listing import folder_of
    from moe_core.runs.overview import deletion, overview

    folders = list(dict.fromkeys(folder_of(name, arguments.runs) for name in arguments.names))
    if training := [folder.name for folder in folders if is_alive(folder)]:
        raise StoreError(f"{', '.join(training)} is being trained; `stop` it first. Nothing was deleted")
    for folder in folders:
        told = deletion(folder, overview(folder.parent))
        report(arguments, {"event": "rm", "run": folder.name, "deleted": False, "goes": told}, f"{folder.name}: {told}")
    if not arguments.yes and not agreed(f"Delete {'it' if len(folders) == 1 else f'these {len(folders)}'} for ever?"):
        raise ValueError("nothing was deleted; with --yes `rm` does not ask")
    for folder in folders:
        remove_run(folder)
        event = {"event": "rm", "run": folder.name, "deleted": True, "goes": ""}
        report(arguments, event, f"{folder.name} is deleted")
    return 0
