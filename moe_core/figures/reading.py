"""What the readers of figures and tiles share: histories, the probe's snapshots, knob changes, what the viewer chose.

They read from a Source (runs/source.py), at an At: layer, step, visible range, points of a line.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from moe_core.figures.paper import Array
from moe_core.figures.turns import Turned
from moe_core.runs.rows import KnobChange
from moe_core.runs.source import At, Source, Span
from moe_core.runs.statistics import held_out_balance, measured_by, on_mask, too_few
from moe_core.schema import (
    AUTOBALANCE,
    HELD_OUT_BALANCE,
    LOOKING,
    Description,
    KnobValues,
    draws_noise,
    experts_per_token,
    looks_ahead,
)

RECENT = 50  # steps over which an expert's share and the speed are measured
ROWS = 4  # knobs drawn over time, those turned last
Read = Callable[[Source, At], dict[str, Any]]


def last_step(source: Source) -> int:
    """The last recorded step; 0 when there is none."""
    return source.steps()[1]


def step_of(source: Source, at: At) -> int:
    """The step to show: the one asked for, else the last one; 0 before the first."""
    return last_step(source) if at.step is None else at.step


def experts_of(source: Source, layer: int) -> int:
    """How many experts a layer has."""
    return source.description.layers[layer].experts


def rows_until(source: Source, stat: str, layer: int, step: int, count: int) -> tuple[Array, Array]:
    """The last `count` rows of a statistic up to and with `step`."""
    if step < 1:
        return np.zeros(0, np.int64), np.zeros(0)
    steps, values = source.history(stat, layer, first=max(1, step - count + 1), last=step)
    return steps, values


def value_at(source: Source, stat: str, layer: int, step: int, over: int = 1) -> float:
    """A scalar statistic at a step, or its mean over the last `over` steps up to it, without those that are not known. NaN before the
    first step, and for a run that does not measure it."""
    if not measured_by(source.description, stat):
        return math.nan
    _, values = rows_until(source, stat, layer, step, over)
    known = values[~np.isnan(values)]
    return float(np.mean(known, dtype=np.float64)) if len(known) else math.nan


def over_time(source: Source, stat: str, at: At) -> tuple[Any, Any]:
    """A history within the visible range, with a step to either side so that lines reach the edges."""
    first = None if at.span is None else max(1, math.floor(at.span[0]) - 1)
    last = None if at.span is None else math.ceil(at.span[1]) + 1
    return source.history(stat, at.layer, first=first, last=last, bins=at.bins)


def common(source: Source, at: At) -> dict[str, Any]:
    """What every chart over time takes beside its values. Changes made by hand are marked by lines."""
    return {"span": at.span, "cursor": at.step, "changes": tuple(marked(source))}


def gestures(changes: Sequence[KnobChange]) -> list[KnobChange]:
    """Knob changes, those of one drag merged into one: from the value before the drag to its last, at the step where it began.

    Each value of a drag is a change of its own in the record, so that a replay is exact. Those of one drag carry its name
    in `who`, after a slash; changes by others may lie between them. A drag that ended at the value where it began, and of
    which no other value took effect, is left out. So is a decision of autobalance until it takes effect.
    """
    merged: list[KnobChange] = []
    drags: dict[tuple[str, str], int] = {}
    acted: dict[int, set[int | None]] = {}
    for change in changes:
        drag = (change.who, change.name)
        if "/" in change.who and drag in drags:
            began = merged[drags[drag]]
            step = change.step if began.step is None else began.step
            merged[drags[drag]] = began._replace(value=change.value, step=step)
        else:
            drags[drag] = len(merged)
            merged.append(change)
        acted.setdefault(drags[drag], set()).add(change.step)
    moved = [c for at, c in enumerate(merged) if c.value != c.previous or len(acted[at]) > 1]
    return [c for c in moved if c.who != AUTOBALANCE or c.step is not None]


class Turnable(Protocol):
    """What was turned: a Source, or the steps of one."""

    @property
    def description(self) -> Description: ...

    def knob_changes(self) -> Sequence[KnobChange]: ...


def by_hand(source: Turnable) -> list[KnobChange]:
    """The turns by people and scripts. Autobalance turns knobs every few steps; its marks would cover every chart."""
    return [change for change in gestures(source.knob_changes()) if change.who != AUTOBALANCE]


def marked(source: Turnable) -> list[KnobChange]:
    """The turns by hand that charts mark: not those of a knob that only paces the run, such as its speed limit, since no number
    tells them."""
    knobs = source.description.knobs
    return [change for change in by_hand(source) if change.name not in knobs or not knobs[change.name].paces]


def last_change(source: Source, step: int) -> KnobChange | None:
    """The last turn by hand that took effect by a step, the values at the start aside."""
    done = [change for change in marked(source) if change.step is not None and 1 < change.step <= step]
    return done[-1] if done else None


def comparable_at(source: Source, steps: Array | Sequence[int], training: bool = False) -> Array | None:
    """(m,) bool: whether the held-out numbers of these steps, or those of training, compare with those of other strategies;
    None if all do."""
    ahead = by_knobs(source, steps, LOOKING, lambda knobs: looks_ahead(source.description, knobs, training))
    return ~ahead if ahead.any() else None


def by_knobs(
    source: Source, steps: Array | Sequence[int], names: Sequence[str], value_of: Callable[[KnobValues], Any]
) -> Array:
    """(n,): what follows from the knobs in force, for each of these steps. names: the knobs that it depends on."""
    turns = sorted(c.step for c in source.knob_changes() if c.step is not None and c.name in names)
    values = [value_of(knobs) for knobs in (source.started_knobs, *map(source.knobs_at, turns))]
    return np.array(values)[np.searchsorted(turns, steps, side="right")]


def chosen_in(source: Source, layer: int, steps: Array | Sequence[int]) -> Array:
    """(n,): how many experts each token was sent to in these steps, by the knobs of each step."""
    return by_knobs(
        source, steps, ("k", "k_primary"), lambda knobs: float(experts_per_token(source.description, knobs, layer))
    )


def read_knobs(source: Source, at: At) -> dict[str, Any]:
    """The knobs turned last, by hand or by autobalance, the latest first: each value with the step from which it acted."""
    courses: dict[str, dict[int, Any]] = {}
    own: set[str] = set()
    done = [(change.step, change.id, change) for change in source.knob_changes() if change.step is not None]
    for step, _, change in sorted(done):
        acted = courses.pop(change.name, {1: getattr(source.started_knobs, change.name)})
        acted[step] = change.value  # of two turns in one step only the last one acts
        courses[change.name] = acted
        own |= {change.name} if change.who == AUTOBALANCE else set()
    turned = {
        name: Turned(list(acted), list(acted.values()), source.description.knobs[name].scale != "linear", name in own)
        for name, acted in list(courses.items())[: -ROWS - 1 : -1]
    }
    more = len(courses) - len(turned)
    return {"turned": turned, "more": more, "last": last_step(source) or None, "span": at.span, "cursor": at.step}


def probe_at(source: Source, step: int | None) -> tuple[int, dict[str, Array]] | None:
    """The last probe snapshot at or before a step, or None before the first."""
    try:
        snapshot = source.snapshot(step=step, kind="probe")
    except (LookupError, ValueError):
        return None
    return (int(snapshot[0]), snapshot[1]) if snapshot is not None else None


def read_probe(source: Source, layer: int, step: int | None) -> dict[str, Any]:
    """A layer's experts and gates of the last probe snapshot; arrays without a token before the first."""
    snapshot = probe_at(source, step)
    when, arrays = (None, {}) if snapshot is None else snapshot
    none = np.zeros((0, 1), np.uint8)
    return {
        "experts_NK": arrays["experts"][layer] if snapshot else none,
        "gates_NK": arrays["gates"][layer] if snapshot else none.astype(np.float16),
        "num_experts": experts_of(source, layer),
        "step": when,
    }


