"""What is wrong with a form's values, each said in a line below the field that it is about."""

import re
from dataclasses import fields
from html import escape
from typing import Any

import streamlit as st

from moe_core.schema import Config, Knobs

QUOTED = r"""(?<!\w)(['"]).*?\1(?!\w)"""  # a person's own: a path, a name of a column
SETTINGS = {f.name for settings in (Config, Knobs) for f in fields(settings)}


def in_fields(words: str, look: str = "{}") -> str:
    """Words that were made for the command line, with the page's fields in place of the flags: d_model for --d-model. look: how a field is
    to look."""

    def field(found: re.Match[str]) -> str:
        name = (found["flag"] or "").replace("-", "_")
        return look.format(name) if name in SETTINGS else found[0]

    return re.sub(rf"{QUOTED}|(?<!\w)--(?P<flag>[a-z][a-z-]*)", field, words, flags=re.DOTALL)


def as_html(words: str) -> str:
    """The words as in_fields() gives them, as HTML with fields in bold."""
    return in_fields(escape(words, quote=False), "<b>{}</b>")


class Faults:
    """The places below a form's fields, and what was said there. True if something is wrong."""

    def __init__(self) -> None:
        self.places: dict[str, Any] = {}
        self.problems: dict[str, list[str]] = {}

    def __bool__(self) -> bool:
        return bool(self.problems)

    def place(self, name: str) -> None:
        """Make a place here, below the field of this name."""
        self.places[name] = st.empty()

    def say(self, problem: str, name: str = "") -> None:
        """Show a problem below a field: the named one, else the first that the words mention, else here."""
        at = name or next(iter(self.named_in(problem)), "")
        said = self.problems.setdefault(at, [])
        said.append(problem)
        lines = "".join(f'<p class="moe-fault" role="alert">{as_html(one)}</p>' for one in said)
        self.places.get(at, st).html(lines)

    def say_together(self, problem: str, name: str = "") -> None:
        """Say it unless a field that it names has a fault by itself: with another value there it may be gone."""
        if not self.problems.keys() & {*filter(None, [name]), *self.named_in(problem)}:
            self.say(problem, name)

    def named_in(self, problem: str) -> list[str]:
        """The fields that a message names, in its order."""
        said = re.sub(QUOTED, " ", problem, flags=re.DOTALL)
        words = (word.strip("-").replace("-", "_") for word in re.findall(r"[\w-]+", said))
        return [word for word in words if word in self.places]
