"""Two or more runs on one chart: a colour is a run here. The first is ink, the others take the colours of experts 1 to 3.

Each run is a Curve: its steps (n,) and values, on the axis that was chosen (its own steps, or steps since a fork).
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from moe_core.figures.lines import LABEL_GAP, as_steps, end_label, last_of, line, over_steps, spread
from moe_core.figures.theme import (
    LIGHT,
    SANS,
    Array,
    Size,
    Spec,
    Theme,
    doubled,
    escape,
    expert_colour,
    faded,
    figure,
    inner,
    level,
    nice_above,
    note,
    pens,
)
from moe_core.figures.timeline import CV_RANGE, cv_axis, load_map, loss_range

LETTERS = "ABCD"
COLUMNS = 512  # stretches of steps over which a difference is averaged, at most


class Curve(NamedTuple):
    """One run's history. name: its id; steps (n,) ascending, values (n,) or (n, E)."""

    name: str
    steps: Array
    values: Array


def run_colour(at: int, theme: Theme) -> str:
    return theme.ink if at == 0 else expert_colour(at - 1, theme)


def run_name(at: int, name: str) -> str:
    """ "B text-1124", short enough for the hover."""
    return f"{LETTERS[at]} {escape(name[:24])}"


def over_all(
    name: str,
    title: str,
    subtitle: str,
    curves: Sequence[Curve],
    span: tuple[float, float] | None,
    aligned: str,
    y: Spec,
    theme: Theme,
    size: Size,
) -> Spec:
    """The layout of a chart over steps, from 0 to the end of the longest run; after the fork, from there."""
    last = latest(curves)
    layout = over_steps(name, title, subtitle, np.array([last] if last else []), span, y, theme, size)
    layout["meta"]["step"] = last
    if aligned == "fork":
        layout["xaxis"]["title"]["text"] = "steps since the fork"
    return layout


def reading(aligned: str) -> str:
    return "at step %{x:,d}" if aligned == "step" else "%{x:,d} steps after the fork"


def latest(curves: Sequence[Curve]) -> int | None:
    return max((end for curve in curves if (end := last_of(curve.steps)) is not None), default=None)


def run_ends(ends: list[tuple[int, float, str]], layout: Spec, theme: Theme) -> list[Spec]:
    """The runs' letters where their lines end: (run, px above the bottom, value as text)."""
    ends = sorted(ends, key=lambda end: -end[1])
    _, height = inner(layout)
    size = layout["font"]["size"]
    places = spread([min(max(px, 0.0), float(height)) for _, px, _ in ends], max(LABEL_GAP, 1.25 * size))
    return [
        end_label(f"{square(at, theme)} <b>{LETTERS[at]}</b> {text}", y, height, theme, size, ink=True)
        for (at, _, text), y in zip(ends, places, strict=True)
    ]


def square(at: int, theme: Theme) -> str:
    """A square of a run's colour before its letter."""
    return f'<span style="color:{run_colour(at, theme)}">■</span>'


@figure
def compare_balance(
    curves: Sequence[Curve],
    *,
    aligned: str = "step",
    span: tuple[float, float] | None = None,
    theme: Theme = LIGHT,
    size: Size = (620, 300),
) -> Spec:
    """CV(load) of each run over time, on the log axis of the Live page. values (n,)."""
    highest = max((float(np.nanmax(c.values)) for c in curves if np.isfinite(c.values).any()), default=0.0)
    top = doubled(CV_RANGE[1], highest)
    lo, hi = math.log10(CV_RANGE[0]), math.log10(top)
    subtitle = "CV(load), log scale; below 0.4 balanced, above 1 collapsed"
    axis = cv_axis("CV(load)", top)
    layout = over_all("compare_balance", "Balance", subtitle, curves, span, aligned, axis, theme, size)
    data, ends = [], []
    for at, curve in enumerate(curves):
        true = np.asarray(curve.values, np.float32)
        told = f" had a CV(load) of %{{customdata:.3f}} {reading(aligned)}"
        y = np.maximum(true, np.float32(CV_RANGE[0]))
        data.append(of_run(at, curve, y, told, theme, width=pens(size).main) | {"customdata": true})
        if len(true) and np.isfinite(true[-1]):
            px = inner(layout)[1] * (math.log10(max(true[-1], CV_RANGE[0])) - lo) / (hi - lo)
            ends.append((at, px, f"{true[-1]:.2f}"))
    layout["annotations"] += run_ends(ends, layout, theme)
    return {"data": data[::-1], "layout": layout}


