"""The typefaces of the page: Source Sans 3 and Source Code Pro, variable fonts in the folder `fonts`, under their own licence.

They are the very files that streamlit serves to the page. Words in PNG are drawn as these fonts' outlines, and PDF and SVG
carry the letters that they use, so a figure looks the same on a machine that has neither font, and has the same bytes.
fontTools is imported where it is used: a sweep writes its table as CSV by this package, and needs none of it.
"""

import io
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from moe_core.export.marks import Line, Run

FOLDER = Path(__file__).parent / "fonts"
FILES = {False: FOLDER / "SourceSans3VF-Upright.woff2", True: FOLDER / "SourceCodeVF-Upright.woff2"}
# Characters that neither font has, and what stands for them in both.
INSTEAD = {"⏎": "¶", "␍": "¶", "⇥": "→"}
UNKNOWN = 2.0  # letters of the monospaced font whose width the number of a letter of another script, such as 732B, has with its space
ASCENT, DESCENT = 1.0, 0.326  # of both fonts' line, in em, as a browser takes it from Source Sans


class Face:
    """One font at one weight, in units of its em."""

    def __init__(self, mono: bool, weight: int) -> None:
        self.font = load(mono)
        self.cmap = self.font.getBestCmap()
        self.em = self.font["head"].unitsPerEm
        self.glyphs = self.font.getGlyphSet(location={"wght": float(weight)})
        self.widths: dict[str, float] = {}
        self.kerns: dict[tuple[str, str], float] = {}
        self.pairs, self.moves = pairs_of(mono), moves_of(mono, weight)
        self.outlines: dict[str, tuple[Line, ...]] = {}

    def advance(self, letter: str) -> float:
        if letter not in self.widths:
            self.widths[letter] = self.glyphs[self.cmap[ord(letter)]].width / self.em
        return self.widths[letter]

    def kern(self, left: str, right: str) -> float:
        """By how much the second letter stands further from the first than its width, in em; of most pairs 0."""
        if (left, right) not in self.kerns:
            names = self.cmap[ord(left)], self.cmap[ord(right)]
            value = next((pair for table in self.pairs if (pair := pair_in(table, *names)) is not False), None)
            device = getattr(value, "XAdvDevice", None)
            moved = self.moves[(device.StartSize << 16) + device.EndSize] if device else 0
            self.kerns[left, right] = (getattr(value, "XAdvance", 0) + moved) / self.em
        return self.kerns[left, right]

    def outline(self, letter: str) -> tuple[Line, ...]:
        """The letter's contours, y downward, its baseline's start at (0, 0)."""
        if letter not in self.outlines:
            from fontTools.pens.recordingPen import DecomposingRecordingPen

            pen = DecomposingRecordingPen(self.glyphs)
            self.glyphs[self.cmap[ord(letter)]].draw(pen)
            self.outlines[letter] = tuple(contours(pen.value, self.em))
        return self.outlines[letter]


def pairs_of(mono: bool) -> list[Any]:
    """The tables of the font's kerning, in the order in which they are asked (OpenType, GPOS, pair adjustment)."""
    gpos = load(mono)["GPOS"].table
    lookups = {
        i for one in gpos.FeatureList.FeatureRecord if one.FeatureTag == "kern" for i in one.Feature.LookupListIndex
    }
    tables = [table for i in sorted(lookups) for table in gpos.LookupList.Lookup[i].SubTable]
    return [getattr(table, "ExtSubTable", table) for table in tables]


def pair_in(table: Any, left: str, right: str) -> Any:
    """The adjustment of a pair of glyphs in one table, None for none; False where the next table is to be asked."""
    if left not in table.Coverage.glyphs:
        return False
    if table.Format == 1:
        records = table.PairSet[table.Coverage.glyphs.index(left)].PairValueRecord
        return next((record.Value1 for record in records if record.SecondGlyph == right), False)
    first = table.Class1Record[table.ClassDef1.classDefs.get(left, 0)]
    return first.Class2Record[table.ClassDef2.classDefs.get(right, 0)].Value1


def moves_of(mono: bool, weight: int) -> Any:
    """By how much the kerning of the variable font changes at a weight, by the index of a change."""
    from fontTools.varLib.models import normalizeLocation, piecewiseLinearMap
    from fontTools.varLib.varStore import VarStoreInstancer

    font = load(mono)
    axes = font["fvar"].axes
    at = normalizeLocation(
        {"wght": weight}, {axis.axisTag: (axis.minValue, axis.defaultValue, axis.maxValue) for axis in axes}
    )
    if "avar" in font:
        at = {tag: piecewiseLinearMap(value, font["avar"].segments[tag]) for tag, value in at.items()}
    return VarStoreInstancer(font["GDEF"].table.VarStore, axes, at)


@lru_cache(None)
def load(mono: bool) -> Any:
    """The variable font."""
    return opened(FILES[mono].read_bytes(), shared=True)


def opened(data: bytes, shared: bool = False) -> Any:
    """A font of fontTools, from the bytes of its file. shared: several threads read it; else of its kerning only what is
    asked for is read, when it is asked for, which no two threads may do at once."""
    from fontTools.ttLib import TTFont

    # With the time in the file, not that of reading it: the clock must not reach an export.
    return TTFont(io.BytesIO(data), recalcTimestamp=False, lazy=None if shared else True)


@lru_cache(None)
def face(mono: bool, weight: int) -> Face:
    return Face(mono, weight)


