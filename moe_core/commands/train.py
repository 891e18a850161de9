"""train: one run, headless; with --resume, on with one that ended."""

import argparse
import json
import os
import select
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_core.commands.branch import go_on, resume_command
from moe_core.commands.common import Parser, add, whole_flag, word_flag
from moe_core.commands.ranks import alone, below_torchrun, on_ranks, take_ranks
from moe_core.commands.tell import tell_end, telling
from moe_core.runs import checked_id, read_script
from moe_core.runs.limits import SCRIPT, read_given
from moe_core.runs.log import open_log
from moe_core.schema import TASKS, Config, Knobs, check, meta_of, parse_setting, shortened

if TYPE_CHECKING:  # it needs torch
    from moe_core.parallel.session import Joined

WAITS = 600.0  # seconds for which a process that has loaded torch waits to be told what to train
# What --help calls a flag's value where the name of its type does not say enough.
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
    train.add_argument(
        "--run-id", type=word_flag, metavar="ID", help="the name of the run's folder; made up if not given"
    )
    train.add_argument(
        "--resume", type=word_flag, metavar="RUN", help="go on with a run that was killed, stopped or finished"
    )
    train.add_argument(
        "--script",
        type=word_flag,
        metavar="FILE",
        help="turn knobs at given steps; `export` writes such a file; - reads it from a pipe",
    )
    train.add_argument("--lock", type=whole_flag, help=argparse.SUPPRESS)  # of --resume: held by whoever started us
    train.add_argument(
        "--on-alert", metavar="COMMAND", help="run this, without a shell, with each new finding as JSON on stdin"
    )
    take_ranks(train)
    train.add_argument("--wait", action="store_true", help=argparse.SUPPRESS)  # load torch; stdin says what to train
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
            type=word_flag if f.name in ("data", "label") else None,
            **many,
        )


def settings_of(arguments: argparse.Namespace) -> tuple[Config, Knobs]:
    """What the flags say, with the task's own defaults for the rest."""

    def given(settings: type[Config] | type[Knobs]) -> dict[str, Any]:
        values = {f.name: getattr(arguments, f.name) for f in fields(settings)}
        return {name: parse_setting(settings, name, value) for name, value in values.items() if value is not None}

    config = given(Config)
    return check(Config.for_task(config.pop("task", TASKS[0]), **config), Knobs(**given(Knobs)))


def parsed(words: list[str]) -> argparse.Namespace:
    """The arguments that these words after `train` give."""
    parser = Parser()
    declare(parser.add_subparsers())
    return parser.parse_args(["train", *words])


def wait_for_words() -> list[str] | None:
    """Load torch, then wait for a line on stdin that says what to train and where its log is; None if nobody said so."""
    import moe_core.training.session  # noqa: F401

    if not select.select([sys.stdin], [], [], WAITS)[0] or not (line := sys.stdin.readline()):
        sys.stdin.close()  # so that whoever writes now, while Python ends, learns that nobody reads it
        return None
    words, place = said(line)
    log, nothing = open_log(Path(place)), os.open(os.devnull, os.O_RDONLY)
    for handle, stream in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(handle, stream)
    return words


def said(line: str) -> tuple[list[str], str]:
    """(the words after `train`, the log's path) of the line that --wait reads. ValueError if it is another."""
    try:
        given = json.loads(line)
        words, log = given["words"], given["log"]
    except (ValueError, TypeError, KeyError, RecursionError):
        words, log = None, None
    if not isinstance(log, str) or not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError(
            f'--wait reads a line {{"words": ["--steps", "3"], "log": "trainer.log"}} from the dashboard, '
            f"got {shortened(line.strip(), 80)!r}; leave --wait out"
        )
    return words, log


def train_command(arguments: argparse.Namespace) -> int:
    if arguments.wait:
        words = wait_for_words()
        return 0 if words is None else train_command(parsed(words))
    if below_torchrun():
        return on_ranks(arguments, train_or_resume, go_on)
    alone(arguments)
    return train_or_resume(arguments)


def train_or_resume(arguments: argparse.Namespace, joined: "Joined | None" = None) -> int:
    """joined: the ranks that train together, of which this is the first; None if it is alone."""
    if arguments.resume:
        given = [
            f.name for settings in (Config, Knobs) for f in fields(settings) if getattr(arguments, f.name) is not None
        ]
        return resume_command(arguments, given + [n for n in ("run_id", "script") if getattr(arguments, n)], joined)
    config, knobs = settings_of(arguments)
    if arguments.run_id:
        checked_id(arguments.run_id)
    script = read_script(script_text(arguments.script), config, knobs) if arguments.script else []
    from moe_core.training.session import train

    with telling(arguments, config) as teller:
        folder, state = train(config, knobs, arguments.runs, arguments.run_id, teller.tell, script, joined)
    return tell_end(teller, folder, state)


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
