"""When a trainer reads what people ask for, commits, and looks at its probe batch, and in which steps it measures what costs more
than the rest."""

import math
import time
from collections.abc import Callable
from pathlib import Path

from moe_core.runs.seen import READ, SHARE, Log, is_looked_at

LEAST = 0.1  # seconds between two looks at the probe, and between two checks whether somebody reads along
SHARE_SEEN = 0.1  # of the time that looks may take while somebody looks at the probe; SHARE while nobody does
FULL = 10  # looks, of which one is full
ASK = 0.05  # seconds between two checks whether the log was written to
ANYWAY = 1.0  # seconds after which the record is read whatever tip and log say
FLUSH = 1.0  # seconds between two commits while nobody reads along,
FLUSH_READ = 1 / 30  # and while somebody does,
FLUSH_SLOW = 0.1  # or somebody does and the disk is behind


class Looks:
    """Looks by the clock: ten a second at most, and no more than a share of the training thread's time, which is larger while
    somebody looks on. What a look saw is packed by the thread that commits."""

    def __init__(self) -> None:
        self.many = 0
        # When the last was, and the seconds of the last that routed the probe itself.
        self.at, self.took = -math.inf, 0.0
        self.next = 0.0

    def soon(self) -> None:
        """Somebody waits to see the effect of a turn: the next look need not keep to the share."""
        self.took = 0.0

    def look_if_due(self, folder: Path, look: Callable[[bool], None], shared: bool = False) -> None:
        """Call look(full) if it is time to. folder: the run's, in which its readers say that they look on. shared: the probe was
        routed in this step anyway, so a look costs next to nothing: it comes after half the time already."""
        now = time.perf_counter()
        if now < (self.at + LEAST if shared else self.next):
            return
        self.next = now + LEAST
        wait = self.took / (SHARE_SEEN if is_looked_at(folder) else SHARE)
        if now - self.at < (wait / 2 if shared else wait):
            return
        self.many += 1
        look(self.many % FULL == 0)
        self.at = now
        if not shared:
            self.took = time.perf_counter() - now


class Flushes:
    """How long what was measured may wait to be committed. A commit costs a fortieth of a step of the text task, which is spared
    while nobody reads along."""

    def __init__(self) -> None:
        self.next, self.read = 0.0, False

    def wait(self, folder: Path, behind: bool) -> float:
        """Seconds since the last flush after which the next is due. behind: whether commits wait for the disk already."""
        now = time.perf_counter()
        if now >= self.next:
            self.next, self.read = now + LEAST, is_looked_at(folder, READ)
        return (FLUSH_SLOW if behind else FLUSH_READ) if self.read else FLUSH


class Readings:
    """When a trainer reads what people ask for. Whoever asks marks the run's tip, which is checked in each step. Two who ask at the
    same time may leave one mark, though, and on a full disk there is none. So it is checked too whether the database's log was
    written to, and once a second the record is read in any case."""

    def __init__(self) -> None:
        self.asked = self.read = -math.inf  # when the log was last checked, and the record last read
        self.log = Log()

    def soon(self) -> None:
        """Something was written that must be read before the next step."""
        self.read = -math.inf

    def is_due(self, folder: Path, marked: Callable[[], bool]) -> bool:
        """Whether to read now. marked: whether the tip says that somebody asks."""
        now = time.perf_counter()
        if now - self.read < ANYWAY and not marked() and not self.was_written(now, folder):
            return False
        self.read = now
        return True

    def was_written(self, now: float, folder: Path) -> bool:
        """Whether anybody, the trainer included, has written to the log since it was last checked."""
        if now - self.asked < ASK:
            return False
        self.asked = now
        return self.log.was_written(folder)


def falls_on(step: int, every: int) -> bool:
    """Whether a step is one of 1, 1 + every, 1 + 2 every and so on."""
    return (step - 1) % every == 0