def of_run(at: int, curve: Curve, y: Array, told: str, theme: Theme, **pen: Any) -> Spec:
    """A run's line in its colour. told: what the hover says after its name."""
    name = run_name(at, curve.name)
    return line(name, as_steps(curve.steps), y, f"{name}{told}", **{"color": run_colour(at, theme)} | pen)


@figure
def compare_loss(
    curves: Sequence[Curve],
    heldout: Sequence[Curve],
    *,
    unit: str = "nats",
    aligned: str = "step",
    span: tuple[float, float] | None = None,
    theme: Theme = LIGHT,
    size: Size = (460, 300),
) -> Spec:
    """The training loss of each run thin, its held-out loss a line with dots. values (n,) in `unit`, a held-out one a run."""
    lo, hi, tick = loss_range(
        np.concatenate([c.values for c in curves] or [np.zeros(0)]),
        np.concatenate([c.values for c in heldout] or [np.zeros(0)]),
    )
    subtitle = "line with dots: held-out   thin: training"
    axis = {"title": unit, "range": [lo, hi], "dtick": tick}
    layout = over_all("compare_loss", "Loss", subtitle, curves, span, aligned, axis, theme, size)
    data, ends = [], []
    for at, curve in enumerate(curves):
        told = f": the batch had a loss of %{{y:.3f}} {unit} {reading(aligned)}"
        pale = faded(run_colour(at, theme), 0.4)
        data.append(of_run(at, curve, np.asarray(curve.values, np.float32), told, theme, color=pale, width=1.0))
    for at, curve in enumerate(heldout):
        told = f": the held-out loss was %{{y:.3f}} {unit} {reading(aligned)}"
        data.append(
            of_run(at, curve, np.asarray(curve.values, np.float32), told, theme, width=pens(size).main)
            | {"mode": "lines+markers", "marker": {"color": run_colour(at, theme), "size": 5}}
        )
        if len(curve.values):
            last = float(curve.values[-1])
            ends.append((at, inner(layout)[1] * (last - lo) / (hi - lo), f"{last:.2f}"))
    layout["annotations"] += run_ends(ends, layout, theme)
    return {"data": data, "layout": layout}


