"""Where knobs were turned, and which step the page shows, marked on charts over steps."""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from moe_core.figures.paper import Spec, ems, escape, inner, label_font, note, upright
from moe_core.figures.theme import Theme, faded
from moe_core.schema import change_text

CLOSE = 4  # in sizes of the type: marks that are closer to each other than this, on an axis as wide as the figure, stand close together
FAR = 1 / 6  # of the axis: marks that are so far from each other never do, however narrow the figure
SHARE = 3  # so many changes that stand close together share one mark and one label
STACKED = 3  # names of knobs turned in one step that stand below each other
LISTED = 12  # changes of a shared label that are listed on hover
TICK = 6  # px: height of the tick of a change within a shared mark
LINE = 1.4  # distance of two lines of names, in sizes of the type


class Name(NamedTuple):
    """The name of a change, at its step. If it does not tell all the changes that it stands for: changes: the last of them, each as
    its step and words; earlier: how many there are before these. last: the step of the last one; None: all are of one step."""

    step: int
    text: str
    changes: tuple[tuple[int, str], ...] = ()
    earlier: int = 0
    last: int | None = None

    @property
    def short(self) -> "Name":
        """The name without the values, which are then told on hover."""
        if self.changes:
            return self
        each = self.text.split("<br>")
        parts = [line.split(" → ")[0].rsplit(" ", 1)[0] if " → " in line else line for line in each]
        return self._replace(text="<br>".join(parts), changes=tuple((self.step, words) for words in each))

    @property
    def hover(self) -> str:
        """A line a change."""
        return "<br>".join(and_earlier(self.earlier) + [f"step {step:,}: {words}" for step, words in self.changes])


def mark(
    layout: Spec,
    changes: Iterable[Any],
    cursor: int | None,
    theme: Theme,
    *,
    labelled: bool = True,
    cased: bool = False,
) -> None:
    """Mark the knob changes, and the step that the page shows."""
    mark_changes(layout, changes, theme, labelled=labelled, cased=cased)
    mark_cursor(layout, cursor, theme)


def mark_changes(
    layout: Spec,
    changes: Iterable[Any],
    theme: Theme,
    *,
    labelled: bool = True,
    cased: bool = False,
    top: float = 1,
    tall: float = 1,
    **reach: Any,
) -> None:
    """A line of the hand's colour wherever a knob's change took effect, named where its name finds room.

    Knobs turned in one step share a line, and their names stand below each other. Changes that stand close together share a
    strip and a label. cased: there is a heatmap below the lines; top, tall: upper end and height of the chart's own part of the
    plot; reach: yref, y0 and y1 of its lines.
    """
    lo, hi = layout["xaxis"]["range"]
    turned: dict[int, list[str]] = {}
    for change in changes:
        if change.step is not None and lo <= change.step <= hi:
            turned.setdefault(change.step, []).append(turn(change))
    if not turned:
        return
    together = grouped(sorted(turned), layout)
    layout["meta"]["turned"] = True
    px = tall * inner(layout)[1]
    for group in together:
        layout["shapes"] += marks_of(group, layout, theme, cased, px, **reach)
    if labelled:
        rows = max(1, min(3, int(px / (5 * layout["font"]["size"]))))
        ends = [group[at] for group in together for at in (0, -1)]
        layout["annotations"] += change_names(
            layout, [name_of(group, turned) for group in together], theme, ends, top, rows
        )


@lru_cache(maxsize=4096)  # each frame asks for the words of all turns anew
def turn(change: Any) -> str:
    """A knob's change in words: "noise 1 → 0.5"."""
    return f"{escape(change.name)} {escape(change_text(change.previous, change.value))}"


def grouped(steps: Sequence[int], layout: Spec) -> list[list[int]]:
    """Ascending steps in groups: those that stand close together on the axis if there are enough to share a mark, else each by
    itself. By the width of the figure, not of its plot, so that panels of the same steps group alike, whatever stands beside them."""
    lo, hi = layout["xaxis"]["range"]
    near = min(FAR, CLOSE * layout["font"]["size"] / layout["meta"].get("whole", layout["width"])) * (hi - lo)
    gaps = np.flatnonzero(np.diff(steps) >= near) + 1
    close = [part.tolist() for part in np.split(np.asarray(steps, np.int64), gaps) if len(part)]
    return [group for part in close for group in ([part] if len(part) >= SHARE else [[step] for step in part])]


def marks_of(group: list[int], layout: Spec, theme: Theme, cased: bool, px: float, **ends: Any) -> list[Spec]:
    """The line of a change; of a group a line at either end, a strip between them, and at its foot a tick for each change.

    cased: with ground behind each line, and no strip, which would tint a heatmap; px: how high the lines are.
    """
    lo, hi = layout["xaxis"]["range"]
    width, _ = inner(layout)
    whole = upright(group[0], color=theme.hand, width=1.5) | ends
    tick = whole["y0"] + (whole["y1"] - whole["y0"]) * TICK / px
    columns = {int(width * (step - lo) / (hi - lo) / 3): step for step in group[1:-1]}  # no two ticks within 3 px
    lines = [whole | {"x0": step, "x1": step} for step in dict.fromkeys((group[0], group[-1]))]
    lines += [whole | {"x0": step, "x1": step, "y1": tick} for step in columns.values()]
    if cased:
        return [one for line in lines for one in (line | {"line": {"color": theme.ground, "width": 5}}, line)]
    fill = {"type": "rect", "layer": "below", "line": {"width": 0}, "fillcolor": faded(theme.hand, 0.12)}
    strip = [whole | {"x1": group[-1]} | fill] if len(group) > 1 else []
    return strip + lines


