"""Where the commands print: streams that are closed, terminals that take no codes, problems in one line."""

import contextlib
import io
import json
import os
import sys
from collections.abc import Sequence

from moe_core.schema import shortened

CLEAR = "\r\x1b[K"  # back to the start of the line, and the line empty
LONGEST = 1_000  # characters of a problem; a value in it may have a million


def plain(text: str, keep: str = "") -> str:
    """Text of users as text: no line breaks (unless kept) and no escape codes reach the terminal."""
    return "".join(c if c in keep or c.isprintable() else "?" if c not in "\n\r\t" else " " for c in text)


def complain(problem: object) -> int:
    """Say what is wrong in one line, and return the status of bad usage."""
    with contextlib.suppress(OSError):  # there may be no terminal any more
        print(f"moe: {plain(shortened(str(problem), LONGEST))}", file=sys.stderr)
    return 2


def agreed(question: str) -> bool:
    """Whether the person at the terminal says yes. Nobody at it is no."""
    if not sys.stdin.isatty():
        return False
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


class Events(io.TextIOBase):
    """Takes the place of a closed stderr under --json: each line becomes an event on stdout."""

    def write(self, text: str) -> int:
        for line in filter(None, text.splitlines()):
            print(json.dumps({"event": "stderr", "text": line}), flush=True)
        return len(text)


def open_streams(words: Sequence[str]) -> None:
    """Put something in the place of streams that were closed, as by `2>&-`, so that no command ends without a word.

    The next file that is opened would take the number of a closed one, and what torch prints would go into a run's record.
    """
    handle = os.open(os.devnull, os.O_RDWR)
    while handle <= 2:
        handle = os.dup(handle)
    os.close(handle)
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        if sys.stderr is not None:
            complain("stdout is closed, and what is printed there is lost")
    if sys.stderr is None:
        sys.stderr = Events() if "--json" in words else sys.stdout


def line(text: str, live: bool) -> None:
    """A line on stderr; live: in the place of the one that keeps itself up to date."""
    print((CLEAR if live else "") + plain(text), file=sys.stderr, flush=True)


def update(text: str) -> None:
    """The line that keeps itself up to date, as far as the terminal is wide; "" takes it away."""
    print(CLEAR + plain(text)[: width()], end="", file=sys.stderr, flush=True)


def bar(done: int, of: int) -> str:
    filled = 20 * done // of
    return f"[{'#' * filled}{'.' * (20 - filled)}]"


def live(as_json: bool) -> bool:
    """Whether a line on stderr may keep itself up to date: it is a terminal that takes the codes for that."""
    codes = os.environ.get("TERM", "") not in ("", "dumb") and not os.environ.get("NO_COLOR")
    return codes and not as_json and sys.stderr.isatty()


def width() -> int:
    """Columns of the terminal that stderr is, less one that a full line would wrap in; 80 where it does not say."""
    columns = 0
    with contextlib.suppress(OSError):
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    return max(20, columns or 80) - 1
