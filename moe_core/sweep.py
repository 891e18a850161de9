"""A sweep: one training with some knobs at several values and several seeds, as ordinary runs, and the table it ends in.

A sweep is a folder in the runs folder with sweep.json, its plan, written once. Its runs lie beside it and have its name;
how far it got is read from their records, so there is nothing that could disagree with them. Whoever runs a sweep holds
the lock in its folder. A cell is one choice of the swept knobs; it has a run for each seed.
"""

import contextlib
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from moe_core.runs import (
    Run,
    StoreError,
    end_child,
    ending,
    hold_lock,
    is_alive,
    is_running,
    last_words,
    reap,
    runs_folder,
    spawn,
    start,
    stop,
    whole_paths,
)
from moe_core.schema import (
    BALANCE,
    METRICS,
    STAT,
    Config,
    Knobs,
    as_dict,
    check,
    from_dict,
    meta_of,
    parse_setting,
    value_text,
)

MOST = 1000  # runs of one sweep: more is a slip in a list
LOOK = 0.2  # seconds between two looks at the trainers
TELL = 1.0  # seconds between two progress events
TRAINS = ("starting", "training", "paused")
FAILED = ("failed", "other")
Value = float | str
Cell = dict[str, Value]
Tell = Callable[[dict[str, Any]], None]

# Shazeer et al. 2017, appendix A, Table 6: MoE-256, k = 4. (w_importance, w_load): what it measured.
PAPER = {
    (0.0, 0.0): {"perplexity": 39.8, "cv_importance": 3.04, "cv_load": 3.01, "max_over_mean_load": 17.80},
    (0.2, 0.0): {"perplexity": 35.6, "cv_importance": 0.06, "cv_load": 0.17, "max_over_mean_load": 1.47},
    (0.0, 0.2): {"perplexity": 35.7, "cv_importance": 0.22, "cv_load": 0.04, "max_over_mean_load": 1.15},
    (0.1, 0.1): {"perplexity": 35.6, "cv_importance": 0.06, "cv_load": 0.05, "max_over_mean_load": 1.14},
    (0.01, 0.01): {"perplexity": 35.7, "cv_importance": 0.48, "cv_load": 0.11, "max_over_mean_load": 1.37},
    (1.0, 1.0): {"perplexity": 35.7, "cv_importance": 0.03, "cv_load": 0.02, "max_over_mean_load": 1.07},
}
PAPER_EXPERTS, PAPER_K = 256, 4


@dataclass(frozen=True)
class Plan:
    """What a sweep trains: config and knobs that all runs share, the cells' own knobs, and the seeds."""

    config: Config
    knobs: Knobs
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]

    @property
    def swept(self) -> tuple[str, ...]:
        """The knobs that differ between the cells, or were given as lists."""
        return tuple(self.cells[0])


class Sweep(NamedTuple):
    """A plan with a name and a place. runs is the folder that its runs lie in."""

    id: str
    runs: Path
    plan: Plan

    @property
    def folder(self) -> Path:
        return self.runs / self.id


class Job(NamedTuple):
    """One run of a sweep; cell counts from 0."""

    run_id: str
    cell: int
    config: Config
    knobs: Knobs


class Result(NamedTuple):
    """How a run stands. problem says why it does not count; ended holds the numbers of a run that does.

    state: waiting for its turn, a run's own, or "other": there is a run of that name that this sweep neither counts nor
    touches.
    """

    job: Job
    state: str
    step: int
    problem: str = ""
    ended: Mapping[str, Any] | None = None


# What to train


def values_of(name: str, text: str) -> list[Value]:
    """A knob's values from a list with commas; ValueError for one out of range. A free text is one value."""
    meta = meta_of(Knobs, name)
    free = isinstance(getattr(Knobs(), name), str) and not meta.choices
    words = [text] if free else [word.strip() for word in text.split(",")]
    return [parse_setting(Knobs, name, word) for word in words]