def shown(run: Run) -> list[tuple[str, bool]]:
    """How each letter of a run is drawn, and whether the font has it. A letter of another script is its number in Unicode, as 732B
    for 猫; a character that only directs a text is nothing."""
    known = load(run.mono).getBestCmap()
    parts = []
    for letter in run.text:
        letter = INSTEAD.get(letter, letter if letter.isprintable() else " " * (unicodedata.category(letter) != "Cf"))
        there = not letter or ord(letter) in known
        parts.append((letter, True) if there else (f"{ord(letter):04X} ", False))
    return parts


def named(runs: Iterable[Run]) -> tuple[Run, ...]:
    """The runs in characters that the fonts have, as shown() says; numbers in small type."""
    parts: list[Run] = []
    for run in runs:
        for there, group in groupby(shown(run), lambda part: part[1]):
            words = [text for text, _ in group]
            if there:
                parts.append(run._replace(text="".join(words)))
            else:
                parts += [run._replace(text=text, size=UNKNOWN / len(text) * run.size) for text in words]
    return tuple(parts)


def measured(run: Run) -> list[tuple[float, float]]:
    """Of each letter of a run, in px: its own width, and the distance to the next, which the kerning of the two changes."""
    look, parts = face(run.mono, run.weight), shown(run)
    wide = [run.size * (1.0 if there else UNKNOWN / len(text)) * sum(map(look.advance, text)) for text, there in parts]
    kerns = [
        run.size * look.kern(a, b) if not run.mono and a and b and there and also else 0.0
        for (a, there), (b, also) in pairwise(parts)
    ]
    return [(own, own + kern) for own, kern in zip(wide, [*kerns, 0.0], strict=False)]


def spaced(run: Run) -> list[tuple[str, float]]:
    """The letters of a run out of named(), each with the distance to the next in px: its width, and the kerning of the two."""
    look = face(run.mono, run.weight)
    kerns = [0.0 if run.mono else look.kern(a, b) for a, b in pairwise(run.text)]
    return [(c, run.size * (look.advance(c) + kern)) for c, kern in zip(run.text, [*kerns, 0.0], strict=False)]


def width_of(runs: Iterable[Run]) -> float:
    """Width of a line of text in px."""
    return sum(width for run in named(runs) for _, width in spaced(run))


def contours(commands: list[Any], em: int) -> list[Line]:
    """A pen's record as closed curves; straight lines and quadratic curves become cubic ones."""
    lines: list[Line] = []
    points: list[tuple[float, float]] = []

    def cubic(a: Any, b: Any, c: Any) -> None:
        points.extend((a, b, c))

    for name, given in commands:
        if name == "moveTo":
            points = [given[0]]
        elif name == "lineTo":
            cubic(points[-1], given[0], given[0])
        elif name == "curveTo":
            cubic(*given)
        elif name == "qCurveTo":
            if given[-1] is None:  # a contour without a point on the curve
                given = (*given[:-1], mid(given[-2], given[0]))
                points = [given[-1]]
            for i, off in enumerate(given[:-1]):
                end = given[-1] if i == len(given) - 2 else mid(off, given[i + 1])
                start = points[-1]
                cubic(toward(start, off), toward(end, off), end)
            if len(given) == 1:
                cubic(points[-1], given[0], given[0])
        elif points:
            lines.append(Line(np.array(points, np.float64) * (1 / em, -1 / em), closed=True, curve=True))
            points = []
    return lines


def mid(a: Any, b: Any) -> tuple[float, float]:
    return ((a[0] + b[0]) / 2, (a[1] + b[1]) / 2)


def toward(a: Any, b: Any) -> tuple[float, float]:
    """Two thirds of the way: the control point of the cubic that draws a quadratic curve."""
    return (a[0] + 2 / 3 * (b[0] - a[0]), a[1] + 2 / 3 * (b[1] - a[1]))


@lru_cache(512)
def subset_of(mono: bool, weight: int, letters: str, flavor: str | None = None) -> bytes:
    """A font file with these letters only, at one weight: TrueType, or woff2, which knows how its letters are kerned."""
    usual = set(letters) <= USUAL
    font = opened(still(mono, weight, "".join(sorted(USUAL)) if usual else letters))
    if flavor is None:  # a reader of PDF does not kern: its letters are set out by us
        del font["GPOS"]
    if usual:
        cut_down(font, letters)
    font.flavor = flavor
    return saved(font)


# What nearly every figure is written in: cutting these down is quick, cutting the whole font down is not.
USUAL = {*map(chr, range(32, 127)), *"–—…·“”‘’×÷→−■□▾▼●⅛¼½¶§°±²≤≥"}


@lru_cache(16)
def still(mono: bool, weight: int, letters: str) -> bytes:
    """The font at one weight, with no more than these letters, as a file."""
    from fontTools.varLib import instancer

    font = opened(fewer(mono, letters))
    return saved(instancer.instantiateVariableFont(font, {"wght": float(weight)}, inplace=True))


@lru_cache(4)
def fewer(mono: bool, letters: str) -> bytes:
    """The variable font with no more than these letters, as a file; not packed as woff2, since it is read again and again."""
    font = opened(FILES[mono].read_bytes())
    for unused in ("GSUB", "STAT", "DSIG", "meta", "MVAR"):
        if unused in font:
            del font[unused]
    known = font.getBestCmap()
    cut_down(font, "".join(c for c in letters if ord(c) in known))
    font.flavor = None
    return saved(font)


def saved(font: Any) -> bytes:
    file = io.BytesIO()
    font.save(file)
    return file.getvalue()


def cut_down(font: Any, letters: str) -> None:
    """Leave only these letters in a font, with their kerning."""
    from fontTools import subset

    options = subset.Options()
    options.layout_features = ["kern"]
    options.name_IDs = [1, 2, 6]
    options.notdef_outline = True
    options.recalc_timestamp = False
    worker = subset.Subsetter(options)
    worker.populate(text=letters)
    worker.subset(font)
