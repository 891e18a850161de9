"""fork, replay and train --resume: the commands that train on from a record, or train it again."""

import argparse
import json
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_core.commands import terminal
from moe_core.commands.common import add, moved, plain, report, take_places, whole_flag, word_flag
from moe_core.commands.ranks import alone, below_torchrun, on_ranks, take_ranks
from moe_core.commands.tell import tell_end, telling
from moe_core.schema import Config, parse_setting

if TYPE_CHECKING:  # it needs torch
    from moe_core.parallel.session import Joined


def declare(commands: Any) -> None:
    fork = add(
        commands, "fork", fork_command, "go on from a step of a run with some knobs turned, as a new run", extra="train"
    )
    fork.add_argument(
        "--at", required=True, type=whole_flag, metavar="STEP", help="the last step that both have in common"
    )
    fork.add_argument(
        "--run-id", type=word_flag, metavar="ID", help="the name of the new run's folder; made up if not given"
    )
    fork.add_argument(
        "--steps", metavar="N", help="steps in all; 0 until stopped (default: the parent's, if above STEP)"
    )
    fork.add_argument("--detach", action="store_true", help="train in the background and return at once")
    take_places(fork)
    take_ranks(fork)
    take_changes(fork)
    replay = add(
        commands,
        "replay",
        replay_command,
        "train a run again and say whether every loss and count is the same",
        extra="train",
    )
    take_places(replay)


def take_changes(fork: argparse.ArgumentParser) -> None:
    """Accept knob=value anywhere: argparse takes an optional list only right behind RUN, and not behind --at STEP."""
    fork.usage = "%(prog)s RUN --at STEP [knob=value ...] [--run-id ID] [--steps N] [--detach] [--expert-parallel N] [--text PATH ...] [--data FILE] [--runs DIR] [--json]"
    parse = fork.parse_known_args

    def parse_others(words: list[str], namespace: Any = None) -> Any:
        changes = [word for word in words if re.match(r"[^-/.=][^/.=]*=", word)]  # but not --flag=value or a path
        known, unknown = parse([word for word in words if word not in changes], namespace)
        known.changes = changes
        return known, unknown

    fork.parse_known_args = parse_others  # type: ignore[method-assign, assignment]


def fork_command(arguments: argparse.Namespace) -> int:
    if not below_torchrun():
        alone(arguments)
        return fork_here(arguments)
    if arguments.detach:
        raise ValueError("below torchrun a fork trains in the foreground; leave out --detach")
    return on_ranks(arguments, fork_here, go_on)


def fork_here(arguments: argparse.Namespace, joined: "Joined | None" = None) -> int:
    """In the foreground, as `train`: a person who types a command sees what it does. The page's button detaches."""
    from moe_core.runs import changes_of, checked_id, fork, new_id, open_run, runs_folder
    from moe_core.runs.branch import branch_off, check_branch
    from moe_core.runs.ranks import RankCounts, check_shares, rows_of

    parent = open_run(arguments.run, arguments.runs)
    changes = changes_of(arguments.changes)
    beside = runs_folder(arguments.runs) if arguments.runs else parent.path.parent
    run_id = checked_id(arguments.run_id) if arguments.run_id else new_id(beside, parent.config.task)
    check_branch(parent, arguments.at, changes, arguments.steps)
    if joined:
        check_shares(
            RankCounts(joined.ranks.size, joined.ranks.expert), parent.config.num_experts, rows_of(parent.config)
        )
    from moe_core.training.recorded import load_recorded

    load_recorded(parent, places := moved(arguments))
    if arguments.detach:
        fork(parent, arguments.at, changes, beside, arguments.steps, run_id, moved=places)
        event = {"event": "fork", "run": run_id, "parent": parent.id, "at": arguments.at}
        report(arguments, event, f"{run_id} trains on from step {arguments.at} of {parent.id}")
        return 0
    facts = joined.facts if joined else {}
    lock = branch_off(parent, arguments.at, changes, beside / run_id, arguments.steps, facts=facts)
    parent.close()
    return go_on(arguments, beside / run_id, lock, joined=joined)


