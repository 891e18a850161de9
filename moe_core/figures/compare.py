"""Two or more runs on one chart: a colour is a run here. The first is ink, the others take the colours of experts 1 to 3.

Each run is a Curve: its steps (n,) and values, on the axis that was chosen (its own steps, or steps since a fork).
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from moe_core.figures.theme import (
    DIVERGING_STOPS,
    FRACTIONS,
    LABEL_GAP,
    LIGHT,
    SANS,
    Array,
    Size,
    Spec,
    Theme,
    base,
    doubled,
    end_label,
    escape,
    faded,
    figure,
    inner,
    last_of,
    nice_above,
    note,
    pens,
    scale,
    spread,
    step_axis,
)
from moe_core.figures.timeline import CV_RANGE, in_columns, loss_range

LETTERS = "ABCD"
COLUMNS = 512  # stretches of steps over which a difference is averaged, at most


class Curve(NamedTuple):
    """One run's history. name: its id; steps (n,) ascending, values (n,) or (n, E)."""

    name: str
    steps: Array
    values: Array


def run_colour(at: int, theme: Theme) -> str:
    return theme.runs[at]


def run_name(at: int, name: str) -> str:
    """ "B text-1124", short enough for the hover."""
    return f"{LETTERS[at]} {escape(name[:24])}"


def axis_of(curves: Sequence[Curve], span: tuple[float, float] | None, aligned: str) -> Spec:
    """Steps, from 0 to the end of the longest run; after the fork, from there."""
    ends = np.array([int(curve.steps[-1]) for curve in curves if len(curve.steps)] or [0])
    title = "step" if aligned == "step" else "steps since the fork"
    return step_axis(np.array([ends.max()]) if ends.max() > 0 else np.zeros(0), span) | {"title": title}


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
        end_label(
            f'<span style="color:{run_colour(at, theme)}">■</span> <b>{LETTERS[at]}</b> {text}', y, height, theme, size
        )
        | {"font": {"color": theme.ink, "size": size, "family": SANS}}
        for (at, _, text), y in zip(ends, places, strict=True)
    ]


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
    layout = base(
        "compare_balance",
        "Balance",
        "CV(load), log scale; below 0.4 balanced, above 1 collapsed",
        step=latest(curves),
        theme=theme,
        size=size,
        labels=True,
        x=axis_of(curves, span, aligned),
        y={
            "title": "CV(load)", "type": "log", "range": [lo, hi], "tickvals": [0.03, 0.1, 0.3, 1, 3, 10],
            "ticktext": ["0.03", "0.1", "0.3", "1", "3", "10"],
        },
    )  # fmt: skip
    data, ends = [], []
    for at, curve in enumerate(curves):
        true = np.asarray(curve.values, np.float32)
        data.append(
            line(at, curve, np.maximum(true, np.float32(CV_RANGE[0])), theme, pens(size).main)
            | {
                "customdata": true,
                "hovertemplate": f"{run_name(at, curve.name)} had a CV(load) of %{{customdata:.3f}} {reading(aligned)}<extra></extra>",
            }
        )
        if len(true) and np.isfinite(true[-1]):
            px = inner(layout)[1] * (math.log10(max(true[-1], CV_RANGE[0])) - lo) / (hi - lo)
            ends.append((at, px, f"{true[-1]:.2f}"))
    layout["annotations"] += run_ends(ends, layout, theme)
    return {"data": data[::-1], "layout": layout}


