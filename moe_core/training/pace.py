"""When a trainer looks at its probe batch, and in which steps it measures what costs more than the rest."""

import math
import time
from collections.abc import Callable
from pathlib import Path

from moe_core.runs.seen import is_looked_at

LEAST = 0.1  # seconds between two looks at the probe
SHARE = 0.005  # of the time that looks may take
SHARE_SEEN = 0.1  # the same while somebody looks at the probe
FULL = 10  # looks, of which one is full


class Looks:
    """Looks by the clock: ten a second at most, and no more than a share of the training thread's time, which is larger while
    somebody looks on. What a look saw is packed by the thread that commits."""

    def __init__(self) -> None:
        self.many = 0
        self.at, self.took = -math.inf, 0.0  # when the last was, and the seconds it took
        self.next = 0.0

    def soon(self) -> None:
        """Somebody waits to see the effect of a turn: the next look need not keep to the share."""
        self.took = 0.0

    def look_if_due(self, folder: Path, look: Callable[[bool], None]) -> None:
        """Call look(full) if it is time to. folder: the run's, in which its readers say that they look on."""
        now = time.perf_counter()
        if now < self.next:
            return
        self.next = now + LEAST
        if now - self.at < self.took / (SHARE_SEEN if is_looked_at(folder) else SHARE):
            return
        self.many += 1
        look(self.many % FULL == 0)
        self.at, self.took = now, time.perf_counter() - now


def falls_on(step: int, every: int) -> bool:
    """Whether a step is one of 1, 1 + every, 1 + 2 every and so on."""
    return (step - 1) % every == 0
