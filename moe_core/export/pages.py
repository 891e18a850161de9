"""Pages of paper, A4: words, tables and figures fill them from the top, and what does not fit begins the next one."""

from typing import NamedTuple

import numpy as np

from moe_core.export.fonts import measured, width_of
from moe_core.export.marks import Line, Mark, Run, Sheet, Text, colour_of, moved
from moe_core.export.marks import Path as Stroke
from moe_core.export.svg import printable
from moe_core.figures.theme import LIGHT

WIDTH, HEIGHT, MARGIN = 794, 1123, 57  # A4 in CSS px, and 15 mm
WIDE = WIDTH - 2 * MARGIN


class Rows(NamedTuple):
    """A table: its heading row, and rows of words."""

    heading: tuple[str, ...]
    rows: list[tuple[str, ...]]


class Paper:
    """Pages that fill from the top; what does not fit begins the next one."""

    def __init__(self, foot: str) -> None:
        self.foot = foot
        self.sheets: list[list[Mark]] = [[]]
        self.y = float(MARGIN)

    def room(self, height: float) -> None:
        if self.y + height > HEIGHT - MARGIN and self.sheets[-1]:
            self.sheets.append([])
            self.y = float(MARGIN)

    def put(
        self,
        text: str,
        x: float,
        size: float,
        weight: int = 400,
        colour: str = LIGHT.ink,
        mono: bool = False,
        y: float | None = None,
    ) -> None:
        run = Run(printable(text), colour_of(colour) or (0, 0, 0, 1.0), size, weight, mono)
        self.sheets[-1].append(Text((run,), x, self.y if y is None else y))

    def words(self, text: str, size: float, weight: int, colour: str = LIGHT.ink) -> None:
        for line in wrapped(text, size, WIDE, weight=weight):
            self.room(1.4 * size)
            self.y += 1.2 * size
            self.put(line, MARGIN, size, weight, colour)
            self.y += 0.2 * size

    def heading(self, text: str) -> None:
        self.room(90)  # a heading keeps the first lines of what follows
        self.y += 18
        self.words(text, 16, 600)
        self.y += 4

    def table(self, table: Rows) -> None:
        if not table.rows:
            self.words("none", 12, 400, LIGHT.ink2)
            return
        widths = column_widths([table.heading, *table.rows], 12)
        head = [(table.heading, 600, LIGHT.ink2)] if any(table.heading) else []
        for row, weight, colour in [*head, *((row, 400, LIGHT.ink) for row in table.rows)]:
            cells = [wrapped(text, 12, width - 10, weight=weight) for text, width in zip(row, widths, strict=True)]
            self.row(cells, widths, weight, colour)

    def row(self, cells: list[list[str]], widths: list[float], weight: int, colour: str) -> None:
        """One row, broken over pages where it is taller than one."""
        most = int((HEIGHT - 2 * MARGIN) / 16) - 2
        while any(cells):
            part, cells = [lines[:most] for lines in cells], [lines[most:] for lines in cells]
            height = 16 * max(map(len, part)) + 6
            self.room(height)
            x = float(MARGIN)
            for lines, width in zip(part, widths, strict=True):
                for i, line in enumerate(lines):
                    self.put(line, x, 12, weight, colour, y=self.y + 14 + 16 * i)
                x += width
            self.y += height
            ends = np.array([(MARGIN, self.y), (WIDTH - MARGIN, self.y)])
            self.sheets[-1].append(Stroke((Line(ends),), stroke=colour_of(LIGHT.rule)))

    def quote(self, text: str) -> None:
        self.y += 8
        for paragraph in text.splitlines():
            for line in wrapped(paragraph.expandtabs(4), 11, WIDE - 12, mono=True):
                self.room(15)
                self.y += 15
                self.put(line, MARGIN + 12, 11, mono=True)

    def figure(self, sheet: Sheet) -> None:
        self.room(sheet.height + 16)
        self.y += 8
        self.sheets[-1] += [moved(mark, MARGIN, self.y) for mark in sheet.marks]
        self.y += sheet.height + 8

    def pages(self) -> list[Sheet]:
        """The finished pages, each with its number."""
        sheets = []
        for number, marks in enumerate(self.sheets, 1):
            run = Run(
                printable(f"{self.foot} · page {number} of {len(self.sheets)}"),
                colour_of(LIGHT.ink2) or (0, 0, 0, 1.0),
                10,
                400,
                False,
            )
            sheets.append(Sheet(WIDTH, HEIGHT, (*marks, Text((run,), WIDTH - MARGIN, HEIGHT - 28, 1.0))))
        return sheets


def wrapped(text: str, size: float, width: float, weight: int = 400, mono: bool = False) -> list[str]:
    """The text in lines no wider than `width`, broken at blanks, and within a word that is wider."""

    lines = [""]
    for word in printable(text).replace("\n", " ").split(" "):
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if width_of((Run(joined, (0, 0, 0, 1.0), size, weight, mono),)) <= width:
            lines[-1] = joined
        else:
            lines[len(lines) - (not lines[-1]) :] = broken(Run(word, (0, 0, 0, 1.0), size, weight, mono), width)
    return lines


def broken(word: Run, width: float) -> list[str]:
    """A word in pieces no wider than `width`, each a letter or more. Every letter is measured once: a word may be long."""
    pieces, start, used = list[str](), 0, 0.0
    for i, (own, distance) in enumerate(measured(word)):
        if i > start and used + own > width:
            pieces.append(word.text[start:i])
            start, used = i, 0.0
        used += distance
    return [*pieces, word.text[start:]]


def column_widths(rows: list[tuple[str, ...]], size: float) -> list[float]:
    """Room for each column: what its longest words need, the widest columns giving way."""
    count = len(rows[0])
    needs = [
        max(width_of((Run(printable(row[c])[:120], (0, 0, 0, 1.0), size, 600, False),)) for row in rows) + 12
        for c in range(count)
    ]
    while sum(needs) > WIDE:
        widest = max(range(count), key=needs.__getitem__)
        others = [n for i, n in enumerate(needs) if i != widest]
        needs[widest] = max(WIDE - sum(others), max(others, default=0.0) * 0.9, 60.0)
        if sum(needs) > WIDE and needs[widest] <= 60:
            return [WIDE / count] * count
    needs[-1] += WIDE - sum(needs)
    return needs
