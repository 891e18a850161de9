"""Many lines in a small chart: the few that rose highest, and a band from the least to the most of the others."""

from typing import Any

import numpy as np

from moe_core.figures.paper import Array, Size, Spec
from moe_core.figures.theme import Theme, faded

MANY = 8  # lines that a small chart has room for
SMALL = 460  # px of a chart's width, below which it is small
FEW = 3  # lines that stand beside a band


def highest(values_nE: Array, size: Size) -> list[int]:
    """The places of the lines to draw, in order: all of them where there is room, else the few with the highest value."""
    E = values_nE.shape[1]
    if E <= MANY or size[0] >= SMALL or not np.isfinite(values_nE).any():
        return list(range(E))
    peaks = np.max(np.where(np.isfinite(values_nE), values_nE, -np.inf), axis=0)
    return sorted(np.argsort(-peaks, kind="stable")[:FEW].tolist())


def band(x: Array, values_nE: Array, without: list[int], theme: Theme) -> list[Spec]:
    """The band of all other lines, where one of them is known; nothing if there is no other."""
    others = np.delete(np.asarray(values_nE, np.float64), without, axis=1)
    known = np.isfinite(others).any(axis=1) if others.shape[1] else np.zeros(len(others), bool)
    if not known.any():
        return []
    low, high = (
        f(np.where(np.isfinite(others), others, empty)[known], axis=1)
        for f, empty in ((np.min, np.inf), (np.max, -np.inf))
    )
    at = np.asarray(x)[known]
    trace: dict[str, Any] = {
        "type": "scatter", "mode": "lines", "name": "the others", "x": np.concatenate([at, at[::-1]]),
        "y": np.concatenate([high, low[::-1]]).astype(np.float32), "fill": "toself", "fillcolor": faded(theme.ink2, 0.35),
        "line": {"width": 0, "color": theme.ink2}, "hoverinfo": "skip",
    }  # fmt: skip
    return [trace]
