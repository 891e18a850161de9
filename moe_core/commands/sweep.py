"""sweep: a grid of knobs as ordinary runs, side by side, ending in one table with the paper's beside it."""

import argparse
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from typing import Any

from moe_core.commands import terminal
from moe_core.commands.common import add, csv_file, plain, word_flag
from moe_core.commands.sweep_table import as_text, write_csv
from moe_core.commands.tell import Printer
from moe_core.commands.train import add_settings
from moe_core.schema import TASKS, Config, Knobs, left_text, parse_setting, whole


def declare(commands: Any) -> None:
    sweep = add(
        commands,
        "sweep",
        sweep_command,
        "train a grid: any knob or setting a list with commas",
        run=False,
        extra="train",
    )
    sweep.add_argument(
        "--pairs", nargs="+", action="extend", metavar="W/W", help="w_importance/w_load, each; table6: the paper's six"
    )
    sweep.add_argument("--seeds", metavar="N", help="runs of each cell, with seeds from --seed on (default 1)")
    sweep.add_argument("--parallel", metavar="N", help="runs at a time (default: one a core)")
    sweep.add_argument(
        "--sweep-id",
        type=word_flag,
        metavar="ID",
        help="the sweep's name; one that follows from its settings if not given",
    )
    sweep.add_argument("--resume", type=word_flag, metavar="ID", help="go on with this sweep; so does the same command")
    sweep.add_argument("--csv", type=word_flag, metavar="FILE", help="write the table there too")
    for settings in (Config, Knobs):
        add_settings(sweep, settings)


def sweep_command(arguments: argparse.Namespace) -> int:
    from moe_core.runs import cores
    from moe_core.sweep import cost_here, make_sweep, open_sweep, results, rows, run_sweep

    parallel, taken = how_many(arguments.parallel, "parallel", cores()), ()
    out = csv_file("--csv", arguments.csv)
    if arguments.resume is not None:
        nothing_else(arguments)
        sweep = open_sweep(arguments.resume, arguments.runs)
    else:
        asked = plan_of(arguments)
        taken = usable(asked.config)
        sweep = make_sweep(asked, arguments.runs, arguments.sweep_id)
    teller, plan = Teller(arguments.json), sweep.plan
    if taken:
        teller.tell({"event": "data", "taken": list(taken)})
    found = cost_here(plan, parallel, arguments.runs)
    count = {"cells": found.cells, "runs": found.runs, "parallel": parallel}
    takes = {
        "seconds": found.seconds and round(found.seconds),
        "bytes": round(found.disk),
        "takes": found.words(parallel),
    }
    begun = {"event": "start", "sweep": sweep.id, "path": str(sweep.folder), **count, "not_read": plan.unread}
    teller.tell(begun | takes)
    with stopped_by_signals() as stopping:
        state = run_sweep(sweep, parallel, stopping, teller.tell)
    outcomes = results(sweep)
    table = rows(sweep, outcomes)
    problems = {result.job.run_id: result.problem for result in outcomes if result.problem}
    teller.tell({"event": "end", "state": state, "sweep": sweep.id, "problems": problems, "rows": table})
    if not arguments.json:
        print(plain(as_text(plan, table), keep="\n"))
    if out:
        write_csv(out, table)
    return 0 if state == "finished" else 1


def plan_of(arguments: argparse.Namespace) -> Any:
    """The plan that the flags describe. ValueError, before anything is written, if it cannot be trained."""
    from moe_core.sweep import SHARED, make_plan, pairs_of, values_of

    names = [f.name for settings in (Config, Knobs) for f in fields(settings)]
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    shared = {name: parse_setting(Config, name, given.pop(name)) for name in SHARED if name in given}
    # Small models run fastest on one thread each, and the cores are for the runs beside.
    config = Config.for_task(shared.pop("task", TASKS[0]), **{"threads": 1} | shared)
    lists = {name: values_of(name, text) for name, text in given.items()}
    return make_plan(config, Knobs(), lists, pairs_of(arguments.pairs or []), how_many(arguments.seeds, "seeds", 1))


def usable(config: Config) -> tuple[str, ...]:
    """How the user's own data were read, in sentences. ValueError for what would make every trainer fail."""
    if not (config.text or config.data or config.device != "auto"):
        return ()
    from moe_core.training.data import load
    from moe_core.training.machine import choose_device

    choose_device(config.device)
    return load(config).taken


def nothing_else(arguments: argparse.Namespace) -> None:
    """ValueError if settings are given with --resume, which takes the sweep's own."""
    names = ["pairs", "seeds", "sweep_id", *(f.name for settings in (Config, Knobs) for f in fields(settings))]
    given = ["--" + name.replace("_", "-") for name in names if getattr(arguments, name) is not None]
    if given:
        raise ValueError(
            f"--resume takes the settings that the sweep was made with, got {' '.join(given)} too; leave it out"
        )


def how_many(text: str | None, name: str, default: int) -> int:
    """A flag's whole number from 1 to 10000. ValueError for another."""
    if text is None:
        return default
    with suppress(ValueError):
        if 1 <= (number := whole(text)) <= 10_000:
            return number
    raise ValueError(f"{name} must be a whole number from 1 to 10000, got {text!r}")


@contextmanager
def stopped_by_signals() -> Iterator[Callable[[], bool]]:
    """SIGTERM and the first Ctrl-C end the sweep cleanly; a second Ctrl-C interrupts the wait for its trainers."""
    caught: list[int] = []

    def note(number: int, frame: Any) -> None:
        caught.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(caught)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Teller(Printer):
    """Prints the events of a sweep."""

    def __init__(self, as_json: bool):
        super().__init__(as_json)
        self.began, self.first = time.monotonic(), None

    def on_start(self, event: dict[str, Any]) -> None:
        from moe_core.sweep import unread_text

        self.line(f"{event['sweep']}: {event['takes']}; its record is {event['path']}")
        if event["not_read"]:
            self.line(unread_text(event["not_read"]))

    def on_run(self, event: dict[str, Any]) -> None:
        if event["state"] == "failed" or (event["state"] == "finished" and not self.live):
            self.line(f"{event['run']} {event['state']}" + (f": {event['problem']}" if event["problem"] else ""))

    def on_progress(self, event: dict[str, Any]) -> None:
        if not self.live:
            return
        steps = max(event["steps"], 1)
        share = event["step"] / steps
        failed = f", {event['failed']} failed" if event["failed"] else ""
        terminal.update(
            f"{event['finished']} of {event['runs']} runs{failed} {terminal.bar(event['step'], steps)} {100 * share:.0f} %"
            + self.left(share)
        )

    def left(self, share: float) -> str:
        """The time left at the speed so far; "" before one can be told. Steps of an earlier start do not count."""
        now = time.monotonic()
        self.first = share if self.first is None else self.first
        return f", {words}" if (words := left_text(now - self.began, share - self.first, 1 - share)) else ""

    def on_end(self, event: dict[str, Any]) -> None:
        for run, problem in event["problems"].items():
            self.line(f"{run}: {problem}")
        if event["state"] == "stopped":
            self.line(f"stopped; go on with: python -m moe_core sweep --resume {event['sweep']}")
        elif event["state"] == "failed":
            self.line(
                f"some runs do not count; try them again with: python -m moe_core sweep --resume {event['sweep']}"
            )
        else:
            self.line("finished")
