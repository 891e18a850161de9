"""Marks as SVG, and that SVG as PNG."""

import base64
import struct
import zlib
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from moe_core.export.fonts import face, named, spaced, subset_of, width_of
from moe_core.export.marks import Box, Colour, Line, Mark, Path, Picture, Sheet, Text
from moe_core.export.sizes import PX

PX_IN_POINTS = PX["px"] / PX["pt"]
FAMILIES = {False: ("Source Sans", "sans-serif"), True: ("Source Code", "monospace")}


def to_svg(sheet: Sheet, facts: Mapping[str, str] | None = None, scale: float = 1.0) -> str:
    """One SVG file. Words are words, in letters that the file carries; facts go into its metadata. Its sides are in points, as the
    PDF's are: a side without a unit is a pixel of 1/96 in to one program and of 1/72 in to another."""
    drawn = Writer(outlined=False)
    body = "".join(map(drawn.mark, sheet.marks))
    facts = facts or {}
    title = escape(printable(facts.get("Title", "")))
    descriptions = "".join(f"<desc>{escape(printable(f'{name}: {value}'))}</desc>" for name, value in facts.items())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{points(sheet.width * scale)}" height="{points(sheet.height * scale)}" '
        f'viewBox="0 0 {n(sheet.width)} {n(sheet.height)}" role="img">'
        f"<title>{title}</title><metadata>{descriptions}</metadata>"
        f"<defs><style>{drawn.faces()}</style>{drawn.defined()}</defs>{body}</svg>\n"
    )


def to_png(sheet: Sheet, facts: Mapping[str, str] | None = None, scale: float = 2.0, zoom: float = 1.0) -> bytes:
    """The same picture in pixels, `scale` to a CSS px of the figure, which is `zoom` times as large as the sheet. Words are drawn from their outlines, so no font of the machine is asked."""
    import resvg_py

    drawn = Writer(outlined=True)
    body = "".join(map(drawn.mark, sheet.marks))
    pixels = (round(sheet.width * scale * zoom), round(sheet.height * scale * zoom))
    text = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{pixels[0]}" height="{pixels[1]}" '
        f'viewBox="0 0 {n(sheet.width)} {n(sheet.height)}" preserveAspectRatio="none">'
        f"<defs>{drawn.defined()}</defs>{body}</svg>"
    )
    data = bytes(resvg_py.svg_to_bytes(svg_string=text, width=pixels[0], height=pixels[1], skip_system_fonts=True))
    return with_facts(data, scale, {**facts, "Scale": f"{scale:g}"} if facts else {})


def points(px: float) -> str:
    """A length in points, to a thousandth."""
    return f"{PX_IN_POINTS * px:.3f}".rstrip("0").rstrip(".") + "pt"


