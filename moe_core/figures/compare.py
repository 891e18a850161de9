"""Two or more runs on one chart: a colour is a run here. The first is ink, the others take the colours of experts 1 to 3.

Each run is a Curve: its steps (n,) and values, on the chosen axis (its own steps, or steps since a fork).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from moe_core.figures.changes import Name, change_names, grouped, list_of, mark_changes, mark_cursor, turn
from moe_core.figures.lines import (
    LABEL_GAP,
    as_steps,
    end_label,
    held_out,
    held_out_words,
    last_of,
    line,
    over_steps,
    parted,
    spread,
)
from moe_core.figures.paper import (
    Array,
    Size,
    Spec,
    doubled,
    escape,
    figure,
    inner,
    level,
    nice_above,
    note,
    pens,
    upright,
)
from moe_core.figures.theme import LIGHT, SANS, Theme, faded
from moe_core.figures.timeline import CV_RANGE, cv_axis, loss_axis, loss_range, share_map

LETTERS = "ABCD"
COLUMNS = 512  # stretches of steps over which a difference is averaged, at most


class Curve(NamedTuple):
    """One run's history. name: its id; steps (n,) ascending, values (n,) or (n, E); turns: its knob changes, on these steps;
    comparable (n,) bool, None for all: which values compare with those of other strategies."""

    name: str
    steps: Array
    values: Array
    turns: tuple[Any, ...] = ()
    comparable: Array | None = None


def run_colour(at: int, theme: Theme) -> str:
    return theme.runs[at]


def run_name(at: int, name: str) -> str:
    """ "B text-1124", short enough for the hover."""
    return f"{LETTERS[at]} {escape(name[:24])}"


class Shared(NamedTuple):
    """The x axis of all charts of a comparison, from 0 to the end of the longest run, or the part that is seen (span).

    aligned: by "step" or "fork"; offset: the step of the first run that stands at 0; cursor: the place on the axis that the page
    shows.
    """

    aligned: str = "step"
    offset: int = 0
    span: tuple[float, float] | None = None
    cursor: int | None = None

    def layout(
        self, name: str, title: str, subtitle: str, curves: Sequence[Curve], y: Spec, theme: Theme, size: Size
    ) -> Spec:
        last = latest(curves)
        layout = over_steps(name, title, subtitle, np.array([last] if last else []), self.span, y, theme, size)
        layout["meta"]["step"] = last
        layout["margin"]["l"] += 12  # room for a sign and three digits; all charts of the page share one left edge
        if self.aligned == "fork":
            layout["xaxis"]["title"]["text"] = "steps since the fork"
            layout["meta"]["offset"] = self.offset  # the step that another chart points at is one of the first run
        mark_cursor(layout, self.cursor, theme)
        return layout

    @property
    def at(self) -> str:
        """A place on the axis, for the hover."""
        return "at step %{x:,d}" if self.aligned == "step" else "%{x:,d} steps after the fork"


BY_STEP = Shared()


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


def mark_turns(curves: Sequence[Curve], layout: Spec, over: Shared, theme: Theme, labelled: bool) -> list[Spec]:
    """Where each run's knobs were turned: a diamond of the hand's colour on the run's line, at the value recorded there.

    curves: as drawn. A change that several runs share is named once, with the letters of all; only a named one has a line
    from top to bottom, so that four runs stay readable.
    """
    lo, hi = layout["xaxis"]["range"]
    x, y, words = [], [], []
    named: dict[tuple[int, str], list[int]] = {}
    for at, curve in enumerate(curves):
        for change in curve.turns:
            row = int(np.searchsorted(curve.steps, change.step))
            if row == len(curve.steps) or not np.isfinite(curve.values[row]) or not lo <= change.step <= hi:
                continue
            where = over.at.replace("%{x:,d}", f"{change.step:,}")
            x.append(change.step)
            y.append(curve.values[row])
            words.append(f"{run_name(at, curve.name)} was turned {where}: {turn(change)}")
            named.setdefault((change.step, turn(change)), []).append(at)
    if labelled:
        names = change_names(layout, shared_names(named, layout, theme), theme, rows=2)
        layout["annotations"] += names
        layout["shapes"] += [upright(name["x"], color=faded(theme.hand, 0.5), width=1) for name in names]
    if not x:
        return []
    edge = {"color": theme.ground, "width": 1.5}
    return [
        {
            "type": "scatter", "mode": "markers", "name": "turned", "x": as_steps(np.array(x)), "y": np.array(y, np.float32),
            "marker": {"symbol": "diamond", "size": 8, "color": theme.hand, "line": edge}, "hovertext": words,
            "hoverinfo": "text",
        }
    ]  # fmt: skip


def shared_names(named: Mapping[tuple[int, str], Sequence[int]], layout: Spec, theme: Theme) -> list[Name]:
    """The names of the changes (step, text) of several runs, each with the letters of the runs that have it; of those that stand
    close together how many they are."""
    names = []
    for group in grouped(sorted({step for step, _ in named}), layout):
        here = [(step, letters_of(runs, theme), text) for (step, text), runs in sorted(named.items()) if step in group]
        if len(group) == 1:
            texts: dict[str, list[str]] = {}
            for _, letters, text in here:
                texts.setdefault(letters, []).append(text)
            names += [Name(group[0], f"{letters} {', '.join(turns)}") for letters, turns in texts.items()]
        else:
            every = sorted({at for (step, _), runs in named.items() if step in group for at in runs})
            each = [f"step {step:,}: {letters} {text}" for step, letters, text in here]
            names.append(Name(group[0], f"{letters_of(every, theme)} {len(each)} changes", list_of(each)))
    return names


def letters_of(runs: Sequence[int], theme: Theme) -> str:
    return " ".join(f"{square(at, theme)} {LETTERS[at]}" for at in runs)


@figure
def compare_balance(
    curves: Sequence[Curve],
    *,
    counted: str = "load",
    over: Shared = BY_STEP,
    theme: Theme = LIGHT,
    size: Size = (620, 300),
) -> Spec:
    """CV(load) of each run over time, on the log axis of the Live page; CV(selections) with counted="selections". values (n,)."""
    highest = max((float(np.nanmax(c.values)) for c in curves if np.isfinite(c.values).any()), default=0.0)
    top = doubled(CV_RANGE[1], highest)
    lo, hi = math.log10(CV_RANGE[0]), math.log10(top)
    subtitle = f"CV({counted}), log scale; below 0.4 balanced, above 1 collapsed"
    axis = cv_axis(f"CV({counted})", top)
    layout = over.layout("compare_balance", "Balance", subtitle, curves, axis, theme, size)
    data, ends, drawn = [], [], []
    for at, curve in enumerate(curves):
        true = np.asarray(curve.values, np.float32)
        hover = f" had a CV({counted}) of %{{customdata:.3f}} {over.at}"
        y = np.maximum(true, np.float32(CV_RANGE[0]))
        data.append(of_run(at, curve, y, hover, theme, width=pens(size).main) | {"customdata": true})
        drawn.append(curve._replace(values=y))
        if len(true) and np.isfinite(true[-1]):
            px = inner(layout)[1] * (math.log10(max(true[-1], CV_RANGE[0])) - lo) / (hi - lo)
            ends.append((at, px, f"{true[-1]:.2f}"))
    layout["annotations"] += run_ends(ends, layout, theme)
    return {"data": data[::-1] + mark_turns(drawn, layout, over, theme, True), "layout": layout}


def of_run(at: int, curve: Curve, y: Array, hover: str, theme: Theme, **pen: Any) -> Spec:
    """A run's line in its colour. hover: what the hover says after its name."""
    name = run_name(at, curve.name)
    return line(
        name,
        as_steps(curve.steps),
        y,
        f"{name}{hover}",
        **{"color": run_colour(at, theme), "dash": theme.dash_of(at)} | pen,
    )