def name_of(group: list[int], turned: dict[int, list[str]]) -> Name:
    """The name of a step's changes, the last ones if there are many; of a group how many they are."""
    each = [(step, text) for step in group for text in turned[step]]
    if len(group) > 1:
        return shared_name(f"{len(each)} changes", each)
    text = "<br>".join(turned[group[0]][-STACKED:])
    return shared_name(text, each) if len(each) > STACKED else Name(group[0], text)


def shared_name(text: str, each: Sequence[tuple[int, str]]) -> Name:
    """The name of changes (step, words) that `text` does not tell one by one."""
    return Name(each[0][0], text, tuple(each[-LISTED:]), max(0, len(each) - LISTED), each[-1][0])


def and_earlier(count: int) -> list[str]:
    """The first line of a list that leaves so many out."""
    return [f"and {count:,} earlier"] if count else []


def change_names(
    layout: Spec, named: Sequence[Name], theme: Theme, lines: Iterable[int], top: float = 1, rows: int = 1
) -> list[Spec]:
    """The names of changes, in the order of their steps, below the height `top` of the plot's area.

    The latest is named first. A name stands between the lines of the changes that it is of, or on their right; in the last third of
    the plot on their left, if there is room. It covers no other name and no line of a change (`lines`: their steps). If it finds no
    place, only the knobs are named, and their values are told on hover; if that finds none either, it is left out. Those, and those
    that tell all on hover only, are kept in the layout for a figure without hovers.
    """
    lo, hi = layout["xaxis"]["range"]
    per_step = inner(layout)[0] / (hi - lo)
    places = Places(layout, [per_step * (step - lo) for step in lines], rows)
    names = []
    for name in reversed(named):
        ends = per_step * (name.step - lo), per_step * ((name.last or name.step) - lo)
        for one in (name, name.short):
            if place := places.take(one.text, *ends):
                break
        if name.changes or one is not name or not place:
            layout["meta"].setdefault("untold", []).append(name)
        if not place:
            continue
        at_end, left, row = place
        font = label_font(layout, theme.hand)
        side, shift = ("right", -6) if left else ("left", 6)
        step = one.last if at_end and one.last else one.step
        at: Spec = {"xanchor": side, "align": side, "xshift": shift}
        at |= {"xref": "x", "yref": "paper", "yanchor": "top", "bgcolor": faded(theme.ground, 0.85), "borderpad": 1}
        names.append(note(one.text, step, top, font=font, **at))
        if row:
            names[-1]["yshift"] = -round(LINE * font["size"] * row)
        if one.changes:
            names[-1] |= {"hovertext": one.hover, "hoverlabel": layout["hoverlabel"], "captureevents": True}
    return names


def extent(text: str, size: float) -> tuple[int, float]:
    """How many lines a name has, and how far it reaches from its line, in px."""
    lines = [re.sub(r"<[^>]*>", "", row) for row in text.split("<br>")]
    return len(lines), 8 + size * max(map(ems, lines))


def box_of(name: Spec, layout: Spec) -> tuple[float, float, float]:
    """Left and right end of a change's name in the layout, and how far down it reaches, in px from the plot's lower left corner."""
    (width, height), (lo, hi), size = inner(layout), layout["xaxis"]["range"], name["font"]["size"]
    at, (high, reach) = width * (name["x"] - lo) / (hi - lo), extent(name["text"], size)
    left = at if name["xanchor"] == "left" else at - reach
    return left, left + reach, height * name["y"] + name.get("yshift", 0) - LINE * size * high


class Places:
    """Where names of changes find room in a plot with lines, which stand at these px: beside their own, in one of so many rows."""

    def __init__(self, layout: Spec, lines: Sequence[float], rows: int) -> None:
        self.width, self.size = inner(layout)[0], layout["font"]["size"]
        self.lines, self.rows = lines, rows
        self.taken: list[tuple[float, float, int, int]] = []  # left and right end, first row and the one after the last

    def take(self, text: str, begin: float, end: float) -> tuple[bool, bool, int] | None:
        """A place for a name, which is then taken: whether beside `end`, not `begin`; whether left of it; and its first row. None:
        there is none."""
        high, reach = extent(text, self.size)
        late = begin > self.width * 2 / 3 or end + reach > self.width + 8  # further right stand the names of lines
        right, left = (end, end + reach, end > begin, False), (begin - reach, begin, False, True)
        inside = (begin, begin + reach, False, False)
        beside = (left, right) if late else (right, left)
        for a, b, at_end, is_left in (inside, *beside) if begin + reach < end else beside:
            if a < 0 or b > self.width + 8 or any(a < line < b for line in self.lines):
                continue
            near = [(first, after) for x, y, first, after in self.taken if b >= x and a <= y]
            for row in range(self.rows):
                if all(row + high <= first or row >= after for first, after in near):
                    self.taken.append((a, b, row, row + high))
                    return at_end, is_left, row
        return None


def mark_cursor(layout: Spec, cursor: int | None, theme: Theme) -> None:
    """Mark the step that the page shows, when it is not the last one."""
    if cursor is not None:
        layout["shapes"].append(upright(cursor, color=theme.ink, width=1.5, dash="dot"))
