"""Several figures as panels a, b, c of one file, in rows from the left."""

import string
from collections.abc import Sequence
from dataclasses import replace

from moe_core.export.drawing import stamp_line
from moe_core.export.look import COLUMN, FONT, POINTS, TRIES, Look, check, laid_out, spec_of
from moe_core.export.marks import Path, Sheet, box, colour_of, moved
from moe_core.export.pdf import to_pdf
from moe_core.export.stamp import Facts, caption_of, figure_facts, smoothed_facts
from moe_core.export.svg import to_png, to_svg
from moe_core.export.untold import Alike, Steps, alike_in, steps_of
from moe_core.figures.catalog import FIGURES
from moe_core.figures.paper import Spec
from moe_core.figures.read_sweep import SweepResults
from moe_core.figures.theme import LOOKS
from moe_core.runs.source import At, Source

GAP = 16  # px between two panels
MOST = 6  # panels beside each other
KINDS = ("png", "svg", "pdf")


def panels(run: Source | SweepResults, names: Sequence[str], format: str, look: Look, columns: int) -> bytes:
    """The figures of these names in one file, `columns` beside each other. look.size is that of the whole, None being a paper's column
    for each. ValueError for another format, for more panels than letters, and for panels that would be too small."""
    if format not in KINDS:
        raise ValueError(
            f"panels are written as {', '.join(KINDS)}, got {format!r}; leave --panels out for a file each"
        )
    if not 1 <= len(names) <= len(string.ascii_lowercase):
        raise ValueError(
            f"a file has between 1 and {len(string.ascii_lowercase)} panels, got {len(names)}; choose other figures"
        )
    if not 1 <= columns <= MOST:
        raise ValueError(f"between 1 and {MOST} panels stand beside each other, got {columns}")
    if look.title:
        raise ValueError('each panel has its figure\'s title; leave the title out, or give "" for none')
    sheet, zoom, facts = together(run, names, look, columns)
    return encoded(sheet, format, facts, look.scale, zoom)


def encoded(sheet: Sheet, format: str, facts: Facts, scale: float, zoom: float) -> bytes:
    """A sheet in one of KINDS. scale: pixels of a PNG a CSS px; zoom: the factor by which its px are enlarged."""
    if format == "png":
        return to_png(sheet, facts, scale, zoom)
    return to_svg(sheet, facts, zoom).encode() if format == "svg" else to_pdf([sheet], facts, zoom)


def whole_size(look: Look, count: int, columns: int) -> tuple[float, float]:
    """Width and height in CSS px of the whole file."""
    rows = -(-count // columns)
    return look.size or (COLUMN[0] * min(columns, count), COLUMN[1] * rows)


def together(run: Source | SweepResults, names: Sequence[str], look: Look, columns: int) -> tuple[Sheet, float, Facts]:
    """All panels on one sheet, by which factor its px are enlarged, and the stamp of the whole."""
    columns = min(columns, len(names))
    width, height = whole_size(look, len(names), columns)
    zoom, rows, theme = look.font / FONT, -(-len(names) // columns), LOOKS[look.theme]
    below = 2 * (FONT - 2) * zoom if look.caption else 0.0
    gap = GAP * zoom
    size = ((width - gap * (columns - 1)) / columns, (height - below - gap * (rows - 1)) / rows)
    check(run, replace(look, size=(width, height)))
    try:
        check(run, replace(look, size=size))
    except ValueError as error:
        raise ValueError(
            f"{columns} panels beside each other do not fit: {error} for each; give a larger size, or fewer beside each other"
        ) from None
    marks, smoothed = [], False
    looks = [replace(look, size=size, caption=False, letter=string.ascii_lowercase[at]) for at in range(len(names))]
    for at, (name, here, spec) in enumerate(zip(names, looks, specs_alike(run, names, looks), strict=True)):
        smoothed = smoothed or "smooth" in spec["layout"]["meta"]
        row, column = divmod(at, columns)
        x, y = column * (size[0] + gap) / zoom, row * (size[1] + gap) / zoom
        marks += [moved(mark, x, y) for mark in laid_out(spec, zoom, name, here, "").marks]
    facts = panel_facts(run, names, look) | (smoothed_facts(look.smooth) if smoothed else {})
    sheet = Sheet(width / zoom, (height - below) / zoom, tuple(marks))
    if look.caption:
        sheet = stamp_line(caption_of(facts), sheet, theme.ink2, theme.ground, FONT - 2)
    ground = Path((box(0, 0, width / zoom, height / zoom),), fill=colour_of(theme.ground))
    return Sheet(width / zoom, height / zoom, (ground, *sheet.marks)), zoom, facts


def specs_alike(run: Source | SweepResults, names: Sequence[str], looks: Sequence[Look]) -> list[Spec]:
    """The panels' specs, of which those of the same steps tell the same changes by the same numbers."""
    read = [
        FIGURES[name].read(run, At(look.layer, look.step, bins=POINTS)) for name, look in zip(names, looks, strict=True)
    ]
    panels = list(zip(names, looks, read, strict=True))
    specs, alike = [spec_of(run, *panel)[0] for panel in panels], dict[Steps, Alike]()
    for _ in range(TRIES):  # a longer title makes a plot lower, which then may name fewer
        before, alike = alike, alike_in(specs, alike)
        if alike == before:
            break
        specs = [
            spec_of(run, *panel, alike[steps])[0] if (steps := steps_of(spec)) else spec
            for spec, panel in zip(specs, panels, strict=True)
        ]
    return specs


def panel_facts(run: Source | SweepResults, names: Sequence[str], look: Look) -> Facts:
    """The stamp of the whole: what any of the panels says, and which figure each of them is."""
    facts: Facts = {}
    for name in names:
        facts |= figure_facts(run, name, look)
    which = zip(string.ascii_lowercase, names, strict=False)
    facts["Title"] = "; ".join(f"{letter}: {FIGURES[name].title}" for letter, name in which)
    return facts
