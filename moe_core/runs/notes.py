"""What people write about a run: its name, a note, tags. They lie in notes.json beside the record, which stays as written.

The file may come from a stranger, so what is read is cut and cleaned; what it holds beside these three is kept as it is.
"""

import contextlib
import fcntl
import json
import os
import stat
import time
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from moe_core.runs.database import StoreError, leads_to
from moe_core.runs.limits import SIDE, read_json, read_side
from moe_core.runs.locks import OURS
from moe_core.schema import shortened

NOTES = "notes.json"
DRAFT = "notes.json.new"  # becomes notes.json when it is whole; until then it is the lock of those who write
LONGEST = {"name": 100, "note": 10_000, "tag": 40}  # characters
TAGS = 20  # of one run
WAIT = 5.0  # seconds to wait for another who writes
# They turn the direction of what follows them, in text of others too.
TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


class Notes(NamedTuple):
    """name: what the run is called instead of its id, "" for none; problem: why the file cannot be read, in one line."""

    name: str = ""
    note: str = ""
    tags: tuple[str, ...] = ()
    problem: str = ""


def read_notes(folder: Path) -> Notes:
    """What people wrote about the run in this folder. Never fails: a file that cannot be read is a problem in one line."""
    try:
        return notes_of(_read(folder))
    except FileNotFoundError:
        return Notes()
    except (ValueError, OSError) as error:
        return Notes(problem=_unreadable(folder, error))


def notes_of(fields: dict[str, Any]) -> Notes:
    """The notes in a file's fields. ValueError for values of another type."""
    name, note, tags = fields.get("name", ""), fields.get("note", ""), fields.get("tags", [])
    if not isinstance(name, str) or not isinstance(note, str):
        raise ValueError("its name and its note must be text")
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise ValueError("its tags must be a list of texts")
    return Notes(
        _cut("name", name), _cut("note", note, "\n"), tuple(filter(None, (_cut("tag", t) for t in tags[:TAGS])))
    )


def _cut(what: str, text: str, keep: str = "") -> str:
    """The text, tidy, and no longer than it may be: a stranger's may have a million characters."""
    return shortened(tidy(text[: 4 * LONGEST[what]], keep), LONGEST[what])


def tidy(text: str, keep: str = "") -> str:
    """Text without control characters, without those that turn its direction, and without white space at its ends."""
    plain = "".join(c if c in keep or not _is_control(c) else " " for c in text)
    return plain.strip() if keep else " ".join(plain.split())


def _is_control(c: str) -> bool:
    return c in TURNING or unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")


def change_notes(
    folder: Path,
    name: str | None = None,
    note: str | None = None,
    add: Sequence[str] = (),
    remove: Sequence[str] = (),
) -> Notes:
    """Change a run's name or note, add or remove tags; None leaves it as it is, "" takes it away. What is written then.

    Two that write at once write one after the other, and neither undoes the other's tags. StoreError, and nothing is
    changed, for text that is too long, and where the file cannot be read or written.
    """
    name = None if name is None else fitting("name", tidy(name))
    note = None if note is None else fitting("note", tidy(note, "\n"))
    added, removed = ([fitting("tag", tidy(tag)) for tag in tags] for tags in (add, remove))
    try:
        with _draft(folder) as handle:
            try:
                tags = list(notes_of(fields := _read(folder)).tags)
            except FileNotFoundError:
                fields, tags = {}, []
            except (ValueError, OSError) as error:
                raise StoreError(f"{_unreadable(folder, error)}; delete that file to begin anew") from None
            tags = [tag for tag in dict.fromkeys([*tags, *added]) if tag and tag not in removed]
            if len(tags) > TAGS:
                raise StoreError(f"a run has at most {TAGS} tags, got {len(tags)}; remove some")
            given = {"name": name, "note": note, "tags": tags if added or removed else None}
            fields |= {key: value for key, value in given.items() if value is not None}
            _replace(folder, handle, json.dumps(fields, ensure_ascii=False, indent=1).encode())
            return notes_of(fields)
    except OSError as error:
        raise StoreError(f"{NOTES} of run {folder.name} cannot be written: {error.strerror}") from None


def fitting(what: str, text: str) -> str:
    """The text as it is. StoreError if it is longer than a name, a note or a tag may be."""
    if len(text) > LONGEST[what]:
        raise StoreError(f"a {what} has at most {LONGEST[what]:,} characters, got {len(text):,}; shorten it")
    return text


def _read(folder: Path) -> dict[str, Any]:
    fields = read_json(read_side(folder / NOTES, SIDE))
    if not isinstance(fields, dict):
        raise ValueError("it is not a JSON object")
    return fields


def _unreadable(folder: Path, error: Exception) -> str:
    why = error.strerror if isinstance(error, OSError) else shortened(str(error), 200)
    return f"{NOTES} of run {folder.name} cannot be read: {why}"


@contextlib.contextmanager
def _draft(folder: Path) -> Iterator[int]:
    """The handle of the draft, locked. Whoever waits for it finds that it has become notes.json, and opens the next one."""
    path, until = folder / DRAFT, time.monotonic() + WAIT
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | OURS, 0o644)
        try:
            about = os.fstat(handle)
            if not stat.S_ISREG(about.st_mode) or about.st_nlink > 1:
                raise StoreError(f"{DRAFT} of run {folder.name} is not a plain file; delete it")
            if _lock(handle) and leads_to(path, about):
                try:
                    yield handle
                finally:
                    if leads_to(path, about):  # it failed: what it wrote takes room on a full disk
                        path.unlink()
                return
        finally:
            os.close(handle)
        if time.monotonic() > until:
            raise StoreError(f"{NOTES} of run {folder.name} is being written by another process; try again")
        time.sleep(0.01)


def _lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _replace(folder: Path, handle: int, data: bytes) -> None:
    """Write the draft whole, then give it the name of the notes: a reader sees the old ones or the new ones."""
    os.ftruncate(handle, 0)
    with open(handle, "wb", closefd=False) as file:
        file.write(data)
        file.flush()
        os.fsync(handle)
    (folder / DRAFT).rename(folder / NOTES)
