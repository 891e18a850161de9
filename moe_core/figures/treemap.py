"""A hierarchical layer at a glance: groups, and in each its experts, as areas of selections.

Drawn as rectangles, not as plotly's own treemap, so that an image of it needs no browser, and laid out so that nothing
changes its place while the run goes on: what is where depends on the counts of groups and experts alone, only edges move.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from moe_core.figures.off import off_words, on_nE
from moe_core.figures.paper import (
    Array,
    Size,
    Spec,
    at_step,
    axis_title,
    base,
    figure,
    inner,
    lettered,
    percent,
    print_as,
)
from moe_core.figures.theme import DIVERGING_STOPS, LIGHT, SANS, Theme, letter_colour

Box = tuple[float, float, float, float]  # x0, y0, x1, y1, in px from the top left


@figure
def group_treemap(
    share_E: Array, groups: int, *, step: int | None = None, theme: Theme = LIGHT, size: Size = (620, 335)
) -> Spec:
    """Area: share of the selections; colour: that share over the ideal. share_E (E,) sums to 1, the experts of a group side by side; NaN is
    an expert that is off and has no area."""
    E, on_E = len(share_E), on_nE(share_E)
    on = int(on_E.sum())
    each = E // max(groups, 1)
    layout = base(
        "group_treemap",
        "Groups and experts",
        f"area: share of selections; colour: that ÷ ideal {percent(1 / on)}, {theme.signs[0]} starved, {theme.signs[2]} overloaded"
        + (f"; {off_words(on_E)}" if on < E else ""),
        step=step,
        theme=theme,
        size=size,
    )
    width, height = inner(layout)
    hidden = {"showticklabels": False, "fixedrange": True, "showgrid": False}
    layout["xaxis"] |= hidden | {
        "range": [0, width],
        "title": axis_title(f"{groups} groups of {each} experts", layout),
    }
    layout["yaxis"] |= hidden | {"range": [height, 0], "title": axis_title("share of selections", layout, standoff=4)}
    share = np.asarray(share_E, np.float64)
    if not np.nansum(share) > 0:
        return {"data": [], "layout": layout}
    share = np.nan_to_num(share) / np.nansum(share)
    x, y, names, fills, printed, words = [], [], [], [], [], []
    rows = rows_for(groups, width / height)
    # As if all groups were alike: the rows within a group must not follow its shares, or cells would jump.
    inside = rows_for(each, (width / -(-groups // rows)) / (height / rows))
    for group, outer in enumerate(
        strips(share.reshape(groups, each).sum(axis=1), (0, 0, float(width), float(height)), rows)
    ):
        members = share[group * each : (group + 1) * each]
        for j, box in enumerate(strips(members, outer, inside)):
            e = group * each + j
            fill, pale = (deviation_colour(members[j] * on, look) if on_E[e] else look.edge for look in (theme, LIGHT))
            layout["shapes"].append(rectangle(box, theme.ground, 1.0, fill))
            x.append((box[0] + box[2]) / 2)
            y.append((box[1] + box[3]) / 2)
            room = box[2] - box[0] >= 22 and box[3] - box[1] >= 16
            names.append(f"{e + 1}" if room else "")
            fills.append(fill)
            printed.append(pale)
            words.append(
                f"Expert {e + 1} of group {group + 1} took {percent(members[j])} of the selections, {members[j] * on:.2f} × its ideal"
                f"{at_step(step)}"
            )
        layout["shapes"].append(rectangle(outer, theme.ink, 2.0, None))
    data: Spec = {
        "type": "scatter", "mode": "text", "name": "experts", "x": np.array(x, np.float32), "y": np.array(y, np.float32),
        "text": names, "textfont": {"family": SANS, "size": layout["font"]["size"]},
        "hovertext": words, "hoverinfo": "text", "customdata": np.arange(1, E + 1, dtype=np.int32),
    }  # fmt: skip
    print_as(layout, zip(fills, printed, strict=True))
    data = lettered(data, *(list(map(letter_colour, cells)) for cells in (fills, printed)))
    return {"data": [data], "layout": layout}


def rows_for(n: int, aspect: float) -> int:
    """Rows that make n equal cells squarest in a box `aspect` times as wide as high."""
    return min(n, max(1, round(math.sqrt(n / aspect))))


def strips(share_n: Sequence[float] | Array, box: Box, rows: int) -> list[Box]:
    """A rectangle for each share, in order, in rows of equal numbers; area by share, the whole box filled."""
    x0, y0, x1, y1 = box
    n, wide, tall = len(share_n), x1 - x0, y1 - y0
    per_row = -(-n // rows)
    total = float(np.sum(share_n))
    boxes: list[Box] = []
    top = y0
    for first in range(0, n, per_row):
        row = np.asarray(share_n[first : first + per_row], np.float64)
        part = float(row.sum())
        bottom = top + (tall * part / total if total > 0 else 0.0)
        left = x0
        for value in row.tolist():
            right = left + (wide * value / part if part > 0 else 0.0)
            boxes.append((left, top, right, bottom))
            left = right
        top = bottom
    return boxes


def rectangle(box: Box, colour: str, width: float, fill: str | None) -> Spec:
    x0, y0, x1, y1 = box
    shape: dict[str, Any] = {
        "type": "rect", "xref": "x", "yref": "y", "x0": x0, "y0": y0, "x1": x1, "y1": y1,
        "line": {"color": colour, "width": width}, "layer": "below",
    }  # fmt: skip
    return shape if fill is None else shape | {"fillcolor": fill}


def deviation_colour(ratio: float, theme: Theme) -> str:
    """The diverging scale's colour of a share over the ideal, clipped at 1/8 and 8. "#RRGGBB" """
    at = 0.5 + (max(-3.0, min(3.0, math.log2(ratio))) if ratio > 0 else -3.0) / 6
    channels = [[int(colour[i : i + 2], 16) for colour in theme.diverging] for i in (1, 3, 5)]
    return "#" + "".join(f"{round(float(np.interp(at, DIVERGING_STOPS, values))):02X}" for values in channels)