def differences(curves: Sequence[Curve]) -> tuple[list[Curve], int]:
    """Each run's values minus the first's at the same steps, and over how many steps each point is a mean.

    Only steps that both have are compared, so that with equal seeds and batches each point is a paired difference.
    """
    first = curves[0]
    longest = max((int(c.steps[-1]) for c in curves if len(c.steps)), default=1)
    width = 2 ** max(0, math.ceil(math.log2(max(longest, 1) / COLUMNS)))
    found = []
    for curve in curves[1:]:
        shared, ours, theirs = np.intersect1d(first.steps, curve.steps, assume_unique=True, return_indices=True)
        gap = np.asarray(curve.values, np.float64)[theirs] - np.asarray(first.values, np.float64)[ours]
        groups, starts, counts = np.unique(shared // width, return_index=True, return_counts=True)
        means = np.add.reduceat(gap, starts) / counts if len(starts) else gap
        middles = groups * width + (width - 1) // 2 if width > 1 else shared
        found.append(Curve(curve.name, np.asarray(middles, np.int64), np.asarray(means)))
    return found, width


def difference_chart(
    name: str,
    title: str,
    what: str,
    unit: str,
    curves: Sequence[Curve],
    aligned: str,
    span: Any,
    theme: Theme,
    size: Size,
) -> Spec:
    """Lines about zero, a run each; what lies below 0 is less than the first run had."""
    gaps, width = differences(curves) if curves else ([], 1)
    inside = [np.abs(g.values[np.isfinite(g.values)]) for g in gaps]
    all_gaps = np.concatenate([*inside, np.zeros(0)])
    # The first steps of a fall would flatten the rest, as on the loss chart.
    reach = nice_above(float(np.percentile(all_gaps, 98)) * 1.1 if len(all_gaps) else 1.0)
    each = "at the same step" if width == 1 else f"mean of {width} steps"
    subtitle = f"{what} minus A's, {each}" if gaps else f"{what} minus A's: choose another run to compare with"
    axis = {"title": f"difference{', ' + unit if unit else ''}", "range": [-reach, reach], "nticks": 6}
    layout = over_all(name, title, subtitle, curves, span, aligned, axis, theme, size)
    layout["margin"]["l"] += 12  # a sign and three digits
    layout["shapes"].append(level(0, color=theme.ink, width=1.5))
    data, ends = [], []
    for at, gap in enumerate(gaps, 1):
        y = np.asarray(gap.values, np.float32)
        told = f": %{{y:+.3f}} {unit} against A {reading(aligned)}"
        data.append(of_run(at, gap, y, told, theme, width=pens(size).line))
        if len(y) and np.isfinite(y[-1]):
            mean = float(np.nanmean(y[-max(1, len(y) // 10) :]))
            ends.append((at, inner(layout)[1] * (mean + reach) / (2 * reach), f"{mean:+.3f}".replace("-", "−")))
    layout["annotations"] += run_ends(ends, layout, theme)
    return {"data": data, "layout": layout}


@figure
def compare_balance_difference(
    curves: Sequence[Curve],
    *,
    aligned: str = "step",
    span: tuple[float, float] | None = None,
    theme: Theme = LIGHT,
    size: Size = (620, 240),
) -> Spec:
    """CV(load) of each run minus the first's. values (n,)."""
    title = "Difference in balance"
    return difference_chart("compare_balance_difference", title, "CV(load)", "", curves, aligned, span, theme, size)


@figure
def compare_loss_difference(
    curves: Sequence[Curve],
    *,
    unit: str = "nats",
    aligned: str = "step",
    span: tuple[float, float] | None = None,
    theme: Theme = LIGHT,
    size: Size = (460, 240),
) -> Spec:
    """The training loss of each run minus the first's: paired where seeds and batches are the same. values (n,) in `unit`."""
    title = "Difference in loss"
    return difference_chart("compare_loss_difference", title, "training loss", unit, curves, aligned, span, theme, size)


@figure
def compare_load(
    curves: Sequence[Curve],
    *,
    aligned: str = "step",
    span: tuple[float, float] | None = None,
    theme: Theme = LIGHT,
    size: Size = (940, 320),
) -> Spec:
    """Load over ideal of every expert, a heatmap a run, all on one scale. values (n, E): shares of the selections."""
    fair = "pale" if theme.name == "light" else "dark"
    subtitle = f"load ÷ ideal, a row an expert: {fair} is fair, blue starved, orange overloaded"
    layout = over_all("compare_load", "Load by expert", subtitle, curves, span, aligned, {}, theme, size)
    width, _ = inner(layout)
    rows = max(len(curves), 1)
    gap = 0.05 if rows > 1 else 0.0
    tall = (1 - gap * (rows - 1)) / rows
    template = layout.pop("yaxis")
    layout["xaxis"]["anchor"] = "y" if rows == 1 else f"y{rows}"
    data = []
    for at in range(rows):
        E = curves[at].values.shape[1] if curves else 1
        high = 1 - at * (tall + gap)
        layout["yaxis" + (str(at + 1) if at else "")] = template | {
            "domain": [max(0.0, high - tall), high], "range": [E + 0.5, 0.5], "showgrid": False, "tickvals": sorted({1, E}),
            "ticktext": [str(e) for e in sorted({1, E})], "anchor": "x",
            "title": {"text": "expert" if rows < 3 else "", "standoff": 4, "font": layout["font"]},
        }  # fmt: skip
        if not curves:
            break
        curve = curves[at]
        told = (
            f"{run_name(at, curve.name)}: expert %{{y}} took %{{customdata:.2f}} × its ideal share {reading(aligned)}"
        )
        trace = load_map(run_name(at, curve.name), curve.steps, curve.values, width, told, layout, theme)
        trace["colorbar"] |= {"xpad": 34, "ypad": 0}
        data.append(trace | {"yaxis": "y" + (str(at + 1) if at else ""), "showscale": at == 0})
        font = {"color": theme.ink, "size": layout["font"]["size"], "family": SANS}
        place = {"xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "middle", "xshift": 6}
        letter = f"{square(at, theme)} <b>{LETTERS[at]}</b>"
        layout["annotations"].append(note(letter, 1, high - tall / 2, font=font, **place))
    return {"data": data, "layout": layout}
