"""One expert among the others: its rank, its share over time, what it specialises in, whom it works with.

Shapes: E experts, C values of a label, D model width, n steps. `chosen` is the expert looked at, counted from 0.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from moe_core.figures.theme import (
    DIVERGING_STOPS,
    FRACTIONS,
    LIGHT,
    LINES,
    NAMED,
    SANS,
    SEQUENTIAL_STOPS,
    Array,
    Size,
    Spec,
    Theme,
    as_steps,
    base,
    doubled,
    end_label,
    escape,
    expert_colour,
    figure,
    ideal_line,
    inner,
    last_of,
    mark_changes,
    mark_cursor,
    nice_above,
    pens,
    percent,
    scale,
    step_axis,
)
from moe_core.figures.timeline import square

LONGEST = 14  # letters of a row's name


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
    """The experts by load, the most loaded on top; a click on one chooses it. share_E (E,) sums to 1; NaN draws no bar."""
    E = len(share_E)
    ratio_E = np.asarray(share_E, np.float64) * E
    known = bool(np.isfinite(ratio_E).all())
    order = np.argsort(-np.nan_to_num(ratio_E), kind="stable")
    ratio = ratio_E[order]
    layout = base(
        "expert_rank",
        "Experts by load",
        f"load ÷ ideal, last {recent} steps",
        step=step,
        theme=theme,
        size=size,
        x={"title": "load ÷ ideal, ×", "range": [0.0, doubled(2.0, float(ratio[0])) if known else 2.0], "nticks": 4},
        y={"title": "expert, by rank", "range": [E + 0.5, 0.5], "showgrid": False},
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
    when = "" if step is None else f" at step {step:,}"
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": "load ÷ ideal",
            "x": ratio.astype(np.float32),
            "y": np.arange(1, E + 1, dtype=np.int32),
            "customdata": order.astype(np.int32) + 1,
            "marker": {"color": [rank_colour(int(e), ratio_E[e], E, theme) for e in order], "line": {"width": 0}},
            "hovertemplate": "Expert %{customdata} took %{x:.2f} × its ideal share"
            + when
            + ", rank %{y}<extra></extra>",
        }
    ]
    layout["shapes"].append(
        {
            "type": "line", "xref": "x", "yref": "paper", "x0": 1, "x1": 1, "y0": 0, "y1": 1,
            "line": {"color": theme.ink2, "width": 1.5, "dash": "8px,6px"},
        }
    )  # fmt: skip
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
    *,
    span: tuple[float, float] | None = None,
    cursor: int | None = None,
    changes: Iterable[Any] = (),
    theme: Theme = LIGHT,
    size: Size = (460, 300),
) -> Spec:
    """An expert's share of load and of importance over time, between the shares of the most and the least loaded.

    steps (n,); share_nE, importance_nE (n, E), rows sum to 1, NaN where there is none.
    """
    E = share_nE.shape[1]
    share, importance = np.asarray(share_nE, np.float32) * 100, np.asarray(importance_nE, np.float32) * 100
    whole = np.isfinite(share).all(axis=1)
    most = np.where(whole, np.max(share, axis=1, initial=0.0), np.nan).astype(np.float32)
    least = np.where(whole, np.min(share, axis=1, initial=100.0), np.nan).astype(np.float32)
    highest = float(np.nanmax(most)) if whole.any() else 0.0
    layout = base(
        "expert_share",
        f"Share of expert {chosen + 1} over time",
        f"thick: load, ink: importance, thin: most and least loaded; dashed: ideal {percent(1 / E)}",
        step=last_of(steps),
        theme=theme,
        size=size,
        labels=True,
        x=step_axis(steps, span),
        y={
            "title": "share, %",
            "range": [0.0, min(100.0, nice_above(max(1.05 * highest, 200 / max(E, 2))))],
            "nticks": 6,
        },
    )
    ideal_line(layout, 100 / E, theme)
    x = as_steps(steps)
    own = expert_colour(chosen, theme) if E <= LINES else theme.ink
    pen = pens(size)
    lines = (
        ("most loaded", most, theme.edge, 1.0, "The most loaded expert took"),
        ("least loaded", least, theme.edge, 1.0, "The least loaded expert took"),
        ("importance", importance[:, chosen], theme.ink2, pen.line, f"Expert {chosen + 1} had of the importance"),
        ("load", share[:, chosen], own, pen.main + 0.6, f"Expert {chosen + 1} took of the selections"),
    )
    data = [
        {
            "type": "scatter", "mode": "lines", "name": name, "x": x, "y": np.ascontiguousarray(y),
            "line": {"color": colour, "width": width, "dash": "dash" if name == "load" and NAMED <= chosen < LINES else "solid"},
            "hovertemplate": f"{words} %{{y:.1f}} % at step %{{x:,d}}<extra></extra>",
        }
        for name, y, colour, width, words in lines
    ]  # fmt: skip
    if len(share) and np.isfinite(share[-1, chosen]):
        _, height = inner(layout)
        last = float(share[-8:, chosen].mean())
        text = (f"{square(chosen, theme)} " if E <= LINES else "") + f"{last:.1f} %"
        px = height * last / layout["yaxis"]["range"][1]
        layout["annotations"].append(end_label(text, px, height, theme, layout["font"]["size"], strong=True))
    mark_changes(layout, changes, theme)
    mark_cursor(layout, cursor, theme)
    return {"data": data, "layout": layout}


@figure
def saturation(
    steps: Array,
    kept_n: Array,
    *,
    against: int | None = None,
    chance: float = 0.0,
    span: tuple[float, float] | None = None,
    changes: Iterable[Any] = (),
    theme: Theme = LIGHT,
    size: Size = (460, 300),
) -> Spec:
    """How early routing was settled: the share of each probe token's experts at step `against` that it had before.

    steps (n,) of past snapshots; kept_n (n,) from 0 to 1; chance: k/E, what a random router would have kept.
    (OLMoE, arXiv 2409.02060)
    """
    when = "of now" if against is None else f"of step {against:,}"
    layout = base(
        "saturation",
        "Router saturation over time",
        f"share of the experts {when} there already; chance {percent(chance)}",
        step=against,
        theme=theme,
        size=size,
        x=step_axis(np.asarray(steps), span),
        y={"title": "kept, %", "range": [0.0, 100.0], "nticks": 6},
    )
    ideal_line(layout, 100 * chance, theme)
    data = [
        {
            "type": "scatter", "mode": "lines+markers", "name": "kept", "x": as_steps(steps),
            "y": np.asarray(kept_n, np.float32) * 100,
            "line": {"color": theme.ink, "width": pens(size).main}, "marker": {"color": theme.ink, "size": 4},
            "hovertemplate": "At step %{x:,d} a token had %{y:.1f} % of the experts that it has"
            + (" now" if against is None else f" at step {against:,}") + "<extra></extra>",
        }
    ]  # fmt: skip
    mark_changes(layout, changes, theme, labelled=False)
    return {"data": data, "layout": layout}


@figure
def specialisation(
    share_CE: Array,
    names_C: Sequence[str],
    *,
    label: str = "class",
    chosen: int | None = None,
    step: int | None = None,
    theme: Theme = LIGHT,
    size: Size = (460, 300),
) -> Spec:
    """Which expert takes which class or domain: the share of each row's selections, over the ideal 1/E.

    share_CE (C, E), a row sums to 1; a row of zeros was not seen and is a gap.
    """
    return by_label("specialisation", "Specialisation", share_CE, names_C, label, chosen, step, theme, size)


@figure
def specialisation_byte(
    share_CE: Array,
    names_C: Sequence[str],
    *,
    chosen: int | None = None,
    step: int | None = None,
    theme: Theme = LIGHT,
    size: Size = (460, 600),
) -> Spec:
    """As specialisation, for some bytes: share_CE (C, E), names_C how each is shown."""
    title = "Specialisation by byte"
    return by_label("specialisation_byte", title, share_CE, names_C, "byte", chosen, step, theme, size)


def by_label(
    name: str,
    title: str,
    share_CE: Array,
    names_C: Sequence[str],
    label: str,
    chosen: int | None,
    step: int | None,
    theme: Theme,
    size: Size,
) -> Spec:
    E = share_CE.shape[1]
    share = np.where(np.asarray(share_CE).sum(axis=1, keepdims=True) > 0, share_CE, np.nan).astype(np.float32)
    return heatmap(
        name,
        title,
        f"share of a {label}'s selections ÷ ideal {percent(1 / E)}",
        log_ratio(share * E),
        {"colorscale": scale(theme.diverging, DIVERGING_STOPS), "zmin": -3, "zmax": 3},
        {"tickvals": list(range(-3, 4)), "ticktext": list(FRACTIONS)},
        100 * share,
        "Of the selections for %{text}, %{customdata:.1f} % went to expert %{x}",
        rows=[escape(name[:LONGEST]) for name in names_C],
        row_title=label,
        column=chosen,
        step=step,
        theme=theme,
        size=size,
    )


@figure
def coactivation(
    share_EE: Array,
    *,
    k: int = 2,
    chosen: int | None = None,
    step: int | None = None,
    theme: Theme = LIGHT,
    size: Size = (460, 300),
) -> Spec:
    """Who shares tokens: of the tokens of expert i (row), the share that also goes to expert j (column). (E, E)

    The diagonal, 1 by definition, is left out; the row of an expert without tokens is a gap.
    """
    E = len(share_EE)
    share = np.array(share_EE, np.float32)
    share[np.diagonal(share) == 0] = np.nan
    np.fill_diagonal(share, np.nan)
    chance = (k - 1) / (E - 1) if E > 1 else 0.0
    top = nice_above(max(float(np.nanmax(share, initial=0.0)), 2 * chance, 0.01)) if k > 1 else 1.0
    top = min(top, 1.0)
    ticks = [top * i / 4 for i in range(5)]
    return heatmap(
        "coactivation",
        "Co-activation",
        f"share of a row's tokens; by chance {percent(chance)}" if k > 1 else "with k = 1 no two experts share a token",
        share,
        {"colorscale": scale(theme.sequential, SEQUENTIAL_STOPS), "zmin": 0, "zmax": top},
        {"tickvals": ticks, "ticktext": [f"{100 * t:g} %" for t in ticks]},
        100 * share,
        "Of the tokens of expert %{y}, %{customdata:.1f} % also go to expert %{x}",
        rows=None,
        row_title="expert",
        row=chosen,
        step=step,
        theme=theme,
        size=size,
    )


@figure
def similarity(
    cosine_EE: Array,
    *,
    chosen: int | None = None,
    step: int | None = None,
    theme: Theme = LIGHT,
    size: Size = (460, 300),
) -> Spec:
    """How alike two experts' columns of W_g are: cosine from -1 to 1, the diagonal left out. (E, E), NaN for a zero column."""
    cosine = np.array(cosine_EE, np.float32)
    np.fill_diagonal(cosine, np.nan)
    return heatmap(
        "similarity",
        "Similarity of W_g",
        "cosine of gate weights; orange: alike",
        cosine,
        {"colorscale": scale(theme.diverging, DIVERGING_STOPS), "zmin": -1, "zmax": 1},
        {"tickvals": [-1, -0.5, 0, 0.5, 1], "ticktext": ["−1", "−0.5", "0", "0.5", "1"]},
        cosine,
        "The gate weights of experts %{y} and %{x} have a cosine of %{customdata:.2f}",
        rows=None,
        row_title="expert",
        row=chosen,
        step=step,
        theme=theme,
        size=size,
    )


