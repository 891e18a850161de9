"""Going on with a run that has ended: between the click and the moment at which its new trainer says that it begins.

The trainer loads torch and its data first, and the record says meanwhile how the run ended before. If it cannot go on, it says
why in its log only, and the page shows that.
"""

import time
from pathlib import Path

from moe_core.runs import ENDED, Run, is_running, resume
from moe_core.runs.log import last_problem
from moe_core.runs.ranks import ranks_again
from moe_core.schema import Config, parse_setting

LEAVING = 10.0  # seconds that a trainer may take to end after it said that it has
ENDINGS = (*ENDED, "interrupted")
_asked: dict[Path, float] = {}  # when this dashboard was asked to go on with a run, until that has begun


def go_on(run: Run, steps: int) -> None:
    """Start a trainer that goes on with a run, to so many steps in all; 0: until stopped. On as many ranks as trained it last, if this
    machine has room for them. ValueError says why it cannot."""
    if "resume" not in run.description.obeys:
        raise ValueError(
            f"{run.id} was trained by a program of somebody's own, which has ended; to go on, start that program again"
        )
    run.check_layout()
    run.check_turns()
    last, steps = run.steps()[1], int(parse_setting(Config, "steps", steps))
    if steps and (steps < last or (steps == last and run.state == "finished")):
        raise ValueError(f"it has {last:,} steps; give more than that, or none to train until stopped, got {steps:,}")
    until = time.monotonic() + LEAVING
    # Below torchrun a process is left for a moment after the run was let go.
    while run.state in ENDINGS and is_running(run.id, run.path.parent) and time.monotonic() < until:
        time.sleep(0.05)
    began = time.time()
    resume(run, steps, ranks=ranks_again(run.deals, run.facts))
    _asked[run.path.absolute()] = began


def on(folder: Path, state: str) -> bool:
    """Whether a run that was in this state a moment ago is about to go on: its new trainer is starting."""
    if folder.absolute() in _asked and state not in ENDINGS:
        del _asked[folder.absolute()]
    return folder.absolute() in _asked and is_running(folder.name, folder.parent)


def problem(folder: Path, state: str) -> str:
    """Why a run could not go on; "" if it could, or was not asked to."""
    began = _asked.get(folder.absolute())
    return "" if began is None or on(folder, state) else last_problem(folder, began)
