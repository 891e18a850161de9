"""The words of a page's link, each checked once, where it comes in (stcore.py) and before a page or a widget reads it.

A link may have been cut, mistyped or made by a stranger. A word that is not valid is taken out of it, and the page
says so. Whether a run of that name exists, the page finds out.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode

import streamlit as st

from moe_core.dashboard.log import short
from moe_core.export import FORMATS
from moe_core.figures.catalog import FIGURES
from moe_core.figures.palette import PINNED
from moe_core.figures.theme import LOOKS
from moe_core.lessons import LESSONS
from moe_core.runs import RUN_ID
from moe_core.schema import RENAMED

MOST = 3  # runs beside the first
# The usual sizes, as a link and the command line write them, each with its label on the page. They are from: IEEE Author Center, "Size
# requirements for graphics" (3.5 and 7.16 in); Nature, "Research figure guide" (89 and 183 mm); the LaTeX styles of ICML (3.25 and 6.75 in),
# and of NeurIPS and ICLR (5.5 in).
SIZES = {
    "3.25in": "one column, 3.25 in (ICML)", "3.5in": "one column, 3.5 in (IEEE)", "89mm": "one column, 89 mm (Nature)",
    "5.5in": "whole page, 5.5 in (NeurIPS, ICLR)", "6.75in": "both columns, 6.75 in (ICML)", "7.16in": "both columns, 7.16 in (IEEE)",
    "183mm": "both columns, 183 mm (Nature)", "16:9": "slide", "480x300": "screen, 480 × 300 px", "900x500": "screen, 900 × 500 px",
}  # fmt: skip
OWN = {"px": "own size", "in": "own inches", "mm": "own mm"}  # sizes of one's own, by their unit
NEW = "new"  # in place of a run or a sweep
LAST = 2**53  # beyond any step; numbers up to it are exact in a browser
UNREAD = "unread"  # the word that names those which were taken out of a link


class Word(NamedTuple):
    """What a word of a link must be, in words, and what reads it: ValueError if it is not."""

    wanted: str
    read: Callable[[str], Any]


def run_name(text: str) -> str:
    """A run's or a sweep's name, or the beginning of one: a folder in the runs' folder, never a path."""
    if not re.fullmatch(RUN_ID, text) or len(text.encode()) > 200:
        raise ValueError(f"{short(text, 40)!r} is not the name of a run")
    return text


def run_names(text: str) -> list[str]:
    return [run_name(name) for name in text.split(",") if name][:MOST]


def figures(text: str) -> list[str]:
    names = [RENAMED.get(name, name) for name in text.split(",")]
    return [name for name in names if name in FIGURES]


def whole(low: int = 1, high: int = LAST) -> Word:
    """A whole number, also as the field of any number writes it: 640.0."""
    wanted = f"a whole number from {low:,} to {high:,}" if high < LAST else f"a whole number from {low} on"
    return Word(wanted, lambda text: between(int(matching(r"[0-9]{1,16}(\.0)?", text).partition(".")[0]), low, high))


def number(low: float, high: float) -> Word:
    pattern = r"[0-9]{1,16}(\.[0-9]{0,16})?"
    return Word(f"a number from {low:g} to {high:g}", lambda text: between(float(matching(pattern, text)), low, high))


def between(value: Any, low: float, high: float) -> Any:
    if not low <= value <= high:
        raise ValueError(f"{value} is out of range")
    return value


def one_of(*choices: str) -> Word:
    return Word(f"one of {', '.join(choices)}", lambda text: choices[choices.index(text)])


def size(text: str) -> str:
    """A size of SIZES or OWN, by its word or, as earlier links have it, by its label."""
    words = {label: word for word, label in (SIZES | OWN).items()}
    return str(one_of(*SIZES, *OWN).read(words.get(text, text)))


def matching(pattern: str, text: str) -> str:
    if not re.fullmatch(pattern, text):
        raise ValueError(f"{short(text, 40)!r} is not like {pattern}")
    return text


NAME = "the name of a run: letters, digits, dots, dashes and underscores"
OPTIONS: dict[str, Word] = {  # what a person chooses on a page beside run, layer and step
    "with": Word("names of runs with commas between them", run_names), "align": one_of("step", "fork"), "expert": whole(),
    "pinned": Word("numbers of experts with commas between them, at most 8", lambda text: matching(PINNED, text)),
    "tokens": whole(), "k": whole(), "experts": whole(), "devices": whole(), "smooth": whole(high=1_000_000),
}  # fmt: skip
WORDS: dict[str, Word] = {
    "run": Word(NAME, run_name), "sweep": Word(NAME, run_name), "layer": whole(high=1000), "step": whole(),
    "lesson": whole(high=len(LESSONS)), "figures": Word("names of figures with commas between them", figures),
    "format": one_of(*FORMATS), "size": Word(f"a size that the Export page offers, such as {next(iter(SIZES))}", size), "theme": one_of(*LOOKS), "width": whole(120, 8000),
    "height": whole(120, 8000), "wide": number(0.5, 2000), "high": number(0.5, 2000), "font": number(6, 48), "type": number(4.5, 36), "panels": whole(0, 6), "scale": number(0.5, 8),
    "title": Word("at most 200 letters", lambda text: matching(r"[^\x00-\x1f]{0,200}", text)),
    "bare": one_of("true", "false"), "caption": one_of("true", "false"), "read": one_of("true", "false"), **OPTIONS,
}  # fmt: skip


def chosen(name: str, text: str) -> Any:
    """A word's value in its type. ValueError says what it must be, and what was given."""
    try:
        return WORDS[name].read(text)
    except ValueError:
        more = f" ({len(text):,} letters)" if len(text) > 40 else ""
        raise ValueError(f"{name} must be {WORDS[name].wanted}, got {short(text, 40)!r}{more}") from None


def readable(query: str) -> str:
    """A link's query with each word that is not valid replaced by its name alone: some of Streamlit's widgets read the
    query themselves."""
    try:
        asked = parse_qsl(query, keep_blank_values=True, max_num_fields=100)
    except ValueError:
        return ""
    wrong = [name for name, text in asked if name in WORDS and not fits(name, text)]
    if not wrong:
        return query
    return urlencode([(name, text) for name, text in asked if name not in wrong] + [(UNREAD, name) for name in wrong])


def fits(name: str, text: str) -> bool:
    try:
        chosen(name, text)
    except ValueError:
        return False
    return True


def word(name: str) -> Any:
    """What the link says, in its type; None if it says nothing."""
    text = st.query_params.get(name)
    return chosen(name, text) if text is not None and fits(name, text) else None


def say_unread() -> None:
    """Say on the page which words of its link were taken out, and why."""
    names = [name for name in st.query_params.get_all(UNREAD) if name in WORDS]
    if UNREAD in st.query_params:
        del st.query_params[UNREAD]
    for name in names:
        st.toast(literal(f"{name} was left out of the link: it must be {WORDS[name].wanted}."), duration="long")


def literal(text: str) -> str:
    """Text that Markdown leaves as it is. A backslash before any other sign than these would be shown."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", text)
