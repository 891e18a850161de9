"""Experts against something else, as heatmaps: what they specialise in, whom they share tokens with, whom they resemble.

Shapes: E experts, C values of a label, D model width. `chosen` is the expert that the page shows, counted from 0.
"""

from collections.abc import Sequence

import numpy as np

from moe_core.figures.called import beginnings
from moe_core.figures.off import off_words
from moe_core.figures.paper import (
    Array,
    Size,
    Spec,
    axis_title,
    base,
    escape,
    every_nth,
    figure,
    inner,
    letters_beside,
    nice_above,
    percent,
)
from moe_core.figures.theme import DIVERGING_STOPS, FRACTIONS, LIGHT, LINES, SANS, SEQUENTIAL_STOPS, Theme, scale

LONGEST = 14  # letters of a row's name


@figure
def specialisation(
    share_CE: Array,
    names_C: Sequence[str],
    *,
    label: str = "class",
    on_E: Array | None = None,
    chosen: int | None = None,
    step: int | None = None,
    theme: Theme = LIGHT,
    size: Size = (460, 300),
) -> Spec:
    """Which expert takes which class or domain: the share of each row's selections, over the ideal 1/E.

    share_CE (C, E), a row sums to 1; a row of zeros had no token and is left blank. on_E (E,) bool: the experts that are switched
    on, None being all; one that is off is a gap.
    """
    return by_label("specialisation", "Specialisation", share_CE, names_C, label, on_E, chosen, step, theme, size)


@figure
def specialisation_byte(
    share_CE: Array,
    names_C: Sequence[str],
    *,
    on_E: Array | None = None,
    chosen: int | None = None,
    step: int | None = None,
    theme: Theme = LIGHT,
    size: Size = (460, 600),
) -> Spec:
    """As specialisation, for some bytes: share_CE (C, E), names_C how each is shown."""
    title = "Specialisation by byte"
    return by_label("specialisation_byte", title, share_CE, names_C, "byte", on_E, chosen, step, theme, size)


def by_label(
    name: str,
    title: str,
    share_CE: Array,
    names_C: Sequence[str],
    label: str,
    on_E: Array | None,
    chosen: int | None,
    step: int | None,
    theme: Theme,
    size: Size,
) -> Spec:
    on_E = np.ones(share_CE.shape[1], bool) if on_E is None else on_E
    seen_CE = (np.asarray(share_CE).sum(axis=1, keepdims=True) > 0) & on_E
    share = np.where(seen_CE, share_CE, np.nan).astype(np.float32)
    return heatmap(
        name,
        title,
        f"share of a {label}'s selections ÷ ideal {percent(1 / on_E.sum())}"
        + (f"; {off_words(on_E)}" if not on_E.all() else ""),
        log_ratio(share * on_E.sum()),
        {"colorscale": scale(theme.diverging, DIVERGING_STOPS), "zmin": -3, "zmax": 3},
        {"tickvals": list(range(-3, 4)), "ticktext": list(FRACTIONS)},
        100 * share,
        "Of the selections for %{text}, %{customdata:.1f} % went to expert %{x}",
        rows=names_C,
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
        f"cosine of gate weights; {theme.signs[2]}: alike",
        cosine,
        {"colorscale": scale(theme.diverging, DIVERGING_STOPS), "zmin": -1, "zmax": 1},
        {"tickvals": [-1, -0.5, 0, 0.5, 1], "ticktext": ["−1", "−0.5", "0", "0.5", "1"]},
        cosine,
        "The gate weights of experts %{y} and %{x} have a cosine of %{customdata:.2f}",
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
    """log2 of a share over the ideal, clipped at 1/8 and 8."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.clip(np.log2(ratio), -3, 3))


def expert_ticks(E: int, px: float, each: float) -> list[int]:
    """The expert numbers, from 1, that find room at `each` px."""
    every = every_nth(E, px / E, each)
    return list(range(1, E + 1, every)) if every <= 2 else [1, *range(every, E + 1, every)]


def colour_bar(layout: Spec, theme: Theme) -> Spec:
    """The scale at the right of a heatmap; its ticks are to be added."""
    return {
        "thickness": 10, "outlinewidth": 0, "len": 1, "x": 1.0, "xpad": 10, "ypad": 0, "ticks": "",
        "tickfont": {"family": SANS, "size": layout["font"]["size"], "color": theme.ink2},
    }  # fmt: skip


def heatmap(
    name: str,
    title: str,
    subtitle: str,
    z: Array,
    colours: Spec,
    bar: Spec,
    hovered: Array,
    sentence: str,
    *,
    rows: Sequence[str] | None = None,
    row_title: str = "expert",
    row: int | None = None,
    column: int | None = None,
    step: int | None,
    theme: Theme,
    size: Size,
) -> Spec:
    """A matrix with experts in its columns; rows are experts too where they have no names. The chosen one has a frame.

    z (C, E) is coloured, hovered (C, E) is what the hover's sentence calls customdata.
    """
    C, E = z.shape
    layout = base(name, title, subtitle, step=step, theme=theme, size=size, labels=True)
    layout["margin"] |= {"r": 76}
    short = None if rows is None else beginnings(rows, letters_beside(size, LONGEST))
    layout["margin"]["l"] += 7 * max(map(len, short), default=0) if short is not None else 0
    width, height = inner(layout)
    across, down = expert_ticks(E, width, 18), expert_ticks(max(C, 1), height, 14)
    layout["xaxis"] |= {"range": [0.5, E + 0.5], "tickvals": across, "ticktext": [str(t) for t in across]}
    layout["xaxis"]["title"] = axis_title("expert", layout)
    down = [row for row in down if rows is None or row <= C]
    layout["yaxis"] |= {"range": [max(C, 1) + 0.5, 0.5], "tickvals": down, "showgrid": False}
    layout["yaxis"]["ticktext"] = [str(row) if short is None else escape(short[row - 1]) for row in down]
    layout["yaxis"]["title"] = axis_title(row_title, layout, standoff=4)
    # So that a missing value does not look like 0, which may have the colour of the ground.
    layout["plot_bgcolor"] = theme.side
    data = {
        "type": "heatmap", "name": title, "x": np.arange(1, E + 1, dtype=np.int32), "y": np.arange(1, C + 1, dtype=np.int32),
        "z": np.asarray(z, np.float32), "customdata": np.asarray(hovered, np.float32), "hoverongaps": False,
        "hovertemplate": f"{sentence}<extra></extra>",
        "xgap": 1 if E <= LINES else 0, "ygap": 1 if C <= LINES else 0, "colorbar": colour_bar(layout, theme) | bar, **colours,
    }  # fmt: skip
    if rows is not None:
        data["text"] = [[escape(name)] * E for name in rows]
    for at, axis in ((row, "y"), (column, "x")):
        if at is not None and C:
            along = {"x0": 0, "x1": 1, "xref": "paper"} if axis == "y" else {"y0": 0, "y1": 1, "yref": "paper"}
            frame = {f"{axis}0": at + 0.5, f"{axis}1": at + 1.5, f"{axis}ref": axis}
            layout["shapes"].append({"type": "rect", "line": {"color": theme.ink, "width": 1.5}} | along | frame)
    return {"data": [data] if C else [], "layout": layout}
