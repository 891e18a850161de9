"""How the probe's tokens travel: from the first expert of each MoE layer to that of the next, as a Sankey diagram.

Drawn from filled curves, not plotly's own Sankey, so that an image of it needs no browser. Shapes: L layers, N tokens.
"""

from itertools import pairwise
from typing import Any

import numpy as np

from moe_core.figures.paper import Array, Size, Spec, base, figure, inner, label_font, note
from moe_core.figures.probe import first_experts
from moe_core.figures.theme import LIGHT, LINES, Theme, expert_colour, faded
from moe_core.figures.timeline import square

NODE = 0.03  # width of a node, in layers
GAP = 2.0  # px between two nodes, where they are few
CURVE = 16  # points along a side of a band


def fits(layers: int, num_experts: int) -> bool:
    """Whether the counts between layers fit in the memory of a page: up to 134 MB, as of 15 layers of 1,024 experts."""
    return layers * (num_experts + 1) ** 2 <= 1 << 24


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
    names = [f"layer {i + 1}" for i in range(L)]
    layout = base(
        "expert_flow",
        "From layer to layer",
        f"{N} probe tokens by first expert; full: those of expert {0 if chosen is None else chosen + 1} in layer {layer + 1}"
        if chosen is not None
        else f"{N} probe tokens, from first expert to first expert",
        step=step,
        theme=theme,
        size=size,
        x={
            "title": "MoE layer",
            "range": [-0.12, max(L - 1, 1) + 0.12],
            "tickvals": list(range(L)),
            "fixedrange": True,
        },
        y={"title": "tokens", "range": [max(N, 1), 0], "showgrid": False, "fixedrange": True, "nticks": 5},
    )
    layout["xaxis"]["ticktext"] = names
    if not N or L < 2:
        return {"data": [], "layout": layout}
    counts = flows(experts_LNK, E)
    _, height = inner(layout)
    used = max(int((np.r_[counts[0].sum(1)[None], counts.sum(1)] > 0).sum(1).max()), 1)
    gap = min(GAP, 0.25 * height / used) * N / height  # in tokens
    layout["yaxis"]["range"] = [N + gap * (used - 1), 0]
    starts = [node_starts(total, gap) for total in [counts[0].sum(1), *counts.sum(1)]]
    bands: dict[tuple[int, bool], list[Any]] = {}
    middles, words = [], []
    for at, pairs_EE in enumerate(counts):
        leave, enter = starts[at].copy(), starts[at + 1].copy()
        for i, j in np.argwhere(pairs_EE > 0).tolist():
            many = int(pairs_EE[i, j])
            full = chosen is not None and ((at == layer and i == chosen) or (at + 1 == layer and j == chosen))
            bands.setdefault((i, full), []).append(band(at, leave[i], enter[j], many))
            middles.append((at + 0.5, (leave[i] + enter[j] + many) / 2))
            words.append(f"{many} of {N} tokens go from {who(i, E)} of layer {at + 1} to {who(j, E)} of layer {at + 2}")
            leave[i] += many
            enter[j] += many
    data = [*(filled(parts, i, full, chosen is None, E, theme) for (i, full), parts in sorted(bands.items(), key=lambda b: b[0][::-1]))]  # fmt: skip
    totals = [counts[0].sum(1), *counts.sum(1)]
    data.append(nodes(totals, starts, E, theme))
    x, y = np.array(middles, np.float32).T
    data.append(
        {
            "type": "scatter", "mode": "markers", "name": "tokens", "x": np.ascontiguousarray(x), "y": np.ascontiguousarray(y),
            "marker": {"size": 12, "opacity": 0}, "hovertext": words, "hoverinfo": "text",
        }
    )  # fmt: skip
    font = label_font(layout, theme.ink)
    for at, total in ((0, totals[0]), (L - 1, totals[-1])):
        for e in np.flatnonzero(total * height / N >= font["size"]).tolist():
            mark = square(e, theme) + " " if e < E <= LINES else ""
            y_at = float(starts[at][e] + total[e] / 2)
            side = {"xanchor": "right", "xshift": -4} if at == 0 else {"xanchor": "left", "xshift": 4}
            where = at - NODE / 2 if at == 0 else at + NODE / 2
            text = f"{mark}{e + 1}" if e < E else "none"
            layout["annotations"].append(
                note(text, where, y_at, xref="x", yref="y", yanchor="middle", font=font) | side
            )
    return {"data": data, "layout": layout}


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
