"""What a feed keeps of a run in memory: thinned histories, and answers up to a number of them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moe_core.figures.smooth import centred
from moe_core.runs import Block, thin

KEPT = 2048  # bins of a history in memory
ANSWERS = 64  # thinned ranges and snapshots kept
FORGOTTEN = 60.0  # seconds after which a history that nobody asks for may go: means in any case,
HISTORIES = 128 << 20  # others if all together take more bytes than this; one of 256 experts takes 8 MB
Asked = tuple[str, int, int]  # a history: its statistic, its layer, and over how many steps its mean is


@dataclass
class Series:
    """One statistic of one layer, thinned, up to a block."""

    steps: np.ndarray
    values: np.ndarray
    block: int = 0

    @property
    def size(self) -> int:
        """Bytes in memory."""
        return self.steps.nbytes + self.values.nbytes

    def add(self, steps: np.ndarray, values: np.ndarray, block: int, cuts: Sequence[int] = ()) -> None:
        joined = np.concatenate([self.steps, steps]), np.concatenate([self.values, values])
        self.steps, self.values = thin(*joined, KEPT) if len(joined[0]) > 4 * KEPT else joined
        self.block = block


class Means(Series):
    """The same of the mean over `over` steps about each step. The last of them change with the steps that come, so they are kept
    apart, with the recorded steps that they are taken of."""

    def __init__(self, over: int, steps: np.ndarray, values: np.ndarray) -> None:
        super().__init__(steps, values)
        self.over, self.final = over, Series(steps, values)
        self.recorded, self.settled = (steps, values), 0  # settled: the last step whose mean stays

    @property
    def size(self) -> int:
        return super().size + self.final.size + sum(array.nbytes for array in self.recorded)

    def add(self, steps: np.ndarray, values: np.ndarray, block: int, cuts: Sequence[int] = ()) -> None:
        """cuts: the steps at which a change took effect, across which no mean is taken."""
        x, y = np.concatenate([self.recorded[0], steps]), np.concatenate([self.recorded[1], values])
        mean = centred(x, y, self.over, cuts).astype(np.float32)
        settled = max(self.settled, int(x[-1]) - self.over // 2)
        fresh, open_ = (x > self.settled) & (x <= settled), x > settled
        self.final.add(x[fresh], mean[fresh], block)
        self.steps = np.concatenate([self.final.steps, x[open_]])
        self.values = np.concatenate([self.final.values, mean[open_]])
        needed = x > settled - (self.over - 1) // 2
        self.recorded, self.settled, self.block = (x[needed], y[needed]), settled, block


def joined(blocks: list[Block]) -> tuple[np.ndarray, np.ndarray]:
    """Steps (n,) and rows (n, C) of consecutive blocks."""
    rows = np.concatenate([block.rows for block in blocks])
    return np.arange(blocks[0].first, blocks[0].first + len(rows)), rows


def remember(kept: dict[Any, Any], key: Any, value: Any, most: int) -> None:
    """Keep an answer, and no more than `most`: the oldest goes."""
    while len(kept) >= most:
        del kept[next(iter(kept))]
    kept[key] = value


def unasked(series: Mapping[Asked, Series], asked: Mapping[Asked, tuple[float, int]], seen: int) -> list[Asked]:
    """The histories to let go of, since nobody asked for them in the last minute. Of means all, but not before another block came:
    steps may be slow. Of others, which take long to read again, those longest unasked, until all take no more than HISTORIES.

    asked: when each was last asked for, and which block was the last then; seen: the last block now.
    """
    gone, held = [], sum(one.size for one in series.values())
    for key in sorted(asked, key=lambda key: asked[key]):
        when, block = asked[key]
        if time.monotonic() - when > FORGOTTEN and (held > HISTORIES or (key[2] > 1 and block < seen)):
            held -= series[key].size
            gone.append(key)
    return gone
