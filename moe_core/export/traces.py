"""Each kind of trace as marks: lines, markers and words, bars, heatmaps."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from moe_core.export.axes import Axis, ticks
from moe_core.export.marks import Box, Colour, Line, Mark, Path, Picture, Points, Text, box, circle, colour_of, lines_of

Spec = dict[str, Any]
Plots = dict[str, tuple[Axis, Axis, Box]]
DASHES = {"solid": (), "dot": (1, 1), "dash": (3, 3), "dashdot": (3, 1, 1, 1), "longdash": (5, 5)}
PIXELS = 2  # of a heatmap's picture, a CSS pixel


def plot_of(trace: Spec, plots: Plots) -> tuple[Axis, Axis, Box]:
    return plots[trace.get("yaxis", "y")]


def place(trace: Spec, plots: Plots) -> tuple[Points, Box]:
    """Pixels of a scatter's points (n, 2), and the box of its plot."""
    x, y, where = plot_of(trace, plots)
    xs, ys = x.place(values(trace.get("x"))), y.place(values(trace.get("y")))
    n = min(len(xs), len(ys))
    return np.stack([xs[:n], ys[:n]], axis=1), where


def values(given: Any) -> np.ndarray[Any, Any]:
    """Numbers, None being a gap."""
    if given is None:
        return np.zeros(0)
    return np.array([np.nan if v is None else v for v in given], np.float64)


def scatter(trace: Spec, layout: Spec, plots: Plots) -> list[Mark]:
    mode, (points, where) = trace.get("mode", "lines"), place(trace, plots)
    clip = None if trace.get("cliponaxis") is False else where
    marks: list[Mark] = []
    opacity = trace.get("opacity", 1)
    line = trace.get("line", {})
    if trace.get("fill") and len(points):
        marks += filled(trace, points, plots, where)
    if "lines" in mode and len(points):
        width = line.get("width", 2)
        path = stepped(points) if line.get("shape") == "hv" else points
        pieces = tuple(Line(piece) for piece in unbroken(path, bool(trace.get("connectgaps"))))
        stroke = colour_of(line.get("color", "#444444"), opacity)
        if pieces and width and stroke:
            marks.append(Path(pieces, None, stroke, width, dashes(line.get("dash"), width), where))
    if clip is None:
        points = within(points, where)
    if "markers" in mode:
        marks += markers(trace.get("marker", {}), points, clip, opacity, line.get("color"))
    if "text" in mode:
        marks += words(trace, layout, points, clip)
    return marks


def within(points: Points, where: Box) -> Points:
    """The points, those that lie outside of the plot as gaps: what is not clipped is drawn whole, or not at all."""
    x, y, width, height = where
    low, high = np.array([x, y]) - 0.5, np.array([x + width, y + height]) + 0.5
    inside = np.asarray(((points >= low) & (points <= high)).all(axis=1))
    return np.where(inside[:, None], points, np.nan)


def unbroken(points: Points, connect: bool) -> list[Points]:
    """The stretches between gaps; of two points at least."""
    known = np.isfinite(points).all(axis=1)
    if connect:
        return [points[known]] if known.sum() > 1 else []
    edges = np.flatnonzero(np.diff(known.astype(np.int8), prepend=0, append=0))
    return [points[a:b] for a, b in edges.reshape(-1, 2) if b - a > 1]


def dashes(name: Any, width: float) -> tuple[float, ...]:
    """A dash by its name or as lengths in px. Named ones grow with the line."""
    if not name or name == "solid":
        return ()
    if name in DASHES:
        # A dot and a dash no shorter than 3 px, as plotly.js has them.
        return tuple(float(part) * max(width, 3) for part in DASHES[name])
    return tuple(float(part.strip().removesuffix("px")) for part in str(name).split(","))


def stepped(points: Points) -> Points:
    """Level until the next point, then up or down."""
    if len(points) < 2:
        return points
    doubled = np.repeat(points, 2, axis=0)[1:]
    doubled[0::2, 0], doubled[1::2, 0] = points[:, 0], points[1:, 0]
    doubled[1::2, 1] = points[:-1, 1]
    doubled[0::2, 1] = points[:, 1]
    return doubled


