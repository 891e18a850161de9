"""Axes as plotly.js lays them out: where a value lies, which ticks there are, and what they say."""

import math
import re
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
STEPS = (2.0, 5.0, 10.0)


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
    """(pixel, words) of each tick within the axis."""
    spec = axis.spec
    lo, hi = sorted(axis.range)
    if spec.get("tickvals") is not None:
        values = [float(v) for v in np.asarray(spec["tickvals"]).ravel()]
        texts = spec.get("ticktext")
        words = [str(t) for t in texts] if texts is not None else [number(v, 1e-3 * (abs(v) or 1)) for v in values]
    elif axis.log:
        values = log_values(lo, hi)
        words = [f"{v:g}" for v in values]
    else:
        step = spec.get("dtick") or spacing(abs(hi - lo), spec, abs(axis.px[1] - axis.px[0]))
        if not step > 0:
            return []
        first = math.ceil(lo / step - 1e-6)
        values = [step * i for i in range(first, first + 1000) if step * i <= hi + 1e-6 * step]
        words = [f"{round(v)}" if spec.get("tickformat") == "d" else number(v, step) for v in values]
        if fixed := re.fullmatch(r"\.(\d)f", str(spec.get("tickformat", ""))):
            words = [f"{v:.{fixed[1]}f}".replace("-", "−") for v in values]
        suffix = {"%": "%"}.get(str(spec.get("tickformat", ""))[-1:], "")
        if suffix:
            digits = max(0, -math.floor(math.log10(step * 100) + 1e-9))
            words = [f"{100 * v:.{digits}f}%" for v in values]
    places = axis.place(values)
    inside = (min(axis.px) - 0.5, max(axis.px) + 0.5)
    words = [spec.get("tickprefix", "") + w + spec.get("ticksuffix", "") for w in words]
    return [(float(p), w) for p, w in zip(places, words, strict=True) if inside[0] <= p <= inside[1]]


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
