"""The Routing page: its charts and its tiles, churn first. The other tiles, but for saturation, are of the probe's last snapshot."""

import math
from typing import NamedTuple

import numpy as np

from moe_core.figures import bars, choice, read_choice, read_routing, routing, rows, score, tokens
from moe_core.figures.needs import probe, stats, used
from moe_core.figures.off import out_of
from moe_core.figures.pages.entry import Entry, TileEntry
from moe_core.figures.pages.tile import NONE, Tile, number
from moe_core.figures.paper import Array, percent
from moe_core.figures.plain import plain_chart
from moe_core.figures.reading import experts_of, on_at, probe_at, step_of, value_at
from moe_core.runs.source import At, Source
from moe_core.schema import name_of, strategy_of, weighing

SETTLED, MOVING = 0.05, 0.2  # router churn below the first is Settled, above the second Restless
ALIKE = 0.01  # sums of gates that differ by less are the same: gates are kept in 16 bits


class Snapshot(NamedTuple):
    """The probe as a layer routes it. experts_NK and gates_NK: each token's experts and their weights."""

    step: int
    experts_NK: Array
    gates_NK: Array


def snapshot_of(source: Source, at: At) -> Snapshot | None:
    """The last snapshot of the probe; None before the first."""
    snapshot = probe_at(source, at.step)
    if snapshot is None:
        return None
    step, arrays = snapshot
    return Snapshot(step, np.asarray(arrays["experts"])[at.layer], np.asarray(arrays["gates"])[at.layer])


def churn_tile(source: Source, at: At) -> Tile:
    """The share of the probe's tokens whose first expert changed, with a word where the number of steps in between is known."""
    snapshot = snapshot_of(source, at)
    if snapshot is None:
        return Tile("churn", "Router churn", NONE)
    step = step_of(source, at)
    churn, over = value_at(source, "churn", at.layer, step), steps_between(source, step)
    N = len(snapshot.experts_NK)
    lines = (f"{churn * N:.0f} of {N} tokens changed expert", over) if math.isfinite(churn) else (over,)
    # The words are for churn over churn_every steps. An earlier version measured it by the clock; then no word is shown.
    word = churn_word(churn) if source.description.churn_every else ""
    return Tile("churn", "Router churn", number(100 * churn, 1), "%", word=word, lines=lines)


def first_gate_tile(source: Source, at: At) -> Tile:
    """The mean weight of each token's first expert."""
    snapshot = snapshot_of(source, at)
    if snapshot is None:
        return Tile("top1_gate", "Mean first gate", NONE)
    mean = float(snapshot.gates_NK.max(axis=1).astype(np.float64).mean())
    even = undecided(source, snapshot, at.layer)
    lines = () if even is None else (f"{even:.2g} is undecided",)
    return Tile("top1_gate", "Mean first gate", number(mean), lines=lines)


def saturation_tile(source: Source, at: At) -> Tile:
    """How many of a token's experts it already had churn_every steps before."""
    snapshot = snapshot_of(source, at)
    if snapshot is None:
        return Tile("saturation", "Saturation", NONE)
    step = step_of(source, at)
    saturation = number(value_at(source, "saturation", at.layer, step))
    lines = (f"of top {snapshot.experts_NK.shape[1]} kept", steps_between(source, step))
    return Tile("saturation", "Saturation", saturation, lines=lines)


def in_use_tile(source: Source, at: At) -> Tile:
    """How many experts some token of the probe goes to."""
    snapshot = snapshot_of(source, at)
    if snapshot is None:
        return Tile("in_use", "Experts in use", NONE)
    E, experts = experts_of(source, at.layer), snapshot.experts_NK
    on = int(on_at(source, at.layer, [snapshot.step]).sum())
    empty = float((experts >= E).mean()) if experts.size else 0.0
    return Tile(
        "in_use", "Experts in use", f"{len(np.unique(experts[experts < E]))}", out_of(on, E),
        lines=(f"{percent(empty)} of places empty" if empty else "on this probe",),
    )  # fmt: skip


def entropy_tile(source: Source, at: At) -> Tile:
    """How evenly a token's weight is spread over its experts."""
    snapshot = snapshot_of(source, at)
    if snapshot is None:
        return Tile("gate_entropy", "Gate entropy", NONE)
    return Tile("gate_entropy", "Gate entropy", number(gate_entropy(snapshot.gates_NK)), lines=("0 sure, 1 even",))


