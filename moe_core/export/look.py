"""The choices for an exported figure (size, theme, type, step), and the sheet drawn from a spec by them."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moe_core.export.axes import LINE
from moe_core.export.drawing import draw, room_beside, stamp_line
from moe_core.export.fonts import width_of
from moe_core.export.marks import Path, Sheet, box, colour_of, lines_of
from moe_core.export.sizes import on_paper
from moe_core.export.untold import ALONE, MOST_TOLD, NO_BREAK, ROW, Alike, Untold, add_numbers, subtitle_with
from moe_core.figures.catalog import FIGURES
from moe_core.figures.paper import COMPACT, Spec, escape, inner
from moe_core.figures.read_sweep import SweepResults
from moe_core.figures.reading import last_step
from moe_core.figures.smooth import Smoothed, over_steps, with_means
from moe_core.figures.theme import LOOKS, Theme
from moe_core.runs.source import At, Source
from moe_core.schema import first_line

FONT = 13  # px of axis type, unless another size is chosen
COLUMN = (480, 300)  # px: set to the width of a paper's column (85 mm), the axes read at 6.5 pt
SMALLEST, LARGEST = 120, 8000
LEAST = 60  # px of a plot that words beside it leave
LEAST_HIGH, ENOUGH = 60, 80  # px of a plot below a title that tells one change, or more
TRIES = 4
NARROW = 460  # px below which a margin is no wider than its words
MOST_STEPS = 1_000_000  # over which a line is averaged
POINTS = 2000  # points of a line; tables have every step


@dataclass(frozen=True)
class Look:
    """size: (width, height) in CSS px, 96 to the inch, of the whole figure, None being a paper's column, or what the figure needs
    if that is more. scale: pixels of a PNG a CSS px. title: None keeps the figure's, "" leaves it out. font: px of axis type, in
    proportion to which everything is drawn. caption: a line below, with run, step and version. layer from 0; step: the
    step to show, None being the last. smooth: over how many steps lines are averaged, 1 being none. letter: before
    the title, of a panel."""

    size: tuple[float, float] | None = None
    scale: float = 2.0
    theme: str = "light"
    title: str | None = None
    font: float = FONT
    caption: bool = False
    layer: int = 0
    step: int | None = None
    smooth: int = 1
    letter: str = ""


def check(run: Source | SweepResults, look: Look) -> None:
    """ValueError for an unknown theme, or a layer, step or size out of range."""
    if look.theme not in LOOKS:
        raise ValueError(f"unknown theme {look.theme!r}; there are: {', '.join(LOOKS)}")
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
        ("smooth", look.smooth, 1, MOST_STEPS),
    ):
        if value is not None and not low <= value <= high:
            unit = {"scale": "", "smooth": " steps"}.get(name, " px")
            told = f" px, {on_paper(value)} in" if name in ("width", "height") else unit
            inches = f" ({on_paper(low)} to {on_paper(high)} in)" if name in ("width", "height") else ""
            raise ValueError(f"{name} must be between {low} and {high}{unit}{inches}, got {value:g}{told}")
    if look.size and look.size[0] * look.size[1] * look.scale**2 > 100e6:
        width, height = (round(side * look.scale) for side in look.size)
        raise ValueError(
            f"a picture has at most 100 million pixels, got {width:,} x {height:,}; take a smaller size or scale"
        )


def size_of(name: str, look: Look) -> tuple[float, float]:
    """The size asked for, or one that suits the figure."""
    if look.size:
        return look.size
    own = (FIGURES[name].draw.spec.__kwdefaults__ or {}).get("size", COLUMN)
    return (own[0], own[1]) if own[0] > 700 else COLUMN


def undrawable(what: str, error: Exception) -> str:
    """That a figure could not be drawn, and why, in a line."""
    return f"{what} cannot be drawn: {type(error).__name__} {first_line(error)}"


def spec_of(
    run: Source | SweepResults,
    name: str,
    look: Look,
    given: dict[str, Any] | None = None,
    alike: Alike = ALONE,
) -> tuple[dict[str, Any], float]:
    """The figure's spec as it is to be drawn, and by which factor its px are enlarged.

    given: the figure's arguments, if they were read before; alike: the changes that the title is to tell as other panels do.
    """
    entry = FIGURES[name]
    at = At(look.layer, look.step, bins=POINTS)
    given = entry.read(run, at) if given is None else given
    width, height = size_of(name, look)
    zoom = look.font / FONT
    # On a page only the chart above names the changes, and tiles name the runs.
    alone = {"label_changes": True, "named": round(width / zoom)}
    given = given | {word: alone[word] for word in alone if word in (entry.draw.spec.__kwdefaults__ or {})}
    mean = None
    if look.smooth > 1 and not isinstance(run, SweepResults) and over_steps(entry.draw.spec(**given)):
        mean = entry.read(Smoothed(run, look.smooth), at) | {word: given[word] for word in alone if word in given}
    # `cut`: the height that leaving out the title saves; `below`: the height of the caption.
    cut = COMPACT.top - (30 if look.letter else 16) if look.title == "" else 0
    below = 2 * (FONT - 2) if look.caption else 0
    size = (round(width / zoom), max(60, round(height / zoom) - below + cut))

    def drawn(left: int, right: int, top: int) -> dict[str, Any]:
        """Drawn with other margins than the figure's own: by this many px wider, or with less than 0 narrower."""
        room = (size[0] - left - right, max(60, size[1] - top), False, size[0])
        shape = {"theme": LOOKS[look.theme], "size": room}
        made = entry.draw.spec(**given, **shape)
        made = with_means(made, entry.draw.spec(**mean, **shape), look.smooth) if mean else made
        layout = made["layout"]
        if look.title:  # before it is wrapped, so that no line of the figure's own is left
            _, line, rest = layout["title"]["text"].partition("<br>")
            layout["title"]["text"] = escape(look.title) + line + rest
        if look.letter:
            layout["title"]["text"] = f"<b>{look.letter}</b> {layout['title']['text']}"
        layout["width"], layout["height"] = size[0], layout["height"] + top
        layout["margin"] |= {side: layout["margin"][side] + px for side, px in (("l", left), ("r", right), ("t", top))}
        return made

    spec = drawn(0, 0, 0)
    left, right = missing(spec)
    spec = drawn(left, right, 0) if left or right else spec
    if look.title != "":
        spec = with_title(spec, lambda top: drawn(left, right, top), LOOKS[look.theme], alike)
    layout = spec["layout"]
    if look.title == "":
        layout["title"] = layout["title"] | {"text": f"<b>{look.letter}</b><br>"} if look.letter else {"text": ""}
        layout["margin"] = layout["margin"] | {"t": layout["margin"]["t"] - cut}
        layout["height"] -= cut
    return spec, zoom


