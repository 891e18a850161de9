"""The rows of a watched run's record, from what was kept of each step. They are made where the record is written, so that the
training waits for no copy from its device.

Shapes: n steps, C columns of the record (of Sums: calls), E experts, L layers, H columns that are held.
"""

from collections.abc import Mapping, Sequence
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
    """What the user says, as it is kept: of a tensor on a device a copy, which is not waited for. ValueError for what is no number."""
    if isinstance(value, Tensor):
        plain: Tensor = value.detach()
        if plain.device.type != "cpu" and plain.numel() == 1 and not plain.is_complex():
            return plain.clone()  # their loop may go on to change it
        value = plain
    try:
        if isinstance(value, str | bytes | bytearray | memoryview):  # float() reads a number in them
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)[:80]
        raise ValueError(f"{name} must be a number or a tensor of one number, got {got}") from None


class Step(NamedTuple):
    """What was kept of one step. said: the numbers of OF_STEP that the user gave; look: the look at the probe, if there was one."""

    number: int
    seconds: float
    said: Mapping[str, Scalar]
    look: Look | None = None


class Rows:
    """Makes rows in the columns of a record. layers: the layer of each tap's number. X: the experts of all layers."""

    def __init__(self, columns: Sequence[Column], layers: dict[int, int]) -> None:
        self.layers, self.width = layers, columns[-1].start + columns[-1].width
        self.starts = {(c.stat, c.layer): c.start for c in columns}
        self.averaged_C = np.isin(np.arange(self.width), [c.start for c in columns if c.stat in SCORE_STATS])
        # Steps that did not measure these have what was measured last.
        self.held_H = [c.start for c in columns if c.stat in (*SCORE_STATS, *MOVEMENT)]
        self.last_H = np.full(len(self.held_H), np.nan)
        counts = [c for c in columns if c.stat == "counts"]
        self.counts_X = np.concatenate([np.arange(c.start, c.start + c.width) for c in counts])
        self.first_L = np.cumsum([0, *(c.width for c in counts)])[:-1]  # the place of each layer's first expert in X
        self.dead_L = [self.starts["dead_experts", c.layer] for c in counts]
        self.selected_X = np.zeros(len(self.counts_X))  # the step in which each expert was selected last; 0: none yet

    def make(self, steps: Sequence[Step | int], sums: Sequence[Sums]) -> NDArray[np.float32]:
        """(n, C). A step that was not kept is given as its number alone; its row is NaN, not measured. sums: what the layers
        selected in these steps, and maybe in others."""
        rows_nC = np.full((len(steps), self.width), np.nan, np.float32)
        kept_n = [isinstance(step, Step) for step in steps]
        if any(kept_n):
            rows_nC[kept_n] = self._measure([step for step in steps if isinstance(step, Step)], sums)
        return rows_nC

    def _measure(self, steps: Sequence[Step], sums: Sequence[Sums]) -> NDArray[np.float64]:
        added = Added(len(steps), self.width)
        number_n = np.array([step.number for step in steps])
        row_of = {step.number: n for n, step in enumerate(steps)}
        for one in sums:
            self._add_sums(added, row_of, one)
        for n, step in enumerate(steps):
            self._add_said(added, n, step)
        values_nC = added.values(self.averaged_C)
        values_nC[:, self.held_H] = self._hold(values_nC[:, self.held_H], added.times_nC[:, self.held_H] > 0)
        values_nC[:, self.dead_L] = self._count_dead(number_n, values_nC[:, self.counts_X] > 0)
        return values_nC

    def _add_sums(self, added: "Added", row_of: Mapping[int, int], sums: Sums) -> None:
        row_C = np.array([row_of.get(step, -1) for step in sums.steps])
        layer_C = [self.layers.get(tap, -1) for tap in sums.taps]
        for stat, values in arrays_of(sums).items():
            start_C = np.array([self.starts.get((stat, layer), -1) if layer >= 0 else -1 for layer in layer_C])
            here = (row_C >= 0) & (start_C >= 0)
            added.add(row_C[here], start_C[here], values[here])

    def _add_said(self, added: "Added", row: int, step: Step) -> None:
        said = {(name, -1): value for name, value in step.said.items() if value is not None}
        for tap, moved in step.look.moved.items() if step.look is not None else ():
            said |= {(stat, self.layers.get(tap, -1)): share for stat, share in zip(MOVEMENT, moved, strict=True)}
        for key, value in {("seconds", -1): step.seconds, **said}.items():
            if key in self.starts:
                added.put(row, self.starts[key], float(value))

    def _hold(self, values_nH: NDArray[np.float64], measured_nH: NDArray[np.bool_]) -> NDArray[np.float64]:
        """The values, and where nothing was measured the last one before."""
        known_nH = np.concatenate([self.last_H[None], values_nH])
        last_nH = np.maximum.accumulate(np.where(measured_nH, np.arange(1, len(known_nH))[:, None], 0))
        held_nH = np.take_along_axis(known_nH, last_nH, 0)
        self.last_H = held_nH[-1]
        return held_nH

    def _count_dead(self, number_n: NDArray[np.int64], selected_nX: NDArray[np.bool_]) -> NDArray[np.int64]:
        """(n, L) how many experts of each layer were not selected for DEAD_AFTER steps."""
        last_nX = np.where(selected_nX, number_n[:, None], self.selected_X)
        last_nX = np.maximum.accumulate(last_nX)
        self.selected_X = last_nX[-1]
        dead_nX = number_n[:, None] - last_nX >= DEAD_AFTER
        return np.add.reduceat(dead_nX, self.first_L, axis=1, dtype=np.int64)


class Added:
    """Numbers in the rows and columns of a record that were added up, and how many each is the sum of."""

    def __init__(self, rows: int, width: int) -> None:
        self.total_nC, self.times_nC = np.zeros((2, rows, width))

    def add(self, rows_A: NDArray[np.int64], starts_A: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """Add values (A) or (A, E), each to its row, from its first column on."""
        values_AE = values[:, None] if values.ndim == 1 else values
        places_AE = (rows_A * self.total_nC.shape[1] + starts_A)[:, None] + np.arange(values_AE.shape[1])
        np.add.at(self.total_nC.reshape(-1), places_AE, values_AE)
        np.add.at(self.times_nC.reshape(-1), places_AE, 1)

    def put(self, row: int, column: int, value: float) -> None:
        """Set one number."""
        self.total_nC[row, column], self.times_nC[row, column] = value, 1

    def values(self, averaged_C: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(n, C) the sums, in the averaged columns the means; NaN where nothing was added."""
        with np.errstate(invalid="ignore"):
            return self.total_nC / np.where(averaged_C, self.times_nC, self.times_nC > 0)


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
