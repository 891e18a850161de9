"""What a sweep found: balance and quality over the grid of two knobs, and one against the other with the Pareto front.

Shapes: Y rows and X columns of the grid; N runs. NaN is a cell or a run without a result.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from moe_core.figures.paper import LETTER, Array, Size, Spec, base, escape, figure, inner, label_font, note, pens
from moe_core.figures.theme import LIGHT, SANS, Theme, faded, letter_colour, scale
from moe_core.schema import AHEAD, BALANCED, COLLAPSED, LOOKS_AHEAD, exact_text

Swept = tuple[str, Sequence[float | str | None]]  # a knob's name and its values along an axis; None of cells without
CALM_TO_LOUD = (0.0, 1 / 3, 2 / 3, 1.0)  # the upper half of the diverging scale: even looks calm, imbalance shows
LEAST_CV = 0.01  # left end of the logarithmic axis; an even load, CV 0, stands there
LOG_TICKS = {
    "tickvals": (ticks := [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10]),
    "ticktext": [f"{at:g}" for at in ticks],
}
WORSE = 0.1  # a cell that is so much worse than the best, relatively, is loud; less stays calm, since it may be noise
APART = 18  # px between two names
ROOM = 8  # px more than other charts have for the words of the y axis, beside its title


def pareto_front(cost_N2: Array) -> Array:
    """Which rows no other row beats: none is as low in both costs and lower in one. (N,) bool; NaN is never on the front."""
    cost_N2 = np.asarray(cost_N2, np.float64).reshape(-1, 2)
    no_worse_NN = (cost_N2[:, None] <= cost_N2[None]).all(axis=2)
    better_NN = (cost_N2[:, None] < cost_N2[None]).any(axis=2)
    beaten_N = (no_worse_NN & better_NN).any(axis=0)
    return np.asarray(np.isfinite(cost_N2).all(axis=1) & ~beaten_N)


@figure
def sweep_balance(
    cv_load_YX: Array,
    ids_YX: Sequence[Sequence[str]],
    x: Swept,
    y: Swept,
    *,
    theme: Theme = LIGHT,
    size: Size = (560, 380),
) -> Spec:
    """CV(load) of each cell, in colour from even to collapsed. ids_YX: the run to open."""
    highest = np.nanmax(cv_load_YX) if np.isfinite(cv_load_YX).any() else COLLAPSED
    text = f"CV(load), mean over seeds; below {BALANCED:g} even, above {COLLAPSED:g} collapsed"
    layout = grid_layout("sweep_balance", "Balance over the grid", text, x, y, theme, size)
    span = (0.0, max(COLLAPSED, float(highest)))
    return {"data": grid_data(cv_load_YX, ids_YX, x, y, "CV(load)", span, layout, theme), "layout": layout}


@figure
def sweep_quality(
    metric_YX: Array,
    ids_YX: Sequence[Sequence[str]],
    x: Swept,
    y: Swept,
    *,
    label: str,
    lower_is_better: bool,
    ahead_YX: Array | None = None,
    theme: Theme = LIGHT,
    size: Size = (560, 380),
) -> Spec:
    """The held-out metric of each cell, in colour from the best to the worst, or to a tenth worse where all lie closer.

    ahead_YX: cells whose metric looks ahead; beside others they are marked, and have no colour, since they do not compare.
    """
    ahead_YX = apart(ahead_YX, metric_YX)
    known = np.asarray(metric_YX)[np.isfinite(metric_YX) & ~ahead_YX]
    ends = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    best, worst = ends if lower_is_better else ends[::-1]
    room = max(abs(worst - best), WORSE * abs(best)) or 1.0
    end = f"{AHEAD} {LOOKS_AHEAD}" if ahead_YX.any() else "mean over seeds"
    text = f"{escape(label)}; {'lowest' if lower_is_better else 'highest'} is best; {end}"
    layout = grid_layout("sweep_quality", "Quality over the grid", text, x, y, theme, size)
    span = (best, best + room if lower_is_better else best - room)
    return {"data": grid_data(metric_YX, ids_YX, x, y, label, span, layout, theme, ahead_YX), "layout": layout}


def apart(ahead: Array | None, metric: Array) -> Array:
    """Which known metrics look ahead where others do not: bool, of the metric's shape. All alike compare with each other."""
    known = np.isfinite(metric)
    if ahead is None or np.asarray(ahead)[known].all():
        return np.zeros(known.shape, bool)
    return np.asarray(np.asarray(ahead, bool) & known)


