"""All layers of a run at once: whom each layer selects, and how balance is spread over the layers.

Shapes: L layers, E the most experts that a layer has. `chosen` is the layer that the page shows, counted from 0.
"""

import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from moe_core.figures.matrices import colour_bar, expert_ticks, log_ratio
from moe_core.figures.paper import (
    Array,
    Size,
    Spec,
    at_step,
    axis_title,
    base,
    escape,
    every_nth,
    figure,
    inner,
    label_font,
    letters_beside,
    note,
)
from moe_core.figures.theme import DIVERGING_STOPS, FRACTIONS, LIGHT, Theme, scale

LONGEST = 14  # letters of a row's name
GAP = 7  # px: lower rows have no gap between them
PERCENTILES = (95, 90, 75, 50)
ROWS = ("worst", *(f"p{p}" for p in PERCENTILES), "best", "each")


@figure
def layers(
    over_ideal_LE: Array,
    names_L: Sequence[str],
    experts_L: Sequence[int],
    *,
    chosen: int | None = None,
    steps: int = 0,
    step: int | None = None,
    theme: Theme = LIGHT,
    size: Size = (620, 400),
) -> Spec:
    """Each layer's selections over ideal, a row a layer and the most selected expert first: 1 is fair, 0 is dead.

    over_ideal_LE (L, E): of the last `steps` steps together; NaN for an expert that is off, and beyond a layer's experts_L.
    An expert's number means nothing in another layer, so a column is a place in that order; the hover names the expert.
    """
    L, E = len(names_L), max(experts_L)
    short = short_names(names_L)
    subtitle = f"selections ÷ ideal{ideal_words(experts_L)}, last {steps:,} steps; {theme.signs[2]} over, {theme.signs[0]} under"
    layout = base("layers", "Layers by experts", subtitle, step=step, theme=theme, size=size, labels=True)
    layout["meta"] |= {"pick": "layer", "from": "y"}
    short = [cut(name, letters_beside(size, LONGEST)) for name in short]
    longest = max(map(len, short))
    layout["margin"] |= {"r": 76, "l": layout["margin"]["l"] + 7 * max(0, longest - 3)}
    width, height = inner(layout)
    across = expert_ticks(E, width, 2.4 * layout["font"]["size"])
    layout["xaxis"] |= {"range": [0.5, E + 0.5], "tickvals": across, "ticktext": [str(t) for t in across]}
    layout["xaxis"]["title"] = axis_title("experts, by selections in each layer", layout)
    # The axis has every name, so that the hover says it; those that find room stand beside it as notes.
    every = list(range(1, L + 1))
    layout["yaxis"] |= {"range": [L + 0.5, 0.5], "showgrid": False, "tickvals": every, "showticklabels": False}
    layout["yaxis"]["ticktext"] = [escape(name) for name in names_L]
    layout["yaxis"]["title"] = axis_title("layer", layout, standoff=10 + 7 * longest)
    layout["annotations"] += row_notes(short, chosen, height, layout, theme)
    layout["shapes"] += outlines(experts_L, theme)
    if chosen is not None:
        layout["shapes"].append(row_frame(chosen, theme))
    known = np.isfinite(over_ideal_LE).any()
    return {"data": cells(over_ideal_LE, experts_L, height / L, layout, theme) if known else [], "layout": layout}


