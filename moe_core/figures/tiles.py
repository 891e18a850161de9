"""The numbers above the charts: one large, five beside it, each with its yardstick.

Tiles are read from a run-like source (config, knobs, history, evals, knob_changes, snapshot) and are plain text, so that
the dashboard only has to place them.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from moe_core.figures.compare import LETTERS
from moe_core.figures.off import off_words, out_of
from moe_core.figures.paper import Array, percent
from moe_core.figures.read_compare import last_shared, offsets_of, runs_of
from moe_core.figures.read_experts import NONE, closest_partner, favourite_label, last_used
from moe_core.figures.reading import (
    RECENT,
    HeldOut,
    at,
    batch_sizes,
    chosen_expert,
    held_busiest,
    held_out_at,
    last_change,
    last_step,
    named_expert,
    on_at,
    probe_at,
    probe_kind,
    recent_share,
    rows_until,
    tokens_per_expert,
)
from moe_core.runs.statistics import DERIVED, derive
from moe_core.schema import (
    BALANCED,
    COLLAPSED,
    DEAD_AFTER,
    LOOKS_AHEAD,
    METRICS,
    STRATEGIES,
    experts_per_token,
    looks_ahead,
    untaught,
    weighing,
)

SETTLED, MOVING = 0.05, 0.2  # router churn below the first is Settled, above the second Restless


class Tile(NamedTuple):
    """One number. `word` and `hand_line` (in the hand's colour) belong to the large tile, `more` to who rests a pointer on it."""

    name: str
    label: str
    value: str
    unit: str = ""
    word: str = ""
    lines: tuple[str, ...] = ()
    hand_line: str = ""
    more: str = ""


NOT_LEARNING = "Not learning"
WHY_NOT = "the load is even, but the task's gradient on the gate is 0: it learns nothing about tokens"


def learns(source: Any, layer: int, step: int) -> bool:
    """Whether the task teaches a layer's gate at a step; True for a run of a version that did not measure it."""
    try:
        return not untaught(at(source, "task_gradient", layer, step), at(source, "grad_norm", layer, step))
    except ValueError:
        return True


def word_at(source: Any, layer: int, step: int) -> str:
    """The balance of a layer at a step in a word. A gate that learns nothing is never called balanced."""
    word = balance_word(at(source, "cv_load", layer, step))
    return NOT_LEARNING if word == "Balanced" and not learns(source, layer, step) else word


def balance_word(cv_load: float) -> str:
    """Balanced, Uneven or Collapsed, by the coefficient of variation of the load; nothing for NaN."""
    if math.isnan(cv_load):
        return ""
    return "Balanced" if cv_load < BALANCED else "Uneven" if cv_load <= COLLAPSED else "Collapsed"


def balance_words(training: str, held_out: HeldOut | None) -> str:
    """The word, and of which balance it speaks: "Balanced" of both, "Balanced in training", "Balanced in training, uneven
    without noise". training: the word of the balance in training, "" if there is none."""
    if training == NOT_LEARNING:
        return training
    if held_out is None or not held_out.since or held_out.few or not training:
        return training and f"{training} in training"
    other = balance_word(held_out.cv)
    return training if other == training else f"{training} in training, {other.lower()} {held_out.where}"


def held_out_line(held_out: HeldOut | None, training: str) -> str:
    """The balance of the last evaluation in a line: "without noise 0.47, uneven". One from before the last turn has its step
    instead of a word.

    training: the word of the balance in training. A gate that learns nothing gets no other word.
    """
    if held_out is None:
        return ""
    if training == NOT_LEARNING:
        return f"{held_out.where} {number(held_out.cv)}"
    then = balance_word(held_out.cv).lower() if held_out.since else f"step {held_out.step:,}"
    then = "by few rows" if held_out.few else then
    return f"{held_out.where} {number(held_out.cv)}, {then}"


def off_note(source: Any, layer: int, step: int, stat: str) -> str:
    """Which experts a statistic leaves out since they are off, and what it would be with them; "" where all are on."""
    on_E = on_at(source, layer, [step])[0]
    if on_E.all():
        return ""
    _, stored = rows_until(source, DERIVED[stat][0], layer, step, 1)
    whole = float(derive(stat, {DERIVED[stat][0]: stored})[-1]) if len(stored) else math.nan
    return f"{off_words(on_E)}, left out; of all {len(on_E)} it would be {number(whole)}"


def number(value: float, digits: int = 2) -> str:
    """A number as a person reads it; a dash where there is none, and never a minus before 0."""
    if not math.isfinite(value):
        return NONE
    text = f"{value:,.{digits}f}"
    return text.lstrip("-") if not float(text.replace(",", "")) else text.replace("-", "−")


def live_tiles(source: Any, layer: int = 0, step: int | None = None) -> list[Tile]:
    """The Live page's tiles at a step, None being the last: balance first."""
    chosen = experts_per_token(source.config, source.knobs if step is None else source.knobs_at(step))
    step = last_step(source) if step is None else step
    E, on = source.config.num_experts, int(on_at(source, layer, [step]).sum())
    of = out_of(on, E)
    held_out = held_out_at(source, layer, step)
    cv = at(source, "cv_load", layer, step)
    effective = at(source, "effective_experts", layer, step)
    dead = at(source, "dead_experts", layer, step)
    word = word_at(source, layer, step)
    change = last_change(source, step)
    was = was_importance = math.nan
    if change is not None:
        was = at(source, "cv_load", layer, change.step - 1)
        was_importance = at(source, "cv_importance", layer, change.step - 1)
    return [
        Tile(
            "cv_load",
            "CV(load)" if on == E else f"CV(load), {on} of {E} on",
            number(cv),
            word=balance_words(word, held_out).partition(",")[0],
            lines=(held_out_line(held_out, word) or (word and "not measured without noise"),),
            hand_line="" if math.isnan(was) else f"was {number(was)} before step {change.step:,}",  # type: ignore[union-attr]
            more=WHY_NOT if word == NOT_LEARNING else off_note(source, layer, step, "cv_load"),
        ),
        Tile(
            "cv_importance",
            "CV(importance)",
            number(at(source, "cv_importance", layer, step)),
            lines=("even is 0" if math.isnan(was_importance) else f"was {number(was_importance)}",),
            more=off_note(source, layer, step, "cv_importance"),
        ),
        Tile(
            "max_over_mean_load",
            "Max / mean load",
            number(at(source, "max_over_mean_load", layer, step)),
            "×",
            lines=(f"held-out {number(held_out.max_over_mean)} ×" if held_out else f"ceiling {on / chosen:.3g} ×",),
            more=f"ceiling {on / chosen:.3g} ×\n{off_note(source, layer, step, 'max_over_mean_load')}".strip(),
        ),
        Tile("dead_experts", "Dead experts", number(dead, 0), of, lines=(f"{number(effective, 1)} effective",)),
        heldout_tile(source, step),
        speed_tile(source, step),
    ]


def heldout_tile(source: Any, step: int) -> Tile:
    """The task's headline on the held-out split, and how it moved over the last 200 steps."""
    name, label, unit, _ = METRICS[source.config.task][0]
    done = [(e.step, e.metrics[name]) for e in source.evals() if e.step <= step and name in e.metrics]
    heading = label[:1].upper() + label[1:]
    if not done:
        return Tile("heldout", heading, NONE, unit, lines=("not measured yet",))
    if looks_ahead(source.config, source.knobs_at(done[-1][0])):
        return Tile("heldout", heading, number(done[-1][1]), unit, lines=(LOOKS_AHEAD,))
    share = unit == ""
    last, value = done[-1]
    before = [(s, v) for s, v in done if s <= last - 200] or done[:1]
    past, old = before[-1]
    moved = (value - old) * (100 if share else 1)
    sign = "+" if moved > 0 else ""
    line = f"{sign}{number(moved, 1 if share else 2)} in {last - past:,} steps" if last > past else f"at step {last:,}"
    return Tile(
        "heldout", heading, number(value * 100, 1) if share else number(value), "%" if share else unit, lines=(line,)
    )


def speed_tile(source: Any, step: int) -> Tile:
    """Steps and tokens a second over the last steps that the run trained itself; its parent's are not its own."""
    parent = getattr(source, "parent", None)
    inherited = parent.step if parent else 0
    if step <= inherited or (step == last_step(source) and source.status().state == "starting"):
        why = "trains again what is recorded" if source.status().state == "starting" else "the parent's steps"
        return Tile("speed", "Speed", NONE, "steps/s", lines=(why if step else "– tokens/s",))
    _, seconds = rows_until(source, "seconds", 0, step, min(RECENT, step - inherited))
    mean = float(np.nanmean(seconds)) if len(seconds) and np.isfinite(seconds).any() else 0.0
    if mean <= 0:
        return Tile("speed", "Speed", NONE, "steps/s", lines=("– tokens/s",))
    rate = 1 / mean
    return Tile(
        "speed",
        "Speed",
        number(rate, 0 if rate >= 10 else 1),
        "steps/s",
        lines=(f"{short(rate * source.config.tokens)} tokens/s",),
    )


def short(value: float) -> str:
    """217 k, 1.3 M."""
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{letter}" if value / size < 999.5 else f"{value / size:.0f}{letter}"
    return f"{value:.0f}"


def churn_word(churn: float) -> str:
    """Settled, Moving or Restless."""
    if math.isnan(churn):
        return ""
    return "Settled" if churn < SETTLED else "Moving" if churn <= MOVING else "Restless"


def gate_entropy(gates_NK: Array) -> float:
    """Mean entropy of the tokens' gates over ln K: 0 when one expert has it all, 1 when all K are even; 0 for K = 1.

    Of each token's gates as shares of their sum, which is not 1 where they are weighed over all experts.
    """
    gates = np.asarray(gates_NK, np.float64)
    if gates.shape[1] < 2 or not len(gates):
        return 0.0
    gates = gates / np.maximum(gates.sum(axis=1, keepdims=True), 1e-30)
    logs = np.log(np.where(gates > 0, gates, 1.0))
    return float(-(gates * logs).sum(axis=1).mean() / math.log(gates.shape[1]))


def routing_tiles(source: Any, layer: int = 0, step: int | None = None) -> list[Tile]:
    """The Routing page's tiles at a step, None being the last: churn first."""
    E = source.config.num_experts
    found = probe_at(source, step)
    if found is None:
        names = ("churn", "top1_gate", "saturation", "in_use", "gate_entropy", "snapshot")
        labels = ("Router churn", "Mean first gate", "Saturation", "Experts in use", "Gate entropy", "Snapshot")
        return [Tile(name, label, NONE) for name, label in zip(names, labels, strict=True)]
    when, arrays = found
    experts, gates = np.asarray(arrays["experts"])[layer], np.asarray(arrays["gates"])[layer]
    N, K = experts.shape
    on = int(on_at(source, layer, [when]).sum())
    empty = float((experts >= E).mean()) if experts.size else 0.0
    step = last_step(source) if step is None else step
    churn, saturation, over = (
        at(source, "churn", layer, step),
        at(source, "saturation", layer, step),
        steps_between(source, step),
    )
    since = (f"{churn * N:.0f} of {N} tokens changed expert", over) if math.isfinite(churn) else (over,)
    # A router is settled over a known number of steps; over an unknown one there is no word.
    word = churn_word(churn) if source.config.churn_every else ""
    return [
        Tile("churn", "Router churn", number(100 * churn, 1), "%", word=word, lines=since),
        Tile("top1_gate", "Mean first gate", number(float(gates.max(axis=1).astype(np.float64).mean())), lines=(f"{undecided(source, when, K):.2g} is undecided",)),
        Tile("saturation", "Saturation", number(saturation), lines=(f"of top {K} kept", over)),
        Tile(
            "in_use", "Experts in use", f"{len(np.unique(experts[experts < E]))}", out_of(on, E),
            lines=(f"{percent(empty)} of places empty" if empty else "on this probe",),
        ),
        Tile("gate_entropy", "Gate entropy", number(gate_entropy(gates)), lines=("0 sure, 1 even",)),
        Tile("snapshot", "Snapshot", f"{when:,}", lines=(f"probe of {N} {probe_kind(source)}",)),
    ]  # fmt: skip


def undecided(source: Any, step: int, K: int) -> float:
    """The first gate of a router that has no opinion: an even share of what the weights are taken over."""
    knobs = source.knobs_at(step)
    over_all = STRATEGIES[knobs.strategy].by_token and weighing(knobs.strategy, knobs.weigh) == "all"
    return 1 / (source.config.num_experts if over_all else K)


def steps_between(source: Any, step: int) -> str:
    """Between which steps churn and saturation were measured, as a step's row has them."""
    every = source.config.churn_every
    if not every:
        return "between two looks by the clock"
    last = step - step % every
    return f"steps {last - every:,} to {last:,}" if last else f"first at step {every:,}"


def expert_tiles(source: Any, layer: int = 0, step: int | None = None) -> list[Tile]:
    """The Experts page's tiles: the chosen expert's share against the ideal first."""
    step = last_step(source) if step is None else step
    E, e = source.config.num_experts, chosen_expert(source, layer, step)
    share_E = recent_share(source, layer, step)
    _, importance_nE = rows_until(source, "importance_share", layer, step, RECENT)
    importance = float(np.mean(importance_nE[:, e])) if len(importance_nE) else math.nan
    known = math.isfinite(share_E[e])
    on_E = on_at(source, layer, [step])[0]
    on = int(on_E.sum())
    word = f"{number(share_E[e] * on)} × ideal" if on_E[e] else "Switched off"
    favourite, lift = favourite_label(source, layer, step, e)
    partner, together = closest_partner(source, layer, step, e)
    label = "domain" if source.config.task == "text" else "class"
    held = None if named_expert(source) is not None else held_busiest(source, layer)
    since = (f"the busiest at step {held.step:,}",) if held else ()
    return [
        Tile(
            "expert_share", f"Expert {e + 1}, load share", number(100 * share_E[e], 1), "%",
            word=word if known else "",
            lines=(f"ideal {percent(1 / on)}" + (f", last {RECENT} steps" if on == E else f" of {on} on"), *since),
        ),
        Tile("expert_importance", "Importance", number(100 * importance, 1), "%", lines=(f"{number(importance * on)} × ideal",)),
        Tile("expert_rank", "Rank", f"{int((share_E > share_E[e]).sum()) + 1}" if known and on_E[e] else NONE, f"of {on}", lines=("by load",)),
        last_used_tile(source, layer, step, e, bool(on_E[e])),
        Tile("favourite", f"Favourite {label}", favourite, lines=(f"{number(lift)} × its load share" if favourite != NONE else "not seen yet",)),
        Tile("partner", "Closest partner", partner, lines=(f"{number(100 * together, 0)} % of its tokens" if partner != NONE else "shares no token",)),
    ]  # fmt: skip


def last_used_tile(source: Any, layer: int, step: int, expert: int, on: bool) -> Tile:
    """When an expert was selected last; dead after DEAD_AFTER steps without a selection, unless it is off."""
    steps, counts_nE = rows_until(source, "counts", layer, step, DEAD_AFTER)
    if not len(steps):
        return Tile("last_used", "Last selected", NONE)
    used = np.flatnonzero(counts_nE[:, expert] > 0)
    last = int(steps[used[-1]]) if len(used) else last_used(source, layer, step, expert)
    if last is None:
        return Tile("last_used", "Last selected", "never", lines=("dead from the start" if on else "switched off",))
    idle = step - last
    line = f"dead since step {last + 1:,}" if idle >= DEAD_AFTER else "alive"
    line = line if on else "switched off"
    value, unit = ("now", "") if idle == 0 else (f"{idle:,}", "step ago" if idle == 1 else "steps ago")
    return Tile("last_used", "Last selected", value, unit, lines=(line,))


def compare_tiles(source: Any, layer: int = 0, step: int | None = None) -> list[Tile]:
    """The Compare page's tiles: CV(load) of each run, the first large, with its held-out figure.

    step: one of the first run; None: the last that all of them have. The others are read where the charts mark them, the
    same step or as long after their own fork, and say so where that is another step.
    """
    sources = runs_of(source)
    offsets = offsets_of(source)
    shared = offsets[0] + last_shared(sources, offsets)
    first = shared if step is None else min(step, last_step(source))
    tiles = []
    for letter, one, offset in zip(LETTERS, sources, offsets, strict=False):
        last = last_step(one)
        there = first - offsets[0] + offset
        here = min(there, last)
        cv = at(one, "cv_load", min(layer, one.config.layers - 1), here)
        heldout = heldout_tile(one, here)
        # A tile has room for the unit or for the mark.
        ahead = LOOKS_AHEAD in heldout.lines
        line = f"{heldout.value}, looks ahead" if ahead else f"{heldout.value} {heldout.unit}".strip()
        held = held_out_at(one, min(layer, one.config.layers - 1), here)
        word = word_at(one, min(layer, one.config.layers - 1), here)
        more = held_out_line(held, word)
        word = balance_words(word, held).partition(",")[0]
        if letter == "A":
            when = f"step {here:,}" + (after_fork(here - offset) if any(offsets) else "")
            when += ", the last of all" if step is None and here < last else ""
            lines: tuple[str, ...] = (f"held-out {line}", when)
            tiles.append(Tile("run_A", f"A {one.id[:20]}, CV(load)", number(cv), word=word, lines=lines, more=more))
            continue
        unit = "not begun" if here < 1 else "" if here == first else f"step {here:,}" + ", its last" * (there > last)
        lines = (word, f"held-out {line}") if word else (line,)
        tiles.append(Tile(f"run_{letter}", f"{letter} {one.id[:20]}", number(cv), unit, lines=lines, more=more))
    return tiles


def after_fork(steps: int) -> str:
    """How far from its fork a run is."""
    return f", {abs(steps):,} {'after' if steps >= 0 else 'before'} the fork"


def batch_tiles(source: Any, layer: int = 0, step: int | None = None) -> list[Tile]:
    """The Batch page's tiles: what the formula says, then what the run's experts got."""
    step = last_step(source) if step is None else step
    chosen = batch_sizes(source)
    sees = tokens_per_expert(*chosen)
    _, counts_nE = rows_until(source, "counts", layer, step, RECENT)
    mean_E = counts_nE.mean(axis=0) if len(counts_nE) else np.full(1, math.nan)
    if len(counts_nE):
        mean_E = mean_E[on_at(source, layer, [step])[0]]
    own = tokens_per_expert(source.config.tokens, int(source.knobs.k), source.config.num_experts)
    formula = f"k·T·D/E = {chosen.k}·{chosen.tokens:,}·{chosen.devices:,}/{chosen.experts:,}"
    found = source.throughput()
    at_run = (
        None
        if found is None or not len(found.tokens) or not found.tokens[0] <= source.config.tokens <= found.tokens[-1]
        else float(np.interp(source.config.tokens, found.tokens, found.per_second))
    )
    return [
        Tile("tokens_per_expert", "An expert sees", plain_count(sees), "tokens", word=f"of {chosen.tokens * chosen.devices:,}", lines=(formula,)),
        Tile("measured_mean", "This run, mean", plain_count(float(mean_E.mean())), "tokens", lines=(f"formula {plain_count(own)}",)),
        Tile("measured_least", "Least loaded", plain_count(float(mean_E.min())), "tokens", lines=(f"last {RECENT} steps",)),
        Tile("measured_most", "Most loaded", plain_count(float(mean_E.max())), "tokens", lines=(f"last {RECENT} steps",)),
        Tile("one_device", "On one device", plain_count(tokens_per_expert(chosen.tokens, chosen.k, chosen.experts)), "tokens", lines=("as chosen, D = 1",)),
        Tile("throughput", "Throughput", NONE if at_run is None else short(at_run), "tokens/s", lines=(f"one layer, T = {source.config.tokens:,}",)),
    ]  # fmt: skip


def plain_count(value: float) -> str:
    """128, 2.5, 0.125: as many digits as a count needs."""
    if not math.isfinite(value):
        return NONE
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


TILES: dict[str, Any] = {
    "live": live_tiles,
    "routing": routing_tiles,
    "experts": expert_tiles,
    "compare": compare_tiles,
    "batch": batch_tiles,
}