def classes_of_probe(source: Source) -> dict[str, Any]:
    """The class of each probe token and the classes' names, as the figures take them."""
    return {"labels_N": label_of_probe(source.probe()), "label_names": source.labels.get("class", [])}


def rows_of_probe(source: Source, probe: dict[str, Any]) -> dict[str, Any]:
    """The rows of a table with their features' names; features are numbered if the record, of an earlier version, has no names."""
    values_NF = probe["features"]
    names = source.labels.get("feature", [])
    F = values_NF.shape[1]
    return {"values_NF": values_NF, "names_F": names if len(names) == F else [str(f + 1) for f in range(F)]}


def bytes_of_probe(source: Source) -> dict[str, Any]:
    """The probe's bytes, and the text that each is of; None where the record does not fit."""
    probe = source.probe()
    sequence_N = probe.get("sequence")
    fits = sequence_N is not None and np.shape(sequence_N) == np.shape(probe["tokens"])
    return {"tokens_N": probe["tokens"], "sequence_N": sequence_N if fits else None}


def tokens_of_probe(source: Source) -> dict[str, Any]:
    """The text of each token of the probe, its number where the record has no text for it, and the row that it is of."""
    probe, names = source.probe(), source.labels.get("token", [])
    ids = np.asarray(probe.get("tokens", ())).ravel().tolist()
    row_N = np.asarray(probe["sequence"]).ravel() if "sequence" in probe else None
    return {
        "strings_N": [names[n] if 0 <= n < len(names) else str(n) for n in ids],
        "row_N": row_N if row_N is not None and len(row_N) == len(ids) else None,
    }


def label_name(source: Source) -> str:
    """What the labels of a run's tokens are called: "domain" for text, else "class"."""
    return "domain" if source.description.sequence else "class"


def label_of_probe(probe: dict[str, Any]) -> Any:
    """The class (or the domain) of each probe token, or None."""
    return next((probe[name] for name in ("class", "domain") if name in probe), None)


def on_at(source: Source, layer: int, steps: Array | Sequence[int]) -> Array:
    """(n, E) bool: which experts were switched on in these steps."""
    steps, E = np.asarray(steps, np.int64), experts_of(source, layer)
    on_nE = on_mask(source.off_spans(), layer, steps, E)
    return np.ones((len(steps), E), bool) if on_nE is None else on_nE


