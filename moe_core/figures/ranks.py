"""A training by several ranks: the rows that each sends to each, the load of each device, and its balance over time.

A row is a token on its way to one of its experts. Ranks count from 0, as torchrun and the errors of a run call them.

Shapes: R ranks, n steps. `rows_to_RR` is (R, R): from each rank, the first axis, to each.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from moe_core.figures.changes import mark
from moe_core.figures.lines import as_steps, end_labels, line, over_steps
from moe_core.figures.matrices import colour_bar, log_ratio
from moe_core.figures.pages.tile import short
from moe_core.figures.paper import (
    LETTER,
    Array,
    Size,
    Spec,
    axis_title,
    base,
    every_nth,
    figure,
    ideal_line,
    inner,
    lettered,
    nice_above,
    pens,
    percent,
)
from moe_core.figures.theme import (
    DIVERGING_STOPS,
    FRACTIONS,
    LIGHT,
    LINES,
    SANS,
    Theme,
    letter_colour,
    scale,
)

FRAMED = 8  # px of a cell from which on those on the diagonal have a frame
EVEN = 10  # percent up to which cells, which are then all pale, are called even


class Counted(NamedTuple):
    """The steps, first and last, over which rows were counted. dealt: the step since which the experts are dealt so, if that is
    later than the first: the choices of all steps are counted as if they had been dealt so."""

    first: int
    last: int
    dealt: int = 0

    @property
    def words(self) -> str:
        """ "steps 21–120"."""
        steps = f"steps {self.first:,}–{self.last:,}" if self.first < self.last else f"step {self.last:,}"
        return steps + (f", counted with the ranks of step {self.dealt:,} on" if self.dealt > self.first else "")

    @property
    def hover(self) -> str:
        return f"in steps {self.first:,} to {self.last:,}"


@figure
def rows_between_ranks(
    rows_to_RR: Array,
    *,
    group: int = 1,
    counted: Counted | None = None,
    missing: str = "not counted yet",
    step: int | None = None,
    theme: Theme = LIGHT,
    size: Size = (320, 460),
) -> Spec:
    """How many rows each rank sent to each: in numbers where they find room, and as a colour over what it would be if all were even.

    rows_to_RR (R, R), whole numbers; on the diagonal what stayed. group: how many ranks share the experts: none sends a row to
    another group. counted: the steps that they are of; without them `missing` says why. step: that of the snapshot.
    """
    rows_RR = np.asarray(rows_to_RR, np.int64)
    R, total, stayed = len(rows_RR), int(rows_RR.sum()), int(np.trace(rows_RR))
    crossed = percent((total - stayed) / total) if total else "none"
    inside_RR = np.arange(R)[:, None] // group == np.arange(R) // group
    ratio_RR = rows_RR * (R * group / max(total, 1))
    even = f"; {evenness(ratio_RR[inside_RR])}" if total else ""
    subtitle = f"{total:,} rows, {crossed} crossed{even}; {counted.words}" if R and counted else missing
    title = "Rows between ranks"
    layout = base("rows_between_ranks", title, subtitle, step=step, theme=theme, size=size, labels=True)
    layout["margin"] |= {"r": 76}
    width, height = inner(layout)
    for axis, px, room, words in (("x", width, 22, "to rank; framed: stayed"), ("y", height, 16, "from rank")):
        every = every_nth(R, px / max(R, 1), room)
        ends = [-0.5, max(R, 1) - 0.5]
        ticks = list(range(0, R, every))
        layout[f"{axis}axis"] |= {"range": ends if axis == "x" else ends[::-1], "showgrid": False}
        layout[f"{axis}axis"] |= {"tickvals": ticks, "ticktext": [str(rank) for rank in ticks]}
        layout[f"{axis}axis"]["title"] = axis_title(words, layout, standoff=2 if axis == "x" else 4)
    if not R or not counted:
        return {"data": [], "layout": layout}
    with np.errstate(divide="ignore", invalid="ignore"):
        z_RR = np.where(inside_RR, log_ratio(ratio_RR), np.nan)
    stays = f"Rank %{{y}} kept %{{customdata:,d}} rows of its own tokens {counted.hover}"
    sends = f"Rank %{{y}} sent %{{customdata:,d}} rows to rank %{{x}} {counted.hover}"
    own_RR = np.eye(R, dtype=bool)
    data = [
        cells("sent", np.where(own_RR, np.nan, z_RR), rows_RR, sends, layout, theme),
        cells("stayed", np.where(own_RR, z_RR, np.nan), rows_RR, stays, layout, theme) | {"showscale": False},
        *numbers(rows_RR, z_RR, (width / R, height / R), layout, theme),
    ]
    if min(width, height) / R >= FRAMED:
        layout["shapes"] += [frame(rank, rank, theme.ink, 1.5, inset=0.03) for rank in range(R)]
    if 1 < group < R:
        layout["shapes"] += [frame(first, first + group - 1, theme.ink2, 1) for first in range(0, R, group)]
    return {"data": data, "layout": layout}


def evenness(ratio_N: Array) -> str:
    """How far the numbers of rows are from even: "all even to 3 %", or the most. ratio_N: each over the even number."""
    off = math.ceil(100 * float(np.abs(ratio_N - 1).max()) - 1e-6)
    return f"most {float(ratio_N.max()):.2f} × even" if off > EVEN else f"all even to {max(1, off)} %"


def cells(name: str, z_RR: Array, rows_RR: Array, sentence: str, layout: Spec, theme: Theme) -> Spec:
    """Cells coloured by log2 of their rows over the even number."""
    R = len(z_RR)
    ticks = {"tickvals": list(range(-3, 4)), "ticktext": list(FRACTIONS)}
    return {
        "type": "heatmap", "name": name, "x": np.arange(R, dtype=np.int32), "y": np.arange(R, dtype=np.int32),
        "z": np.asarray(z_RR, np.float32), "customdata": rows_RR, "hoverongaps": False,
        "hovertemplate": f"{sentence}<extra></extra>", "zmin": -3, "zmax": 3,
        "colorscale": scale(theme.diverging, DIVERGING_STOPS), "colorbar": colour_bar(layout, theme) | ticks,
        "xgap": 1 if R <= LINES else 0, "ygap": 1 if R <= LINES else 0,
    }  # fmt: skip


def numbers(rows_RR: Array, z_RR: Array, px: tuple[float, float], layout: Spec, theme: Theme) -> list[Spec]:
    """The number of rows on each cell where a row could go, exact or in three digits, whichever finds room; else none."""
    size = layout["font"]["size"]
    letters = int((px[0] - 6) / (LETTER * size))
    places = np.argwhere(np.isfinite(z_RR)).tolist()
    rows = [int(rows_RR[i, j]) for i, j in places]
    texts = [f"{n:,}" for n in rows]
    if max(map(len, texts)) > letters:
        texts = [short(n).replace(" ", "") for n in rows]
    if max(map(len, texts)) > letters or px[1] < 1.2 * size:
        return []
    inks, printed = (
        [letter_colour(colour_at(float(z_RR[i, j]), look)) for i, j in places]
        for look in (theme, LIGHT if theme.name == "dark" else theme)
    )
    trace = {
        "type": "scatter", "mode": "text", "name": "numbers", "hoverinfo": "skip", "text": texts,
        "x": [j for _, j in places], "y": [i for i, _ in places], "textfont": {"family": SANS, "size": size},
    }  # fmt: skip
    return [lettered(trace, inks, printed)]


def colour_at(z: float, theme: Theme) -> str:
    """The colour of a cell on the diverging scale, from -3 to 3."""
    channels = [[int(colour[i : i + 2], 16) for colour in theme.diverging] for i in (1, 3, 5)]
    return "#" + "".join(f"{round(np.interp((z + 3) / 6, DIVERGING_STOPS, own)):02X}" for own in channels)


def frame(first: int, last: int, colour: str, width: float, inset: float = 0.0) -> Spec:
    """A frame around the cells of these ranks, from and to."""
    low, high = first - 0.5 + inset, last + 0.5 - inset
    place = {"xref": "x", "yref": "y", "x0": low, "x1": high, "y0": low, "y1": high}
    return {"type": "rect", "line": {"color": colour, "width": width}} | place


@figure
def device_load(
    rows_to_RR: Array,
    *,
    experts: int = 0,
    group: int = 1,
    counted: Counted | None = None,
    missing: str = "not counted yet",
    step: int | None = None,
    theme: Theme = LIGHT,
    size: Size = (320, 224),
) -> Spec:
    """The rows that the experts of each device worked through: those of its own tokens, above them those of other ranks; dashed: even.

    All else as rows_between_ranks() has it. experts: how many the layer has; 0: which of them a rank has is
    not known.
    """
    rows_RR = np.asarray(rows_to_RR, np.int64)
    R = len(rows_RR)
    load_R, own_R = rows_RR.sum(axis=0), np.diagonal(rows_RR)
    mean = float(load_R.mean()) if R else 0.0
    most = f"busiest {load_R.max() / mean:.2f} × mean; " if mean else ""
    own, other = (f'<span style="color:{colour}">■</span>' for colour in (theme.edge, theme.ink2))
    key = f"{own} own {other} others' tokens"
    subtitle = f"{most}{key}; {counted.words}" if R and counted else missing
    top = nice_above(max(1.05 * float(load_R.max(initial=0)), 1.1 * mean))
    layout = base(
        "device_load",
        "Load of each device",
        subtitle,
        step=step,
        theme=theme,
        size=size,
        y={"title": "rows", "range": [0.0, top], "nticks": 5},
        bargap=0.25,
        barmode="overlay",
    )
    every = every_nth(R, inner(layout)[0] / max(R, 1), 22)
    layout["xaxis"] |= {"range": [-0.5, max(R, 1) - 0.5], "tickvals": list(range(0, R, every)), "tickformat": "d"}
    layout["xaxis"]["title"] = axis_title("rank", layout)
    if not R or not counted:
        return {"data": [], "layout": layout}
    hover_R = hovers(rows_RR, experts, group, counted)
    data = [
        bars("own tokens", own_R, np.zeros(R), hover_R, theme.edge),
        bars("tokens of others", load_R - own_R, own_R, hover_R, theme.ink2),
    ]
    ideal_line(layout, mean, theme)
    return {"data": data, "layout": layout}


def bars(name: str, high_R: Array, base_R: Array, hover_R: list[str], colour: str) -> Spec:
    return {
        "type": "bar", "name": name, "x": np.arange(len(high_R), dtype=np.int32), "y": high_R, "base": base_R,
        "marker": {"color": colour, "line": {"width": 0}}, "hovertext": hover_R, "hoverinfo": "text",
    }  # fmt: skip


def hovers(rows_RR: Array, experts: int, group: int, counted: Counted) -> list[str]:
    """A sentence for each rank: its load, where it came from, what it sent, and which experts it has."""
    load_R, sent_R, own_R = rows_RR.sum(axis=0), rows_RR.sum(axis=1), np.diagonal(rows_RR)
    ratio_R, each = load_R / max(float(load_R.mean()), 1e-9), experts // group
    having = [f" (experts {rank % group * each + 1} to {(rank % group + 1) * each})" if experts else "" for rank in range(len(rows_RR))]  # fmt: skip
    return [
        f"Rank {rank}{having[rank]} worked through {load_R[rank]:,} rows {counted.hover}, {ratio_R[rank]:.2f} × the mean;<br>"
        f"{load_R[rank] - own_R[rank]:,} came from other ranks, and it sent {sent_R[rank] - own_R[rank]:,} to them"
        for rank in range(len(rows_RR))
    ]


@figure
def device_balance(
    steps: Array,
    devices: Array,
    of_experts: Array,
    *,
    group: int = 1,
    groups: int = 1,
    drops: bool = False,
    span: tuple[float, float] | None = None,
    cursor: int | None = None,
    label_changes: bool = False,
    changes: Iterable[Any] = (),
    theme: Theme = LIGHT,
    size: Size = (620, 224),
) -> Spec:
    """The busiest device's selections over the mean, step by step, and thin the busiest expert's.

    steps (n,), devices (n,), of_experts (n,), NaN being a gap. group: how many devices have the experts between them, in each of
    `groups` groups; drops: whether some of the selections may have been dropped. Changes are named as in balance().
    """
    both = np.concatenate([devices, of_experts])
    top = nice_above(max(1.5, float(both[np.isfinite(both)].max(initial=0.0))))
    of_groups = f", mean over {groups} groups" if groups > 1 else ""
    now = f"{group} devices{of_groups}" if group > 1 else "each device has all experts"
    subtitle = f"selections of the busiest ÷ mean{' before any drop' if drops else ''}; {now}"
    y = {"title": "max ÷ mean, ×", "range": [1.0, top], "nticks": 5}
    layout = over_steps("device_balance", "Balance of devices over time", subtitle, steps, span, y, theme, size)
    pen, x = pens(size), as_steps(steps)
    data, ends = [], []
    for name, values, colour, width in (
        ("experts", of_experts, theme.ink2, 1.0),
        ("devices", devices, theme.ink, pen.main),
    ):
        values = np.asarray(values, np.float32)
        hover = f"The busiest of the {name} had %{{y:.2f}} × the mean at step %{{x:,d}}"
        data.append(line(name, x, values, hover, color=colour, width=width))
        if len(known := values[np.isfinite(values)]):
            px = inner(layout)[1] * (float(known[-1]) - 1.0) / (top - 1.0)
            ends.append((px, f"{name} {values[-1]:.2f} ×" if math.isfinite(values[-1]) else name))
    layout["annotations"] += end_labels(sorted(ends, reverse=True), layout, theme, ink=True)
    ideal_line(layout, 1.0, theme)
    mark(layout, changes, cursor, theme, labelled=label_changes)
    return {"data": data, "layout": layout}