def line(at: int, curve: Curve, y: Array, theme: Theme, width: float) -> Spec:
    return {
        "type": "scatter", "mode": "lines", "name": run_name(at, curve.name), "x": np.asarray(curve.steps).astype(np.int32),
        "y": y, "line": {"color": run_colour(at, theme), "width": width},
    }  # fmt: skip


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
    layout = base(
        "compare_loss",
        "Loss",
        "line with dots: held-out   thin: training",
        step=latest(curves),
        theme=theme,
        size=size,
        labels=True,
        x=axis_of(curves, span, aligned),
        y={"title": unit, "range": [lo, hi], "dtick": tick},
    )
    data, ends = [], []
    for at, curve in enumerate(curves):
        thin = line(at, curve, np.asarray(curve.values, np.float32), theme, 1.0)
        thin["line"]["color"] = faded(run_colour(at, theme), 0.4)
        data.append(
            thin
            | {
                "hovertemplate": f"{run_name(at, curve.name)}: the batch had a loss of %{{y:.3f}} {unit} {reading(aligned)}<extra></extra>"
            }
        )
    for at, curve in enumerate(heldout):
        data.append(
            line(at, curve, np.asarray(curve.values, np.float32), theme, pens(size).main)
            | {
                "mode": "lines+markers", "marker": {"color": run_colour(at, theme), "size": 5},
                "hovertemplate": f"{run_name(at, curve.name)}: the held-out loss was %{{y:.3f}} {unit} {reading(aligned)}<extra></extra>",
            }
        )  # fmt: skip
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
    layout = base(
        name,
        title,
        f"{what} minus A's, {each}" if gaps else f"{what} minus A's: choose another run to compare with",
        step=latest(curves),
        theme=theme,
        size=size,
        labels=True,
        x=axis_of(curves, span, aligned),
        y={"title": f"difference{', ' + unit if unit else ''}", "range": [-reach, reach], "nticks": 6},
    )
    layout["margin"]["l"] += 12  # a sign and three digits
    layout["shapes"].append(
        {
            "type": "line", "xref": "paper", "yref": "y", "x0": 0, "x1": 1, "y0": 0, "y1": 0,
            "line": {"color": theme.ink, "width": 1.5},
        }
    )  # fmt: skip
    data, ends = [], []
    for at, gap in enumerate(gaps, 1):
        y = np.asarray(gap.values, np.float32)
        data.append(
            line(at, gap, y, theme, pens(size).line)
            | {
                "hovertemplate": f"{run_name(at, gap.name)}: %{{y:+.3f}} {unit} against A {reading(aligned)}<extra></extra>"
            }
        )
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
    layout = base(
        "compare_load",
        "Load by expert",
        f"load ÷ ideal, a row an expert: {'pale' if theme.name == 'light' else 'dark'} is fair, blue starved, orange overloaded",
        step=latest(curves),
        theme=theme,
        size=size,
        labels=True,
        x=axis_of(curves, span, aligned),
    )
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
        x, ratio_nE = in_columns(curve.steps, np.asarray(curve.values, np.float64) * E, max(8, width // 2))
        ratio_En = np.ascontiguousarray(ratio_nE.T, np.float32)
        with np.errstate(divide="ignore"):
            z = np.clip(np.log2(ratio_En), -3, 3)
        bar = {
            "tickvals": list(range(-3, 4)), "ticktext": list(FRACTIONS), "thickness": 10, "outlinewidth": 0, "len": 1, "x": 1.0,
            "xpad": 34, "ypad": 0, "ticks": "", "tickfont": template["tickfont"],
        }  # fmt: skip
        data.append(
            {
                "type": "heatmap", "name": run_name(at, curve.name), "x": np.asarray(x).astype(np.int32),
                "y": np.arange(1, E + 1, dtype=np.int32), "z": z, "customdata": ratio_En, "zmin": -3, "zmax": 3,
                "yaxis": "y" + (str(at + 1) if at else ""), "colorscale": scale(theme.diverging, DIVERGING_STOPS),
                "showscale": at == 0, "colorbar": bar,
                "hovertemplate": f"{run_name(at, curve.name)}: expert %{{y}} took %{{customdata:.2f}} × its ideal share "
                f"{reading(aligned)}<extra></extra>",
            }
        )  # fmt: skip
        mark = f'<span style="color:{run_colour(at, theme)}">■</span> <b>{LETTERS[at]}</b>'
        font = {"color": theme.ink, "size": layout["font"]["size"], "family": SANS}
        layout["annotations"].append(
            note(
                mark,
                1,
                high - tall / 2,
                xref="paper",
                yref="paper",
                xanchor="left",
                yanchor="middle",
                xshift=6,
                font=font,
            )
        )
    return {"data": data, "layout": layout}