def pairs_of(words: Sequence[str]) -> list[Cell]:
    """Cells from W_IMPORTANCE/W_LOAD, each; the word table6 is the paper's six. ValueError for a word that is neither."""
    cells: list[Cell] = []
    for word in " ".join(words).replace(",", " ").split():
        importance, slash, load = word.partition("/")
        if word == "table6":
            cells += [{"w_importance": importance, "w_load": load} for importance, load in PAPER]
        elif slash:
            weights = {"w_importance": importance, "w_load": load}
            cells.append({name: parse_setting(Knobs, name, value) for name, value in weights.items()})
        else:
            raise ValueError(f"a pair is written W_IMPORTANCE/W_LOAD, such as 0.1/0.1, or table6; got {word!r}")
    return cells


def grid(axes: Sequence[Sequence[Cell]]) -> tuple[Cell, ...]:
    """Every combination of one choice from each axis, the last axis quickest; what is named twice is trained once."""
    combined = [
        {name: value for choice in choices for name, value in choice.items()} for choices in itertools.product(*axes)
    ]
    return tuple(cell for i, cell in enumerate(combined) if cell not in combined[:i])


def make_plan(
    config: Config, knobs: Knobs, lists: Mapping[str, Sequence[Value]], pairs: Sequence[Cell] = (), seeds: int = 1
) -> Plan:
    """The plan of a grid: pairs of the two weights, if any, with every combination of the lists. seeds counts from config.seed.

    ValueError, with one line, if a cell cannot be trained, a run would not end, or there are too many.
    """
    if pairs and (twice := [name for name in ("w_importance", "w_load") if name in lists]):
        raise ValueError(f"pairs set both weights, and {twice[0]} is given too; leave one of them out")
    axes = [pairs] if pairs else []
    cells = grid([*axes, *([{name: value} for value in values] for name, values in lists.items())])
    if not config.steps:
        raise ValueError(
            "steps must be 1 or more in a sweep, since each run has to end, got 0; give for example --steps 1000"
        )
    if seeds < 1:
        raise ValueError(f"seeds must be 1 or more, got {seeds}")
    if len(cells) * seeds > MOST:
        raise ValueError(f"{len(cells)} cells with {seeds} seeds are more than {MOST} runs; shorten a list")
    config = whole_paths(config)
    for cell in cells:
        check(config, replace(knobs, **cell))
    parse_setting(Config, "seed", config.seed + seeds - 1)
    return Plan(config, knobs, cells, tuple(range(config.seed, config.seed + seeds)))


def make_sweep(plan: Plan, runs: str | Path | None = None, sweep_id: str | None = None) -> Sweep:
    """The sweep of this plan, written if it is new. Without a name it has one that follows from the plan, so that the same
    command finds the same sweep. StoreError if the name is taken by something else.
    """
    told = {
        "config": as_dict(plan.config),
        "knobs": as_dict(plan.knobs),
        "cells": list(plan.cells),
        "seeds": list(plan.seeds),
    }
    code = hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=4).hexdigest()
    sweep = Sweep(sweep_id or f"sweep-{plan.config.task}-{code}", runs_folder(runs).absolute(), plan)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", sweep.id):
        raise StoreError(f"a sweep's name is letters, digits, dots and dashes, at most 64, got {sweep.id!r}")
    if (sweep.folder / "run.db").exists():
        raise StoreError(f"{sweep.id} is a run in {sweep.runs}; choose another --sweep-id")
    if (sweep.folder / "sweep.json").exists():
        if open_sweep(sweep.id, runs).plan != plan:
            raise StoreError(
                f"sweep {sweep.id} has other settings; choose another --sweep-id, or go on with --resume {sweep.id}"
            )
        return sweep
    sweep.folder.mkdir(parents=True, exist_ok=True)
    beside = sweep.folder / f".sweep.json.{os.getpid()}"
    beside.write_text(json.dumps({"created": time.time(), **told}, indent=1))
    beside.rename(sweep.folder / "sweep.json")
    return sweep


