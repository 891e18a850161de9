"""Thinning a history to what a chart can show, without losing its extremes.

Shapes: N rows (steps), C columns. `values_NC` is (N, C); a single statistic is (N,).
"""

import numpy as np
from numpy.typing import NDArray

Steps = NDArray[np.int64]
Values = NDArray[np.floating]


def thin(steps: Steps, values: Values, bins: int) -> tuple[Steps, Values]:
    """At most about 2 x bins rows, each column's minimum and maximum of every bin in their order of occurrence.

    steps (N,), ascending; values (N,) or (N, C). Rows are halved in groups of four until few enough are left; the
    groups lie on multiples of absolute steps, so that a bin, once full, stays as it is while a run grows. Thinning a
    thinned history again gives the same as thinning the original to that size. NaN is a gap: it is kept only where a group
    has nothing else. Rows at either end that do not fill a group stay as recorded, the last row always: a chart ends at the
    present step.
    """
    if bins < 1:
        raise ValueError(f"bins must be 1 or more, got {bins}")
    # By the range and not by the rows that are left: with incomplete groups these go up and down from step to step.
    spacing, most = 1, 2 * bins
    while len(steps) and steps[-1] - steps[0] >= spacing * most:
        steps, values = _halve(steps, values, spacing)
        spacing *= 2
    return steps, values


def _halve(steps: Steps, values: Values, spacing: int) -> tuple[Steps, Values]:
    """Rows that lie `spacing` steps apart to two rows for each group of four that starts at a multiple of 4 x spacing.

    A group is full once a row follows it.
    """
    span = 4 * spacing
    aligned = np.flatnonzero((steps[:-4] % span == 0) & (steps[3:-1] - steps[:-4] == 3 * spacing))
    if len(aligned) == 0:
        return steps, values
    # The full groups follow one another: rows of incomplete groups lie before the first or after the last of them.
    start = int(aligned[0])
    count = int(np.argmin(np.append(aligned == start + 4 * np.arange(len(aligned)), False)))
    end = start + 4 * count
    pairs = _extremes(values[start:end].reshape(count, 4, -1)).reshape(2 * count, *values.shape[1:])
    return (
        np.concatenate([steps[:start], steps[start:end:2], steps[end:]]),
        np.concatenate([values[:start], pairs, values[end:]]),
    )


def _extremes(group: Values) -> Values:
    """(G, 4, C) -> (G, 2, C): each column's smallest and largest of four, the earlier one first."""
    gap = np.isnan(group)
    gaps = gap.any()
    low = (np.where(gap, np.inf, group) if gaps else group).argmin(1)
    high = (np.where(gap, -np.inf, group) if gaps else group).argmax(1)
    picked = np.stack([np.minimum(low, high), np.maximum(low, high)], axis=1)
    return np.take_along_axis(group, picked, axis=1)