def missing(spec: dict[str, Any]) -> tuple[int, int]:
    """By how many px the left and the right margin are too narrow for the words in them; the right one of a figure narrower than a
    paper's column less than 0 where it is too wide."""
    layout = spec["layout"]
    font, margin = layout["font"], layout["margin"]
    names = [
        one for one in layout["annotations"] if (one["xref"], one["x"], one.get("xanchor")) == ("paper", 1, "left")
    ]
    needs = [one.get("xshift", 0) + widest(one["text"], font | one["font"]) + 4 for one in names]
    for trace in spec["data"]:
        if trace["type"] == "heatmap" and trace.get("showscale", True) and "colorbar" in trace:
            bar = trace["colorbar"]
            ticks = [widest(word, font | bar["tickfont"]) for word in bar["ticktext"]]
            needs.append(bar["xpad"] + bar["thickness"] + 6 + max(ticks))
    left = max(0, math.ceil(room_beside(layout) - margin["l"]))
    right = math.ceil(max(needs) - margin["r"]) if needs else 0
    most = max(0, layout["width"] - margin["l"] - margin["r"] - left - LEAST)  # that the plot can give
    return left, min(right, most) if right > 0 or layout["width"] < NARROW else 0


def widest(text: str, font: dict[str, Any]) -> float:
    """Width in px of the longest line of a label."""
    return max(map(width_of, lines_of(text, font)))


