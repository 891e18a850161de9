"""The shrinking batch problem: how many tokens an expert sees, by the formula and as measured, and what that costs.

With k of E experts, a batch of T tokens on each of D devices gives an expert k*T*D/E tokens. (Shazeer 2017, section 3.1)
"""

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np

from moe_core.figures.changes import mark
from moe_core.figures.lines import as_steps, end_labels, line, over_steps
from moe_core.figures.pages.tile import short
from moe_core.figures.paper import (
    DASHED,
    LETTER,
    Array,
    Size,
    Spec,
    base,
    escape,
    figure,
    inner,
    level,
    nice_above,
    pens,
    upright,
)
from moe_core.figures.reading import tokens_per_expert
from moe_core.figures.theme import LIGHT, Theme

EXPERTS = np.array([1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024])


def log2_axis(title: str, values: Array, size: Size) -> Spec:
    """A logarithmic axis with a tick at each of the powers of two, or in a narrow chart at every second."""
    values = np.asarray(values, np.float64)
    words = [f"{v:,.0f}" if v < 10_000 else short(v) for v in values.tolist()]
    room = 0.8 * size[0] / len(words)
    # From the middle of one to that of the next.
    longest = max((len(one) + len(other) for one, other in pairwise(words)), default=0) / 2
    every = max(1, math.ceil((LETTER * pens(size).axis * longest + 4) / room))
    return {
        "title": title, "type": "log", "range": [float(np.log10(values[0] / 1.15)), float(np.log10(values[-1] * 1.15))],
        "tickvals": values.tolist()[::every], "ticktext": words[::every],
    }  # fmt: skip


@figure
def batch_formula(
    tokens: int,
    k: int,
    experts: int,
    devices: int,
    *,
    measured_E: Array | None = None,
    run_experts: int = 1,
    step: int | None = None,
    theme: Theme = LIGHT,
    size: Size = (520, 320),
) -> Spec:
    """Tokens an expert sees by the number of experts: k*T*D/E, on one device and on the chosen number.

    measured_E (E,): mean tokens of each expert of the run in a step, drawn at its number of experts.
    """
    now = tokens_per_expert(tokens, k, experts, devices)
    known = np.zeros(0) if measured_E is None else np.asarray(measured_E, np.float64)
    known = known[np.isfinite(known)]
    least = tokens_per_expert(tokens, k, int(EXPERTS[-1]), 1)
    layout = formula_layout(np.r_[least, tokens * devices, now, known[known > 0]], step, theme, size)
    layout["shapes"].append(level(now, color=theme.ink2, width=1.5, dash=DASHED))
    data = formula_lines(tokens, k, devices, layout, theme, size)
    if len(known):
        data.append(measured_bar(known, run_experts, 10 ** layout["yaxis"]["range"][0], theme))
    data.append(
        {
            "type": "scatter", "mode": "markers", "name": "chosen", "x": np.array([experts], np.int32),
            "y": np.array([now], np.float32), "marker": {"color": theme.hand, "size": 11, "line": {"width": 2, "color": theme.ground}},
            "hovertemplate": f"As chosen: {k} × {tokens:,} × {devices} / {experts} = {now:,.4g} tokens per expert<extra></extra>",
        }
    )  # fmt: skip
    return {"data": data, "layout": layout}


def formula_layout(values: Array, step: int | None, theme: Theme, size: Size) -> Spec:
    """Both axes logarithmic; values: the least and the most that is drawn, or more."""
    layout = base(
        "batch_formula",
        "Tokens per expert",
        "k·T·D/E; bar: the run's least to most; dashed: devices grow with experts",
        step=step,
        theme=theme,
        size=size,
        labels=True,
        x=log2_axis("experts, E", EXPERTS, size),
        y={"title": "tokens per expert", "type": "log"},
    )
    lo, hi = float(np.floor(np.log10(values.min()))), float(np.log10(values.max() * 1.3))
    powers = [10.0**i for i in range(int(lo), math.ceil(hi) + 1)]
    layout["yaxis"] |= {
        "range": [lo, hi],
        "tickvals": powers,
        "ticktext": [short(p) if p >= 1 else f"{p:g}" for p in powers],
    }
    return layout


def formula_lines(tokens: int, k: int, devices: int, layout: Spec, theme: Theme, size: Size) -> list[Spec]:
    """The formula on one device and on the chosen number, and at the lines' ends their names, which the layout gets."""
    shown_E = EXPERTS[k <= EXPERTS] if k > 1 else EXPERTS  # with fewer experts than k there is no such layer
    lines = [("1 device", 1, theme.ink2, pens(size).line)]
    if devices > 1:
        lines.append((f"{devices} devices", devices, theme.ink, pens(size).main))
    (lo, hi), (_, height) = layout["yaxis"]["range"], inner(layout)
    data, ends = [], []
    for name, many, colour, width in lines:
        y = np.array([tokens_per_expert(tokens, k, int(E), many) for E in shown_E], np.float32)
        hover = f"With %{{x}} experts on {name}, each sees %{{y:,.4~g}} tokens"
        data.append(line(name, shown_E.astype(np.int32), y, hover, color=colour, width=width))
        ends.append((float(height * (np.log10(y[-1]) - lo) / (hi - lo)), name))
    layout["annotations"] += end_labels(sorted(ends, reverse=True), layout, theme)
    return data