def filled(trace: Spec, points: Points, plots: Plots, where: Box) -> list[Mark]:
    """The area of a line: each stretch down to 0, or within itself."""
    kind = trace["fill"]
    if kind not in ("tozeroy", "toself"):
        raise ValueError(f"an export cannot draw the fill {kind!r}; it draws toself and tozeroy")
    pieces = unbroken(points, connect=False)
    if kind == "tozeroy":
        foot = float(plot_of(trace, plots)[1].place(0.0))
        pieces = [np.concatenate([piece, [(piece[-1, 0], foot), (piece[0, 0], foot)]]) for piece in pieces]
    paint = colour_of(trace.get("fillcolor"), trace.get("opacity", 1))
    return (
        [Path(tuple(Line(piece, closed=True) for piece in pieces), fill=paint, clip=where)] if paint and pieces else []
    )


def each(given: Any, n: int) -> list[Any]:
    """A value for each of n marks, of one value or of a list."""
    if isinstance(given, np.ndarray):
        given = given.tolist()
    return list(given[:n]) if isinstance(given, list | tuple) else [given] * n


def markers(given: Spec, points: Points, clip: Box | None, opacity: float, default: Any) -> list[Mark]:
    """One mark a point; points of the same look share a path where nothing is half clear."""
    n = len(points)
    line = given.get("line", {})
    looks = zip(
        each(given.get("symbol", "circle"), n),
        each(given.get("size", 6), n),
        marker_colours(given, default, n),
        each(given.get("opacity", 1), n),
        each(line.get("width", 0), n),
        each(line.get("color", "#444444"), n),
        strict=True,
    )
    marks: list[Mark] = []
    for at, (symbol, size, colour, clear, width, edge) in zip(points, looks, strict=True):
        if not np.isfinite(at).all() or not clear * opacity or not size:
            continue
        hollow = str(symbol).endswith("-open") or str(symbol).startswith("line-")
        paint = colour_of(colour, clear * opacity)
        stroke = colour_of(colour if str(symbol).endswith("-open") else edge, clear * opacity)
        if str(symbol).endswith("-open"):
            width = width or 1
        outline = symbol_of(str(symbol).removesuffix("-open"), size / 2, at)
        marks.append(Path(outline, None if hollow else paint, stroke if width else None, width or 1, clip=clip))
    return marks


def marker_colours(given: Spec, default: Any, n: int) -> list[Any]:
    """The colour of each marker, in words; numbers stand for places on the marker's scale."""
    colours = each(given.get("color", default or "#444444"), n)
    if not colours or not isinstance(colours[0], int | float):
        return colours
    limits = {"zmin": given.get("cmin", min(colours)), "zmax": given.get("cmax", max(colours))}
    on_scale = paint(np.array(colours, np.float64), limits | {"colorscale": given["colorscale"]})
    return [f"rgba({r},{g},{b},{a / 255:g})" for r, g, b, a in on_scale.tolist()]


def symbol_of(name: str, r: float, at: Points) -> tuple[Line, ...]:
    """The outline of a marker of radius r, as plotly.js has it."""
    if name == "circle":
        return (circle(at[0], at[1], r),)
    if name not in SYMBOLS:
        raise ValueError(f"an export cannot draw the marker {name!r}; it draws: circle, {', '.join(SYMBOLS)}")
    return tuple(Line(np.array(points) * r + at, closed=len(points) > 2) for points in SYMBOLS[name])


