"""The Experts page: the choice of an expert."""

from typing import Any

import streamlit as st

from moe_core.dashboard import controls, links
from moe_core.runs import Run


def page() -> None:
    """Choose an expert in the sidebar or by a click on its bar; see what it does."""
    controls.page("experts", options)


def options(run: Run) -> dict[str, Any]:
    """The expert that the link names; the chooser beside the knobs writes it there. Without one the busiest expert is shown,
    the same one until the person chooses another or asks for the busiest again.
    """
    E = max(run.description.experts)
    named = links.word("expert")
    current = named if named and named <= E else None
    key = f"expert-{run.id}"
    st.session_state[key] = current

    def go() -> None:
        picked = st.session_state[key]
        if picked is None:
            del st.query_params["expert"]
        else:
            st.query_params["expert"] = str(picked)

    def choose_again() -> None:
        st.query_params.pop("expert", None)
        st.session_state["busiest-again"] = asked + 1

    asked = int(st.session_state.get("busiest-again", 0))
    st.sidebar.selectbox("Expert", list(range(1, E + 1)), index=None, key=key, on_change=go, placeholder="the busiest")
    st.sidebar.button("Choose the busiest now", on_click=choose_again, width="stretch")
    if current is not None:
        return {"expert": current}
    return {"again": asked} if asked else {}
