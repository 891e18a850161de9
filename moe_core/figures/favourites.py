"""What an expert likes best: the probe's bytes, images or points that give it most weight.

Shapes: N probe tokens, K experts per token. `gate_N` is the weight that each gives to the expert that the page shows, 0 for none.
"""

from collections.abc import Sequence

import numpy as np

from moe_core.figures.paper import Array, Size, Spec, base, escape, figure, inner
from moe_core.figures.probe import (
    SYMBOLS,
    Character,
    as_images,
    byte_names,
    characters,
    class_word,
    hovers,
    mosaic,
    plane_axes,
    token_name,
)
from moe_core.figures.theme import LIGHT, MONO, SEQUENTIAL_STOPS, Theme, expert_colour, scale
from moe_core.figures.words import SPACE, columns_of

BEFORE, AFTER = 12, 6  # columns of context before and after a favourite


def best(gate_N: Array, most: int) -> Array:
    """The tokens that give the expert most weight, at most `most`, the first of equals first. (m,)"""
    gate_N = np.asarray(gate_N, np.float64)
    order = np.argsort(-gate_N, kind="stable")[:most]
    return order[gate_N[order] > 0]


@figure
def favourite_bytes(
    tokens_N: Array,
    gate_N: Array,
    chosen: int,
    *,
    sequence_N: Array | None = None,
    step: int | None = None,
    theme: Theme = LIGHT,
    size: Size = (460, 300),
) -> Spec:
    """The bytes with most weight, each within its text, the character that it is of in bold, with the weight as a bar.

    tokens_N (N,) bytes; gate_N (N,); sequence_N (N,) the text that each byte belongs to.
    """
    N = min(len(tokens_N), len(gate_N))
    gate_N, text = gate_N[:N], characters(tokens_N[:N], None if sequence_N is None else sequence_N[:N])
    names = [escape(name) for name in byte_names(text)]
    taken = int((np.asarray(gate_N) > 0).sum())
    layout = base(
        "favourite_bytes",
        f"Favourite bytes of expert {chosen + 1}",
        f"gate weight of the byte in bold; {taken} of {len(gate_N)} probe bytes go to it",
        step=step,
        theme=theme,
        size=size,
        x={"title": "gate weight", "range": [-1.25, 1.0], "tickvals": [0, 0.25, 0.5, 0.75, 1], "fixedrange": True},
        y={"title": "most weight first", "showgrid": False, "fixedrange": True},
        bargap=0.45,
    )
    rows = min(20, max(1, inner(layout)[1] // 20))
    favourites = best(gate_N, rows)
    layout["yaxis"] |= {"range": [rows + 0.5, 0.5], "dtick": 1, "nticks": 0}
    texts = in_context(favourites.tolist(), text, np.zeros(N) if sequence_N is None else np.asarray(sequence_N))
    y = np.arange(1, len(favourites) + 1, dtype=np.int32)
    weights = np.asarray(gate_N, np.float32)[favourites]
    data: list[Spec] = [
        {
            "type": "bar", "orientation": "h", "name": "gate", "x": weights, "y": y,
            "marker": {"color": expert_colour(chosen, theme), "line": {"width": 0}}, "customdata": favourites.astype(np.int32),
            "hovertext": [names[n] for n in favourites.tolist()],
            "hovertemplate": f"Byte %{{customdata}} %{{hovertext}} gives expert {chosen + 1} a gate of %{{x:.2f}}<extra></extra>",
        },
        {
            "type": "scatter", "mode": "text", "name": "context", "x": np.full(len(favourites), -0.03, np.float32), "y": y,
            "text": texts, "textposition": "middle left", "hoverinfo": "skip", "cliponaxis": True,
            "textfont": {"family": MONO, "size": layout["font"]["size"], "color": theme.ink},
        },
    ]  # fmt: skip
    return {"data": data if len(favourites) else [], "layout": layout}


def in_context(favourites: Sequence[int], text: Sequence[Character], sequence_N: Array) -> list[str]:
    """The character of each of these bytes in bold between its neighbours of the same text; a shorter context is padded, so that the
    columns line up."""
    owner = [c for c, one in enumerate(text) for _ in range(one.bytes)]  # of each byte
    parts = []
    for n in favourites:
        c = owner[n]
        same = [
            i
            for i in range(max(0, c - BEFORE), c + AFTER + 1)
            if i < len(text) and sequence_N[text[i].first] == sequence_N[n]
        ]
        before = fitting([text[i].text for i in same if i < c][::-1], BEFORE)
        after = fitting([text[i].text for i in same if i > c], AFTER)
        lead, rest = (SPACE * (most - sum(map(width_of, words))) for words, most in ((before, BEFORE), (after, AFTER)))
        parts.append(
            f"{lead}{escape(''.join(before[::-1]))}<b>{escape(text[c].text)}</b>{escape(''.join(after))}{rest}"
        )
    return parts


def fitting(words: Sequence[str], most: int) -> list[str]:
    """As many of the words as have at most so many columns."""
    ends = np.cumsum([width_of(word) for word in words])
    return list(words[: int((ends <= most).sum())])


def width_of(text: str) -> int:
    """Columns of a text in a monospaced font."""
    return sum(map(columns_of, text))


@figure
def favourite_images(
    images: Array,
    gate_N: Array,
    chosen: int,
    *,
    labels_N: Array | None = None,
    label_names: Sequence[str] = (),
    step: int | None = None,
    theme: Theme = LIGHT,
    size: Size = (460, 300),
) -> Spec:
    """The images with most weight, in reading order. images (N, H, W), or square ones (N, P); gate_N, labels_N (N,)."""
    taken = int((np.asarray(gate_N) > 0).sum())
    layout = base(
        "favourite_images",
        f"Favourite images of expert {chosen + 1}",
        f"most gate weight first; {taken} of {len(gate_N)} probe images go to it",
        step=step,
        theme=theme,
        size=size,
        x={"title": "image in the row", "showticklabels": False, "fixedrange": True},
        y={"title": "row", "showticklabels": False, "showgrid": False, "fixedrange": True},
    )
    width, height = inner(layout)
    px = 44
    images_NHW = as_images(images, px)
    _, H, W = images_NHW.shape
    # The longer side has so many px, and the grid one scale both ways.
    across, down = (max(1, int(room / px * max(H, W) / side)) for room, side in ((width, W), (height, H)))
    favourites = best(gate_N, across * down)
    layout["xaxis"]["range"], layout["yaxis"]["range"] = [0, across * (W + 1)], [down * (H + 1), 0]
    cells = [(n, place // across, place % across) for place, n in enumerate(favourites.tolist())]
    words = [
        f"{token_name('Image', n, labels_N, label_names)} gives expert {chosen + 1} a gate of {float(gate_N[n]):.2f}"
        for n in favourites.tolist()
    ]
    data = [mosaic(images_NHW, cells, (down, across), theme), hovers(images_NHW, cells, words, px - 10)]
    return {"data": data if len(favourites) else [], "layout": layout}


@figure
def favourite_points(
    points_N2: Array,
    gate_N: Array,
    chosen: int,
    extent: Array,
    *,
    labels_N: Array | None = None,
    label_names: Sequence[str] = (),
    step: int | None = None,
    theme: Theme = LIGHT,
    size: Size = (460, 300),
) -> Spec:
    """The probe's points, each as deep as the weight that it gives; hollow where it gives none. points_N2 (N, 2)."""
    gate = np.asarray(gate_N, np.float32)
    taken = int((gate > 0).sum())
    x_axis, y_axis = plane_axes(extent)
    layout = base(
        "favourite_points",
        f"Favourite points of expert {chosen + 1}",
        f"gate weight, {theme.depth}; {taken} of {len(gate)} probe points go to it",
        step=step,
        theme=theme,
        size=size,
        x=x_axis,
        y=y_axis,
    )
    classes = np.zeros(len(gate), np.int64) if labels_N is None else np.asarray(labels_N).astype(np.int64)
    points = np.asarray(points_N2, np.float32).reshape(-1, 2)
    data = [
        {
            "type": "scatter", "mode": "markers", "name": "gate", "x": np.ascontiguousarray(points[:, 0]),
            "y": np.ascontiguousarray(points[:, 1]), "customdata": gate,
            "marker": {
                "color": gate, "cmin": 0, "cmax": 1, "colorscale": scale(theme.sequential, SEQUENTIAL_STOPS), "size": 7,
                "symbol": [SYMBOLS[c % len(SYMBOLS)] for c in classes.tolist()],
                "line": {"width": 0.8, "color": theme.edge},
            },
            "hovertext": [
                f"A point of class {class_word(classes, n, label_names)} gives expert {chosen + 1} a gate of {g:.2f}"
                for n, g in enumerate(gate.tolist())
            ],
            "hoverinfo": "text",
        }
    ]  # fmt: skip
    return {"data": data if len(gate) else [], "layout": layout}
