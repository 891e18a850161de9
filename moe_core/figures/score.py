"""The probe's text as a score: each byte with its first expert, and below it all its gates.

Shapes: N bytes, K experts per byte, E experts, as in probe.py.
"""

import math

import numpy as np

from moe_core.figures.paper import Array, Size, Spec, axis_title, base, figure, inner
from moe_core.figures.probe import (
    by_expert,
    by_gate,
    dense,
    first_experts,
    letter,
    moved_tokens,
    nobodys,
    sentence,
    without_expert,
)
from moe_core.figures.theme import LIGHT, LINES, MONO, Theme, expert_colour, letter_colour

ROW = 64  # bytes in a line of the probe's text


@figure
def probe_text(
    tokens_N: Array,
    experts_NK: Array,
    gates_NK: Array,
    num_experts: int,
    *,
    before_NK: Array | None = None,
    before: int | None = None,
    step: int | None = None,
    theme: Theme = LIGHT,
    size: Size = (940, 387),
) -> Spec:
    """The probe's text as a score: 64 bytes a line, each cell its first expert, all gates in the rows below it.

    tokens_N (N,) bytes; experts_NK, gates_NK (N, K); before_NK (N, K) the experts at the snapshot before, of step
    `before`, for the marks over the bytes that changed.
    """
    E, N = num_experts, min(len(tokens_N), len(experts_NK))
    layout = base(
        "probe_text",
        "Who reads which byte",
        f"cell: first expert of the byte{without_expert(first_experts(experts_NK, E), E)}; "
        f"▾ changed since {'the last snapshot' if before is None else f'step {before:,}'}; below: gate weight of each expert, {theme.depth}",
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
        "title": axis_title("expert", layout), "range": [inner(layout)[1], 0], "tickvals": ticks, "ticktext": words,
        "showgrid": False, "fixedrange": True,
    }  # fmt: skip