_C, _X, _S = 0.4, 0.8 / math.sqrt(2), 1.4
SYMBOLS: dict[str, list[list[tuple[float, float]]]] = {
    "square": [[(-1, -1), (1, -1), (1, 1), (-1, 1)]],
    "diamond": [[(1.3, 0), (0, 1.3), (-1.3, 0), (0, -1.3)]],
    "triangle-up": [[(-2 / math.sqrt(3), 0.5), (2 / math.sqrt(3), 0.5), (0, -1)]],
    "triangle-down": [[(-2 / math.sqrt(3), -0.5), (2 / math.sqrt(3), -0.5), (0, 1)]],
    "cross": [[(1.2, _C), (_C, _C), (_C, 1.2), (-_C, 1.2), (-_C, _C), (-1.2, _C), (-1.2, -_C), (-_C, -_C), (-_C, -1.2), (_C, -1.2), (_C, -_C), (1.2, -_C)]],
    "x": [[(0, _X), (_X, 2 * _X), (2 * _X, _X), (_X, 0), (2 * _X, -_X), (_X, -2 * _X), (0, -_X), (-_X, -2 * _X), (-2 * _X, -_X), (-_X, 0), (-2 * _X, _X), (-_X, 2 * _X)]],
    "star": [[(0.225 * _S, -0.309 * _S), (0.951 * _S, -0.309 * _S), (0.363 * _S, 0.118 * _S), (0.588 * _S, 0.809 * _S), (0, 0.382 * _S), (-0.588 * _S, 0.809 * _S), (-0.363 * _S, 0.118 * _S), (-0.951 * _S, -0.309 * _S), (-0.225 * _S, -0.309 * _S), (0, -_S)]],
    "hexagon": [[(0.866, -0.5), (0.866, 0.5), (0, 1), (-0.866, 0.5), (-0.866, -0.5), (0, -1)]],
    "line-ew": [[(-1.4, 0), (1.4, 0)]],
    "line-ns": [[(0, -1.4), (0, 1.4)]],
}  # fmt: skip


def words(trace: Spec, layout: Spec, points: Points, clip: Box | None) -> list[Mark]:
    """Text at points; above, below or beside the marker where the trace says so."""
    n = len(points)
    font = layout["font"] | trace.get("textfont", {})
    r = trace.get("marker", {}).get("size", 6) / 2 if "markers" in trace.get("mode", "") else 0
    r = r / 0.8 + 1 if r else 0
    marks: list[Mark] = []
    colours, sizes = each(font.get("color"), n), each(font["size"], n)
    for at, text, colour, size, where in zip(
        points,
        each(trace.get("text", ""), n),
        colours,
        sizes,
        each(trace.get("textposition", "middle center"), n),
        strict=True,
    ):
        if not np.isfinite(at).all() or not text:
            continue
        up, side = where.split()
        sign, lean = {"top": -1, "middle": 0, "bottom": 1}[up], {"left": -1, "center": 0, "right": 1}[side]
        lines = lines_of(str(text), font | {"color": colour, "size": size})
        tall = (len(lines) - 1) * 1.3 + 1
        top = at[1] + 0.75 * size + sign * r + (sign - 1) * tall * size / 2
        marks += [
            Text(line, at[0] + lean * r, top + i * 1.3 * size, (1 - lean) / 2, clip=clip)
            for i, line in enumerate(lines)
            if line
        ]
    return marks


def bar(trace: Spec, layout: Spec, plots: Plots) -> list[Mark]:
    """Bars from their base, upright or lying; hatched where the pattern says so. Traces beside one another share the room."""
    x, y, where = plot_of(trace, plots)
    lying = trace.get("orientation") == "h"
    along, across = (x, y) if lying else (y, x)
    position = values(trace["y" if lying else "x"])
    length = values(trace["x" if lying else "y"])
    n = min(len(position), len(length))
    if not n:
        return []
    unit = float(np.diff(np.unique(position)).min()) if len(np.unique(position)) > 1 else 1.0
    width = trace.get("width") or unit * (1 - layout.get("bargap", 0.2))
    offset = trace.get("offset", -np.asarray(width) / 2)
    base = values(each(trace.get("base", 0.0), n))
    ends = across.place(position[:n] + offset), across.place(position[:n] + offset + width)
    foot, top = along.place(base), along.place(base + length[:n])
    marker = trace.get("marker", {})
    opacity = trace.get("opacity", 1) * (marker.get("opacity", 1) or 0)
    colours = each(marker.get("color", "#444444"), n)
    pattern = marker.get("pattern", {})
    hatches = each(pattern.get("shape", ""), n)
    line = marker.get("line", {})
    widths, edges = each(line.get("width", 0), n), each(line.get("color"), n)
    marks: list[Mark] = []
    for i in range(n):
        a, b, c, d = ends[0][i], ends[1][i], foot[i], top[i]
        if not np.isfinite([a, b, c, d]).all():
            continue
        if b - a > 2 or a - b > 2:
            a, b = np.round(a), np.round(b)
        (u, v), (p, q) = ((c, d), (a, b)) if lying else ((a, b), (c, d))
        rect = (min(u, v), min(p, q), abs(v - u), abs(q - p))
        paint = colour_of(colours[i], opacity)
        if paint and rect[2] and rect[3]:
            edge = colour_of(edges[i], opacity) if widths[i] else None
            marks.append(Path((box(*rect),), paint, edge, widths[i] or 1, clip=where))
            if hatches[i] == "/":
                marks.append(hatch(rect, colour_of(pattern.get("fgcolor", layout["plot_bgcolor"])), where, pattern))
    return marks