def cosines(w_DE: Array) -> Array:
    """Cosine of each two columns (E, E); NaN where one of them is zero."""
    w = np.asarray(w_DE, np.float64)
    norms = np.linalg.norm(w, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        unit = w / np.where(norms > 0, norms, np.nan)
    return np.asarray(np.clip(unit.T @ unit, -1, 1))


def log_ratio(ratio: Array) -> Array:
    """log2 of load over ideal, clipped at 1/8 and 8."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.clip(np.log2(ratio), -3, 3))


def expert_ticks(E: int, px: float, each: float) -> list[int]:
    """The expert numbers, from 1, that find room at `each` px."""
    every = next(n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256) if px / E * n >= each)
    return list(range(1, E + 1, every)) if every <= 2 else [1, *range(every, E + 1, every)]


def heatmap(
    name: str,
    title: str,
    subtitle: str,
    z: Array,
    colours: Spec,
    bar: Spec,
    told: Array,
    sentence: str,
    *,
    rows: Sequence[str] | None,
    row_title: str,
    row: int | None = None,
    column: int | None = None,
    step: int | None,
    theme: Theme,
    size: Size,
) -> Spec:
    """A matrix with experts in its columns; rows are experts too where they have no names. The chosen one has a frame.

    z (C, E) is coloured, told (C, E) is what the hover's sentence calls customdata.
    """
    C, E = z.shape
    layout = base(name, title, subtitle, step=step, theme=theme, size=size, labels=True)
    layout["margin"] |= {"r": 76}
    layout["margin"]["l"] += 7 * max((min(len(r), LONGEST) for r in rows), default=0) if rows is not None else 0
    width, height = inner(layout)
    across, down = expert_ticks(E, width, 18), expert_ticks(max(C, 1), height, 14)
    font = layout["font"]
    layout["xaxis"] |= {"range": [0.5, E + 0.5], "tickvals": across, "ticktext": [str(t) for t in across]}
    layout["xaxis"]["title"] = {"text": "expert", "standoff": 2, "font": font}
    down = [row for row in down if rows is None or row <= C]
    layout["yaxis"] |= {"range": [max(C, 1) + 0.5, 0.5], "tickvals": down, "showgrid": False}
    layout["yaxis"]["ticktext"] = [str(row) if rows is None else rows[row - 1] for row in down]
    layout["yaxis"]["title"] = {"text": row_title, "standoff": 4, "font": font}
    layout["plot_bgcolor"] = theme.side  # a gap is no value, on scales whose zero is the ground too
    colorbar = {
        "thickness": 10, "outlinewidth": 0, "len": 1, "x": 1.0, "xpad": 10, "ypad": 0, "ticks": "",
        "tickfont": {"family": SANS, "size": font["size"], "color": theme.ink2},
    }  # fmt: skip
    data = {
        "type": "heatmap", "name": title, "x": np.arange(1, E + 1, dtype=np.int32), "y": np.arange(1, C + 1, dtype=np.int32),
        "z": np.asarray(z, np.float32), "customdata": np.asarray(told, np.float32), "hoverongaps": False,
        "hovertemplate": f"{sentence}<extra></extra>",
        "xgap": 1 if E <= LINES else 0, "ygap": 1 if C <= LINES else 0, "colorbar": colorbar | bar, **colours,
    }  # fmt: skip
    if rows is not None:
        data["text"] = [[name] * E for name in rows]
    for at, axis in ((row, "y"), (column, "x")):
        if at is not None and C:
            along = {"x0": 0, "x1": 1, "xref": "paper"} if axis == "y" else {"y0": 0, "y1": 1, "yref": "paper"}
            frame = {f"{axis}0": at + 0.5, f"{axis}1": at + 1.5, f"{axis}ref": axis}
            layout["shapes"].append({"type": "rect", "line": {"color": theme.ink, "width": 1.5}} | along | frame)
    return {"data": [data] if C else [], "layout": layout}
