"""A tile: one number above the charts, with its yardstick, in plain text that the dashboard only has to place."""

import math
import re
from typing import NamedTuple

from moe_core.schema import value_text

NONE = value_text(None)
UNIT = re.compile(r"(?<=\d) (?=(?:[%×kMG]|[kMG]?B|s|min|h|bits|nats)(?!\w))")


class Tile(NamedTuple):
    """One number. `word` and `hand_line` (in the colour of changes by hand) are shown on the large tile only; `more` appears when
    the pointer rests on the tile."""

    name: str
    label: str
    value: str
    unit: str = ""
    word: str = ""
    lines: tuple[str, ...] = ()
    hand_line: str = ""
    more: str = ""


def number(value: float, digits: int = 2) -> str:
    """A number as a person reads it; a dash where there is none, and never a minus before 0."""
    if not math.isfinite(value):
        return NONE
    text = f"{value:,.{digits}f}"
    return text.lstrip("-") if not float(text.replace(",", "")) else text.replace("-", "−")


def short(value: float) -> str:
    """A large number in three digits: 217 k, 1.3 M."""
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= 0.9995 * size:  # it is rounded up to the larger unit
            return f"{value / size:.3g}{letter}" if value / size < 999.5 else f"{value / size:.0f}{letter}"
    return f"{value:.0f}"


def plain_count(value: float) -> str:
    """128, 2.5, 0.125: as many digits as a count needs."""
    if not math.isfinite(value):
        return NONE
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def unbroken(text: str) -> str:
    """A text in which no line ends between a number and its unit."""
    return UNIT.sub("\u00a0", text)
