"""The knobs over time, drawn below the charts that show their effect."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from moe_core.figures.changes import mark_cursor
from moe_core.figures.lines import as_steps, end_label, line, over_steps
from moe_core.figures.paper import Array, Size, Spec, escape, figure, inner, pens
from moe_core.figures.theme import LIGHT, Theme
from moe_core.schema import value_text

STRIP = 140  # px: lower than this there are no titles, since the chart above has the same steps


class Turned(NamedTuple):
    """One knob over time: from each step (n,) on, its value (n,), a number or a word. own: autobalance turned it too."""

    steps: Sequence[int]
    values: Sequence[float | str]
    log: bool = False
    own: bool = False


@figure
def knobs(
    turned: Mapping[str, Turned],
    last: int | None,
    *,
    more: int = 0,
    span: tuple[float, float] | None = None,
    cursor: int | None = None,
    theme: Theme = LIGHT,
    size: Size = (780, 240),
) -> Spec:
    """A stepped line for each knob that was turned, between the least and the greatest value that it had.

    turned: by name, first row on top; last: the last step; more: how many other knobs were turned before these, which a last row says. A
    knob that a person turned is blue, one that autobalance turned is in ink.
    """
    ends = np.asarray([] if last is None else [last])
    strip = size[1] < STRIP
    title = "" if strip else "Knobs over time"
    subtitle = "" if strip else "each between its least and its greatest value; the last value at the right"
    # A last row says what is left out, since neither a strip nor every export has a title.
    rows = max(1, len(turned) + (more > 0))
    y = {"title": "" if strip else "knob", "range": [-rows, 0], "showticklabels": False}
    layout = over_steps("knobs", title, subtitle, ends, span, y, theme, size)
    layout["yaxis"] |= {"tickvals": list(range(-len(turned), 1)), "fixedrange": True}
    if strip:
        del layout["xaxis"]["title"]
        layout["meta"]["strip"] = True  # a chart over time, though its axis is not named
        layout["margin"] |= {"t": 2, "b": 2}
        layout["title"]["text"] = ""
        layout["xaxis"] |= {"showticklabels": False, "ticks": ""}
    _, height = inner(layout)
    data = []
    for row, (name, one) in enumerate(turned.items()):
        # The line goes on to the last step, with the last value.
        steps = np.asarray([*one.steps, max(last or 0, one.steps[-1])])
        values = [*one.values, one.values[-1]]
        data.append(
            line(
                name, as_steps(steps), (0.75 * heights(values, one.log) + 0.125 - row - 1).astype(np.float32),
                f"{escape(name)} was %{{customdata}} from step %{{x:,d}} on",
                color=theme.ink2 if one.own else theme.hand, width=pens(size).line, shape="hv",
            ) | {"customdata": [value_text(value) for value in values]}
        )  # fmt: skip
        # Beside each other where the rows are low, else in two lines, so that long names are not cut.
        between = "<br>" if not strip and height / rows > 3 * layout["font"]["size"] else " "
        value, size_of_type = value_text(values[-1]), layout["font"]["size"]
        if between == " ":
            name, value, size_of_type = fitted(name, value, layout)
        text = f"{escape(name)}{between}{escape(value)}".strip()
        at = height * (1 - (row + 0.5) / rows)
        layout["annotations"].append(end_label(text, at, height, theme, size_of_type))
    if more:
        words = f"and {more} more"
        layout["annotations"].append(end_label(words, height * 0.5 / rows, height, theme, layout["font"]["size"]))
    mark_cursor(layout, cursor, theme)
    return {"data": data, "layout": layout}


def fitted(name: str, value: str, layout: Spec) -> tuple[str, str, int]:
    """A knob's name and value so that both fit beside the plot in one line, and the size of their type: smaller if that is enough,
    else the end of a long name is left out, or all of it."""
    size, room = layout["font"]["size"], layout["margin"]["r"] - 6
    smaller = [px for px in (size, size - 1, size - 2) if 0.5 * px * (len(name) + len(value) + 1) <= room]
    if smaller:
        return name, value, smaller[0]
    letters = int(room / (0.5 * size)) - len(value) - 1
    return (f"{name[: letters - 1]}…" if letters > 4 else ""), value, size


def heights(values: Sequence[float | str], log: bool) -> Array:
    """Values (n,) between 0, the least, and 1, the greatest; words by the order in which they came; one value: 0.5.

    log: by their logarithms, 0 half a decade below the least of the others.
    """
    words = {word: place for place, word in enumerate(dict.fromkeys(values))}
    plain = any(isinstance(value, str) for value in values)
    given = np.array([words[value] if plain else value for value in values], np.float64)
    if log and not plain:
        least = min((value for value in given if value > 0), default=1.0)
        given = np.log10(np.where(given > 0, given, least / math.sqrt(10)))
    low, high = given.min(), given.max()
    return np.full(len(given), 0.5) if low == high else (given - low) / (high - low)
