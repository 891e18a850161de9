"""All figures and tiles, as the modules of figures/pages declare them. The pages, the export and the tests take them from here.

Adding one: add an entry to FIGURES or TILES in the module of its page.
"""

from moe_core.figures.pages import batch, compare, experts, live, routing, sweep
from moe_core.figures.pages.entry import Entry, TileEntry
from moe_core.figures.pages.tile import Tile
from moe_core.figures.read_sweep import SweepResults
from moe_core.runs.source import At, Source

# Each page's charts and tiles, in the order in which the page shows them, and exports have them.
PAGES: dict[str, tuple[dict[str, Entry], dict[str, TileEntry]]] = {
    "live": (live.FIGURES, live.TILES),
    "routing": (routing.FIGURES, routing.TILES),
    "experts": (experts.FIGURES, experts.TILES),
    "compare": (compare.FIGURES, compare.TILES),
    "batch": (batch.FIGURES, batch.TILES),
    "sweep": (sweep.FIGURES, {}),
}
FIGURES = {name: entry._replace(page=page) for page, (entries, _) in PAGES.items() for name, entry in entries.items()}
TILES = {page: tiles for page, (_, tiles) in PAGES.items()}


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
