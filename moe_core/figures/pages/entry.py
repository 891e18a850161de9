"""How a page's charts and tiles are declared: what each is read from, and what it needs of a run."""

from collections.abc import Callable
from typing import Any, NamedTuple

from moe_core.figures.needs import Need
from moe_core.figures.pages.tile import Tile
from moe_core.figures.paper import Figure
from moe_core.runs.source import At, Source


class Entry(NamedTuple):
    """A figure: its title, and how its numbers are read and drawn.

    read(source, at) gives the keyword arguments of draw, `theme` and `size` aside. needs: what a run must have for the figure
    to be offered, on its page and in exports; filled: what it must have besides to be exported: a page draws empty axes instead.
    layered: whether it shows one layer, so that a report has one for each; page: filled in by the catalog.
    """

    title: str
    draw: Figure
    read: Callable[[Any, At], dict[str, Any]]  # of a Source; a sweep's figures of a SweepResults
    needs: tuple[Need, ...] = ()
    filled: tuple[Need, ...] = ()
    layered: bool = True
    page: str = ""


class TileEntry(NamedTuple):
    """How a tile is read, and what it needs of a run to be offered."""

    read: Callable[[Source, At], Tile]
    needs: tuple[Need, ...] = ()
