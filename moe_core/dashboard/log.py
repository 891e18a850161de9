"""Problems with requests, on the terminal: at most one line a second of each kind, or a stranger could fill the disk."""

import logging
import time

EACH = 1.0  # seconds between two lines of a kind
LONGEST = 300  # bytes of a line
_noted: dict[str, float] = {}


def note(kind: str, line: str) -> None:
    """One line, unless one of its kind was written just now. kind: one of a few words of ours, never a person's."""
    now = time.monotonic()
    if now - _noted.get(kind, -EACH) >= EACH:
        _noted[kind] = now
        logging.getLogger("moescope").warning("%s: %s", kind, short(line, LONGEST))


def short(text: str, most: int) -> str:
    """Text in one line of at most so many bytes, without control characters."""
    plain = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    if len(plain.encode(errors="replace")) <= most:
        return plain
    return plain.encode(errors="replace")[: most - 3].decode(errors="ignore") + "…"
