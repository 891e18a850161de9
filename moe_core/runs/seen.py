"""Whether somebody looks at how a run's probe batch is routed. A reader says so by touching a file beside the record; the trainer
then looks more often, so that what is seen moves, and else spends its time on training."""

import contextlib
import os
import time
from pathlib import Path

SEEN = "run.seen"
FOR = 3.0  # seconds for which a look counts


def look(folder: Path) -> None:
    """Say that somebody looks now. A folder that cannot be written to is looked at like one that nobody looks at."""
    with contextlib.suppress(OSError):
        (folder / SEEN).touch()


def is_looked_at(folder: Path) -> bool:
    """Whether somebody looked within the last FOR seconds."""
    try:
        return abs(time.time() - os.stat(folder / SEEN).st_mtime) < FOR
    except OSError:
        return False
