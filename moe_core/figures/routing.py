"""Who reads what: the probe's tokens, images and points with the experts that they go to.

Shapes: N probe tokens, K experts per token, E experts, as in probe.py.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from moe_core.figures.called import beginnings
from moe_core.figures.changes import mark
from moe_core.figures.lines import as_steps, line, named_ends, over_steps
from moe_core.figures.palette import Palette, palette_of, picks
from moe_core.figures.paper import (
    Array,
    Size,
    Spec,
    axis_title,
    base,
    escape,
    figure,
    inner,
    label_font,
    nice_above,
    note,
    pens,
)
from moe_core.figures.probe import (
    SYMBOLS,
    as_images,
    by_gate,
    class_name,
    class_word,
    dense,
    first_experts,
    hovers,
    mark_groups,
    mosaic,
    nobodys,
    plane_axes,
    token_name,
    without_expert,
)
from moe_core.figures.theme import LIGHT, LINES, Theme
from moe_core.figures.timeline import square

LONGEST, FEWEST = 14, 5  # letters of a class's name: the most, and the fewest that a name is cut to


@figure
def probe_gates(
    experts_NK: Array,
    gates_NK: Array,
    num_experts: int,
    *,
    labels_N: Array | None = None,
    label_names: Sequence[str] = (),
    step: int | None = None,
    theme: Theme = LIGHT,
    size: Size = (940, 387),
) -> Spec:
    """The gates of each probe token, a column each, in the order of their class.

    experts_NK, gates_NK (N, K); labels_N (N,) the class of each token, label_names their words.
    """
    E, N = num_experts, len(experts_NK)
    # Before the first snapshot there are classes, but nothing to put in their order.
    labels_N = None if labels_N is None else np.asarray(labels_N)[:N]
    order = np.arange(N) if labels_N is None else np.argsort(labels_N, kind="stable")
    every = 1 if E <= LINES else 8 if E <= 64 else 16
    ticks = list(range(1, E + 1)) if every == 1 else [1, *range(every, E + 1, every)]
    layout = base(
        "probe_gates",
        "Gates of the probe",
        f"gate weight of each expert, {theme.depth}"
        + ("" if labels_N is None else "; tokens by class")
        + without_expert(first_experts(experts_NK, E), E),
        step=step,
        theme=theme,
        size=size,
        x={"title": "probe token", "range": [0, max(N, 1)], "nticks": 8},
        y={"title": "expert", "range": [E + 0.5, 0.5], "tickvals": ticks, "ticktext": [str(t) for t in ticks]},
    )
    layout["yaxis"]["showgrid"] = False
    if labels_N is not None and N:
        mark_classes(layout, labels_N[order], label_names, theme)
    z = np.ascontiguousarray(dense(experts_NK, gates_NK, E)[order].T)
    data = {
        "type": "heatmap",
        "name": "gates",
        "x": np.arange(N + 1, dtype=np.int32),
        "y": (np.arange(E + 1) + 0.5).astype(np.float32),
        "z": z,
        "customdata": np.broadcast_to(order.astype(np.int32), z.shape),
        "hovertemplate": "Token %{customdata} has a gate of %{z:.2f} to expert %{y:.0f}<extra></extra>",
        **by_gate(theme),
    }
    none = np.flatnonzero(first_experts(experts_NK, E)[order] >= E)
    nobody = nobodys(
        (none + 0.5).astype(np.float32), np.full(len(none), 0.5, np.float32), 6, theme,
        hovertext=[f"Token {order[n]} went nowhere: no expert took it" for n in none.tolist()],
    )  # fmt: skip
    return {"data": ([data] + [nobody] * bool(len(none))) if N else [], "layout": layout}


def mark_classes(layout: Spec, sorted_N: Array, names: Sequence[str], theme: Theme) -> None:
    """Under the axis, each class at the middle of its tokens, where there is room; a rule between two classes."""

    def label(start: int, room: float) -> str:
        word, letters = class_name(sorted_N, start, names), min(LONGEST, int(room / 7))
        if len(word) > letters:
            word = beginnings(names, letters)[int(sorted_N[start])] if letters >= FEWEST else ""
        return escape(word)

    mark_groups(layout, sorted_N, label, theme.edge)
    layout["xaxis"]["title"] |= {"text": "probe token, by class"}


@figure
def digit_images(
    images: Array,
    experts_NK: Array,
    num_experts: int,
    *,
    labels_N: Array | None = None,
    label_names: Sequence[str] = (),
    step: int | None = None,
    theme: Theme = LIGHT,
    size: Size = (940, 387),
) -> Spec:
    """The probe's images in the row of their first expert.

    images (N, H, W), or square ones (N, P), from 0 (ground); experts_NK (N, K); labels_N (N,) and their words. Above 20 experts the 20 with most images, those with any.
    """
    E = num_experts
    first = first_experts(experts_NK, E)
    shown = np.arange(E)
    if E > LINES:
        many_E = np.bincount(first, minlength=E)[:E]
        busiest = np.argsort(-many_E, kind="stable")[:LINES]
        shown = np.sort(busiest[many_E[busiest] > 0] if many_E.any() else busiest)
    layout = base(
        "digit_images",
        "Images by first expert",
        "images of the probe, in the row of the expert that weighs most"
        + (
            ""
            if len(shown) == E
            else f"; the {len(shown)} of {E} experts with {'most' if len(shown) == LINES else 'any'} images"
        )
        + without_expert(first, E),
        step=step,
        theme=theme,
        size=size,
    )
    width, height = inner(layout)
    high = height / len(shown)
    images_NHW = as_images(images, high)
    _, H, W = images_NHW.shape
    across = max(1, int(width / (high * (W + 1) / (H + 1))))
    cells, words = [], []
    for row, expert in enumerate(shown.tolist()):
        for column, n in enumerate(np.flatnonzero(first == expert)[:across].tolist()):
            cells.append((n, row, column))
            words.append(f"{token_name('Image', n, labels_N, label_names)} goes to expert {expert + 1}")
    layout["xaxis"] |= {"range": [0, across * (W + 1)], "showticklabels": False, "fixedrange": True}
    layout["xaxis"]["title"] = axis_title("images of the probe", layout)
    layout["yaxis"] |= {
        "range": [len(shown) * (H + 1), 0],
        "tickvals": [row * (H + 1) + H / 2 for row in range(len(shown))],
        "ticktext": [tick_name(e, E, theme) for e in shown.tolist()],
        "title": axis_title("expert", layout),
        "showgrid": False,
        "fixedrange": True,
    }
    grid = mosaic(images_NHW, cells, (len(shown), across), theme)
    return {"data": [grid, hovers(images_NHW, cells, words, 14)], "layout": layout}


def tick_name(expert: int, E: int, theme: Theme) -> str:
    """An expert's number beside its row, with a square of its colour where colour names experts."""
    mark = square(expert, theme) + " " if E <= LINES else ""
    return f"{mark}{expert + 1}"


