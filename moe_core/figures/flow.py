"""How the probe's tokens travel: from the first expert of each MoE layer to that of the next, as a Sankey diagram.

Drawn from filled curves, not plotly's own Sankey, so that an image of it needs no browser. Shapes: L layers, N tokens.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from moe_core.figures.paper import Array, Size, Spec, base, figure, inner, label_font, note
from moe_core.figures.probe import first_experts
from moe_core.figures.theme import LIGHT, LINES, Theme, expert_colour, faded
from moe_core.figures.timeline import square

NODE = 0.03  # width of a node, in layers
NAME = 36  # px for the name of an expert
GAP = 2.0  # px between two nodes, where they are few
CURVE = 16  # points along a side of a band


def fits(experts_L: Sequence[int]) -> bool:
    """Whether the counts between layers fit in the memory of a page: up to 134 MB, as of 15 layers of 1,024 experts."""
    return bool(len(experts_L) * (max(experts_L) + 1) ** 2 <= 1 << 24)


def flows(experts_LNK: Array, E: int) -> Array:
    """Tokens that go from first expert i in one layer to j in the next (L - 1, E + 1, E + 1); E stands for no expert."""
    first_LN = [first_experts(layer_NK, E) for layer_NK in np.asarray(experts_LNK)]
    counts = [np.bincount(a * (E + 1) + b, minlength=(E + 1) ** 2).reshape(E + 1, E + 1) for a, b in pairwise(first_LN)]
    return np.array(counts, np.int64).reshape(-1, E + 1, E + 1)


@figure
def expert_flow(
    experts_LNK: Array,
    num_experts: int,
    *,
    layer: int = 0,
    chosen: int | None = None,
    step: int | None = None,
    theme: Theme = LIGHT,
    size: Size = (940, 300),
) -> Spec:
    """Bands as thick as the probe tokens that they carry; those of the chosen expert of `layer` stand out.

    experts_LNK (L, N, K): the experts of each layer and token, first choice first. An expert of one layer and its
    namesake in the next are two experts.
    """
    E, L, N = num_experts, len(experts_LNK), experts_LNK.shape[1]
    layout = flow_layout(L, N, layer, chosen, step, theme, size)
    if not N or L < 2:
        return {"data": [], "layout": layout}
    counts = flows(experts_LNK, E)
    totals = [counts[0].sum(1), *counts.sum(1)]
    _, height = inner(layout)
    used = max(int((np.array(totals) > 0).sum(1).max()), 1)
    gap = min(GAP, 0.25 * height / used) * N / height  # in tokens
    layout["yaxis"]["range"] = [N + gap * (used - 1), 0]
    starts = [node_starts(total, gap) for total in totals]
    links = placed(counts, starts)
    data = [*flow_bands(links, layer, chosen, E, theme), nodes(totals, starts, E, theme), flow_hovers(links, N, E)]
    layout["annotations"] += end_names(totals, starts, height / N, layout, theme)
    return {"data": data, "layout": layout}


def flow_layout(L: int, N: int, layer: int, chosen: int | None, step: int | None, theme: Theme, size: Size) -> Spec:
    layout = base(
        "expert_flow",
        "From layer to layer",
        f"{N} probe tokens by first expert; full: those of expert {chosen + 1} in layer {layer + 1}"
        if chosen is not None
        else f"{N} probe tokens, from first expert to first expert",
        step=step,
        theme=theme,
        size=size,
        x={
            "title": "MoE layer",
            "range": [0, max(L - 1, 1)],
            "tickvals": list(range(L)),
            "fixedrange": True,
        },
        y={"title": "tokens", "range": [max(N, 1), 0], "showgrid": False, "fixedrange": True, "nticks": 5},
    )
    layout["xaxis"]["ticktext"] = [f"layer {i + 1}" for i in range(L)]
    # At both ends room for the experts' names.
    beside = max(0.12, NAME * max(L - 1, 1) / max(1, inner(layout)[0] - 2 * NAME))
    layout["xaxis"]["range"] = [-beside, max(L - 1, 1) + beside]
    return layout


class Link(NamedTuple):
    """The tokens that go from expert i of a layer to expert j of the next, and where their band begins and ends, in tokens."""

    layer: int
    i: int
    j: int
    tokens: int
    leave: float
    enter: float


def placed(counts: Array, starts: list[Array]) -> list[Link]:
    """All links, layer by layer, those of a node one below the other."""
    links = []
    for at, pairs_EE in enumerate(counts):
        leave, enter = starts[at].copy(), starts[at + 1].copy()
        for i, j in np.argwhere(pairs_EE > 0).tolist():
            tokens = int(pairs_EE[i, j])
            links.append(Link(at, i, j, tokens, leave[i], enter[j]))
            leave[i] += tokens
            enter[j] += tokens
    return links


def flow_bands(links: list[Link], layer: int, chosen: int | None, E: int, theme: Theme) -> list[Spec]:
    """A trace for each expert that bands leave; those of the chosen expert of `layer` apart and last, over the others."""
    bands: dict[tuple[bool, int], list[Any]] = {}
    for link in links:
        ends = (link.layer, link.i), (link.layer + 1, link.j)
        full = chosen is not None and (layer, chosen) in ends
        bands.setdefault((full, link.i), []).append(band(link.layer, link.leave, link.enter, link.tokens))
    return [filled(parts, i, full, chosen is None, E, theme) for (full, i), parts in sorted(bands.items())]


def flow_hovers(links: list[Link], N: int, E: int) -> Spec:
    """The hover in the middle of each band."""
    x = np.array([link.layer + 0.5 for link in links], np.float32)
    y = np.array([(link.leave + link.enter + link.tokens) / 2 for link in links], np.float32)
    words = [
        f"{link.tokens} of {N} tokens go from {who(link.i, E)} of layer {link.layer + 1} to {who(link.j, E)} of layer {link.layer + 2}"
        for link in links
    ]
    return {
        "type": "scatter", "mode": "markers", "name": "tokens", "x": x, "y": y,
        "marker": {"size": 12, "opacity": 0}, "hovertext": words, "hoverinfo": "text",
    }  # fmt: skip


def end_names(totals: list[Array], starts: list[Array], px: float, layout: Spec, theme: Theme) -> list[Spec]:
    """The experts of the first layer and of the last beside their nodes, where these are high enough. px: of one token."""
    E = len(totals[0]) - 1
    font = label_font(layout, theme.ink)
    names = []
    for at in (0, len(totals) - 1):
        for e in np.flatnonzero(totals[at] * px >= font["size"]).tolist():
            mark = square(e, theme) + " " if e < E <= LINES else ""
            y = float(starts[at][e] + totals[at][e] / 2)
            side = {"xanchor": "right", "xshift": -4} if at == 0 else {"xanchor": "left", "xshift": 4}
            x = at - NODE / 2 if at == 0 else at + NODE / 2
            text = f"{mark}{e + 1}" if e < E else "none"
            names.append(note(text, x, y, xref="x", yref="y", yanchor="middle", font=font) | side)
    return names


def who(expert: int, E: int) -> str:
    return f"expert {expert + 1}" if expert < E else "no expert"


def node_starts(total_E: Array, gap: float) -> Array:
    """Where each node begins, in tokens from the top: those that are used, one below the other, `gap` apart."""
    step = np.where(total_E > 0, total_E + gap, 0.0)
    return np.asarray(np.cumsum(step) - step, np.float64)


def band(at: int, top0: float, top1: float, many: int) -> tuple[Array, Array]:
    """The outline of a band of `many` tokens from one layer to the next, and NaN after it."""
    t = np.linspace(0, 1, CURVE)
    ease = t * t * (3 - 2 * t)
    x = at + NODE / 2 + t * (1 - NODE)
    top = top0 + (top1 - top0) * ease
    return np.r_[x, x[::-1], x[0], np.nan], np.r_[top, top[::-1] + many, top[0], np.nan]


def filled(parts: list[Any], expert: int, full: bool, all_alike: bool, E: int, theme: Theme) -> Spec:
    """The bands that leave one expert as one filled trace."""
    colour = expert_colour(expert, theme) if expert < E <= LINES else theme.ink2
    fill = faded(colour, 0.75 if full else 0.45 if all_alike else 0.13)
    return {
        "type": "scatter", "mode": "lines", "name": f"from {who(expert, E)}", "fill": "toself", "fillcolor": fill,
        "line": {"width": 0.5, "color": fill}, "hoverinfo": "skip",
        "x": np.concatenate([x for x, _ in parts]).astype(np.float32),
        "y": np.concatenate([y for _, y in parts]).astype(np.float32),
    }  # fmt: skip


def nodes(totals: list[Array], starts: list[Array], E: int, theme: Theme) -> Spec:
    """A bar of its tokens for each expert that has any, in every layer."""
    places = [(at, e) for at, total in enumerate(totals) for e in np.flatnonzero(total).tolist()]
    return {
        "type": "bar", "name": "experts", "x": np.array([at for at, _ in places], np.float32),
        "y": np.array([totals[at][e] for at, e in places], np.float32),
        "base": np.array([starts[at][e] for at, e in places], np.float32), "width": NODE,
        "marker": {
            "color": [expert_colour(e, theme) if e < E <= LINES else theme.ground if e == E else theme.ink2 for _, e in places],
            "line": {"width": [1 if e == E else 0 for _, e in places], "color": theme.edge},
        },
        "hovertext": [f"{who(e, E).capitalize()} is first for {totals[at][e]} tokens in layer {at + 1}" for at, e in places],
        "hoverinfo": "text",
    }  # fmt: skip
