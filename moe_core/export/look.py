"""The choices for an exported figure (size, theme, type, step), and the sheet drawn from a spec by them."""

import re
from dataclasses import dataclass
from typing import Any

from moe_core.export.drawing import LINE, draw, stamp_line
from moe_core.export.fonts import width_of
from moe_core.export.marks import Path, Sheet, box, colour_of, lines_of
from moe_core.figures.catalog import FIGURES
from moe_core.figures.paper import COMPACT, escape
from moe_core.figures.read_sweep import SweepResults
from moe_core.figures.reading import last_step
from moe_core.figures.theme import THEMES
from moe_core.runs.source import At, Source
from moe_core.schema import first_line

FONT = 13  # px of axis type, unless another size is chosen
COLUMN = (480, 300)  # px: set to the width of a paper's column (85 mm), the axes read at 6.5 pt
SMALLEST, LARGEST = 120, 8000
POINTS = 2000  # points of a line; tables have every step


@dataclass(frozen=True)
class Look:
    """size: (width, height) in CSS px of the whole figure, None being a paper's column, or what the figure needs if that
    is more. scale: pixels of a PNG a CSS px. title: None keeps the figure's, "" leaves it out. font: px of axis type, in
    proportion to which everything is drawn. caption: a line below, with run, step and version. layer from 0; step: the
    step to show, None being the last."""

    size: tuple[int, int] | None = None
    scale: float = 2.0
    theme: str = "light"
    title: str | None = None
    font: float = FONT
    caption: bool = False
    layer: int = 0
    step: int | None = None


def check(run: Source | SweepResults, look: Look) -> None:
    """ValueError for an unknown theme, or a layer, step or size out of range."""
    if look.theme not in THEMES:
        raise ValueError(f"unknown theme {look.theme!r}; there are: {', '.join(THEMES)}")
    layers = len(run.description.layers)
    if not 0 <= look.layer < layers:
        raise ValueError(f"layer must be between 1 and {layers}, got {look.layer + 1}")
    if look.step is not None and not isinstance(run, SweepResults):  # a sweep has no steps
        last = last_step(run)
        if not 1 <= look.step <= last:
            raise ValueError(f"step must be a recorded one, between 1 and {last} in {run.id}, got {look.step}")
    for name, value, low, high in (
        ("width", look.size and look.size[0], SMALLEST, LARGEST),
        ("height", look.size and look.size[1], SMALLEST, LARGEST),
        ("scale", look.scale, 0.25, 8),
        ("font size", look.font, 6, 48),
    ):
        if value is not None and not low <= value <= high:
            raise ValueError(f"{name} must be between {low} and {high}, got {value:g}")
    if look.size and look.size[0] * look.size[1] * look.scale**2 > 100e6:
        width, height = (round(side * look.scale) for side in look.size)
        raise ValueError(
            f"a picture has at most 100 million pixels, got {width:,} x {height:,}; take a smaller size or scale"
        )


def size_of(name: str, look: Look) -> tuple[int, int]:
    """The size asked for, or one that suits the figure."""
    if look.size:
        return look.size
    own = (FIGURES[name].draw.spec.__kwdefaults__ or {}).get("size", COLUMN)
    return (own[0], own[1]) if own[0] > 700 else COLUMN


def undrawable(what: str, error: Exception) -> str:
    """That a figure could not be drawn, and why, in a line."""
    return f"{what} cannot be drawn: {type(error).__name__} {first_line(error)}"


def spec_of(
    run: Source | SweepResults, name: str, look: Look, given: dict[str, Any] | None = None
) -> tuple[dict[str, Any], float]:
    """The figure's spec as it is to be drawn, and by which factor its px are enlarged.

    given: the figure's arguments, if they were read before.
    """
    entry = FIGURES[name]
    if given is None:
        given = entry.read(run, At(look.layer, look.step, bins=POINTS))
    if "label_changes" in (entry.draw.spec.__kwdefaults__ or {}):
        given = given | {"label_changes": True}  # on the page only the chart above it names the changes
    width, height = size_of(name, look)
    zoom = look.font / FONT
    # `cut`: the height that leaving out the title saves; `below`: the height of the caption.
    cut = COMPACT.top - 16 if look.title == "" else 0
    below = 2 * (FONT - 2) if look.caption else 0
    size = (round(width / zoom), max(60, round(height / zoom) - below + cut), False)
    spec = entry.draw.spec(**given, theme=THEMES[look.theme], size=size)
    text, more = wrapped_title(spec["layout"])
    if more and look.title != "":
        # The plot is drawn again, lower by the additional lines of the title.
        spec = entry.draw.spec(**given, theme=THEMES[look.theme], size=(size[0], max(60, size[1] - more), False))
        spec["layout"]["title"]["text"] = text
        spec["layout"]["margin"]["t"] += more
        spec["layout"]["height"] += more
    layout = spec["layout"]
    if look.title == "":
        layout["title"] = {"text": ""}
        layout["margin"] = layout["margin"] | {"t": layout["margin"]["t"] - cut}
        layout["height"] -= cut
    elif look.title is not None:
        _, line, rest = layout["title"]["text"].partition("<br>")
        layout["title"] = layout["title"] | {"text": escape(look.title) + line + rest}
    return spec, zoom


def wrapped_title(layout: dict[str, Any]) -> tuple[str, int]:
    """The title with its second line wrapped to the width of the figure, and by how many px that makes it higher."""
    text = str(layout["title"]["text"])
    parts = re.fullmatch(r"(.*?<br><span [^>]*>)(.*)(</span>)", text)
    if not parts:
        return text, 0
    lines = [""]
    for word in parts[2].split(" "):
        longer = f"{lines[-1]} {word}".strip()
        (runs,) = lines_of(longer, layout["font"])
        if lines[-1] and width_of(runs) > layout["width"]:
            lines.append(word)
        else:
            lines[-1] = longer
    return parts[1] + "<br>".join(lines) + parts[3], round((len(lines) - 1) * LINE * layout["title"]["font"]["size"])


def sheet_of(
    run: Source | SweepResults, name: str, look: Look, caption: str, given: dict[str, Any] | None = None
) -> tuple[Sheet, float]:
    """The figure as a sheet, and by which factor its px are enlarged."""
    spec, zoom = spec_of(run, name, look, given)
    return laid_out(spec, zoom, name, look, caption), zoom


def laid_out(spec: dict[str, Any], zoom: float, name: str, look: Look, caption: str) -> Sheet:
    """A spec, as spec_of makes it, as a sheet."""
    sheet, theme = draw(spec), THEMES[look.theme]
    if look.caption:
        sheet = stamp_line(caption, sheet, theme.ink2, theme.ground, FONT - 2)
    # The spec's sides are whole px; the sheet has exactly the size asked for.
    width, height = (side / zoom for side in size_of(name, look))
    ground = Path((box(0, 0, width, height),), fill=colour_of(theme.ground))
    return Sheet(width, height, (ground, *sheet.marks))
