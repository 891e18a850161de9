"""Numbers as people write them: the digits 0 to 9. Python's own int and float also take 1_000, ٣, inf and a line break."""

import re
from collections.abc import Sequence
from typing import Any

REAL = re.compile(r" *[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)? *", re.ASCII)
WHOLE = re.compile(r" *[+-]?\d{1,18} *", re.ASCII)  # what fits in 64 bits


def real(value: Any) -> float:
    """A number, or the number in a text. ValueError for anything else; a number too large for a float becomes infinite."""
    if isinstance(value, bool) or (isinstance(value, str) and not REAL.fullmatch(value)):
        raise ValueError(f"must be a number, got {value!r}")
    try:
        return float(value) + 0.0  # -0 is 0
    except (TypeError, OverflowError):
        raise ValueError(f"must be a number, got {value!r}") from None


def whole(text: str) -> int:
    """The whole number in a text. ValueError for anything else."""
    if not WHOLE.fullmatch(text):
        raise ValueError(f"must be a whole number, got {shortened(text, 80)!r}")
    return int(text)


def first_line(error: object) -> str:
    """The first line of an error's message; "" if it has none."""
    return next(iter(str(error).splitlines()), "")


def shortened(text: str, most: int) -> str:
    """The text, cut to `most` characters: its start, where the reason is, and its end, where the advice is."""
    if len(text) <= most:
        return text
    return f"{text[: most - most // 3 - 3]} … {text[len(text) - most // 3 :]}"


def first_few(names: Sequence[str], most: int = 8, none: str = "none") -> str:
    """The first names in a line, and how many more there are: "a, b and 3 more". none: in place of an empty list."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return (", ".join(names[:most]) or none) + more


def duration(seconds: float) -> str:
    """12 s, 4 min, 2 h 5 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60:,} h {minutes % 60} min"


def left_text(seconds: float, done: float, left: float) -> str:
    """The time left at the speed so far: "about 4 min left"; "" before it can be told.

    seconds: in which `done` of the work was done; left: what is to do, in the same measure.
    """
    if seconds <= 0 or done <= 0.01 * (done + left):
        return ""
    return f"about {duration(seconds * left / done)} left"