def cells(over_ideal_LE: Array, experts_L: Sequence[int], px: float, layout: Spec, theme: Theme) -> list[Spec]:
    """The heatmap, each row sorted, and below it grey cells for experts that are off, which come last. px: height of a row."""
    L, E = over_ideal_LE.shape
    order_LE = np.argsort(np.where(np.isnan(over_ideal_LE), np.inf, -over_ideal_LE), axis=1, kind="stable")
    sorted_LE = np.take_along_axis(over_ideal_LE, order_LE, axis=1)
    x, y = np.arange(1, E + 1, dtype=np.int32), np.arange(1, L + 1, dtype=np.int32)
    when = at_step(layout["meta"]["step"])
    heatmap: Spec = {
        "type": "heatmap", "name": "selections over ideal", "x": x, "y": y, "hoverongaps": False,
        "z": log_ratio(sorted_LE).astype(np.float32), "ygap": 1 if px >= GAP else 0,
        "customdata": np.stack([order_LE + 1, sorted_LE], axis=2).astype(np.float32),
        "hovertemplate": "In %{y},<br>expert %{customdata[0]} had %{customdata[1]:.2f} × its ideal selections over the last steps,"
        f"{when}<extra></extra>",
        "colorscale": scale(theme.diverging, DIVERGING_STOPS), "zmin": -3, "zmax": 3,
        "colorbar": colour_bar(layout, theme) | {"tickvals": list(range(-3, 4)), "ticktext": list(FRACTIONS)},
    }  # fmt: skip
    off_LE = np.isnan(sorted_LE) & (x <= np.asarray(experts_L)[:, None])
    if not off_LE.any():
        return [heatmap]
    return [
        {
            "type": "heatmap", "name": "off", "x": x, "y": y, "showscale": False, "hoverongaps": False, "zmin": 0, "zmax": 1,
            "z": np.where(off_LE, np.float32(1), np.float32(np.nan)), "customdata": order_LE.astype(np.float32) + 1,
            "hovertemplate": f"Layer %{{y}}, expert %{{customdata}}: switched off{when}<extra></extra>",
            "colorscale": [[0, theme.edge], [1, theme.edge]],
        },
        heatmap,
    ]  # fmt: skip


def ideal_words(experts_L: Sequence[int]) -> str:
    """ " 1/128", where all layers have as many experts."""
    return f" 1/{experts_L[0]}" if len(set(experts_L)) == 1 else ""


def outlines(experts_L: Sequence[int], theme: Theme) -> list[Spec]:
    """Where layers have different numbers of experts, a frame around the cells of each stretch of equal ones: a fair cell is as
    pale as the ground beside it, where a layer has no more experts."""
    ends = [0, *(row for row in range(1, len(experts_L)) if experts_L[row] != experts_L[row - 1]), len(experts_L)]
    if len(ends) == 2:
        return []
    look = {"type": "rect", "xref": "x", "yref": "y", "line": {"color": theme.ink2, "width": 1}}
    return [
        look | {"x0": 0.5, "x1": experts_L[first] + 0.5, "y0": first + 0.5, "y1": end + 0.5}
        for first, end in itertools.pairwise(ends)
    ]


def row_frame(row: int, theme: Theme) -> Spec:
    """A frame around a row, counted from 0."""
    place = {"xref": "paper", "yref": "y", "x0": 0, "x1": 1, "y0": row + 0.5, "y1": row + 1.5}
    return {"type": "rect", "line": {"color": theme.ink, "width": 1.5}} | place


def row_notes(short: Sequence[str], chosen: int | None, height: int, layout: Spec, theme: Theme) -> list[Spec]:
    """The names of rows at the left, as many as find room; the chosen one always, in ink."""
    font, px = layout["font"]["size"], height / len(short)
    every = every_nth(len(short), px, 1.2 * font)
    rows = [row for row, name in enumerate(short) if (int(name) if numbered(short) else row) % every == 0]
    if chosen is not None:
        rows = [*(row for row in rows if abs(row - chosen) * px >= 1.2 * font), chosen]
    place = {"xref": "paper", "yref": "y", "xanchor": "right", "yanchor": "middle", "xshift": -6}
    return [
        note(
            escape(short[row]), 0, row + 1,
            font=label_font(layout, theme.ink if row == chosen else theme.ink2), **place,
        )
        for row in rows
    ]  # fmt: skip


# Names


def short_names(names: Sequence[str]) -> list[str]:
    """Names without the parts at either end that all share: of "model.layers.3.mlp" and the like the "3"."""
    parts = [re.split(r"[. ]", name) for name in names]
    if len(names) < 2 or len({len(one) for one in parts}) > 1:
        return list(names)
    differ = [i for i, same in enumerate(zip(*parts, strict=True)) if len(set(same)) > 1]
    return [".".join(one[differ[0] : differ[-1] + 1]) for one in parts] if differ else list(names)


