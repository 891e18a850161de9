"""The rows of a watched run's record, from what was kept of each step. They are made where the record is written, so that the
training waits for no copy from its device.

Shapes: n steps, C columns of the record, E experts, S statistics of the scores.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from moe_core.schema import DEAD_AFTER, Column
from moe_core.watching.probe import MOVEMENT, Look
from moe_core.watching.tally import SCORE_STATS, Sums

Scalar = float | Tensor | None
OF_STEP = ("loss", "task_loss", "grad_norm")  # what the user says of a step


def number_of(name: str, value: Any) -> float | Tensor:
    """What the user says, as it is kept: of a tensor a copy, which is not waited for. ValueError for what is no number."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        return value.detach().clone()  # their loop may go on to change it
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)[:80]
        raise ValueError(f"{name} must be a number or a tensor of one number, got {got}") from None


class Step(NamedTuple):
    """What was kept of one step. said: the numbers of OF_STEP that the user gave; look: the look at the probe, if there was one."""

    number: int
    seconds: float
    said: dict[str, Scalar]
    look: Look | None = None


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

    def make(self, steps: Sequence[Step | int], sums: Sequence[Sums]) -> NDArray[np.float32]:
        """(n, C). A step that was not kept is given as its number alone; its row is NaN, not measured. sums: what the layers
        selected in these steps, and maybe in others."""
        rows_nC = np.full((len(steps), self.width), np.nan, np.float32)
        added = add_by_step(sums, self.layers)
        for row_C, step in zip(rows_nC, steps, strict=True):
            if isinstance(step, Step):
                self._fill(row_C, step, added.get(step.number, {}))
        return rows_nC

    def _fill(self, row_C: NDArray[np.float32], step: Step, added: dict[tuple[str, int], NDArray[np.float64]]) -> None:
        self._set(row_C, "seconds", -1, step.seconds)
        for name in OF_STEP:
            if (said := step.said.get(name)) is not None:
                self._set(row_C, name, -1, float(said))
        self.held |= {key: value for key, value in added.items() if key[0] in SCORE_STATS}
        for tap, moved in step.look.moved.items() if step.look is not None else ():
            for stat, share in zip(MOVEMENT, moved, strict=True):
                self.held[stat, self.layers.get(tap, -1)] = np.array(float(share))
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


def add_by_step(sums: Sequence[Sums], layers: dict[int, int]) -> dict[int, dict[tuple[str, int], NDArray[np.float64]]]:
    """Each statistic of each layer, by step. Several forwards of a step are added up; the statistics of scores are averaged."""
    added: dict[int, dict[tuple[str, int], NDArray[np.float64]]] = {}
    forwards: dict[tuple[int, str, int], int] = {}
    for one in sums:
        for stat, values in arrays_of(one).items():
            for tap, step, value in zip(one.taps, one.steps, values, strict=True):
                if tap in layers:
                    of_step, key = added.setdefault(step, {}), (stat, layers[tap])
                    of_step[key] = of_step[key] + value if key in of_step else value
                    forwards[step, *key] = forwards.get((step, *key), 0) + 1
    return {
        step: {key: value / forwards[step, *key] if key[0] in SCORE_STATS else value for key, value in of_step.items()}
        for step, of_step in added.items()
    }


def arrays_of(sums: Sums) -> dict[str, NDArray[np.float64]]:
    """By statistic, one row for each of the calls."""
    arrays = {"counts": sums.counts_CE1[:, :-1].cpu().numpy().astype(np.float64)}
    if sums.importance_CE1 is not None:
        arrays["importance"] = sums.importance_CE1[:, :-1].cpu().numpy().astype(np.float64)
    if sums.scores_SC is not None:
        arrays |= dict(zip(SCORE_STATS, sums.scores_SC.cpu().numpy().astype(np.float64), strict=True))
    return arrays


def counts_by_layer(sums: Sequence[Sums], layers: dict[int, int], experts: Sequence[int]) -> list[list[float]]:
    """The selections of each expert of each layer."""
    counts = [np.zeros(E) for E in experts]
    for one in sums:
        for tap, counts_E in zip(one.taps, one.counts_CE1[:, :-1].cpu().numpy(), strict=True):
            if tap in layers:
                counts[layers[tap]] += counts_E
    return [[float(n) for n in counts_E] for counts_E in counts]
