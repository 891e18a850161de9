"""The evidence for a diagnosis: one layer's statistics over the last steps, the knobs and their changes, and since when a
condition has held. Numpy and the schema only.

Shapes: n steps, E experts, m evaluations. `counts_nE` is (n, E).
"""

import math
from collections.abc import Mapping, Sequence
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


class Held(NamedTuple):
    """Whether a condition held at step `last`, and since which step; None if it did not. known: whether it began or ended there; if
    not, it may have held before the first step that was read."""

    last: int
    since: int | None
    known: bool


Condition = tuple[str, int | None]  # its rule, and the expert that it is about, None if it is about the layer
NEVER = Held(0, None, True)  # before the first step


class Memory:
    """What one diagnosis of a layer leaves to the next: the conditions, each by its rule and the expert that it is about, and the
    last step read."""

    def __init__(self) -> None:
        self.last = 0
        self.held: dict[Condition, Held] = {}

    @property
    def known(self) -> bool:
        """Whether all that holds is seen to begin, and all else to end."""
        return all(held.known for held in self.held.values())


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
    before: Mapping[Condition, Held]  # conditions as the last diagnosis found them
    now: dict[Condition, Held]  # and as this one does
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

    def since(
        self, rule: str, on_n: Flags, off_n: Flags, *, of: int | None = None, steps_n: NDArray[np.int64] | None = None
    ) -> int | None:
        """Since which step a rule's condition has held, or None: as holding() says, with what the last diagnosis knew. What is not
        asked for is forgotten, so ask in each diagnosis, also where no finding would follow.

        of: the expert that the condition is about; steps_n: the steps of the flags, if not all steps.
        """
        before = self.before.get((rule, of), NEVER._replace(known=bool(self.steps_n[0] <= 1)))
        held = holding(self.steps_n if steps_n is None else steps_n, on_n, off_n, before=before)
        if not (on_n.any() or off_n.any()):  # of what is not recorded earlier steps say nothing either
            held = held._replace(known=held.known or held.since is None)
        self.now[rule, of] = held
        return held.since

    def known(self, rule: str, of: int | None = None) -> bool:
        """Whether what since() was asked for began at the step that it gave, and not before the first step that was read."""
        return self.now.get((rule, of), NEVER).known


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


def evidence_of(source: Judged, layer: int, memory: Memory | None = None) -> Evidence:
    """The evidence in a source's history. memory: of an earlier diagnosis, left out if steps between that and this were not read."""

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
    useful = memory is not None and len(steps) and steps[0] - 1 <= memory.last <= steps[-1]
    before = memory.held if memory is not None and useful else {}
    return Evidence(
        source.description, source.knobs, done, layer, steps,
        read("task_loss"), read(source.description.balance), read("counts"), read("dead_experts"), read("noise_scale"), read("logit_spread"),
        read("dropped"), read("grad_norm"), read("task_gradient"),
        read("bias_effect"), read("unreachable"), before, {}, at, held_out,
    )  # fmt: skip


# When a condition holds


def holding(steps_n: NDArray[np.int64], on_n: Flags, off_n: Flags, hold: int = HOLD, before: Held = NEVER) -> Held:
    """Whether a condition holds at the last step, and since when. It begins with `hold` steps of on, and ends with as many of off.

    Between on and off it stays as it was. Steps may be thinned: what counts is the span of steps, not of rows. before: how it
    was at an earlier step, without which a condition that wavers between on and off would seem to begin at the first steps that
    are still in memory.
    """
    if not len(steps_n):
        return before
    begun = [(settled, start, True) for start, settled in spans(steps_n, on_n, hold)]
    ended = [(settled, start, False) for start, settled in spans(steps_n, off_n, hold)]
    last, since, known = before
    for settled, start, begins in sorted(begun + ended):
        if settled > before.last:
            since, known = (start if since is None else since, known) if begins else (None, True)
    return Held(max(last, int(steps_n[-1])), since, known)


def spans(steps_n: NDArray[np.int64], flag_n: Flags, hold: int) -> list[tuple[int, int]]:
    """Of each stretch of true flags that is at least `hold` steps long its first step, and the one at which it is that long."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flag_n, [False]]).astype(np.int8)))
    first, last = steps_n[edges[::2]], steps_n[edges[1::2] - 1]
    return [
        (int(start), int(steps_n[np.searchsorted(steps_n, start + hold - 1)]))
        for start in first[last - first + 1 >= hold]
    ]


def mean_of_last(steps_n: NDArray[np.int64], values_n: Array, count: int) -> float:
    """Mean over the last `count` steps; NaN of nothing."""
    recent = values_n[steps_n > steps_n[-1] - count]
    return float(recent.mean()) if len(recent) else math.nan


def unchanged_since(evidence: Evidence, *names: str) -> int:
    """The step since which the knobs of these names have not changed."""
    return max((change.step for change in evidence.changes if change.name in names), default=1)
