"""train: one run, headless, with its events as JSON lines, as a line that keeps itself up to date, or as plain lines."""

import argparse
import contextlib
import errno
import json
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from moe_core.commands import terminal
from moe_core.commands.alert import Alarm
from moe_core.commands.branch import resume_command
from moe_core.commands.common import add, let_go, plain, whole_flag, without_nan
from moe_core.runs import checked_id, read_script
from moe_core.runs.limits import SCRIPT, read_given
from moe_core.schema import (
    AHEAD,
    BALANCE,
    BALANCE_STEPS,
    HELD_OUT_BALANCE,
    LOOKS_AHEAD,
    METRICS,
    STAT,
    TASKS,
    Config,
    Knobs,
    check,
    meta_of,
    parse_setting,
)

# What --help calls the value of a flag, where its type does not say enough.
NAMES = {"text": "PATH", "data": "FILE", "label": "COLUMN", "drop": "COLUMN"}


def declare(commands: Any) -> None:
    train = add(
        commands,
        "train",
        train_command,
        "train a model and record it, to --steps or until stopped",
        run=False,
        extra="train",
    )
    train.add_argument("--run-id", metavar="ID", help="the name of the run's folder; made up if not given")
    train.add_argument("--resume", metavar="RUN", help="go on with a run that was killed, stopped or finished")
    train.add_argument(
        "--script",
        metavar="FILE",
        help="turn knobs at given steps; `export` writes such a file; - reads it from a pipe",
    )
    train.add_argument("--lock", type=whole_flag, help=argparse.SUPPRESS)  # of --resume: held by whoever started us
    train.add_argument(
        "--on-alert", metavar="COMMAND", help="run this, without a shell, with each new finding as JSON on stdin"
    )
    train.add_argument("--who", default="command line", help=argparse.SUPPRESS)
    for settings in (Config, Knobs):
        add_settings(train, settings)


def add_settings(train: argparse.ArgumentParser, settings: type[Config] | type[Knobs]) -> None:
    """One flag for each field, named and explained by its declaration."""
    group = train.add_argument_group(settings.__name__.lower())
    for f in fields(settings):
        meta = meta_of(settings, f.name)
        default = "" if f.default in ((), "") else f" (default {f.default})"
        many: dict[str, Any] = {"nargs": "+", "action": "extend"} if isinstance(f.default, tuple) else {}
        group.add_argument(
            "--" + f.name.replace("_", "-"),
            dest=f.name,
            metavar="|".join(meta.choices) or NAMES.get(f.name) or type(f.default).__name__.upper(),
            help=(meta.help + default).replace("%", "%%"),
            **many,
        )


def settings_of(arguments: argparse.Namespace) -> tuple[Config, Knobs]:
    """What the flags say, with the task's own defaults for the rest."""

    def given(settings: type[Config] | type[Knobs]) -> dict[str, Any]:
        values = {f.name: getattr(arguments, f.name) for f in fields(settings)}
        return {name: parse_setting(settings, name, value) for name, value in values.items() if value is not None}

    config = given(Config)
    return check(Config.for_task(config.pop("task", TASKS[0]), **config), Knobs(**given(Knobs)))


def train_command(arguments: argparse.Namespace) -> int:
    if arguments.resume:
        given = [
            f.name for settings in (Config, Knobs) for f in fields(settings) if getattr(arguments, f.name) is not None
        ]
        return resume_command(arguments, given + [n for n in ("run_id", "script") if getattr(arguments, n)])
    config, knobs = settings_of(arguments)
    if arguments.run_id:
        checked_id(arguments.run_id)
    script = read_script(script_text(arguments.script), config, knobs) if arguments.script else []
    from moe_core.training.session import train

    with telling(arguments, config) as teller:
        folder, state = train(config, knobs, arguments.runs, arguments.run_id, teller.tell, script)
    return tell_end(teller, folder, state)


def tell_end(teller: "Teller", folder: Path, state: str) -> int:
    """Tell of the last event and return the exit status. A run whose record went away has been told of already."""
    from moe_core.runs import StoreError, ending, open_run

    try:
        teller.tell({"event": "end", **ending(open_run(folder), state)})
    except StoreError:
        if state != "failed":
            raise
    return 1 if state == "failed" else 0


@contextlib.contextmanager
def telling(arguments: argparse.Namespace, config: Config) -> Iterator["Teller"]:
    """What prints a training's events, and calls the user's command, if there is one, with each finding."""
    teller, command = Teller(arguments.json, config), getattr(arguments, "on_alert", None)
    if command is not None:
        teller.alarm = Alarm(command, lambda problem: teller.tell({"event": "alarm", "problem": problem}))
    try:
        yield teller
    finally:
        if teller.alarm:
            teller.alarm.close()


def script_text(name: str) -> str:
    """The text of the file that --script names; - is the standard input. ValueError, with an example, if it is not text."""
    try:
        return read_given(Path("/dev/stdin" if name == "-" else name), SCRIPT).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        if isinstance(error, UnicodeDecodeError):
            reason = "it is not text in UTF-8"
        raise ValueError(
            f"--script {name!r} cannot be read: {reason}; give a file with lines such as 120 noise=0.5 k=1"
        ) from None


