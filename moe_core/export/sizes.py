"""Sizes as people write them, of a figure and of its type: "3.25in", "85x60mm", "640x400", "8pt"."""

import re
from typing import NamedTuple

PX = {"px": 1.0, "in": 96.0, "mm": 96 / 25.4, "cm": 96 / 2.54, "pt": 96 / 72}  # CSS px of a unit
NUMBER = r"(\d{1,6}(?:\.\d{1,17})?|\.\d{1,17})"
PAPER = 8 * PX["pt"]  # type of a figure whose size is given as one on paper
WIDE = "16:9"


class Sized(NamedTuple):
    """A figure's size in CSS px; paper: whether it was given in a unit of paper, so that its type is of 8 pt; free: whether the height
    was not given and follows from the width."""

    size: tuple[float, float]
    paper: bool
    free: bool = False

    def of_panels(self, count: int, columns: int) -> tuple[float, float]:
        """The size of a file of so many panels, `columns` beside each other."""
        columns = min(columns, count)
        wide, high = self.size
        return (wide, -(-count // columns) * height_for(wide / columns)) if self.free else (wide, high)


def size_of_words(words: str) -> Sized:
    """A figure's size: WIDTHxHEIGHT, or WIDTH alone, in px or in a unit that is named. ValueError for anything else."""
    text = words.strip().lower().replace(" ", "").replace("×", "x")
    if text == WIDE:
        return Sized((960.0, 540.0), False)
    unit = r"(px|in|mm|cm)?"
    match = re.fullmatch(f"{NUMBER}{unit}(?:x{NUMBER}{unit})?", text, re.ASCII)
    if not match:
        raise ValueError(
            f"a size is written WIDTHxHEIGHT, or WIDTH alone, in px, in, mm or cm, for example 640x400 or 3.25in, or {WIDE}, "
            f"got {words[:40]!r}"
        )
    width, one, height, other = match.groups()
    named = one or other or "px"  # a unit that is named once is that of both
    wide = float(width) * PX[named]
    high = float(height) * PX[other or named] if height else height_for(wide)
    return Sized((wide, high), named != "px", not height)


def height_for(width: float) -> float:
    """A height that suits a figure of this width: flatter the wider it is, at least 2 inches."""
    return min(max(0.6 * width, 2 * PX["in"]), max(3.5 * PX["in"], 0.45 * width))


def type_of_words(words: str) -> float:
    """A size of type in CSS px: a number of px, or of pt if that is named. ValueError for anything else."""
    match = re.fullmatch(f"{NUMBER}(px|pt)?", words.strip().lower(), re.ASCII)
    if not match:
        raise ValueError(f"a size of type is written in px or pt, for example 13 or 8pt, got {words[:40]!r}")
    return float(match[1]) * PX[match[2] or "px"]


def on_paper(px: float) -> str:
    """A length in inches, in words."""
    return f"{px / PX['in']:.2f}".rstrip("0").rstrip(".")
