"""The probe's text as a score: each byte with its first expert, and below it all its gates.

Shapes: N bytes, K experts per byte, E experts, as in probe.py.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from moe_core.figures.palette import Palette, palette_of, picks
from moe_core.figures.paper import Array, Size, Spec, axis_title, base, escape, figure, inner
from moe_core.figures.probe import (
    Character,
    by_gate,
    byte_names,
    characters,
    dense,
    first_experts,
    moved_tokens,
    nobodys,
    sentence,
    without_expert,
)
from moe_core.figures.theme import LIGHT, MONO, Theme
from moe_core.figures.words import COLUMN

ROW = 64  # bytes in a line of the probe's text
SMALLEST = 8  # px of a letter's type


@figure
def probe_text(
    tokens_N: Array,
    experts_NK: Array,
    gates_NK: Array,
    num_experts: int,
    *,
    sequence_N: Array | None = None,
    before_NK: Array | None = None,
    before: int | None = None,
    pinned: Sequence[int] = (),
    step: int | None = None,
    theme: Theme = LIGHT,
    size: Size = (940, 387),
) -> Spec:
    """The probe's text as a score: 64 bytes a line, each cell its first expert, all gates in the rows below it.

    tokens_N (N,) bytes; sequence_N (N,) the text that each is of; experts_NK, gates_NK (N, K); before_NK (N, K) the experts at the
    snapshot before, of step `before`, for the marks over the bytes that changed. A character of several bytes stands in the middle
    one's cell, with a line below all of its cells.
    """
    E, N = num_experts, min(len(tokens_N), len(experts_NK))
    experts_NK, gates_NK = np.asarray(experts_NK), np.asarray(gates_NK, np.float32)
    colours = palette_of(first_experts(experts_NK, E), E, theme, pinned)
    layout, lines = score_layout(experts_NK, E, N, before, colours, step, theme, size)
    picks(layout, E)
    if not N:
        return {"data": [], "layout": layout}
    tokens_N, experts_NK, gates_NK = np.asarray(tokens_N)[:N], experts_NK[:N], gates_NK[:N]
    first = first_experts(experts_NK, E)
    text = characters(tokens_N, None if sequence_N is None else np.asarray(sequence_N)[:N])
    hover = [
        f"Byte {n} {escape(name)} {sentence(e, g, E)}"
        for n, (name, e, g) in enumerate(zip(byte_names(text), experts_NK.tolist(), gates_NK.tolist(), strict=True))
    ]
    data = gate_rows(first, dense(experts_NK, gates_NK, E), hover, lines, colours, theme)
    x, y = lines.middles(N)
    if (none := np.flatnonzero(first >= E)).size:
        words = [hover[n] for n in none.tolist()]
        data.append(nobodys(x[none], y[none], min(lines.cell, lines.width / lines.row) - 2, theme, hovertext=words))
    if lines.width / lines.row >= COLUMN * SMALLEST:  # narrower cells have their colours only
        data.append(letters(text, first, x, y, lines, colours, theme))
    data += joins(text, lines, theme)
    moved = moved_tokens(experts_NK, None if before_NK is None else before_NK[:N], E)
    above = y[moved] - np.float32(lines.cell / 2 + lines.mark / 2)
    data.append(change_marks(moved, x[moved], above, min(9.0, 2 * lines.width / lines.row), theme))
    return {"data": data, "layout": layout}


class Lines(NamedTuple):
    """Where the score's lines stand, in px from the top of the plot."""

    row: int  # bytes in a line
    width: int
    tops: list[float]  # of each line's cells
    cell: float  # height of a cell
    mark: float  # room above the cells for the marks of change
    gates: float  # height of the gates below the cells

    def middles(self, N: int) -> tuple[Array, Array]:
        """The middle of each byte's cell: x (N,) in bytes, y (N,) in px."""
        tops = np.array([self.tops[n // self.row] for n in range(N)], np.float32)
        return (np.arange(N) % self.row + 0.5).astype(np.float32), tops + np.float32(self.cell / 2)


def score_layout(
    experts_NK: Array, E: int, N: int, before: int | None, colours: Palette, step: int | None, theme: Theme, size: Size
) -> tuple[Spec, Lines]:
    layout = base(
        "probe_text",
        "Who reads which byte",
        f"cell: first expert of the byte{without_expert(first_experts(experts_NK, E), E)}{colours.words}; "
        f"▾ changed since {'the last snapshot' if before is None else f'step {before:,}'}; below: gate weight of each expert, {theme.depth}",
        step=step,
        theme=theme,
        size=size,
        x={"showticklabels": False, "fixedrange": True},
    )
    width, height = inner(layout)
    row = ROW if width >= ROW * COLUMN * SMALLEST else ROW // 2  # on a phone, so that letters find room
    layout["xaxis"] |= {"range": [0, row], "title": axis_title(f"probe byte, {row} a line", layout)}
    count = max(1, math.ceil(N / row))
    block = height / count
    cell = min(block * 0.35, width / row * 0.85)
    mark = min(12.0, block * 0.15)
    lines = Lines(row, width, [line * block + mark for line in range(count)], cell, mark, block - mark - cell - 4)
    layout["yaxis"] |= score_axis(lines, E, layout)
    return layout, lines


def gate_rows(
    first: Array, gates_NE: Array, hover: list[str], lines: Lines, colours: Palette, theme: Theme
) -> list[Spec]:
    """Each line's cells in the colours of their first experts, and below them a row of gates for each expert."""
    N, E = gates_NE.shape
    places = len(lines.tops) * lines.row
    grid = np.full(places, np.nan, np.float32)
    grid[:N] = np.where(first < E, first, np.nan)
    gates = np.zeros((places, E), np.float32)
    gates[:N] = gates_NE
    hover = hover + [""] * (places - N)
    x = np.arange(lines.row + 1, dtype=np.int32)
    row = lines.gates / E
    data: list[Spec] = []
    for line, top in enumerate(lines.tops):
        here = slice(line * lines.row, (line + 1) * lines.row)
        data.append(
            {
                "type": "heatmap", "name": f"first expert, from byte {line * lines.row}", "x": x,
                "y": np.array([top, top + lines.cell], np.float32), "z": grid[None, here], "text": [hover[here]],
                "xgap": 1, "hoverinfo": "text", "customdata": grid[None, here] + 1, **colours.scale,
            }
        )  # fmt: skip
        data.append(
            {
                "type": "heatmap", "name": f"gates, from byte {line * lines.row}", "x": x,
                "y": (top + lines.cell + 2 + row * np.arange(E + 1)).astype(np.float32),
                "z": np.ascontiguousarray(gates[here].T),
                "hovertemplate": "A gate of %{z:.2f}<extra></extra>", **by_gate(theme),
            }
        )  # fmt: skip
    return data


def letters(
    text: Sequence[Character], first: Array, x: Array, y: Array, lines: Lines, palette: Palette, theme: Theme
) -> Spec:
    """The characters, each in the middle one of its cells and in a colour that reads there."""
    # A character that a line's end splits is drawn where it begins.
    at = [min(one.first + (one.bytes - 1) // 2, one.first // lines.row * lines.row + lines.row - 1) for one in text]
    size = max(SMALLEST, min(17, round(lines.cell * 0.95)))
    room = lines.width / lines.row / COLUMN  # the size in which one letter fills a cell
    trace = {
        "type": "scatter",
        "mode": "text",
        "name": "bytes",
        "x": x[at],
        "y": y[at],
        "text": [escape(one.text) for one in text],
        "textfont": {
            "family": MONO,
            # The number of a byte has four digits.
            "size": [size if len(one.text) == 1 else max(5, min(size, round(room / len(one.text)))) for one in text],
        },
        "hoverinfo": "skip",
    }
    return palette.inked(trace, first[at].tolist(), theme)


def joins(text: Sequence[Character], lines: Lines, theme: Theme) -> list[Spec]:
    """A line below the cells of each character of several bytes; none in plain ASCII."""
    parts = [
        (start, min(one.first + one.bytes, (start // lines.row + 1) * lines.row))
        for one in text
        if one.bytes > 1
        for start in {one.first, max(one.first, (one.first + one.bytes - 1) // lines.row * lines.row)}
    ]
    if not parts:
        return []
    x = [
        place for start, end in sorted(parts) for place in (start % lines.row + 0.1, (end - 1) % lines.row + 0.9, None)
    ]
    y = [
        place for start, _ in sorted(parts) for place in (*[lines.tops[start // lines.row] + lines.cell - 1] * 2, None)
    ]
    return [
        {
            "type": "scatter", "mode": "lines", "name": "characters", "x": np.array(x, np.float32), "y": np.array(y, np.float32),
            "line": {"color": theme.ink, "width": 1.5}, "hoverinfo": "skip",
        }
    ]  # fmt: skip


def change_marks(bytes_n: Array, x: Array, y: Array, px: float, theme: Theme) -> Spec:
    """A triangle over each byte whose first expert changed."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "changed",
        "x": x,
        "y": y,
        "marker": {"symbol": "triangle-down", "size": px, "color": theme.ink},
        "hovertext": [f"Byte {n} went to another first expert" for n in bytes_n.tolist()],
        "hoverinfo": "text",
        "cliponaxis": False,
    }


def score_axis(lines: Lines, E: int, layout: Spec) -> Spec:
    """The y axis of the score, in px from the top: a line's first byte beside its cells, experts beside its gates."""
    ticks: list[float] = []
    words: list[str] = []
    marks = [e for e in (1, E // 2, E) if 1 <= e <= E]
    # Numbers closer than a line of type would cover each other.
    gates, high = lines.gates, layout["font"]["size"]
    marks = sorted(set(marks) - {1}) if gates > 40 and E > 1 else [E] if gates > 1.5 * high else []
    for line, top in enumerate(lines.tops):
        ticks.append(top + lines.cell / 2)
        words.append(f"<b>{line * lines.row}</b>")
        for e in marks:
            ticks.append(top + lines.cell + 2 + gates * (e - 0.5) / E)
            words.append(str(e))
    return {
        "title": axis_title("expert", layout), "range": [inner(layout)[1], 0], "tickvals": ticks, "ticktext": words,
        "showgrid": False, "fixedrange": True,
    }  # fmt: skip
