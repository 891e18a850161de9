"""How the Compare page's figures are read: the same history of several runs, on the axis that was chosen."""

import math
from typing import Any

import numpy as np

from moe_core.figures.compare import Curve
from moe_core.figures.reading import Span
from moe_core.figures.theme import Array
from moe_core.schema import METRICS

EXACT = 2048  # bins of a history whose differences are taken: up to twice as many steps are compared one by one


def runs_of(source: Any) -> list[Any]:
    """The run that the link names, and those beside it."""
    return [source, *getattr(source, "others", ())]


def aligned_by(source: Any) -> str:
    return "fork" if getattr(source, "options", {}).get("align") == "fork" else "step"


def fork_steps(sources: list[Any]) -> list[int]:
    """Where each run left its parent, or was left by the earliest of the others; 0 where neither is known."""
    parents = [getattr(source, "parent", None) for source in sources]
    left: dict[str, int] = {}
    for parent in parents:
        if parent is not None:
            left[parent.run] = min(parent.step, left.get(parent.run, parent.step))
    return [
        parent.step if parent is not None else left.get(source.id, 0)
        for source, parent in zip(sources, parents, strict=True)
    ]


def curves(source: Any, stat: str, layer: int, span: Span, bins: int | None) -> list[Curve]:
    """A statistic of every run; by the fork, its steps count from there. A run with fewer layers shows its last."""
    sources = runs_of(source)
    offsets = fork_steps(sources) if aligned_by(source) == "fork" else [0] * len(sources)
    found = []
    for one, offset in zip(sources, offsets, strict=True):
        first = 1 + offset if span is None else max(1 + offset, math.floor(span[0]) - 1 + offset)
        last = None if span is None else max(1, math.ceil(span[1]) + 1 + offset)
        steps, values = one.history(stat, min(layer, one.config.layers - 1), first=first, last=last, bins=bins)
        found.append(Curve(one.id, np.asarray(steps) - offset, np.asarray(values)))
    return found


def cut(given: list[Curve], step: int | None) -> list[Curve]:
    """Up to the step looked at."""
    if step is None:
        return given
    return [Curve(c.name, c.steps[c.steps <= step], c.values[c.steps <= step]) for c in given]


def in_unit(task: str, nats: Array) -> tuple[str, Array]:
    """Text is read in bits per byte, the others in nats."""
    return ("bits per byte", np.asarray(nats) / math.log(2)) if task == "text" else ("nats", np.asarray(nats))


def read_balance(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    return {
        "curves": cut(curves(source, "cv_load", layer, span, bins), step),
        "aligned": aligned_by(source),
        "span": span,
    }


def read_balance_difference(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    return read_balance(source, layer, step, span, EXACT)


def read_load(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    found = cut(curves(source, "load_share", layer, span, bins), step)
    return {"curves": found, "aligned": aligned_by(source), "span": span}


def read_loss_difference(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    found = cut(curves(source, "task_loss", 0, span, EXACT), step)
    unit, _ = in_unit(source.config.task, np.zeros(0))
    scaled = [Curve(c.name, c.steps, in_unit(source.config.task, c.values)[1]) for c in found]
    return {"curves": scaled, "unit": unit, "aligned": aligned_by(source), "span": span}


def read_loss(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    text = source.config.task == "text"
    metric = METRICS["text"][0][0] if text else "loss"
    sources = runs_of(source)
    offsets = fork_steps(sources) if aligned_by(source) == "fork" else [0] * len(sources)
    found = cut(curves(source, "task_loss", 0, span, bins), step)
    heldout = []
    for one, offset in zip(sources, offsets, strict=True):
        done = [(e.step - offset, e.metrics[metric]) for e in one.evals() if metric in e.metrics and e.step > offset]
        heldout.append(
            Curve(one.id, np.array([s for s, _ in done], np.int64), np.array([v for _, v in done], np.float64))
        )
    unit, _ = in_unit(source.config.task, np.zeros(0))
    return {
        "curves": [Curve(c.name, c.steps, in_unit(source.config.task, c.values)[1]) for c in found],
        "heldout": cut(heldout, step),
        "unit": unit,
        "aligned": aligned_by(source),
        "span": span,
    }