@figure
def compare_loss(
    curves: Sequence[Curve],
    heldout: Sequence[Curve],
    *,
    unit: str = "nats",
    over: Shared = BY_STEP,
    theme: Theme = LIGHT,
    size: Size = (460, 300),
) -> Spec:
    """The training loss of each run thin, its held-out loss a line with dots. values (n,) in `unit`, a held-out one a run."""
    lo, hi, tick = loss_range(
        np.concatenate([c.values for c in curves] or [np.zeros(0)]),
        np.concatenate([c.values for c in heldout] or [np.zeros(0)]),
    )
    subtitle = held_out_words([curve.comparable for curve in heldout])
    axis = loss_axis(unit, lo, hi, tick)
    layout = over.layout("compare_loss", "Loss", subtitle, curves, axis, theme, size)
    data, ends = [], []
    for at, curve in enumerate(curves):
        hover = f": the batch had a loss of %{{y:.3f}} {unit} {over.at}"
        pale = faded(run_colour(at, theme), 0.4)
        data.append(of_run(at, curve, np.asarray(curve.values, np.float32), hover, theme, color=pale, width=1.0))
    for at, curve in enumerate(heldout):
        hover = f": the held-out loss was %{{y:.3f}} {unit} {over.at}"
        name = run_name(at, curve.name)
        pen = {"color": run_colour(at, theme), "width": pens(size).main, "dash": theme.dash_of(at)}
        data += held_out(name, curve.steps, curve.values, curve.comparable, f"{name}{hover}", **pen)
        if len(curve.values):
            last = float(curve.values[-1])
            ends.append((at, inner(layout)[1] * (last - lo) / (hi - lo), f"{last:.2f}"))
    layout["annotations"] += run_ends(ends, layout, theme)
    return {"data": data + mark_turns(curves, layout, over, theme, True), "layout": layout}


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
    subtitle = f"{what} minus A's, {each}" if gaps else f"{what} minus A's: choose another run to compare with"
    axis = {"title": f"difference{', ' + unit if unit else ''}", "range": [-reach, reach], "nticks": 6}
    layout = over.layout(name, title, subtitle, curves, axis, theme, size)
    layout["shapes"].append(level(0, color=theme.ink, width=1.5))
    data, ends = [], []
    for at, gap in enumerate(gaps, 1):
        y = np.asarray(gap.values, np.float32)
        name, hover = run_name(at, gap.name), f": %{{y:+.3f}} {unit} against A {over.at}"
        pen = {"color": run_colour(at, theme), "width": pens(size).line, "dash": theme.dash_of(at)}
        data += parted(name, gap.steps, y, gap.comparable, f"{name}{hover}", **pen)
        if len(y) and np.isfinite(y[-1]):
            mean = float(np.nanmean(y[-max(1, len(y) // 10) :]))
            ends.append((at, inner(layout)[1] * (mean + reach) / (2 * reach), f"{mean:+.3f}".replace("-", "−")))
    layout["annotations"] += run_ends(ends, layout, theme)
    zero = [curve._replace(values=np.zeros(len(curve.steps))) for curve in curves[:1] if gaps]
    turned = mark_turns([*zero, *gaps], layout, over, theme, label_changes)
    return {"data": data + turned, "layout": layout}


@figure
def compare_balance_difference(
    curves: Sequence[Curve],
    gaps: Sequence[Curve] = (),
    width: int = 1,
    *,
    counted: str = "load",
    over: Shared = BY_STEP,
    label_changes: bool = False,
    theme: Theme = LIGHT,
    size: Size = (620, 240),
) -> Spec:
    """CV(load), or CV(selections), of each run minus the first's. gaps, width: the `differences` of the curves, values (n,)."""
    return difference_chart(
        "compare_balance_difference", "Difference in balance", f"CV({counted})", "", curves, gaps, width, over,
        label_changes, theme, size,
    )  # fmt: skip


@figure
def compare_loss_difference(
    curves: Sequence[Curve],
    gaps: Sequence[Curve] = (),
    width: int = 1,
    *,
    unit: str = "nats",
    over: Shared = BY_STEP,
    label_changes: bool = False,
    theme: Theme = LIGHT,
    size: Size = (460, 240),
) -> Spec:
    """The training loss of each run minus the first's: paired where seeds and batches are the same.

    gaps, width: the `differences` of the curves, values (n,) in `unit`.
    """
    return difference_chart(
        "compare_loss_difference", "Difference in loss", "training loss", unit, curves, gaps, width, over,
        label_changes, theme, size,
    )  # fmt: skip


@figure
def compare_selections(
    curves: Sequence[Curve],
    *,
    over: Shared = BY_STEP,
    label_changes: bool = False,
    theme: Theme = LIGHT,
    size: Size = (940, 320),
) -> Spec:
    """Share over ideal of every expert, a heatmap a run, all on one scale. values (n, E): shares of the selections."""
    starved, fair, overloaded = theme.signs
    subtitle = f"selections ÷ ideal, a row an expert: {fair} is fair, {starved} starved, {overloaded} overloaded"
    layout = over.layout("compare_selections", "Selections by expert", subtitle, curves, {}, theme, size)
    width, _ = inner(layout)
    rows = max(len(curves), 1)
    gap = max(0.05, 12 / inner(layout)[1]) if rows > 1 else 0.0  # so that the numbers of two maps do not touch
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
        hover = f"{run_name(at, curve.name)}: expert %{{y}} took %{{customdata:.2f}} × its ideal share {over.at}"
        trace, *off = share_map(run_name(at, curve.name), curve.steps, curve.values, width, hover, layout, theme)
        trace["colorbar"] |= {"xpad": 34, "ypad": 0}
        trace |= {"yaxis": "y" + (str(at + 1) if at else ""), "showscale": at == 0}
        data += [trace, *(one | {"yaxis": trace["yaxis"]} for one in off)]
        font = {"color": theme.ink, "size": layout["font"]["size"], "family": SANS}
        place = {"xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "middle", "xshift": 6}
        letter = f"{square(at, theme)} <b>{LETTERS[at]}</b>"
        layout["annotations"].append(note(letter, 1, high - tall / 2, font=font, **place))
        rows_of = {"yref": trace["yaxis"], "y0": E + 0.5, "y1": 0.5}
        mark_changes(layout, curve.turns, theme, labelled=label_changes, cased=True, top=high, tall=tall, **rows_of)
    return {"data": data, "layout": layout}
