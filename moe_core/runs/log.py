"""trainer.log beside a run's record: what its trainer printed, and the reason for an end that could not be written into the
record."""

import contextlib
import os
import re
import shutil
from pathlib import Path

from moe_core.runs.limits import read_tail
from moe_core.runs.locks import OURS

LOG = "trainer.log"
NO_WORDS = "it printed nothing"
MARK = "moe: "  # begins each line that says what went wrong
RULE = re.compile("={20,60}")  # a line of it ends the report that torchrun prints when a rank has failed
# torchrun's last line when it was ended itself.
SIGNALLED = re.compile(r".*SignalException: Process \d+ got signal: (\d+)")
REPORT = 64 << 10  # bytes at the end of a log in which such a report is looked for, and before it what the rank said
ENDED = re.compile(r"E\d{4} .*failed \(exitcode: (-?\d+)\) local_rank: (\d+)")  # its first line
# Free bytes below which a log may lack its last lines: blocks have 4 KiB, and torchrun's report takes some.
ROOM = 64 << 10
LAG = 0.05  # seconds by which the time of a file may be behind the clock


def open_log(path: Path) -> int:
    """A handle to write behind what the log has, which is made if it is not there. OSError, also for a link or a pipe."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | OURS, 0o644)


def last_words(folder: Path, log: str = LOG) -> str:
    """The last line that a trainer printed, at most 300 characters; of ranks that failed, or were ended, not what torchrun says of that."""
    lines: list[str] = []
    with contextlib.suppress(OSError, ValueError):
        lines = lines_of(read_tail(folder / log))
        if lines and RULE.fullmatch(lines[-1]):
            lines = [words_of_ranks(lines_of(read_tail(folder / log, REPORT)))]
        elif lines and (signalled := SIGNALLED.match(lines[-1])):
            lines = [f"{MARK}its torchrun was ended by signal {signalled[1]}"]
    return lines[-1][-300:] if lines else NO_WORDS


def words_of_failure(folder: Path) -> str:
    """The last words of a trainer that has failed just now. If they name no reason, and the disk is full, they may not be the last."""
    words, full = last_words(folder), False
    with contextlib.suppress(OSError):
        full = shutil.disk_usage(folder).free < ROOM
    return words + "; this disk is full now, so its last words may be missing" * (full and not words.startswith(MARK))


def lines_of(text: bytes) -> list[str]:
    return text.decode(errors="replace").strip().splitlines()


def words_of_ranks(lines: list[str]) -> str:
    """Why the ranks failed of which torchrun reports at the end of these lines: what one of them said, else how it ended."""
    reports = [(at, found) for at, line in enumerate(lines) if (found := ENDED.match(line))]
    if not reports:
        return lines[-1]
    at, ended = reports[-1]
    # After the failure before this one.
    begun = max((n for n, line in enumerate(lines[:at]) if RULE.fullmatch(line)), default=-1)
    said = [line for line in lines[begun + 1 : at] if line.startswith(MARK)]
    return said[-1] if said else f"{MARK}rank {ended[2]} ended without a word (exit status {ended[1]})"


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
