"""Room on the disk: what a full one looks like, the ballast that is given up to write the reason, and what a run takes.

A file of random bytes lies beside the record of a run that trains. On a full disk it is removed, so that what was measured
and the reason for the pause still fit; that it can be made again says that there is room again.
"""

import contextlib
import errno
import os
import shutil
from pathlib import Path

BALLAST = 1 << 20  # bytes: what waits to be committed is well below, and it is made in milliseconds
NAME = "ballast"
FULL = "the disk is full; the run goes on by itself when there is room"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# SQLite says FULL for ENOSPC only; for a quota it says the same as for a broken disk.
PERHAPS_FULL = ("SQLITE_IOERR_WRITE", "SQLITE_IOERR_FSYNC", "SQLITE_IOERR_SHMSIZE")


def no_room(error: BaseException | None, folder: Path) -> bool:
    """Whether something failed for want of room on folder's disk, by what it says or by what it follows from."""
    while error is not None:
        name = getattr(error, "sqlite_errorname", "")
        if name == "SQLITE_FULL" or (isinstance(error, OSError) and error.errno in NO_ROOM):
            return True
        if name in PERHAPS_FULL:
            return not has_room(folder)
        error = error.__cause__ or error.__context__
    return False


def has_room(folder: Path) -> bool:
    """Whether the disk would take a ballast more."""
    fits = _fill(folder / (NAME + ".try"))
    with contextlib.suppress(OSError):
        (folder / (NAME + ".try")).unlink()
    return fits


def make_ballast(folder: Path) -> bool:
    """The ballast, unless it is there. False if the disk has no room for it; nothing is left then."""
    return (folder / NAME).exists() or _fill(folder / NAME)


def drop_ballast(folder: Path) -> bool:
    """Give its room back. False if there was none to give."""
    try:
        (folder / NAME).unlink()
    except OSError:
        return False
    return True


def _fill(path: Path) -> bool:
    try:
        with open(path, "xb") as file:
            # Zeros would take no room on a disk that compresses. Local disks give the room when they take the bytes, so
            # there is no fsync, which would cost more than all the rest.
            file.write(os.urandom(BALLAST))
        return True
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink()
        return False


# What a run takes


def size_of(folder: Path) -> int:
    """Bytes of the files in a run's folder: its record, its checkpoints and whatever lies beside them."""
    total = 0
    with contextlib.suppress(OSError), os.scandir(folder) as there:
        for entry in there:
            with contextlib.suppress(OSError):
                if entry.is_file(follow_symlinks=False):
                    total += entry.stat(follow_symlinks=False).st_size
    return total


def hours_left(folder: Path, growth: float) -> float | None:
    """Hours until folder's disk is full if it fills by growth bytes an hour; None if nothing grows."""
    try:
        return shutil.disk_usage(folder).free / growth if growth > 0 else None
    except OSError:
        return None


def room_text(size: int, growth: float = 0.0, hours: float | None = None) -> str:
    """What is taken and for how long it goes on: "1.2 GB, 0.1 GB an hour, disk full in 9 h"."""
    parts = [bytes_text(size)]
    if growth > 0:
        parts.append(f"{bytes_text(growth)} an hour")
    if hours is not None:
        parts.append(f"disk full in {hours_text(hours)}")
    return ", ".join(parts)


def bytes_text(size: float) -> str:
    """3 KB, 12 MB, 1.2 GB: one decimal below ten."""
    power = 1 if size < 999_500 else 2 if size < 999_500_000 else 3
    amount = size / 1000**power
    unit = " KMG"[power] + "B"
    return f"{amount:.1f} {unit}" if amount < 9.95 else f"{amount:.0f} {unit}"


def hours_text(hours: float) -> str:
    """20 min, 9 h, 12 days; beyond a year nobody counts."""
    if hours < 1:
        return f"{60 * hours:.0f} min"
    if hours < 72:
        return f"{hours:.0f} h"
    return f"{hours / 24:.0f} days" if hours < 365 * 24 else "more than a year"
