"""The columns of a run's rows: read from the run's description of them, and one statistic picked out of rows in that
layout."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_core.runs.database import StoreError
from moe_core.runs.statistics import DERIVED, Off, dead_off, derive, on_mask
from moe_core.schema import STAT, Column

COLUMNS = 1 << 20  # the most that a file from somebody else may declare


def read_layout(entries: Any) -> list[Column]:
    """The columns that a run declares, one behind the other; ValueError or TypeError if they are not valid."""
    columns = [Column(str(stat), int(layer), int(start), int(width)) for stat, layer, start, width in entries]
    ends = [0, *(c.start + c.width for c in columns)]
    if any(c.start != end or c.width < 1 for c, end in zip(columns, ends, strict=False)) or ends[-1] > COLUMNS:
        raise ValueError("its columns do not follow one another")
    return columns


def pick(
    columns: Sequence[Column],
    rows: NDArray[np.floating[Any]],
    stat: str,
    layer: int,
    steps: NDArray[np.int64] | None = None,
    off: Sequence[Off] = (),
) -> NDArray[Any]:
    """One statistic of one layer out of rows (n, C) in a layout: (n,) or (n, E).

    steps (n,): which they are, needed where experts were switched `off`; those are left out of every statistic.
    """
    wanted = DERIVED[stat][0] if stat in DERIVED else stat
    layer = -1 if STAT[wanted].shape == "" else layer
    column = next((c for c in columns if c.stat == wanted and c.layer == layer), None)
    if column is None:
        raise StoreError(f"this run has no statistic {wanted!r}: it was recorded by an earlier version")
    values = rows[:, column.start : column.start + column.width]
    if stat in DERIVED:
        on_nE = None if steps is None else on_mask(off, layer, steps, column.width)
        return derive(stat, {wanted: values}, on_nE)
    if stat == "dead_experts" and off and steps is not None:
        return values[:, 0] - dead_off(off, layer, steps)
    return values if STAT[stat].shape == "LE" else values[:, 0]
