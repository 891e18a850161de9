"""What a sweep will take, before it starts: runs, time and disk, from the estimates of its runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from moe_core.runs.estimate import Speed, estimate, shape_of, speeds
from moe_core.runs.room import bytes_text
from moe_core.schema import duration
from moe_core.sweep.plan import Plan, Sweep, jobs
from moe_core.sweep.standing import FAILED, TRAINS, Result

BEGIN = 3.0  # seconds in which a trainer loads torch and its data, and ends


class Cost(NamedTuple):
    """cells: rows of the table; runs: to be trained; seconds: of all, None where nothing is known of a run's speed; disk: bytes."""

    cells: int
    runs: int
    seconds: float | None
    disk: float

    def words(self, parallel: int) -> str:
        """In a line: "12 runs (6 cells), 2 at a time: about 4 min and 20 MB of disk"."""
        many = f"{self.runs} run{'s' * (self.runs != 1)} ({self.cells} cell{'s' * (self.cells != 1)}), {parallel} at a time"
        time = (
            f"about {duration(self.seconds)}"
            if self.seconds is not None
            else "a time that is not known before one has run"
        )
        return f"{many}: {time} and {bytes_text(self.disk)} of disk"


def cost(plan: Plan, parallel: int, recorded: Sequence[Speed]) -> Cost:
    """What the plan's runs will take, `parallel` at a time. recorded: as speeds() gives them."""
    each, disk = list[float | None](), 0.0
    planned = jobs(Sweep("", Path(), plan))
    for job in planned:
        found = estimate(job.config, job.knobs, *shape_of(job.config), recorded)
        each.append(found.seconds and BEGIN + job.config.steps * found.seconds)
        disk += found.disk(job.config.steps)
    known = [seconds for seconds in each if seconds is not None]
    # No sooner than the longest run, and no sooner than the places at work allow.
    whole = max(sum(known) / parallel, max(known)) if len(known) == len(each) else None
    return Cost(len(plan.cells), len(planned), whole, disk)


def cost_here(plan: Plan, parallel: int, runs: str | Path | None = None) -> Cost:
    """The cost as this machine's runs in a folder let expect it."""
    return cost(plan, parallel, speeds(runs))


def left_of(outcomes: Sequence[Result], recorded: Sequence[Speed]) -> str:
    """The time left of a sweep that runs, for the end of a line: ", about 4 min left"; "" where it is not known."""
    seconds = 0.0
    for result in outcomes:
        if result.ended or result.state in FAILED:
            continue
        found = estimate(result.job.config, result.job.knobs, *shape_of(result.job.config), recorded).seconds
        if found is None:
            return ""
        begun = result.step if result.state in TRAINS else 0
        seconds += (result.state == "waiting") * BEGIN + (result.job.config.steps - begun) * found
    together = max(1, sum(result.state in TRAINS for result in outcomes))
    return f", about {duration(seconds / together)} left" if seconds else ""
