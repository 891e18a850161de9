"""Two or more runs on one chart: a colour is a run here. The first is ink, the others take the colours of experts 1 to 3.

Each run is a Curve: its steps (n,) and values, on the chosen axis (its own steps, or steps since a fork). On a page a run has a
letter, which tiles and table explain. In a figure that stands alone its runs have their names: `named` is its width in px, else 0.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from moe_core.figures.called import Called, called, run_colour, square
from moe_core.figures.changes import mark_changes
from moe_core.figures.comparing import BY_STEP, Curve, Shared, mark_turns, run_ends
from moe_core.figures.lines import (
    as_steps,
    held_out,
    held_out_words,
    line,
    parted,
)
from moe_core.figures.paper import (
    Array,
    Size,
    Spec,
    doubled,
    figure,
    inner,
    label_font,
    level,
    nice_above,
    note,
    pens,
)
from moe_core.figures.theme import LIGHT, Theme, faded
from moe_core.figures.timeline import CV_RANGE, cv_axis, loss_axis, loss_range, share_map

COLUMNS = 512  # stretches of steps over which a difference is averaged, at most


@figure
def compare_balance(
    curves: Sequence[Curve],
    *,
    counted: str = "load",
    over: Shared = BY_STEP,
    named: int = 0,
    theme: Theme = LIGHT,
    size: Size = (620, 300),
) -> Spec:
    """CV(load) of each run over time, on the log axis of the Live page; CV(selections) with counted="selections". values (n,)."""
    highest = max((float(np.nanmax(c.values)) for c in curves if np.isfinite(c.values).any()), default=0.0)
    top = doubled(CV_RANGE[1], highest)
    lo, hi = math.log10(CV_RANGE[0]), math.log10(top)
    subtitle = f"CV({counted}), log scale; below 0.4 balanced, above 1 collapsed"
    axis = cv_axis(f"CV({counted})", top)
    runs = called(curves, named)
    layout = over.layout("compare_balance", "Balance", subtitle, curves, runs, axis, theme, size)
    data, ends, drawn = [], [], []
    for at, curve in enumerate(curves):
        true = np.asarray(curve.values, np.float32)
        hover = f" had a CV({counted}) of %{{customdata:.3f}} {over.at}"
        y = np.maximum(true, np.float32(CV_RANGE[0]))
        data.append(of_run(at, runs[at], curve, y, hover, theme, width=pens(size).main) | {"customdata": true})
        drawn.append(curve._replace(values=y))
        if len(true) and np.isfinite(true[-1]):
            px = inner(layout)[1] * (math.log10(max(true[-1], CV_RANGE[0])) - lo) / (hi - lo)
            ends.append((at, px, f"{true[-1]:.2f}"))
    layout["annotations"] += run_ends(runs, ends, named, layout, theme)
    return {"data": data[::-1] + mark_turns(drawn, runs, layout, over, theme, True), "layout": layout}


def of_run(at: int, run: Called, curve: Curve, y: Array, hover: str, theme: Theme, **pen: Any) -> Spec:
    """A run's line in its colour. hover: what the hover says after its name."""
    return line(
        run.name,
        as_steps(curve.steps),
        y,
        f"{run.name}{hover}",
        **{"color": run_colour(at, theme), "dash": theme.dash_of(at)} | pen,
    )


@figure
def compare_loss(
    curves: Sequence[Curve],
    heldout: Sequence[Curve],
    *,
    unit: str = "nats",
    over: Shared = BY_STEP,
    named: int = 0,
    theme: Theme = LIGHT,
    size: Size = (460, 300),
) -> Spec:
    """The training loss of each run thin, its held-out loss a line with dots. values (n,) in `unit`, a held-out one a run."""
    lo, hi, tick = loss_range(
        np.concatenate([c.steps for c in curves] or [np.zeros(0)]),
        np.concatenate([c.values for c in curves] or [np.zeros(0)]),
        np.concatenate([c.values for c in heldout] or [np.zeros(0)]),
    )
    subtitle = held_out_words([curve.comparable for curve in heldout if len(curve.values)])
    axis = loss_axis(unit, lo, hi, tick)
    runs = called(curves, named)
    layout = over.layout("compare_loss", "Loss", subtitle, curves, runs, axis, theme, size)
    data, ends = [], []
    for at, curve in enumerate(curves):
        hover = f": the batch had a loss of %{{y:.3f}} {unit} {over.at}"
        pale = faded(run_colour(at, theme), 0.4)
        data.append(
            of_run(at, runs[at], curve, np.asarray(curve.values, np.float32), hover, theme, color=pale, width=1.0)
        )
    for at, curve in enumerate(heldout):
        hover = f": the held-out loss was %{{y:.3f}} {unit} {over.at}"
        pen, name = {"color": run_colour(at, theme), "width": pens(size).main, "dash": theme.dash_of(at)}, runs[at].name
        data += held_out(name, curve.steps, curve.values, curve.comparable, f"{name}{hover}", **pen)
        if len(curve.values):
            last = float(curve.values[-1])
            ends.append((at, inner(layout)[1] * (last - lo) / (hi - lo), f"{last:.2f}"))
    layout["annotations"] += run_ends(runs, ends, named, layout, theme)
    return {"data": data + mark_turns(curves, runs, layout, over, theme, True), "layout": layout}


