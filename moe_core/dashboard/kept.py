"""What a feed keeps of a run in memory: thinned histories, and answers up to a number of them."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from moe_core.runs import Block, thin

KEPT = 2048  # bins of a history in memory


@dataclass
class Series:
    """One statistic of one layer, thinned, up to a block."""

    steps: np.ndarray
    values: np.ndarray
    block: int = 0

    def add(self, steps: np.ndarray, values: np.ndarray, block: int) -> None:
        joined = np.concatenate([self.steps, steps]), np.concatenate([self.values, values])
        self.steps, self.values = thin(*joined, KEPT) if len(joined[0]) > 4 * KEPT else joined
        self.block = block


def joined(blocks: list[Block]) -> tuple[np.ndarray, np.ndarray]:
    """Steps (n,) and rows (n, C) of consecutive blocks."""
    rows = np.concatenate([block.rows for block in blocks])
    return np.arange(blocks[0].first, blocks[0].first + len(rows)), rows


def remember(kept: dict[Any, Any], key: Any, value: Any, most: int) -> None:
    """Keep an answer, and no more than `most`: the oldest goes."""
    while len(kept) >= most:
        del kept[next(iter(kept))]
    kept[key] = value
