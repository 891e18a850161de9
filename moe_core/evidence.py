"""The evidence for a diagnosis: one layer's statistics over the last steps, the knobs and their changes, and since when a
condition has held. Numpy and the schema only.

Shapes: n steps, E experts, m evaluations. `counts_nE` is (n, E).
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from moe_core.runs.rows import Eval, KnobChange
from moe_core.runs.statistics import held_out_balance, too_few
from moe_core.schema import STAT, Description, KnobValues

Array = NDArray[np.floating[Any]]
Flags = NDArray[np.bool_]

HOLD = 20  # steps for which a condition must hold to become a finding, and its opposite to end it
BINS = 1000  # bins of history that a diagnosis reads, about two rows each; old steps as minimum and maximum


class Evidence(NamedTuple):
    """What the rules read: one layer's statistics over the same steps, the knobs in force, and their changes.

    changes: the knob changes that took effect, in that order. A statistic that an old run did not record is all NaN, which
    neither begins nor ends a finding.
    """

    description: Description
    knobs: Any  # Knobs; of a run with knobs of its own, their Values
    changes: Sequence[Any]
    layer: int
    steps_n: NDArray[np.int64]
    task_loss_n: Array
    cv_load_n: Array
    counts_nE: Array
    dead_n: Array
    noise_scale_n: Array
    logit_spread_n: Array
    dropped_n: Array
    grad_norm_n: Array
    task_gradient_n: Array
    bias_effect_n: Array
    unreachable_n: Array
    # Of evaluations, where no noise is drawn: their steps, and the CV of the selections.
    held_out_steps_m: NDArray[np.int64] = np.empty(0, np.int64)
    held_out_cv_m: Array = np.empty(0)

    @property
    def experts(self) -> int:
        """The number of experts of the layer."""
        return self.description.layers[self.layer].experts

    @property
    def groups(self) -> int:
        """The number of groups of experts; 1 for a flat gate."""
        return self.description.layers[self.layer].groups


class Judged(Protocol):
    """The part of a Source that a diagnosis reads; it needs the last steps only."""

    @property
    def description(self) -> Description: ...

    @property
    def knobs(self) -> KnobValues: ...

    def knob_changes(self) -> Sequence[KnobChange]: ...

    def evals(self) -> Sequence[Eval]: ...

    def history(
        self, stat: str, layer: int = 0, *, bins: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[Any]]: ...


def evidence_of(source: Judged, layer: int) -> Evidence:
    """The evidence in a source's history."""

    def read(stat: str) -> Array:
        try:
            return np.asarray(source.history(stat, layer, bins=BINS)[1], np.float64)
        except ValueError:  # a statistic that this run does not record
            none = (len(steps), source.description.layers[layer].experts) if stat == "counts" else len(steps)
            return np.full(none, np.nan)

    measures = source.description.measures
    # Any statistic has the steps; a record may lack each, and have some that this version does not know.
    stat = next((name for name in measures if name in STAT), "task_loss")
    steps = np.asarray(source.history(stat, layer, bins=BINS)[0], np.int64)
    done = sorted((c for c in source.knob_changes() if c.step is not None), key=lambda c: (c.step, c.id))
    evals = [(e.step, e.counts) for e in source.evals() if e.counts is not None]
    # Too few selections are uneven by chance, so their CV is left out.
    own = [counts_LE[layer : layer + 1] for _, counts_LE in evals]
    cv = [math.nan if too_few(counts_1E) else held_out_balance(counts_1E)["cv_held_out"][0] for counts_1E in own]
    held_out = np.array(cv, np.float64)
    at = np.array([step for step, _ in evals], np.int64)
    return Evidence(
        source.description, source.knobs, done, layer, steps,
        read("task_loss"), read(source.description.balance), read("counts"), read("dead_experts"), read("noise_scale"), read("logit_spread"),
        read("dropped"), read("grad_norm"), read("task_gradient"),
        read("bias_effect"), read("unreachable"), at, held_out,
    )  # fmt: skip


# When a condition holds


def holding_since(steps_n: NDArray[np.int64], on_n: Flags, off_n: Flags, hold: int = HOLD) -> int | None:
    """The step since which a condition has held, or None. It begins with `hold` steps of on, and ends with as many of off.

    Between on and off it stays as it was. Steps may be thinned: what counts is the span of steps, not of rows.
    """
    begun = [(start, True) for start in spans(steps_n, on_n, hold)]
    ended = [(start, False) for start in spans(steps_n, off_n, hold)]
    since = None
    for start, begins in sorted(begun + ended):
        since = (since or start) if begins else None
    return since


def spans(steps_n: NDArray[np.int64], flag_n: Flags, hold: int) -> list[int]:
    """The first step of each stretch of true flags that is at least `hold` steps long."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flag_n, [False]]).astype(np.int8)))
    first, last = steps_n[edges[::2]], steps_n[edges[1::2] - 1]
    return [int(step) for step in first[last - first + 1 >= hold]]


def mean_of_last(steps_n: NDArray[np.int64], values_n: Array, count: int) -> float:
    """Mean over the last `count` steps; NaN of nothing."""
    recent = values_n[steps_n > steps_n[-1] - count]
    return float(recent.mean()) if len(recent) else math.nan


def unchanged_since(evidence: Evidence, *names: str) -> int:
    """The step since which the knobs of these names have not changed."""
    return max((change.step for change in evidence.changes if change.name in names), default=1)
