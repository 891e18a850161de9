"""What the runs of a comparison are called: on a page by a letter, which tiles and table explain; elsewhere by their names. Also how
long names, of runs, classes and columns, are cut."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from moe_core.figures.paper import escape
from moe_core.figures.theme import Theme
from moe_core.figures.words import ISOLATED, columns_of
from moe_core.schema import shortened

LETTERS = "ABCD"


class Called(NamedTuple):
    """What a run is called: beside its line, and in a sentence. Both are escaped."""

    label: str
    name: str


def called(curves: Sequence[Any], named: int) -> list[Called]:
    """What each run is called: by its letter, or, in a figure that is `named` px wide, by its name, cut to the room there is."""
    if not named:
        names = cut_apart([curve.name for curve in curves], 24)
        return [Called(LETTERS[at], f"{LETTERS[at]} {escape(name)}") for at, name in enumerate(names)]
    names = [curve.name for curve in curves]
    short = told_apart([cut(name, max(10, min(24, named // 24))) for name in names])
    return [Called(isolated(one), isolated(name)) for one, name in zip(short, told_apart(names), strict=True)]


def cut_apart(names: Sequence[str], most: int) -> list[str]:
    """The names, each of at most so many characters. Where names would be cut to the same, their common beginning goes instead."""
    short = [shortened(name, most) for name in names]
    by_cut: dict[str, set[str]] = {}
    for name, text in zip(names, short, strict=True):
        by_cut.setdefault(text, set()).add(name)
    by_alphabet = {text: sorted(alike) for text, alike in by_cut.items()}
    cuts = []
    for own, text in zip(names, short, strict=True):
        if len(alike := by_alphabet[text]) == 1:
            cuts.append(text)
            continue
        # Of all of them, one beside it in the alphabet begins most like it. A page asks this of hundreds of classes in each frame.
        at = bisect_left(alike, own)
        apart = max(first_apart(own, name) for name in alike[max(0, at - 1) : at + 2] if name != own)
        # From the beginning of the word in which they differ, if that is near.
        word = max(own.rfind(mark, 0, apart) for mark in " -_") + 1
        rest = own[max(word, apart - most // 2) :]
        cuts.append(f"… {rest}" if len(rest) <= most - 2 else f"… {rest[: most - 3]}…")
    return cuts


def beginnings(names: Sequence[str], most: int) -> list[str]:
    """Names of classes or columns, each of at most so many characters: their beginnings, or where those are the same, what differs."""
    short = [name if len(name) <= most else name[: most - 1].rstrip() + "…" for name in names]
    if len(set(short)) == len(short):
        return short
    alike = Counter(short)
    return [one if alike[one] == 1 else other for one, other in zip(short, cut_apart(names, most), strict=True)]


def first_apart(name: str, other: str) -> int:
    """The place of the first letter in which two names differ."""
    differ = (at for at, (a, b) in enumerate(zip(name, other, strict=False)) if a != b)
    return next(differ, min(len(name), len(other)))


def told_apart(names: Sequence[str]) -> list[str]:
    """The names; where two are the same, each with its run's letter."""
    return list(names) if len(set(names)) == len(names) else with_letters(names)


def column_names(names: Sequence[str]) -> list[str]:
    """The names for a table, where what a column holds is written behind a name and "_"."""
    clash = any(one.startswith(f"{other}_") for one in names for other in names)
    return with_letters(names) if clash else told_apart(names)


def with_letters(names: Sequence[str]) -> list[str]:
    return [f"{name} ({letter})" for name, letter in zip(names, LETTERS, strict=False)]


def cut(name: str, most: int) -> str:
    """A name of at most so many columns: letters of East Asia take two."""
    letters = most
    while sum(map(columns_of, short := shortened(name, letters))) > most and letters > 6:
        letters -= 1
    return short


def isolated(name: str) -> str:
    """A name as part of a label: one that is written from right to left does not turn the label around."""
    return f"{ISOLATED[0]}{escape(name)}{ISOLATED[1]}"


def run_colour(at: int, theme: Theme) -> str:
    return theme.runs[at]


def square(at: int, theme: Theme) -> str:
    """A square of a run's colour before what it is called."""
    return f'<span style="color:{run_colour(at, theme)}">■</span>'