def numbered(short: Sequence[str]) -> bool:
    """Whether all short names are whole numbers."""
    return all(name.isdecimal() for name in short)


def cut(name: str, most: int) -> str:
    """The end of a name that is too long: of a module's path it says more than the beginning."""
    return name if len(name) <= most else f"…{name[1 - most :]}"


# How balance is spread over the layers


class Measure(NamedTuple):
    """A column of the figure. low, high: the ends of its axis unless a value is higher; lines: values with a dashed line."""

    name: str
    low: float
    high: float
    lines: tuple[float, ...] = ()


MEASURES = (Measure("CV(selections)", 0.05, 5.0, (0.4, 1.0)), Measure("MaxVio", 0.1, 10.0))


@figure
def layers_spread(
    cv_L: Array,
    max_vio_L: Array,
    names_L: Sequence[str],
    *,
    chosen: int | None = None,
    steps: int = 0,
    step: int | None = None,
    theme: Theme = LIGHT,
    size: Size = (340, 400),
) -> Spec:
    """CV and MaxVio of the selections over the layers: the worst by name, percentiles, the best by name, and each layer.

    cv_L, max_vio_L (L,): of the selections of the last `steps` steps together; NaN for a layer without any.
    """
    subtitle = f"selections of the last {steps:,} steps; dashed: CV 0.4 and 1"
    layout = base("layers_spread", "Balance over the layers", subtitle, step=step, theme=theme, size=size)
    layout["meta"] |= {"pick": "layer"}
    font = layout["font"]["size"]
    digits = round(3.4 * font)  # px that a number takes
    layout["margin"] |= {"r": digits, "l": layout["margin"]["l"] + font}
    width, height = inner(layout)
    rows = ROWS if height / len(ROWS) >= 2.2 * font else ROWS[:-1]
    share = max(0.1, (width - digits - font) / 2 / width)
    plain_x, plain_y, data = layout["xaxis"], layout["yaxis"], list[Spec]()
    for nth, (measure, values_L) in enumerate(zip(MEASURES, (cv_L, max_vio_L), strict=True)):
        end = str(nth + 1) if nth else ""
        start = nth * (1 - share)
        layout[f"xaxis{end}"] = plain_x | log_axis(measure, values_L) | {"domain": [start, start + share]}
        layout[f"xaxis{end}"] |= {"title": axis_title(measure.name, layout), "anchor": f"y{end}"}
        layout[f"yaxis{end}"] = plain_y | {
            "range": [len(rows) + 0.5, 0.5], "tickvals": list(range(1, len(rows) + 1)), "ticktext": list(rows),
            "anchor": f"x{end}", "showgrid": True, "showticklabels": not nth, "fixedrange": True,
            **({} if nth else {"title": axis_title("percentile of the layers", layout, standoff=4)}),
        }  # fmt: skip
        if np.isfinite(values_L).any():
            data += dots(measure, np.asarray(values_L, np.float64), names_L, rows, chosen, end, layout, theme)
        layout["shapes"] += [
            {"type": "line", "xref": f"x{end}", "yref": f"y{end}", "x0": v, "x1": v, "y0": 0.5, "y1": len(rows) + 0.5,
             "line": {"color": theme.ink2, "width": 1, "dash": "4px,4px"}, "layer": "below"}
            for v in measure.lines
        ]  # fmt: skip
    return {"data": data, "layout": layout}


def log_axis(measure: Measure, values_L: Array) -> Spec:
    """A logarithmic axis, longer by whole decades where a value lies beyond it."""
    high = measure.high
    while high < np.nanmax(values_L, initial=0.0):
        high *= 10
    ticks = [0.1, 1, 10, 100, 1000]
    shown = [tick for tick in ticks if measure.low <= tick <= high]
    return {
        "type": "log", "range": [float(np.log10(measure.low)), float(np.log10(high))],
        "tickvals": shown, "ticktext": [f"{tick:g}" for tick in shown],
    }  # fmt: skip


