"""What happened over the steps: selections by expert, balance, loss.

All take thinned histories: `steps` (n,), ascending, and values in the same rows. NaN is a gap.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from moe_core.figures.band import apart, band, highest, median, settled, unsettled
from moe_core.figures.changes import box_of, mark, mark_changes, mark_cursor
from moe_core.figures.lines import LABEL_GAP, as_steps, end_label, held_out, held_out_words, line, over_steps, spread
from moe_core.figures.off import draw_ideal, ideal_of, ideal_words, off_lines, off_map, off_words, on_nE
from moe_core.figures.paper import (
    Array,
    Size,
    Spec,
    axis_title,
    doubled,
    figure,
    inner,
    label_font,
    nice_above,
    note,
    pens,
    said_too,
)
from moe_core.figures.reading import RECENT
from moe_core.figures.theme import (
    DIVERGING_STOPS,
    FRACTIONS,
    LIGHT,
    LINES,
    Theme,
    expert_colour,
    faded,
    scale,
)

CV_RANGE = (0.02, 5.0)
WHOLE = "share of all selections"
TIGHT = 340  # px of width, below which the subtitle leaves that out, which the axis says too, where it has something else to say


@figure
def selection_share(
    steps: Array,
    share_nE: Array,
    now_E: Sequence[float] | None = None,
    *,
    span: tuple[float, float] | None = None,
    cursor: int | None = None,
    changes: Iterable[Any] = (),
    banded: bool = True,
    theme: Theme = LIGHT,
    size: Size = (620, 335),
) -> Spec:
    """Each expert's share of all selections over time: lines to 20 experts, above them a heatmap of share over ideal.

    steps (n,); share_nE (n, E), each row sums to 1, NaN for an expert that is off; now_E (E,) each one's mean over the last
    steps, for the names at the ends; None: as in the last row. banded: many balanced experts are a band instead of lines.
    """
    many = share_nE.shape[1] > LINES
    means = now_E is not None
    now_E = share_nE[-1].tolist() if now_E is None and len(share_nE) else now_E
    spec = (
        share_heatmap(steps, share_nE, span, theme, size)
        if many
        else share_lines(steps, share_nE, now_E, span, banded, theme, size)
    )
    if means and any(" %" in name["text"] for name in spec["layout"]["annotations"]):
        # The lines or the band beside these numbers end with one step's.
        title, words = spec["layout"]["title"], f"right: mean of {RECENT} steps"
        tight = size[0] < TIGHT
        title["text"] = title["text"].replace(WHOLE, words) if tight else said_too(title["text"], f"; {words}")
    mark_changes(spec["layout"], changes, theme, cased=many)
    if not many:
        spec["layout"]["annotations"] += peak_names(steps, np.asarray(share_nE) * 100, spec["layout"], theme)
    mark_cursor(spec["layout"], cursor, theme)
    return spec


def share_lines(
    steps: Array,
    share_nE: Array,
    now_E: Sequence[float] | None,
    span: tuple[float, float] | None,
    banded: bool,
    theme: Theme,
    size: Size,
) -> Spec:
    """One line an expert, of its colour; dashed from the 17th on. In a small chart the few that rose highest, and a band; a band too
    where so many experts are balanced that their lines would be a blob."""
    E = share_nE.shape[1]
    percents = np.asarray(share_nE, np.float32) * 100
    top = nice_above(1.05 * max(float(np.nanmax(percents)) if np.isfinite(percents).any() else 0.0, 200.0 / max(E, 2)))
    top = min(top, 100.0)
    on_E = on_nE(percents[-1:])[0] if len(percents) else np.ones(E, bool)
    drawn = highest(percents, size)
    settled_n = settled(percents, size) if banded else np.zeros(len(percents), bool)
    others = f"; band: the other {E - len(drawn)}" if len(drawn) < E else ""
    balanced = "all" if others else "band: all"
    others += f"{',' if others else ';'} {balanced} while balanced, with the median" if settled_n.any() else ""
    subtitle = f"{WHOLE}; dashed: ideal {ideal_words(on_E)}{others}"
    y = {"title": "share of selections, %", "range": [0.0, top], "nticks": 7}
    layout = over_steps("selection_share", "Share of selections by expert", subtitle, steps, span, y, theme, size)
    ideal = draw_ideal(layout, steps, share_nE, theme)
    if now_E is not None and np.isfinite(now_E).any():
        now = 100 * np.where(on_E, np.asarray(now_E, np.float64), np.nan)
        layout["annotations"] += end_names(now, layout, theme, bool(settled_n[-1:].any()))
    x, apart_nE = as_steps(steps), apart(percents, settled_n)
    data = [
        line(
            f"expert {e + 1}", x, apart_nE[:, e],
            f"Expert {e + 1} took %{{y:.1f}} % of the selections at step %{{x:,d}}",
            color=expert_colour(e, theme), width=pens(size).line, dash=theme.dash_of(e),
        )
        for e in drawn
    ]  # fmt: skip
    below = band(x, percents, drawn, theme, unsettled(settled_n)) + band(x, percents, [], theme, settled_n)
    data = below + data + median(x, percents, settled_n, theme, size)
    return {"data": [*data, *off_lines(steps, share_nE, theme), *ideal], "layout": layout}


def end_names(now: Array, layout: Spec, theme: Theme, banded: bool = False) -> list[Spec]:
    """Names right of the plot: an expert whose line stands apart has its own, lines closer than a label share one; last
    those that are off. banded: all are one band, and its extremes are named.

    now (E,): each one's share in percent, NaN for one that is off; a mean over the last steps, so that a label does not jump
    with one batch's noise.
    """
    on_E = on_nE(now)
    E = int(on_E.sum())
    _, height = inner(layout)
    px = now / layout["yaxis"]["range"][1] * height
    size = layout["font"]["size"]
    order = np.argsort(-now)[:E]
    groups = [[int(order[0])]]
    for e in map(int, order[1:]):
        if banded or px[groups[-1][-1]] - px[e] < 1.3 * size:
            groups[-1].append(e)
        else:
            groups.append([e])
    texts = []
    for group in groups:
        lo, hi = now[group].min(), now[group].max()
        if len(group) == 1:
            texts.append(f"{square(group[0], theme)} expert {group[0] + 1}")
        elif len(group) == E:
            texts.append(f"all {E}:<br>{lo:.1f}–{hi:.1f} %")
            if banded:
                most, least = (f"{square(int(order[at]), theme)} expert {order[at] + 1}" for at in (0, -1))
                texts[-1] = f"{most}<br>{texts[-1]}<br>{least}"
        else:
            texts.append(f"{len(group)} experts")
    wanted = [float(px[group].mean()) for group in groups]
    if not on_E.all():
        texts, wanted = [*texts, off_words(on_E)], [*wanted, 0.0]
    return [
        end_label(text, y, height, theme, size, ink=True)
        for text, y in zip(texts, spread(wanted, max(LABEL_GAP, 1.2 * size)), strict=True)
    ]


def square(expert: int, theme: Theme) -> str:
    """A square of an expert's colour before its name: names are never coloured text."""
    return f'<span style="color:{expert_colour(expert, theme)}">■</span>'


