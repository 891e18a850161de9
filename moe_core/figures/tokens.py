"""The probe's text in the tokens of any tokenizer: which expert reads each, and which tokens an expert gets most of.

Shapes: N tokens, K experts per token, E experts, as in probe.py. `strings_N` is the text of each token.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from moe_core.figures.flow import who
from moe_core.figures.palette import Palette, palette_of, picks
from moe_core.figures.paper import Array, Size, Spec, axis_title, base, figure, inner, nice_above, said_too
from moe_core.figures.probe import first_experts, moved_tokens, sentence, without_expert
from moe_core.figures.theme import LIGHT, MONO, NAMED, Theme, expert_colour
from moe_core.figures.words import COLUMN, Word, broken, word_of

SIZES = (22, 20, 18, 16, 14, 13, 12, 11, 10, 9)  # px of the font; the largest in which the text fits is taken,
LARGE = 14  # and above this only one that breaks no line more
GAP = 0.4  # between two lines, in the size of the type: the marks of change stand there
BEFORE = 0.4  # share of the room beside a favourite's bar that the text before the favourite takes


class Set(NamedTuple):
    """Where the text is set, in px from the top left of the plot: left edge and width of each token's cell, and the top of its line.
    Only of the tokens that found room."""

    size: int  # of the type
    cell: float  # height of a cell
    left: Array
    width: Array
    top: Array


@figure
def probe_tokens(
    strings_N: Sequence[str],
    experts_NK: Array,
    gates_NK: Array,
    num_experts: int,
    *,
    row_N: Array | None = None,
    pinned: Sequence[int] = (),
    before_NK: Array | None = None,
    before: int | None = None,
    step: int | None = None,
    theme: Theme = LIGHT,
    size: Size = (940, 387),
) -> Spec:
    """The probe as running text, each token in the colour of its first expert.

    strings_N (N,); experts_NK, gates_NK (N, K); row_N (N,) the text that each token is of; before_NK (N, K) the experts at the
    snapshot before, of step `before`, for the marks over tokens that changed. Above 16 experts not
    all have a colour: each token has its expert's number below it.
    """
    E, N = num_experts, min(len(strings_N), len(experts_NK))
    experts_NK, gates_NK = np.asarray(experts_NK)[:N], np.asarray(gates_NK, np.float32)[:N]
    words = [word_of(string) for string in strings_N[:N]]
    rows = [0] * N if row_N is None else np.asarray(row_N)[:N].tolist()
    layout = tokens_layout(step, theme, size)
    text = set_text(words, rows, len(str(E)) if E > NAMED else 0, inner(layout))
    shown = len(text.left)
    first = first_experts(experts_NK, E)
    colours = palette_of(first, E, theme, pinned)
    below = "" if E <= NAMED else ", by number"
    some = f"the first {shown:,} of {N:,} tokens; " if shown < N else ""
    since = "the last snapshot" if before is None else f"step {before:,}"
    subtitle = f"{some}cell: first expert of the token{below}{without_expert(first, E)}{colours.words}; ▾ changed since {since}"
    layout["title"]["text"] = said_too(layout["title"]["text"], subtitle)
    picks(layout, E)
    if not shown:
        return {"data": [], "layout": layout}
    words, rows, experts_NK, gates_NK = words[:shown], rows[:shown], experts_NK[:shown], gates_NK[:shown]
    first = first[:shown]
    layout["yaxis"] |= row_ticks(rows, text, layout)
    before_NK = None if before_NK is None else np.asarray(before_NK)[:shown]
    moved = moved_tokens(experts_NK, before_NK, E)
    hover = hovers(words, rows, experts_NK, gates_NK, E)
    for n, e in zip(
        moved.tolist(), [] if before_NK is None else first_experts(before_NK[moved], E).tolist(), strict=True
    ):
        hover[n] += f"; {'before' if before is None else f'at step {before:,}'} to {who(e, E)}"
    data = [
        cells(first, hover, text, colours, theme),
        *letters(words, first, text, colours, theme),
        changed(moved, text, theme),
    ]
    return {"data": data, "layout": layout}


def tokens_layout(step: int | None, theme: Theme, size: Size) -> Spec:
    layout = base(
        "probe_tokens",
        "Who reads which token",
        "",
        step=step,
        theme=theme,
        size=size,
        x={"title": "tokens of the probe, a text after the other", "showticklabels": False, "fixedrange": True},
        y={"title": "text", "showgrid": False, "fixedrange": True},
    )
    width, height = inner(layout)
    layout["xaxis"]["range"], layout["yaxis"]["range"] = [0, width], [height, 0]
    layout["yaxis"] |= {"tickvals": [], "ticktext": []}
    return layout


def set_text(words: list[Word], rows: list[int], digits: int, room: tuple[int, int]) -> Set:
    """The words in the largest type in which all find room in (width, height) px, or else as many as do in the smallest.

    digits: of the largest number that stands below a word, 0 without numbers.
    """
    width, height = room
    if not words:
        return Set(SIZES[0], 0.0, *[np.zeros(0, np.float32)] * 3)
    for size in SIZES:
        px = COLUMN * size
        least = 0 if not digits else -(-digits * 9 // 10)  # columns that a number takes in its smaller type
        columns = [max(word.columns, least) for word in words]
        line, start = broken(columns, rows, max(1, int(width / px)))
        cell = size * (2.1 if digits else 1.3)
        pitch = cell + GAP * size
        if size > LARGE and line[-1] + 1 > len(set(rows)):
            continue
        if (line[-1] + 1) * pitch <= height:
            break
    some = line < max(1, int(height / pitch))
    top = (line[some] * pitch + GAP * size).astype(np.float32)
    left, wide = start[some] * px, np.array(columns)[some] * px
    return Set(size, cell, left.astype(np.float32), wide.astype(np.float32), top)


def hovers(words: list[Word], rows: list[int], experts_NK: Array, gates_NK: Array, E: int) -> list[str]:
    """The hover text of each token."""
    went = zip(words, rows, experts_NK.tolist(), gates_NK.tolist(), strict=True)
    return [
        f"Token {n} {word.quoted} of text {row + 1} {sentence(e, g, E)}" for n, (word, row, e, g) in enumerate(went)
    ]


def cells(first: Array, hover: list[str], text: Set, palette: Palette, theme: Theme) -> Spec:
    """A bar behind each word in the colour of its first expert, a pixel apart; hollow where no expert took it."""
    E = len(palette.cells)
    return {
        "type": "bar", "orientation": "h", "name": "first expert", "base": text.left, "x": text.width - np.float32(1),
        "y": text.top + np.float32(text.cell / 2), "width": text.cell,
        "marker": {
            "color": [[*palette.cells, theme.ground][e] for e in first.tolist()],
            "line": {"width": [0 if e < E else 1 for e in first.tolist()], "color": theme.edge},
        },
        "hovertext": hover, "hoverinfo": "text", "customdata": np.where(first < E, first + 1, 0),
    }  # fmt: skip


def letters(words: list[Word], first: Array, text: Set, palette: Palette, theme: Theme) -> list[Spec]:
    """The words, each in a colour that reads on its cell, and with many experts the number of each below it.

    Each word is a label of its own, so that one that is written from right to left, or in letters of another width, moves no other.
    """
    E = len(palette.cells)
    some = [n for n, word in enumerate(words) if word.text]
    blank = np.array([words[n].blank for n in some], np.float32)
    long = np.array([words[n].columns - words[n].blank for n in some], np.float32)
    px = np.float32(COLUMN * text.size)
    high = np.float32(text.size * 0.65)  # the middle of a word
    middle = text.left[some] + (blank + long / 2) * px
    labels = label_of("tokens", middle, text.top[some] + high, [words[n].label for n in some], text.size, theme.ink)
    data = [palette.inked(labels, first[some].tolist(), theme)]
    if E > NAMED:
        middle, low = text.left + text.width / 2, text.top + np.float32(text.size * 1.6)
        numbers = [str(e + 1) if e < E else "–" for e in first.tolist()]
        data.append(label_of("experts", middle, low, numbers, max(8, round(0.75 * text.size)), theme.ink2))
    return data


def label_of(name: str, x: Array, y: Array, words: list[str], size: int, colour: str | list[str]) -> Spec:
    return {
        "type": "scatter", "mode": "text", "name": name, "x": x, "y": y, "text": words, "hoverinfo": "skip",
        "textfont": {"family": MONO, "size": size, "color": colour},
    }  # fmt: skip


def changed(moved: Array, text: Set, theme: Theme) -> Spec:
    """A triangle over each token whose first expert changed. The token's own hover names the expert before."""
    return {
        "type": "scatter", "mode": "markers", "name": "changed", "cliponaxis": False,
        "x": text.left[moved] + text.width[moved] / 2, "y": text.top[moved] - np.float32(0.5 * GAP * text.size),
        "marker": {"symbol": "triangle-down", "size": max(4, round(GAP * text.size)), "color": theme.ink},
        "hoverinfo": "skip",
    }  # fmt: skip


