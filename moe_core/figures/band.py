"""Many lines in one chart: a band from the least to the most instead of lines that nobody can tell apart.

A small chart has the few that rose highest as lines, and a band of the others. A larger one of many experts has their lines, but
where they are balanced a band with its median. Shapes: n rows, E lines; NaN is a gap.
"""

from itertools import pairwise

import numpy as np

from moe_core.figures.lines import as_steps, line
from moe_core.figures.paper import Array, Size, Spec, pens
from moe_core.figures.theme import NAMED, Theme, faded
from moe_core.schema import BALANCED

MANY = 8  # lines that a small chart has room for
SMALL = 460  # px of a chart's width, below which it is small
FEW = 3  # lines that stand beside a band
PARTS = 20  # so many parts of a chart: over one of them it is said whether the lines are balanced


def highest(values_nE: Array, size: Size) -> list[int]:
    """The places of the lines to draw, in order: all of them where there is room, else the few with the highest value."""
    E = values_nE.shape[1]
    if E <= MANY or size[0] >= SMALL or not np.isfinite(values_nE).any():
        return list(range(E))
    peaks = np.max(np.where(np.isfinite(values_nE), values_nE, -np.inf), axis=0)
    return sorted(np.argsort(-peaks, kind="stable")[:FEW].tolist())


def settled(values_nE: Array, size: Size) -> Array:
    """(n,) bool: the rows in which at least 16 lines (in a small chart 9) are balanced: their CV, averaged over a twentieth of the
    chart, is below BALANCED."""
    n, E = values_nE.shape
    if (NAMED if size[0] >= SMALL else MANY + 1) > E or n < 2:
        return np.zeros(n, bool)
    known = np.isfinite(values_nE)
    count = np.maximum(1, known.sum(axis=1))
    mean = np.where(known, values_nE, 0.0).sum(axis=1) / count
    spread = np.sqrt(np.where(known, (values_nE - mean[:, None]) ** 2, 0.0).sum(axis=1) / count)
    cv = np.where(known.any(axis=1) & (mean > 0), spread / np.maximum(mean, 1e-30), 10.0)
    window = np.ones(2 * (n // (2 * PARTS)) + 1)
    around = np.convolve(cv, window, "same") / np.convolve(np.ones(n), window, "same")
    balanced = np.asarray(around < BALANCED)
    return balanced if balanced.mean() >= 1 / PARTS else np.zeros(n, bool)  # else it would be too narrow to be seen


def unsettled(settled_n: Array) -> Array:
    """(n,) bool: the rows in which there are lines: all that are not settled, and the rows at which a band begins and ends, so that
    lines and band meet."""
    padded = np.pad(settled_n, 1, constant_values=True)
    return np.asarray(~(settled_n & padded[:-2] & padded[2:]))


def apart(values_nE: Array, settled_n: Array) -> Array:
    """Lines (n, E) with gaps where a band is in their place."""
    return np.where(unsettled(settled_n)[:, None], values_nE, np.float32(np.nan)) if settled_n.any() else values_nE


def band(x: Array, values_nE: Array, without: list[int], theme: Theme, shown_n: Array) -> list[Spec]:
    """The band of all other lines, where one of them is known; nothing if there is no other. shown_n (n,): in these
    rows."""
    if not shown_n.any():
        return []
    others = np.delete(np.asarray(values_nE, np.float64), without, axis=1)
    if not others.shape[1]:
        return []
    known = np.asarray(np.isfinite(others).sum(axis=1) > 0)
    low, high = (
        f(np.where(np.isfinite(others), others, empty), axis=1, initial=empty)
        for f, empty in ((np.min, np.inf), (np.max, -np.inf))
    )
    some_n = known & shown_n
    edges = np.flatnonzero(np.diff(some_n)) + 1
    return [
        {
            "type": "scatter", "mode": "lines", "name": "the others", "x": np.concatenate([x[rows], x[rows][::-1]]),
            "y": np.concatenate([high[rows], low[rows][::-1]]).astype(np.float32), "fill": "toself",
            "fillcolor": faded(theme.ink2, 0.35), "line": {"width": 0, "color": theme.ink2}, "hoverinfo": "skip",
        }
        for a, b in pairwise([0, *edges, len(known)]) if some_n[a:b].any()
        for rows in [np.arange(a, b)]
    ]  # fmt: skip


def median(x: Array, percents_nE: Array, settled_n: Array, theme: Theme, size: Size) -> list[Spec]:
    """The median of balanced experts in their band; hovering it says which two were the extremes."""
    if not settled_n.any():
        return []
    known = np.isfinite(percents_nE)
    most, least = (np.where(known, percents_nE, empty) for empty in (-np.inf, np.inf))
    # Unknown ones are sorted behind the others, of which the middle one, or the mean of the middle two, is the median.
    ordered, rows, last = np.sort(least, axis=1), np.arange(len(known)), np.maximum(1, known.sum(axis=1)) - 1
    middle = (ordered[rows, last // 2] + ordered[rows, (last + 1) // 2]) / 2
    middle = np.where(known.any(axis=1) & settled_n, middle, np.nan).astype(np.float32)
    ends = [most.argmax(axis=1) + 1, most.max(axis=1), least.argmin(axis=1) + 1, ordered[:, 0]]
    words = (
        "At step %{x:,d} the median expert took %{y:.1f} % of the selections,<br>expert %{customdata[0]:d} the most, "
        "%{customdata[1]:.1f} %, and expert %{customdata[2]:d} the fewest, %{customdata[3]:.1f} %"
    )
    drawn = line("median", as_steps(x), middle, words, color=theme.ink, width=pens(size).line)
    return [drawn | {"customdata": np.stack(ends, axis=1).astype(np.float32)}]