def open_sweep(sweep_id: str, runs: str | Path | None = None) -> Sweep:
    """A sweep by its name or a unique beginning of it. StoreError says which there are."""
    folder, there = runs_folder(runs).absolute(), sweep_ids(runs)
    found = [sweep_id] if sweep_id in there else [name for name in there if name.startswith(sweep_id)]
    if len(found) != 1 or not sweep_id:
        problem = "is the beginning of several sweeps" if found else "is no sweep"
        raise StoreError(f"{sweep_id!r} {problem} in {folder}; there are: {', '.join(there[:8]) or 'none'}")
    try:
        told = json.loads((folder / found[0] / "sweep.json").read_text())
        cells = tuple(
            {name: parse_setting(Knobs, name, value) for name, value in cell.items()} for cell in told["cells"]
        )
        plan = Plan(
            from_dict(Config, told["config"]), from_dict(Knobs, told["knobs"]), cells, tuple(map(int, told["seeds"]))
        )
        if not cells or not plan.seeds:
            raise ValueError("it has no runs")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"sweep {found[0]} cannot be read: {error}") from None
    return Sweep(found[0], folder, plan)


def sweep_ids(runs: str | Path | None = None) -> list[str]:
    """The names of all sweeps, the newest first."""
    folder = runs_folder(runs)
    made = [path for path in folder.glob("*/sweep.json") if path.is_file()] if folder.is_dir() else []
    return [path.parent.name for path in sorted(made, key=lambda path: -path.stat().st_mtime)]


def jobs(sweep: Sweep) -> list[Job]:
    """All runs: every cell with the first seed before any with the second, so that the map is soon whole."""
    plan = sweep.plan
    return [
        Job(f"{sweep.id}-c{i + 1:02d}-s{seed}", i, replace(plan.config, seed=seed), replace(plan.knobs, **cell))
        for seed in plan.seeds
        for i, cell in enumerate(plan.cells)
    ]


# How it stands


def look(sweep: Sweep, job: Job) -> Result:
    """How one run of the sweep stands, from its record."""
    folder = sweep.runs / job.run_id
    if not (folder / "run.db").is_file():
        if not folder.exists():
            return Result(job, "waiting", 0)
        words = last_words(folder)
        failed = words != "it printed nothing" and not is_running(job.run_id, sweep.runs)
        return Result(job, "failed", 0, words) if failed else Result(job, "starting", 0)
    key = (job, folder, (folder / "run.db").stat().st_mtime_ns)
    result = _finished.get(key) or judge(folder, job)
    if result.ended:
        _finished[key] = result
    return result


_finished: dict[tuple[Job, Path, int], Result] = {}  # a run that finished does not change, and there may be many


def judge(folder: Path, job: Job) -> Result:
    """A run by its record: whether it is this sweep's, finished, and nobody turned its knobs meanwhile."""
    try:
        run = Run(folder)
    except StoreError as error:
        return Result(job, "other", 0, str(error))
    try:
        state, step, reason, *_ = run.status()
        if (run.config, run.started_knobs) != (job.config, job.knobs):
            return Result(job, "other", step, "it was made with other settings; remove it and resume")
        if state == "finished" and any(change.step is not None for change in run.knob_changes()):
            return Result(job, "other", step, "its knobs were turned while it trained; remove it and resume")
        if state == "finished":
            return Result(job, state, step, ended=ending(run, state))
        if state == "stopped" and step and not finite(run, step):
            return Result(job, "failed", step, f"its loss or gradient was not finite at step {step}")
        if state in ("stopped", "interrupted"):
            reason = f"{state} at step {step} of {job.config.steps}"
        return Result(job, state, step, reason)
    except StoreError as error:
        return Result(job, "other", 0, str(error))
    finally:
        run.close()


def finite(run: Run, step: int) -> bool:
    return all(math.isfinite(run.history(stat, first=step)[1][-1]) for stat in ("loss", "grad_norm"))