def grid_layout(
    name: str,
    title: str,
    subtitle: str,
    x: Swept,
    y: Swept,
    theme: Theme,
    size: Size,
) -> Spec:
    """A cell for each pair of values, all of one size: the values of a sweep are choices, not a scale."""
    layout = base(name, title, subtitle, step=None, theme=theme, size=size, x={"title": x[0]}, y={"title": y[0]})
    for axis, (_, values) in (("xaxis", x), ("yaxis", y)):
        layout[axis] |= {
            "range": [-0.5, len(values) - 0.5],
            "tickvals": list(range(len(values))),
            "ticktext": [escape(exact_text(value)) for value in values],
            "showgrid": False,
            "fixedrange": True,
        }
    # The values of a knob may be words; the axis' title stands left of the longest.
    font = layout["font"]["size"]
    longest = max((len(text) for text in layout["yaxis"]["ticktext"]), default=0)
    layout["margin"]["l"] = max(layout["margin"]["l"], round(LETTER * font * longest + 2 * font))
    return layout


def grid_data(
    values_YX: Array,
    ids_YX: Sequence[Sequence[str]],
    x: Swept,
    y: Swept,
    label: str,
    span: tuple[float, float],
    layout: Spec,
    theme: Theme,
    ahead_YX: Array | None = None,
) -> list[Spec]:
    """The cells, and on each known one its number, which can be clicked. span: the calm end and the loud end.

    ahead_YX: cells that are marked and have no colour.
    """
    values_YX = np.asarray(values_YX, np.float64)
    calm, loud = span
    heat_YX = (values_YX - calm) / (loud - calm)
    colours = theme.diverging[3:]
    known = [(row, column) for row, column in np.argwhere(np.isfinite(values_YX)).tolist()]
    ahead_YX = np.zeros(heat_YX.shape, bool) if ahead_YX is None else ahead_YX
    heat_YX[ahead_YX] = np.nan
    inks = [letter_colour(mixed(colours, float(heat_YX[at]))) if not ahead_YX[at] else theme.ink for at in known]
    width, height = inner(layout)
    cell = min(width / values_YX.shape[1], height / values_YX.shape[0])
    return [
        {
            "type": "heatmap", "name": "cells", "z": heat_YX, "x": list(range(values_YX.shape[1])),
            "y": list(range(values_YX.shape[0])), "zmin": 0.0, "zmax": 1.0, "showscale": False, "xgap": 2, "ygap": 2,
            "colorscale": scale(colours, CALM_TO_LOUD), "hoverinfo": "skip",
        },
        {
            # A heatmap's cells cannot be chosen with a click; markers can.
            "type": "scatter", "mode": "markers+text", "name": "numbers",
            "x": [column for _, column in known], "y": [row for row, _ in known],
            "text": [f"{values_YX[at]:#.3g}".rstrip(".") + f" {AHEAD}" * bool(ahead_YX[at]) for at in known],
            "customdata": [ids_YX[row][column] for row, column in known],
            "marker": {"symbol": "square", "size": max(8, int(0.9 * cell)), "opacity": 0},
            "selected": {"marker": {"opacity": 0}}, "unselected": {"marker": {"opacity": 0}},
            "textfont": {"family": SANS, "size": layout["font"]["size"], "color": inks},
            "hovertext": [
                f"{escape(x[0])} {escape(exact_text(x[1][column]))}, {escape(y[0])} {escape(exact_text(y[1][row]))}: "
                f"{escape(label)} {values_YX[row, column]:.4g}{note_ahead(ahead_YX[row, column])}. Click to open its first run."
                for row, column in known
            ],
            "hoverinfo": "text",
        },
    ]  # fmt: skip


def note_ahead(ahead: bool) -> str:
    """What a hover adds to a metric that does not compare."""
    return f", {LOOKS_AHEAD}" if ahead else ""


def mixed(colours: Sequence[str], at: float) -> str:
    """The colour at 0 to 1 of equally spaced colours, mixed as plotly mixes them."""
    place = min(max(at, 0.0), 1.0) * (len(colours) - 1)
    first = min(int(place), len(colours) - 2)
    ends = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in colours[first : first + 2]]
    part = place - first
    return "#" + "".join(f"{round(a + (b - a) * part):02X}" for a, b in zip(*ends, strict=True))