def with_title(spec: Spec, drawn: Callable[[int], Spec], theme: Theme, alike: Alike = ALONE) -> Spec:
    """The figure with its title wrapped to its width, which also tells the changes that find no room in the plot, by their numbers.

    drawn: the figure with a title that is so many px higher.
    """
    high, top = inner(spec["layout"])[1], 0
    for _ in range(TRIES):
        # A lower plot has room for fewer names, so that more have to be told in the title, which makes it lower.
        text, needed, told = title_for(spec["layout"], alike.of(spec), high, most_told=alike.most)
        if needed == top:
            break
        top = needed
        spec = drawn(top)
        if spec["layout"]["meta"].get("strip"):  # so low that it has no title
            return spec
    else:  # two heights each ask for the other
        text, _, told = title_for(spec["layout"], alike.of(spec), high, top, most_told=alike.most)
    spec["layout"]["title"]["text"] = text
    spec["layout"]["meta"]["told"] = told
    if told:
        add_numbers(spec["layout"], [step for step, _ in alike.of(spec).changes[:told]], theme)
    return spec


def title_for(
    layout: dict[str, Any], untold: Untold, high: int, most: float = math.inf, most_told: int = MOST_TOLD
) -> tuple[str, int, int]:
    """The title wrapped to the width of the figure, by how many px that makes it higher, and how many of the changes it tells: as
    many as find room in `most` px more and leave enough of the height of the plot, `high`."""
    for told in range(min(len(untold.changes), most_told), -1, -1):
        title = layout["title"] | {"text": subtitle_with(str(layout["title"]["text"]), untold, told)}
        text, top = wrapped_title(layout | {"title": title})
        above = top + ROW * bool(told)  # numbers
        least = LEAST_HIGH if told == 1 else ENOUGH  # their count is told in any case
        if above <= most and (not told or high - above >= least):
            return text, above, told
    return *wrapped_title(layout), 0


def wrapped_title(layout: dict[str, Any]) -> tuple[str, int]:
    """The title with both its lines wrapped to the width of the figure, and by how many px that makes it higher."""
    text, font = str(layout["title"]["text"]), layout["title"]["font"]
    parts = re.fullmatch(r"(.*?)(<br><span [^>]*>)(.*)(</span>)", text)
    if not parts:
        return text, 0
    first = wrapped(parts[1], font, layout["width"])
    second = wrapped(parts[3], layout["font"], layout["width"])
    more = len(first) + len(second) - 2
    return "<br>".join(first) + parts[2] + "<br>".join(second) + parts[4], round(more * LINE * font["size"])


def wrapped(text: str, font: dict[str, Any], width: float) -> list[str]:
    """The text in lines no wider than `width`, broken at blanks, but not between a number and its %."""
    lines = [""]
    for word in re.split(r" (?![^<]*>)", text.replace(" %", NO_BREAK + "%")):  # not at a blank within a tag
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and widest(longer, font) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return [line.replace(NO_BREAK, " ") for line in lines]


def sheet_of(
    run: Source | SweepResults, name: str, look: Look, caption: str, given: dict[str, Any] | None = None
) -> tuple[Sheet, float]:
    """The figure as a sheet, and by which factor its px are enlarged."""
    spec, zoom = spec_of(run, name, look, given)
    return laid_out(spec, zoom, name, look, caption), zoom


def laid_out(spec: dict[str, Any], zoom: float, name: str, look: Look, caption: str) -> Sheet:
    """A spec, as spec_of makes it, as a sheet."""
    sheet, theme = draw(spec), LOOKS[look.theme]
    if look.caption:
        sheet = stamp_line(caption, sheet, theme.ink2, theme.ground, FONT - 2)
    # The spec's sides are whole px; the sheet has exactly the size asked for.
    width, height = (side / zoom for side in size_of(name, look))
    ground = Path((box(0, 0, width, height),), fill=colour_of(theme.ground))
    return Sheet(width, height, (ground, *sheet.marks))