@figure
def regions(
    regions_RR: Array,
    extent: Array | Sequence[float],
    points_N2: Array,
    experts_NK: Array,
    num_experts: int,
    *,
    labels_N: Array | None = None,
    label_names: Sequence[str] = (),
    pinned: Sequence[int] = (),
    step: int | None = None,
    theme: Theme = LIGHT,
    size: Size = (560, 387),
) -> Spec:
    """The plane in the colours of each point's first expert, pale, with the probe's points full.

    regions_RR (R, R): first expert of each cell, rows from low y to high; extent (x0, x1, y0, y1); points_N2 (N, 2);
    labels_N (N,) the class of each point, its symbol.
    """
    E = num_experts
    first = first_experts(experts_NK, E)
    colours = palette_of(first, E, theme, pinned)
    x_axis, y_axis = plane_axes(extent)
    layout = base(
        "regions",
        "Who owns which region",
        f"{'grey and number' if theme.name == 'grey' else 'colour'}: first expert; points: the probe, a symbol a class"
        + without_expert(first, E)
        + colours.words,
        step=step,
        theme=theme,
        size=size,
        x=x_axis,
        y=y_axis,
    )
    picks(layout, E)
    data = [region_cells(np.asarray(regions_RR), x_axis["range"], y_axis["range"], colours)] if len(regions_RR) else []
    if len(points_N2):
        data.append(region_points(np.asarray(points_N2, np.float32), first, labels_N, label_names, colours, theme))
    if theme.name == "grey" and len(regions_RR):  # four greys do not tell the experts apart
        layout["annotations"] += region_numbers(
            np.asarray(regions_RR), x_axis["range"], y_axis["range"], E, layout, theme
        )
    return {"data": data, "layout": layout}


