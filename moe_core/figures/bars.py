"""One step of a run: load and importance of each expert, and the first expert of each token of the probe."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from moe_core.figures.off import off_bands, off_words, on_nE
from moe_core.figures.palette import palette_of, picks
from moe_core.figures.paper import (
    Array,
    Size,
    Spec,
    at_step,
    axis_title,
    base,
    doubled,
    ems,
    every_nth,
    figure,
    ideal_line,
    inner,
    label_font,
    nice_above,
    note,
    percent,
)
from moe_core.figures.probe import first_experts, without_expert
from moe_core.figures.theme import LIGHT, LINES, NAMED, Theme, expert_colour


@figure
def balance_now(
    load_E: Array,
    importance_E: Array,
    *,
    counted: str = "load",
    lately: tuple[float, float] | None = None,
    step: int | None = None,
    theme: Theme = LIGHT,
    size: Size = (320, 335),
) -> Spec:
    """Each expert's share of load as a bar, of importance as a tick. Above 20 experts: deviations from ideal, sorted.

    counted: what the bars show, "load" or "selections". lately: the highest share of load and of importance over the last steps,
    with which the axis is chosen, so that it does not move with every batch; None: those of this step.

    load_E, importance_E (E,): shares of the whole, each sums to 1. NaN is an expert that is off; all NaN: nothing is known.
    """
    load_E, importance_E = np.asarray(load_E, np.float32), np.asarray(importance_E, np.float32)
    most = np.fmax((highest(load_E), highest(importance_E)), lately or (0.0, 0.0)).tolist()
    if len(load_E) > LINES:
        return sorted_bars(load_E, most[0], counted, step, theme, size)
    return expert_bars(load_E, importance_E, most, counted, step, theme, size)


def expert_axis(E: int, layout: Spec) -> Spec:
    """Expert numbers under the bars, as many as find room at 18 px each."""
    every = every_nth(E, inner(layout)[0] / E, 18, (1, 4, 8, 16, 32, 64, 128, 256))
    ticks = list(range(1, E + 1)) if every == 1 else [1, *range(every, E + 1, every)]
    return {
        "title": axis_title("expert", layout),
        "range": [0.5, E + 0.5],
        "tickvals": ticks,
        "ticktext": [str(e) for e in ticks],
    }


def coloured(E: int, theme: Theme) -> Spec:
    """The markers of bars that stand for experts: own colours, hatched from the 17th on."""
    return {
        "color": [expert_colour(e, theme) for e in range(E)],
        "line": {"width": 0},
        "pattern": {"shape": [theme.hatch_of(e) for e in range(E)], "fgcolor": theme.ground, "solidity": 0.3},
    }


def expert_bars(
    load_E: Array, importance_E: Array, most: Sequence[float], counted: str, step: int | None, theme: Theme, size: Size
) -> Spec:
    """A bar an expert, of its colour, with its importance as a tick of ink cased in ground. most: shares of load and of importance
    that the axis has to reach."""
    E, on_E = len(load_E), on_nE(load_E)
    on = int(on_E.sum())
    ideal = percent(1 / on) + ("" if on == E else f" of {on} on")
    top = min(doubled(200 / on, 100 * most[0]), 100.0 if E > 1 else 200.0)
    if 102 * most[1] > top:
        top = nice_above(102 * most[1])  # a tick that leaves the axis would not be drawn
    layout = base(
        "balance_now",
        "Balance now",
        f"bar: {counted}; tick: importance; dashed: ideal {ideal}",
        step=step,
        theme=theme,
        size=size,
        y={"title": "share, %", "range": [0.0, top]},
        bargap=0.25,
    )
    layout["yaxis"] |= {"nticks": 6}
    layout["xaxis"] |= expert_axis(E, layout)
    x = np.arange(1, E + 1, dtype=np.int32)
    bars = {
        "type": "bar",
        "name": counted,
        "x": x,
        "y": load_E * 100,
        "marker": coloured(E, theme),
        "hovertemplate": f"Expert %{{x}} had %{{y:.1f}} % of the {counted}{at_step(step)}<extra></extra>",
    }
    wide = max(4.0, 0.52 * inner(layout)[0] / E)
    ticks = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": name,
            "x": x,
            "y": importance_E * 100,
            # The symbol is a line, as wide as its size: half of it reaches to each side.
            "marker": {"symbol": "line-ew", "size": reach / 1.4, "line": {"color": colour, "width": thick}},
            "cliponaxis": False,
            **hover,
        }
        for name, colour, thick, reach, hover in (
            ("casing", theme.ground, 6, min(wide, 34) + 4, {"hoverinfo": "skip"}),
            (
                "importance",
                theme.ink,
                3,
                min(wide, 34),
                {"hovertemplate": f"Expert %{{x}} had %{{y:.1f}} % of the importance{at_step(step)}<extra></extra>"},
            ),
        )
    ]
    ideal_line(layout, 100 / on, theme)
    return {"data": [bars, *ticks, *off_bands(layout, on_E, step, theme)], "layout": layout}


def highest(share_E: Array) -> float:
    """The largest share (…, E); 0 where there is none."""
    return float(np.nanmax(share_E)) if np.isfinite(share_E).any() else 0.0


def sorted_bars(load_E: Array, most: float, counted: str, step: int | None, theme: Theme, size: Size) -> Spec:
    """Load over ideal, most loaded first: bars from the ideal, up in orange, down in blue, the ends named. most: a share that the axis
    has to reach."""
    on_E = on_nE(load_E)
    E = int(on_E.sum())
    ratio = np.nan_to_num(load_E.astype(np.float64) * E, nan=1.0)
    order = np.argsort(np.where(on_E, -ratio, np.inf), kind="stable")[:E]
    ratio = ratio[order].astype(np.float32)
    ticks = [1, *range(max(1, E // 4), E + 1, max(1, E // 4))]
    layout = base(
        "balance_now",
        "Balance now",
        f"{counted} ÷ ideal, most loaded first; " + (off_words(on_E) or "dashed: ideal"),
        step=step,
        theme=theme,
        size=size,
        x={
            "title": f"experts, by {counted}",
            "range": [0.5, E + 0.5],
            "tickvals": ticks,
            "ticktext": [str(t) for t in ticks],
        },
        y={"title": f"{counted} ÷ ideal, ×", "nticks": 6},
        bargap=0.15,
    )
    top = doubled(2.0, max(float(ratio[0]), most * E))
    if max(ratio[0], most * E) > top * (1 - 1.4 * layout["font"]["size"] / inner(layout)[1]):
        top *= 1.25  # the name above the first bar stands within the plot
    layout["yaxis"]["range"] = [0.0, top]
    bars = {
        "type": "bar",
        "name": f"{counted} ÷ ideal",
        "x": np.arange(1, E + 1, dtype=np.int32),
        "y": ratio - 1,
        "base": 1.0,
        "customdata": np.stack([order + 1, ratio], axis=1).astype(np.float32),
        "marker": {"color": [theme.over if r >= 1 else theme.under for r in ratio.tolist()], "line": {"width": 0}},
        "hovertemplate": f"Expert %{{customdata[0]}} had %{{customdata[1]:.2f}} × its ideal {counted}{at_step(step)}<extra></extra>",
    }
    font = label_font(layout, theme.ink)
    if np.isfinite(load_E).any() and ratio[0] > ratio[-1]:
        last = f"expert {order[-1] + 1}"
        # Below the last bar or, where that reaches the foot of the plot, above the bars there, which hang from the ideal.
        covered = math.ceil(ems(last) * font["size"] * E / inner(layout)[0])
        under = (ratio[-1], "top") if ratio[-1] > 0.15 * top else (max(1.0, *ratio[-covered:].tolist()), "bottom")
        ends = (
            (f"expert {order[0] + 1}", 0.5, ratio[0], "left", "bottom"),
            (last, E + 0.5, under[0], "right", under[1]),
        )
        layout["annotations"] += [
            note(text, x, float(y), xref="x", yref="y", xanchor=xa, yanchor=ya, font=font)
            for text, x, y, xa, ya in ends
        ]
    ideal_line(layout, 1.0, theme)
    return {"data": [bars], "layout": layout}


@figure
def tokens_by_expert(
    experts_NK: Array,
    num_experts: int,
    *,
    on_E: Array | None = None,
    pinned: Sequence[int] = (),
    step: int | None = None,
    theme: Theme = LIGHT,
    size: Size = (520, 172),
) -> Spec:
    """How many tokens of the probe have each expert as their first.

    experts_NK (N, K): the experts of each probe token, first choice first, counted from 0. on_E (E,) bool: which are switched
    on, None being all.
    """
    E, N = num_experts, len(experts_NK)
    on_E = np.ones(E, bool) if on_E is None else on_E
    on = int(on_E.sum())
    first = first_experts(experts_NK, E)
    counts = np.bincount(first, minlength=E)[:E]
    colours = palette_of(first, E, theme, pinned)
    layout = base(
        "tokens_by_expert",
        "Tokens by first expert",
        f"of {N} probe tokens{without_expert(first, E)}; dashed: ideal {N / on:.3g}"
        + ("" if on == E else f" of {on} on")
        + colours.short,
        step=step,
        theme=theme,
        size=size,
        y={"title": "tokens", "range": [0.0, doubled(max(2.0, 2 * N / on), float(counts.max()))], "nticks": 5},
        bargap=0.25,
    )
    layout["xaxis"] |= expert_axis(E, layout)
    data = [
        {
            "type": "bar",
            "name": "tokens",
            "x": np.arange(1, E + 1, dtype=np.int32),
            "y": counts.astype(np.int32),
            "marker": coloured(E, theme) if E <= NAMED else {"color": colours.cells, "line": {"width": 0}},
            "hovertemplate": f"Expert %{{x}} is the first of %{{y}} of {N} probe tokens{at_step(step)}<extra></extra>",
        }
    ]
    if E > NAMED:
        data.append(unseen_bars(np.flatnonzero((counts == 0) & on_E), layout, f"of {N} probe tokens{at_step(step)}"))
    ideal_line(layout, N / on, theme)
    picks(layout, E, of="x")
    return {"data": [*data, *off_bands(layout, on_E, step, theme)], "layout": layout}


def unseen_bars(experts: Array, layout: Spec, of: str) -> Spec:
    """Bars that are not seen, as high as the plot, for experts without tokens: a click on one pins it as on any other."""
    layout["barmode"] = "overlay"
    return {
        "type": "bar", "name": "none", "x": (experts + 1).astype(np.int32),
        "y": np.full(len(experts), layout["yaxis"]["range"][1], np.float32), "marker": {"color": "rgba(0,0,0,0)", "line": {"width": 0}},
        "hovertemplate": f"Expert %{{x}} is the first of none {of}<extra></extra>",
    }  # fmt: skip


def shares(values_nE: Any) -> Array:
    """Rows (…, E) as shares of the whole, which each sum to 1; NaN where the whole is nothing."""
    values_nE = np.asarray(values_nE, np.float64)
    total_n1 = values_nE.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(total_n1 > 0, values_nE / total_n1, np.nan))
