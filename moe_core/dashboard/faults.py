"""What is wrong with a form's values, each said in a line below the field that it is about."""

import re
from html import escape
from typing import Any

import streamlit as st


class Faults:
    """The places below a form's fields, and what was said there. True if something is wrong."""

    def __init__(self) -> None:
        self.places: dict[str, Any] = {}
        self.problems: dict[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self.problems)

    def place(self, name: str) -> None:
        """Make a place here, below the field of this name."""
        self.places[name] = st.empty()

    def say(self, problem: str, name: str = "") -> None:
        """Say what is wrong at a field: of this name, else the first one that the words name, else here."""
        words = (word.strip("-").replace("-", "_") for word in re.findall(r"[\w-]+", problem))
        at = name or next((word for word in words if word in self.places), "")
        self.problems[at] = problem
        self.places.get(at, st).html(f'<p class="moe-fault" role="alert">{escape(problem)}</p>')