def of_those_on(source: Source, layer: int, steps: Array | Sequence[int], values_nE: Array) -> Array:
    """Values by expert, NaN for one that was switched off: figures leave it out and say so."""
    on_nE = on_at(source, layer, steps)
    return values_nE if on_nE.all() else np.where(on_nE, values_nE, np.nan)


class HeldOut(NamedTuple):
    """The balance of an evaluation's selections.

    where: "without noise" or "in evaluation", its difference from training; since: whether the evaluation came after the last
    turn by hand; few: whether there were so few selections that chance alone could make them uneven.
    """

    step: int
    cv: float
    max_over_mean: float
    where: str
    since: bool
    few: bool = False


def held_out_at(source: Source, layer: int, step: int) -> HeldOut | None:
    """The balance in the last evaluation up to a step that counted selections; None if there is none."""
    done = [(e.step, e.counts) for e in source.evals() if e.step <= step and e.counts is not None]
    if not done:
        return None
    last, counts = done[-1]
    balance = held_out_balance(counts)
    change = last_change(source, step)
    where = evaluated(source, last)
    cv, most = (float(balance[name][layer]) for name, *_ in HELD_OUT_BALANCE)
    few = too_few(counts[layer])
    since = change is None or change.step is None or change.step <= last
    return HeldOut(last, cv, most, where, since, few)


def evaluated(source: Source, step: int) -> str:
    """How an evaluation differs from training at a step: "without noise" or just "in evaluation"."""
    return "without noise" if draws_noise(source.description, source.knobs_at(step)) else "in evaluation"


def recent_share(source: Source, layer: int, step: int) -> Array:
    """Each expert's share of the selections of the last steps (E,); NaN before the first."""
    measured = measured_by(source.description, "selection_share")
    share_nE = rows_until(source, "selection_share", layer, step, RECENT)[1] if measured else ()
    if not len(share_nE):
        return np.full(experts_of(source, layer), np.nan)
    return np.asarray(np.mean(share_nE, axis=0, dtype=np.float64))


def chosen_expert(source: Source, layer: int, step: int | None) -> int:
    """The expert to show, from 0: the one chosen on the page (there from 1), else the most selected one.

    A page keeps the expert that was the busiest when it opened: on a balanced run it is another every few steps.
    """
    if (named := named_expert(source, layer)) is not None:
        return named
    if held := held_busiest(source, layer):
        return held.expert - 1
    share_E = recent_share(source, layer, last_step(source) if step is None else step)
    return int(np.argmax(np.nan_to_num(share_E)))


def share_at_end(source: Source, layer: int, span: Span) -> Array:
    """recent_share() at the end of the steps that a chart shows."""
    last = last_step(source)
    return recent_share(source, layer, last if span is None else min(last, math.ceil(span[1])))


def named_expert(source: Source, layer: int) -> int | None:
    """The expert that a person chose, from 0; None if they left it at the busiest."""
    named = str(source.options.get("expert", ""))
    return int(named) - 1 if named.isdecimal() and 1 <= int(named) <= experts_of(source, layer) else None


def pinned(source: Source, layer: int) -> list[int]:
    """The experts that a person pinned, from 0; those that the layer lacks are left out."""
    numbers = str(source.options.get("pinned", "")).split(",")
    return [int(n) - 1 for n in numbers if n.isdecimal() and 1 <= int(n) <= experts_of(source, layer)]


class Busiest(NamedTuple):
    """The expert that was selected most at a step, shown since. Layer and expert count from 1; again: how often it was asked for."""

    layer: int
    expert: int
    step: int
    again: int = 0


def held_busiest(source: Source, layer: int) -> Busiest | None:
    """The busiest expert of this layer that the page keeps showing; None if there is none, or the person asked for it anew."""
    options = source.options
    numbers = options.get("busiest")
    if not isinstance(numbers, list) or len(numbers) != 4 or not all(type(n) is int for n in numbers):
        return None
    held = Busiest(*numbers)
    fits = held.layer == layer + 1 and 1 <= held.expert <= experts_of(source, layer) and held.step > 0
    return held if fits and held.again == options.get("again", 0) else None


def tokens_per_expert(tokens: int, k: int, experts: int, devices: int = 1) -> float:
    """How many tokens an expert sees: k*T*D/E. (Shazeer 2017, section 3.1)"""
    return k * tokens * devices / experts


class Sizes(NamedTuple):
    """The numbers that the Batch page puts into the formula."""

    tokens: int
    k: int
    experts: int
    devices: int


def batch_sizes(source: Source) -> Sizes:
    """The sizes chosen on the page; the run's own, on one device, where none was."""
    own = Sizes(source.description.tokens, k_now(source), experts_of(source, 0), 1)
    return Sizes(*(max(1, int(source.options.get(name) or value)) for name, value in own._asdict().items()))


def k_now(source: Source) -> int:
    """The k of the run: the value of its knob or, without such a knob, the k of its first layer."""
    layer = source.description.layers[0]
    k = int(source.knobs.k) if "k" in source.description.knobs else layer.k
    return max(1, min(k, layer.experts))
