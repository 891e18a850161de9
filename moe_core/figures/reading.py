"""What the readers of figures and tiles share: histories, the probe's snapshots, knob changes, what the viewer chose.

A source is anything with the methods of a run. It may carry `options`, what a person chose on the page beside run and
layer (an expert, sizes), and `others`, the runs to compare with; a plain run carries neither.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from moe_core.figures.paper import Array
from moe_core.figures.turns import Turned
from moe_core.runs.statistics import held_out_balance, on_mask, too_few
from moe_core.schema import (
    AUTOBALANCE,
    HELD_OUT_BALANCE,
    LOOKING,
    Config,
    Knobs,
    draws_noise,
    looks_ahead,
    meta_of,
)

Span = tuple[float, float] | None
RECENT = 50  # steps over which an expert's share and the speed are measured
ROWS = 4  # knobs drawn over time, those turned last
Read = Callable[[Any, int, int | None, Span, int | None], dict[str, Any]]


# The array that shows the probe to a person -> what its tokens are. A run that has none of them has its task's kind.
SHOWN = {"tokens": "bytes", "images": "images", "features": "rows", "points": "points"}
KINDS = tuple(SHOWN.values())
KIND_OF_TASK = {"text": "bytes", "digits": "images", "plane": "points"}


def probe_kind(source: Any) -> str:
    """What a run's tokens are: bytes, images, rows of a table, or points."""
    probe = source.probe()
    return next((kind for name, kind in SHOWN.items() if name in probe), KIND_OF_TASK[source.config.task])


class Beside:
    """A run, what was chosen in it, and the runs laid over it. Reads like the run."""

    def __init__(self, run: Any, options: dict[str, Any], others: tuple[Any, ...] = ()) -> None:
        self.run, self.options, self.others = run, options, others

    def __getattr__(self, name: str) -> Any:
        return getattr(self.run, name)


def last_step(source: Any) -> int:
    """The last recorded step; 0 when there is none."""
    reported = source.steps() if hasattr(source, "steps") else (0, source.status().step)
    return int(reported[1]) if reported and reported[1] is not None else 0


def rows_until(source: Any, stat: str, layer: int, step: int, count: int) -> tuple[Array, Array]:
    """The last `count` rows of a statistic up to and with `step`."""
    if step < 1:
        return np.zeros(0, np.int64), np.zeros(0)
    steps, values = source.history(stat, layer, first=max(1, step - count + 1), last=step)
    return steps, values


def at(source: Any, stat: str, layer: int, step: int) -> float:
    """A scalar statistic at a step, or NaN."""
    _, values = rows_until(source, stat, layer, step, 1)
    return float(values[-1]) if len(values) else math.nan


def over_time(source: Any, stat: str, layer: int, span: Span, bins: int | None) -> tuple[Any, Any]:
    """A history within the visible range, with a step to either side so that lines reach the edges."""
    first = None if span is None else max(1, math.floor(span[0]) - 1)
    last = None if span is None else math.ceil(span[1]) + 1
    steps, values = source.history(stat, layer, first=first, last=last, bins=bins)
    return steps, values


def common(source: Any, step: int | None, span: Span) -> dict[str, Any]:
    """What every chart over time takes beside its values. A line marks a hand's change."""
    return {"span": span, "cursor": step, "changes": tuple(by_hand(source))}


def gestures(changes: Sequence[Any]) -> list[Any]:
    """Knob changes with those of one drag as one: from the value before it to its last, at the step where it began.

    Each value of a drag is a change of its own in the record, so that a replay is exact. Those of one drag carry its name
    in `who`, after a slash, and may be told from another hand's between them. One that ended where it began, before any
    of its values acted by itself, is left out. So is a decision of autobalance until it acts.
    """
    told: list[Any] = []
    drags: dict[tuple[str, str], int] = {}
    acted: dict[int, set[int | None]] = {}
    for change in changes:
        drag = (change.who, change.name)
        if "/" in change.who and drag in drags:
            began = told[drags[drag]]
            step = change.step if began.step is None else began.step
            told[drags[drag]] = began._replace(value=change.value, step=step)
        else:
            drags[drag] = len(told)
            told.append(change)
        acted.setdefault(drags[drag], set()).add(change.step)
    moved = [c for at, c in enumerate(told) if c.value != c.previous or len(acted[at]) > 1]
    return [c for c in moved if c.who != AUTOBALANCE or c.step is not None]


