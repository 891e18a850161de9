"""The command line: `python -m moe_core COMMAND`.

Exit status 0; 2 for bad usage, with one line that says what was wanted, given, and what to do; 1 for a failed run.
Whatever is heavy is imported by the command that needs it: `runs` and `set` must not wait for torch.
"""

import contextlib
import sys

from moe_core.commands import FAMILIES
from moe_core.commands.common import Parser, let_go, plain


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = parser().parse_args(argv)
    try:
        return int(arguments.run_command(arguments))
    except ValueError as error:
        return complain(error)
    except BrokenPipeError:
        return 0
    except OSError as error:
        what = "; name a place that can be read and written" if isinstance(error, PermissionError) else ""
        return complain(f"{error.filename or ''}: {error.strerror or error}{what}".lstrip(": "))
    finally:
        let_go()  # or Python complains at exit


def complain(problem: object) -> int:
    with contextlib.suppress(OSError):  # there may be no terminal any more
        print(f"moe: {plain(str(problem))}", file=sys.stderr)
    return 2


def parser() -> Parser:
    top = Parser(
        prog="python -m moe_core",
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