def with_facts(data: bytes, scale: float, facts: Mapping[str, str]) -> bytes:
    """A PNG with the number of its pixels a metre, and its facts as iTXt chunks, right after the header."""
    dense = round(scale * PX["in"] / 0.0254)
    chunks = chunk(b"pHYs", struct.pack(">IIB", dense, dense, 1)) + b"".join(
        chunk(b"iTXt", name.encode("latin-1") + b"\0\0\0\0\0" + printable(value).encode())
        for name, value in facts.items()
    )
    return data[:33] + chunks + data[33:]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(pixels: np.ndarray[Any, Any]) -> bytes:
    """Pixels (rows, columns, 4), uint8, as a PNG."""
    rows, columns, _ = pixels.shape
    raw = np.concatenate([np.zeros((rows, 1), np.uint8), pixels.reshape(rows, -1)], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", columns, rows, 8, 6, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(raw, 9)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def printable(text: str) -> str:
    """What XML and a PNG may hold: no control characters, no halves of surrogates."""
    return "".join(c if c.isprintable() or c in "\n\t" else " " for c in text)


def n(value: float) -> str:
    """A number, to a hundredth of a pixel."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def hexed(colour: Colour) -> str:
    return "#" + "".join(f"{part:02x}" for part in colour[:3])


class Writer:
    """Gathers what the marks need once: clips, and the letters of each face."""

    def __init__(self, outlined: bool) -> None:
        self.outlined = outlined
        self.clips: dict[Box, str] = {}
        self.letters: dict[tuple[bool, int], set[str]] = {}

    def mark(self, mark: Mark) -> str:
        if isinstance(mark, Path):
            return self.path(mark)
        return self.text(mark) if isinstance(mark, Text) else self.picture(mark)

    def path(self, mark: Path) -> str:
        style = f' fill="{hexed(mark.fill)}"' if mark.fill else ' fill="none"'
        if mark.fill and mark.fill[3] < 1:
            style += f' fill-opacity="{n(mark.fill[3])}"'
        if mark.stroke:
            style += f' stroke="{hexed(mark.stroke)}" stroke-width="{n(mark.width)}"'
            if mark.stroke[3] < 1:
                style += f' stroke-opacity="{n(mark.stroke[3])}"'
            if mark.dash:
                style += f' stroke-dasharray="{",".join(map(n, mark.dash))}"'
            if not mark.lines[0].closed:
                style += ' stroke-miterlimit="2"'
        if mark.crisp:
            style += ' shape-rendering="crispEdges"'
        return f'<path d="{"".join(map(commands, mark.lines))}"{style}{self.clip(mark.clip)}/>'

    def clip(self, box: Box | None) -> str:
        if box is None:
            return ""
        name = self.clips.setdefault(box, f"c{len(self.clips)}")
        return f' clip-path="url(#{name})"'

    def text(self, mark: Text) -> str:
        runs = named(mark.runs)
        turn = f' transform="rotate({n(mark.angle)} {n(mark.x)} {n(mark.y)})"' if mark.angle else ""
        if self.outlined:
            return self.letters_of(mark, turn)
        for run in runs:
            self.letters.setdefault((run.mono, run.weight), set()).update(run.text)
        spans = []
        for run in runs:
            own, other = FAMILIES[run.mono]
            clear = f' fill-opacity="{n(run.colour[3])}"' if run.colour[3] < 1 else ""
            spans.append(
                f'<tspan font-family="\'{own}\', {other}" font-size="{n(run.size)}" font-weight="{run.weight}" '
                f'fill="{hexed(run.colour)}"{clear}>{escape(run.text)}</tspan>'
            )
        anchor = {0.5: ' text-anchor="middle"', 1.0: ' text-anchor="end"'}.get(mark.anchor, "")
        place = f'x="{n(mark.x)}" y="{n(mark.y)}"{anchor}{turn}{self.clip(mark.clip)}'
        return f'<text {place} xml:space="preserve">{"".join(spans)}</text>'

    def letters_of(self, mark: Text, turn: str) -> str:
        """The words as outlines, one path a run."""
        x = mark.x - mark.anchor * width_of(mark.runs)
        paths = []
        for run in named(mark.runs):
            look = face(run.mono, run.weight)
            parts = []
            for letter, width in spaced(run):
                parts += [
                    commands(line._replace(points=line.points * run.size + (x, mark.y)))
                    for line in look.outline(letter)
                ]
                x += width
            clear = f' fill-opacity="{n(run.colour[3])}"' if run.colour[3] < 1 else ""
            if parts:
                paths.append(f'<path d="{"".join(parts)}" fill="{hexed(run.colour)}"{clear}/>')
        return f"<g{turn}{self.clip(mark.clip)}>{''.join(paths)}</g>"

    def picture(self, mark: Picture) -> str:
        x, y, width, height = mark.box
        data = base64.b64encode(png_of(mark.pixels)).decode()
        place = f'x="{n(x)}" y="{n(y)}" width="{n(width)}" height="{n(height)}" preserveAspectRatio="none"'
        sharp = 'image-rendering="optimizeSpeed" style="image-rendering:pixelated"'
        return f'<image {place} {sharp} href="data:image/png;base64,{data}"/>'

    def defined(self) -> str:
        return "".join(
            f'<clipPath id="{name}"><rect x="{n(b[0])}" y="{n(b[1])}" width="{n(b[2])}" height="{n(b[3])}"/></clipPath>'
            for b, name in self.clips.items()
        )

    def faces(self) -> str:
        """The fonts, cut down to the letters in use."""
        rules = []
        for (mono, weight), letters in sorted(self.letters.items()):
            data = base64.b64encode(subset_of(mono, weight, "".join(sorted(letters)), "woff2")).decode()
            rules.append(
                f"@font-face{{font-family:'{FAMILIES[mono][0]}';font-weight:{weight};"
                f"src:url(data:font/woff2;base64,{data}) format('woff2')}}"
            )
        return "".join(rules)


def commands(line: Line) -> str:
    """A path's d attribute."""
    points = [(n(x), n(y)) for x, y in line.points.tolist()]
    start = f"M{points[0][0]} {points[0][1]}"
    letter = "C" if line.curve else "L"
    rest = " ".join(f"{x} {y}" for x, y in points[1:])
    return start + (letter + rest if rest else "") + ("Z" if line.closed else "")