@figure
def sweep_pareto(
    cv_load_N: Array,
    metric_N: Array,
    ids_N: Sequence[str],
    names_N: Sequence[str],
    *,
    label: str,
    lower_is_better: bool,
    knobs: str = "",
    ahead_N: Array | None = None,
    theme: Theme = LIGHT,
    size: Size = (940, 380),
) -> Spec:
    """The held-out metric against CV(load), a dot a run, and a line through the runs that no other beats in both.

    names_N: each run's cell in short, in the order of `knobs`; ids_N: the run that a click opens. ahead_N: runs whose
    metric looks ahead; beside others they are open dots, and neither on the front nor ahead of it.
    """
    cv_N, metric_N = np.asarray(cv_load_N, np.float64), np.asarray(metric_N, np.float64)
    ahead_N = apart(ahead_N, metric_N)
    costs_N2 = np.stack([cv_N, metric_N if lower_is_better else -metric_N], axis=1)
    costs_N2[ahead_N] = np.nan
    front_N = pareto_front(costs_N2)
    known_N = np.isfinite(cv_N) & np.isfinite(metric_N)
    x_N = np.maximum(cv_N, LEAST_CV)
    layout = pareto_layout(x_N[known_N], metric_N[known_N], label, bool(ahead_N.any()), knobs, theme, size)
    order = np.flatnonzero(front_N)[np.argsort(cv_N[front_N], kind="stable")]
    layout["annotations"] += front_names(
        x_N[order], metric_N[order], [names_N[i] for i in order.tolist()], lower_is_better, layout, theme
    )
    hover_N = [
        f"{escape(name)}: {escape(label)} {metric:.4g} at CV(load) {cv:.3g}{note_ahead(ahead)}. Click to open {escape(run)}."
        for name, metric, cv, ahead, run in zip(names_N, metric_N, cv_N, ahead_N, ids_N, strict=True)
    ]
    rest, ahead_n = np.flatnonzero(known_N & ~front_N & ~ahead_N), np.flatnonzero(known_N & ahead_N)

    def dots(name: str, of: Array, mode: str, marker: Spec) -> Spec:
        return {
            "type": "scatter", "mode": mode, "name": name, "x": x_N[of], "y": metric_N[of],
            "customdata": [ids_N[i] for i in of.tolist()], "marker": marker, "hoverinfo": "text",
            "hovertext": [hover_N[i] for i in of.tolist()],
        }  # fmt: skip

    open_dot = {"symbol": "circle-open", "size": 9, "color": theme.ink2, "line": {"width": 2}}
    line = {"color": theme.ink, "width": pens(size).line, "shape": "linear"}
    data = [dots("runs that look ahead", ahead_n, "markers", open_dot)] if len(ahead_n) else []
    data.append(dots("other runs", rest, "markers", {"size": 8, "color": faded(theme.ink2, 0.55)}))
    data.append(dots("front", order, "lines+markers", {"size": 9, "color": theme.ink}) | {"line": line})
    return {"data": data, "layout": layout}


def pareto_layout(x_n: Array, y_n: Array, label: str, ahead: bool, knobs: str, theme: Theme, size: Size) -> Spec:
    """x_n, y_n: the known runs' CV(load) and metric."""
    layout = base(
        "sweep_pareto",
        "Quality against balance",
        "a dot a run; line: runs that none beats in both"
        + (f"; open dot {LOOKS_AHEAD}" if ahead else "")
        + (f"<br>named: {escape(knobs)}" if knobs else ""),
        step=None,
        theme=theme,
        size=size,
        x={"title": "CV(load), mean of the last steps", "type": "log", "range": log_range(x_n), **LOG_TICKS},
        y={"title": escape(label), "range": padded(y_n), "nticks": 6},
    )
    layout["margin"]["l"] += ROOM
    layout["margin"]["t"] += round(1.3 * pens(size).title) * bool(knobs)  # for the third line
    return layout


def front_names(x_N: Array, y_N: Array, names: Sequence[str], falling: bool, layout: Spec, theme: Theme) -> list[Spec]:
    """The names beside the front's dots, best balance first, as far as they find room, on the side where the line is not.

    falling: the front's line falls to the right; else it rises.
    """
    width, height = inner(layout)
    (x0, x1), (y0, y1) = layout["xaxis"]["range"], layout["yaxis"]["range"]
    taken: list[tuple[float, float]] = []
    labels = []
    for x, y, name in zip(x_N.tolist(), y_N.tolist(), names, strict=True):
        at = (width * (math.log10(x) - x0) / (x1 - x0), height * (y - y0) / (y1 - y0))
        if any(abs(at[0] - other[0]) < 6 * len(name) + APART and abs(at[1] - other[1]) < APART for other in taken):
            continue
        taken.append(at)
        left = at[0] > 0.85 * width
        above = falling != left
        labels.append(
            note(
                escape(name), math.log10(x), y, xref="x", yref="y", xanchor="right" if left else "left",
                yanchor="bottom" if above else "top", xshift=-6 if left else 6, font=label_font(layout, theme.ink),
            )
        )  # fmt: skip
    return labels


def log_range(x_n: Array) -> list[float]:
    """An axis' ends, as powers of ten, with room around the positive values; 0.02 to 5 when there is none."""
    low, high = (float(x_n.min()), float(x_n.max())) if len(x_n) else (0.02, 5.0)
    return [math.log10(low / 1.3), math.log10(high * 1.3)]


def padded(y_n: Array) -> list[float]:
    """An axis' ends with a tenth of room around the values."""
    low, high = (float(y_n.min()), float(y_n.max())) if len(y_n) else (0.0, 1.0)
    room: Any = (high - low) / 10 or abs(high) / 10 or 1.0
    return [low - room, high + room]
