"""A viewer's message, parsed once: what it shows, or what it wants done, each value of its type and in range.

Any other message closes the socket, with one line that says what was wanted. Code behind this file never sees a value
that was not checked.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

from moe_core.dashboard.links import LAST, OPTIONS, chosen
from moe_core.figures.theme import THEMES
from moe_core.runs import COMMANDS

LONGEST = 64 * 1024  # bytes of a message
FIGURES = 64  # at most on a page
SIDE = (40, 8000)  # px of a chart


class Refused(ValueError):
    """A message that no page sends."""


class Look(NamedTuple):
    """What a viewer looks at; `drawn`, the number of the last frame that it has drawn, and `took`, the ms that this kept it busy."""

    theme: str
    page: str
    layer: int
    step: int | None
    sizes: dict[str, tuple[int, int]]
    span: tuple[float, float] | None
    wide: bool
    options: dict[str, Any]
    drawn: int
    took: float


class Deed(NamedTuple):
    """What a viewer wants done: turn knobs, give a command, fork at a step with knobs turned, or go on with a run that has
    ended. steps: how many the fork or the run is to have in all, 0 until stopped; nth: the number by which it knows the
    answer."""

    nth: int
    turn: dict[str, float | str] = {}
    gesture: str = ""
    command: str = ""
    fork: int = 0
    go_on: bool = False
    steps: int = 0


def parsed(text: str) -> Look | Deed:
    """What a message says. Refused says in one line what was wanted."""
    if len(text) > LONGEST:
        raise Refused(f"wanted at most {LONGEST // 1024} KB, got {len(text) // 1024:,} KB")
    try:
        fields = json.loads(text, parse_constant=refused_number)
    except (ValueError, RecursionError) as error:  # nested deeper than Python's own stack
        raise Refused(
            f"wanted JSON: {'it is nested too deep' if isinstance(error, RecursionError) else error}"
        ) from None
    if not isinstance(fields, dict):
        raise Refused(f"wanted an object, got {type(fields).__name__}")
    return parse_deed(fields) if fields.keys() & {"turn", "command", "fork", "go_on"} else parse_look(fields)


def refused_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a number in JSON")


def parse_look(fields: Mapping[str, Any]) -> Look:
    span = fields.get("span")
    if span is not None:
        low, high = (number("span", end, -LAST, LAST) for end in several("span", span, 2))
        if low >= high:
            raise Refused(f"span must be two steps, the lower first, got {low:g} and {high:g}")
        span = (low, high)
    sizes = fields.get("sizes")
    if not isinstance(sizes, dict) or len(sizes) > FIGURES:
        given = f"{len(sizes):,}" if isinstance(sizes, dict) else in_words(sizes)
        raise Refused(f"sizes must be an object of at most {FIGURES} figures, got {given}")
    options = {} if fields.get("options") is None else fields["options"]
    if not isinstance(options, dict):
        raise Refused(f"options must be an object, got {in_words(options)}")
    return Look(
        theme=word("theme", fields.get("theme"), "|".join(THEMES)),
        page=word("page", fields.get("page"), r"\w{0,40}"),
        # The first is 0; in place of one that the run lacks the nearest is shown.
        layer=whole("layer", fields.get("layer"), -LAST, LAST),
        step=None if fields.get("step") is None else whole("step", fields["step"], 1, LAST),
        sizes={word("figure", name, r"\w{1,40}"): sides(several("size", size, 2)) for name, size in sizes.items()},
        span=span,
        wide=fields.get("wide") is True,
        options={name: option(name, value) for name, value in options.items()},
        drawn=whole("drawn", fields.get("drawn", 0), 0, LAST),
        took=number("took", fields.get("took", 0), 0, 60_000),
    )


def parse_deed(fields: Mapping[str, Any]) -> Deed:
    nth = whole("nth", fields.get("nth", 0), 0, LAST)
    if "fork" in fields or "go_on" in fields:
        steps = whole("steps", fields.get("steps", 0), 0, LAST)
        if "go_on" in fields:
            if fields["go_on"] is not True:
                raise Refused(f"go_on must be true, got {in_words(fields['go_on'])}")
            return Deed(nth, go_on=True, steps=steps)
        return Deed(nth, fork=whole("fork", fields["fork"], 1, LAST), turn=turns(fields.get("turn", {})), steps=steps)
    if "turn" in fields:
        if not fields["turn"]:
            raise Refused(f"turn must be an object of knobs and values, got {in_words(fields['turn'])}")
        gesture = word("gesture", fields.get("gesture", ""), r"\w{0,16}")
        return Deed(nth, turn=turns(fields["turn"]), gesture=gesture)
    return Deed(nth, command=word("command", fields["command"], "|".join(COMMANDS)))


def turns(turn: Any) -> dict[str, float | str]:
    """Knobs and their values; whether the run has such a knob is for the run to say."""
    if not isinstance(turn, dict):
        raise Refused(f"turn must be an object of knobs and values, got {in_words(turn)}")
    return {
        word("knob", name, r"[^\W\d]\w{0,63}"): value if isinstance(value, str) else number(name, value, -1e300, 1e300)
        for name, value in turn.items()
    }


def option(name: str, value: Any) -> Any:
    """What was chosen on the page, as a link has it; and the expert that it holds as the busiest, as the last frame said."""
    if name == "again":
        return whole(name, value, 0, LAST)
    if name == "busiest":
        return [whole(name, one, 0, LAST) for one in several(name, value, 4)]
    if name not in OPTIONS:
        raise Refused(f"unknown option {name[:40]!r}")
    text = ",".join(word(name, one, ".*") for one in value) if isinstance(value, list) else value
    text = text if isinstance(text, str) else str(whole(name, text, 1, LAST))
    try:
        return chosen(name, text)
    except ValueError as error:
        raise Refused(str(error)) from None


def sides(size: list[Any]) -> tuple[int, int]:
    width, height = (min(max(round(number("size", side, -LAST, LAST)), SIDE[0]), SIDE[1]) for side in size)
    return width, height


def word(name: str, value: Any, pattern: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        raise Refused(f"{name} must be like {pattern}, got {in_words(value)}")
    return value


def whole(name: str, value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise Refused(f"{name} must be a whole number from {low} to {high}, got {in_words(value)}")
    return value


def number(name: str, value: Any, low: float, high: float) -> float:
    """A number, whole or not, but not true or false. 1e310 is infinite, and beyond every range."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise Refused(f"{name} must be a number from {low:g} to {high:g}, got {in_words(value)}")
    return value


def several(name: str, value: Any, n: int) -> list[Any]:
    if not isinstance(value, list) or len(value) != n:
        raise Refused(f"{name} must be a list of {n}, got {in_words(value)}")
    return value


def in_words(value: Any) -> str:
    """A value in a few letters: a number of a thousand digits, or a list of a thousand, is not written out."""
    if isinstance(value, (dict, list)):
        return type(value).__name__
    if type(value) is int and abs(value) > LAST:
        return "a number of many digits"
    return repr(value[:40] if isinstance(value, str) else value)
