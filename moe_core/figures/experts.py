"""One expert among the others: its place, its share over time, and when its routing was settled.

Shapes: E experts, n steps. `chosen` is the expert that the page shows, counted from 0.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from moe_core.figures.changes import mark
from moe_core.figures.lines import as_steps, end_label, line, over_steps
from moe_core.figures.off import bars_off, draw_ideal, ideal_of, off_lines, on_nE
from moe_core.figures.paper import (
    DASHED,
    Array,
    Size,
    Spec,
    at_step,
    base,
    doubled,
    figure,
    ideal_line,
    inner,
    nice_above,
    pens,
    percent,
    upright,
)
from moe_core.figures.theme import LIGHT, LINES, Theme, expert_colour
from moe_core.figures.timeline import square


@figure
def expert_rank(
    share_E: Array,
    *,
    chosen: int | None = None,
    recent: int = 50,
    step: int | None = None,
    theme: Theme = LIGHT,
    size: Size = (180, 640),
) -> Spec:
    """The experts by selections, the most selected on top; a click on one chooses it. share_E (E,) sums to 1; NaN is an expert that
    is off, below the others, and all NaN draws no bar."""
    E, on_E = len(share_E), on_nE(share_E)
    ratio_E = np.asarray(share_E, np.float64) / ideal_of(share_E)
    known = bool(np.isfinite(ratio_E).any())
    order = np.argsort(np.where(on_E, -np.nan_to_num(ratio_E), np.inf), kind="stable")
    ratio = ratio_E[order]
    layout = base(
        "expert_rank",
        "Experts by selections",
        f"selections ÷ ideal, last {recent} steps",
        step=step,
        theme=theme,
        size=size,
        x={
            "title": "selections ÷ ideal, ×",
            "range": [0.0, doubled(2.0, float(ratio[0])) if known else 2.0],
            "nticks": 4,
        },
        y={"title": "experts, by selections", "range": [E + 0.5, 0.5], "showgrid": False},
        bargap=0.25 if E <= LINES else 0.1,
    )
    layout["meta"]["pick"] = "expert"
    # A name needs 15 px; where rows are lower, only some and the chosen one are named.
    every = max(1, int(np.ceil(15 * E / inner(layout)[1])))
    place = int(np.flatnonzero(order == chosen)[0]) if chosen is not None else -1
    named = [i for i in range(E) if i == place or (i % every == 0 and abs(i - place) >= every)]
    layout["yaxis"] |= {
        "tickvals": [i + 1 for i in named],
        "ticktext": [rank_name(int(order[i]), i == place, E, theme) for i in named],
    }
    layout["margin"]["l"] += 14
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": "selections ÷ ideal",
            "x": ratio.astype(np.float32),
            "y": np.arange(1, E + 1, dtype=np.int32),
            "customdata": order.astype(np.int32) + 1,
            "marker": {
                "color": [rank_colour(int(e), np.nan_to_num(ratio_E[e]), E, theme) for e in order],
                "line": {"width": 0},
            },
            "hovertemplate": "Expert %{customdata} took %{x:.2f} × its ideal share"
            f"{at_step(step)}, place %{{y}} of {int(on_E.sum())}<extra></extra>",
        }
    ]
    layout["shapes"].append(upright(1, color=theme.ink2, width=1.5, dash=DASHED))
    layout["annotations"] += bars_off(layout, order, on_E, theme)
    return {"data": data if known else [], "layout": layout}


def rank_name(expert: int, chosen: bool, E: int, theme: Theme) -> str:
    mark = f"{square(expert, theme)} " if E <= LINES else ""
    number = f'<span style="color:{theme.ink}"><b>► {expert + 1}</b></span>' if chosen else f"{expert + 1}"
    return mark + number


def rank_colour(expert: int, ratio: float, E: int, theme: Theme) -> str:
    """Its own up to 20 experts; above, orange where it has more than its share and blue where less."""
    if E <= LINES:
        return expert_colour(expert, theme)
    return theme.over if ratio >= 1 else theme.under


@figure
def expert_share(
    steps: Array,
    share_nE: Array,
    importance_nE: Array,
    chosen: int,
    now: float | None = None,
    *,
    span: tuple[float, float] | None = None,
    cursor: int | None = None,
    changes: Iterable[Any] = (),
    theme: Theme = LIGHT,
    size: Size = (460, 300),
) -> Spec:
    """An expert's share of selections and of importance over time, between those of the most and the least selected.

    steps (n,); share_nE, importance_nE (n, E), rows sum to 1, NaN for an expert that is off, all NaN where there is none; now:
    its share of selections over the last steps, from 0 to 1, for the number at the line's end; None: as in the last row.
    """
    E = share_nE.shape[1]
    share, importance = np.asarray(share_nE, np.float32) * 100, np.asarray(importance_nE, np.float32) * 100
    whole = np.isfinite(share).any(axis=1)
    most = np.where(whole, np.max(np.nan_to_num(share), axis=1, initial=0.0), np.nan).astype(np.float32)
    least = np.where(whole, np.min(np.nan_to_num(share, nan=100.0), axis=1, initial=100.0), np.nan).astype(np.float32)
    highest = float(np.nanmax(most)) if whole.any() else 0.0
    title = f"Share of expert {chosen + 1} over time"
    on = int(on_nE(share[-1:]).sum()) if len(share) else E
    off = on < E and np.isnan(share[-1, chosen])
    drawn = f"expert {chosen + 1} is switched off" if off else "thick: selections, ink: importance"
    subtitle = f"{drawn}; thin: most and least selected; dashed: ideal {percent(1 / on)}"
    top = min(100.0, nice_above(max(1.05 * highest, 200 / max(E, 2))))
    axis = {"title": "share, %", "range": [0.0, top], "nticks": 6}
    layout = over_steps("expert_share", title, subtitle, steps, span, axis, theme, size)
    ideal = draw_ideal(layout, steps, share_nE, theme)
    x = as_steps(steps)
    own = expert_colour(chosen, theme) if E <= LINES else theme.ink
    pen = pens(size)
    lines = (
        ("most selected", most, theme.edge, 1.0, "The most selected expert took"),
        ("least selected", least, theme.edge, 1.0, "The least selected expert took"),
        ("importance", importance[:, chosen], theme.ink2, pen.line, f"Expert {chosen + 1} had of the importance"),
        ("selections", share[:, chosen], own, pen.main + 0.6, f"Expert {chosen + 1} took of the selections"),
    )
    dash = theme.dash_of(chosen) if E <= LINES else "solid"
    data = [
        line(
            name, x, np.ascontiguousarray(y), f"{words} %{{y:.1f}} % at step %{{x:,d}}",
            color=colour, width=width, dash=dash if name == "selections" else "solid",
        )
        for name, y, colour, width, words in lines
    ]  # fmt: skip
    data += [*off_lines(steps, share_nE, theme, (chosen,)), *ideal]
    last = 100 * now if now is not None else float(share[-1, chosen]) if len(share) else np.nan
    if np.isfinite(last) and np.isfinite(share[-1:, chosen]).all():
        _, height = inner(layout)
        text = (f"{square(chosen, theme)} " if E <= LINES else "") + f"{last:.1f} %"
        px = height * last / top
        layout["annotations"].append(end_label(text, px, height, theme, layout["font"]["size"], strong=True))
    mark(layout, changes, cursor, theme)
    return {"data": data, "layout": layout}


@figure
def saturation(
    steps: Array,
    kept_n: Array,
    *,
    against: int | None = None,
    chance: float = 0.0,
    every: int = 1,
    span: tuple[float, float] | None = None,
    changes: Iterable[Any] = (),
    theme: Theme = LIGHT,
    size: Size = (460, 300),
) -> Spec:
    """How early routing was settled: the share of each probe token's experts at step `against` that it had before.

    steps (n,) of past snapshots; kept_n (n,) from 0 to 1; chance: k/E, what a random router would have kept.
    every: the snapshots were taken at multiples of so many steps; 0 if an earlier version took them by the clock, and then
    no line joins them.
    (OLMoE, arXiv 2409.02060)
    """
    when = "of now" if against is None else f"of step {against:,}"
    subtitle = f"share of the experts {when} there already; chance {percent(chance)}"
    y = {"title": "kept, %", "range": [0.0, 100.0], "nticks": 6}
    layout = over_steps(
        "saturation", "Router saturation over time", subtitle, steps, span, y, theme, size, labels=False
    )
    layout["meta"]["step"] = against
    ideal_line(layout, 100 * chance, theme)
    hover = "At step %{x:,d} a token had %{y:.1f} % of the experts that it has"
    hover += " now" if against is None else f" at step {against:,}"
    percents = np.asarray(kept_n, np.float32) * 100
    data = line("kept", as_steps(steps), percents, hover, color=theme.ink, width=pens(size).main)
    data |= {"mode": "lines+markers" if every else "markers", "marker": {"color": theme.ink, "size": 4}}
    mark(layout, changes, None, theme, labelled=False)
    return {"data": [data], "layout": layout}
