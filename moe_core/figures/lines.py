"""What charts over steps share: their axis, their lines, and the names at the lines' ends. Changes are marked by changes.py."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from moe_core.figures.paper import Array, Size, Spec, base, inner, nice_above, note
from moe_core.figures.theme import SANS, Theme
from moe_core.schema import LOOKS_AHEAD

LABEL_GAP = 14  # least distance in px of two labels that stand at the ends of lines


def step_axis(steps: Array, span: tuple[float, float] | None) -> Spec:
    """The x axis of a chart over time: what the viewer zoomed to, else from 0 to a round number of steps."""
    last = float(steps[-1]) if len(steps) else 0.0
    upper = nice_above(max(last, 10.0))
    return {"title": "step", "range": list(map(float, span)) if span else [0.0, upper], "nticks": 8, "tickformat": "d"}


def as_steps(steps: Array) -> Array:
    """Steps in the integer type that plotly.js reads as a typed array."""
    return np.asarray(steps).astype(np.int32)


def last_of(steps: Array) -> int | None:
    """The last step, or None of an empty history."""
    return int(steps[-1]) if len(steps) else None


def over_steps(
    name: str,
    title: str,
    subtitle: str,
    steps: Array,
    span: tuple[float, float] | None,
    y: Spec,
    theme: Theme,
    size: Size,
    labels: bool = True,
) -> Spec:
    """The layout of a chart over steps (n,), with room for the lines' names unless `labels` is False."""
    x = step_axis(steps, span)
    return base(name, title, subtitle, step=last_of(steps), theme=theme, size=size, labels=labels, x=x, y=y)


def line(name: str, x: Array, y: Array, hover: str, **pen: Any) -> Spec:
    """A line. hover: what hovering a point of it says; pen: its color and width, and what else plotly calls part of a line."""
    return {
        "type": "scatter", "mode": "lines", "name": name, "x": x, "y": y, "line": pen,
        "hovertemplate": f"{hover}<extra></extra>",
    }  # fmt: skip


def parted(name: str, x: Array, y: Array, comparable: Array | None, hover: str, **pen: Any) -> list[Spec]:
    """A line; where its values are not comparable, a thin dotted one. comparable (n,) bool, None if all of them are."""
    seen = np.ones(len(x), bool) if comparable is None else np.asarray(comparable, bool)
    y, gap = np.asarray(y, np.float32), np.float32(np.nan)
    lines = [line(name, as_steps(x), np.where(seen, y, gap), hover, **pen)]
    if not seen.all():
        ahead = f"{name}, looks ahead", as_steps(x), np.where(seen, gap, y), f"{hover}, {LOOKS_AHEAD}"
        lines.append(line(*ahead, **pen | {"width": 1, "dash": "dot"}))
    return lines


def held_out(name: str, x: Array, y: Array, comparable: Array | None, hover: str, **pen: Any) -> list[Spec]:
    """The held-out loss as parted() draws it, with dots; open ones where it is not comparable."""
    lines = parted(name, x, y, comparable, hover, **pen)
    for one, symbol in zip(lines, ("circle", "circle-open"), strict=False):
        one |= {"mode": "lines+markers", "marker": {"color": pen["color"], "size": 5, "symbol": symbol}}
        one["cliponaxis"] = False  # the last dot, at the axis' end, is drawn whole
    return lines


def held_out_words(comparable: Sequence[Array | None]) -> str:
    """What the lines of a loss chart are, for its subtitle. comparable: as held_out() takes it, of each line that has a dot."""
    if not comparable:
        return "of each training batch"
    ahead = any(one is not None and not one.all() for one in comparable)
    return f"dots: held-out{', open: looks ahead' if ahead else ''}; thin: training"


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Positions, falling, moved as little downward as keeps them `gap` apart. The labels keep the order of their lines."""
    placed: list[float] = []
    for y in wanted:
        placed.append(min(y, placed[-1] - gap) if placed else y)
    # What ran out below is pushed up again, from the bottom.
    floor = 0.0
    for i in range(len(placed) - 1, -1, -1):
        placed[i] = max(placed[i], floor)
        floor = placed[i] + gap
    return placed


def end_labels(ends: Sequence[tuple[float, str]], layout: Spec, theme: Theme, *, ink: bool = False) -> list[Spec]:
    """The names of lines (px above the plot's bottom, text), from top to bottom, as far apart as their type needs."""
    _, height = inner(layout)
    size = layout["font"]["size"]
    places = spread([px for px, _ in ends], 1.3 * size)
    return [end_label(text, px, height, theme, size, ink=ink) for (_, text), px in zip(ends, places, strict=True)]


def end_label(
    text: str, px: float, height: int, theme: Theme, size: int, *, strong: bool = False, ink: bool = False
) -> Spec:
    """A line's name right of the plot, `px` above its bottom; in ink where it says so or is strong."""
    words = f"<b>{text}</b>" if strong else text
    return note(
        words,
        1,
        px / height,
        xref="paper",
        yref="paper",
        xanchor="left",
        yanchor="middle",
        xshift=6,
        font={"color": theme.ink if strong or ink else theme.ink2, "size": size, "family": SANS},
    )


def named_ends(
    lines: Sequence[tuple[str, Array, str]], top: float, layout: Spec, theme: Theme, unit: str = ""
) -> list[Spec]:
    """The last value of each line (name, values, format) at its end, where it was measured. top: the axis' upper end."""
    _, height = inner(layout)
    ends = [
        (height * min(1.0, float(values[-1]) / top), f"{name} {float(values[-1]):{form}}{unit}".strip())
        for name, values, form in lines
        if len(values) and np.isfinite(values[-1])
    ]
    return end_labels(sorted(ends, reverse=True), layout, theme, ink=True)
