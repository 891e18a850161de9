"""train below torchrun: this process is one of several ranks."""

import argparse
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from moe_core.commands.common import real_flag, whole_flag
from moe_core.commands.terminal import complain
from moe_core.parallel.launch import launch_name
from moe_core.parallel.parent import store_address, torchrun_has_ended, watch_parent
from moe_core.runs import Run, StoreError, list_runs, open_run, runs_folder

if TYPE_CHECKING:  # it needs torch
    from moe_core.parallel.session import Joined


def below_torchrun() -> bool:
    """Whether torchrun started this process. One rank trains as each of several does, and exchanges rows with itself: so its time can
    be compared with theirs."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def take_ranks(command: argparse.ArgumentParser) -> None:
    """Flags of a command that several ranks may carry out."""
    command.add_argument(
        "--expert-parallel",
        type=whole_flag,
        metavar="N",
        default=1,
        help="below torchrun: deal the experts over N of its ranks; each group of N has them all (default 1)",
    )
    # Seconds to wait for a rank: PATIENCE of parallel/ranks.py, which needs torch.
    command.add_argument("--patience", type=patience_flag, default=60.0, help=argparse.SUPPRESS)


def patience_flag(text: str) -> float:
    """Seconds. ArgumentTypeError for none, or more than a day."""
    if not 0 < (seconds := real_flag(text)) <= 86400:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 86400 seconds, got {text}")
    return seconds


def alone(arguments: argparse.Namespace) -> None:
    """ValueError if this one process was asked to be several."""
    if arguments.expert_parallel != 1:
        ranks = max(2, arguments.expert_parallel)
        raise ValueError(
            f"--expert-parallel {arguments.expert_parallel} needs several processes; start them with "
            f"torchrun --standalone --nproc-per-node {ranks} -m moe_core {arguments.name} …"
        )


def on_ranks(
    arguments: argparse.Namespace, train: Callable[[argparse.Namespace, "Joined"], int], go_on: Callable[..., int]
) -> int:
    """Rank 0 leads: it calls train(), or go_on() if torchrun has started the ranks again. The others follow and print nothing.
    Returns the exit status."""
    watch_parent(os.getppid())
    if torchrun_has_ended():  # before it was asked for
        return complain(f"torchrun's store at {store_address()} is gone; start again")
    # Loading torch takes a second or more.
    from moe_core.parallel.alive import RankLost
    from moe_core.parallel.session import follow_on, joined, lead

    try:
        with joined(arguments.expert_parallel, wanted_device(arguments), arguments.patience) as here:
            if here.ranks.rank:
                return follow_on(here)

            def work() -> int:
                folder = begun_before(arguments)
                return go_on(arguments, folder, None, joined=here) if folder else train(arguments, here)

            return int(lead(here, work))
    except RankLost as error:  # at the start: later the record has it
        return complain(error)
    except ValueError:
        if os.environ.get("RANK") == "0":
            raise
        return 1


def wanted_device(arguments: argparse.Namespace) -> str:
    """The device that rank 0 asks for, so that all have one of its kind: that of the run that it goes on with or forks, if there is
    one."""
    recorded = getattr(arguments, "resume", None) or getattr(arguments, "run", None)
    if os.environ.get("RANK") == "0":  # only this rank must see the runs
        with contextlib.suppress(StoreError):  # once the ranks have joined, whoever opens it says what is wrong
            if folder := open_run(recorded, arguments.runs).path if recorded else begun_before(arguments):
                run = Run(folder)
                device = str(run.facts.get("device", run.config.device))
                run.close()
                return device.partition(":")[0]  # without the number: each rank has one of its own
    return getattr(arguments, "device", None) or "auto"


def begun_before(arguments: argparse.Namespace) -> Path | None:
    """The run that this command began before torchrun started its ranks again; None if they are started for the first time, or
    before there was one."""
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0" or getattr(arguments, "resume", None):
        return None
    runs, launch = folder_of(arguments), launch_name()
    for id in [arguments.run_id] if arguments.run_id else [listed.id for listed in list_runs(runs)]:
        with contextlib.suppress(StoreError):
            run = Run(runs / id)
            began = run.facts.get("launch")
            run.close()
            if began == launch:
                return runs / id
    return None


def folder_of(arguments: argparse.Namespace) -> Path:
    """The folder of the runs that this command begins: a fork lies beside its parent."""
    parent = getattr(arguments, "run", None)
    if parent and not arguments.runs:
        return open_run(parent).path.parent
    return runs_folder(arguments.runs)
