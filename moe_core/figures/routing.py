"""Who reads what: the probe's tokens, images and points with the experts that they go to.

Shapes: N probe tokens, K experts per token, E experts. `experts_NK` holds each token's experts, first choice first, from
0; `gates_NK` their weights. A place that holds E is empty: no expert took it, and its weight is 0.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from moe_core.figures.theme import (
    LIGHT,
    LINES,
    MONO,
    SANS,
    SEQUENTIAL_STOPS,
    Array,
    Size,
    Spec,
    Theme,
    as_steps,
    base,
    end_label,
    escape,
    expert_colour,
    faded,
    figure,
    inner,
    last_of,
    letter_colour,
    mark_changes,
    mark_cursor,
    nice_above,
    pens,
    percent,
    scale,
    step_axis,
)

ROW = 64  # bytes in a line of the probe's text
NAMES = {9: "⇥", 10: "⏎", 13: "␍", 32: "·"}  # bytes without a letter of their own


def letter(byte: int) -> str:
    """How a byte is shown in a cell."""
    return NAMES.get(byte) or (escape(chr(byte)) if 33 <= byte < 127 else "□")


def cell_colours(E: int, theme: Theme) -> list[str]:
    """The colour of a cell by its expert. Above 20 experts colour names none."""
    return [expert_colour(e, theme) if E <= LINES else faded(theme.ink2, 0.35) for e in range(E)]


def by_expert(E: int, theme: Theme) -> Spec:
    """A heatmap's colours when its values are experts from 0."""
    stops: list[list[Any]] = []
    for e, colour in enumerate(cell_colours(E, theme)):
        stops += [[e / E, colour], [(e + 1) / E, colour]]
    return {"colorscale": stops, "zmin": -0.5, "zmax": E - 0.5, "showscale": False}


def by_gate(theme: Theme) -> Spec:
    """A heatmap's colours when its values are gates from 0 to 1."""
    return {"colorscale": scale(theme.sequential, SEQUENTIAL_STOPS), "zmin": 0, "zmax": 1, "showscale": False}


def dense(experts_NK: Array, gates_NK: Array, E: int) -> Array:
    """Gates of all experts (N, E), 0 where not selected."""
    gates_NE = np.zeros((len(experts_NK), E + 1), np.float32)
    np.put_along_axis(gates_NE, np.asarray(experts_NK).astype(np.int64), np.asarray(gates_NK, np.float32), axis=1)
    return gates_NE[:, :E]


def first_experts(experts_NK: Array, E: int) -> Array:
    """Each token's first expert (N,): that of its first place which is not empty; E where all are."""
    experts_NK = np.asarray(experts_NK).astype(np.int64)
    if not experts_NK.size:
        return np.full(len(experts_NK), E, np.int64)
    place_N1 = (experts_NK < E).argmax(axis=1)[:, None]
    return np.asarray(np.take_along_axis(experts_NK, place_N1, axis=1)[:, 0])


def without_expert(first_N: Array, E: int) -> str:
    """What a subtitle adds when tokens got no expert."""
    share = float((first_N >= E).mean()) if len(first_N) else 0.0
    return f"; {percent(share)} of them no expert took" if share else ""


def sentence(experts_K: Sequence[int], gates_K: Sequence[float], E: int) -> str:
    """ "goes to expert 4 (0.71) and expert 9 (0.29)"."""
    parts = [f"expert {e + 1} ({g:.2f})" for e, g in zip(experts_K, gates_K, strict=True) if e < E]
    if not parts:
        return "went nowhere: no expert took it"
    many = ", ".join(parts[:4]) + (", …" if len(parts) > 4 else "")
    return "goes to " + (" and ".join(parts) if len(parts) < 3 else many)


def moved_tokens(experts_NK: Array, before_NK: Array | None, E: int) -> Array:
    """The tokens whose first expert changed since the last snapshot (m,)."""
    if before_NK is None or not len(before_NK):
        return np.zeros(0, np.int64)
    return np.flatnonzero(first_experts(experts_NK, E) != first_experts(before_NK, E))


