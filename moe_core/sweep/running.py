"""Running a sweep: its trainers side by side as places are free, stopped together, and started over where they were cut short.

Whoever runs a sweep holds the lock in its folder.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from moe_core.runs import Run, StoreError, end_child, hold_lock, is_alive, is_running, reap, spawn, start, stop
from moe_core.sweep.plan import Job, Sweep
from moe_core.sweep.standing import Result, progress, result_of, results

LOOK = 0.2  # seconds between two checks of the trainers
TELL = 1.0  # seconds between two progress events
Tell = Callable[[dict[str, Any]], None]


def run_sweep(
    sweep: Sweep, parallel: int, stopping: Callable[[], bool] = lambda: False, tell: Tell = lambda event: None
) -> str:
    """Train what does not count yet, `parallel` runs at a time; returns finished, failed (some do not count) or stopped.

    A run that still trains, because its sweep was killed, is waited for; a half-done one is started over. A run that
    fails is reported and does not stop the others. When stopping() says so, or someone cancels, the trainers are stopped and the
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
                    result = result_of(sweep, job)
                    state, problem = ("finished", "") if result.ended else ("failed", result.problem or "it died")
                    tell({"event": "run", "run": job.run_id, "state": state, **cell_of(sweep, job), "problem": problem})
                if time.monotonic() >= next_progress:
                    next_progress = time.monotonic() + TELL
                    outcomes = results(sweep)
                    end_paused(sweep, outcomes)
                    tell({"event": "progress", **progress(outcomes)})
        finally:
            halt(sweep, active)
            reap()
        if waiting or active:
            return "stopped"
        return "finished" if all(result.ended for result in results(sweep)) else "failed"


def detach(sweep: Sweep, parallel: int) -> None:
    """Run the sweep in a process of its own, which outlives this one. What it prints goes to sweep.log beside sweep.json."""
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


def end_paused(sweep: Sweep, outcomes: Sequence[Result]) -> None:
    """A trainer pauses by itself when its loss is not finite, and nobody is there to turn a knob: it is asked to stop."""
    for result in outcomes:
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


def cell_of(sweep: Sweep, job: Job) -> dict[str, Any]:
    return {"cell": sweep.plan.cells[job.cell], "seed": job.config.seed}