def peak_names(steps: Array, percents: Array, layout: Spec, theme: Theme) -> list[Spec]:
    """Names at the peaks of at most three experts that once took more than twice the ideal and no longer do.

    A name stands above its peak, else left or right of it, where it crosses no line of a change that the layout has.
    """
    if len(percents) < 2 or not np.isfinite(percents[-1]).any():
        return []
    E = percents.shape[1]
    lo, hi = layout["xaxis"]["range"]
    width, height = inner(layout)
    top = layout["yaxis"]["range"][1]
    size = layout["font"]["size"]
    names: list[Spec] = []
    taken: list[tuple[float, float]] = []
    whole = [shape for shape in layout["shapes"] if shape["xref"] == "x" and shape["y1"] == 1]  # the rest are ticks
    lines = [width * (shape["x0"] - lo) / (hi - lo) for shape in whole]
    words = [box_of(name, layout) for name in layout["annotations"] if name["xref"] == "x"]
    inside = np.where((np.asarray(steps) >= lo) & (np.asarray(steps) <= hi), 1.0, np.nan)[:, None]
    shown = np.where(np.isfinite(percents * inside), percents, -1.0)
    for e in map(int, np.argsort(-shown.max(axis=0))[:3]):
        at = int(shown[:, e].argmax())
        peak = float(shown[at, e])
        if E < 2 or peak < 200 / E or percents[-1, e] > 0.6 * peak or peak < 0.1 * top:
            continue
        x, y = width * (float(steps[at]) - lo) / (hi - lo), height * peak / top
        room = 5.5 * size
        y = min(y + size, height - size)
        for middle in (x, x - room / 2 - 4, x + room / 2 + 4):
            middle = min(max(middle, room / 2), width - room / 2)
            left, right = middle - room / 2, middle + room / 2
            if any(min(x, left) < line < max(x, right) for line in lines):
                continue
            if any(left < b and right > a and y + 0.6 * size > bottom for a, b, bottom in words):
                continue
            if all(abs(middle - a) > room + 8 or abs(y - b) > LABEL_GAP + 4 for a, b in taken):
                taken.append((middle, y))
                font = label_font(layout, theme.ink)
                text = f"{square(e, theme)} expert {e + 1}"
                there = {"xref": "paper", "yref": "paper", "bgcolor": faded(theme.ground, 0.85), "borderpad": 1}
                names.append(note(text, middle / width, y / height, xanchor="center", font=font, **there))
                break
    return names


