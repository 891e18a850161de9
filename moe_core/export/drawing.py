"""A figure's spec as marks: what plotly.js draws in the browser from the same spec, without a browser.

Only what the figures use is drawn; anything else is refused by name, so that no export silently lacks a part.
Distances that are not explained are those of plotly.js.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from moe_core.export.axes import LINE, Axis, ticks
from moe_core.export.fonts import ASCENT, DESCENT, width_of
from moe_core.export.marks import Box, Line, Mark, Path, Run, Sheet, Text, box, colour_of, lines_of
from moe_core.export.traces import DRAWN, dashes

Spec = dict[str, Any]
CAPITAL = 0.7  # height of a capital, in em
MIDDLE = 0.35  # from a baseline to the middle of a capital, in em


def draw(spec: Spec) -> Sheet:
    """The sheet of a spec with a size. ValueError for a kind of trace that cannot be drawn here."""
    layout = spec["layout"]
    plots = subplots(layout)
    under: list[Mark] = [fill(layout, (0, 0, layout["width"], layout["height"]), "paper_bgcolor")]
    over: list[Mark] = []
    for name, plot in plots.items():
        under.append(fill(layout, plot[2], "plot_bgcolor"))
        under += grid(*plot)
        # Plots that share an x axis have its words once, below the one that it is anchored to.
        over += labels(*plot, (layout["width"], layout["height"]), plot[0].spec.get("anchor", "y") == name)
    shapes = layout.get("shapes", ())
    under += [m for s in shapes if s.get("layer") == "below" for m in shape(s, layout, plots)]
    marks: list[Mark] = []
    for trace in spec["data"]:
        if trace.get("visible", True) is not True:
            continue
        kind = trace.get("type", "scatter")
        if kind not in DRAWN:
            raise ValueError(f"an export cannot draw a trace of type {kind!r}; it draws: {', '.join(DRAWN)}")
        marks += DRAWN[kind](trace, layout, plots)
    marks += over
    marks += [m for s in shapes if s.get("layer") != "below" for m in shape(s, layout, plots)]
    for note in layout.get("annotations", ()):
        marks += annotation(note, layout, plots)
    return Sheet(layout["width"], layout["height"], tuple(m for m in under + marks + title(layout) if m is not None))


def fill(layout: Spec, where: Box, name: str) -> Mark:
    return Path((box(*where),), fill=colour_of(layout.get(name, "#FFFFFF")), crisp=True)


# The frame


def subplots(layout: Spec) -> dict[str, tuple[Axis, Axis, Box]]:
    """The x axis, y axis and box of each pair of axes, by the y axis's name: "y", "y2", …"""
    margin = layout["margin"]
    left, top = margin["l"], margin["t"]
    width, height = layout["width"] - left - margin["r"], layout["height"] - top - margin["b"]
    plots = {}
    for key in sorted(k for k in layout if k.startswith("yaxis")):
        y = layout[key]
        x = layout.get("xaxis" + y.get("anchor", "x")[1:], {})
        x0, x1 = x.get("domain", (0, 1))
        y0, y1 = y.get("domain", (0, 1))
        where = (left + x0 * width, top + (1 - y1) * height, (x1 - x0) * width, (y1 - y0) * height)
        where = in_proportion(x, y, where)
        plots[key.replace("axis", "")] = (
            axis(x, where[0], where[0] + where[2], "x"),
            axis(y, where[1] + where[3], where[1], "y"),
            where,
        )
    return plots


def axis(spec: Spec, start: float, end: float, letter: str) -> Axis:
    lo, hi = (float(v) for v in spec.get("range", (0.0, 1.0)))
    return Axis((lo, hi), (start, end), spec.get("type") == "log", spec | {"letter": letter})


