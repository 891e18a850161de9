"""The command line: `moescope COMMAND`, which is `python -m moe_core COMMAND`; without a command it opens the dashboard.

Exit status 0; 2 for bad usage, with one line that says what was wanted, given, and what to do; 1 for a failed run.
Whatever is heavy is imported by the command that needs it: `runs` and `set` must not wait for torch.
"""

import sys
from pathlib import Path

try:
    import fcntl  # noqa: F401
except ImportError:  # before anything of ours that needs it is imported
    sys.exit("moe: this system has no file locks (fcntl): MoEscope runs on Linux and macOS, on Windows in WSL")

from moe_core.commands import FAMILIES
from moe_core.commands.common import Parser, check_installed, check_runs, check_working_folder, let_go
from moe_core.commands.terminal import complain, open_streams


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    open_streams(words)
    arguments = parser().parse_args(with_command(words))
    try:
        check_working_folder()
        check_runs(arguments)
        if arguments.extra:
            check_installed(arguments.extra, arguments.name)
        status = int(arguments.run_command(arguments))
        sys.stdout.flush()  # a full disk below it is reported here, not at exit
        return status
    except ValueError as error:
        return complain(error)
    except BrokenPipeError:
        return 0
    except OSError as error:
        what = "; name a place that can be read and written" if isinstance(error, PermissionError) else ""
        return complain(f"{error.filename or ''}: {error.strerror or error}{what}".lstrip(": "))
    finally:
        let_go()  # or Python complains at exit


def with_command(words: list[str]) -> list[str]:
    """The words with the command that they leave out: flags alone are the dashboard's."""
    flags_only = not words or (words[0].startswith("-") and words[0] not in ("-h", "--help"))
    return ["dashboard", *words] if flags_only else words


def parser() -> Parser:
    top = Parser(
        prog="moescope" if Path(sys.argv[0]).name == "moescope" else "python -m moe_core",
        description="MoEscope: an oscilloscope for Mixture-of-Experts routers.",
        allow_abbrev=False,
    )
    commands = top.add_subparsers(required=True)
    for family in FAMILIES:
        family.declare(commands)
    commands.metavar = "{" + ",".join(commands.choices) + "}"
    return top


if __name__ == "__main__":
    sys.exit(main())
