"""How the Compare page's figures are read: the same history of several runs, on the axis that was chosen."""

import math
from typing import Any

import numpy as np

from moe_core.figures.compare import Curve, Shared, differences
from moe_core.figures.paper import Array
from moe_core.figures.reading import Span, by_hand, comparable_at, last_step, of_those_on
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


def offsets_of(source: Any) -> list[int]:
    """Each run's step that stands at 0 on the axis that was chosen."""
    sources = runs_of(source)
    return fork_steps(sources) if aligned_by(source) == "fork" else [0] * len(sources)


def last_shared(sources: list[Any], offsets: list[int]) -> int:
    """The last step on the chosen axis that all runs have; those that have not begun there are left out."""
    ends = [last_step(one) - offset for one, offset in zip(sources, offsets, strict=True)]
    return min((end for end in ends if end > 0), default=0)


def curves(source: Any, stat: str, layer: int, span: Span, bins: int | None) -> list[Curve]:
    """A statistic of every run; by the fork, its steps count from there. A run with fewer layers shows its last."""
    found = []
    for one, offset in zip(runs_of(source), offsets_of(source), strict=True):
        first = 1 + offset if span is None else max(1 + offset, math.floor(span[0]) - 1 + offset)
        last = None if span is None else max(1, math.ceil(span[1]) + 1 + offset)
        steps, values = one.history(stat, min(layer, one.config.layers - 1), first=first, last=last, bins=bins)
        if np.ndim(values) == 2:
            values = of_those_on(one, min(layer, one.config.layers - 1), steps, values)
        found.append(Curve(one.id, np.asarray(steps) - offset, np.asarray(values), turns_of(one, offset)))
    return found


def turns_of(source: Any, offset: int) -> tuple[Any, ...]:
    """A run's turns by hand on the chart's axis."""
    return tuple(c._replace(step=c.step - offset) for c in by_hand(source) if c.step is not None and c.step > offset)


def over(source: Any, step: int | None, span: Span) -> dict[str, Shared]:
    """The axis of all charts; a step that is looked at is one of the first run."""
    offset = offsets_of(source)[0]
    cursor = None if step is None or step < offset else step - offset
    return {"over": Shared(aligned_by(source), offset, span, cursor)}


def in_unit(task: str, nats: Array) -> tuple[str, Array]:
    """Text is read in bits per byte, the others in nats."""
    return ("bits per byte", np.asarray(nats) / math.log(2)) if task == "text" else ("nats", np.asarray(nats))


def read_balance(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    return {"curves": curves(source, "cv_load", layer, span, bins)} | over(source, step, span)


def read_balance_difference(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    found = read_balance(source, layer, step, span, EXACT)
    return found | differences(found["curves"])


def read_load(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    return {"curves": curves(source, "load_share", layer, span, bins)} | over(source, step, span)


def losses(source: Any, span: Span, bins: int | None) -> dict[str, Any]:
    """Every run's training loss, and its unit."""
    unit, _ = in_unit(source.config.task, np.zeros(0))
    found = curves(source, "task_loss", 0, span, bins)
    return {"curves": [c._replace(values=in_unit(source.config.task, c.values)[1]) for c in found], "unit": unit}


def read_loss_difference(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    """A difference does not compare where either run's training looked ahead."""
    found = losses(source, span, EXACT)
    taken = differences(found["curves"])
    runs = list(zip(runs_of(source), offsets_of(source), strict=True))
    for at, gap in enumerate(taken["gaps"]):
        seen = [comparable_at(one, gap.steps + offset, training=True) for one, offset in (runs[0], runs[at + 1])]
        marked = [one for one in seen if one is not None]
        taken["gaps"][at] = gap._replace(comparable=np.logical_and.reduce(marked) if marked else None)
    return found | taken | over(source, step, span)


def read_loss(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    metric = METRICS["text"][0][0] if source.config.task == "text" else "loss"
    heldout = []
    for one, offset in zip(runs_of(source), offsets_of(source), strict=True):
        done = [(e.step - offset, e.metrics[metric]) for e in one.evals() if metric in e.metrics and e.step > offset]
        steps, values = np.array([s for s, _ in done], np.int64), np.array([v for _, v in done], np.float64)
        heldout.append(Curve(one.id, steps, values, comparable=comparable_at(one, steps + offset)))
    return losses(source, span, bins) | {"heldout": heldout} | over(source, step, span)
