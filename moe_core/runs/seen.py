"""Whether somebody looks at how a run's probe batch is routed. A reader says so by touching a file beside the record; the trainer
then looks more often, so that what is seen moves, and else spends its time on training."""

import contextlib
import os
import stat
import time
from pathlib import Path

SEEN = "run.seen"
FOR = 3.0  # seconds for which a look counts


def look(folder: Path) -> None:
    """Say that somebody looks now. A folder that cannot be written to is looked at like one that nobody looks at.

    A record may come from anybody: a link in place of the file is not followed, nor is a file made through it.
    """
    path = folder / SEEN
    with contextlib.suppress(OSError):
        try:
            if stat.S_ISREG(os.lstat(path).st_mode):
                os.utime(path, follow_symlinks=False)
        except FileNotFoundError:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o666))


def is_looked_at(folder: Path) -> bool:
    """Whether somebody looked within the last FOR seconds."""
    try:
        return abs(time.time() - os.stat(folder / SEEN).st_mtime) < FOR
    except OSError:
        return False
