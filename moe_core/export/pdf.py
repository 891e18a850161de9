"""Marks as PDF: lines stay lines and words stay words, in letters that the file carries. No clock, so the bytes repeat.

What is written is the small part of PDF 1.7 (ISO 32000-1) that our marks need. Lengths are CSS pixels, 96 to the inch.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moe_core.export.fonts import face, named, opened, spaced, subset_of, width_of
from moe_core.export.marks import Colour, Line, Mark, Path, Picture, Sheet, Text
from moe_core.export.svg import PX_IN_POINTS


def to_pdf(pages: Sequence[Sheet], facts: Mapping[str, str] | None = None, scale: float = 1.0) -> bytes:
    """One PDF file, a page a sheet."""
    return Document(pages, facts or {}, scale * PX_IN_POINTS).to_bytes()


def n(value: float) -> str:
    text = f"{value:.3f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def string(text: str) -> bytes:
    """A text string of the information dictionary, any characters."""
    clean = "".join(c if c.isprintable() else " " for c in text)
    return b"<" + ("\ufeff" + clean).encode("utf-16-be", "replace").hex().upper().encode() + b">"


class Document:
    """The objects of a file, each written once."""

    def __init__(self, pages: Sequence[Sheet], facts: Mapping[str, str], scale: float) -> None:
        self.objects: list[bytes] = []
        self.fonts: dict[tuple[bool, int], tuple[str, dict[str, int]]] = {}
        self.clear: dict[tuple[float, float], str] = {}
        self.pictures: dict[str, int] = {}
        self.scale = scale
        resources, tree = self.reserve(), self.reserve()
        self.declare_fonts(pages)
        kids = []
        for sheet in pages:
            content = self.stream(b"", zlib.compress(self.content(sheet).encode("ascii"), 9), flate=True)
            size = f"[0 0 {n(sheet.width * scale)} {n(sheet.height * scale)}]"
            kids.append(
                self.add(
                    f"<</Type/Page/Parent {tree} 0 R/MediaBox{size}/Resources {resources} 0 R/Contents {content} 0 R>>".encode()
                )
            )
        self.objects[tree - 1] = (
            f"<</Type/Pages/Count {len(kids)}/Kids[{' '.join(f'{k} 0 R' for k in kids)}]>>".encode()
        )
        self.objects[resources - 1] = self.resources()
        self.root = self.add(f"<</Type/Catalog/Pages {tree} 0 R/Lang(en)>>".encode())
        keys = {"Title": b"/Title", "Subject": b"/Subject", "Software": b"/Producer"}
        info = b"".join(keys[k] + string(v) for k, v in facts.items() if k in keys)
        words = "; ".join(f"{k}: {v}" for k, v in facts.items() if k not in keys)
        self.info = self.add(b"<<" + info + (b"/Keywords" + string(words) if words else b"") + b">>")

    def reserve(self) -> int:
        self.objects.append(b"")
        return len(self.objects)

    def add(self, body: bytes) -> int:
        self.objects.append(body)
        return len(self.objects)

    def stream(self, entries: bytes, data: bytes, flate: bool) -> int:
        head = (
            b"<<" + entries + (b"/Filter/FlateDecode" if flate else b"") + b"/Length " + str(len(data)).encode() + b">>"
        )
        return self.add(head + b"stream\n" + data + b"\nendstream")

    def to_bytes(self) -> bytes:
        out = bytearray(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n")
        places = []
        for number, body in enumerate(self.objects, 1):
            places.append(len(out))
            out += f"{number} 0 obj\n".encode() + body + b"\nendobj\n"
        start = len(out)
        out += f"xref\n0 {len(places) + 1}\n0000000000 65535 f \n".encode()
        out += b"".join(f"{at:010d} 00000 n \n".encode() for at in places)
        out += f"trailer\n<</Size {len(places) + 1}/Root {self.root} 0 R/Info {self.info} 0 R>>\nstartxref\n{start}\n%%EOF\n".encode()
        return bytes(out)

    # Fonts

    def declare_fonts(self, pages: Iterable[Sheet]) -> None:
        """A composite font for each face in use, cut down to the letters of all pages."""
        used: dict[tuple[bool, int], set[str]] = {}
        for sheet in pages:
            for mark in sheet.marks:
                if isinstance(mark, Text):
                    for run in named(mark.runs):
                        used.setdefault((run.mono, run.weight), set()).update(run.text)
        self.font_objects: dict[str, int] = {}
        for i, ((mono, weight), letters) in enumerate(sorted(used.items())):
            name = f"F{i}"
            data = subset_of(mono, weight, "".join(sorted(letters)))
            font = opened(data)
            cmap = font.getBestCmap()
            glyphs = {c: font.getGlyphID(cmap[ord(c)]) for c in sorted(letters)}
            self.fonts[mono, weight] = (name, glyphs)
            self.font_objects[name] = self.font(data, font, glyphs, mono, weight, i)

    def font(self, data: bytes, font: Any, glyphs: dict[str, int], mono: bool, weight: int, index: int) -> int:
        em = font["head"].unitsPerEm
        base = f"{chr(65 + index)}OESCP+Source{'Code' if mono else 'Sans'}-{weight}"
        file = self.stream(f"/Length1 {len(data)}".encode(), zlib.compress(data, 9), flate=True)
        head, hhea = font["head"], font["hhea"]
        bounds = " ".join(n(v * 1000 / em) for v in (head.xMin, head.yMin, head.xMax, head.yMax))
        describe = self.add(
            f"<</Type/FontDescriptor/FontName/{base}/Flags {5 if mono else 4}/FontBBox[{bounds}]/ItalicAngle 0"
            f"/Ascent {n(hhea.ascent * 1000 / em)}/Descent {n(hhea.descent * 1000 / em)}/CapHeight 660/StemV {80 if weight < 600 else 120}"
            f"/FontFile2 {file} 0 R>>".encode()
        )
        look = face(mono, weight)
        widths = " ".join(
            f"{gid}[{n(1000 * look.advance(c))}]" for c, gid in sorted(glyphs.items(), key=lambda one: one[1])
        )
        child = self.add(
            f"<</Type/Font/Subtype/CIDFontType2/BaseFont/{base}/CIDSystemInfo<</Registry(Adobe)/Ordering(Identity)/Supplement 0>>"
            f"/FontDescriptor {describe} 0 R/CIDToGIDMap/Identity/DW 500/W[{widths}]>>".encode()
        )
        pairs = [f"<{gid:04X}><{c.encode('utf-16-be').hex().upper()}>" for c, gid in glyphs.items()]
        parts = [pairs[i : i + 100] for i in range(0, len(pairs), 100)]
        table = "\n".join(f"{len(part)} beginbfchar\n" + "\n".join(part) + "\nendbfchar" for part in parts)
        cmap = (
            "/CIDInit/ProcSet findresource begin\n12 dict begin\nbegincmap\n/CIDSystemInfo<</Registry(Adobe)/Ordering(UCS)/Supplement 0>>def\n"
            "/CMapName/Adobe-Identity-UCS def\n/CMapType 2 def\n1 begincodespacerange\n<0000><FFFF>\nendcodespacerange\n"
            f"{table}\nendcmap\nCMapName currentdict/CMap defineresource pop\nend\nend"
        )
        unicode = self.stream(b"", zlib.compress(cmap.encode("ascii"), 9), flate=True)
        return self.add(
            f"<</Type/Font/Subtype/Type0/BaseFont/{base}/Encoding/Identity-H/DescendantFonts[{child} 0 R]/ToUnicode {unicode} 0 R>>".encode()
        )

    def resources(self) -> bytes:
        fonts = "".join(f"/{name} {number} 0 R" for name, number in self.font_objects.items())
        states = "".join(f"/{name}<</ca {n(fill)}/CA {n(stroke)}>>" for (fill, stroke), name in self.clear.items())
        pictures = "".join(f"/{name} {number} 0 R" for name, number in self.pictures.items())
        return f"<</Font<<{fonts}>>/ExtGState<<{states}>>/XObject<<{pictures}>>>>".encode()

    # Content

    def content(self, sheet: Sheet) -> str:
        """The sheet's drawing, in px from the top: the first line turns the page over."""
        s = self.scale
        turn = f"{n(s)} 0 0 {n(-s)} 0 {n(sheet.height * s)} cm"
        return "\n".join([turn, *(f"q\n{self.mark(mark)}\nQ" for mark in sheet.marks)])

    def mark(self, mark: Mark) -> str:
        if isinstance(mark, Picture):
            return self.picture(mark)
        clip = ""
        if mark.clip:
            clip = "{} {} {} {} re W n\n".format(*map(n, mark.clip))
        return clip + (self.text(mark) if isinstance(mark, Text) else self.path(mark))

    def path(self, mark: Path) -> str:
        state = self.state(mark.fill, mark.stroke)
        if mark.fill:
            state += f"{rgb(mark.fill)} rg\n"
        if mark.stroke:
            state += f"{rgb(mark.stroke)} RG {n(mark.width)} w 2 M\n"
            if mark.dash:
                state += f"[{' '.join(map(n, mark.dash))}] 0 d\n"
        act = "B" if mark.fill and mark.stroke else "f" if mark.fill else "S" if mark.stroke else "n"
        return state + "\n".join(map(commands, mark.lines)) + f"\n{act}"

    def state(self, fill: Colour | None, stroke: Colour | None) -> str:
        clear = (fill[3] if fill else 1.0, stroke[3] if stroke else 1.0)
        if clear == (1.0, 1.0):
            return ""
        return f"/{self.clear.setdefault(clear, f'G{len(self.clear)}')} gs\n"

    def text(self, mark: Text) -> str:
        x, y = mark.x, mark.y
        move = f"1 0 0 1 {n(x)} {n(y)} cm\n"
        if mark.angle == -90:
            move += "0 -1 1 0 0 0 cm\n"
        elif mark.angle == 90:
            move += "0 1 -1 0 0 0 cm\n"
        at = -mark.anchor * width_of(mark.runs)
        operators = [move]
        for run in named(mark.runs):
            name, glyphs = self.fonts[run.mono, run.weight]
            look, code = face(run.mono, run.weight), ""
            for letter, width in spaced(run):
                more = look.advance(letter) - width / run.size  # in thousandths of the type's size, to the left
                code += f"{glyphs[letter]:04X}" + (f">{n(1000 * more)}<" if abs(more) > 1e-6 else "")
            operators.append(
                f"{self.state(run.colour, None)}BT /{name} {n(run.size)} Tf {rgb(run.colour)} rg 1 0 0 -1 {n(at)} 0 Tm [<{code}>] TJ ET"
            )
            at += width_of((run,))
        return "\n".join(operators)

    def picture(self, mark: Picture) -> str:
        rows, columns, _ = mark.pixels.shape
        common = f"/Type/XObject/Subtype/Image/Width {columns}/Height {rows}/BitsPerComponent 8"
        mask = ""
        if (mark.pixels[..., 3] < 255).any():
            alpha = zlib.compress(mark.pixels[..., 3].tobytes(), 9)
            mask = f"/SMask {self.stream((common + '/ColorSpace/DeviceGray').encode(), alpha, flate=True)} 0 R"
        data = zlib.compress(mark.pixels[..., :3].tobytes(), 9)
        name = f"I{len(self.pictures)}"
        self.pictures[name] = self.stream((common + "/ColorSpace/DeviceRGB" + mask).encode(), data, flate=True)
        x, y, width, height = mark.box
        return f"{n(width)} 0 0 {n(-height)} {n(x)} {n(y + height)} cm\n/{name} Do"


def rgb(colour: Colour) -> str:
    return " ".join(n(part / 255) for part in colour[:3])


def commands(line: Line) -> str:
    points: list[Any] = line.points.tolist()
    operators = [f"{n(points[0][0])} {n(points[0][1])} m"]
    if line.curve:
        operators += [
            " ".join(f"{n(x)} {n(y)}" for x, y in points[i : i + 3]) + " c" for i in range(1, len(points) - 2, 3)
        ]
    else:
        operators += [f"{n(x)} {n(y)} l" for x, y in points[1:]]
    return " ".join(operators) + (" h" if line.closed else "")
