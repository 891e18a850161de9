"""A look that is kept in a file: JSON of the words that the command line has for it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LARGEST = 64 * 1024  # bytes of such a file
DIGITS = 15  # of a whole number: more fit no choice, and some no float
KINDS: dict[str, tuple[type, ...]] = {
    "size": (str,),
    "font": (str, int, float),
    "theme": (str,),
    "scale": (int, float),
    "title": (str,),
    "caption": (bool,),
    "smooth": (int,),
}
WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


class TooLong(ValueError):
    """A number of more digits than any choice has."""


def read_style(path: str | Path) -> dict[str, Any]:
    """The look in a file, by the names of KINDS. ValueError, in one line, for what is not such a file."""
    file = Path(path)
    try:
        if not file.is_file():
            raise ValueError(
                f"there is no file {str(path)[:200]!r}; a style is a file of JSON, for example {example()}"
            )
        with open(file, "rb") as opened:
            return parsed_style(opened.read(LARGEST + 1), file.name)
    except OSError as error:
        raise ValueError(unread(file.name, error)) from None


def parsed_style(data: bytes, name: str) -> dict[str, Any]:
    """The look in a file's bytes. ValueError, in one line, for what is no style."""

    def whole(digits: str) -> int:
        if len(digits) > DIGITS:
            raise TooLong(f"a number in {name} has at most {DIGITS} digits, got {len(digits):,}; write a smaller one")
        return int(digits)

    if len(data) > LARGEST:
        raise ValueError(f"a style has at most {LARGEST:,} bytes, and {name} has more; it is JSON such as {example()}")
    try:
        style = json.loads(data, parse_int=whole)
    except TooLong:
        raise
    except (ValueError, RecursionError) as error:
        raise ValueError(unread(name, error)) from None
    return checked(style, name)


def unread(name: str, error: Exception) -> str:
    return f"{name} cannot be read as a style ({type(error).__name__}); it is JSON such as {example()}"


def checked(style: Any, name: str) -> dict[str, Any]:
    if not isinstance(style, Mapping):
        raise ValueError(f"{name} is no style: it must be one JSON object, such as {example()}")
    if unknown := [str(key) for key in style if key not in KINDS]:
        raise ValueError(f"{name} has {unknown[0][:40]!r}, which no style has; a style has some of: {', '.join(KINDS)}")
    for key, value in style.items():
        if type(value) not in KINDS[key]:
            wanted = " or ".join(WORDS[kind] for kind in KINDS[key])
            raise ValueError(f"{key} in {name} must be {wanted}, got {json.dumps(value)[:40]}")
        if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise ValueError(f"{key} in {name} has half a character, {json.dumps(value)[:40]}; write it whole")
    return dict(style)


def example() -> str:
    return '{"size": "3.25in", "font": "8pt", "theme": "grey"}'