def snapshot_tile(source: Source, at: At) -> Tile:
    """The step of the snapshot, and what the probe consists of."""
    snapshot = snapshot_of(source, at)
    if snapshot is None:
        return Tile("snapshot", "Snapshot", NONE)
    words = f"probe of {len(snapshot.experts_NK)} {source.description.probe}"
    return Tile("snapshot", "Snapshot", f"{snapshot.step:,}", lines=(words,))


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


def undecided(source: Source, snapshot: Snapshot, layer: int) -> float | None:
    """The first gate of a router that prefers no expert: one over the number of experts that the softmax is over.

    How a watched model weighs is not known: there it is a k-th of the sum of a token's gates, and None if tokens differ in it.
    """
    K = snapshot.experts_NK.shape[1]
    if source.description.origin == "watched":
        whole_N = (snapshot.experts_NK < experts_of(source, layer)).all(axis=1)  # an empty place has a weight of 0
        sums = snapshot.gates_NK[whole_N].astype(np.float64).sum(axis=1)
        alike = len(sums) > 0 and np.ptp(sums) <= ALIKE * sums.mean()
        return float(sums.mean()) / K if alike else None
    knobs = source.knobs_at(snapshot.step)
    over_all = strategy_of(knobs).by_token and weighing(name_of(knobs), getattr(knobs, "weigh", "")) == "all"
    return 1 / (experts_of(source, layer) if over_all else K)


def steps_between(source: Source, step: int) -> str:
    """Between which steps churn and saturation were measured, as a step's row has them."""
    every = source.description.churn_every
    if not every:
        return "between two looks by the clock"
    last = step - step % every
    return f"steps {last - every:,} to {last:,}" if last else f"first at step {every:,}"


NON_TEXT = probe("images", "rows", "points")

# In the order in which the page shows them.
FIGURES: dict[str, Entry] = {
    "probe_text": Entry("Who reads which byte", score.probe_text, read_routing.read_probe_text, (probe("bytes"),)),
    "probe_tokens": Entry(
        "Who reads which token", tokens.probe_tokens, read_routing.read_probe_tokens, (probe("tokens"),)
    ),
    "digit_images": Entry(
        "Images by first expert", routing.digit_images, read_routing.read_digit_images, (probe("images"),)
    ),
    "probe_rows": Entry("Who reads which row", rows.probe_rows, read_routing.read_probe_rows, (probe("rows"),)),
    "regions": Entry("Who owns which region", routing.regions, read_routing.read_regions, (probe("points"),)),
    "probe_gates": Entry("Gates of the probe", routing.probe_gates, read_routing.read_probe_gates, (NON_TEXT,)),
    "tokens_by_expert": Entry("Tokens by first expert", bars.tokens_by_expert, read_routing.read_tokens, (probe(),)),
    "churn": Entry("Router churn over time", routing.churn, read_routing.read_churn, (probe(), stats("churn"))),
    "router_margin": Entry(
        "Router margin over time",
        choice.router_margin,
        read_choice.read_margin,
        (stats("router_margin"), used("by_token")),
    ),
    "confidence": Entry("Confidence over time", choice.confidence, read_choice.read_confidence, (stats("confidence"),)),
    "bias_effect": plain_chart(
        "bias_effect",
        "What the bias changes",
        "experts chosen both with and without it, of those chosen either way; 1: it changes nothing",
        axis="overlap",
        hover="With and without the bias the choices overlapped by %{y:.3f} at step %{x:,d}",
        top=1.0,
        needs=(used("biased"),),
    ),
}

TILES: dict[str, TileEntry] = {
    "churn": TileEntry(churn_tile, (probe(), stats("churn"))),
    "top1_gate": TileEntry(first_gate_tile, (probe(),)),
    "saturation": TileEntry(saturation_tile, (probe(), stats("saturation"))),
    "in_use": TileEntry(in_use_tile, (probe(),)),
    "gate_entropy": TileEntry(entropy_tile, (probe(),)),
    "snapshot": TileEntry(snapshot_tile, (probe(),)),
}
