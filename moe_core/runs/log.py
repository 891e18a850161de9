"""trainer.log beside a run's record: what its trainer printed, and the reason for an end that could not be written into the
record."""

import contextlib
import os
from pathlib import Path

from moe_core.runs.limits import read_tail
from moe_core.runs.locks import OURS

LOG = "trainer.log"
NO_WORDS = "it printed nothing"
MARK = "moe: "  # begins each line that says what went wrong
LAG = 0.05  # seconds by which the time of a file may be behind the clock


def open_log(path: Path) -> int:
    """A handle to write behind what the log has, which is made if it is not there. OSError, also for a link or a pipe."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | OURS, 0o644)


def last_words(folder: Path, log: str = LOG) -> str:
    """The last line that a trainer printed, at most 300 characters."""
    lines: list[str] = []
    with contextlib.suppress(OSError, ValueError):
        lines = read_tail(folder / log).decode(errors="replace").strip().splitlines()
    return lines[-1][-300:] if lines else NO_WORDS


def log_problem(folder: Path, problem: str) -> None:
    """Append what went wrong to the log, unless the disk fails."""
    with contextlib.suppress(OSError):
        handle = open_log(folder / LOG)
        try:
            os.write(handle, f"{MARK}{problem}\n".encode())
        finally:
            os.close(handle)


def last_problem(folder: Path, since: float) -> str:
    """The problem in the log's last line, if it was written later than `since`, in seconds since 1970; else ""."""
    try:
        words = last_words(folder) if os.lstat(folder / LOG).st_mtime >= since - LAG else ""
    except OSError:
        return ""
    return words.removeprefix(MARK) if words.startswith(MARK) else ""