def in_proportion(x: Spec, y: Spec, where: Box) -> Box:
    """The part of the box in which a unit of y is as long as one of x, where the axes are tied."""
    if y.get("scaleanchor") is None and x.get("scaleanchor") is None:
        return where
    left, top, width, height = where
    dx, dy = (abs(float(a["range"][1]) - float(a["range"][0])) for a in (x, y))
    ratio = float(y.get("scaleratio", 1))
    unit = min(width / dx, height / dy / ratio)
    w, h = unit * dx, unit * dy * ratio
    return (left + (width - w) / 2, top + (height - h) / 2, w, h)


def grid(x: Axis, y: Axis, where: Box) -> list[Mark]:
    """Grid lines, between which the data stand."""
    left, top, width, height = where
    marks: list[Mark] = []
    for one, upright in ((x, True), (y, False)):
        if not one.spec.get("showgrid", False) or one.spec.get("visible") is False:
            continue
        colour = colour_of(one.spec.get("gridcolor", "#EEEEEE"))
        for px, _ in ticks(one):
            at = round(px - 0.5) + 0.5
            ends = ((at, top), (at, top + height)) if upright else ((left, at), (left + width, at))
            marks.append(Path((Line(np.array(ends)),), stroke=colour, width=one.spec.get("gridwidth", 1), crisp=True))
    return marks


def labels(x: Axis, y: Axis, where: Box, room: tuple[float, float], both: bool) -> list[Mark]:
    """The ticks' words and the titles of both axes, or of y alone, on a sheet of this width and height."""
    return (below(x, where, room) if both else []) + beside(y, where, room)


def below(x: Axis, where: Box, room: tuple[float, float]) -> list[Mark]:
    """The words of the x axis."""
    left, top, width, height = where
    marks: list[Mark] = []
    depth = 0.0
    if shown(x):
        font = x.spec["tickfont"]
        base = top + height + distance(x) + font["size"]
        end = -room[0]
        for px, words in ticks(x):
            reach = max(width_of(line) for line in lines_of(words, font)) / 2
            inside = min(max(px, reach), room[0] - reach)  # words that would be cut at the edge are moved inside
            if inside - reach > end:
                marks += block(words, font, inside, base, 0.5)
                end = inside + reach
        depth = distance(x) + (1 + DESCENT) * font["size"]
    elif x.spec.get("ticks") == "outside":
        depth = x.spec.get("ticklen", 5) + 0.5
    return marks + axis_title(x, left + width / 2, top + height + depth, room)


def beside(y: Axis, where: Box, room: tuple[float, float]) -> list[Mark]:
    """The words of the y axis."""
    left, top, _, height = where
    marks: list[Mark] = []
    if shown(y):
        font = y.spec["tickfont"]
        for px, words in ticks(y):
            marks += block(words, font, left - distance(y), px + MIDDLE * font["size"], 1.0)
    return marks + axis_title(y, left - reach_of(y), top + height / 2, room, upright=True)


def reach_of(y: Axis) -> float:
    """How far the ticks' words of a y axis reach to the left of it."""
    if not shown(y):
        return 0.0
    lines = [line for _, words in ticks(y) for line in lines_of(words, y.spec["tickfont"])]
    return distance(y) + max(map(width_of, lines), default=0.0)


def room_beside(layout: Spec) -> float:
    """The left margin that the words of the y axes need."""
    needs = [0.0]
    for _, y, _ in subplots(layout).values():
        title = y.spec.get("title")
        words = title if isinstance(title, dict) and title.get("text") else None
        more = words["font"]["size"] * (CAPITAL + DESCENT) + words.get("standoff", 0) + 1 if words else 0.0
        needs.append(reach_of(y) + more)
    return max(needs)


def shown(one: Axis) -> bool:
    return one.spec.get("showticklabels", True) and one.spec.get("visible", True) and "tickfont" in one.spec


def distance(one: Axis) -> float:
    """From the axis to its ticks' words."""
    outside = one.spec.get("ticks") == "outside"
    return (one.spec.get("ticklen", 5) + 0.2 * one.spec["tickfont"]["size"] if outside else 0.0) + 1.0


