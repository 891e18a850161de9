"""Noisy lines over the steps as their centred mean, the line itself pale behind."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Spec = dict[str, Any]
OVER_STEPS = ("step", "steps since the fork")  # the titles of such an axis
PALE = 0.3
LEAST = 1.4  # px of a line that stands for many steps


def smoothed(spec: Spec, given: Mapping[str, Any], over: int, points: int) -> Spec:
    """The spec with each line over the steps as the mean of `over` steps about each, and the subtitle saying so.

    given: the figure's arguments. No mean is taken across a knob's change, or the change would seem to act before it was made. A line
    is thinned to about `points` points here, since its mean is taken of every step. Steps and dots are left as they are, and so is
    a spec without such a line.
    """
    lines = over_steps(spec) if over > 1 else []
    behind, before = list[Spec](), list[Spec]()
    cuts = changed_at(given)
    for at, trace in enumerate(spec["data"]):
        if at not in lines:
            before.append(trace)
            continue
        x, y = np.asarray(trace["x"], np.float64), np.asarray(trace["y"], np.float64)
        mean = centred(x, y, over, cuts)
        if np.allclose(mean, y, rtol=1e-6, equal_nan=True):  # the line of an ideal
            before.append(trace)
            continue
        behind.append(
            trace
            | thinned(trace, extremes(y, points))
            | {"opacity": PALE, "line": trace["line"] | {"width": 1}, "hoverinfo": "skip"}
        )
        behind[-1].pop("hovertemplate", None)
        some = np.unique(np.append(np.arange(0, len(x), max(1, len(x) // points)), len(x) - 1))
        pen = trace["line"] | {"width": max(LEAST, trace["line"].get("width", 2))}
        before.append(trace | thinned(trace | {"y": mean.astype(np.float32)}, some) | {"line": pen})
    if not behind:
        return spec
    layout = spec["layout"]
    words = f"; mean of {over:,} steps, pale: each step</span>"
    layout["title"] |= {"text": layout["title"]["text"].replace("</span>", words)}
    layout["meta"] |= {"smooth": over}
    return spec | {"data": behind + before}


def over_steps(spec: Spec) -> list[int]:
    """The places of the traces that are lines over the steps."""
    title = spec["layout"]["xaxis"].get("title")
    if not isinstance(title, dict) or title.get("text") not in OVER_STEPS:
        return []
    lines = [at for at, trace in enumerate(spec["data"]) if (trace["type"], trace.get("mode")) == ("scatter", "lines")]
    return [at for at in lines if spec["data"][at]["line"].get("shape") != "hv" and not spec["data"][at].get("fill")]


def changed_at(given: Mapping[str, Any]) -> list[int]:
    """The steps at which a knob's change took effect, of a run or of runs that are compared, in order."""
    turns = [*given.get("changes", ()), *(turn for curve in given.get("curves", ()) for turn in curve.turns)]
    return sorted({turn.step for turn in turns if turn.step is not None})


def centred(x: Array, y: Array, over: int, cuts: Iterable[float] = ()) -> Array:
    """The mean of y over the `over` steps about each of the ascending steps x, over fewer at the ends and beside the steps `cuts`, at
    each of which a stretch of its own begins. A gap stays one."""
    known = np.isfinite(y)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, y, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    edges = np.concatenate([[0], np.searchsorted(x, list(cuts)), [len(x)]])
    stretch = np.searchsorted(edges, np.arange(len(x)), "right")
    first = np.maximum(np.searchsorted(x, x - (over - 1) // 2, "left"), edges[stretch - 1])
    end = np.minimum(np.searchsorted(x, x + over // 2, "right"), edges[stretch])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(known, (sums[end] - sums[first]) / (counts[end] - counts[first]), np.nan)


def extremes(y: Array, points: int) -> Array:
    """The places of the least and the largest value of each of points / 2 stretches, in order, and of gaps: all, if they are few."""
    n = len(y)
    if n <= points:
        return np.arange(n)
    parts = np.array_split(np.arange(n), points // 2)
    low = [part[np.argmin(np.where(np.isfinite(y[part]), y[part], np.inf))] for part in parts]
    high = [part[np.argmax(np.where(np.isfinite(y[part]), y[part], -np.inf))] for part in parts]
    return np.unique([0, *low, *high, n - 1])


def thinned(trace: Spec, places: Array) -> Spec:
    """A trace's points at these places only."""
    return {name: np.asarray(trace[name])[places] for name in ("x", "y", "customdata") if name in trace}
