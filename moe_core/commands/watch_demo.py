"""watch-demo: trains a small model that is watched, as an example of somebody's own loop."""

import argparse
import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from moe_core.commands.common import add, report, whole_flag, without_nan, word_flag
from moe_core.runs import StoreError, checked_id, ending, new_id, open_run, runs_folder
from moe_core.runs.log import LOG
from moe_core.schema import Config, parse_setting

TOKENS, CONTEXT = 512, 32  # bytes of a step, and of a sequence
HELD_OUT = 4  # batches of an evaluation


def declare(commands: Any) -> None:
    demo = add(
        commands,
        "watch-demo",
        demo_command,
        "fine-tune a tiny Qwen3-MoE that is watched: see its gates collapse, and turn router_aux_loss_coef up",
        run=False,
        extra="watch-demo",
    )
    demo.add_argument(
        "--run-id", type=word_flag, metavar="ID", help="the name of the run's folder; made up if not given"
    )
    demo.add_argument(
        "--steps", type=whole_flag, default=Config.steps, help="steps to train; 0 trains until stopped (default 0)"
    )
    demo.add_argument("--seed", type=whole_flag, default=Config.seed, help="seed of weights and batches (default 0)")


def demo_command(arguments: argparse.Namespace) -> int:
    runs = runs_folder(arguments.runs)
    name = checked_id(arguments.run_id) if arguments.run_id else new_id(runs, "watch-demo")
    # A page that starts this command has made the folder, with a log in it; one that was interrupted before its first step left it empty.
    if (runs / name).exists() and {path.name for path in (runs / name).iterdir()} - {LOG}:
        raise StoreError(f"run {name} exists already in {runs}; choose another --run-id")
    asked = {setting: parse_setting(Config, setting, getattr(arguments, setting)) for setting in ("steps", "seed")}
    config = Config.for_task("text", tokens=TOKENS, context=CONTEXT, **asked)
    (runs / name).mkdir(parents=True, exist_ok=True)  # where it cannot be, a watched training would go on unwatched
    from moe_core.training.data.text import text
    from moe_core.watching.demo import fine_tune

    def tell_start(live: Any) -> None:
        event = {"event": "start", "run": name, "path": str(live.path)}
        where = f"python -m moe_core dashboard --runs {runs}"
        report(arguments, event, f"{name} trains; to see it and turn its knobs: {where}")

    data = text(config)
    with stopped_by_sigterm():
        held_out = [batch.inputs for batch in data.held_out()[:HELD_OUT]]
        probe = data.probe()[0].inputs
        live = fine_tune(
            name, lambda step: data.batch(step).inputs, held_out, probe, config.steps, runs, config.seed, tell_start
        )
    run = open_run(live.path)
    event = without_nan({"event": "end", **ending(run)})
    report(arguments, event, f"{name} {run.state} at step {event['step']}; its record is {run.path}")
    return 1 if run.state == "failed" else 0


@contextlib.contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the training as Ctrl-C does, with its record whole."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
