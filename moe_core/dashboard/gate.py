"""The gate that every deed passes: who only looks changes nothing, whatever the browser sends.

What a person may do is decided for each request by the guard, from the token, and told to the pages in a header that no
browser can set (guard.py). A page leaves out what its viewer may not do; that alone would not stop a message that somebody made
by hand. So each function that changes runs or files, or starts a process, is a `deed`. What comes over the live route has
its gate there (live.py). tests/dashboard/test_gate.py finds a deed that passes no gate.
"""

import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import streamlit as st

from moe_core.dashboard.address import TURNS, Door, door
from moe_core.dashboard.log import note

ROLE = "moescope-role"  # the header
LOOKING = "You are looking; the teacher turns."
REFUSED = "With this link you only look; nothing was changed."
P = ParamSpec("P")
R = TypeVar("R")


def opened() -> Door:
    """Who may reach the server, by its settings. If one of them is not valid, the server does not start."""
    try:
        return door(st.get_option("server.address") or "", os.environ.get("MOE_ALLOW", ""))
    except ValueError as error:
        sys.exit(f"moe: {error}")


DOOR = opened()


def looks() -> bool:
    """Whether the page that is drawn now only looks. Of a page whose browser has gone Streamlit has no headers: where a token is
    asked for, it only looks too."""
    return bool(DOOR.token) and st.context.headers.get(ROLE) != TURNS


def only_looking(left_out: str = "") -> bool:
    """Whether this viewer only looks. If so the page says that here, and `left_out`, a sentence about what is missing here."""
    if looks():
        st.caption(f"{LOOKING} {left_out}".strip())
    return looks()


def deed(do: Callable[P, R]) -> Callable[P, R]:
    """A function that only those who turn get through to: for anybody else the page says why, and ends there."""

    @wraps(do)
    def gated(*given: P.args, **named: P.kwargs) -> R:
        if looks():
            note("deed refused", f"{do.__name__}: by somebody who only looks")
            st.error(REFUSED)
            st.stop()
        return do(*given, **named)

    return gated
