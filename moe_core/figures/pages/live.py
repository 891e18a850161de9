"""The Live page: its charts and its tiles, balance first."""

import math

import numpy as np

from moe_core.figures import bars, ranks, read_layers, read_live, read_ranks, timeline, treemap, turns
from moe_core.figures.layers import layers as layers_by_experts
from moe_core.figures.layers import layers_spread
from moe_core.figures.needs import (
    balance,
    communication,
    devices,
    exchanged,
    groups,
    knobs,
    loss,
    many_layers,
    reported,
    stats,
    turned,
)
from moe_core.figures.off import out_of
from moe_core.figures.pages.entry import Entry, TileEntry
from moe_core.figures.pages.tile import NONE, Tile, number, short
from moe_core.figures.pages.words import (
    NOT_LEARNING,
    WHY_NOT,
    balance_words,
    held_out_line,
    off_note,
    word_at,
)
from moe_core.figures.plain import plain_chart
from moe_core.figures.reading import (
    RECENT,
    evaluated,
    experts_of,
    held_out_at,
    last_change,
    last_step,
    on_at,
    read_knobs,
    rows_until,
    step_of,
    value_at,
)
from moe_core.runs.source import At, Source
from moe_core.runs.statistics import deal_at, measured_by
from moe_core.schema import LOOKS_AHEAD, STAT, experts_per_token, looks_ahead


def balance_tile(source: Source, at: At) -> Tile:
    """The CV of the load, or of the selections; its word, the same without noise, and how it was before the last turn."""
    step, E, stat = step_of(source, at), experts_of(source, at.layer), source.description.balance
    on = int(on_at(source, at.layer, [step]).sum())
    held_out = held_out_at(source, at.layer, step)
    word = word_at(source, at.layer, step)
    change = last_change(source, step)
    hand_line = ""
    if change is not None and change.step is not None:
        was = value_at(source, stat, at.layer, change.step - 1)
        hand_line = "" if math.isnan(was) else f"was {number(was)} before step {change.step:,}"
    return Tile(
        stat,
        f"{STAT[stat].label}, this step" + (f", {on} of {E} on" if on < E else ""),
        number(value_at(source, stat, at.layer, step)),
        word=balance_words(word, held_out).partition(",")[0],
        lines=(held_out_line(held_out, word) or (word and f"not measured {evaluated(source, step)}"),),
        hand_line=hand_line,
        more=WHY_NOT if word == NOT_LEARNING else off_note(source, at.layer, step, stat),
    )


def importance_tile(source: Source, at: At) -> Tile:
    """CV(importance), and how it was before the last turn."""
    step = step_of(source, at)
    change = last_change(source, step)
    was = math.nan
    if change is not None and change.step is not None:
        was = value_at(source, "cv_importance", at.layer, change.step - 1)
    return Tile(
        "cv_importance",
        "CV(importance)",
        number(value_at(source, "cv_importance", at.layer, step)),
        lines=("even is 0" if math.isnan(was) else f"was {number(was)}",),
        more=off_note(source, at.layer, step, "cv_importance"),
    )


def max_tile(source: Source, at: At) -> Tile:
    """The largest load over the mean, and its upper limit: experts that are on over experts per token."""
    step = step_of(source, at)
    knobs = source.knobs if at.step is None else source.knobs_at(at.step)
    on = int(on_at(source, at.layer, [step]).sum())
    ceiling = f"ceiling {on / experts_per_token(source.description, knobs, at.layer):.3g} ×"
    held_out = held_out_at(source, at.layer, step)
    over_devices = value_at(source, "max_over_mean_devices", at.layer, step)
    own = (f"devices {number(over_devices)} ×",) if math.isfinite(over_devices) else ()
    return Tile(
        "max_over_mean_load",
        "Max / mean load",
        number(value_at(source, "max_over_mean_load", at.layer, step)),
        "×",
        lines=(f"held-out {number(held_out.max_over_mean)} ×" if held_out else ceiling, *own),
        more=f"{ceiling}\n{off_note(source, at.layer, step, 'max_over_mean_load')}".strip(),
    )


def dead_tile(source: Source, at: At) -> Tile:
    """The number of dead experts, and the effective number of experts."""
    step = step_of(source, at)
    on = int(on_at(source, at.layer, [step]).sum())
    dead, effective = (value_at(source, name, at.layer, step) for name in ("dead_experts", "effective_experts"))
    of = out_of(on, experts_of(source, at.layer))
    return Tile("dead_experts", "Dead experts", number(dead, 0), of, lines=(f"{number(effective, 1)} effective",))


def heldout_tile(source: Source, at: At) -> Tile:
    """The headline on the held-out split, and how it moved over the last 200 steps. A share is shown in
    %: a number without a unit, of which more is better and which never leaves 0 to 1."""
    step = step_of(source, at)
    metric = source.description.metrics[0]
    done = [(e.step, e.metrics[metric.name]) for e in source.evals() if e.step <= step and metric.name in e.metrics]
    heading, unit = metric.label[:1].upper() + metric.label[1:], metric.unit
    if not done:
        return Tile("heldout", heading, NONE, unit, lines=("not measured yet",))
    if looks_ahead(source.description, source.knobs_at(done[-1][0])):
        return Tile("heldout", heading, number(done[-1][1]), unit, lines=(LOOKS_AHEAD,))
    last, value = done[-1]
    share = unit == "" and not metric.lower and all(0 <= v <= 1 for _, v in done)
    before = [(s, v) for s, v in done if s <= last - 200] or done[:1]
    past, old = before[-1]
    moved = (value - old) * (100 if share else 1)
    sign = "+" if moved > 0 else ""
    line = f"{sign}{number(moved, 1 if share else 2)} in {last - past:,} steps" if last > past else f"at step {last:,}"
    return Tile(
        "heldout", heading, number(value * 100, 1) if share else number(value), "%" if share else unit, lines=(line,)
    )