def hatch(rect: Box, colour: Colour | None, where: Box, pattern: Spec) -> Path:
    """Diagonal strokes over a bar, cut at its edges."""
    left, top, width, height = rect
    size = pattern.get("size", 8)
    first, last = math.floor((left + top) / size), math.ceil((left + width + top + height) / size)
    lines = []
    for i in range(first, last + 1):
        total = i * size  # the line x + y = total
        x0, x1 = max(left, total - top - height), min(left + width, total - top)
        if x1 > x0:
            lines.append(Line(np.array([(x0, total - x0), (x1, total - x1)])))
    thick = size * pattern.get("solidity", 0.3) / math.sqrt(2)
    return Path(tuple(lines), None, colour, thick, clip=cut(rect, where))


def cut(a: Box, b: Box) -> Box:
    x, y = max(a[0], b[0]), max(a[1], b[1])
    return (x, y, max(0.0, min(a[0] + a[2], b[0] + b[2]) - x), max(0.0, min(a[1] + a[3], b[1] + b[3]) - y))


def heatmap(trace: Spec, layout: Spec, plots: Plots) -> list[Mark]:
    """Cells as one picture with two pixels a CSS pixel: edges stay sharp, and no seam shows between two cells."""
    x, y, where = plot_of(trace, plots)
    z = np.asarray([[np.nan if v is None else v for v in row] for row in trace["z"]], np.float64)
    if not z.size:
        return []
    marks: list[Mark] = []
    xs = x.place(edges_of(trace, "x", z.shape[1]))
    ys = y.place(edges_of(trace, "y", z.shape[0]))
    left, right = max(where[0], float(np.nanmin(xs))), min(where[0] + where[2], float(np.nanmax(xs)))
    top, bottom = max(where[1], float(np.nanmin(ys))), min(where[1] + where[3], float(np.nanmax(ys)))
    if right > left and bottom > top:
        left, top, right, bottom = (round(v * PIXELS) / PIXELS for v in (left, top, right, bottom))
        across = left + (np.arange(max(1, round((right - left) * PIXELS))) + 0.5) / PIXELS
        down = top + (np.arange(max(1, round((bottom - top) * PIXELS))) + 0.5) / PIXELS
        columns, gap_x = cells(xs, across, trace.get("xgap", 0))
        rows, gap_y = cells(ys, down, trace.get("ygap", 0))
        colours = paint(z, trace)
        pixels = colours[np.clip(rows, 0, None)][:, np.clip(columns, 0, None)]
        pixels[gap_y, :, 3] = 0
        pixels[:, gap_x, 3] = 0
        marks.append(Picture(pixels, (left, top, right - left, bottom - top)))
    if trace.get("showscale", True) is not False:
        marks += colorbar(trace, layout)
    return marks


def edges_of(trace: Spec, letter: str, n: int) -> np.ndarray[Any, Any]:
    """The n + 1 borders of the cells: given, or halfway between the given middles."""
    given = trace.get(letter)
    if given is None:
        start, step = float(trace.get(letter + "0", 0)), float(trace.get("d" + letter, 1))
        return start + step * (np.arange(n + 1) - 0.5)
    at = values(given)
    if len(at) == n + 1:
        return at
    if n == 1:
        return np.array([at[0] - 0.5, at[0] + 0.5])
    middle = (at[1:] + at[:-1]) / 2
    return np.concatenate([[at[0] - (middle[0] - at[0])], middle, [at[-1] + (at[-1] - middle[-1])]])