def row_ticks(rows: list[int], text: Set, layout: Spec) -> Spec:
    """The number of each text beside its first line, where there is room for it."""
    ticks: list[float] = []
    names: list[str] = []
    starts = [n for n in range(len(rows)) if not n or rows[n] != rows[n - 1]]
    for n in starts:
        y = float(text.top[n]) + 0.65 * text.size
        if not ticks or y - ticks[-1] >= layout["font"]["size"] + 2:
            ticks.append(y)
            names.append(f"<b>{rows[n] + 1}</b>")
    return {"tickvals": ticks, "ticktext": names, "title": axis_title("text", layout)}


@figure
def favourite_tokens(
    strings_N: Sequence[str],
    gate_N: Array,
    chosen: int,
    *,
    row_N: Array | None = None,
    step: int | None = None,
    theme: Theme = LIGHT,
    size: Size = (460, 300),
) -> Spec:
    """The tokens that give an expert most weight, all places of the same string together, each in bold where it gives most.

    strings_N, gate_N (N,); row_N (N,) the text that each token is of.
    """
    N = min(len(strings_N), len(gate_N))
    gate_N = np.asarray(gate_N, np.float64)[:N]
    layout = base(
        "favourite_tokens",
        f"Favourite tokens of expert {chosen + 1}",
        f"gate weight of all its places in the probe; {int((gate_N > 0).sum())} of {N} tokens go to it",
        step=step,
        theme=theme,
        size=size,
        x={"title": "gate weight, all places together", "fixedrange": True},
        y={"title": "most weight first", "showgrid": False, "fixedrange": True},
        bargap=0.45,
    )
    most = min(20, max(1, inner(layout)[1] // 20))
    layout["yaxis"] |= {"range": [most + 0.5, 0.5], "dtick": 1, "nticks": 0}
    ranked = favourites(strings_N[:N], gate_N, most)
    top = nice_above(max((one.weight for one in ranked), default=1.0))
    layout["xaxis"] |= {"range": [-1.25 * top, top], "tickvals": [0, 0.5 * top], "ticktext": ["0", f"{0.5 * top:g}"]}  # fmt: skip
    if not ranked:
        return {"data": [], "layout": layout}
    y = np.arange(1, len(ranked) + 1, dtype=np.int32)
    weights = {
        "type": "bar", "orientation": "h", "name": "gate", "x": np.array([one.weight for one in ranked], np.float32), "y": y,
        "marker": {"color": expert_colour(chosen, theme), "line": {"width": 0}}, "hoverinfo": "text",
        "hovertext": [
            f"Token {word_of(strings_N[one.at]).quoted} goes to expert {chosen + 1} at {one.taken} of its {one.places} places, "
            f"with a gate of {one.weight:.2f} in all"
            for one in ranked
        ],
    }  # fmt: skip
    rows = np.zeros(N, np.int64) if row_N is None else np.asarray(row_N)[:N]
    return {"data": [weights, *contexts(ranked, strings_N[:N], rows, y, layout, theme)], "layout": layout}


class Favourite(NamedTuple):
    """A string: its weight in all, at how many of its places it goes to the expert, and the place where it gives most."""

    weight: float
    taken: int
    places: int
    at: int


def favourites(strings_N: Sequence[str], gate_N: Array, most: int) -> list[Favourite]:
    """The strings that give most weight, at most `most`, the first of equals first."""
    places: dict[str, list[int]] = {}
    for n, string in enumerate(strings_N):
        places.setdefault(string, []).append(n)
    of_each = [
        Favourite(float(gates.sum()), int((gates > 0).sum()), len(at), at[int(gates.argmax())])
        for at in places.values()
        for gates in [gate_N[at]]
    ]
    return sorted((one for one in of_each if one.weight > 0), key=lambda one: -one.weight)[:most]


def contexts(
    ranked: list[Favourite], strings_N: Sequence[str], rows: Array, y: Array, layout: Spec, theme: Theme
) -> list[Spec]:
    """Each favourite in bold, with the text before and after it in labels of their own."""
    low, top = layout["xaxis"]["range"]
    size = layout["font"]["size"]
    column = COLUMN * size * (top - low) / inner(layout)[0]  # in gate weight
    room = int(-low / column) - 1
    ahead = int(BEFORE * room)
    words = [word_of(strings_N[one.at], max(1, room - ahead)) for one in ranked]
    ends = [ahead + word.columns for word in words]
    before = [around(one.at, strings_N, rows, -1, ahead) for one in ranked]
    after = [around(one.at, strings_N, rows, 1, room - end) for one, end in zip(ranked, ends, strict=True)]
    here = np.full(len(ranked), ahead)
    parts = (
        ("before", here, before, "middle left", theme.ink2),
        ("token", here, [f"<b>{word.spaced}</b>" for word in words], "middle right", theme.ink),
        ("after", np.array(ends), after, "middle right", theme.ink2),
    )
    return [
        label_of(name, (low + column * at).astype(np.float32), y, text, size, colour) | {"textposition": side}
        for name, at, text, side, colour in parts
    ]


def around(n: int, strings_N: Sequence[str], rows: Array, step: int, most: int) -> str:
    """What stands before (step -1) or after (1) the token n in the same text, in at most `most` columns."""
    parts: list[str] = []
    at = n + step
    while 0 <= at < len(strings_N) and rows[at] == rows[n] and most > 0:
        word = word_of(strings_N[at])
        if word.columns > most:
            break
        parts.append(word.spaced)
        most -= word.columns
        at += step
    return "".join(parts[::step])