def steps_a_second(source: Source, step: int) -> float:
    """Over the last steps up to this one that the run trained itself; 0 where that is not known."""
    own = step - (source.parent.step if source.parent else 0)
    if own <= 0 or not measured_by(source.description, "seconds"):
        return 0.0
    _, seconds = rows_until(source, "seconds", 0, step, min(RECENT, own))
    mean = float(np.nanmean(seconds)) if len(seconds) and np.isfinite(seconds).any() else 0.0
    return 1 / mean if mean > 0 else 0.0


def speed_tile(source: Source, at: At) -> Tile:
    """Steps and tokens a second over the last steps that the run trained itself; those inherited from a parent do not count."""
    step = step_of(source, at)
    inherited = source.parent.step if source.parent else 0
    tokens = source.description.tokens  # 0 where it is not known how many a step has
    unknown = ("– tokens/s",) if tokens else ()
    if step <= inherited or (step == last_step(source) and source.status().state == "starting"):
        why = "trains again what is recorded" if source.status().state == "starting" else "the parent's steps"
        return Tile("speed", "Speed", NONE, "steps/s", lines=(why,) if step else unknown)
    rate = steps_a_second(source, step)
    if not rate:
        return Tile("speed", "Speed", NONE, "steps/s", lines=unknown)
    communicated, more = communication_words(source, step)
    lines = tuple(filter(None, (f"{short(rate * tokens)} tokens/s" if tokens else "", communicated)))
    return Tile("speed", "Speed", number(rate, 0 if rate >= 10 else 1), "steps/s", lines=lines, more=more)


def communication_words(source: Source, step: int) -> tuple[str, str]:
    """What several ranks spend on each other, mean over their last steps up to this one, in short and in full; "" of one process."""
    deal = deal_at(source.deals, step)
    if deal.ranks == 1 or not measured_by(source.description, "sent_bytes"):
        return "", ""
    last = min(RECENT, step - deal.first + 1)
    share_n, sent_n = (rows_until(source, stat, 0, step, last)[1] for stat in ("communication", "sent_bytes"))
    if not np.isfinite(sent_n).any():
        return "", ""
    sent = f"{short(float(np.nanmean(sent_n)))}B"
    sentence = f"All ranks together sent {sent} a step, mean of {last} steps."
    if not np.isfinite(share_n).any():
        return f"{sent} a step", sentence
    share = f"{100 * float(np.nanmean(share_n)):.0f} %"
    return (
        f"communication {share}",
        f"{share} of a step went into communication, mean over ranks and {last} steps.\n{sentence}",
    )


# In the order in which the page shows them.
FIGURES: dict[str, Entry] = {
    "layers": Entry(
        "Layers by experts", layers_by_experts, read_layers.read_layers, (many_layers, stats("counts")), layered=False
    ),
    "layers_spread": Entry(
        "Balance over the layers",
        layers_spread,
        read_layers.read_layers_spread,
        (many_layers, stats("counts")),
        layered=False,
    ),
    "selection_share": Entry(
        "Share of selections by expert",
        timeline.selection_share,
        read_live.read_selection_share,
        (stats("selection_share"),),
    ),
    "balance_now": Entry("Balance now", bars.balance_now, read_live.read_balance_now, (balance, stats("importance"))),
    "balance": Entry(
        "Balance over time", timeline.balance, read_live.read_balance, (stats("cv_counts", "cv_importance"),)
    ),
    "loss": Entry("Loss", timeline.loss, read_live.read_loss, (loss,), layered=False),
    "knobs": Entry("Knobs over time", turns.knobs, read_knobs, (knobs,), (turned,), layered=False),
    "group_treemap": Entry(
        "Groups and experts", treemap.group_treemap, read_live.read_groups, (groups, stats("selection_share"))
    ),
    # Of several ranks only.
    "device_balance": Entry(
        "Balance of devices over time",
        ranks.device_balance,
        read_ranks.read_device_balance,
        (devices, stats("max_over_mean_devices")),
    ),
    "device_load": Entry("Load of each device", ranks.device_load, read_ranks.read_load, (devices,), (exchanged,)),
    "communication": plain_chart(
        "communication",
        "Time in communication",
        "share of a step in which a rank sent or waited for others; mean over ranks",
        axis="share of the step, %",
        hover="In step %{x:,d} ranks spent %{y:.1f} % of their time in communication (mean)",
        top=100.0,
        form=".0f",
        times=100.0,
        unit=" %",
        names_changes=False,
        needs=(communication,),
    ),
    "rows_between_ranks": Entry(
        "Rows between ranks", ranks.rows_between_ranks, read_ranks.read_rows, (devices,), (exchanged,)
    ),
    "sent_bytes": plain_chart(
        "sent_bytes",
        "Sent between ranks",
        "bytes of a step, all ranks and layers together; evaluations not counted",
        axis="MB a step",
        hover="All ranks together sent %{y:.3f} MB to each other in step %{x:,d}",
        form=".3g",
        times=1e-6,
        unit=" MB",
        names_changes=False,
    ),
}

TILES: dict[str, TileEntry] = {
    "balance": TileEntry(balance_tile, (balance,)),
    "cv_importance": TileEntry(importance_tile, (stats("cv_importance"),)),
    "max_over_mean_load": TileEntry(max_tile, (stats("max_over_mean_load"),)),
    "dead_experts": TileEntry(dead_tile, (stats("dead_experts", "effective_experts"),)),
    "heldout": TileEntry(heldout_tile, (reported,)),
    "speed": TileEntry(speed_tile, (stats("seconds"),)),
}
