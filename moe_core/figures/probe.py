"""What the figures of the probe share: its tokens' experts as numbers and colours, bytes as letters, images and points.

Shapes: N probe tokens, K experts per token, E experts. `experts_NK` holds each token's experts, first choice first, from
0; `gates_NK` their weights. A place that holds E is empty: no expert took it, and its weight is 0.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from moe_core.figures.paper import Array, Spec, escape, inner, percent, upright
from moe_core.figures.theme import SEQUENTIAL_STOPS, Theme, scale

NAMES = {"\t": "⇥", "\n": "⏎", "\r": "␍", " ": "·"}  # characters without a letter of their own
LONGEST = 4  # bytes of a character of UTF-8


class Character(NamedTuple):
    """A character of the probe's text: as it is shown, not escaped; its first byte, and how many it has."""

    text: str
    first: int
    bytes: int


def characters(tokens_N: Array, sequence_N: Array | None = None) -> list[Character]:
    """The bytes of UTF-8 text as characters, in order. A byte that belongs to none, and a character that cannot be printed, is
    shown by its number, as 0xE4. sequence_N: the text that each byte is of; no character goes on into the next."""
    data = np.asarray(tokens_N, np.uint8).tobytes()
    ends = [] if sequence_N is None else (np.flatnonzero(np.diff(np.asarray(sequence_N))) + 1).tolist()
    found: list[Character] = []
    for first, end in pairwise([0, *ends, len(data)]):
        at = first
        while at < end:
            text, many = character_at(data[at : min(end, at + LONGEST)])
            found.append(Character(text, at, many))
            at += many
    return found


def character_at(data: bytes) -> tuple[str, int]:
    """How the first character of these bytes is shown, and how many bytes it has."""
    for many in range(1, len(data) + 1):
        try:
            letter = data[:many].decode()
        except UnicodeDecodeError:
            continue
        return NAMES.get(letter) or (letter if letter.isprintable() else f"0x{ord(letter):02X}"), many
    return f"0x{data[0]:02X}", 1


def name_of_byte(byte: int) -> str:
    """A byte as it is shown by itself: the character that it is, or its number."""
    return character_at(bytes([byte]))[0]


def byte_names(found: Sequence[Character]) -> list[str]:
    """Each byte in a sentence: “a”, or (2 of 3 of “猫”) of a character of several bytes."""
    return [
        f"“{one.text}”" if one.bytes == 1 else f"({n + 1} of {one.bytes} of “{one.text}”)"
        for one in found
        for n in range(one.bytes)
    ]


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


def mark_groups(layout: Spec, sorted_N: Array, label: Callable[[int, float], str], colour: str) -> None:
    """Under the axis, the name of each group of equal values at its middle, where there is room; a rule between two.

    sorted_N (N,), N > 0: the value of each column. label(start, room): the name of the group that starts there, in
    so many px; empty if it finds no room.
    """
    starts = np.flatnonzero(np.diff(sorted_N.astype(np.int64), prepend=int(sorted_N[0]) - 1)).tolist()
    px = inner(layout)[0] / len(sorted_N)
    middles, names = [], []
    for start, end in zip(starts, [*starts[1:], len(sorted_N)], strict=True):
        if name := label(start, (end - start) * px):
            middles.append((start + end) / 2)
            names.append(name)
    layout["xaxis"] |= {"tickvals": middles, "ticktext": names}
    layout["shapes"] += [upright(start, color=colour, width=1) for start in starts[1:]]


def class_name(labels_N: Array, n: int, names: Sequence[str]) -> str:
    """A probe token's class by its name, or where a run has none by its number."""
    c = int(labels_N[n])
    return names[c] if c < len(names) else str(c)


def class_word(labels_N: Array, n: int, names: Sequence[str]) -> str:
    """The same as a label or a hover takes it."""
    return escape(class_name(labels_N, n, names))


def token_name(word: str, n: int, labels_N: Array | None, names: Sequence[str] = ()) -> str:
    """What a hover calls a token of the probe: "Image 3, of class 7,". word: what it is, an Image or a Row."""
    return f"{word} {n}" if labels_N is None else f"{word} {n}, of class {class_word(labels_N, n, names)},"


def as_images(images: Array, px: float) -> Array:
    """(N, H, W) of images (N, H, W) or, as records of earlier versions have them, of square ones (N, P).

    px: of the screen along the longer side. Pixels that would be smaller than the screen's are drawn together.
    """
    images = np.asarray(images)
    if images.ndim == 2:
        side = math.isqrt(images.shape[1])
        images = images[:, : side * side].reshape(len(images), side, side)
    N, H, W = images.shape
    by = max(1, math.ceil(max(H, W) / max(8.0, px)))
    down, across = min(by, H), min(by, W)
    h, w = H // down, W // across
    if by == 1 or not N:
        return images
    return np.asarray(images[:, : h * down, : w * across].reshape(N, h, down, w, across).mean(axis=(2, 4)))


def mosaic(images_NHW: Array, cells: Sequence[tuple[int, int, int]], grid: tuple[int, int], theme: Theme) -> Spec:
    """Images on a grid of (rows, columns), one pixel apart. cells: (image, row, column)."""
    _, H, W = images_NHW.shape
    grey = np.zeros((grid[0] * (H + 1), grid[1] * (W + 1)), np.uint8)
    for n, row, column in cells:
        top, left = row * (H + 1), column * (W + 1)
        grey[top : top + H, left : left + W] = images_NHW[n]
    return {
        "type": "heatmap", "name": "images", "z": grey, "x0": 0.5, "y0": 0.5, "dx": 1, "dy": 1,
        "zmin": 0, "zmax": max(16, int(grey.max(initial=0))), "hoverinfo": "skip", "showscale": False,
        "colorscale": [[0, theme.ground], [1, theme.ink]],
    }  # fmt: skip


def hovers(images_NHW: Array, cells: Sequence[tuple[int, int, int]], words: Sequence[str], px: int) -> Spec:
    """Markers that cannot be seen, `px` wide, on the images of a mosaic: what hovering each of them says."""
    _, H, W = images_NHW.shape
    return {
        "type": "scatter", "mode": "markers", "name": "image",
        "x": np.array([column * (W + 1) + W / 2 for _, _, column in cells], np.float32),
        "y": np.array([row * (H + 1) + H / 2 for _, row, _ in cells], np.float32),
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
