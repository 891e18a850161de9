"""What is exported: a run, a run with others laid over it and with what was chosen in it, or a sweep."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from moe_core.figures.compare import LETTERS
from moe_core.figures.read_sweep import Found
from moe_core.figures.reading import Beside
from moe_core.runs import Run, StoreError, knobs_after, open_run, runs_folder
from moe_core.sweep import open_sweep, results, rows

WHOLE = (
    "expert",
    "tokens",
    "k",
    "experts",
    "devices",
)  # what is chosen as whole numbers from 1 on: see figures/reading.py
ALIGNED = ("step", "fork")


class Still:
    """A run as of when it was opened. It may train meanwhile; all that is read of it here ends at the same step."""

    def __init__(self, run: Run) -> None:
        self.run, self.last = run, run.steps()[1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.run, name)

    def _until(self, step: int | None) -> int:
        return self.last if step is None else min(step, self.last)

    def steps(self) -> tuple[int, int]:
        return self.run.steps()[0], self.last

    def history(self, stat: str, layer: int = 0, first: int | None = None, last: int | None = None, bins: int | None = None) -> Any:  # fmt: skip
        return self.run.history(stat, layer, first, self._until(last), bins)

    def evals(self, after: int = 0) -> list[Any]:
        return [one for one in self.run.evals(after) if one.step <= self.last]

    def knob_changes(self) -> list[Any]:
        return [change for change in self.run.knob_changes() if change.step is None or change.step <= self.last]

    @property
    def knobs(self) -> Any:
        return knobs_after(self.run.started_knobs, self.knob_changes())

    def snapshots(self, kind: str = "probe") -> Any:
        steps = self.run.snapshots(kind)
        return steps[steps <= self.last]

    def snapshot(self, step: int | None = None, kind: str = "probe") -> Any:
        return self.run.snapshot(self._until(step), kind)


class Source(NamedTuple):
    """Names what is exported, by plain values. run: an id, a unique beginning, or a path; others: the runs laid over it;
    options: what is chosen, by name; sweep: the id of a sweep, instead of all that."""

    run: str = ""
    others: tuple[str, ...] = ()
    options: tuple[tuple[str, str], ...] = ()
    sweep: str = ""

    @contextlib.contextmanager
    def open(self, runs: str | Path | None = None) -> Iterator[Any]:
        """What the figures are read from. ValueError (a StoreError is one) for what there is not or does not fit."""
        if self.sweep:
            sweep = open_sweep(self.sweep, runs)
            found = results(sweep)
            plan = sweep.plan
            yield Found(sweep.id, plan.config, plan.swept, plan.cells, rows(sweep, found), found)
            return
        with contextlib.ExitStack() as stack:
            first, *others = (
                Still(stack.enter_context(contextlib.closing(open_run(name, runs))))
                for name in (self.run, *self.others)
            )
            chosen = checked(dict(self.options), first.config.num_experts)
            if len(others) >= len(LETTERS):
                raise ValueError(f"at most {len(LETTERS)} runs can be compared, got {1 + len(others)}; leave some out")
            for i, other in enumerate(others):
                if other.config.task != first.config.task:
                    raise ValueError(
                        f"runs of one task can be compared: {first.id} is {first.config.task}, {other.id} is {other.config.task}"
                    )
                if other.id in [first.id, *(one.id for one in others[:i])]:
                    raise ValueError(f"{other.id} is named twice; compare different runs")
            yield Beside(first, chosen, tuple(others)) if others or chosen else first


def checked(given: Mapping[str, str], experts: int) -> dict[str, Any]:
    """The options in their types. ValueError for an unknown name or a value out of range."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name == "align":
            if value not in ALIGNED:
                raise ValueError(f"align is step or fork, got {value!r}")
            found[name] = value
        elif name not in WHOLE:
            raise ValueError(f"{name!r} cannot be chosen; there are: {', '.join(WHOLE)}")
        elif not (value.isascii() and value.isdigit() and 1 <= int(value) <= (experts if name == "expert" else 2**40)):
            raise ValueError(
                f"{name} is a whole number from 1{f' to {experts}' if name == 'expert' else ' on'}, got {value!r}"
            )
        else:
            found[name] = int(value)
    return found


def is_sweep(name: str, runs: str | Path | None = None) -> bool:
    """Whether there is a sweep of this very name."""
    return "/" not in name and (runs_folder(runs) / name / "sweep.json").is_file()


def named(name: str, runs: str | Path | None = None, **given: Any) -> Source:
    """The source that a person's RUN means: a sweep of that name, a run, or a sweep whose name begins so."""
    if is_sweep(name, runs):
        return Source(sweep=name)
    try:
        open_run(name, runs).close()
    except StoreError:
        with contextlib.suppress(StoreError):
            return Source(sweep=open_sweep(name, runs).id)
        raise
    return Source(name, **given)
