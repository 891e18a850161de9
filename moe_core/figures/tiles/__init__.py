"""All tiles by page and name: the numbers above the charts, one large, five beside it.

Adding a tile: in the module of its page write how it is read, and add an entry to TILES there. The page shows them in that order.
"""

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


TILES: dict[str, dict[str, TileEntry]] = {
    "live": live.TILES,
    "routing": routing.TILES,
    "experts": experts.TILES,
    "compare": compare.TILES,
    "batch": batch.TILES,
}


def tiles_of(page: str, source: Source, at: At = At()) -> list[Tile]:  # noqa: B008 - frozen
    """A page's tiles, those that this run has, in their order. Empty for a page without tiles."""
    entries = TILES.get(page, {}).values()
    return [entry.read(source, at) for entry in entries if all(need(source) for need in entry.needs)]
