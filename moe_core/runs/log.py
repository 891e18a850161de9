"""trainer.log beside a run's record: what its trainer printed, and where a reason goes that the record cannot take."""

import contextlib
import os
from pathlib import Path

from moe_core.runs.limits import read_tail
from moe_core.runs.locks import OURS

LOG = "trainer.log"
NO_WORDS = "it printed nothing"
MARK = "moe: "  # begins each line that says what went wrong


def last_words(folder: Path, log: str = LOG) -> str:
    """The end of what a trainer printed, one line."""
    lines: list[str] = []
    with contextlib.suppress(OSError, ValueError):
        lines = read_tail(folder / log).decode(errors="replace").strip().splitlines()
    return lines[-1][-300:] if lines else NO_WORDS


def leave_word(folder: Path, problem: str) -> None:
    """Add what went wrong to the log, if the disk takes it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder / LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT | OURS, 0o644)
        try:
            os.write(handle, f"{MARK}{problem}\n".encode())
        finally:
            os.close(handle)


def last_problem(folder: Path, since: float) -> str:
    """What the log's last line says went wrong, if it was written later than `since`, in seconds since 1970; else ""."""
    try:
        words = last_words(folder) if os.lstat(folder / LOG).st_mtime >= since else ""
    except OSError:
        return ""
    return words.removeprefix(MARK) if words.startswith(MARK) else ""
