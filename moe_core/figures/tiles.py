"""The numbers above the charts: one large, five beside it, each with its yardstick.

Tiles are read from a run-like source (config, knobs, history, evals, knob_changes, snapshot) and are plain text, so that
the dashboard only has to place them.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from moe_core.figures.theme import Array
from moe_core.schema import BALANCED, COLLAPSED, DEAD_AFTER, METRICS

NONE = "–"
RECENT = 50  # steps over which speed is measured
SETTLED, MOVING = 0.05, 0.2  # router churn below the first is Settled, above the second Restless


class Tile(NamedTuple):
    """One number. `word` and `hand_line` (in the hand's colour) belong to the large tile."""

    name: str
    label: str
    value: str
    unit: str = ""
    word: str = ""
    lines: tuple[str, ...] = ()
    hand_line: str = ""


def balance_word(cv_load: float) -> str:
    """Balanced, Uneven or Collapsed, by the coefficient of variation of the load; nothing for NaN."""
    if math.isnan(cv_load):
        return ""
    return "Balanced" if cv_load < BALANCED else "Uneven" if cv_load <= COLLAPSED else "Collapsed"


def number(value: float, digits: int = 2) -> str:
    """A number as a person reads it; a dash where there is none, and never a minus before 0."""
    if not math.isfinite(value):
        return NONE
    text = f"{value:,.{digits}f}"
    return text.lstrip("-") if not float(text.replace(",", "")) else text.replace("-", "−")


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


def gestures(changes: Sequence[Any]) -> list[Any]:
    """Knob changes with those of one drag as one: from the value before it to its last, at the step where it began.

    Each value of a drag is a change of its own in the record, so that a replay is exact. Those of one drag carry its name
    in `who`, after a slash, and may be told from another hand's between them.
    """
    told: list[Any] = []
    drags: dict[tuple[str, str], int] = {}
    for change in changes:
        drag = (change.who, change.name)
        if "/" in change.who and drag in drags:
            began = told[drags[drag]]
            step = change.step if began.step is None else began.step
            told[drags[drag]] = began._replace(value=change.value, step=step)
        else:
            drags[drag] = len(told)
            told.append(change)
    return told


def last_change(source: Any, step: int) -> Any | None:
    """The last turn of a knob that took effect by a step, the values at the start aside."""
    done = [change for change in gestures(source.knob_changes()) if change.step is not None and 1 < change.step <= step]
    return done[-1] if done else None


def knobs_at(source: Any, step: int) -> Any:
    """Every knob as it stood at a step: the start, and the changes that had taken effect."""
    done = [change for change in source.knob_changes() if change.step is not None and change.step <= step]
    kinds = {change.name: type(getattr(source.knobs, change.name)) for change in done}
    return replace(source.started_knobs, **{change.name: kinds[change.name](change.value) for change in done})


def live_tiles(source: Any, layer: int = 0, step: int | None = None) -> list[Tile]:
    """The Live page's tiles at a step, None being the last: balance first."""
    k = source.knobs.k if step is None else knobs_at(source, step).k
    step = last_step(source) if step is None else step
    E = source.config.num_experts
    cv = at(source, "cv_load", layer, step)
    effective = at(source, "effective_experts", layer, step)
    dead = at(source, "dead_experts", layer, step)
    change = last_change(source, step)
    was = was_importance = math.nan
    if change is not None:
        was = at(source, "cv_load", layer, change.step - 1)
        was_importance = at(source, "cv_importance", layer, change.step - 1)
    return [
        Tile(
            "cv_load",
            "CV(load)",
            number(cv),
            word=balance_word(cv),
            lines=(f"{number(effective, 1)} of {E} experts effective",),
            hand_line="" if math.isnan(was) else f"was {number(was)} before step {change.step:,}",  # type: ignore[union-attr]
        ),
        Tile(
            "cv_importance",
            "CV(importance)",
            number(at(source, "cv_importance", layer, step)),
            lines=("even is 0" if math.isnan(was_importance) else f"was {number(was_importance)}",),
        ),
        Tile(
            "max_over_mean_load",
            "Max / mean load",
            number(at(source, "max_over_mean_load", layer, step)),
            "×",
            lines=(f"ceiling {E / k:g} ×",),
        ),
        Tile("dead_experts", "Dead experts", number(dead, 0), f"of {E}", lines=(f"last {DEAD_AFTER} steps",)),
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
    """Steps and tokens a second over the last steps."""
    _, seconds = rows_until(source, "seconds", 0, step, RECENT)
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


def probe_at(source: Any, step: int | None) -> tuple[int, dict[str, Array]] | None:
    """The last probe snapshot at or before a step, or None before the first."""
    try:
        found = source.snapshot(step=step, kind="probe")
    except (LookupError, ValueError):
        return None
    return (int(found[0]), found[1]) if found is not None else None


def churn_word(churn: float) -> str:
    """Settled, Moving or Restless."""
    if math.isnan(churn):
        return ""
    return "Settled" if churn < SETTLED else "Moving" if churn <= MOVING else "Restless"


def gate_entropy(gates_NK: Array) -> float:
    """Mean entropy of the tokens' gates over ln K: 0 when one expert has it all, 1 when all K are even; 0 for K = 1."""
    gates = np.asarray(gates_NK, np.float64)
    if gates.shape[1] < 2 or not len(gates):
        return 0.0
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
    before = probe_at(source, when - 1) if when > 0 else None
    old = None if before is None else np.asarray(before[1]["experts"])[layer]
    moved = math.nan if old is None else float((experts[:, 0] != old[:, 0]).sum())
    churn = moved / N if N else math.nan
    since = (
        ("first snapshot",)
        if before is None
        else (f"{moved:.0f} of {N} tokens changed first expert", f"since step {before[0]:,}")
    )
    unit = {"text": "bytes", "digits": "images", "plane": "points"}.get(source.config.task, "tokens")
    return [
        Tile("churn", "Router churn", number(100 * churn, 1), "%", word=churn_word(churn), lines=since),
        Tile("top1_gate", "Mean first gate", number(float(gates[:, 0].astype(np.float64).mean())), lines=(f"{1 / K:.2g} is undecided",)),
        Tile("saturation", "Saturation", number(kept(experts, old)), lines=(f"of top {K} kept",)),
        Tile("in_use", "Experts in use", f"{len(np.unique(experts))}", f"of {E}", lines=("on this probe",)),
        Tile("gate_entropy", "Gate entropy", number(gate_entropy(gates)), lines=("0 sure, 1 even",)),
        Tile("snapshot", "Snapshot", f"{when:,}", lines=(f"probe of {N} {unit}",)),
    ]  # fmt: skip


def kept(experts_NK: Array, before_NK: Array | None) -> float:
    """Mean share of a token's experts that were among its experts at the last snapshot; NaN without one."""
    if before_NK is None or not len(experts_NK):
        return math.nan
    return float((experts_NK[:, :, None] == before_NK[:, None, :]).any(axis=2).mean())


TILES: dict[str, Any] = {"live": live_tiles, "routing": routing_tiles}
PAGES: Sequence[str] = tuple(TILES)
