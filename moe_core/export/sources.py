"""What is exported: a run, a run with others laid over it and with what was chosen in it, or a sweep."""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moe_core.figures.called import LETTERS
from moe_core.figures.palette import PINNED
from moe_core.figures.read_sweep import SweepResults
from moe_core.runs import Eval, KnobChange, Run, StoreError, knobs_after, open_run, runs_folder
from moe_core.runs.source import Beside, Snapshot
from moe_core.schema import Config, Knobs, KnobValues, describe
from moe_core.sweep import open_sweep, results, rows

# The options that are whole numbers from 1 on; figures/reading.py reads them.
WHOLE = ("expert", "tokens", "k", "experts", "devices")
ALIGNED = ("step", "fork")


class Still(Beside):
    """A run as it was when it was opened: it may go on training, but everything read here ends at the same step.

    options: what was chosen on a page or by --choose, by name; others: the runs to compare it with.
    """

    def __init__(
        self, run: Run, options: Mapping[str, Any] = MappingProxyType({}), others: Sequence["Still"] = ()
    ) -> None:
        super().__init__(run, options, others)
        self.record, self.last = run, run.readable()

    @property
    def facts(self) -> Mapping[str, Any]:
        return self.record.facts

    @property
    def config(self) -> Config:
        return self.record.config

    @property
    def trainable(self) -> bool:
        return self.record.trainable

    @property
    def state(self) -> str:
        return self.record.state

    @property
    def damage(self) -> list[str]:
        return self.record.damage

    def look_over(self) -> list[str]:
        return self.record.look_over()

    def check_turns(self) -> None:
        self.record.check_turns()

    def _until(self, step: int | None) -> int:
        return self.last if step is None else min(step, self.last)

    def steps(self) -> tuple[int, int]:
        return self.record.steps()[0], self.last

    def history(
        self, stat: str, layer: int = 0, first: int | None = None, last: int | None = None, bins: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[Any]]:
        return self.record.history(stat, layer, first, self._until(last), bins, gaps=True)

    def evals(self, after: int = 0) -> list[Eval]:
        return [one for one in self.record.evals(after) if one.step <= self.last]

    def knob_changes(self) -> list[KnobChange]:
        return [change for change in self.record.knob_changes() if change.step is None or change.step <= self.last]

    @property
    def knobs(self) -> KnobValues:
        return knobs_after(self.record.started_knobs, self.knob_changes())

    def snapshots(self, kind: str = "probe") -> NDArray[np.int64]:
        steps = self.record.snapshots(kind)
        return steps[steps <= self.last]

    def snapshot(self, step: int | None = None, kind: str = "probe") -> Snapshot | None:
        return self.record.snapshot(self._until(step), kind)


class Named(NamedTuple):
    """What is to be exported, in plain values. run: an id, a unique beginning, or a path; others: the runs to compare it with;
    options: what is chosen, by name; sweep: the id of a sweep, in which case the other fields are empty."""

    run: str = ""
    others: tuple[str, ...] = ()
    options: tuple[tuple[str, str], ...] = ()
    sweep: str = ""

    @contextlib.contextmanager
    def open(self, runs: str | Path | None = None) -> Iterator[Still | SweepResults]:
        """Open the source of the figures. ValueError (StoreError is one) for a run or sweep that is not there, or that cannot be
        compared or opened, and for an option that is not valid."""
        if self.sweep:
            sweep = open_sweep(self.sweep, runs)
            outcomes = results(sweep)
            plan = sweep.plan
            yield SweepResults(
                sweep.id, describe(plan.config, Knobs()), plan.swept, plan.cells, rows(sweep, outcomes), outcomes
            )
            return
        with contextlib.ExitStack() as stack:
            first, *rest = (
                stack.enter_context(contextlib.closing(open_run(name, runs))) for name in (self.run, *self.others)
            )
            others = [Still(run) for run in rest]
            chosen = checked(dict(self.options), max(first.description.experts))
            if len(others) >= len(LETTERS):
                raise ValueError(f"at most {len(LETTERS)} runs can be compared, got {1 + len(others)}; leave some out")
            for i, other in enumerate(others):
                tasks = first.description.task, other.description.task
                if tasks[0] != tasks[1]:
                    raise ValueError(
                        f"only runs of one task can be compared: {first.id} is {tasks[0]}, {other.id} is {tasks[1]}; leave it out"
                    )
                if other.id in [first.id, *(one.id for one in others[:i])]:
                    raise ValueError(f"{other.id} is named twice; compare different runs")
            yield Still(first, chosen, others)


def checked(given: Mapping[str, str], experts: int) -> dict[str, Any]:
    """The options in their types. ValueError for an unknown name or a value out of range."""
    options: dict[str, Any] = {}
    for name, value in given.items():
        if name == "align":
            if value not in ALIGNED:
                raise ValueError(f"align must be step or fork, got {value!r}")
            options[name] = value
        elif name == "pinned":
            if not re.fullmatch(PINNED, value):
                raise ValueError(
                    f"pinned must be numbers of experts with commas between them, at most 8, got {value!r}"
                )
            if max(map(int, value.split(","))) > experts:
                raise ValueError(f"pinned must be numbers from 1 to {experts}, got {value!r}")
            options[name] = value
        elif name not in WHOLE:
            raise ValueError(f"{name!r} cannot be chosen; these can: {', '.join(('align', 'pinned', *WHOLE))}")
        elif not (value.isascii() and value.isdigit() and 1 <= int(value) <= (experts if name == "expert" else 2**40)):
            raise ValueError(
                f"{name} must be a whole number from 1{f' to {experts}' if name == 'expert' else ' on'}, got {value!r}"
            )
        else:
            options[name] = int(value)
    return options


def is_sweep(name: str, runs: str | Path | None = None) -> bool:
    """Whether there is a sweep with exactly this name."""
    return "/" not in name and (runs_folder(runs) / name / "sweep.json").is_file()


def named(name: str, runs: str | Path | None = None, **given: Any) -> Named:
    """The source that the argument RUN of a command names: a sweep of that name, else a run, else a sweep whose name begins so."""
    if is_sweep(name, runs):
        return Named(sweep=name)
    try:
        open_run(name, runs).close()
    except StoreError:
        with contextlib.suppress(StoreError):
            return Named(sweep=open_sweep(name, runs).id)
        raise
    return Named(name, **given)
