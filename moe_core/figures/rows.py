"""Rows of a table: which expert reads which, and what an expert likes best, with the features by name.

Shapes: N probe rows, F features, K experts per row, E experts. `values_NF` are the features as the table has them, NaN
where it has none.
"""

from collections.abc import Sequence

import numpy as np

from moe_core.figures.called import beginnings
from moe_core.figures.favourites import best
from moe_core.figures.matrices import colour_bar
from moe_core.figures.palette import Palette, palette_of, picks
from moe_core.figures.paper import Array, Size, Spec, base, escape, figure, inner, letters_beside, said_too
from moe_core.figures.probe import (
    class_name,
    first_experts,
    mark_groups,
    nobodys,
    sentence,
    token_name,
    without_expert,
)
from moe_core.figures.theme import DIVERGING_STOPS, LIGHT, LINES, SANS, Theme, expert_colour, scale
from moe_core.figures.timeline import square

LONGEST = 16  # letters of a feature's name beside its line
HOVERED = 6  # features in a hover of a row
STRIP = 18  # px above the features, where each row has the colour of its first expert


@figure
def probe_rows(
    values_NF: Array,
    names_F: Sequence[str],
    experts_NK: Array,
    gates_NK: Array,
    num_experts: int,
    *,
    labels_N: Array | None = None,
    label_names: Sequence[str] = (),
    pinned: Sequence[int] = (),
    step: int | None = None,
    theme: Theme = LIGHT,
    size: Size = (940, 387),
) -> Spec:
    """The probe's rows side by side, those of an expert together, each feature a line: low blue, high orange.

    values_NF (N, F), names_F their names; experts_NK, gates_NK (N, K); labels_N (N,) the class of each row, label_names
    their words. Of more features than find room, those by which the classes differ most.
    """
    E, N = num_experts, min(len(values_NF), len(experts_NK))
    first = first_experts(np.asarray(experts_NK)[:N], E)
    labels_N = None if labels_N is None else np.asarray(labels_N)[:N]
    z_NF = spreads(np.asarray(values_NF)[:N])
    colours = palette_of(first, E, theme, pinned)
    layout, shown, band = rows_layout(z_NF, names_F, labels_N, first, colours, step, theme, size)
    picks(layout, E)
    if not N:
        return {"data": [], "layout": layout}
    order = np.lexsort((np.arange(N), np.zeros(N) if labels_N is None else labels_N, first))
    mark_experts(layout, first[order], E, theme)
    heat = feature_cells(np.asarray(values_NF), z_NF, names_F, shown, order, first, layout, theme)
    rows = [hover_of_row(n, values_NF, z_NF, names_F, labels_N, label_names) for n in order.tolist()]
    goes = [sentence(e, g, E) for e, g in zip(np.asarray(experts_NK)[order].tolist(), np.asarray(gates_NK)[order].tolist(), strict=True)]  # fmt: skip
    strip = {
        "type": "heatmap", "name": "first expert", "x": heat["x"], "y": np.array([0.5 - band, 0.5 - 0.2 * band], np.float32),
        "z": np.where(first < E, first, np.nan)[order][None].astype(np.float32), "hoverinfo": "text",
        "text": [[f"{row} {where}: {features}" for (row, features), where in zip(rows, goes, strict=True)]],
        "customdata": np.where(first < E, first + 1, 0)[order][None], **colours.scale,
    }  # fmt: skip
    nobody = np.flatnonzero(first[order] >= E)
    hover = [f"{rows[i][0]} {goes[i]}" for i in nobody.tolist()]
    none = nobodys((nobody + 0.5).astype(np.float32), np.full(len(nobody), 0.5 - 0.6 * band, np.float32), 6, theme, hovertext=hover)  # fmt: skip
    return {"data": [heat, strip, *[none] * bool(len(nobody))], "layout": layout}