def measured_bar(known_E: Array, run_experts: int, lowest: float, theme: Theme) -> Spec:
    """The run's least, mean and most tokens of an expert, at its number of experts; lowest: where the axis begins."""
    least, most = max(float(known_E.min()), lowest), float(known_E.max())
    return {
        "type": "scatter", "mode": "lines+markers", "name": "measured", "x": np.full(3, run_experts, np.int32),
        "y": np.array([least, known_E.mean(), most], np.float32), "line": {"color": theme.ink, "width": 3},
        "marker": {"color": theme.ink, "size": [7, 9, 7], "symbol": ["line-ew", "circle", "line-ew"], "line": {"width": 3, "color": theme.ink}},
        "hovertext": [
            f"The least selected of the run's {run_experts} experts saw {known_E.min():,.4g} tokens a step",
            f"The run's {run_experts} experts saw {known_E.mean():,.4g} tokens a step on average",
            f"The most selected of the run's {run_experts} experts saw {most:,.4g} tokens a step",
        ],
        "hoverinfo": "text",
    }  # fmt: skip


@figure
def batch_throughput(
    tokens_m: Array,
    per_second_m: Array,
    *,
    k: int = 2,
    experts: int = 16,
    chosen: int | None = None,
    machine: str = "",
    theme: Theme = LIGHT,
    size: Size = (520, 320),
) -> Spec:
    """Tokens a second of one layer, forward and backward, by the tokens in its batch. tokens_m, per_second_m (m,)."""
    sizes = np.array([64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384])
    per_second = np.asarray(per_second_m, np.float64)
    top = nice_above(1.05 * float(np.nanmax(per_second)) if np.isfinite(per_second).any() else 1e5)
    layout = base(
        "batch_throughput",
        "Throughput",
        f"one layer, forward and backward{'; ' + escape(machine) if machine else '; not measured yet'}",
        step=None,
        theme=theme,
        size=size,
        x=log2_axis("tokens in the batch, T", sizes, size),
        y={"title": "tokens per second", "range": [0.0, top], "nticks": 6, "tickformat": "~s"},
    )
    layout["margin"]["l"] += 8  # "100k" is wider than the ticks of other charts
    if chosen is not None and sizes[0] <= chosen <= sizes[-1]:
        layout["shapes"].append(upright(chosen, color=theme.hand, width=1.5))
    x = np.asarray(tokens_m, np.int64)
    each = np.asarray(x * k / max(experts, 1), np.float32)
    hover = "A batch of %{x:,d} tokens, %{customdata:,.4~g} an expert, ran at %{y:,.0f} tokens a second"
    y = per_second.astype(np.float32)
    data = line("tokens per second", x.astype(np.int32), y, hover, color=theme.ink, width=pens(size).main)
    data |= {"mode": "lines+markers", "customdata": each, "marker": {"color": theme.ink, "size": 7}}
    return {"data": [data] if len(x) else [], "layout": layout}


@figure
def batch_measured(
    steps: Array,
    counts_nE: Array,
    ideal_n: Array,
    *,
    span: tuple[float, float] | None = None,
    cursor: int | None = None,
    changes: Iterable[Any] = (),
    theme: Theme = LIGHT,
    size: Size = (1060, 260),
) -> Spec:
    """What the run's experts saw in each step, the most and the fewest tokens, about the formula's k*T/E.

    steps, ideal_n (n,); counts_nE (n, E), NaN for an expert that is off, which E leaves out. The mean of a step's counts is k*T/E by definition, so the formula stands for it:
    a thinned history keeps each expert's extremes, whose mean is no step's.
    """
    counts = np.asarray(counts_nE, np.float64)
    whole = np.isfinite(counts).any(axis=1)
    most, least = (
        np.where(whole, f(np.nan_to_num(counts, nan=empty), axis=1, initial=empty), np.nan).astype(np.float32)
        for f, empty in ((np.max, 0.0), (np.min, np.inf))
    )
    top = nice_above(1.05 * max(float(np.nanmax(most)) if whole.any() else 0.0, 2.0))
    axis = {"title": "tokens per expert", "range": [0.0, top], "nticks": 5}
    subtitle = (
        "in one step: the most and the least that an expert got, as recorded; ink: k·T/E, what each gets when balanced"
    )
    layout = over_steps("batch_measured", "Tokens an expert got", subtitle, steps, span, axis, theme, size)
    pen, x, (_, height) = pens(size), as_steps(steps), inner(layout)
    data, ends = [], []
    for name, y, colour, width, words in (
        ("most", most, theme.over, pen.line, "The most selected expert got"),
        ("k·T/E", np.asarray(ideal_n, np.float32), theme.ink, pen.main, "Evenly spread, each expert would get"),
        ("least", least, theme.under, pen.line, "The least selected expert got"),
    ):
        hover = f"{words} %{{y:,.4~g}} tokens at step %{{x:,d}}"
        data.append(line(name, x, y, hover, color=colour, width=width))
        if len(y) and np.isfinite(y[-1]):
            ends.append((height * float(y[-1]) / top, f"{name} {y[-1]:,.4g}"))
    layout["annotations"] += end_labels(ends, layout, theme, ink=True)
    mark(layout, changes, cursor, theme)
    return {"data": data, "layout": layout}
