"""The paper's way out of the shrinking batch, measured: how many tokens an expert sees from one device's batch, and from those of D devices.

An expert that is fed by D devices, each with a batch of T tokens, sees k*T*D/E. (Shazeer 2017, section 3.1)
Shapes: m numbers of devices; 3: the least, the mean and the most of the experts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from moe_core.figures.lines import end_labels, line
from moe_core.figures.pages.tile import short
from moe_core.figures.paper import (
    DASHED,
    Array,
    Size,
    Spec,
    base,
    ems,
    escape,
    figure,
    inner,
    label_font,
    nice_above,
    note,
)
from moe_core.figures.reading import tokens_per_expert
from moe_core.figures.theme import LIGHT, Theme

SHOWN = (1, 2, 4)
DOT = 6  # px: half the width of a bar with its dot
Box = tuple[float, float, float, float]  # left, right, lower and upper end in px from the plot's lower left corner
PARTS = ("the least that one expert got", "the mean of the experts", "the most that one expert got")


@figure
def batch_devices(
    tokens: int,
    k: int,
    experts: int,
    *,
    devices_m: Array | Sequence[int] = (),
    own_m3: Array | Sequence[Any] = (),
    all_m3: Array | Sequence[Any] = (),
    per_second_m: Array | Sequence[float] = (),
    step: int | None = None,
    machine: str = "",
    theme: Theme = LIGHT,
    size: Size = (520, 320),
) -> Spec:
    """Tokens that an expert sees by the number of devices: the formula's lines, and what was measured on ranks.

    own_m3, all_m3 (m, 3): from one device's batch, and from the batches of all. per_second_m (m,): rows a second through the experts of one
    device, forward and backward; NaN where it is not measured yet. step: after how many steps of the run it was measured.
    """
    devices = np.asarray(devices_m, np.int64)
    own, all_ = (np.asarray(x, np.float64).reshape(-1, 3) for x in (own_m3, all_m3))
    measured = f"k = {k}; bars: least to most (wide: own batch, thin: all batches); dots: mean; dashed: formula; {escape(machine)}"
    layout = base(
        "batch_devices",
        "Tokens per expert, by devices",
        measured if len(devices) else "dashed: formula; not measured yet",
        step=step,
        theme=theme,
        size=size,
        labels=True,
        x={"title": "devices, D", "range": [0.2, 4.6], "tickvals": [*SHOWN], "ticktext": [str(d) for d in SHOWN]},
        y={"title": "tokens per expert", "nticks": 5},
    )
    highest = max([tokens_per_expert(tokens, k, experts, SHOWN[-1]), *own.ravel(), *all_.ravel()])
    above = min(0.5, 1.8 * layout["font"]["size"] / inner(layout)[1])  # the share of the height above the last bar
    layout["yaxis"]["range"] = [0.0, nice_above(highest / (1 - above))]
    data = formula_lines(tokens, k, experts, layout, theme)
    if len(devices):
        data.append(bars("from one batch", devices, own, "from one device's batch", theme.edge, 9, theme.ink2))
        data.append(bars("from all batches", devices, all_, "from the batches of all", theme.ink, 3, theme.ink))
    layout["annotations"] += speeds(devices, np.asarray(per_second_m, np.float64), own, all_, layout, theme)
    return {"data": data, "layout": layout}


def speeds(devices: Array, per_second_m: Array, own: Array, all_: Array, layout: Spec, theme: Theme) -> list[Spec]:
    """Rows a second above the bar of each number of devices; in two lines where one would touch another's bar, and left out where two do."""
    (width, height), size = inner(layout), layout["font"]["size"]
    (low, high), top = layout["xaxis"]["range"], layout["yaxis"]["range"][1]
    x = width * (devices - low) / (high - low)
    taken: list[Box] = [
        (at - DOT, at + DOT, *(np.array([min(a.min(), b.min()), max(a.max(), b.max())]) * height / top).tolist())
        for at, a, b in zip(x.tolist(), own, all_, strict=True)
    ]
    names = []
    for at, speed in enumerate(per_second_m.tolist()):
        if not np.isfinite(speed) or speed <= 0:  # no row came to a rank whose experts are all off
            continue
        for words in (f"{short(speed)} rows/s", f"{short(speed)}<br>rows/s"):
            lines = words.split("<br>")
            half = size * max(map(ems, lines)) / 2
            right = max(0.0, half - float(x[at]))  # on a narrow chart the first would reach over the axis
            middle, foot = float(x[at]) + right, float(all_[at, 2]) * height / top + 4
            box = (middle - half, middle + half, foot, foot + 1.3 * size * len(lines))
            others = taken[:at] + taken[at + 1 :]
            if not any(box[0] < b and box[1] > a and box[2] < d and box[3] > c for a, b, c, d in others):
                place = {
                    "xref": "x",
                    "yref": "y",
                    "yanchor": "bottom",
                    "yshift": 4,
                    "font": label_font(layout, theme.ink),
                }
                names.append(note(words, int(devices[at]), float(all_[at, 2]), xshift=right, **place))
                taken.append(box)
                break
    return names


def formula_lines(tokens: int, k: int, experts: int, layout: Spec, theme: Theme) -> list[Spec]:
    """k*T*D/E and k*T/E; their names stand at their ends, in the layout."""
    data, ends = [], []
    for name, words, of in (
        ("k·T·D/E", "By the formula an expert sees", SHOWN),
        ("k·T/E", "From one device's batch it would see", (1, 1, 1)),
    ):
        y = np.array([tokens_per_expert(tokens, k, experts, d) for d in of], np.float32)
        hover = f"{words} %{{y:,.4~g}} tokens, devices: %{{x}}"
        data.append(line(name, np.array(SHOWN, np.int32), y, hover, color=theme.ink2, width=1.5, dash=DASHED))
        last = float(y[-1])
        place = inner(layout)[1] * last / layout["yaxis"]["range"][1]
        ends.append((place, f"{name} {short(last) if last >= 1000 else format(last, '.4g')}"))
    layout["annotations"] += end_labels(ends, layout, theme)
    return data


def bars(name: str, devices_m: Array, rows_m3: Array, words: str, colour: str, width: int, dot: str) -> Spec:
    """A bar for each number of devices, from the least to the most, with a dot at the mean; a gap parts two bars."""
    gap_m1 = np.full((len(devices_m), 1), np.nan)
    hover = [
        f"Measured on {devices} device{'s' if devices > 1 else ''}, {words}: {part}, {value:,.4g} tokens a step"
        for devices, row in zip(devices_m.tolist(), rows_m3.tolist(), strict=True)
        for part, value in zip((*PARTS, ""), (*row, np.nan), strict=True)
    ]
    return {
        "type": "scatter", "mode": "lines+markers", "name": name, "x": np.repeat(devices_m, 4).astype(np.int32),
        "y": np.hstack([rows_m3, gap_m1]).ravel().astype(np.float32), "line": {"color": colour, "width": width},
        "marker": {"color": dot, "size": [0, 9, 0, 0] * len(devices_m), "symbol": "circle"}, "hovertext": hover, "hoverinfo": "text",
    }  # fmt: skip