def rows_layout(
    z_NF: Array,
    names_F: Sequence[str],
    labels_N: Array | None,
    first: Array,
    colours: Palette,
    step: int | None,
    theme: Theme,
    size: Size,
) -> tuple[Spec, list[int], float]:
    """The layout, the features that find room, and the height of the strip above them in lines of features."""
    layout = base(
        "probe_rows", "Who reads which row", "", step=step, theme=theme, size=size, labels=True,
        x={"title": "first expert, a column a row of the probe", "range": [0, max(len(first), 1)]}, y={"title": "feature", "showgrid": False},
    )  # fmt: skip
    height = inner(layout)[1]
    shown = telling_features(z_NF, labels_N, max(1, (height - STRIP) // 16))
    some = (
        f"; the {len(shown)} of {len(names_F)} features that differ most by class" if len(shown) < len(names_F) else ""
    )
    subtitle = f"band: first expert; below, each feature, {theme.signs[0]} low to {theme.signs[2]} high{some}{without_expert(first, len(colours.cells))}{colours.words}"
    layout["title"]["text"] = said_too(layout["title"]["text"], subtitle)
    names = [escape(name) for name in beginnings([names_F[f] for f in shown], letters_beside(size, LONGEST))]
    band = len(shown) * STRIP / max(1, height - STRIP)
    layout["margin"] |= {"l": layout["margin"]["l"] + 7 * max(map(len, names), default=0), "r": 64}
    layout["yaxis"] |= {
        "range": [len(shown) + 0.5, 0.5 - band],
        "tickvals": list(range(1, len(shown) + 1)),
        "ticktext": names,
    }
    layout["plot_bgcolor"] = theme.side  # shows where a value is missing
    return layout, shown, band


def feature_cells(
    values_NF: Array,
    z_NF: Array,
    names_F: Sequence[str],
    shown: list[int],
    order: Array,
    first: Array,
    layout: Spec,
    theme: Theme,
) -> Spec:
    """The features that are shown, a line each, in the colour of how far a value lies from the mean; the rows in `order`."""
    cells = z_NF[order][:, shown].T
    row_NF = np.broadcast_to(order, cells.shape)
    hovered = np.stack([row_NF, values_NF[order][:, shown].T, first[row_NF] + 1], axis=2)
    return {
        "type": "heatmap", "name": "features", "x": np.arange(len(order) + 1, dtype=np.int32),
        "y": (np.arange(len(shown) + 1) + 0.5).astype(np.float32), "z": np.ascontiguousarray(cells, np.float32),
        "zmin": -3, "zmax": 3, "colorscale": scale(theme.diverging, DIVERGING_STOPS), "hoverongaps": False,
        "text": [[escape(names_F[f])] * len(order) for f in shown], "customdata": hovered.astype(np.float32),
        "hovertemplate": "Row %{customdata[0]:.0f} has %{text} at %{customdata[1]:.4g}, %{z:+.1f} spreads from the mean<extra></extra>",
        "colorbar": colour_bar(layout, theme) | {"tickvals": [-2, 0, 2], "ticktext": ["−2 σ", "mean", "+2 σ"]},
    }  # fmt: skip


def mark_experts(layout: Spec, sorted_N: Array, E: int, theme: Theme) -> None:
    """Under the axis, each expert at the middle of its rows where there is room; a rule between two."""

    def label(start: int, room: float) -> str:
        expert = int(sorted_N[start])
        mark = square(expert, theme) + " " if expert < E <= LINES else ""
        return "" if room < 30 else f"{mark}{expert + 1}" if expert < E else "none"

    mark_groups(layout, sorted_N, label, theme.ink2)


def spreads(values_NF: Array) -> Array:
    """(N, F) how many standard deviations of the probe's rows each value lies from their mean; NaN stays NaN."""
    values = np.asarray(values_NF, np.float64)
    known = np.isfinite(values)
    count = np.maximum(known.sum(axis=0), 1)
    away = values - np.where(known, values, 0).sum(axis=0) / count
    std = np.sqrt((np.where(known, away, 0) ** 2).sum(axis=0) / count)
    return np.asarray(away / np.where(std > 0, std, 1))


def telling_features(z_NF: Array, labels_N: Array | None, most: int) -> list[int]:
    """At most `most` features, in the table's order: those whose spread the classes
    explain best. They stay the same while a run trains."""
    F = z_NF.shape[1]
    if most >= F:
        return list(range(F))
    z, labels = np.nan_to_num(z_NF), np.zeros(len(z_NF), np.int64) if labels_N is None else np.asarray(labels_N)
    between = np.zeros(F)
    for c in np.unique(labels).tolist():
        of_class = z[labels == c]
        between += len(of_class) * of_class.mean(axis=0) ** 2
    return sorted(np.argsort(-between, kind="stable")[:most].tolist())


def hover_of_row(
    n: int, values_NF: Array, z_NF: Array, names_F: Sequence[str], labels_N: Array | None, label_names: Sequence[str]
) -> tuple[str, str]:
    """What a hover calls a row, and its features that lie furthest from the mean with their values."""
    furthest = np.argsort(-np.abs(np.nan_to_num(z_NF[n])), kind="stable")[:HOVERED].tolist()
    values = [f"{escape(names_F[f])} {value_word(values_NF[n][f])}" for f in furthest]
    return token_name("Row", n, labels_N, label_names), ", ".join(values) + ", …" * (len(names_F) > HOVERED)


def value_word(value: float) -> str:
    return "missing" if np.isnan(value) else f"{value:.4g}"


@figure
def favourite_rows(
    values_NF: Array,
    names_F: Sequence[str],
    gate_N: Array,
    chosen: int,
    *,
    labels_N: Array | None = None,
    label_names: Sequence[str] = (),
    step: int | None = None,
    theme: Theme = LIGHT,
    size: Size = (460, 300),
) -> Spec:
    """The rows with most weight, each by its class and the features that lie furthest from the mean; the weight as a bar.

    values_NF (N, F), names_F their names; gate_N, labels_N (N,), label_names the classes' words.
    """
    taken = int((np.asarray(gate_N) > 0).sum())
    layout = base(
        "favourite_rows",
        f"Favourite rows of expert {chosen + 1}",
        f"gate weight; ↑ ↓ far from the mean; {taken} of {len(gate_N)} probe rows go to it",
        step=step,
        theme=theme,
        size=size,
        x={"title": "gate weight", "range": [-1.9, 1.0], "tickvals": [0, 0.5, 1], "fixedrange": True},
        y={"title": "most weight first", "showgrid": False, "fixedrange": True},
        bargap=0.45,
    )
    width, height = inner(layout)
    most = min(20, max(1, height // 20))
    favourites = best(gate_N, most)
    layout["yaxis"] |= {"range": [most + 0.5, 0.5], "dtick": 1, "nticks": 0}
    z_NF = spreads(np.asarray(values_NF)[: len(gate_N)])
    letters = int(width * 1.9 / 2.9 / (0.45 * layout["font"]["size"]))
    short = beginnings(label_names, 12)
    words = [in_short(int(n), values_NF, z_NF, names_F, labels_N, short, letters) for n in favourites.tolist()]
    hovers = [hover_of_row(int(n), values_NF, z_NF, names_F, labels_N, label_names) for n in favourites.tolist()]
    y = np.arange(1, len(favourites) + 1, dtype=np.int32)
    weights = np.asarray(gate_N, np.float32)[favourites]
    data: list[Spec] = [
        {
            "type": "bar", "orientation": "h", "name": "gate", "x": weights, "y": y,
            "marker": {"color": expert_colour(chosen, theme), "line": {"width": 0}}, "hoverinfo": "text",
            "hovertext": [f"{who} gives expert {chosen + 1} a gate of {w:.2f}: {what}" for (who, what), w in zip(hovers, weights.tolist(), strict=True)],
        },
        {
            "type": "scatter", "mode": "text", "name": "features", "x": np.full(len(favourites), -0.04, np.float32), "y": y,
            "text": [escape(word) for word in words], "textposition": "middle left", "hoverinfo": "skip", "cliponaxis": True,
            "textfont": {"family": SANS, "size": layout["font"]["size"], "color": theme.ink},
        },
    ]  # fmt: skip
    return {"data": data if len(favourites) else [], "layout": layout}


def in_short(
    n: int,
    values_NF: Array,
    z_NF: Array,
    names_F: Sequence[str],
    labels_N: Array | None,
    label_names: Sequence[str],
    letters: int,
) -> str:
    """A row in so many letters: its class, then its features that lie furthest from the mean, as many as find room."""
    text = "" if labels_N is None else f"{class_name(labels_N, n, label_names)}:"
    for i, f in enumerate(np.argsort(-np.abs(np.nan_to_num(z_NF[n])), kind="stable").tolist()):
        value = f" {value_word(values_NF[n][f])} {'↑' if z_NF[n][f] > 0 else '↓'}"
        room = letters - len(text) - len(value) - 2
        if room < (4 if i == 0 else len(names_F[f])):
            break
        name = names_F[f] if len(names_F[f]) <= room else names_F[f][: room - 1] + "…"
        text += f"{',' * bool(i)} {name}{value}"
    return text.strip()
