"""Deleting a run: what would go, and how it goes, so that nothing is left half deleted."""

import contextlib
import os
import secrets
import shutil
from pathlib import Path
from typing import NamedTuple

from moe_core.runs.branch import checkpoint_step
from moe_core.runs.database import StoreError, hold_lock
from moe_core.runs.on_devices import stop_on_devices
from moe_core.runs.room import bytes_text
from moe_core.schema import first_few

GONE = ".deleted-"  # the beginning of a deleted run's folder until its files are gone


class Going(NamedTuple):
    """What deleting a run takes: bytes that become free, checkpoints, and bytes that stay since a fork has them too."""

    bytes: int
    checkpoints: int
    shared: int


def what_goes(folder: Path) -> Going:
    """What would go with this run's folder. A fork has its parent's checkpoints as files of its own name, and a copy of
    its steps: it needs nothing of its parent."""
    free = checkpoints = shared = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                about = os.lstat(os.path.join(place, name))
                checkpoints += checkpoint_step(Path(name)) is not None
                if about.st_nlink > 1:
                    shared += about.st_size
                else:
                    free += about.st_size
    return Going(free, checkpoints, shared)


def going_text(going: Going, forks: list[str], sweep: str = "") -> str:
    """What deleting takes, in words."""
    many = going.checkpoints
    words = [f"{bytes_text(going.bytes)} become free"]
    words += [f"checkpoints that go: {many}"] if many else []
    words += [f"{bytes_text(going.shared)} stay, since a fork or its parent has them too"] if going.shared else []
    if forks:
        words += [f"its {'forks' if len(forks) > 1 else 'fork'} ({first_few(forks, 3)}) can still be read and trained"]
    words += [f"the table of sweep {sweep} will lack it"] if sweep else []
    return "; ".join(words)


def remove_run(folder: Path) -> None:
    """Delete a run: first its folder gets a name that no list shows, then its files go. StoreError, and nothing has
    changed, while a process trains it or does not end a measurement of it, and where the folder may not be written to.

    Of a link to a folder elsewhere only the link is deleted.
    """
    lock = hold_lock(folder, wait=0.2)
    try:
        gone = folder.with_name(f"{GONE}{folder.name[:100]}-{secrets.token_hex(4)}")
        try:
            folder.rename(gone)
        except OSError as error:
            raise StoreError(f"run {folder.name} cannot be deleted: {error.strerror}") from None
    finally:
        os.close(lock)
    try:
        if gone.is_symlink():
            gone.unlink()
        elif stop_on_devices(gone):
            shutil.rmtree(gone)
        else:
            gone.rename(folder)
            raise StoreError(
                f"run {folder.name} cannot be deleted: its measurement on several devices does not end; see why its processes stay"
            )
    except OSError as error:
        raise StoreError(
            f"run {folder.name} is deleted, but files of it are left in {gone}: {error.strerror}; delete that folder"
        ) from None
