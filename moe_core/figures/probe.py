"""What the figures of the probe share: its tokens' experts as numbers and colours, bytes as letters, images and points.

Shapes: N probe tokens, K experts per token, E experts. `experts_NK` holds each token's experts, first choice first, from
0; `gates_NK` their weights. A place that holds E is empty: no expert took it, and its weight is 0.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from moe_core.figures.paper import Array, Spec, escape, percent
from moe_core.figures.theme import LINES, SEQUENTIAL_STOPS, Theme, expert_colour, faded, scale

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


def kept(experts_NK: Array, before_NK: Array, E: int) -> float:
    """Router saturation: the mean over tokens of the share of a token's experts that were among its experts before.

    A token without an expert has no share and is left out; NaN if there is no other. (OLMoE, arXiv 2409.02060)
    """
    there_NK = np.asarray(experts_NK) < E
    same_NK = (experts_NK[:, :, None] == before_NK[:, None, :]).any(axis=2) & there_NK
    taken_N = there_NK.any(axis=1)
    share_N = same_NK.sum(axis=1)[taken_N] / there_NK.sum(axis=1)[taken_N]
    return float(share_N.mean()) if len(share_N) else math.nan


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


def side_of(images_NP: Array) -> int:
    """How many pixels wide and high square images are."""
    return math.isqrt(images_NP.shape[1])


def image_name(n: int, labels_N: Array | None) -> str:
    """What a hover calls an image of the probe."""
    return f"Image {n}" if labels_N is None else f"Image {n}, of class {int(labels_N[n])},"


def mosaic(
    images_NP: Array, side: int, cells: Sequence[tuple[int, int, int]], grid: tuple[int, int], theme: Theme
) -> Spec:
    """Images of `side` pixels on a grid of (rows, columns), one pixel apart. cells: (image, row, column)."""
    tile = side + 1
    grey = np.zeros((grid[0] * tile, grid[1] * tile), np.uint8)
    for n, row, column in cells:
        top, left = row * tile, column * tile
        grey[top : top + side, left : left + side] = np.asarray(images_NP)[n, : side * side].reshape(side, side)
    return {
        "type": "heatmap", "name": "images", "z": grey, "x0": 0.5, "y0": 0.5, "dx": 1, "dy": 1,
        "zmin": 0, "zmax": max(16, int(grey.max(initial=0))), "hoverinfo": "skip", "showscale": False,
        "colorscale": [[0, theme.ground], [1, theme.ink]],
    }  # fmt: skip


def hovers(cells: Sequence[tuple[int, int, int]], side: int, words: Sequence[str], px: int) -> Spec:
    """Markers that cannot be seen, `px` wide, on the images of a mosaic: what hovering each of them says."""
    tile = side + 1
    return {
        "type": "scatter", "mode": "markers", "name": "image",
        "x": np.array([column * tile + side / 2 for _, _, column in cells], np.float32),
        "y": np.array([row * tile + side / 2 for _, row, _ in cells], np.float32),
        "marker": {"size": px, "opacity": 0}, "hovertext": list(words), "hoverinfo": "text",
    }  # fmt: skip


SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "x", "star", "hexagon")


def corners(extent: Array | Sequence[float]) -> tuple[float, float, float, float]:
    """(x0, x1, y0, y1); two numbers are both axes' ends, one is the distance from 0."""
    ends = np.asarray(extent, np.float64).ravel().tolist()
    if len(ends) == 1:
        ends = [-ends[0], ends[0]]
    if len(ends) == 2:
        ends = [*ends, *ends]
    x0, x1, y0, y1 = ends
    return x0, x1, y0, y1


def plane_axes(extent: Array | Sequence[float]) -> tuple[Spec, Spec]:
    """The axes of the plane, of one scale."""
    x0, x1, y0, y1 = corners(extent)
    return (
        {"title": "x", "range": [x0, x1], "nticks": 6, "constrain": "domain"},
        {"title": "y", "range": [y0, y1], "nticks": 6, "scaleanchor": "x", "constrain": "domain", "showgrid": False},
    )
