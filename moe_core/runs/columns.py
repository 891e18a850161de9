"""The columns of a run's rows: read from the run's description of them, and one statistic picked out of rows in that
layout."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_core.runs.database import StoreError
from moe_core.runs.statistics import DERIVED, OF_DEVICES, Deal, Off, dead_off, derive, device_statistic, on_mask
from moe_core.schema import STAT, Column

COLUMNS = 1 << 20  # the most that a file from somebody else may declare


def read_layout(entries: Any) -> list[Column]:
    """The columns that a run declares, one behind the other; ValueError or TypeError if they are not valid."""
    columns = [Column(*entry) for entry in entries]
    if any((type(c.stat), type(c.layer), type(c.start), type(c.width)) != (str, int, int, int) for c in columns):
        raise ValueError("its columns are not a statistic, a layer, a start and a width each")
    ends = [0, *(c.start + c.width for c in columns)]
    if any(c.start != end or c.width < 1 for c, end in zip(columns, ends, strict=False)) or ends[-1] > COLUMNS:
        raise ValueError("its columns do not follow one another")
    if not columns:
        raise ValueError("it has no columns")
    return columns


def check_columns(columns: Sequence[Column], experts_L: Sequence[int]) -> None:
    """ValueError unless each statistic has one column, or one for each layer, as wide as its shape says."""
    by_stat: dict[str, list[Column]] = {}
    for column in columns:
        by_stat.setdefault(column.stat, []).append(column)
    each, ones = list(range(len(experts_L))), [1] * len(experts_L)
    shapes = {"": ([-1], [1]), "L": (each, ones), "LE": (each, list(experts_L))}
    for stat, own in by_stat.items():
        placed = [c.layer for c in own], [c.width for c in own]
        if placed not in ([shapes[STAT[stat].shape]] if stat in STAT else shapes.values()):
            experts = ", ".join(map(str, experts_L[:8]))
            raise ValueError(f"its columns of {stat[:40]} are not those of layers of {experts} experts")


def pick(
    columns: Sequence[Column],
    rows: NDArray[np.floating[Any]],
    stat: str,
    layer: int,
    steps: NDArray[np.int64] | None = None,
    off: Sequence[Off] = (),
    deals: Sequence[Deal] = (),
) -> NDArray[Any]:
    """One statistic of one layer out of rows (n, C) in a layout: (n,) or (n, E).

    steps (n,): which they are, needed where experts were switched `off`, which are left out of every statistic, and for those
    of devices, to which the experts are dealt as `deals` say.
    """
    wanted = DERIVED[stat][0] if stat in DERIVED else stat
    layer = -1 if STAT[wanted].shape == "" else layer
    column = next((c for c in columns if c.stat == wanted and c.layer == layer), None)
    if column is None:
        raise StoreError(f"this run has no statistic {wanted!r}: an earlier version or another program recorded it")
    values = rows[:, column.start : column.start + column.width]
    if stat in OF_DEVICES:
        return device_statistic(
            stat, np.asarray(values, np.float64), np.zeros(len(values), np.int64) if steps is None else steps, deals
        )
    if stat in DERIVED:
        on_nE = None if steps is None else on_mask(off, layer, steps, column.width)
        return derive(stat, {wanted: values}, on_nE)
    if stat == "dead_experts" and off and steps is not None:
        return values[:, 0] - dead_off(off, layer, steps)
    return values if STAT[stat].shape == "LE" else values[:, 0]
