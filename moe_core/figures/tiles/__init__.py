"""All tiles by name: the numbers above the charts, one large, five beside it. A page shows its own in this order.

Adding a tile: write how it is read in the module of its page, and add an entry to TILES.
"""

from moe_core.figures.needs import Need, compared, fixed_batch, metrics, probe, stats
from moe_core.figures.tiles import batch, compare, experts, live, routing
from moe_core.figures.tiles.live import heldout_tile
from moe_core.figures.tiles.tile import NONE, Tile, TileEntry, number, short
from moe_core.figures.tiles.words import NOT_LEARNING, balance_words, word_at
from moe_core.runs.source import At, Source

__all__ = [
    "NONE",
    "NOT_LEARNING",
    "TILES",
    "Tile",
    "TileEntry",
    "balance_words",
    "heldout_tile",
    "number",
    "short",
    "tiles_of",
    "word_at",
]


def beside(number: int) -> Need:
    """At least so many other runs are compared with this one."""
    return lambda source: len(source.others) >= number


TILES: dict[str, TileEntry] = {
    "balance": TileEntry("live", live.balance_tile, (stats("counts"),)),
    "cv_importance": TileEntry("live", live.importance_tile, (stats("cv_importance"),)),
    "max_over_mean_load": TileEntry("live", live.max_tile, (stats("max_over_mean_load"),)),
    "dead_experts": TileEntry("live", live.dead_tile, (stats("dead_experts", "effective_experts"),)),
    "heldout": TileEntry("live", live.heldout_tile, (metrics,)),
    "speed": TileEntry("live", live.speed_tile, (stats("seconds"),)),
    "churn": TileEntry("routing", routing.churn_tile, (probe(), stats("churn"))),
    "top1_gate": TileEntry("routing", routing.first_gate_tile, (probe(),)),
    "saturation": TileEntry("routing", routing.saturation_tile, (probe(), stats("saturation"))),
    "in_use": TileEntry("routing", routing.in_use_tile, (probe(),)),
    "gate_entropy": TileEntry("routing", routing.entropy_tile, (probe(),)),
    "snapshot": TileEntry("routing", routing.snapshot_tile, (probe(),)),
    "expert_share": TileEntry("experts", experts.share_tile, (stats("selection_share"),)),
    "expert_importance": TileEntry("experts", experts.expert_importance_tile, (stats("importance_share"),)),
    "expert_rank": TileEntry("experts", experts.rank_tile, (stats("selection_share"),)),
    "last_used": TileEntry("experts", experts.last_used_tile, (stats("counts"),)),
    "favourite": TileEntry("experts", experts.favourite_tile, (probe(),)),
    "partner": TileEntry("experts", experts.partner_tile, (probe(),)),
    "run_A": TileEntry("compare", compare.run_tile(0), (stats("counts"), metrics)),
    "run_B": TileEntry("compare", compare.run_tile(1), (compared, stats("counts"), metrics)),
    "run_C": TileEntry("compare", compare.run_tile(2), (beside(2), stats("counts"), metrics)),
    "run_D": TileEntry("compare", compare.run_tile(3), (beside(3), stats("counts"), metrics)),
    "tokens_per_expert": TileEntry("batch", batch.tokens_tile, (fixed_batch,)),
    "measured_mean": TileEntry("batch", batch.mean_tile, (fixed_batch, stats("counts"))),
    "measured_least": TileEntry("batch", batch.least_tile, (stats("counts"),)),
    "measured_most": TileEntry("batch", batch.most_tile, (stats("counts"),)),
    "one_device": TileEntry("batch", batch.one_device_tile, (fixed_batch,)),
    "throughput": TileEntry("batch", batch.throughput_tile, (fixed_batch,)),
}


def tiles_of(page: str, source: Source, at: At = At()) -> list[Tile]:  # noqa: B008 - frozen
    """A page's tiles, those that this run has, in their order. Empty for a page without tiles."""
    entries = [entry for entry in TILES.values() if entry.page == page]
    return [entry.read(source, at) for entry in entries if all(need(source) for need in entry.needs)]