class Teller:
    """Prints events: as JSON lines, as a line that keeps itself up to date on a terminal, or as plain lines elsewhere."""

    def __init__(self, as_json: bool, config: Config):
        self.as_json, self.config = as_json, config
        self.live = terminal.live(as_json)
        self.headline = METRICS[config.task][0]
        self.measured = self.text = ""
        self.comparable = True  # the last evaluation, with those of other strategies
        self.alarm: Alarm | None = None

    def tell(self, event: dict[str, Any]) -> None:
        """Neither a reader of stdout that went away, nor a terminal that closed, nor a full disk below it must end the training."""
        if self.alarm and event["event"] == "alert":
            self.alarm.call(without_nan(event))
        try:
            if self.as_json:
                print(json.dumps(without_nan(event), allow_nan=False), flush=True)
            else:
                getattr(self, "on_" + event["event"])(event)
        except OSError as error:
            if error.errno != errno.ENOSPC:  # what is full may have room again
                let_go()
        if self.as_json and event["event"] in ("error", "paused", "alarm"):
            problem = event.get("error") or event.get("reason") or event.get("problem") or ""
            with contextlib.suppress(OSError):
                print(f"moe: {plain(problem)}", file=sys.stderr)

    def line(self, text: str) -> None:
        print(("\r\x1b[K" if self.live else "") + plain(text), file=sys.stderr, flush=True)

    def on_data(self, event: dict[str, Any]) -> None:
        for words in event["taken"]:
            self.line(words)

    def on_start(self, event: dict[str, Any]) -> None:
        self.line(f"{event['run']} trains on {event['device']}; its record is {event['path']}")

    def on_step(self, event: dict[str, Any]) -> None:
        if not self.live:
            return
        done = f"{event['step']}/{self.config.steps}" if self.config.steps else str(event["step"])
        bar = ""
        if self.config.steps:
            filled = 20 * event["step"] // self.config.steps
            bar = f" [{'#' * filled}{'.' * (20 - filled)}]"
        text = (
            f"step {done}{bar}  loss {event['loss']:.3f} nats  CV(load) {event['cv_load']:.2f}  "
            f"CV(importance) {event['cv_importance']:.2f}  {event['steps_per_second']:.0f} steps/s{self.measured}"
        )
        width = terminal.width()
        print("\r\x1b[K" + plain(text)[:width], end="", file=sys.stderr, flush=True)

    def on_eval(self, event: dict[str, Any]) -> None:
        name, label, unit, _ = self.headline
        self.text = event.get("text", self.text)
        self.measured = f"  {label} {event[name]:.3f} {unit}".rstrip()
        if "cv_held_out" in event:
            self.measured += f"  CV held-out {event['cv_held_out']:.2f}"
        said = f"step {event['step']}:{self.measured}" + ("" if event["comparable"] else f" ({LOOKS_AHEAD})")
        if not event["comparable"]:
            self.measured += f" {AHEAD}"  # the line that is kept up to date has no room for more
        if not self.live or event["comparable"] != self.comparable:
            self.line(said)
        self.comparable = event["comparable"]

    def on_replay(self, event: dict[str, Any]) -> None:
        if self.live:
            text = f"trains again what is recorded: step {event['step']}/{event['of']}"
            print("\r\x1b[K" + text, end="", file=sys.stderr, flush=True)

    def on_note(self, event: dict[str, Any]) -> None:
        self.line(event["note"])

    def on_paused(self, event: dict[str, Any]) -> None:
        self.line(f"paused at step {event['step']}: {event['reason']}")

    def on_resumed(self, event: dict[str, Any]) -> None:
        self.line(f"goes on after step {event['step']}: {event['reason']}")

    def on_alert(self, event: dict[str, Any]) -> None:
        where = f"layer {event['layer'] + 1}, " if self.config.layers > 1 else ""
        self.line(f"{where}since step {event['since']}: {event['what']} {event['why']} {event['try_this']}")

    def on_alarm(self, event: dict[str, Any]) -> None:
        self.line(f"moe: {event['problem']}")

    def on_waiting(self, event: dict[str, Any]) -> None:
        self.line(f"waiting: {event['reason']}")

    def on_error(self, event: dict[str, Any]) -> None:
        self.line(f"moe: {event['error']}")

    def on_end(self, event: dict[str, Any]) -> None:
        self.line(f"{event['state']} at step {event['step']}")
        held_out = "" if event["comparable"] is not False else f"  ({LOOKS_AHEAD})"
        lines = [("training loss", event["loss"], "nats", "")]
        for name, label, unit, _ in METRICS[self.config.task]:
            words = label if label.startswith("held-out") else f"held-out {label}"
            lines.append((words, event["eval"].get(name), unit, held_out))
        lines += [(STAT[stat].label, event.get(stat), STAT[stat].unit, "") for stat in BALANCE]
        lines += [(label, event.get(name), unit, "") for name, label, unit in HELD_OUT_BALANCE]
        measured = [line for line in lines if isinstance(line[1], (int, float))]
        width = max((len(label) for label, *_ in measured), default=0)
        for label, value, unit, note in measured:
            print(f"{label:{width}} {f'{value:.4f} {unit}'.rstrip()}{note}")
        if measured and event["step"] > 1:  # the page shows the last step's
            span = f"mean of the last {min(BALANCE_STEPS, event['step'])} steps and all layers"
            print(f"balance: {span}; held-out: of the last evaluation, without noise")
        if self.text:
            print("\nthe model writes:\n" + plain(self.text, keep="\n"))
