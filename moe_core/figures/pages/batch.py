"""The Batch page: its charts and its tiles, what the formula says, then what the run's experts got."""

import math

import numpy as np

from moe_core.figures import batch, devices, read_batch
from moe_core.figures.needs import dealt, even_experts, fixed_batch, measurable, stats, timed
from moe_core.figures.pages.entry import Entry, TileEntry
from moe_core.figures.pages.tile import NONE, Tile, plain_count, short
from moe_core.figures.paper import Array
from moe_core.figures.reading import (
    RECENT,
    batch_sizes,
    experts_of,
    on_at,
    rows_until,
    step_of,
    tokens_per_expert,
)
from moe_core.runs.source import At, Source
from moe_core.schema import experts_per_token

OF_ONE = ("mean of one expert", f"over the last {RECENT} steps")  # the chart beside it shows single steps


def tokens_tile(source: Source, at: At) -> Tile:
    """k*T*D/E for the sizes chosen on the page."""
    chosen = batch_sizes(source)
    formula = f"k·T·D/E = {chosen.k}·{chosen.tokens:,}·{chosen.devices:,}/{chosen.experts:,}"
    return Tile(
        "tokens_per_expert", "An expert sees", plain_count(tokens_per_expert(*chosen)), "tokens",
        word=f"of {chosen.tokens * chosen.devices:,}", lines=(formula,),
    )  # fmt: skip


def mean_counts(source: Source, at: At) -> Array:
    """The mean selections of each expert that is on, over the last steps; one NaN before the first."""
    step = step_of(source, at)
    _, counts_nE = rows_until(source, "counts", at.layer, step, RECENT)
    if not len(counts_nE):
        return np.full(1, math.nan)
    mean_E: Array = counts_nE.mean(axis=0)[on_at(source, at.layer, [step])[0]]
    return mean_E


def mean_tile(source: Source, at: At) -> Tile:
    """The mean selections of an expert, and what the formula gives for the layer that is shown."""
    k = experts_per_token(source.description, source.knobs_at(step_of(source, at)), at.layer)
    own = tokens_per_expert(source.description.tokens, k, experts_of(source, at.layer))
    mean = plain_count(float(mean_counts(source, at).mean()))
    return Tile("measured_mean", "This run, mean", mean, "tokens", lines=(f"formula {plain_count(own)}",))


def least_tile(source: Source, at: At) -> Tile:
    least = plain_count(float(mean_counts(source, at).min()))
    return Tile("measured_least", "Fewest selections", least, "tokens", lines=OF_ONE)


def most_tile(source: Source, at: At) -> Tile:
    most = plain_count(float(mean_counts(source, at).max()))
    return Tile("measured_most", "Most selections", most, "tokens", lines=OF_ONE)


def one_device_tile(source: Source, at: At) -> Tile:
    chosen = batch_sizes(source)
    sees = plain_count(tokens_per_expert(chosen.tokens, chosen.k, chosen.experts))
    return Tile("one_device", "On one device", sees, "tokens", lines=("as chosen, D = 1",))


def throughput_tile(source: Source, at: At) -> Tile:
    """Tokens a second of one layer at the run's own batch size, where that was measured."""
    measured, own = source.throughput(), source.description.tokens
    within = len(measured.tokens) and measured.tokens[0] <= own <= measured.tokens[-1]
    rate = short(float(np.interp(own, measured.tokens, measured.per_second))) if within else NONE
    return Tile("throughput", "Throughput", rate, "tokens/s", lines=(f"one layer, T = {own:,}",))


# In the order in which the page shows them.
FIGURES: dict[str, Entry] = {
    "batch_formula": Entry("Tokens per expert", batch.batch_formula, read_batch.read_formula, (fixed_batch,)),
    "batch_devices": Entry(
        "Tokens per expert, by devices",
        devices.batch_devices,
        read_batch.read_devices,
        (fixed_batch, even_experts),
        (dealt,),
    ),
    "batch_throughput": Entry(
        "Throughput", batch.batch_throughput, read_batch.read_throughput, (fixed_batch, measurable), (timed,)
    ),
    "batch_measured": Entry("Tokens an expert got", batch.batch_measured, read_batch.read_measured, (stats("counts"),)),
}

TILES: dict[str, TileEntry] = {
    "tokens_per_expert": TileEntry(tokens_tile, (fixed_batch,)),
    "measured_mean": TileEntry(mean_tile, (fixed_batch, stats("counts"))),
    "measured_least": TileEntry(least_tile, (stats("counts"),)),
    "measured_most": TileEntry(most_tile, (stats("counts"),)),
    "one_device": TileEntry(one_device_tile, (fixed_batch,)),
    "throughput": TileEntry(throughput_tile, (fixed_batch, measurable)),
}