def nobodys(x: Array, y: Array, side: float, theme: Theme, **given: Any) -> Spec:
    """Cells of ground with an edge, `side` px wide: places that no expert took."""
    return {
        "type": "scatter", "mode": "markers", "name": "no expert", "x": x, "y": y, "cliponaxis": False,
        "marker": {"symbol": "square", "size": max(4.0, side), "color": theme.ground, "line": {"width": 1, "color": theme.edge}},
        "hoverinfo": "text",
    } | given  # fmt: skip


@figure
def probe_text(
    tokens_N: Array,
    experts_NK: Array,
    gates_NK: Array,
    num_experts: int,
    *,
    before_NK: Array | None = None,
    step: int | None = None,
    theme: Theme = LIGHT,
    size: Size = (940, 387),
) -> Spec:
    """The probe's text as a score: 64 bytes a line, each cell its first expert, all gates in the rows below it.

    tokens_N (N,) bytes; experts_NK, gates_NK (N, K); before_NK (N, K) the experts at the snapshot before, for the marks
    over the bytes that changed.
    """
    E, N = num_experts, min(len(tokens_N), len(experts_NK))
    depth = "pale 0 to deep 1" if theme.name == "light" else "dark 0 to bright 1"
    layout = base(
        "probe_text",
        "Who reads which byte",
        f"cell: first expert of the byte{without_expert(first_experts(experts_NK, E), E)}; "
        f"▾ changed since the last snapshot; below: gate weight of each expert, {depth}",
        step=step,
        theme=theme,
        size=size,
        x={"title": f"probe byte, {ROW} a line", "range": [0, ROW], "showticklabels": False, "fixedrange": True},
    )
    width, height = inner(layout)
    lines = max(1, math.ceil(N / ROW))
    block = height / lines
    cell = min(block * 0.35, width / ROW * 0.85)
    mark = min(12.0, block * 0.15)
    tops = [line * block + mark for line in range(lines)]
    layout["yaxis"] |= score_axis(tops, cell, block - mark - cell - 4, E, layout)
    if not N:
        return {"data": [], "layout": layout}
    grid = np.full(lines * ROW, np.nan, np.float32)
    experts_NK, gates_NK = np.asarray(experts_NK)[:N], np.asarray(gates_NK, np.float32)[:N]
    first = first_experts(experts_NK, E)
    grid[:N] = np.where(first < E, first, np.nan)
    gates = np.zeros((lines * ROW, E), np.float32)
    gates[:N] = dense(experts_NK, gates_NK, E)
    hover = [
        f"Byte {n} “{letter(b)}” {sentence(e, g, E)}"
        for n, (b, e, g) in enumerate(zip(tokens_N.tolist(), experts_NK.tolist(), gates_NK.tolist(), strict=False))
    ]
    hover += [""] * (lines * ROW - N)
    data: list[Spec] = []
    x = np.arange(ROW + 1, dtype=np.int32)
    row = (block - mark - cell - 4) / E
    for line, top in enumerate(tops):
        here = slice(line * ROW, (line + 1) * ROW)
        data.append(
            {
                "type": "heatmap", "name": f"first expert, from byte {line * ROW}", "x": x,
                "y": np.array([top, top + cell], np.float32), "z": grid[None, here], "text": [hover[here]],
                "xgap": 1, "hoverinfo": "text", **by_expert(E, theme),
            }
        )  # fmt: skip
        data.append(
            {
                "type": "heatmap", "name": f"gates, from byte {line * ROW}", "x": x,
                "y": (top + cell + 2 + row * np.arange(E + 1)).astype(np.float32),
                "z": np.ascontiguousarray(gates[here].T),
                "hovertemplate": "A gate of %{z:.2f}<extra></extra>", **by_gate(theme),
            }
        )  # fmt: skip
    middle = np.array([tops[n // ROW] for n in range(N)], np.float32) + np.float32(cell / 2)
    across = (np.arange(N) % ROW + 0.5).astype(np.float32)
    colours = [letter_colour(expert_colour(e, theme)) if E <= LINES else theme.ink for e in range(E)] + [theme.ink]
    if (none := np.flatnonzero(first >= E)).size:
        words = [hover[n] for n in none.tolist()]
        data.append(nobodys(across[none], middle[none], min(cell, width / ROW) - 2, theme, hovertext=words))
    data.append(
        {
            "type": "scatter",
            "mode": "text",
            "name": "bytes",
            "x": across,
            "y": middle,
            "text": [letter(b) for b in np.asarray(tokens_N)[:N].tolist()],
            "textfont": {
                "family": MONO,
                "size": max(8, min(17, round(cell * 0.95))),
                "color": [colours[e] for e in first.tolist()],
            },
            "hoverinfo": "skip",
        }
    )
    moved = moved_tokens(experts_NK, None if before_NK is None else before_NK[:N], E)
    data.append(
        {
            "type": "scatter",
            "mode": "markers",
            "name": "changed",
            "x": across[moved],
            "y": middle[moved] - np.float32(cell / 2 + mark / 2),
            "marker": {"symbol": "triangle-down", "size": 9, "color": theme.ink},
            "hovertext": [f"Byte {n} went to another first expert" for n in moved.tolist()],
            "hoverinfo": "text",
            "cliponaxis": False,
        }
    )
    return {"data": data, "layout": layout}


def score_axis(tops: list[float], cell: float, gates: float, E: int, layout: Spec) -> Spec:
    """The y axis of the score, in px from the top: a line's first byte beside its cells, experts beside its gates."""
    ticks: list[float] = []
    words: list[str] = []
    marks = [e for e in (1, E // 2, E) if 1 <= e <= E]
    # Numbers closer than a line of type would cover each other.
    marks = sorted(set(marks) - {1}) if gates > 40 and E > 1 else [E]
    for line, top in enumerate(tops):
        ticks.append(top + cell / 2)
        words.append(f"<b>{line * ROW}</b>")
        for e in marks:
            ticks.append(top + cell + 2 + gates * (e - 0.5) / E)
            words.append(str(e))
    return {
        "title": {"text": "expert", "standoff": 2, "font": layout["font"]}, "range": [inner(layout)[1], 0], "tickvals": ticks, "ticktext": words,
        "showgrid": False, "fixedrange": True,
    }  # fmt: skip


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
    order = np.arange(N) if labels_N is None else np.argsort(np.asarray(labels_N), kind="stable")
    every = 1 if E <= LINES else 8 if E <= 64 else 16
    ticks = list(range(1, E + 1)) if every == 1 else [1, *range(every, E + 1, every)]
    layout = base(
        "probe_gates",
        "Gates of the probe",
        f"gate weight of each expert, {'pale' if theme.name == 'light' else 'dark'} 0 to "
        f"{'deep' if theme.name == 'light' else 'bright'} 1"
        + ("" if labels_N is None else "; tokens in the order of their class")
        + without_expert(first_experts(experts_NK, E), E),
        step=step,
        theme=theme,
        size=size,
        x={"title": "probe token", "range": [0, max(N, 1)], "nticks": 8},
        y={"title": "expert", "range": [E + 0.5, 0.5], "tickvals": ticks, "ticktext": [str(t) for t in ticks]},
    )
    layout["yaxis"]["showgrid"] = False
    if labels_N is not None and N:
        mark_classes(layout, np.asarray(labels_N)[order], label_names, theme)
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
    """Under the axis, each class at the middle of its tokens; a rule between two classes."""
    starts = np.flatnonzero(np.diff(sorted_N.astype(np.int64), prepend=int(sorted_N[0]) - 1))
    ends = [*starts[1:].tolist(), len(sorted_N)]
    labels = [int(sorted_N[s]) for s in starts]
    words = [escape(names[c]) if 0 <= c < len(names) else str(c) for c in labels]
    layout["xaxis"] |= {
        "tickvals": [(s + e) / 2 for s, e in zip(starts.tolist(), ends, strict=True)],
        "ticktext": words,
        "title": layout["xaxis"]["title"] | {"text": "probe token, by class"},
    }
    for start in starts[1:].tolist():
        layout["shapes"].append(
            {
                "type": "line", "xref": "x", "yref": "paper", "x0": start, "x1": start, "y0": 0, "y1": 1,
                "line": {"color": theme.edge, "width": 1},
            }
        )  # fmt: skip


@figure
def digit_images(
    images_NP: Array,
    experts_NK: Array,
    num_experts: int,
    *,
    labels_N: Array | None = None,
    step: int | None = None,
    theme: Theme = LIGHT,
    size: Size = (940, 387),
) -> Spec:
    """The probe's images in the row of their first expert.

    images_NP (N, P): square images, P pixels from 0 (ground); experts_NK (N, K). Above 20 experts the 20 with most images.
    """
    E, N = num_experts, len(experts_NK)
    first = first_experts(experts_NK, E)
    shown = np.arange(E)
    if E > LINES:
        shown = np.sort(np.argsort(-np.bincount(first, minlength=E)[:E], kind="stable")[:LINES])
    side = math.isqrt(images_NP.shape[1]) if N else 8
    layout = base(
        "digit_images",
        "Images by first expert",
        "images of the probe, in the row of the expert that weighs most"
        + ("" if E <= LINES else f"; the {LINES} of {E} experts with most images")
        + without_expert(first, E),
        step=step,
        theme=theme,
        size=size,
    )
    width, height = inner(layout)
    tile = side + 1
    across = max(1, int(width / (height / len(shown))))
    mosaic = np.zeros((len(shown) * tile, across * tile), np.uint8)
    xs, ys, words = [], [], []
    for row, expert in enumerate(shown.tolist()):
        for column, n in enumerate(np.flatnonzero(first == expert)[:across].tolist()):
            top, left = row * tile, column * tile
            mosaic[top : top + side, left : left + side] = np.asarray(images_NP)[n, : side * side].reshape(side, side)
            xs.append(left + side / 2)
            ys.append(top + side / 2)
            what = "" if labels_N is None else f", of class {int(labels_N[n])},"
            words.append(f"Image {n}{what} goes to expert {expert + 1}")
    layout["xaxis"] |= {"range": [0, across * tile], "showticklabels": False, "fixedrange": True}
    layout["xaxis"]["title"] = {"text": "images of the probe", "standoff": 2, "font": layout["font"]}
    layout["yaxis"] |= {
        "range": [len(shown) * tile, 0],
        "tickvals": [row * tile + side / 2 for row in range(len(shown))],
        "ticktext": [tick_name(e, E, theme) for e in shown.tolist()],
        "title": {"text": "expert", "standoff": 2, "font": layout["font"]},
        "showgrid": False,
        "fixedrange": True,
    }
    data = [
        {
            "type": "heatmap", "name": "images", "z": mosaic, "x0": 0.5, "y0": 0.5, "dx": 1, "dy": 1,
            "zmin": 0, "zmax": max(16, int(mosaic.max(initial=0))), "hoverinfo": "skip", "showscale": False,
            "colorscale": [[0, theme.ground], [1, theme.ink]],
        },
        {
            "type": "scatter", "mode": "markers", "name": "image", "x": np.array(xs, np.float32),
            "y": np.array(ys, np.float32), "marker": {"size": 14, "opacity": 0}, "hovertext": words, "hoverinfo": "text",
        },
    ]  # fmt: skip
    return {"data": data, "layout": layout}


def tick_name(expert: int, E: int, theme: Theme) -> str:
    """An expert's number beside its row, with a square of its colour where colour names experts."""
    mark = f'<span style="color:{expert_colour(expert, theme)}">■</span> ' if E <= LINES else ""
    return f"{mark}{expert + 1}"


SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "x", "star", "hexagon")


@figure
def regions(
    regions_RR: Array,
    extent: Array | Sequence[float],
    points_N2: Array,
    experts_NK: Array,
    num_experts: int,
    *,
    labels_N: Array | None = None,
    step: int | None = None,
    theme: Theme = LIGHT,
    size: Size = (560, 387),
) -> Spec:
    """The plane in the colours of each point's first expert, pale, with the probe's points full.

    regions_RR (R, R): first expert of each cell, rows from low y to high; extent (x0, x1, y0, y1); points_N2 (N, 2);
    labels_N (N,) the class of each point, its symbol.
    """
    E = num_experts
    x0, x1, y0, y1 = corners(extent)
    layout = base(
        "regions",
        "Who owns which region",
        "colour: first expert; points: the probe, a symbol a class" + without_expert(first_experts(experts_NK, E), E),
        step=step,
        theme=theme,
        size=size,
        x={"title": "x", "range": [x0, x1], "nticks": 6, "constrain": "domain"},
        y={"title": "y", "range": [y0, y1], "nticks": 6, "scaleanchor": "x", "constrain": "domain", "showgrid": False},
    )
    R = len(regions_RR)
    dx, dy = (x1 - x0) / max(R, 1), (y1 - y0) / max(R, 1)
    data: list[Spec] = []
    if R:
        cells = np.asarray(regions_RR)
        data.append(
            {
                "type": "heatmap", "name": "regions", "z": np.where(cells < E, cells, np.nan).astype(np.float32) if (cells >= E).any() else cells, "x0": x0 + dx / 2, "dx": dx,
                "y0": y0 + dy / 2, "dy": dy, "opacity": 0.25, **by_expert(E, theme),
                "customdata": cells.astype(np.int16) + 1,
                "hovertemplate": "Expert %{customdata} comes first at (%{x:.2f}, %{y:.2f})<extra></extra>",
            }
        )  # fmt: skip
    if len(points_N2):
        points = np.asarray(points_N2, np.float32)
        first = first_experts(experts_NK, E)
        classes = np.zeros(len(points), np.int64) if labels_N is None else np.asarray(labels_N).astype(np.int64)
        colours = [*cell_colours(E, theme), theme.ground]
        taken = "A point of class %{customdata[1]} goes to expert %{customdata[0]}<extra></extra>"
        nobody = "A point of class %{customdata[1]} went nowhere: no expert took it<extra></extra>"
        data.append(
            {
                "type": "scatter", "mode": "markers", "name": "probe", "x": np.ascontiguousarray(points[:, 0]),
                "y": np.ascontiguousarray(points[:, 1]), "customdata": np.stack([first + 1, classes], 1).astype(np.int32),
                "marker": {
                    "color": [colours[e] for e in first.tolist()], "size": 7,
                    "symbol": [SYMBOLS[c % len(SYMBOLS)] for c in classes.tolist()],
                    "line": {"width": 0.8, "color": [theme.ground if e < E else theme.ink2 for e in first.tolist()]},
                },
                "hovertemplate": [taken if e < E else nobody for e in first.tolist()],
            }
        )  # fmt: skip
    return {"data": data, "layout": layout}


def corners(extent: Array | Sequence[float]) -> tuple[float, float, float, float]:
    """(x0, x1, y0, y1); two numbers are both axes' ends, one is the distance from 0."""
    ends = np.asarray(extent, np.float64).ravel().tolist()
    if len(ends) == 1:
        ends = [-ends[0], ends[0]]
    if len(ends) == 2:
        ends = [*ends, *ends]
    x0, x1, y0, y1 = ends
    return x0, x1, y0, y1


@figure
def churn(
    steps: Array,
    churn_n: Array,
    *,
    span: tuple[float, float] | None = None,
    cursor: int | None = None,
    changes: Iterable[Any] = (),
    theme: Theme = LIGHT,
    size: Size = (420, 172),
) -> Spec:
    """The share of probe tokens whose first expert changed since the snapshot before. steps, churn_n (n,)."""
    percents = np.asarray(churn_n, np.float32) * 100
    known = percents[np.isfinite(percents)]
    top = min(100.0, nice_above(max(10.0, float(known.max(initial=0.0)))))
    layout = base(
        "churn",
        "Router churn over time",
        "share of probe tokens whose first expert changed",
        step=last_of(steps),
        theme=theme,
        size=size,
        labels=True,
        x=step_axis(steps, span),
        y={"title": "churn, %", "range": [0.0, top], "nticks": 5},
    )
    if len(percents) and np.isfinite(percents[-1]):
        _, height = inner(layout)
        label = end_label(
            f"{percents[-1]:.1f} %", height * float(percents[-1]) / top, height, theme, layout["font"]["size"]
        )
        label["font"] = {"color": theme.ink, "size": layout["font"]["size"], "family": SANS}
        layout["annotations"].append(label)
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "churn",
            "x": as_steps(steps),
            "y": percents,
            "line": {"color": theme.ink, "width": pens(size).line},
            "hovertemplate": "%{y:.1f} % of the probe changed its first expert at step %{x:,d}<extra></extra>",
        }
    ]
    mark_changes(layout, changes, theme)
    mark_cursor(layout, cursor, theme)
    return {"data": data, "layout": layout}
