"""Changes of knobs whose names find no room in a figure, or share a label: numbers above the plot, and what they are in the subtitle."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from moe_core.figures.changes import Name
from moe_core.figures.paper import Spec, inner, label_font, note, upright
from moe_core.figures.theme import Theme, faded
from moe_core.figures.words import ISOLATED

ROW = 16  # px above the plot for the numbers
NO_BREAK = "\u00a0"
DIGIT = 0.55  # width of one, in sizes of the type


class Untold(NamedTuple):
    """The changes that a figure does not tell in full, (step, words), in the order of their steps; more: how many there are besides."""

    changes: tuple[tuple[int, str], ...] = ()
    more: int = 0


def untold_of(spec: Spec) -> Untold:
    """Those of a drawn figure, one by one also where they share a label."""
    names: Sequence[Name] = spec["layout"]["meta"].get("untold", ())
    changes = [
        (step, plain(words))
        for name in names
        for step, words in name.changes or [(name.step, name.text.replace("<br>", ", "))]
    ]
    return Untold(tuple(sorted(changes)), sum(name.earlier for name in names))


def plain(text: str) -> str:
    """A label without its tags and the squares of colour that they held: "even, wide: noise 1 → 0.5"."""
    words = re.sub(r"<[^>]*>", "", text).replace(" ■ ", ", ").replace("■ ", "")
    return words.replace(f"{ISOLATED[1]} ", f"{ISOLATED[1]}: ")


def subtitle_with(text: str, untold: Untold, told: int) -> str:
    """A title whose second line tells the first `told` of these changes, each with its number."""
    told_ones = [
        f"{number}:{NO_BREAK}{words} at step{NO_BREAK}{step:,}".replace(" → ", f"{NO_BREAK}→{NO_BREAK}")
        for number, (step, words) in enumerate(untold.changes[:told], 1)
    ]
    left = len(untold.changes) - told + untold.more
    more = f"; and {left:,} more change{'s' * (left > 1)}" if left else ""
    return text.replace("</span>", f"; {'; '.join(told_ones)}{more}</span>")


def add_numbers(layout: Spec, steps: Sequence[int], theme: Theme) -> None:
    """Above each of these steps, which rise, its number; numbers that would touch become one mark."""
    lo, hi = layout["xaxis"]["range"]
    per_step, size = inner(layout)[0] / (hi - lo), layout["font"]["size"]
    marks: list[tuple[int, int, int]] = []  # step, first and last number
    for number, step in enumerate(steps, 1):
        letters = len(text_of(*marks[-1][1:])) + len(str(number)) + 1 if marks else 0
        if marks and (step - marks[-1][0]) * per_step < DIGIT * size * letters:
            marks[-1] = (*marks[-1][:2], number)
        else:
            marks.append((step, number, number))
    place: dict[str, Any] = {"xref": "x", "yref": "paper", "xanchor": "center", "yanchor": "bottom"}
    font = label_font(layout, theme.hand)
    layout["annotations"] += [note(text_of(first, last), step, 1, font=font, **place) for step, first, last in marks]
    lines = {shape.get("x0") for shape in layout["shapes"]}
    thin = {"color": faded(theme.hand, 0.5), "width": 1}
    layout["shapes"] += [upright(step, **thin) for step in dict.fromkeys(steps) if step not in lines]


def text_of(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}–{last}"