def differences(curves: Sequence[Curve]) -> dict[str, Any]:
    """gaps: each run's values minus the first's at the same steps; width: over how many steps each point is a mean.

    Only steps that both have are compared, so that with equal seeds and batches each point is a paired difference.
    """
    first = curves[0]
    longest = max((int(c.steps[-1]) for c in curves if len(c.steps)), default=1)
    width = 2 ** max(0, math.ceil(math.log2(max(longest, 1) / COLUMNS)))
    gaps = []
    for curve in curves[1:]:
        shared, ours, theirs = np.intersect1d(first.steps, curve.steps, assume_unique=True, return_indices=True)
        gap = np.asarray(curve.values, np.float64)[theirs] - np.asarray(first.values, np.float64)[ours]
        groups, starts, counts = np.unique(shared // width, return_index=True, return_counts=True)
        means = np.add.reduceat(gap, starts) / counts if len(starts) else gap
        middles = groups * width + (width - 1) // 2 if width > 1 else shared
        gaps.append(Curve(curve.name, np.asarray(middles, np.int64), np.asarray(means), curve.turns))
    return {"gaps": gaps, "width": width}


def difference_chart(
    name: str,
    title: str,
    what: str,
    unit: str,
    curves: Sequence[Curve],
    gaps: Sequence[Curve],
    width: int,
    over: Shared,
    named: int,
    label_changes: bool,
    theme: Theme,
    size: Size,
) -> Spec:
    """Lines about zero, a run each; what lies below 0 is less than the first run had. The first run's turns stand on zero."""
    inside = [np.abs(g.values[np.isfinite(g.values)]) for g in gaps]
    all_gaps = np.concatenate([*inside, np.zeros(0)])
    # The first steps of a fall would flatten the rest, as on the loss chart.
    reach = nice_above(float(np.percentile(all_gaps, 98)) * 1.1 if len(all_gaps) else 1.0)
    each = "at the same step" if width == 1 else f"mean of {width} steps"
    each += "; dotted: looks ahead" if any(gap.comparable is not None for gap in gaps) else ""
    runs = called(curves, named)
    less = f"{what} minus that of {runs[0].label}" if named and runs else f"{what} minus A's"
    subtitle = f"{less}, {each}" if gaps else f"{less}: choose another run to compare with"
    if missing := over.missing(runs):
        subtitle = missing if not any(len(gap.steps) for gap in gaps) else f"{subtitle}; {missing}"
    axis = {"title": f"difference{', ' + unit if unit else ''}", "range": [-reach, reach], "nticks": 6}
    layout = over.layout(name, title, subtitle, curves, runs, axis, theme, size)
    layout["shapes"].append(level(0, color=theme.ink, width=1.5))
    data, ends = [], []
    for at, gap in enumerate(gaps, 1):
        y = np.asarray(gap.values, np.float32)
        name, hover = runs[at].name, f": %{{y:+.3f}} {unit} against {runs[0].name if named else 'A'} {over.at}"
        pen = {"color": run_colour(at, theme), "width": pens(size).line, "dash": theme.dash_of(at)}
        data += parted(name, gap.steps, y, gap.comparable, f"{name}{hover}", **pen)
        if len(y) and np.isfinite(y[-1]):
            mean = float(np.nanmean(y[-max(1, len(y) // 10) :]))
            ends.append((at, inner(layout)[1] * (mean + reach) / (2 * reach), f"{mean:+.3f}".replace("-", "−")))
    layout["annotations"] += run_ends(runs, ends, named, layout, theme)
    zero = [curve._replace(values=np.zeros(len(curve.steps))) for curve in curves[:1] if gaps]
    turned = mark_turns([*zero, *gaps], runs, layout, over, theme, label_changes)
    return {"data": data + turned, "layout": layout}


@figure
def compare_balance_difference(
    curves: Sequence[Curve],
    gaps: Sequence[Curve] = (),
    width: int = 1,
    *,
    counted: str = "load",
    over: Shared = BY_STEP,
    named: int = 0,
    label_changes: bool = False,
    theme: Theme = LIGHT,
    size: Size = (620, 240),
) -> Spec:
    """CV(load), or CV(selections), of each run minus the first's. gaps, width: the `differences` of the curves, values (n,)."""
    return difference_chart(
        "compare_balance_difference", "Difference in balance", f"CV({counted})", "", curves, gaps, width, over,
        named, label_changes, theme, size,
    )  # fmt: skip


@figure
def compare_loss_difference(
    curves: Sequence[Curve],
    gaps: Sequence[Curve] = (),
    width: int = 1,
    *,
    unit: str = "nats",
    over: Shared = BY_STEP,
    named: int = 0,
    label_changes: bool = False,
    theme: Theme = LIGHT,
    size: Size = (460, 240),
) -> Spec:
    """The training loss of each run minus the first's: paired where seeds and batches are the same.

    gaps, width: the `differences` of the curves, values (n,) in `unit`.
    """
    return difference_chart(
        "compare_loss_difference", "Difference in loss", "training loss", unit, curves, gaps, width, over,
        named, label_changes, theme, size,
    )  # fmt: skip


@figure
def compare_selections(
    curves: Sequence[Curve],
    *,
    over: Shared = BY_STEP,
    named: int = 0,
    label_changes: bool = False,
    theme: Theme = LIGHT,
    size: Size = (940, 320),
) -> Spec:
    """Share over ideal of every expert, a heatmap a run, all on one scale. values (n, E): shares of the selections."""
    starved, fair, overloaded = theme.signs
    subtitle = f"selections ÷ ideal, a row an expert: {fair} is fair, {starved} starved, {overloaded} overloaded"
    runs = called(curves, named)
    layout = over.layout("compare_selections", "Selections by expert", subtitle, curves, runs, {}, theme, size)
    (width, _), rows = inner(layout), max(len(curves), 1)
    most = 0.5 / rows  # in a low figure half of the height stays with the maps
    gap = min(most, max(0.05, 12 / inner(layout)[1])) if rows > 1 else 0.0  # the numbers of two maps do not touch
    # A name stands above its map, where it takes no width.
    head = min(most, 1.5 * layout["font"]["size"] / inner(layout)[1]) if named else 0.0
    tall = (1 - max(gap, head) * (rows - 1) - head) / rows
    template = layout.pop("yaxis")
    layout["xaxis"]["anchor"] = "y" if rows == 1 else f"y{rows}"
    data = []
    for at in range(rows):
        E = curves[at].values.shape[1] if curves else 1
        high = 1 - head - at * (tall + max(gap, head))
        layout["yaxis" + (str(at + 1) if at else "")] = template | {
            "domain": [max(0.0, high - tall), high], "range": [E + 0.5, 0.5], "showgrid": False, "tickvals": sorted({1, E}),
            "ticktext": [str(e) for e in sorted({1, E})], "anchor": "x",
            "title": {"text": "expert" if rows < 3 else "", "standoff": 4, "font": layout["font"]},
        }  # fmt: skip
        if not curves:
            break
        curve = curves[at]
        hover = f"{runs[at].name}: expert %{{y}} took %{{customdata:.2f}} × its ideal share {over.at}"
        trace, *off = share_map(runs[at].name, curve.steps, curve.values, width, hover, layout, theme)
        trace["colorbar"] |= {"ypad": 0} if named else {"xpad": 34, "ypad": 0}
        trace |= {"yaxis": "y" + (str(at + 1) if at else ""), "showscale": at == 0}
        data += [trace, *(one | {"yaxis": trace["yaxis"]} for one in off)]
        place: Spec = {"xref": "paper", "yref": "paper", "xanchor": "left", "font": label_font(layout, theme.ink)}
        place |= {"yanchor": "bottom", "borderpad": 0} if named else {"yanchor": "middle", "xshift": 6}
        word, y = f"{square(at, theme)} <b>{runs[at].label}</b>", high if named else high - tall / 2
        layout["annotations"].append(note(word, float(not named), y, **place))
        # A name below the lower edge of a low map would cover the next run's.
        labels = label_changes and (not named or tall * inner(layout)[1] > 1.5 * layout["font"]["size"])
        rows_of = {"yref": trace["yaxis"], "y0": E + 0.5, "y1": 0.5}
        mark_changes(layout, curve.turns, theme, labelled=labels, cased=True, top=high, tall=tall, **rows_of)
    return {"data": data, "layout": layout}
