"""Strings of tokens, of any tokenizer, as words that can be drawn: how each is shown, and how wide it is.

They come from records that anybody may have written, so nothing in them is trusted: letters that cannot be
printed are shown as □, also those that turn the direction of text, and a long word is cut.
"""

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from moe_core.figures.paper import Array, escape

COLUMN = 0.6  # width of a letter of the monospaced font, in its size
LONGEST = 24  # columns of a word; a longer one is cut
MARKS = 2  # accents that one letter may carry
SHOWN = {"Ġ": " ", "▁": " ", "Ċ": "⏎", "\n": "⏎", "\t": "⇥", "\r": "␍"}
SPACE = "\u00a0"  # a plain space at the edge of a label is not drawn
# Put around a word, so that one written from right to left does not turn the sentence around.
ISOLATED = "\u2068", "\u2069"


class Word(NamedTuple):
    """text: as it is shown, not escaped; blank: spaces before it; columns: its width with them, in letters of a monospaced font."""

    text: str
    blank: int
    columns: int

    @property
    def label(self) -> str:
        """The word as a label, without the spaces before it."""
        return escape(self.text).replace(" ", SPACE)

    @property
    def spaced(self) -> str:
        """The word as a label, with the spaces before it."""
        return SPACE * self.blank + self.label

    @property
    def quoted(self) -> str:
        """The word in a sentence, quoted, with the spaces before it; a token may be nothing but spaces."""
        return f"“{ISOLATED[0]}{self.spaced}{ISOLATED[1]}”"


@lru_cache(1 << 14)
def word_of(string: str, most: int = LONGEST) -> Word:
    """How a token is shown: a space as a space, a line's end as ⏎; one of more than `most` columns is cut."""
    shown, marks, columns = "", 0, 0
    for letter in string[: 4 * LONGEST]:
        letter = SHOWN.get(letter, letter)
        if not letter.isprintable():
            letter = " " if unicodedata.category(letter) == "Zs" else "□"
        marks = marks + 1 if unicodedata.category(letter) in ("Mn", "Me") else 0
        wide = columns_of(letter)
        if columns + wide > most:
            shown = shown[: -1 if columns == most else None] + "…"
            break
        if marks <= MARKS:
            shown, columns = shown + letter, columns + wide
    text = shown.strip(" ")
    blank = len(shown) - len(shown.lstrip(" ")) if text else len(shown)
    return Word(text, blank, max(1, blank + sum(map(columns_of, text))))


def columns_of(letter: str) -> int:
    """The columns that a letter takes: two of the wide ones of East Asia and of most emoji, none of an accent. Two too of a letter
    of a script that the export's fonts lack: there its number stands for it, which takes two."""
    if unicodedata.category(letter) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" or is_lacked(letter) else 1


def is_lacked(letter: str) -> bool:
    """Whether the export's fonts lack a letter by its script: they have what Latin, Greek and Cyrillic texts of today use."""
    return "\u0530" <= letter < "\u1e00" or "\u1f00" <= letter < "\u2000" or letter >= "\u2c00"


def broken(columns_N: Sequence[int], row_N: Sequence[int], most: int) -> tuple[Array, Array]:
    """Words set in lines of `most` columns: the line of each (N,), and the column in which it begins (N,). Each row of the probe
    begins a line."""
    line, at, lines, starts, last = -1, most, [], [], None
    for columns, row in zip(columns_N, row_N, strict=True):
        if row != last or at + columns > most:
            line, at, last = line + 1, 0, row
        lines.append(line)
        starts.append(at)
        at += columns
    return np.array(lines, np.int64), np.array(starts, np.int64)
