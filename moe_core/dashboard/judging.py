"""What is wrong with each layer of a run that somebody watches: judged by the rows that its feed has in memory, and by older ones
where something began before them."""

import math
import time
from typing import Any

import numpy as np

from moe_core.diagnosis import Finding, diagnose
from moe_core.evidence import Memory
from moe_core.runs.source import Beside
from moe_core.schema import STAT

# Bytes of rows, as they are read, in which the beginning of what is wrong now is looked for; all viewers wait meanwhile.
REACH = 16 << 20


class Recent(Beside):
    """A feed whose histories begin with step `first`. A diagnosis of now needs only these."""

    def __init__(self, feed: Any, first: int) -> None:
        super().__init__(feed, {})
        self.first = first

    def history(
        self, stat: str, layer: int = 0, first: int | None = None, last: int | None = None, bins: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        return self.run.history(stat, layer, first=max(self.first, first or 0), last=last)


class Judge:
    """What is wrong with one layer of a feed: by the rows in memory, and what was found before them."""

    def __init__(self) -> None:
        self.version, self.when = -1, -math.inf
        self.findings: list[Finding] = []
        self.memory = Memory()

    def judge(self, feed: Any, layer: int) -> None:
        """Judge anew. If something began before the rows in memory, four times as many steps are read, again and again, until its
        beginning is found or REACH is reached. Later times go by what this one found."""
        first = feed.first_recent
        anew = self.memory.last < first - 1
        self.findings = diagnose(Recent(feed, first), layer, self.memory)
        farthest = max(1, feed.last + 1 - REACH // bytes_a_step(feed, layer)) if anew else first
        while first > farthest and not self.memory.known:
            first, self.memory = max(farthest, feed.last - 4 * (feed.last - first + 1)), Memory()
            self.findings = diagnose(Recent(feed, first), layer, self.memory)
        self.version, self.when = feed.version, time.monotonic()


def bytes_a_step(feed: Any, layer: int) -> int:
    """What is read of a step for one layer: where rows lie in one piece, all columns."""
    stored = feed.run.stored
    parts = {stored.part(stat, layer) for stat in feed.description.measures if stat in STAT}
    return int(4 * sum(map(stored.width_of, parts)))
