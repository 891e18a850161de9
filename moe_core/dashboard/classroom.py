"""A class: those who only look follow the lesson and the run that a teacher's Learn page shows.

Kept in the server's memory: whoever comes late, or back, sees what is shown now. A page of theirs follows for as long as its
link names neither a lesson nor a run; once they choose another lesson it does not, until they follow again.
"""

import secrets
from collections.abc import Callable
from typing import NamedTuple

import streamlit as st

from moe_core.dashboard import gate, links
from moe_core.dashboard.address import class_link
from moe_core.dashboard.gate import LOOKING, deed, looks
from moe_core.dashboard.shared import watchers
from moe_core.lessons import LESSONS
from moe_core.runs import runs_folder

TAB = "class-tab"  # in a tab's state: the tab's name
ELSEWHERE = "Open this page by the address that the class uses; the link for them is then shown here."


class Shown(NamedTuple):
    """A lesson, and its run: None before it is started. by: the tab that leads."""

    lesson: int
    run: str | None
    by: str


_shown: Shown | None = None  # to the class; None while nobody teaches


def followed() -> Shown | None:
    """What this page follows; None if it does not, or there is nothing to follow."""
    return _shown if follows() else None


def follows() -> bool:
    return looks() and not links.word("lesson") and not links.word("run")


def take_up() -> Shown | None:
    """What this page follows, for it to draw. What is new to it is opened as the teacher does: at its layer and its last step."""
    shown = followed()
    if shown and st.session_state.get("followed") != shown:
        st.session_state["followed"] = shown
        st.query_params.clear()
    if shown and LESSONS[shown.lesson - 1].layer > 1 and not links.word("layer"):
        st.query_params["layer"] = str(LESSONS[shown.lesson - 1].layer)
    return shown


def bar(lesson: int, run: str | None, start: Callable[[], None]) -> None:
    """The class's part of a Learn page: for a teacher what the class sees, for the class whether the page follows.

    start: starts the lesson's run.
    """
    if looks():
        follow()
    elif gate.DOOR.look:
        lead_on(lesson, run)
        with st.popover("For the class", width="stretch"):
            st.fragment(teach, run_every=2.0)(lesson, run, start)


def follow() -> None:
    """For one who only looks: what the class is shown, and the way back to it."""
    shown = _shown  # the teacher may stop meanwhile
    if follows():
        st.caption(f"{LOOKING} This page follows the class{'.' if shown else '; the teacher shows nothing new now.'}")
    elif not shown:
        st.caption(LOOKING)
    else:
        st.caption(f"{LOOKING} The class is at lesson {shown.lesson}.")
        st.button("Follow the class", key="class-follow", on_click=st.query_params.clear, width="stretch")


def leads() -> bool:
    """Whether the class sees what this tab shows."""
    return _shown is not None and _shown.by == st.session_state.get(TAB)


def lead_on(lesson: int, run: str | None) -> None:
    """What the tab that leads shows is what the class sees. A page that is loaded again, and shows just that, leads from then on."""
    loaded = TAB not in st.session_state
    tab = st.session_state.setdefault(TAB, secrets.token_hex(8))
    if leads() or (loaded and _shown and _shown[:2] == (lesson, run)):
        show(Shown(lesson, run, tab))


def teach(lesson: int, run: str | None, start: Callable[[], None]) -> None:
    """For the teacher: show this lesson, the link to hand out, and how many look."""
    url = class_link(gate.DOOR, st.context.url or "")
    if url:
        st.code(url, language=None, wrap_lines=True)
    st.caption("Whoever opens this link looks, and turns nothing." if url else ELSEWHERE)
    if not leads():
        label = "Show to the class" if run else "Start for the class"
        if st.button(label, key="class-lead", type="primary", width="stretch"):
            lead(lesson, run, start)
            st.rerun()  # of the whole page: this is a fragment
        return
    count = sum(viewer.looks for viewer in watchers((runs_folder() / run).absolute())) if run else 0
    pages = "1 page looks" if count == 1 else f"{count} pages look"
    st.markdown(f"The class sees what this tab shows on Learn. **{pages}** at this run now.")
    if st.button("Stop showing", key="class-stop", width="stretch"):
        stop()
        st.rerun()


@deed
def show(shown: Shown | None) -> None:
    global _shown
    _shown = shown


def lead(lesson: int, run: str | None, start: Callable[[], None]) -> None:
    """Show this tab's lesson to the class, its run started if it has none."""
    show(Shown(lesson, run, st.session_state[TAB]))
    if not run:
        start()


def stop() -> None:
    """Those who look keep what they see, and follow no more."""
    show(None)