def axis_title(one: Axis, x: float, y: float, room: tuple[float, float], upright: bool = False) -> list[Mark]:
    """Below the x axis, or left of the y axis, read upward; moved or shortened so that it lies on the sheet, `room`."""
    given = one.spec.get("title")
    if not isinstance(given, dict) or not given.get("text") or one.spec.get("visible") is False:
        return []
    size, standoff = given["font"]["size"], given.get("standoff", 0)
    below = round(DESCENT * size)
    text, half = fitting(given["text"], given["font"], room[upright])
    if upright:
        y = min(max(y, half), room[1] - half)
        return block(text, given["font"], max(x - standoff - below, size), y, 0.5, angle=-90)
    x = min(max(x, half), room[0] - half)
    return block(text, given["font"], x, min(y + standoff + CAPITAL * size, room[1] - below), 0.5)


def fitting(text: str, font: Spec, room: float) -> tuple[str, float]:
    """An axis's title, or where it is longer than the sheet what stands before its comma, else its first words; half its length."""
    for shorter in (text, text.partition(",")[0]):
        half = max(map(width_of, lines_of(shorter, font))) / 2
        if 2 * half <= room:
            return shorter, half
    words = text.partition(",")[0].split(" ")
    while len(words) > 1 and 2 * half > room:
        words.pop()
        shorter = f"{' '.join(words)} …"
        half = max(map(width_of, lines_of(shorter, font))) / 2
    return shorter, half


def block(
    text: str, font: Spec, x: float, y: float, anchor: float, angle: float = 0.0, clip: Box | None = None
) -> list[Mark]:
    """Lines of text, the first on the baseline y."""
    step = LINE * font["size"]
    sideways = angle == -90
    return [
        Text(line, x + (i * step if sideways else 0), y + (0 if sideways else i * step), anchor, angle, clip)
        for i, line in enumerate(lines_of(str(text), font))
        if line
    ]


def title(layout: Spec) -> list[Mark]:
    given = layout.get("title")
    if not isinstance(given, dict) or not given.get("text"):
        return []
    pad = given.get("pad", {})
    # plotly.js lowers a title by a capital's height, but not one of several lines.
    lower = 0 if "<br" in given["text"] else CAPITAL * given["font"]["size"]
    return block(given["text"], given["font"], pad.get("l", 0), pad.get("t", 0) + lower, 0.0)


# What is laid over the data


def to_px(value: Any, ref: str, layout: Spec, plots: dict[str, tuple[Axis, Axis, Box]], upright: bool) -> float:
    """A coordinate of a shape or note: of an axis, of the paper (the plot's area, from its lower left), or of an axis's domain."""
    margin = layout["margin"]
    if ref == "paper":
        if upright:
            return float(margin["t"] + (1 - value) * (layout["height"] - margin["t"] - margin["b"]))
        return float(margin["l"] + value * (layout["width"] - margin["l"] - margin["r"]))
    name = ref.split()[0]
    if upright:
        one = plots[name][1]
    else:
        one = next(x for x, y, _ in plots.values() if y.spec.get("anchor", "x") == name)
    if ref.endswith("domain"):
        return float(one.px[0] + value * (one.px[1] - one.px[0]))
    # On a log axis a shape stands at a value, a note at its power of ten.
    return float(one.place(value))


def shape(given: Spec, layout: Spec, plots: dict[str, tuple[Axis, Axis, Box]]) -> Iterable[Mark]:
    """A line, rectangle or circle; clipped to its plot when it stands at data."""
    xref, yref = given.get("xref", "x"), given.get("yref", "y")
    x0, x1 = (to_px(given[k], xref, layout, plots, False) for k in ("x0", "x1"))
    y0, y1 = (to_px(given[k], yref, layout, plots, True) for k in ("y0", "y1"))
    line = given.get("line", {})
    width = line.get("width", 2)
    stroke = colour_of(line.get("color", "#444444"), given.get("opacity", 1)) if width else None
    paint = colour_of(given.get("fillcolor"), given.get("opacity", 1))
    kind = given["type"]
    if kind == "line":
        lines = (Line(np.array([(x0, y0), (x1, y1)])),)
    elif kind == "rect":
        lines = (box(min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0)),)
    else:
        raise ValueError(f"an export cannot draw a shape of type {kind!r}; it draws lines and rectangles")
    clip = clip_of(xref, yref, layout, plots)
    return [Path(lines, None if kind == "line" else paint, stroke, width, dashes(line.get("dash"), width), clip)]


