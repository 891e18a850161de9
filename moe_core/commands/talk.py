"""The commands that talk to a run through its record: runs, set, pause, resume, step, stop, checkpoint, verify."""

import argparse
import json
import sys
import time
from typing import Any

from moe_core.commands.common import add, plain, report
from moe_core.schema import shortened

COMMANDS = {
    "pause": "pause a run",
    "resume": "resume a run",
    "step": "train one step of a paused run",
    "stop": "stop a run",
    "checkpoint": "write the weights beside the record",
}
# Seconds that a command waits for the trainer's answer: it may just be starting, on a busy machine.
ACKNOWLEDGED_WITHIN = 60.0
WHY = 200  # most characters of a run's reason in the list


def declare(commands: Any) -> None:
    add(commands, "runs", runs_command, "list the runs and their states", run=False)
    turn = add(commands, "set", set_command, "turn knobs of a run while it trains")
    turn.add_argument("changes", nargs="+", metavar="knob=value")
    for name, help in COMMANDS.items():
        add(commands, name, stop_command if name == "stop" else tell_command, help)
    add(commands, "verify", verify_command, "check that a run's record is whole and unchanged")


def runs_command(arguments: argparse.Namespace) -> int:
    """Each run in a line; at the end how long the disk lasts, for all runs that train, since they fill it together."""
    from moe_core.runs import Notes, list_runs, runs_folder
    from moe_core.runs.overview import overview
    from moe_core.runs.room import bytes_text, hours_left, room_text

    runs = list_runs(arguments.runs, room=True)
    about = {entry.id: entry for entry in overview(arguments.runs)}
    growth = sum(run.growth for run in runs)
    hours = hours_left(runs_folder(arguments.runs), growth)
    if not runs and not arguments.json:
        print(
            plain(
                f"no runs in {runs_folder(arguments.runs)}; `train` makes one, and --runs or MOE_RUNS names another folder"
            ),
            file=sys.stderr,
        )
    for run in runs:
        task = run.description.task if run.description else ""
        entry = about.get(run.id)
        notes, apart = (entry.notes, entry.apart) if entry else (Notes(), "")
        ranks = entry.facts.ranks if entry else 1
        if arguments.json:
            event = {"run": run.id, "name": notes.name, "note": notes.note, "tags": list(notes.tags), "apart": apart}
            event |= {"state": run.state, "step": run.step, "task": task, "problem": run.problem}
            event |= {"reason": run.reason, "bytes": run.size, "bytes_per_hour": round(run.growth), "ranks": ranks}
            print(json.dumps(event | {"hours_left": round(hours, 2) if run.growth and hours is not None else None}))
        else:
            tags = ", ".join(f"#{tag}" for tag in notes.tags)
            said = (
                notes.name and f"“{notes.name}”",
                f"{ranks} ranks" if ranks > 1 else "",
                apart,
                tags,
                shortened(run.problem or run.reason, WHY),
                notes.problem,
            )
            why = "; ".join(filter(None, said))
            line = f"{run.id:32} {run.state:12} {run.step:>9} {task:8} {bytes_text(run.size):>8}  {why}"
            print(plain(line.rstrip()))
    if hours is not None and not arguments.json:
        print(f"\nall together {room_text(sum(run.size for run in runs), growth, hours)}")
    return 0


def set_command(arguments: argparse.Namespace) -> int:
    from moe_core.runs import changes_of, open_run

    run = open_run(arguments.run, arguments.runs)
    changes = changes_of(arguments.changes)
    must_train(run)
    run.turn("command line", changes)
    report(
        arguments,
        {"event": "set", "run": run.id, "knobs": changes},
        f"{run.id}: {', '.join(f'{n} = {v}' for n, v in changes.items())}",
    )
    return 0


def tell_command(arguments: argparse.Namespace) -> int:
    """pause, resume, step, checkpoint: write one row to the record, then wait until the trainer has obeyed."""
    from moe_core.runs import open_run

    run = open_run(arguments.run, arguments.runs)
    must_train(run)
    asked = run.command(arguments.name, who="command line")
    until = time.monotonic() + ACKNOWLEDGED_WITHIN
    while (obeyed := next((c for c in run.commands() if c.id == asked and c.step is not None), None)) is None:
        if time.monotonic() > until:
            raise ValueError(
                f"{run.id} has not obeyed {arguments.name} in {ACKNOWLEDGED_WITHIN:g} s; it will at its next step, see `runs`"
            )
        time.sleep(0.05)
    event = {"event": arguments.name, "run": run.id, "step": obeyed.step, "result": obeyed.result}
    report(arguments, event, f"{run.id}: {arguments.name} at step {obeyed.step}: {obeyed.result}")
    return 0


def stop_command(arguments: argparse.Namespace) -> int:
    """Ask the trainer to stop and wait until it has; end the process of one that does not answer."""
    from moe_core.runs import open_run, stop

    run = open_run(arguments.run, arguments.runs)
    must_train(run)
    signal = stop(run, who="command line")
    obeyed = next((c for c in reversed(run.commands()) if c.name == "stop" and c.step is not None), None)
    step, result = run.steps()[1], f"it did not answer, so its process was ended ({signal}); its record is kept"
    if obeyed and not signal:
        step, result = obeyed.step, obeyed.result
    event = {"event": "stop", "run": run.id, "step": step, "result": result}
    report(arguments, event, f"{run.id}: stop at step {step}: {result}")
    return 0


def must_train(run: Any) -> None:
    from moe_core.runs.ranks import ALONE, command_words, ranks_again

    if run.state not in ("starting", "training", "paused"):
        if "resume" not in run.description.obeys:
            raise ValueError(
                f"{run.id} is {run.state}: the program that trained it has ended, and nothing would act on this"
            )
        words, ranks = ["train", "--resume", run.id], ranks_again(run.deals, run.facts)
        command = " ".join(words if ranks == ALONE else command_words(words, ranks))
        more = f" --steps N, above {run.steps()[1]}" if run.state == "finished" else ""
        raise ValueError(f"{run.id} is {run.state} and no trainer reads it; go on with it by `{command}{more}`")


def verify_command(arguments: argparse.Namespace) -> int:
    from moe_core.runs import open_run, verify

    run = open_run(arguments.run, arguments.runs)
    findings = verify(run)
    if arguments.json:
        print(json.dumps({"event": "verify", "run": run.id, "findings": findings}))
    else:
        print(
            "\n".join(plain(f"{run.id}: {finding}") for finding in findings)
            or f"{run.id} is whole: steps {run.steps()[0]} to {run.steps()[1]}"
        )
    return 1 if findings else 0
