"""What is wrong with a form's values, each said in a line below the field that it is about."""

import re
from html import escape
from typing import Any

import streamlit as st


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
        lines = "".join(f'<p class="moe-fault" role="alert">{escape(one)}</p>' for one in said)
        self.places.get(at, st).html(lines)

    def say_together(self, problem: str, name: str = "") -> None:
        """Say it unless a field that it names has a fault by itself: with another value there it may be gone."""
        if not self.problems.keys() & {*filter(None, [name]), *self.named_in(problem)}:
            self.say(problem, name)

    def named_in(self, problem: str) -> list[str]:
        """The fields that a message names, in its order. What stands between quotes is a person's: a path, a name of a column."""
        said = re.sub(r"""(?<!\w)(['"]).*?\1(?!\w)""", " ", problem, flags=re.DOTALL)
        words = (word.strip("-").replace("-", "_") for word in re.findall(r"[\w-]+", said))
        return [word for word in words if word in self.places]
