"""How far a sweep is. Only the records of its runs say so, and nothing is kept beside them that could disagree."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from moe_core.runs import NO_WORDS, KnobChange, Run, StoreError, ending, is_running, last_words
from moe_core.schema import AUTOBALANCE
from moe_core.sweep.plan import Job, Sweep, jobs

TRAINS = ("starting", "training", "paused")
FAILED = ("failed", "other")


class Result(NamedTuple):
    """The state of one run of a sweep. problem says why it does not count; ended holds the numbers of a run that does.

    state: waiting for its turn, a run's own, or "other": there is a run of that name that this sweep neither counts nor
    touches.
    """

    job: Job
    state: str
    step: int
    problem: str = ""
    ended: Mapping[str, Any] | None = None


def result_of(sweep: Sweep, job: Job) -> Result:
    """The state of one run of the sweep, from its record."""
    folder = sweep.runs / job.run_id
    if not (folder / "run.db").is_file():
        if not folder.exists():
            return Result(job, "waiting", 0)
        words = last_words(folder)
        failed = words != NO_WORDS and not is_running(job.run_id, sweep.runs)
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
        return Result(job, "other", 0, f"{error}; remove its folder and go on")
    try:
        state, step, reason, *_ = run.status()
        if (run.config, run.started_knobs) != (job.config, job.knobs):
            return Result(job, "other", step, "it was made with other settings; remove its folder and go on")
        if state == "finished" and any(turned(change) for change in run.knob_changes()):
            return Result(job, "other", step, "its knobs were turned while it trained; remove its folder and go on")
        if state == "finished":
            ended = ending(run, state)
            if run.look_over():
                return Result(job, "other", step, f"{run.damage[0]}; remove its folder and go on")
            return Result(job, state, step, ended=ended)
        if state == "stopped" and step and not finite(run, step):
            return Result(job, "failed", step, f"its loss or gradient was not finite at step {step}")
        if state in ("stopped", "interrupted"):
            reason = f"{state} at step {step} of {job.config.steps}"
        return Result(job, state, step, reason)
    except StoreError as error:
        return Result(job, "other", 0, f"{error}; remove its folder and go on")
    finally:
        run.close()


def turned(change: KnobChange) -> bool:
    """Whether somebody turned a knob while the run trained. What the knob autobalance turns belongs to the cell."""
    return change.step is not None and change.who != AUTOBALANCE


def finite(run: Run, step: int) -> bool:
    return all(math.isfinite(run.history(stat, first=step)[1][-1]) for stat in ("loss", "grad_norm"))


def results(sweep: Sweep) -> list[Result]:
    """The state of every run, in the order of jobs()."""
    return [result_of(sweep, job) for job in jobs(sweep)]


def state_of(sweep: Sweep, outcomes: Sequence[Result]) -> str:
    """running, finished (every run counts), or incomplete."""
    if is_running(sweep.id, sweep.runs):
        return "running"
    return "finished" if all(result.ended for result in outcomes) else "incomplete"


def progress(outcomes: Sequence[Result]) -> dict[str, int]:
    """How far it is: runs that count, runs that failed, all runs, and steps done of all steps."""
    done = [result.job.config.steps if result.ended else result.step * (result.state in TRAINS) for result in outcomes]
    return {
        "finished": sum(bool(result.ended) for result in outcomes),
        "failed": sum(result.state in FAILED for result in outcomes),
        "runs": len(outcomes),
        "step": sum(done),
        "steps": sum(result.job.config.steps for result in outcomes),
    }
