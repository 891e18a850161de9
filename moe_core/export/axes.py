"""Axes as plotly.js lays them out: where a value lies, which ticks there are, and what they say."""

import itertools
import math
import re
from typing import Any, NamedTuple

import numpy as np

from moe_core.export.fonts import width_of
from moe_core.export.marks import lines_of

Array = np.ndarray[Any, Any]
STEPS = (2.0, 5.0, 10.0)
LINE = 1.3  # distance of two baselines, in the size of the label's type
HIGH = 0.9  # of a line's letters, in the same
BETWEEN_X, BETWEEN_Y = 0.4, 0.1  # least gap between the words of two ticks, in the same


class Axis(NamedTuple):
    """An axis on the sheet. px: its first and last pixel, as the range runs; `log`: the range is in powers of ten."""

    range: tuple[float, float]
    px: tuple[float, float]
    log: bool
    spec: dict[str, Any]

    def place(self, values: Any) -> Any:
        """Pixels of data values; NaN where a log axis has none."""
        values = np.asarray(values, np.float64)
        if self.log:
            with np.errstate(divide="ignore", invalid="ignore"):
                values = np.log10(np.where(values > 0, values, np.nan))
        lo, hi = self.range
        a, b = self.px
        return a + (values - lo) / ((hi - lo) or 1.0) * (b - a)


def ticks(axis: Axis) -> list[tuple[float, str]]:
    """(pixel, words) of each tick within the axis; where their words would touch, of every second, third, … only."""
    spec = axis.spec
    lo, hi = sorted(axis.range)
    if spec.get("tickvals") is None and not axis.log:
        step = spec.get("dtick") or spacing(abs(hi - lo), spec, abs(axis.px[1] - axis.px[0]))
        if not step > 0:
            return []
        while touching(found := multiples(axis, lo, hi, step), axis):
            step = longer(step)
        return found
    if axis.log and spec.get("tickvals") is None:
        values = log_values(lo, hi)
        words = [f"{v:g}" for v in values]
    else:
        values = [float(v) for v in np.asarray(spec["tickvals"]).ravel()]
        texts = spec.get("ticktext")
        words = [str(t) for t in texts] if texts is not None else [number(v, 1e-3 * (abs(v) or 1)) for v in values]
    every, found = 1, within(axis, values, words)
    while touching(found[::every], axis):
        every += 1
    return found[::every]


def multiples(axis: Axis, lo: float, hi: float, step: float) -> list[tuple[float, str]]:
    """The ticks at the multiples of a step."""
    form = str(axis.spec.get("tickformat", ""))
    first = math.ceil(lo / step - 1e-6)
    values = [step * i for i in range(first, first + 1000) if step * i <= hi + 1e-6 * step]
    words = [f"{round(v)}" if form == "d" else number(v, step) for v in values]
    if fixed := re.fullmatch(r"\.(\d)f", form):
        words = [f"{v:.{fixed[1]}f}".replace("-", "−") for v in values]
    if form.endswith("%"):
        digits = max(0, -math.floor(math.log10(step * 100) + 1e-9))
        words = [f"{100 * v:.{digits}f}%" for v in values]
    return within(axis, values, words)


def longer(step: float) -> float:
    """The next step that is 1, 2 or 5 times a power of ten."""
    base = 10.0 ** math.floor(math.log10(step) + 1e-9)
    return base * next(s for s in STEPS if s > step / base * (1 + 1e-9))


def within(axis: Axis, values: list[float], words: list[str]) -> list[tuple[float, str]]:
    """The ticks that lie within the axis, each at its pixel."""
    spec, places = axis.spec, axis.place(values)
    low, high = min(axis.px) - 0.5, max(axis.px) + 0.5
    before, after = spec.get("tickprefix", ""), spec.get("ticksuffix", "")
    return [(float(p), before + w + after) for p, w in zip(places, words, strict=True) if low <= p <= high]


def touching(found: list[tuple[float, str]], axis: Axis) -> bool:
    """Whether the words of two neighbouring ticks would touch, or stand so close that they read as one."""
    font = axis.spec.get("tickfont")
    if len(found) < 2 or font is None or axis.spec.get("showticklabels", True) is False:
        return False
    upright = axis.spec.get("letter") == "y"
    halves = [reach(words, font, upright) / 2 for _, words in found]
    gap = (BETWEEN_Y if upright else BETWEEN_X) * font["size"]
    return any(abs(b[0] - a[0]) < halves[i] + halves[i + 1] + gap for i, (a, b) in enumerate(itertools.pairwise(found)))


def reach(words: str, font: dict[str, Any], upright: bool) -> float:
    """How much of its axis a tick's words take: their height on an upright one, else their width."""
    lines = lines_of(words, font)
    return (HIGH + LINE * (len(lines) - 1)) * float(font["size"]) if upright else max(map(width_of, lines))


def spacing(length: float, spec: dict[str, Any], px: float) -> float:
    """The distance of two ticks: 1, 2 or 5 times a power of ten, so that there are about `nticks`."""
    least = 40 if spec.get("letter") == "y" else 80
    count = spec.get("nticks") or min(max(px / least, 4), 9) + 1
    rough = length / count
    if not (rough > 0 and math.isfinite(rough)):
        return 0.0
    base = 10.0 ** math.floor(math.log10(rough))
    return base * next((s for s in STEPS if s > rough / base), 10.0)


def log_values(lo: float, hi: float) -> list[float]:
    every = range(math.ceil(lo - 1e-9), math.floor(hi + 1e-9) + 1)
    if len(every) >= 2:
        return [10.0**p for p in every]
    return [
        m * 10.0**p
        for p in range(math.floor(lo), math.ceil(hi) + 1)
        for m in (1, 2, 5)
        if lo <= math.log10(m * 10.0**p) <= hi
    ]


def number(value: float, step: float) -> str:
    """A tick as plotly.js writes it: digits to the step, a true minus."""
    digits = max(0, -math.floor(math.log10(step) + 1e-6)) if step > 0 else 0
    text = f"{value:.{min(digits, 9)}f}"
    if abs(value) >= 1e4 and digits == 0:
        for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
            if abs(value) >= size:
                return f"{value / size:g}{letter}".replace("-", "−")
    if "." in text and digits:
        text = text.rstrip("0").rstrip(".")
    return "0" if not float(text) else text.replace("-", "−")
