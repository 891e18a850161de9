"""The rows of a watched run's record, from what was kept of each step. They are made where the record is written, so that the
training waits for no copy from its device.

Shapes: n steps, C columns of the record, E experts, S statistics of the scores.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from moe_core.schema import DEAD_AFTER, Column
from moe_core.watching.probe import MOVEMENT
from moe_core.watching.tally import SCORES, Sums

Scalar = float | Tensor | None
OF_STEP = ("loss", "task_loss", "grad_norm")  # what the user says of a step


class Step(NamedTuple):
    """What was kept of one step. said: of OF_STEP, what the user gave; sums: what the layers selected; moved: of Look."""

    number: int
    seconds: float
    said: dict[str, Scalar]
    sums: list[Sums]
    moved: dict[int, tuple[Tensor, Tensor]] = {}


class Rows:
    """Makes rows in the columns of a record. layers: the layer of each tap's number."""

    def __init__(self, columns: Sequence[Column], layers: dict[int, int]) -> None:
        self.layers, self.width = layers, columns[-1].start + columns[-1].width
        self.places = {(c.stat, c.layer): slice(c.start, c.start + c.width) for c in columns}
        self.last_selected = {
            c.layer: np.zeros(c.width) for c in columns if c.stat == "counts"
        }  # the step in which each expert was selected last; 0: none yet
        # The last statistics of the scores and of the probe, which not every step measures.
        self.held: dict[tuple[str, int], NDArray[np.float64]] = {}

    def make(self, steps: Sequence[Step | int]) -> NDArray[np.float32]:
        """(n, C). A number in place of a step is that of one that was not kept: all is NaN, not measured."""
        rows_nC = np.full((len(steps), self.width), np.nan, np.float32)
        for row_C, step in zip(rows_nC, steps, strict=True):
            if isinstance(step, Step):
                self._fill(row_C, step)
        return rows_nC

    def _fill(self, row_C: NDArray[np.float32], step: Step) -> None:
        self._set(row_C, "seconds", -1, step.seconds)
        for name in OF_STEP:
            if (said := step.said.get(name)) is not None:
                self._set(row_C, name, -1, float(said))
        added: dict[tuple[str, int], NDArray[np.float64]] = {}
        calls: dict[int, int] = {}
        for sums in step.sums:
            for stat, values in arrays_of(sums).items():
                for tap, value in zip(sums.taps, values, strict=True):
                    key = stat, self.layers.get(tap, -1)
                    added[key] = added[key] + value if key in added else value
            for tap in sums.taps if sums.scores_SC is not None else ():
                calls[self.layers.get(tap, -1)] = calls.get(self.layers.get(tap, -1), 0) + 1
        self.held |= {key: value / calls[key[1]] for key, value in added.items() if key[0] in SCORES}
        for tap, moved in step.moved.items():
            for stat, value in zip(MOVEMENT, moved, strict=True):
                self.held[stat, self.layers.get(tap, -1)] = np.array(float(value))
        for (stat, layer), value in (added | self.held).items():
            self._set(row_C, stat, layer, value)
        for layer, last_E in self.last_selected.items():
            counts_E = added.get(("counts", layer))
            if counts_E is not None:
                last_E[counts_E > 0] = step.number
            self._set(row_C, "dead_experts", layer, float((step.number - last_E >= DEAD_AFTER).sum()))

    def _set(self, row_C: NDArray[np.float32], stat: str, layer: int, value: float | NDArray[np.float64]) -> None:
        if (place := self.places.get((stat, layer))) is not None:
            row_C[place] = value


def arrays_of(sums: Sums) -> dict[str, NDArray[np.float64]]:
    """By statistic, one row for each of the calls."""
    arrays = {"counts": sums.counts_CE1[:, :-1].cpu().numpy().astype(np.float64)}
    if sums.importance_CE1 is not None:
        arrays["importance"] = sums.importance_CE1[:, :-1].cpu().numpy().astype(np.float64)
    if sums.scores_SC is not None:
        arrays |= dict(zip(SCORES, sums.scores_SC.cpu().numpy().astype(np.float64), strict=True))
    return arrays


def counts_by_layer(sums: Sequence[Sums], layers: dict[int, int], experts: Sequence[int]) -> list[list[float]]:
    """The selections of each expert of each layer."""
    counts = [np.zeros(E) for E in experts]
    for one in sums:
        for tap, counts_E in zip(one.taps, one.counts_CE1[:, :-1].cpu().numpy(), strict=True):
            if tap in layers:
                counts[layers[tap]] += counts_E
    return [[float(n) for n in counts_E] for counts_E in counts]
