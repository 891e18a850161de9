"""What a figure comes down to: paths, words and pictures at exact places. One list of marks is drawn as SVG, PNG or PDF.

Lengths are CSS pixels from the top left corner. A colour is (r, g, b, alpha), the first three from 0 to 255, alpha from
0 to 1.
"""

import html
import re
from typing import Any, NamedTuple

import numpy as np

Colour = tuple[int, int, int, float]
Box = tuple[float, float, float, float]  # x, y, width, height
Points = np.ndarray[Any, Any]  # (n, 2)

NAMES = {"white": (255, 255, 255, 1.0), "black": (0, 0, 0, 1.0), "transparent": (0, 0, 0, 0.0)}
# A circle of radius 1 from four cubic curves, first point first, then three points a curve.
_K = 0.5522847498
CIRCLE = np.array(
    [(1, 0), (1, _K), (_K, 1), (0, 1), (-_K, 1), (-1, _K), (-1, 0), (-1, -_K), (-_K, -1), (0, -1), (_K, -1), (1, -_K), (1, 0)]
)  # fmt: skip


class Line(NamedTuple):
    """Part of a path. points (n, 2); with `curve` the first is a start and each three after it a cubic curve."""

    points: Points
    closed: bool = False
    curve: bool = False


class Path(NamedTuple):
    """Filled, stroked, or both; `crisp` asks for edges on whole pixels, `clip` for nothing outside a box."""

    lines: tuple[Line, ...]
    fill: Colour | None = None
    stroke: Colour | None = None
    width: float = 1.0
    dash: tuple[float, ...] = ()
    clip: Box | None = None
    crisp: bool = False


class Run(NamedTuple):
    """Words of one look within a line of text."""

    text: str
    colour: Colour
    size: float
    weight: int
    mono: bool


class Text(NamedTuple):
    """A line of text. x, y: where its baseline starts, is halved or ends, by `anchor` 0, 0.5 or 1; angle in degrees, clockwise."""

    runs: tuple[Run, ...]
    x: float
    y: float
    anchor: float = 0.0
    angle: float = 0.0
    clip: Box | None = None


class Picture(NamedTuple):
    """Pixels (rows, columns, 4), uint8, stretched over a box without blending."""

    pixels: np.ndarray[Any, Any]
    box: Box


Mark = Path | Text | Picture


class Sheet(NamedTuple):
    """A page: its size and its marks in drawing order."""

    width: float
    height: float
    marks: tuple[Mark, ...]


def colour_of(text: Any, opacity: float = 1.0) -> Colour | None:
    """A CSS colour as figures write it; None for nothing to draw. ValueError for another."""
    if text is None or opacity <= 0:
        return None
    text = str(text).strip().lower()
    if text in NAMES:
        r, g, b, a = NAMES[text]
    elif re.fullmatch(r"#[0-9a-f]{6}", text):
        r, g, b, a = *(int(text[i : i + 2], 16) for i in (1, 3, 5)), 1.0
    elif match := re.fullmatch(r"rgba?\(([^)]*)\)", text):
        parts = [float(part) for part in match.group(1).split(",")]
        r, g, b, a = *(round(part) for part in parts[:3]), parts[3] if len(parts) > 3 else 1.0
    else:
        raise ValueError(f"a colour is #RRGGBB, rgb(…) or rgba(…), got {text!r}")
    return (r, g, b, round(a * opacity, 4)) if a * opacity > 0 else None


TAG = re.compile(r"<(/?)(b|i|br|span|sup|sub)\b([^>]*?)/?>", re.IGNORECASE)


def lines_of(text: str, font: dict[str, Any]) -> list[tuple[Run, ...]]:
    """The lines of a plotly label, its few tags read and its entities turned into the characters that they name.

    font: family, size, color and perhaps weight, as in a spec.
    """
    weight = {"bold": 700, "normal": 400}.get(str(font.get("weight")), font.get("weight") or 400)
    look = (colour_of(font.get("color", "#000000")), float(font["size"]), int(weight))
    mono = is_mono(font.get("family", ""))
    open_tags = [look]
    lines: list[list[Run]] = [[]]

    def add(words: str) -> None:
        colour, size, weight = open_tags[-1]
        if words and colour:
            lines[-1].append(Run(html.unescape(words), colour, size, weight, mono))

    at = 0
    for tag in TAG.finditer(text):
        add(text[at : tag.start()])
        at = tag.end()
        closing, name = tag.group(1), tag.group(2).lower()
        if name == "br":
            lines.append([])
        elif closing:
            if len(open_tags) > 1:
                open_tags.pop()
        else:
            open_tags.append(styled(open_tags[-1], name, tag.group(3)))
    add(text[at:])
    return [tuple(line) for line in lines]


def styled(look: tuple[Any, float, int], name: str, attributes: str) -> tuple[Any, float, int]:
    colour, size, weight = look
    if name == "b":
        weight = 700
    if name in ("sup", "sub"):
        size *= 0.7
    if match := re.search(r"color:\s*([^;\"']+)", attributes):
        colour = colour_of(match.group(1))
    if match := re.search(r"font-size:\s*([\d.]+)px", attributes):
        size = float(match.group(1))
    if match := re.search(r"font-weight:\s*(\d+)", attributes):
        weight = int(match.group(1))
    return colour, size, weight


def is_mono(family: str) -> bool:
    return "mono" in str(family).split(",")[-1]


def box(x: float, y: float, width: float, height: float) -> Line:
    """A rectangle as a closed line."""
    return Line(np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height)]), closed=True)


def circle(x: float, y: float, radius: float) -> Line:
    return Line(CIRCLE * radius + (x, y), closed=True, curve=True)


def moved(mark: Mark, dx: float, dy: float) -> Mark:
    """The mark elsewhere."""
    if isinstance(mark, Picture):
        x, y, w, h = mark.box
        return mark._replace(box=(x + dx, y + dy, w, h))
    clip = mark.clip and (mark.clip[0] + dx, mark.clip[1] + dy, mark.clip[2], mark.clip[3])
    if isinstance(mark, Text):
        return mark._replace(x=mark.x + dx, y=mark.y + dy, clip=clip)
    return mark._replace(
        lines=tuple(line._replace(points=np.add(line.points, (dx, dy))) for line in mark.lines), clip=clip
    )
