"""What the commands share: how they are declared, their common flags, and how they answer."""

import argparse
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

from moe_core.commands.terminal import complain, plain
from moe_core.schema import real, shortened, whole

HOUR = 3600
Command = Callable[[argparse.Namespace], int]
# What each extra of the wheel brings: a module, and what pip calls it. The ranges of versions are in pyproject.toml.
EXPORT = {
    "plotly": "plotly", "resvg_py": "resvg-py", "fontTools": "fonttools", "brotli": "brotli", "PIL": "pillow",
    "pyarrow": "pyarrow",
}  # fmt: skip
TRAIN = {"torch": "torch", "sklearn": "scikit-learn"}
EXTRAS = {
    "train": TRAIN,
    "export": EXPORT,
    "dashboard": {name: name for name in ("streamlit", "starlette", "uvicorn", "websockets")} | EXPORT,
    "watch-demo": TRAIN | {"transformers": "transformers"},
}


class Parser(argparse.ArgumentParser):
    """argparse with one line for an error, as everywhere else."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, but `--flag=--` is refused: Python 3.11 makes an empty list of it, whatever the flag is to hold."""
        for word in takewhile("--".__ne__, args or ()):
            if re.fullmatch(r"--[\w-]+=--", word):
                self.error(
                    f"argument {word.removesuffix('=--')}: must not be --, which stands before words that are no flags"
                )
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        raise SystemExit(complain(f"{message}; see {self.prog} --help"))


def check_installed(extra: str, who: str) -> None:
    """ValueError, with what to install, if a module that an extra brings is not there. who: what needs it, in words."""
    for module, package in EXTRAS[extra].items():
        if find_spec(module) is None:
            raise ValueError(f"{who} needs {package}: pip install 'moescope[{extra}]'")


def add(
    commands: Any, name: str, command: Command, help: str, run: bool = True, extra: str | None = None
) -> argparse.ArgumentParser:
    """A subcommand with the flags that all have. run: it takes a RUN as its first argument; extra: what must be installed."""
    sub: argparse.ArgumentParser = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
    take_runs(sub)
    sub.add_argument("--json", action="store_true", help="one JSON object a line on stdout, nothing else")
    if run:
        sub.add_argument("run", metavar="RUN", help="an id, a unique beginning of one, or a path")
    sub.set_defaults(run_command=command, name=name, extra=extra)
    return sub


def check_runs(arguments: argparse.Namespace) -> None:
    """ValueError if --runs, or MOE_RUNS, names what cannot be a folder of runs."""
    from moe_core.runs import folder_in, runs_folder

    given = getattr(arguments, "runs", None) or os.environ.get("MOE_RUNS")
    if given:
        folder_in(runs_folder(given))


def check_working_folder() -> None:
    """ValueError if the folder that this was started in is gone: no path can be found from there, and torch dies in it."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise ValueError(
            "a command needs a working folder, and the one that it was started in was deleted; cd to one that is there"
        ) from None


def take_runs(command: argparse.ArgumentParser) -> None:
    command.add_argument("--runs", type=word_flag, metavar="DIR", help="where runs live; else MOE_RUNS, else ./runs")


def whole_flag(text: str) -> int:
    """A flag's whole number."""
    try:
        return whole(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def word_flag(text: str) -> str:
    """A flag's word. An empty one, which comes from a variable that is not set, is refused: it must not be taken for no flag at all."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must not be empty; perhaps a variable is not set")
    return text


def real_flag(text: str) -> float:
    """A flag's number, not infinite."""
    try:
        if math.isfinite(number := real(text)):
            return number
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"must be a number, got {shortened(text, 80)!r}")


def count_flag(text: str) -> int:
    """A flag's whole number of things, of which there must be one."""
    if (number := whole_flag(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")
    return number


def seconds_flag(text: str) -> float:
    """A flag's time for a measurement, in seconds."""
    try:
        if 0 <= (number := real(text)) <= HOUR:
            return number
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"must be a number of seconds from 0 to {HOUR:,}, got {shortened(text, 80)!r}")


def take_places(command: argparse._ActionsContainer) -> None:
    """Flags that say where the data of a recorded run lie now. They must be the same data."""
    command.add_argument("--text", nargs="+", type=word_flag, metavar="PATH", help="where the run's own texts lie now")
    command.add_argument("--data", type=word_flag, metavar="FILE", help="where the run's own table lies now")


def moved(arguments: argparse.Namespace) -> dict[str, Any]:
    """The paths given by take_places()'s flags, made absolute, since a trainer may work in another folder."""
    places: dict[str, Any] = {}
    if arguments.text is not None:
        places["text"] = tuple(os.path.abspath(path) for path in arguments.text)
    if arguments.data is not None:
        places["data"] = os.path.abspath(arguments.data)
    return places


def report(arguments: argparse.Namespace, event: dict[str, Any], line: str) -> None:
    """One answer: the event with --json, else the line."""
    print(json.dumps(event) if arguments.json else plain(line))


def csv_file(flag: str, name: str | None) -> Path | None:
    """The path of a table. ValueError now, rather than after an hour's work, if it cannot be written there."""
    if name is None:
        return None
    path = Path(name)
    if path.is_dir() or not path.parent.is_dir():
        problem = "is a folder" if path.is_dir() else f"has no folder {path.parent}"
        raise ValueError(
            f"{flag} wants a file in a folder that is there, but {name} {problem}; name another file, or make the folder"
        )
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent):
            return path
    except OSError as error:
        raise ValueError(
            f"{flag} wants a file in a folder that can be written to, and {path.parent} cannot: {error.strerror}; name another file"
        ) from None


def tell_damage(arguments: argparse.Namespace, lines: list[str]) -> int:
    """Print a line for each damaged part, which the written files lack; with --json an event too. Returns the exit status."""
    for line in lines:
        if arguments.json:
            print(json.dumps({"event": "damage", "problem": line}))
        print(f"moe: {plain(line)}", file=sys.stderr)
    return 1 if lines else 0


def without_nan(value: Any) -> Any:
    """The value for JSON, which has no NaN: a number that is not finite becomes null."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def let_go() -> None:
    """Point a closed stdout or stderr at /dev/null: what is still buffered for it would fail again at exit."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