def results(sweep: Sweep) -> list[Result]:
    """How every run stands, in the order of jobs()."""
    return [look(sweep, job) for job in jobs(sweep)]


def state_of(sweep: Sweep, found: Sequence[Result]) -> str:
    """running, finished (every run counts), or incomplete."""
    if is_running(sweep.id, sweep.runs):
        return "running"
    return "finished" if all(result.ended for result in found) else "incomplete"


# The table


def measures(task: str) -> dict[str, str]:
    """What a row says about its cell, held-out metrics first: name and label."""
    held_out = {name: f"{label}, {unit}" if unit else label for name, label, unit, _ in METRICS[task]}
    return held_out | {name: STAT[name].label for name in BALANCE}


def ceilings(num_experts: int, k: int) -> dict[str, float]:
    """The highest that each balance figure can be: k experts have all the load, and one of them all the gate weight."""
    return {
        "cv_importance": math.sqrt(num_experts - 1),
        "cv_load": math.sqrt(num_experts / k - 1),
        "max_over_mean_load": num_experts / k,
    }


def rows(sweep: Sweep, found: Sequence[Result]) -> list[dict[str, Any]]:
    """One row a cell: its knobs; the mean over its finished runs of each measure and, under NAME_spread, their sample
    standard deviation (None of one run); ceilings under NAME_ceiling; the paper's Table 6 under paper_NAME where the
    weights are its; how many runs there are and count; their ids.
    """
    table = []
    for i, cell in enumerate(sweep.plan.cells):
        own = [result for result in found if result.job.cell == i]
        counted = [result.ended for result in own if result.ended]
        knobs = own[0].job.knobs
        row: dict[str, Any] = {**cell, "runs": len(own), "finished": len(counted)}
        for name in measures(sweep.plan.config.task):
            values = [ended["eval"].get(name) if name not in BALANCE else ended.get(name) for ended in counted]
            values = [float(value) for value in values if value is not None]
            row[name] = statistics.fmean(values) if values else None
            row[f"{name}_spread"] = statistics.stdev(values) if len(values) > 1 else None
        row |= {f"{name}_ceiling": value for name, value in ceilings(sweep.plan.config.num_experts, knobs.k).items()}
        row |= {f"paper_{name}": value for name, value in (paper_row(knobs) or {}).items()}
        table.append({**row, "ids": [result.job.run_id for result in own]})
    return table