def clip_of(xref: str, yref: str, layout: Spec, plots: dict[str, tuple[Axis, Axis, Box]]) -> Box | None:
    """A shape is cut at the ends of the axes that it refers to, and of those only."""
    if xref == "paper" and yref == "paper":
        return None
    where = next(iter(plots.values()))[2]
    if yref in plots:
        where = plots[yref][2]
    else:
        where = next((w for x, y, w in plots.values() if y.spec.get("anchor", "x") == xref), where)
    left, top, width, height = where
    if xref == "paper":
        left, width = 0, layout["width"]
    if yref == "paper":
        top, height = 0, layout["height"]
    return (left, top, width, height)


def annotation(given: Spec, layout: Spec, plots: dict[str, tuple[Axis, Axis, Box]]) -> list[Mark]:
    """A label without an arrow, on a ground of its own if it has one."""
    if not given.get("text") or given.get("visible", True) is not True:
        return []
    xref, yref = given.get("xref", "x"), given.get("yref", "y")
    log_x = any(x.log and y.spec.get("anchor", "x") == xref for x, y, _ in plots.values())
    log_y = yref in plots and plots[yref][1].log
    font = layout["font"] | given.get("font", {})
    x = to_px(10.0 ** given["x"] if log_x else given["x"], xref, layout, plots, False) + given.get("xshift", 0)
    y = to_px(10.0 ** given["y"] if log_y else given["y"], yref, layout, plots, True) - given.get("yshift", 0)
    text = lines_of(given["text"], font)
    size, pad = font["size"], given.get("borderpad", 1) + given.get("borderwidth", 1)
    tallest = max((run.size for line in text for run in line), default=size)
    above, below = round(ASCENT * tallest), round(DESCENT * tallest)
    wide = max(map(width_of, text)) + 2 * pad
    high = above + below + LINE * size * (len(text) - 1) + 2 * pad
    angle = float(given.get("textangle", 0))
    if angle:
        return block(given["text"], font, x, y + MIDDLE * size, 0.5, angle)
    left = x - wide * share(given.get("xanchor", "auto"), given["x"], xref, ("left", "right"))
    top = y - high * share(
        given.get("yanchor", "auto"), 1 - given["y"] if yref == "paper" else 0, yref, ("top", "bottom")
    )
    marks: list[Mark] = []
    ground, edge = colour_of(given.get("bgcolor")), colour_of(given.get("bordercolor"))
    if ground or edge:
        marks.append(Path((box(left, top, wide, high),), ground, edge if given.get("borderwidth") else None))
    at = {"left": 0.0, "right": 1.0}.get(given.get("align", "center"), 0.5)
    inside = wide - 2 * pad
    return marks + block(given["text"], font, left + pad + at * inside, top + pad + above, at)


def share(anchor: str, at: float, ref: str, ends: tuple[str, str]) -> float:
    """How much of a label lies before its place: none, half or all."""
    if anchor == "auto":
        return 0.5 if ref != "paper" else 0.0 if at < 1 / 3 else 1.0 if at > 2 / 3 else 0.5
    return {ends[0]: 0.0, ends[1]: 1.0}.get(anchor, 0.5)


def stamp_line(text: str, sheet: Sheet, colour: str, ground: str, size: float) -> Sheet:
    """The sheet with a line of small type below it."""
    high = 2 * size
    run = Run(text, colour_of(colour) or (0, 0, 0, 1.0), size, 400, False)
    below = Path((box(0, sheet.height, sheet.width, high),), fill=colour_of(ground), crisp=True)
    words = Text((run,), 0, sheet.height + 1.2 * size)
    return Sheet(sheet.width, sheet.height + high, (*sheet.marks, below, words))
