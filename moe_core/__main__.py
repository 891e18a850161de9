"""The command line: `python -m moe_core COMMAND`.

Exit status 0; 2 for bad usage, with one line that says what was wanted, given, and what to do; 1 for a failed run.
Whatever is heavy is imported by the command that needs it: `runs` and `set` must not wait for torch.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from moe_core.schema import METRICS, TASKS, Config, Knobs, check, meta_of, parse_setting

COMMANDS = ("pause", "resume", "step", "stop", "checkpoint")
ACKNOWLEDGED_WITHIN = 5.0  # seconds that a command waits for the trainer to say that it has obeyed
LAST = 50  # steps over which the end event's balance is averaged
BALANCE = ("cv_importance", "cv_load", "max_over_mean_load", "dead_experts")


class Parser(argparse.ArgumentParser):
    """argparse with one line for an error, as everywhere else."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"moe: {message}; see {self.prog} --help\n")


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = parser().parse_args(argv)
    try:
        return int(arguments.run_command(arguments))
    except ValueError as error:
        return complain(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at exit
        return 0
    except OSError as error:
        return complain(f"{error.filename or ''}: {error.strerror or error}".lstrip(": "))


def complain(problem: object) -> int:
    print(f"moe: {plain(str(problem))}", file=sys.stderr)
    return 2


def plain(text: str, keep: str = "") -> str:
    """Text of users as text: no line breaks (unless kept) and no escape codes reach the terminal."""
    return "".join(c if c in keep or c.isprintable() else "?" if c not in "\n\r\t" else " " for c in text)


def parser() -> Parser:
    top = Parser(
        prog="moe_core", description="MoEscope: an oscilloscope for Mixture-of-Experts routers.", allow_abbrev=False
    )
    commands = top.add_subparsers(
        required=True, metavar="{" + ",".join(["train", "runs", "set", *COMMANDS, "verify", "export", "bench"]) + "}"
    )

    def add(
        name: str, command: Callable[[argparse.Namespace], int], help: str, run: bool = True
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        sub.add_argument("--runs", metavar="DIR", help="where runs live; else MOE_RUNS, else ./runs")
        sub.add_argument("--json", action="store_true", help="one JSON object a line on stdout, nothing else")
        if run:
            sub.add_argument("run", metavar="RUN", help="an id, a unique beginning of one, or a path")
        sub.set_defaults(run_command=command, name=name)
        return sub

    train = add("train", train_command, "train a model and record it, to --steps or until stopped", run=False)
    train.add_argument("--run-id", metavar="ID", help="the name of the run's folder; made up if not given")
    train.add_argument("--who", default="command line", help=argparse.SUPPRESS)
    for settings in (Config, Knobs):
        add_settings(train, settings)
    add("runs", runs_command, "list the runs and their states", run=False)
    turned = add("set", set_command, "turn knobs of a run while it trains")
    turned.add_argument("changes", nargs="+", metavar="knob=value")
    for name in COMMANDS:
        add(
            name,
            tell_command,
            {"step": "train one step of a paused run", "checkpoint": "write the weights beside the record"}.get(
                name, f"{name} a run"
            ),
        )
    add("verify", verify_command, "check that a run's record is whole and unchanged")
    export = add("export", export_command, "write a run's numbers and charts to files")
    export.add_argument("--out", required=True, metavar="DIR")
    export.add_argument("--format", default="csv,html", metavar="LIST", help="of csv, html, with commas")
    export.add_argument("--figure", nargs="+", metavar="NAME", help="these figures only")
    bench = add("bench", bench_command, "measure the MoE layer beside its peers", run=False)
    bench.add_argument("what", choices=("layer",))
    return top


def add_settings(train: argparse.ArgumentParser, settings: type[Config] | type[Knobs]) -> None:
    """One flag for each field, named and explained by its declaration."""
    group = train.add_argument_group(settings.__name__.lower())
    for f in fields(settings):
        meta = meta_of(settings, f.name)
        default = "" if f.default in ((), "") else f" (default {f.default})"
        many: dict[str, Any] = {"nargs": "+"} if isinstance(f.default, tuple) else {}
        group.add_argument(
            "--" + f.name.replace("_", "-"),
            dest=f.name,
            metavar="|".join(meta.choices) or type(f.default).__name__.replace("tuple", "PATH").upper(),
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


# train


def train_command(arguments: argparse.Namespace) -> int:
    config, knobs = settings_of(arguments)
    from moe_core.training.loop import train

    teller = Teller(arguments.json, config)
    folder, state = train(config, knobs, arguments.runs, arguments.run_id, teller.tell)
    teller.tell({"event": "end", **ending(folder, config, state)})
    return 1 if state == "failed" else 0


def ending(folder: Path, config: Config, state: str) -> dict[str, Any]:
    """The numbers that a finished run is judged by, read from its record."""
    from moe_core.runs import open_run

    run = open_run(folder)
    _, last = run.steps()
    first = max(1, last - LAST + 1)
    told: dict[str, Any] = {"state": state, "step": last, "loss": None, "eval": {}}
    if last:
        told["loss"] = float(run.history("loss", first=last)[1][-1])
        for stat in BALANCE:
            layers = [run.history(stat, layer, first=first)[1].mean() for layer in range(config.layers)]
            told[stat] = float(sum(layers) / len(layers))
    if evals := run.evals():
        told["eval"] = evals[-1].metrics
    return told


class Teller:
    """Prints events: as JSON lines, as a line that keeps itself up to date on a terminal, or as plain lines elsewhere."""

    def __init__(self, as_json: bool, config: Config):
        self.as_json, self.config, self.open = as_json, config, True
        self.live = not as_json and sys.stderr.isatty()
        self.headline = METRICS[config.task][0]
        self.measured = self.text = ""

    def tell(self, event: dict[str, Any]) -> None:
        """A reader of stdout that went away must not end the training."""
        if not self.open:
            return
        try:
            if self.as_json:
                print(json.dumps(without_nan(event), allow_nan=False), flush=True)
            else:
                getattr(self, "on_" + event["event"])(event)
        except BrokenPipeError:
            self.open = False
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if self.as_json and event["event"] in ("error", "paused"):
            print(f"moe: {plain(event.get('error') or event['reason'])}", file=sys.stderr)

    def line(self, text: str) -> None:
        print(("\r\x1b[K" if self.live else "") + plain(text), file=sys.stderr, flush=True)

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
            f"step {done}{bar}  loss {event['loss']:.3f}  CV(load) {event['cv_load']:.2f}  "
            f"CV(importance) {event['cv_importance']:.2f}  {event['steps_per_second']:.0f} steps/s{self.measured}"
        )
        width = max(20, os.get_terminal_size(sys.stderr.fileno()).columns - 1)
        print("\r\x1b[K" + plain(text)[:width], end="", file=sys.stderr, flush=True)

    def on_eval(self, event: dict[str, Any]) -> None:
        name, label, unit, _ = self.headline
        self.measured = f"  {label} {event[name]:.3f} {unit}".rstrip()
        self.text = event.get("text", self.text)
        if not self.live:
            self.line(f"step {event['step']}:{self.measured}")

    def on_paused(self, event: dict[str, Any]) -> None:
        self.line(f"paused at step {event['step']}: {event['reason']}")

    def on_waiting(self, event: dict[str, Any]) -> None:
        self.line(f"waiting: {event['reason']}")

    def on_error(self, event: dict[str, Any]) -> None:
        self.line(f"moe: {event['error']}")

    def on_end(self, event: dict[str, Any]) -> None:
        self.line(f"{event['state']} at step {event['step']}")
        for name, value in [("loss", event["loss"]), *event["eval"].items(), *((s, event.get(s)) for s in BALANCE)]:
            if isinstance(value, (int, float)):
                print(f"{name:20} {value:.4f}")
        if self.text:
            print("\nthe model writes:\n" + plain(self.text, keep="\n"))


def without_nan(value: Any) -> Any:
    """JSON has no NaN: null stands for a number that is not finite."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


# The others: each talks to the record


def runs_command(arguments: argparse.Namespace) -> int:
    from moe_core.runs import list_runs

    for listed in list_runs(arguments.runs):
        task = listed.config.task if listed.config else ""
        if arguments.json:
            print(
                json.dumps(
                    {
                        "run": listed.id,
                        "state": listed.state,
                        "step": listed.step,
                        "task": task,
                        "problem": listed.problem,
                    }
                )
            )
        else:
            print(
                plain(
                    f"{listed.id:32} {listed.state:12} {listed.step or 0:>9} {task:8} {listed.problem or ''}".rstrip()
                )
            )
    return 0


def set_command(arguments: argparse.Namespace) -> int:
    from moe_core.runs import open_run

    run = open_run(arguments.run, arguments.runs)
    changes = {}
    for change in arguments.changes:
        name, equals, value = change.partition("=")
        if not equals:
            raise ValueError(f"a change is written knob=value, got {change!r}; for example noise=0.5")
        changes[name.strip().replace("-", "_")] = value.strip()
    must_train(run)
    run.turn(who="command line", **changes)
    report(
        arguments,
        {"event": "set", "run": run.id, "knobs": changes},
        f"{run.id}: {', '.join(f'{n} = {v}' for n, v in changes.items())}",
    )
    return 0


def tell_command(arguments: argparse.Namespace) -> int:
    """pause, resume, step, stop, checkpoint: one row in the record, then wait until the trainer has obeyed."""
    from moe_core.runs import open_run

    run = open_run(arguments.run, arguments.runs)
    must_train(run)
    asked = run.command(arguments.name, who="command line")
    until = time.monotonic() + ACKNOWLEDGED_WITHIN
    while (obeyed := next((c for c in run.commands() if c.id == asked and c.step is not None), None)) is None:
        if time.monotonic() > until:
            raise ValueError(
                f"{run.id} has not obeyed {arguments.name} in {ACKNOWLEDGED_WITHIN:g} s; it will at its next step, see `runs`"
            )
        time.sleep(0.05)
    said = {"event": arguments.name, "run": run.id, "step": obeyed.step, "result": obeyed.result}
    report(arguments, said, f"{run.id}: {arguments.name} at step {obeyed.step}: {obeyed.result}")
    return 0


def must_train(run: Any) -> None:
    if run.state not in ("starting", "training", "paused"):
        raise ValueError(f"{run.id} is {run.state} and no trainer reads it; start a new run with `train`")


def report(arguments: argparse.Namespace, event: dict[str, Any], line: str) -> None:
    print(json.dumps(event) if arguments.json else plain(line))


def verify_command(arguments: argparse.Namespace) -> int:
    from moe_core.runs import open_run, verify

    run = open_run(arguments.run, arguments.runs)
    findings = verify(run)
    if arguments.json:
        print(json.dumps({"event": "verify", "run": run.id, "findings": findings}))
    else:
        print(
            "\n".join(plain(f"{run.id}: {finding}") for finding in findings)
            or f"{run.id} is whole: steps {run.steps()[0]} to {run.steps()[1]}"
        )
    return 1 if findings else 0


def export_command(arguments: argparse.Namespace) -> int:
    from moe_core.export import export
    from moe_core.runs import open_run

    formats = tuple(name.strip() for name in arguments.format.split(",") if name.strip())
    run = open_run(arguments.run, arguments.runs)
    for path in export(run, Path(arguments.out), formats, tuple(arguments.figure) if arguments.figure else None):
        report(arguments, {"event": "file", "path": str(path)}, str(path))
    return 0


def bench_command(arguments: argparse.Namespace) -> int:
    # Benchmarks lie beside the package, not in it: they are not what a person installs.
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from benchmarks.layer import main as layer

    return int(layer(["--json"] if arguments.json else []))


if __name__ == "__main__":
    sys.exit(main())
