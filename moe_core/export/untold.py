"""Changes of knobs whose names find no room in a figure, or share a label: numbers above the plot, and what they are in the subtitle."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from moe_core.figures.changes import Name, box_of
from moe_core.figures.paper import LETTER, Spec, inner, label_font, note, said_too, upright
from moe_core.figures.theme import Theme, faded
from moe_core.figures.words import ISOLATED

Steps = tuple[float, ...]
ROW = 16  # px above the plot for the numbers
NO_BREAK = "\u00a0"
MOST_TOLD = 8  # changes
GAP = 0.4  # between two numbers, in sizes of the type


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


class Alike(NamedTuple):
    """What panels of the same steps have in common: `changes`, told by each though it names them in its plot, and the most that each
    tells."""

    changes: tuple[tuple[int, str], ...] = ()
    most: int = MOST_TOLD

    def of(self, spec: Spec) -> Untold:
        """The changes that a drawn figure is to tell: those that it leaves untold, and those of the other panels."""
        own = untold_of(spec)
        return own if "turned" not in spec["layout"]["meta"] else Untold(joined(own.changes, self.changes), own.more)


ALONE = Alike()


def joined(changes: Iterable[tuple[int, str]], others: Iterable[tuple[int, str]]) -> tuple[tuple[int, str], ...]:
    """Changes (step, words) of both, in the order of their steps, each once."""
    return tuple(sorted({*changes, *others}))


def alike_in(specs: Sequence[Spec], before: Mapping[Steps, Alike]) -> dict[Steps, Alike]:
    """For each range of steps over which drawn panels mark changes, what they have in common; before: what they were drawn with."""
    found = dict(before)
    for spec in specs:
        if steps := steps_of(spec):
            last = found.get(steps, ALONE)
            changes, told = last.of(spec).changes, spec["layout"]["meta"].get("told", 0)
            # One that tells all that it has to tell sets no bound to the others.
            most = told if told < min(last.most, len(changes)) and "told" in spec["layout"]["meta"] else last.most
            found[steps] = Alike(changes, most)
    return found


def steps_of(spec: Spec) -> Steps | None:
    """From which step to which a chart that marks changes goes; None for another figure."""
    layout = spec["layout"]
    return tuple(map(float, layout["xaxis"]["range"])) if layout["meta"].get("turned") else None


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
    more = f"and {left:,} more change{'s' * (left > 1)}" if left else ""
    words = "; ".join(filter(None, (*told_ones, more)))
    return said_too(text, f"; {words}") if words else text


def add_numbers(layout: Spec, steps: Sequence[int], theme: Theme) -> None:
    """Above each of these steps, which rise, its number; numbers that would touch become one mark."""
    lo, hi = layout["xaxis"]["range"]
    (wide, high), size = inner(layout), layout["font"]["size"]
    per_step = wide / (hi - lo)
    marks = [(step, number, number) for number, step in enumerate(steps, 1)]  # step, first and last number
    at = 0
    while at < len(marks) - 1:
        (one, first, last), (other, begin, end) = marks[at : at + 2]
        letters = len(text_of(first, last)) + len(text_of(begin, end))
        if (other - one) * per_step < size * (LETTER * letters / 2 + GAP):
            marks[at : at + 2] = [(one, first, end)]
            at = max(0, at - 1)  # the mark is wider now, and may touch the one before it
        else:
            at += 1
    place: dict[str, Any] = {"xref": "x", "yref": "paper", "xanchor": "center", "yanchor": "bottom"}
    font = label_font(layout, theme.hand)
    layout["annotations"] += [note(text_of(first, last), step, 1, font=font, **place) for step, first, last in marks]
    lines = {shape.get("x0") for shape in layout["shapes"]}
    thin = {"color": faded(theme.hand, 0.5), "width": 1}
    names = [
        box_of(one, layout)
        for one in layout["annotations"]
        if one["font"]["color"] == theme.hand and one["yanchor"] == "top"
    ]
    for step in dict.fromkeys(steps):
        if step not in lines:
            # Below the names that it would cross.
            below = [foot for left, right, foot in names if left <= per_step * (step - lo) <= right]
            layout["shapes"].append(upright(step, **thin) | {"y1": min([1.0, *(foot / high for foot in below)])})


def text_of(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}–{last}"
