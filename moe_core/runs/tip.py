"""How far a run's log goes, in a small file beside it: a flipped bit in a log silently ends it there, and nothing in the
database would show it.

It has two halves, each with a checksum. The trainer writes one after each of its commits. Whoever turns knobs or gives
commands writes the other, whose numbers only rise.
"""

import contextlib
import fcntl
import os
import struct
from pathlib import Path
from typing import NamedTuple

from moe_core.runs.codec import START, link
from moe_core.runs.limits import NOTE, read_side
from moe_core.runs.locks import OURS

NAME = "run.tip"
HALF = struct.Struct("<qq16s")
READS = 3  # attempts, since the file may be in the middle of a write


class Tip(NamedTuple):
    """The trainer's commits and its last step; the last knob change and the last command."""

    commits: int
    step: int
    turns: int
    commands: int


def open_tip(folder: Path) -> int:
    """A handle to write the tip with. OSError for a link or a pipe in its place."""
    return os.open(folder / NAME, os.O_RDWR | os.O_CREAT | OURS, 0o644)


def begin_tip(folder: Path, chain: bytes, step: int, turns: int) -> None:
    """Write the tip of a new run, which has so many steps and knob changes before its trainer commits anything."""
    tip = open_tip(folder)
    try:
        write_trained(tip, chain, 0, step)
        write_asked(tip, chain, turns, 0)
    finally:
        os.close(tip)


def write_trained(tip: int, chain: bytes, commits: int, step: int) -> None:
    """The trainer's half. chain: the run's, so that another run's tip is not taken for this one's."""
    os.pwrite(tip, pack(chain, "trained", commits, step), 0)


def write_asked(tip: int, chain: bytes, turns: int, commands: int) -> None:
    """The half of those who turn knobs and give commands, whatever it was before."""
    os.pwrite(tip, pack(chain, "asked", turns, commands), HALF.size)


def raise_asked(folder: Path, chain: bytes, turns: int = 0, commands: int = 0) -> None:
    """Note how many knob changes or commands are in the record. The rows themselves are written already, so a failure here
    does no harm."""
    with contextlib.suppress(OSError):
        tip = os.open(folder / NAME, os.O_RDWR | OURS)
        try:
            # Without waiting: a frozen process that holds it must not stop the others.
            fcntl.flock(tip, fcntl.LOCK_EX | fcntl.LOCK_NB)
            known = unpack(chain, "asked", os.pread(tip, HALF.size, HALF.size))
            if known:  # an earlier version's tip has no such half
                write_asked(tip, chain, max(turns, known[0]), max(commands, known[1]))
        finally:
            os.close(tip)


def read_tip(folder: Path, chain: bytes) -> Tip | None:
    """The tip; None if it is missing or not what was written."""
    for _ in range(READS):
        try:
            data = read_side(folder / NAME, NOTE)
        except (OSError, ValueError):
            return None
        trained = unpack(chain, "trained", data[: HALF.size])
        asked = unpack(chain, "asked", data[HALF.size :])
        if trained and asked:
            return Tip(*trained, *asked)
    return None


def pack(chain: bytes, half: str, first: int, second: int) -> bytes:
    return HALF.pack(first, second, link(START, chain, half, first, second))


def unpack(chain: bytes, half: str, data: bytes) -> tuple[int, int] | None:
    if len(data) != HALF.size:
        return None
    first, second, _ = HALF.unpack(data)
    return (first, second) if data == pack(chain, half, first, second) else None


def read_old_tip(folder: Path) -> tuple[int, int, bytes] | None:
    """The tip of a run that an earlier version recorded: last step, number of blocks, and the last one's chain."""
    try:
        data = read_side(folder / NAME, NOTE)
    except (OSError, ValueError):
        return None
    return HALF.unpack(data) if len(data) == HALF.size else None