def resume_command(arguments: argparse.Namespace, given: list[str], joined: "Joined | None" = None) -> int:
    """train --resume RUN. given: the settings' flags that were set; joined: as go_on() has it."""
    from moe_core.runs import open_run
    from moe_core.runs.locks import fetch

    if refused := [name for name in given if name not in ("steps", "text", "data")]:
        names = ", ".join("--" + name.replace("_", "-") for name in refused)
        raise ValueError(
            f"--resume takes --steps, and --text or --data for where the data lie now; leave out {names}: settings stay, and `set` turns knobs"
        )
    folder = open_run(arguments.resume, arguments.runs).path
    mailed = joined and arguments.lock is not None
    lock = fetch(arguments.lock) if mailed else arguments.lock
    return go_on(arguments, folder, lock, arguments.steps, joined)


def go_on(
    arguments: argparse.Namespace,
    folder: Path,
    lock: int | None,
    steps: str | None = None,
    joined: "Joined | None" = None,
) -> int:
    """Train the recorded run further, in this process. joined: the ranks that train it together, if there are several."""
    from moe_core.runs import Run
    from moe_core.training.again import resume

    run = Run(folder)
    goal = None if steps is None else parse_setting(Config, "steps", steps)
    with telling(arguments, run.config) as teller:

        def tell(event: dict[str, Any]) -> None:
            if event["event"] == "start":
                teller.config = Run(folder).config  # with the new number of steps
            teller.tell(event)

        who = getattr(arguments, "who", "command line")
        folder, state = resume(run, goal, tell, who, lock, moved(arguments), joined)
    return tell_end(teller, folder, state)


def replay_command(arguments: argparse.Namespace) -> int:
    """0 if everything is the same, 1 with the first difference if not."""
    from moe_core.runs import open_run
    from moe_core.runs.compare import compared, left_out
    from moe_core.training.again import replay

    run = open_run(arguments.run, arguments.runs)
    teller = Progress(arguments.json)
    outcome = replay(run, teller.tell, moved(arguments))
    same, names = outcome.difference is None, list(dict.fromkeys(column.stat for column in compared(run)))
    if arguments.json:
        first = outcome.difference and outcome.difference._asdict()
        event = {"event": "end", "run": run.id, "same": same, "step": outcome.step, "difference": first}
        event |= {
            "recorded": outcome.recorded,
            "again": outcome.again,
            "compared": names,
            "not_compared": left_out(run),
        }
        print(json.dumps(event))
        return 0 if same else 1
    teller.end()
    if outcome.difference is not None:
        print(plain(f"{run.id} does not train the same: {outcome.difference}"))
        return 1
    print(plain(f"{run.id}: steps 1 to {outcome.step} are the same, bit for bit: {', '.join(names)}"))
    print(f"not compared, since they depend on the clock: {', '.join(left_out(run))}")
    print(f"SHA-256 of losses and counts: {outcome.recorded}")
    return 0


class Progress:
    """A bar on a terminal, nothing elsewhere; JSON lines when asked for."""

    def __init__(self, as_json: bool):
        self.as_json, self.live, self.began = as_json, terminal.live(as_json), time.monotonic()

    def tell(self, event: dict[str, Any]) -> None:
        if self.as_json:
            print(json.dumps(event), flush=True)
        elif event["event"] == "note":
            print(plain(event["note"]), file=sys.stderr)
        elif self.live and event["event"] == "replay":
            pace = event["step"] / max(time.monotonic() - self.began, 1e-9)
            bar = terminal.bar(event["step"], event["of"])
            terminal.update(f"step {event['step']}/{event['of']} {bar}  {pace:.0f} steps/s")

    def end(self) -> None:
        if self.live:
            terminal.update("")
