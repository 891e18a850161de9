"""Noisy lines over the steps as their centred mean, the line itself pale behind; on pages and in exports."""

from collections.abc import Iterable

import numpy as np

from moe_core.figures.paper import Array, Spec, inner, said_too
from moe_core.figures.reading import Turnable, marked
from moe_core.runs.series import thin
from moe_core.runs.source import Beside, Source

SINCE = "steps since the fork"  # how the title of an axis of steps begins, if it is not "step"
SMOOTH = (5, 25, 101)  # steps among which a page lets choose
PALE, PALER = 0.3, 0.12  # opacity of a line behind its mean; where many such lines cover each other
CROWDED = 5  # such lines
LEAST = 1.4  # px of a line that stands for many steps


class Smoothed(Beside):
    """A source whose histories, as they are drawn, are means over so many steps, each taken of every recorded step."""

    def __init__(self, run: Source, over: int) -> None:
        super().__init__(run, run.options, [Smoothed(other, over) for other in run.others])
        self.over = over

    def history(
        self, stat: str, layer: int = 0, first: int | None = None, last: int | None = None, bins: int | None = None
    ) -> tuple[Array, Array]:
        if bins is None:  # numbers, not a line
            return self.run.history(stat, layer, first, last)
        low, high = around(first or 1, last, self.over)
        steps, values = means(*self.run.history(stat, layer, low, high), self.over, cuts_of(self.run), first or 1, last)
        return thin(steps, values, bins)


def around(first: int, last: int | None, over: int) -> tuple[int, int | None]:
    """The steps of which the means of `over` steps about first to last are taken."""
    return max(1, first - (over - 1) // 2), None if last is None else last + over // 2


def means(
    steps: Array, values: Array, over: int, cuts: Iterable[float], first: int, last: int | None
) -> tuple[Array, Array]:
    """The means over `over` steps about each step from first to last. values (n,) or (n, C): of every step around them."""
    mean = values if over == 1 else centred(steps, values, over, cuts).astype(np.float32)
    inside = (steps >= first) & (steps <= (steps[-1:].max(initial=0) if last is None else last))
    return steps[inside], mean[inside]


def cuts_of(source: Turnable) -> list[int]:
    """The steps at which a change that charts mark took effect. No mean is taken across one, or the change would seem to act before
    it was made."""
    return sorted({turn.step for turn in marked(source) if turn.step is not None})


def centred(x: Array, y: Array, over: int, cuts: Iterable[float] = ()) -> Array:
    """The mean of y (n,) or (n, C) over the `over` steps about each of the ascending steps x, over fewer at the ends and beside the
    steps `cuts`, at each of which a stretch of its own begins. A gap stays one."""
    known = np.isfinite(y)
    edges = np.concatenate([[0], np.searchsorted(x, list(cuts)), [len(x)]])
    stretch = np.searchsorted(edges, np.arange(len(x)), "right")
    first = np.maximum(np.searchsorted(x, x - (over - 1) // 2, "left"), edges[stretch - 1])
    end = np.minimum(np.searchsorted(x, x + over // 2, "right"), edges[stretch])
    count = window_sums(known, first, end)
    return np.where(known, window_sums(np.where(known, y, 0.0), first, end) / np.maximum(count, 1.0), np.nan)


def window_sums(y: Array, first: Array, end: Array) -> Array:
    """The sums of y[first:end] for each pair, in float64, of pieces of 1, 2, 4, … values. Not as the difference of two running sums,
    in which one large value would drown all that comes after it."""
    sums, start, piece = np.zeros(np.shape(y)), first, np.asarray(y, np.float64)
    size, length = 1, end - first
    while size <= length.max(initial=0):
        taken = (length & size) > 0
        sums[taken] += piece[start[taken]]
        start = start + np.where(taken, size, 0)
        piece = piece + np.concatenate([piece[size:], np.zeros((min(size, len(piece)), *piece.shape[1:]))])
        size *= 2
    return sums


def with_means(spec: Spec, mean: Spec, over: int) -> Spec:
    """The figure of the source's means, `mean`, on the axes of the figure itself, `spec`, whose lines over the steps stand pale
    behind, and the subtitle saying so. A figure without such a line, or whose lines are their own means, stays as it is."""
    means = {mean["data"][at]["name"]: mean["data"][at] for at in over_steps(mean)}
    lines = [spec["data"][at] for at in over_steps(spec)]
    noisy = [line for line in lines if line["name"] in means and not same(line, means[line["name"]])]
    if not noisy:
        return spec
    pale = {"opacity": PALE if len(noisy) < CROWDED else PALER, "hoverinfo": "skip"}
    behind = [trace | pale for trace in spec["data"] if trace.get("fill")]
    for line in noisy:
        thin_one = {name: value for name, value in line.items() if name != "hovertemplate"}
        behind.append(thin_one | pale | {"line": line["line"] | {"width": 1}})
        pen = means[line["name"]]["line"]
        pen["width"] = max(LEAST, pen.get("width", 2))
    layout = spec["layout"]
    words = f"; mean of {over:,} steps, pale: each step"
    layout["title"] |= {"text": said_too(mean["layout"]["title"]["text"], words)}
    layout["meta"] |= {"smooth": over}
    return spec | {"data": behind + mean["data"]}


def same(line: Spec, mean: Spec) -> bool:
    """Whether a line is its own mean, as that of an ideal."""
    return np.array_equal(line["y"], mean["y"], equal_nan=True)


def steps_a_pixel(spec: Spec) -> float:
    """How many steps a pixel of a chart over steps stands for; 0 of another chart."""
    axis = spec["layout"]["xaxis"]
    title = axis.get("title")
    text = title.get("text", "") if isinstance(title, dict) else ""
    if text != "step" and not text.startswith(SINCE):
        return 0.0
    low, high = axis["range"]
    return float(high - low) / inner(spec["layout"])[0]


def over_steps(spec: Spec) -> list[int]:
    """The places of the traces that are lines over the steps."""
    if not steps_a_pixel(spec):
        return []
    lines = [at for at, trace in enumerate(spec["data"]) if (trace["type"], trace.get("mode")) == ("scatter", "lines")]
    return [at for at in lines if spec["data"][at]["line"].get("shape") != "hv" and not spec["data"][at].get("fill")]