def share_heatmap(steps: Array, share_nE: Array, span: tuple[float, float] | None, theme: Theme, size: Size) -> Spec:
    """A row an expert, coloured by log2 of its share over the ideal, clipped at 1/8 and 8."""
    E = share_nE.shape[1]
    on_E = on_nE(share_nE[-1:])[0] if len(share_nE) else np.ones(E, bool)
    off = f", {off_words(on_E)}" if not on_E.all() else ""
    starved, fair, overloaded = theme.signs
    reading = f"{fair} is fair, {starved} starved, {overloaded} overloaded"
    subtitle = f"{E} experts{off}; selections ÷ ideal ({ideal_words(on_E)}): {reading}"
    layout = over_steps("selection_share", "Selections by expert", subtitle, steps, span, {}, theme, size)
    every = 8 if E <= 64 else 16
    ticks = [1, *range(every, E + 1, every)]
    layout["yaxis"] |= {"range": [E + 0.5, 0.5], "tickvals": ticks, "ticktext": [str(e) for e in ticks]}
    layout["yaxis"] |= {"showgrid": False, "title": axis_title("expert", layout, standoff=4)}
    hover = "Expert %{y} took %{customdata:.2f} × its ideal share at step %{x:,d}"
    traces = share_map("selections ÷ ideal", steps, share_nE, inner(layout)[0], hover, layout, theme)
    return {"data": traces, "layout": layout}