def figure(value: float) -> str:
    """A measure in a table: three decimals below 10, two above."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}"


def paper_row(knobs: Knobs) -> dict[str, float] | None:
    """What the paper measured with these weights of its two losses, if it did."""
    return PAPER.get((knobs.w_importance, knobs.w_load)) if knobs.strategy == "paper" else None


def name_of(cell: Cell) -> str:
    """A cell in words: "w_importance 0.1, w_load 0.1"."""
    return ", ".join(f"{name} {value_text(value)}" for name, value in cell.items()) or "no knob swept"


# Running it


def run_sweep(
    sweep: Sweep, parallel: int, stopping: Callable[[], bool] = lambda: False, tell: Tell = lambda event: None
) -> str:
    """Train what does not count yet, `parallel` runs at a time; returns finished, failed (some do not count) or stopped.

    A run that still trains, because its sweep was killed, is waited for; a half-done one is started over. One that fails
    is told of and does not stop the others. When stopping() says so, or someone cancels, the trainers are stopped and the
    sweep can be resumed. tell is called with the events that `--json` prints.
    """
    with held(sweep):
        waiting = [result.job for result in results(sweep) if not result.ended and result.state != "other"]
        active: dict[str, Job] = {}
        next_progress = 0.0
        try:
            while (waiting or active) and not stopping() and not (sweep.folder / "cancel").exists():
                while waiting and len(active) < parallel:
                    job = waiting.pop(0)
                    active[job.run_id] = job
                    begin(sweep, job)
                    tell({"event": "run", "run": job.run_id, "state": "started", **cell_of(sweep, job)})
                time.sleep(LOOK)
                for job in [job for job in active.values() if not is_running(job.run_id, sweep.runs)]:
                    del active[job.run_id]
                    result = look(sweep, job)
                    state, problem = ("finished", "") if result.ended else ("failed", result.problem or "it died")
                    tell({"event": "run", "run": job.run_id, "state": state, **cell_of(sweep, job), "problem": problem})
                if time.monotonic() >= next_progress:
                    next_progress = time.monotonic() + TELL
                    found = results(sweep)
                    end_paused(sweep, found)
                    tell({"event": "progress", **progress(found)})
        finally:
            halt(sweep, active)
            reap()
        if waiting or active:
            return "stopped"
        return "finished" if all(result.ended for result in results(sweep)) else "failed"


def detach(sweep: Sweep, parallel: int) -> None:
    """Run the sweep in a process of its own, which outlives this one. Its words go to sweep.log beside sweep.json."""
    words = ["sweep", "--resume", sweep.id, "--runs", str(sweep.runs), "--parallel", str(parallel)]
    spawn(sweep.id, words, sweep.folder / "sweep.log")


def cancel(sweep: Sweep) -> None:
    """Ask whoever runs the sweep to stop its trainers and end. It can be resumed."""
    if is_alive(sweep.folder):
        (sweep.folder / "cancel").touch()
    else:
        end_child(sweep.id)


@contextlib.contextmanager
def held(sweep: Sweep) -> Iterator[None]:
    """The sweep's lock; StoreError if another process runs it."""
    try:
        lock = hold_lock(sweep.folder)
    except StoreError:
        raise StoreError(f"sweep {sweep.id} is run by another process; wait for it, or cancel that one first") from None
    try:
        (sweep.folder / "cancel").unlink(missing_ok=True)
        yield
    finally:
        (sweep.folder / "cancel").unlink(missing_ok=True)
        os.close(lock)


def begin(sweep: Sweep, job: Job) -> None:
    """Start the run's trainer, unless one trains it already. What a stopped or killed one left is removed first."""
    folder = sweep.runs / job.run_id
    if is_running(job.run_id, sweep.runs):
        return
    if folder.exists():
        try:
            lock = hold_lock(folder)  # or a trainer that is just coming up would lose its folder
        except StoreError:
            return
        shutil.rmtree(folder)
        os.close(lock)
    start(job.config, job.knobs, sweep.runs, "sweep", job.run_id)


def end_paused(sweep: Sweep, found: Sequence[Result]) -> None:
    """A trainer pauses by itself when its loss is not finite, and nobody is there to turn a knob: it is asked to stop."""
    for result in found:
        if result.state == "paused" and result.problem:
            with contextlib.suppress(StoreError):  # it has ended meanwhile
                run = Run(sweep.runs / result.job.run_id)
                run.close()  # or its trainer could not seal the file
                run.command("stop", who="sweep")


def halt(sweep: Sweep, active: Mapping[str, Job]) -> None:
    """Stop trainers, all at once, and wait until they have. StoreError for one that cannot be stopped."""
    records = []
    for run_id in active:
        try:
            records.append(Run(sweep.runs / run_id))
        except StoreError:
            end_child(run_id)  # it has no record yet
    if records:
        with ThreadPoolExecutor(len(records)) as pool:
            list(pool.map(stop, records))


def progress(found: Sequence[Result]) -> dict[str, int]:
    """How far it is: runs that count, runs that failed, all runs, and steps done of all steps."""
    done = [result.job.config.steps if result.ended else result.step * (result.state in TRAINS) for result in found]
    return {
        "finished": sum(bool(result.ended) for result in found),
        "failed": sum(result.state in FAILED for result in found),
        "runs": len(found),
        "step": sum(done),
        "steps": sum(result.job.config.steps for result in found),
    }


def cell_of(sweep: Sweep, job: Job) -> dict[str, Any]:
    return {"cell": sweep.plan.cells[job.cell], "seed": job.config.seed}