def region_numbers(
    cells: Array, x: Sequence[float], y: Sequence[float], E: int, layout: Spec, theme: Theme
) -> list[Spec]:
    """Each expert's number on its broadest region, where that is farthest from its edges. No number on a region half as broad
    as it is high."""
    R = len(cells)
    least = layout["font"]["size"] * R / min(inner(layout)) / 4  # cells to each side
    names = []
    for e in np.unique(cells[cells < E]).tolist():
        inside, depth = np.pad(cells == e, 1), 0
        while inside.any():  # until only the cells are left that are farthest inside
            last, depth = inside, depth + 1
            inside = last & shifted(last, 1, 0) & shifted(last, -1, 0) & shifted(last, 0, 1) & shifted(last, 0, -1)
        if depth >= least:
            innermost = np.argwhere(last)
            row, column = innermost[len(innermost) // 2] - 0.5  # of the cell's middle, without the frame
            at = x[0] + (x[1] - x[0]) * column / R, y[0] + (y[1] - y[0]) * row / R
            place = {"xref": "x", "yref": "y", "xanchor": "center", "yanchor": "middle", "borderpad": 1}
            font = label_font(layout, theme.ink)
            names.append(note(str(e + 1), *map(float, at), bgcolor=theme.ground, font=font, **place))
    return names


def shifted(cells: Array, down: int, right: int) -> Array:
    """Cells (R, R) moved by a row or a column."""
    return np.roll(cells, (down, right), axis=(0, 1))


def region_cells(cells: Array, x: Sequence[float], y: Sequence[float], colours: Palette) -> Spec:
    """The plane from x[0] to x[1] and y[0] to y[1], each cell pale in the colour of its first expert; blank where it has none."""
    R, E = len(cells), len(colours.cells)
    dx, dy = (x[1] - x[0]) / R, (y[1] - y[0]) / R
    return {
        "type": "heatmap", "name": "regions", "z": np.where(cells < E, cells, np.nan).astype(np.float32) if (cells >= E).any() else cells,
        "x0": x[0] + dx / 2, "dx": dx, "y0": y[0] + dy / 2, "dy": dy, "opacity": 0.25, **colours.scale,
        "customdata": np.where(cells < E, cells.astype(np.int16) + 1, 0),
        "hovertemplate": "Expert %{customdata} comes first at (%{x:.2f}, %{y:.2f})<extra></extra>",
    }  # fmt: skip


def region_points(
    points_N2: Array, first: Array, labels_N: Array | None, label_names: Sequence[str], palette: Palette, theme: Theme
) -> Spec:
    """The probe's points in the colours of their first experts, a symbol a class."""
    E = len(palette.cells)
    classes = np.zeros(len(points_N2), np.int64) if labels_N is None else np.asarray(labels_N).astype(np.int64)
    colours = [*palette.cells, theme.ground]
    points = [f"A point of class {class_word(classes, n, label_names)}" for n in range(len(points_N2))]
    went = [f" goes to expert {e + 1}" if e < E else " went nowhere: no expert took it" for e in first.tolist()]
    return {
        "type": "scatter", "mode": "markers", "name": "probe", "x": np.ascontiguousarray(points_N2[:, 0]),
        "y": np.ascontiguousarray(points_N2[:, 1]),
        "marker": {
            "color": [colours[e] for e in first.tolist()], "size": 7,
            "symbol": [SYMBOLS[c % len(SYMBOLS)] for c in classes.tolist()],
            "line": {"width": 0.8, "color": [theme.ground if e < E else theme.ink2 for e in first.tolist()]},
        },
        "customdata": np.where(first < E, first + 1, 0), "hovertext": [a + b for a, b in zip(points, went, strict=True)], "hoverinfo": "text",
    }  # fmt: skip


@figure
def churn(
    steps: Array,
    churn_n: Array,
    every: int = 0,
    *,
    span: tuple[float, float] | None = None,
    cursor: int | None = None,
    changes: Iterable[Any] = (),
    theme: Theme = LIGHT,
    size: Size = (420, 172),
) -> Spec:
    """The share of probe tokens whose first expert changed in `every` steps, as it stood at the last multiple of them.

    steps, churn_n (n,); NaN before it was measured. every 0: an earlier version measured by the clock, over any number of steps,
    so that no line joins the values.
    """
    percents = np.asarray(churn_n, np.float32) * 100
    known = percents[np.isfinite(percents)]
    top = min(100.0, nice_above(max(10.0, float(known.max(initial=0.0)))))
    y = {"title": "churn, %", "range": [0.0, top], "nticks": 5}
    over = f"in {every:,} steps" if every else "between two looks by the clock: not comparable, so no line"
    subtitle = f"share of probe tokens whose first expert changed {over}"
    layout = over_steps("churn", "Router churn over time", subtitle, steps, span, y, theme, size)
    layout["annotations"] += named_ends([("", percents, ".1f")], top, layout, theme, " %")
    hover = f"%{{y:.1f}} % of the probe changed its first expert {over.partition(':')[0]}, seen from step %{{x:,d}}"
    data = line("churn", as_steps(steps), percents, hover, color=theme.ink, width=pens(size).line, shape="hv")
    if not every:
        data |= {"mode": "markers", "marker": {"color": theme.ink, "size": 3}}
    mark(layout, changes, cursor, theme)
    return {"data": [data], "layout": layout}
