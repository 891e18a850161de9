"""Whether a training that was repeated is the same: bit by bit, in everything that does not depend on the clock."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moe_core.runs.store import Run
from moe_core.schema import STAT, STATS, Column, measured_in

SPAN = 4096  # steps that are read at a time
HASHED = ("loss", "task_loss", "counts")
COMPARED = tuple(stat.name for stat in STATS if stat.stored and not stat.clock)
# What is measured anew each time, and why it may differ.
BY_THE_CLOCK = {stat.name: stat.help for stat in STATS if stat.stored and stat.clock}
# In records without churn_every these depend on the clock too: they compare the probe at two moments that the clock chose.
EACH_MOMENT = ("churn", "saturation")
Rows = NDArray[np.float32]


class Difference(NamedTuple):
    """The first number that came out differently. layer is -1 for a statistic of the whole step; both count from 0."""

    step: int
    stat: str
    layer: int
    expert: int
    recorded: float
    repeated: float

    def __str__(self) -> str:
        where = "" if self.layer < 0 else f" of layer {self.layer + 1}"
        if self.layer >= 0 and STAT[self.stat].shape == "LE":
            where += f", expert {self.expert + 1}"
        return f"step {self.step}: {self.stat}{where} was {self.recorded!r} and is now {self.repeated!r}"


def left_out(run: Run) -> dict[str, str]:
    """The statistics of a run that depend on the clock, and what they are. Training it again may give others."""
    names = () if run.description.churn_every else EACH_MOMENT
    here = {name: help for name, help in BY_THE_CLOCK.items() if name in measured_in(run.layout)}
    return here | {name: f"{STAT[name].label} between two moments that the clock chose" for name in names}


def compared(run: Run) -> list[Column]:
    """The columns of a run's record that a repeated training must reproduce."""
    return [column for column in run.layout if column.stat in COMPARED and column.stat not in left_out(run)]


def first_difference(
    recorded_nC: Rows, columns: Sequence[Column], repeated_nC: Rows, now: Sequence[Column], first: int
) -> Difference | None:
    """The first difference of two records of the same steps, each in its own layout. Statistics that only one has are left
    out."""
    places = {(c.stat, c.layer): c for c in now if c.stat in COMPARED}
    differences = []
    for column in columns:
        if other := places.get((column.stat, column.layer)):
            before = np.ascontiguousarray(recorded_nC[:, column.start : column.start + column.width])
            after = np.ascontiguousarray(repeated_nC[:, other.start : other.start + other.width])
            # Compared as bits, so that 0 and -0 differ; but any NaN equals any other.
            unlike = (before.view(np.uint32) != after.view(np.uint32)) & ~(np.isnan(before) & np.isnan(after))
            if unlike.any():
                row, expert = (int(i) for i in np.argwhere(unlike)[0])
                numbers = float(before[row, expert]), float(after[row, expert])
                differences.append(Difference(first + row, column.stat, column.layer, expert, *numbers))
    return min(differences, key=lambda difference: difference.step, default=None)


def fold(digest: Any, rows_nC: Rows, columns: Sequence[Column]) -> None:
    """Add the losses and counts of some steps to a hash, which does not depend on how the steps are split into blocks."""
    kept = [np.arange(c.start, c.start + c.width) for c in columns if c.stat in HASHED]
    digest.update(np.ascontiguousarray(rows_nC[:, np.concatenate(kept)], "<f4").tobytes())


def fingerprint(run: Run, last: int | None = None) -> str:
    """A hash over the losses and counts of a run's steps, up to `last`: the same for the same training."""
    digest, end = hashlib.sha256(), run.steps()[1] if last is None else last
    for first in range(1, end + 1, SPAN):
        fold(digest, run.rows(first, min(end, first + SPAN - 1)), run.layout)
    return digest.hexdigest()
