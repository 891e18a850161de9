"""Whether somebody reads a run's steps as they come, and whether somebody looks at how its probe batch is routed.

A reader says so by touching a file beside the record, one for each. The trainer then commits or looks more often, so that what the
reader sees moves; else it spends the time on training.
"""

import contextlib
import os
import stat
import time
from pathlib import Path

SEEN = "run.seen"  # touched by whoever looks at the probe,
READ = "run.read"  # and by whoever reads along
TICK = 20_000_000  # nanoseconds: longer than one tick of a file system's clock
FOR = 3.0  # seconds for which a look counts
SHARE = 0.002  # of the time that the trainer's own looks at the probe may take while nobody looks on


def look(folder: Path, name: str = SEEN) -> None:
    """Say that somebody looks at the probe now, or with READ reads along. In a folder that cannot be written to nothing is said.

    A record may come from anybody: a link in place of the file is not followed, nor is a file made through it.
    """
    path = folder / name
    with contextlib.suppress(OSError):
        try:
            if stat.S_ISREG(os.lstat(path).st_mode):
                os.utime(path, follow_symlinks=False)
        except FileNotFoundError:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o666))


def is_looked_at(folder: Path, name: str = SEEN) -> bool:
    """Whether somebody looked at the probe, or with READ read along, within the last FOR seconds."""
    try:
        return abs(time.time() - os.stat(folder / name).st_mtime) < FOR
    except OSError:
        return False


class Log:
    """The log of a run's database, asked whether somebody has written to it: a hundred times as quick as a query."""

    def __init__(self) -> None:
        self.stamp = 0  # when it was last written to, as it said when it was last asked

    def has_news(self, folder: Path) -> bool:
        """Whether it has been written to at another time than was_written() saw. One more write within that tick is not noticed."""
        try:
            return os.stat(folder / "run.db-wal").st_mtime_ns != self.stamp
        except OSError:
            return True

    def was_written(self, folder: Path) -> bool:
        """Whether it was written to since this was last asked, by whomever."""
        before = self.stamp
        try:
            self.stamp = os.stat(folder / "run.db-wal").st_mtime_ns
        except OSError:
            return True
        # A second write within the same tick of the file system's clock would leave the same time.
        return self.stamp != before or abs(time.time_ns() - self.stamp) < TICK