def cells(edges: np.ndarray[Any, Any], at: np.ndarray[Any, Any], gap: float) -> tuple[Any, Any]:
    """The cell that each pixel lies in, and whether it lies in the gap between two or in none."""
    n = len(edges) - 1
    rising = edges if edges[-1] > edges[0] else edges[::-1]
    cell = np.searchsorted(rising, at, "right") - 1
    outside = (cell < 0) | (cell >= n)
    cell = np.clip(cell, 0, n - 1)
    none = outside | (at - rising[cell] < gap / 2) | (rising[cell + 1] - at <= gap / 2) if gap else outside
    return (cell if edges[-1] > edges[0] else n - 1 - cell), none


def z_range(trace: Spec) -> tuple[float, float]:
    """What the ends of the colour scale stand for: as given, else the smallest and largest value; 0 and 1 without any."""
    known = np.asarray(trace["z"], np.float64)
    known = known[np.isfinite(known)]
    least, most = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    return float(trace.get("zmin", least)), float(trace.get("zmax", most))


def paint(z: np.ndarray[Any, Any], trace: Spec) -> np.ndarray[Any, Any]:
    """The colour of each value (…, 4), uint8; of NaN, none."""
    lo, hi = z_range({"z": z} | trace)
    stops = [float(stop) for stop, _ in trace["colorscale"]]
    colours = np.array([colour_of(colour) or (0, 0, 0, 0.0) for _, colour in trace["colorscale"]], np.float64)
    share = np.clip((z - lo) / ((hi - lo) or 1.0), 0, 1)
    at = np.nan_to_num(share)
    # Two stops in one place are a step: what lies on it belongs above.
    above = np.clip(np.searchsorted(stops, at, "right"), 1, len(stops) - 1)
    low, high = np.array(stops)[above - 1], np.array(stops)[above]
    part = np.clip((at - low) / np.where(high > low, high - low, 1.0), 0, 1)[..., None]
    mixed = colours[above - 1] * (1 - part) + colours[above] * part
    mixed[..., 3] *= 255 * float(trace.get("opacity", 1))
    mixed[~np.isfinite(z), 3] = 0
    return np.asarray(np.round(mixed), np.uint8)


def colorbar(trace: Spec, layout: Spec) -> list[Mark]:
    """The scale of a heatmap, right of the plot."""
    given = trace.get("colorbar", {})
    margin = layout["margin"]
    wide, high = layout["width"] - margin["l"] - margin["r"], layout["height"] - margin["t"] - margin["b"]
    left = margin["l"] + given.get("x", 1.02) * wide + given.get("xpad", 10)
    pad = given.get("ypad", 10)
    length = given.get("len", 1) * high if given.get("lenmode", "fraction") == "fraction" else given["len"]
    top = margin["t"] + high * (1 - given.get("y", 0.5)) - length / 2 + pad
    length -= 2 * pad
    thick = given.get("thickness", 30)
    lo, hi = z_range(trace)
    steps = max(2, round(length * PIXELS))
    ramp = np.linspace(hi, lo, steps)[:, None]
    marks: list[Mark] = [
        Picture(paint(ramp, trace | {"zmin": lo, "zmax": hi, "opacity": 1}), (left, top, thick, length))
    ]
    font = layout["font"] | given.get("tickfont", {})
    scale = Axis((lo, hi), (top + length, top), False, given | {"letter": "y"})
    for px, text in ticks(scale):
        marks += [Text(line, left + thick + 3, px + 0.35 * font["size"]) for line in lines_of(text, font) if line]
    words = given.get("title")
    if isinstance(words, dict) and words.get("text"):
        heading = lines_of(words["text"], font | words.get("font", {}))
        for i, line in enumerate(heading):
            marks.append(Text(line, left, top - 6 - (len(heading) - 1 - i) * 1.3 * font["size"]))
    return marks


DRAWN: dict[str, Callable[[Spec, Spec, Plots], list[Mark]]] = {"scatter": scatter, "bar": bar, "heatmap": heatmap}