def by_hand(source: Any) -> list[Any]:
    """The turns of people and scripts. Autobalance's own, each few steps, would cover every chart."""
    return [change for change in gestures(source.knob_changes()) if change.who != AUTOBALANCE]


def last_change(source: Any, step: int) -> Any | None:
    """The last turn by hand that took effect by a step, the values at the start aside."""
    done = [change for change in by_hand(source) if change.step is not None and 1 < change.step <= step]
    return done[-1] if done else None


def comparable_at(source: Any, steps: Array | Sequence[int], training: bool = False) -> Array | None:
    """(m,) bool: whether the held-out numbers of these steps, or those of training, compare with those of other strategies;
    None if all do."""
    stands, turns, flags = source.started_knobs, [], [looks_ahead(source.config, source.started_knobs, training)]
    for change in source.knob_changes():
        if change.step is not None and change.name in LOOKING:
            stands = replace(stands, **{change.name: change.value})
            turns.append(change.step)
            flags.append(looks_ahead(source.config, stands, training))
    ahead = np.array(flags)[np.searchsorted(turns, steps, side="right")]
    return ~ahead if ahead.any() else None


def read_knobs(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    """The knobs turned last, the latest first, each value with the step from which it acted; autobalance's own too."""
    found: dict[str, dict[int, Any]] = {}
    own: set[str] = set()
    done = [change for change in source.knob_changes() if change.step is not None]
    for change in sorted(done, key=lambda change: (change.step, change.id)):
        acted = found.pop(change.name, {1: getattr(source.started_knobs, change.name)})
        acted[change.step] = change.value  # of two turns in one step the last acted
        found[change.name] = acted
        own |= {change.name} if change.who == AUTOBALANCE else set()
    turned = {
        name: Turned(list(acted), list(acted.values()), meta_of(Knobs, name).scale != "linear", name in own)
        for name, acted in list(found.items())[: -ROWS - 1 : -1]
    }
    return {"turned": turned, "last": last_step(source) or None, "span": span, "cursor": step}


def probe_at(source: Any, step: int | None) -> tuple[int, dict[str, Array]] | None:
    """The last probe snapshot at or before a step, or None before the first."""
    try:
        found = source.snapshot(step=step, kind="probe")
    except (LookupError, ValueError):
        return None
    return (int(found[0]), found[1]) if found is not None else None


def read_probe(source: Any, layer: int, step: int | None) -> dict[str, Any]:
    """A layer's experts and gates of the last probe snapshot; of none, zero tokens."""
    found = probe_at(source, step)
    when, arrays = (None, {}) if found is None else found
    none = np.zeros((0, 1), np.uint8)
    return {
        "experts_NK": arrays["experts"][layer] if found else none,
        "gates_NK": arrays["gates"][layer] if found else none.astype(np.float16),
        "num_experts": source.config.num_experts,
        "step": when,
    }


def classes_of_probe(source: Any) -> dict[str, Any]:
    """The class of each probe token and the classes' names, as the figures take them."""
    return {"labels_N": label_of_probe(source.probe()), "label_names": source.labels.get("class", [])}


def rows_of_probe(source: Any, probe: dict[str, Any]) -> dict[str, Any]:
    """The rows of a table with their features' names; numbers, where a record of an earlier version has no names."""
    values_NF = probe["features"]
    names = source.labels.get("feature", [])
    F = values_NF.shape[1]
    return {"values_NF": values_NF, "names_F": names if len(names) == F else [str(f + 1) for f in range(F)]}


def label_of_probe(probe: dict[str, Any]) -> Any:
    """The class (or the domain) of each probe token, or None."""
    return next((probe[name] for name in ("class", "domain") if name in probe), None)


def groups_of(config: Config) -> int:
    """How many groups a hierarchical layer has; 1 for a flat one."""
    return max(1, config.groups)


def on_at(source: Any, layer: int, steps: Array | Sequence[int]) -> Array:
    """(n, E) bool: which experts were switched on in these steps."""
    steps, E = np.asarray(steps, np.int64), source.config.num_experts
    on_nE = on_mask(source.off_spans(), layer, steps, E)
    return np.ones((len(steps), E), bool) if on_nE is None else on_nE


def of_those_on(source: Any, layer: int, steps: Array | Sequence[int], values_nE: Array) -> Array:
    """Values by expert with NaN for one that was off: figures leave it out and say so."""
    on_nE = on_at(source, layer, steps)
    return values_nE if on_nE.all() else np.where(on_nE, values_nE, np.nan)


class HeldOut(NamedTuple):
    """The balance of an evaluation's selections. where: what sets it apart from training; since: whether no knob was turned
    after it; few: whether there were too few selections to call it uneven."""

    step: int
    cv: float
    max_over_mean: float
    where: str
    since: bool
    few: bool = False


def held_out_at(source: Any, layer: int, step: int) -> HeldOut | None:
    """The last evaluation by a step that says which experts were selected; None if there is none."""
    done = [e for e in source.evals() if e.step <= step and e.counts is not None]
    if not done:
        return None
    last, balance = done[-1], held_out_balance(done[-1].counts)
    change = last_change(source, step)
    where = "without noise" if draws_noise(source.config, source.knobs_at(last.step)) else "in evaluation"
    cv, most = (float(balance[name][layer]) for name, *_ in HELD_OUT_BALANCE)
    few = too_few(last.counts[layer])
    return HeldOut(last.step, cv, most, where, change is None or change.step <= last.step, few)


def recent_share(source: Any, layer: int, step: int) -> Array:
    """Each expert's share of the selections of the last steps (E,); NaN before the first."""
    _, share_nE = rows_until(source, "load_share", layer, step, RECENT)
    if not len(share_nE):
        return np.full(source.config.num_experts, np.nan)
    return np.asarray(np.mean(share_nE, axis=0, dtype=np.float64))


def chosen_expert(source: Any, layer: int, step: int | None) -> int:
    """The expert looked at, from 0: the one that was chosen on the page (there from 1), else the most loaded.

    A page holds the most loaded as it first stood: on a balanced run it is another every few steps.
    """
    if (named := named_expert(source)) is not None:
        return named
    if held := held_busiest(source, layer):
        return held.expert - 1
    share_E = recent_share(source, layer, last_step(source) if step is None else step)
    return int(np.argmax(np.nan_to_num(share_E)))


def share_at_end(source: Any, layer: int, span: Span) -> Array:
    """recent_share() at the end of the steps that a chart shows."""
    last = last_step(source)
    return recent_share(source, layer, last if span is None else min(last, math.ceil(span[1])))


def named_expert(source: Any) -> int | None:
    """The expert that a person chose, from 0; None for the busiest."""
    named = str(getattr(source, "options", {}).get("expert", ""))
    return int(named) - 1 if named.isdecimal() and 1 <= int(named) <= source.config.num_experts else None


class Busiest(NamedTuple):
    """The expert that had most load at a step, held since. Layer and expert count from 1; again: how often it was asked for."""

    layer: int
    expert: int
    step: int
    again: int = 0


def held_busiest(source: Any, layer: int) -> Busiest | None:
    """What the page holds as the busiest of this layer; None if it holds none, or was asked for the busiest again since."""
    options = getattr(source, "options", {})
    told = options.get("busiest")
    if not isinstance(told, list) or len(told) != 4 or not all(type(one) is int for one in told):
        return None
    held = Busiest(*told)
    fits = held.layer == layer + 1 and 1 <= held.expert <= source.config.num_experts and held.step > 0
    return held if fits and held.again == options.get("again", 0) else None


def tokens_per_expert(tokens: int, k: int, experts: int, devices: int = 1) -> float:
    """How many tokens an expert sees: k*T*D/E. (Shazeer 2017, section 3.1)"""
    return k * tokens * devices / experts


class Sizes(NamedTuple):
    """What the Batch page asks the formula about."""

    tokens: int
    k: int
    experts: int
    devices: int


def batch_sizes(source: Any) -> Sizes:
    """The sizes chosen on the page; the run's own, on one device, where none was."""
    given = getattr(source, "options", {})
    own = Sizes(source.config.tokens, int(source.knobs.k), source.config.num_experts, 1)
    return Sizes(*(max(1, int(given.get(name) or value)) for name, value in own._asdict().items()))
