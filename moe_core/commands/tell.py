"""What a training and a sweep print: events as JSON lines, as a line that keeps itself up to date, or as plain lines."""

import argparse
import contextlib
import errno
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moe_core.commands import terminal
from moe_core.commands.alert import Alarm
from moe_core.commands.common import let_go, plain, without_nan
from moe_core.schema import (
    AHEAD,
    BALANCE,
    BALANCE_STEPS,
    HELD_OUT_BALANCE,
    LOOKS_AHEAD,
    METRICS,
    STAT,
    Config,
    duration,
)


def tell_end(teller: "Teller", folder: Path, state: str) -> int:
    """Print the last event and return the exit status. Of a run whose folder was removed, the error has been printed already."""
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


class Printer:
    """Prints events: as JSON lines, or each by the method on_… of its name. live: whether a line may keep itself up to date."""

    def __init__(self, as_json: bool):
        self.as_json, self.live = as_json, terminal.live(as_json)

    def tell(self, event: dict[str, Any]) -> None:
        """Print an event. A closed pipe, a closed terminal or a full disk behind stdout must not end the training."""
        try:
            if self.as_json:
                print(json.dumps(without_nan(event), allow_nan=False), flush=True)
            else:
                getattr(self, "on_" + event["event"])(event)
        except OSError as error:
            if error.errno != errno.ENOSPC:  # a full disk may have room again later
                let_go()

    def line(self, text: str) -> None:
        terminal.line(text, self.live)

    def on_data(self, event: dict[str, Any]) -> None:
        for words in event["taken"]:
            self.line(words)


class Teller(Printer):
    """Prints the events of a training, and calls the user's command with each finding."""

    def __init__(self, as_json: bool, config: Config):
        super().__init__(as_json)
        self.config = config
        self.headline = METRICS[config.task][0]
        self.measured = self.text = ""
        self.comparable = True  # the last evaluation, with those of other strategies
        self.alarm: Alarm | None = None

    def tell(self, event: dict[str, Any]) -> None:
        if self.alarm and event["event"] == "alert":
            self.alarm.call(without_nan(event))
        super().tell(event)
        if self.as_json and event["event"] in ("error", "paused", "alarm"):
            problem = event.get("error") or event.get("reason") or event.get("problem") or ""
            with contextlib.suppress(OSError):
                print(f"moe: {plain(problem)}", file=sys.stderr)

    def on_start(self, event: dict[str, Any]) -> None:
        where = f"{event['ranks']} ranks ({event['device']})" if event.get("ranks", 1) > 1 else event["device"]
        self.line(f"{event['run']} trains on {where}; its record is {event['path']}")

    def on_step(self, event: dict[str, Any]) -> None:
        if not self.live:
            return
        done = f"{event['step']}/{self.config.steps}" if self.config.steps else str(event["step"])
        to_do = self.config.steps - event["step"]
        left = f" {duration(to_do / event['steps_per_second'])} left" if to_do > 0 and event["steps_per_second"] else ""
        bar = " " + terminal.bar(event["step"], self.config.steps) + left if self.config.steps else ""
        terminal.update(
            f"step {done}{bar}  loss {event['loss']:.3f} nats  CV(load) {event['cv_load']:.2f}  "
            f"CV(importance) {event['cv_importance']:.2f}  {event['steps_per_second']:.0f} steps/s{self.measured}"
        )

    def on_eval(self, event: dict[str, Any]) -> None:
        name, label, unit, _ = self.headline
        self.text = event.get("text", self.text)
        self.measured = f"  {label} {event[name]:.3f} {unit}".rstrip()
        if "cv_held_out" in event:
            self.measured += f"  CV held-out {event['cv_held_out']:.2f}"
        line = f"step {event['step']}:{self.measured}" + ("" if event["comparable"] else f" ({LOOKS_AHEAD})")
        if not event["comparable"]:
            self.measured += f" {AHEAD}"  # the line that is kept up to date has no room for more
        if not self.live or event["comparable"] != self.comparable:
            self.line(line)
        self.comparable = event["comparable"]

    def on_replay(self, event: dict[str, Any]) -> None:
        if self.live:
            terminal.update(f"trains again what is recorded: step {event['step']}/{event['of']}")

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
        if measured and event["step"] > 1:
            span = f"mean of the last {min(BALANCE_STEPS, event['step'])} steps and all layers"
            print(f"balance: {span}; held-out: of the last evaluation, without noise")
        if self.text:
            print("\nthe model writes:\n" + plain(self.text, keep="\n"))
