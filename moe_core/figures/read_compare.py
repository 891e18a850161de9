"""How the Compare page's figures are read: the same history of several runs, on the axis that was chosen."""

import math
from typing import Any

import numpy as np

from moe_core.figures.compare import differences
from moe_core.figures.comparing import Curve, Shared
from moe_core.figures.reading import comparable_at, last_step, marked, of_those_on
from moe_core.runs.source import At, Source
from moe_core.runs.statistics import measured_by

EXACT = 2048  # bins of a history whose differences are taken: up to twice as many steps are compared one by one


def runs_of(source: Source) -> list[Source]:
    """The run that the link names, and those beside it."""
    return [source, *source.others]


def aligned_by(source: Source) -> str:
    return "fork" if source.options.get("align") == "fork" else "step"


def fork_steps(sources: list[Source]) -> list[int]:
    """Where each run left its parent, or was left by the earliest of the others; 0 where neither is known."""
    parents = [source.parent for source in sources]
    left: dict[str, int] = {}
    for parent in parents:
        if parent is not None:
            left[parent.run] = min(parent.step, left.get(parent.run, parent.step))
    return [
        parent.step if parent is not None else left.get(source.id, 0)
        for source, parent in zip(sources, parents, strict=True)
    ]


def offsets_of(source: Source) -> list[int]:
    """For each run, the step that is 0 on the chosen axis."""
    sources = runs_of(source)
    return fork_steps(sources) if aligned_by(source) == "fork" else [0] * len(sources)


def last_shared(sources: list[Source], offsets: list[int]) -> int:
    """The last step on the chosen axis that all runs have; those that have not begun there are left out."""
    ends = [last_step(run) - offset for run, offset in zip(sources, offsets, strict=True)]
    return min((end for end in ends if end > 0), default=0)


def curves(source: Source, stat: str, at: At) -> list[Curve]:
    """A statistic of every run, its steps counted from the fork if that was chosen. A run with fewer layers shows its last one."""
    lines = []
    for run, offset in zip(runs_of(source), offsets_of(source), strict=True):
        first = 1 + offset if at.span is None else max(1 + offset, math.floor(at.span[0]) - 1 + offset)
        last = None if at.span is None else max(1, math.ceil(at.span[1]) + 1 + offset)
        layer = layer_in(run, at.layer)
        steps, values = run.history(stat, layer, first=first, last=last, bins=at.bins)
        if np.ndim(values) == 2:
            values = of_those_on(run, layer, steps, values)
        lines.append(Curve(run.name, np.asarray(steps) - offset, np.asarray(values), turns_of(run, offset)))
    return lines


def layer_in(source: Source, layer: int) -> int:
    """The layer of another run to draw beside this one: the same, or its last if it has fewer."""
    return min(layer, len(source.description.layers) - 1)


def turns_of(source: Source, offset: int) -> tuple[Any, ...]:
    """A run's turns that charts mark, on the chart's axis."""
    return tuple(c._replace(step=c.step - offset) for c in marked(source) if c.step is not None and c.step > offset)


def over(source: Source, at: At) -> dict[str, Shared]:
    """The axis that all charts share. A cursor is a step of the first run."""
    offsets = offsets_of(source)
    offset, forked = offsets[0], any(offsets)
    cursor = None if at.step is None or at.step < offset else at.step - offset
    runs = list(zip(runs_of(source), offsets, strict=True))
    without = tuple(at for at, (run, begun) in enumerate(runs) if last_step(run) <= begun)
    unforked = tuple(at for at, begun in enumerate(offsets) if forked and not begun)
    return {"over": Shared("fork" if forked else "step", offset, at.span, cursor, without, unforked)}


def shared_stat(source: Source, wanted: str, other: str) -> str:
    """The statistic by which the runs are compared: the wanted one if all have it, else the other, which is less exact."""
    return wanted if all(measured_by(run.description, wanted) for run in runs_of(source)) else other


def read_balance(source: Source, at: At) -> dict[str, Any]:
    """By the smooth load, or, if one of the runs has none, by the selections of all."""
    stat = shared_stat(source, "cv_load", "cv_counts")
    counted = {} if stat == "cv_load" else {"counted": "selections"}
    return {"curves": curves(source, stat, at)} | counted | over(source, at)


def read_balance_difference(source: Source, at: At) -> dict[str, Any]:
    balance = read_balance(source, at._replace(bins=EXACT))
    return balance | differences(balance["curves"])


def read_selections(source: Source, at: At) -> dict[str, Any]:
    return {"curves": curves(source, "selection_share", at)} | over(source, at)


def losses(source: Source, at: At) -> dict[str, Any]:
    """Every run's training loss, in the first one's unit: the task's, or, if one of the runs has it only with its balancing
    losses, the whole of all."""
    loss = source.description.loss
    lines = curves(source, shared_stat(source, "task_loss", "loss"), at)
    return {"curves": [line._replace(values=line.values / loss.nats) for line in lines], "unit": loss.unit}


def read_loss_difference(source: Source, at: At) -> dict[str, Any]:
    """The differences in training loss, marked as not comparable where either run's strategy looks ahead at later tokens."""
    training = losses(source, at._replace(bins=EXACT))
    difference = differences(training["curves"])
    runs = list(zip(runs_of(source), offsets_of(source), strict=True))
    for number, gap in enumerate(difference["gaps"]):
        flags = [comparable_at(run, gap.steps + offset, training=True) for run, offset in (runs[0], runs[number + 1])]
        marked = [flag for flag in flags if flag is not None]
        difference["gaps"][number] = gap._replace(comparable=np.logical_and.reduce(marked) if marked else None)
    return training | difference | over(source, at)


def read_loss(source: Source, at: At) -> dict[str, Any]:
    metric = source.description.loss.metric
    heldout = []
    for run, offset in zip(runs_of(source), offsets_of(source), strict=True):
        done = [(e.step - offset, e.metrics[metric]) for e in run.evals() if metric in e.metrics and e.step > offset]
        steps, values = np.array([s for s, _ in done], np.int64), np.array([v for _, v in done], np.float64)
        heldout.append(Curve(run.name, steps, values, comparable=comparable_at(run, steps + offset)))
    return losses(source, at) | {"heldout": heldout} | over(source, at)