def share_map(name: str, steps: Array, share_nE: Array, px: int, hover: str, layout: Spec, theme: Theme) -> list[Spec]:
    """Share over ideal over time, a row an expert, on the diverging scale; at most a column each 2 of px. Grey: off."""
    E = share_nE.shape[1]
    ratio_nE = np.asarray(share_nE, np.float64) / ideal_of(share_nE)[:, None]
    x, ratio_nE = in_columns(steps, ratio_nE, max(8, px // 2))
    ratio_En = np.ascontiguousarray(ratio_nE.T, np.float32)
    with np.errstate(divide="ignore"):
        z = np.clip(np.log2(ratio_En), -3, 3)
    bar = {
        "tickvals": list(range(-3, 4)), "ticktext": list(FRACTIONS), "thickness": 10, "outlinewidth": 0, "len": 1,
        "x": 1.0, "xpad": 12, "ypad": 8, "tickfont": layout["xaxis"]["tickfont"], "ticks": "",
    }  # fmt: skip
    trace = {
        "type": "heatmap", "name": name, "x": as_steps(x), "y": np.arange(1, E + 1, dtype=np.int32), "z": z,
        "customdata": ratio_En, "zmin": -3, "zmax": 3, "colorscale": scale(theme.diverging, DIVERGING_STOPS),
        "colorbar": bar, "hovertemplate": f"{hover}<extra></extra>",
    }  # fmt: skip
    return [trace, *off_map(trace, x, ~on_nE(ratio_nE).T, theme)]


def in_columns(steps: Array, values_nE: Array, most: int) -> tuple[Array, Array]:
    """At most `most` columns, each the mean of an equal stretch of steps; a stretch without rows gives none."""
    if len(steps) <= most:
        return np.asarray(steps), values_nE
    steps = np.asarray(steps)
    # A power of two from step 0 on keeps the columns where they are while the run grows.
    width = 2 ** math.ceil(math.log2((float(steps[-1]) - float(steps[0]) + 1) / most))
    starts = np.flatnonzero(np.diff(steps // width, prepend=-1))
    rows = np.diff(starts, append=len(steps))
    return np.add.reduceat(steps, starts) // rows, np.add.reduceat(values_nE, starts, axis=0) / rows[:, None]


@figure
def balance(
    steps: Array,
    cv_load: Array,
    cv_importance: Array,
    *,
    counted: str = "load",
    span: tuple[float, float] | None = None,
    cursor: int | None = None,
    label_changes: bool = False,
    changes: Iterable[Any] = (),
    theme: Theme = LIGHT,
    size: Size = (620, 224),
) -> Spec:
    """CV of load and of importance over time, on a log axis that ends at 0.02; what lies below is drawn there.

    steps (n,), cv_load (n,), cv_importance (n,); counted: "selections" if cv_load is of those, in a run without a smooth load.
    Changes are named on the chart above it, so here only in exports.
    """
    top = doubled(CV_RANGE[1], float(np.nanmax(cv_load)) if np.isfinite(cv_load).any() else 0.0)
    subtitle = "coefficient of variation, log scale; below 0.4 balanced, above 1 collapsed"
    layout = over_steps("balance", "Balance over time", subtitle, steps, span, cv_axis("CV", top), theme, size)
    pen = pens(size)
    x = as_steps(steps)
    lines = (
        ("importance", cv_importance, theme.ink2, pen.line, False),
        (counted, cv_load, theme.ink, pen.main, True),
    )
    data = []
    ends = []
    for name, values, colour, width, strong in lines:
        true = np.asarray(values, np.float32)
        hover = f"CV({name}) was %{{customdata:.3f}} at step %{{x:,d}}"
        y = np.maximum(true, np.float32(CV_RANGE[0]))
        data.append(line(f"CV({name})", x, y, hover, color=colour, width=width) | {"customdata": true})
        if len(true) and np.isfinite(true[-1]):
            ends.append((float(true[-1]), f"{name} {true[-1]:.2f}", strong))
    layout["annotations"] += log_ends(ends, top, layout, theme)
    mark(layout, changes, cursor, theme, labelled=label_changes)
    return {"data": data, "layout": layout}


def cv_axis(title: str, top: float) -> Spec:
    """The log axis of a coefficient of variation, up to `top`."""
    ticks = [0.03, 0.1, 0.3, 1, 3, 10]
    return {
        "title": title, "type": "log", "range": [math.log10(CV_RANGE[0]), math.log10(top)], "tickvals": ticks,
        "ticktext": [f"{tick:g}" for tick in ticks],
    }  # fmt: skip


def log_ends(ends: list[tuple[float, str, bool]], top: float, layout: Spec, theme: Theme) -> list[Spec]:
    """The names of lines on the log axis, each with its last value, in the order of the lines."""
    ends = sorted(ends, key=lambda end: -end[0])
    _, height = inner(layout)
    low = math.log10(CV_RANGE[0])
    wanted = [height * (math.log10(max(v, CV_RANGE[0])) - low) / (math.log10(top) - low) for v, _, _ in ends]
    size = layout["font"]["size"]
    return [
        end_label(text, y, height, theme, size, strong=strong)
        for (_, text, strong), y in zip(ends, spread(wanted, max(LABEL_GAP, 1.3 * size)), strict=True)
    ]


@figure
def loss(
    steps: Array,
    train: Array,
    heldout_steps: Array,
    heldout: Array,
    *,
    comparable: Array | None = None,
    unit: str = "bits per byte",
    span: tuple[float, float] | None = None,
    cursor: int | None = None,
    changes: Iterable[Any] = (),
    theme: Theme = LIGHT,
    size: Size = (320, 224),
) -> Spec:
    """The task loss: of every training batch thin, of the held-out split a line with dots.

    steps (n,), train (n,); heldout_steps (m,), heldout (m,); both losses in `unit`. comparable (m,) bool, None for all:
    the rest looks ahead at later tokens.
    """
    last = max([*np.asarray(steps)[-1:], *np.asarray(heldout_steps)[-1:]], default=None)
    ends = np.asarray([] if last is None else [last])
    y = loss_axis(unit, *loss_range(steps, train, heldout))
    subtitle = held_out_words([comparable] * bool(len(heldout)))
    layout = over_steps("loss", "Loss", subtitle, ends, span, y, theme, size, labels=False)
    layout["xaxis"]["nticks"] = 4 if size[0] < 500 else 6
    data = [
        line(
            "training", as_steps(steps), np.asarray(train, np.float32),
            f"The batch of step %{{x:,d}} had a loss of %{{y:.3f}} {unit}", color=faded(theme.ink2, 0.55), width=1,
        ),
        *held_out(
            "held-out", heldout_steps, heldout, comparable, f"The held-out loss was %{{y:.3f}} {unit} at step %{{x:,d}}",
            color=theme.ink, width=pens(size).main,
        ),
    ]  # fmt: skip
    mark(layout, changes, cursor, theme)
    return {"data": data, "layout": layout}


def loss_axis(unit: str, lo: float, hi: float, tick: float) -> Spec:
    """The axis of a loss, with the same number of decimals at each tick. tick: 1, 2 or 5 times a power of ten."""
    decimals = max(0, -math.floor(math.log10(tick) + 1e-9))
    return {"title": unit, "range": [lo, hi], "dtick": tick, "tickformat": f".{decimals}f"}


def loss_range(steps: Array, train: Array, heldout: Array) -> tuple[float, float, float]:
    """Lower and upper end of the loss axis on round numbers, and their distance. The first steps of training may lie outside
    it; held-out losses never do.

    steps (n,), train (n,); heldout (m,). The upper end leaves out the newest steps, at most a sixteenth of those shown, so that it does
    not move with every frame.
    """
    known = np.isfinite(train)
    steps, train = np.asarray(steps)[known], np.asarray(train, np.float64)[known]
    heldout = np.asarray(heldout, np.float64)[np.isfinite(heldout)]
    values = np.concatenate([train, heldout])
    if not len(values):
        return 0.0, 5.0, 1.0
    lo, hi = float(values.min()), float(values.max())
    if len(train) > 60:
        last = int(steps.max())
        stretch = 2 ** max(0, (last - int(steps.min())).bit_length() - 5)
        hi = max([np.percentile(train[steps <= last // stretch * stretch], 95), *heldout])
    tick = nice_above(max(hi - lo, 1e-3 * max(1.0, abs(hi))) / 5, (1.0, 2.0, 5.0, 10.0))  # few digits at each tick
    return tick * math.floor(lo / tick), tick * math.ceil(hi / tick + 1e-9), tick
