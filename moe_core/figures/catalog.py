"""All figures and tiles, as the modules of figures/pages declare them. The pages, the export and the tests take them from here.

Adding one: add an entry to FIGURES or TILES in the module of its page.
"""

from moe_core.figures.pages import batch, compare, experts, live, routing, sweep
from moe_core.figures.pages.entry import Entry, TileEntry
from moe_core.figures.pages.tile import Tile
from moe_core.figures.read_sweep import SweepResults
from moe_core.runs.source import At, Source

# In the order in which exports have them, and pages show them.
FIGURES: dict[str, Entry] = {
    name: entry._replace(page=page)
    for page, entries in (
        ("live", live.FIGURES),
        ("routing", routing.FIGURES),
        ("experts", experts.FIGURES),
        ("compare", compare.FIGURES),
        ("batch", batch.FIGURES),
        ("sweep", sweep.FIGURES),
    )
    for name, entry in entries.items()
}

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


def offered(source: Source, name: str) -> bool:
    """Whether a run has what a figure needs."""
    return all(need(source) for need in FIGURES[name].needs)


def on_page(source: Source, page: str) -> list[str]:
    """The figures of a page that a run has, in their order."""
    return [name for name, entry in FIGURES.items() if entry.page == page and offered(source, name)]


def shows(source: Source | SweepResults, name: str) -> bool:
    """Whether an export of the figure would not be empty. Of a sweep: its own figures; of a run: those that it is offered and
    whose numbers are there."""
    entry = FIGURES[name]
    if isinstance(source, SweepResults):
        return entry.page == "sweep" and (name == "sweep_pareto" or len(source.swept) == 2)
    return entry.page != "sweep" and offered(source, name) and all(need(source) for need in entry.filled)