def dots(
    measure: Measure,
    values_L: Array,
    names_L: Sequence[str],
    rows: Sequence[str],
    chosen: int | None,
    end: str,
    layout: Spec,
    theme: Theme,
) -> list[Spec]:
    """A dot for the worst, each percentile and the best, with their numbers beside and two names below, where there is room; a stroke for each layer."""
    axes = {"type": "scatter", "mode": "markers", "xaxis": f"x{end}", "yaxis": f"y{end}", "cliponaxis": False}
    worst, best = int(np.nanargmax(values_L)), int(np.nanargmin(values_L))
    levels = [values_L[worst], *np.nanpercentile(values_L, PERCENTILES), values_L[best]]
    name = measure.name
    hovers = [
        f"The worst layer is {escape(names_L[worst])}: its {name} is {levels[0]:.2f}",
        *(f"In {p} % of the layers {name} is at most {level:.2f}" for p, level in zip(PERCENTILES, levels[1:-1], strict=True)),
        f"The best layer is {escape(names_L[best])}: its {name} is {levels[-1]:.2f}",
    ]  # fmt: skip
    data: list[Spec] = [
        axes | {
            "name": name, "x": np.maximum(levels, measure.low).astype(np.float32), "y": np.arange(1, 7, dtype=np.int32),
            "marker": {"size": 8, "color": [theme.ink, *[theme.ink2] * len(PERCENTILES), theme.ink]},
            "customdata": [worst + 1, *[0] * len(PERCENTILES), best + 1], "hoverinfo": "text", "hovertext": hovers,
        }
    ]  # fmt: skip
    layout["annotations"] += value_notes(levels, end, layout, theme)
    if inner(layout)[1] / len(rows) >= 2.2 * layout["font"]["size"]:
        layout["annotations"] += name_notes(short_names(names_L), worst, best, end, layout, theme)
    if len(rows) == len(ROWS):
        data.append(axes | strokes(name, np.maximum(values_L, measure.low), values_L, names_L, chosen, theme))
    return data


def strokes(
    name: str, place_L: Array, values_L: Array, names_L: Sequence[str], chosen: int | None, theme: Theme
) -> Spec:
    """A stroke for each layer, in one row; that of the chosen one longer and in ink."""
    L = len(values_L)
    return {
        "name": f"{name}, each layer", "x": place_L.astype(np.float32), "y": np.full(L, len(ROWS), np.int32),
        "marker": {
            "symbol": "line-ns", "size": [14 if layer == chosen else 9 for layer in range(L)],
            "line": {"width": 1.5, "color": [theme.ink if layer == chosen else theme.ink2 for layer in range(L)]},
        },
        "customdata": list(range(1, L + 1)), "hoverinfo": "text",
        "hovertext": [f"Layer {escape(name_)}: its {name} is {v:.2f}" for name_, v in zip(names_L, values_L.tolist(), strict=True)],
    }  # fmt: skip


def value_notes(levels: Sequence[float], end: str, layout: Spec, theme: Theme) -> list[Spec]:
    """The numbers, in a column at the right of their dots."""
    font = label_font(layout, theme.ink)
    place = {"xref": f"x{end} domain", "yref": f"y{end}", "xanchor": "left", "yanchor": "middle", "xshift": 8}
    return [note(three_digits(v), 1, row, font=font, **place) for row, v in enumerate(levels, 1)]


def name_notes(short: Sequence[str], worst: int, best: int, end: str, layout: Spec, theme: Theme) -> list[Spec]:
    """The names of the worst and the best layer, below their dots."""
    size = layout["font"]["size"]
    letters = int(inner(layout)[0] / 2 / (0.5 * size))
    place = {
        "xref": f"x{end} domain",
        "yref": f"y{end}",
        "xanchor": "left",
        "yanchor": "middle",
        "yshift": -1.15 * size,
    }
    return [
        note(escape(f"layer {short[layer]}" if numbered(short) else cut(short[layer], letters)), 0, row,
             font=label_font(layout, theme.ink2), bgcolor=theme.ground, **place)
        for layer, row in ((worst, 1), (best, len(PERCENTILES) + 2))
    ]  # fmt: skip


def three_digits(value: float) -> str:
    """2.04, 20.4, 204."""
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"
