"""Room on the disk: how a full disk is recognised, the ballast that is removed to make room for the last writes, and a
run's size.

The ballast is a file of random bytes beside the record of a run that trains. On a full disk it is removed, so that the last
measurements and the reason for the pause still fit; when it can be written again, there is room again.
"""

import contextlib
import errno
import os
import shutil
from pathlib import Path

BALLAST = 1 << 20  # bytes: more than ever waits to be committed, and written in milliseconds
NAME = "ballast"
FULL = "the disk is full; the run goes on by itself when there is room"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# SQLite says FULL for ENOSPC from a write only; for a quota, or from fsync or open, it says the same as for a broken disk.
OF_THE_DISK = ("SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_FULL")


def no_room(error: BaseException | None, folder: Path) -> bool:
    """Whether an error, or one that caused it, means that folder's disk is full."""
    if (cause := disk_error(error)) is None:
        return False
    if isinstance(cause, OSError) or cause.sqlite_errorname == "SQLITE_FULL":  # type: ignore[attr-defined]
        return getattr(cause, "errno", errno.ENOSPC) in NO_ROOM
    return _try_to_fill(folder) in NO_ROOM


def disk_error(error: BaseException | None) -> BaseException | None:
    """The error of the disk, or SQLite's about it: the given one, or one that caused it. None if there is none."""
    while error is not None:
        if isinstance(error, OSError) or getattr(error, "sqlite_errorname", "").startswith(OF_THE_DISK):
            return error
        error = error.__cause__ or error.__context__
    return None


def has_room(folder: Path) -> bool:
    """Whether the disk has room for a ballast."""
    return _try_to_fill(folder) == 0


def _try_to_fill(folder: Path) -> int:
    """Write a second ballast, synced to the disk, and remove it. Returns the error's number, 0 if there was none."""
    path = folder / (NAME + ".try")
    problem = _fill(path, sync=True)
    with contextlib.suppress(OSError):
        path.unlink()
    return problem


def make_ballast(folder: Path) -> bool:
    """Write the ballast, unless it is there already. False, and no file is left, if the disk has no room for it."""
    return (folder / NAME).exists() or _fill(folder / NAME) == 0


def drop_ballast(folder: Path) -> bool:
    """Remove the ballast to free its room. False if there was none."""
    try:
        (folder / NAME).unlink()
    except OSError:
        return False
    return True


def _fill(path: Path, sync: bool = False) -> int:
    try:
        with open(path, "xb") as file:
            # Zeros would take no room on a disk that compresses. Local disks give the room when they take the bytes, so
            # only the search for a cause pays for an fsync, which costs more than all the rest.
            file.write(os.urandom(BALLAST))
            file.flush()
            if sync:
                os.fsync(file.fileno())
        return 0
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink()
        return error.errno or errno.EIO


# The size of a run


def size_of(folder: Path) -> int:
    """Bytes of the files in a run's folder: its record, its checkpoints and whatever lies beside them."""
    total = 0
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
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
    """A run's size, its growth, and the time until the disk is full: "1.2 GB, 0.1 GB an hour, disk full in 9 h"."""
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
