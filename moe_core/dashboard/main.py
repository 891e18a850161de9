"""The script that Streamlit runs for every page: the frame, the sidebar, then the page. app.py serves it."""

from pathlib import Path

import streamlit as st

from moe_core.dashboard import controls, links
from moe_core.folders import PAGES

# A file: Streamlit would fetch an icon given by name from another server.
ICON = Path(__file__).parent / "component" / "icon.svg"
st.set_page_config("MoEscope", ICON, layout="wide", initial_sidebar_state=288)
controls.style()
links.say_unread()
pages = [
    st.Page(PAGES / "live.py", title="Live", default=True),
    st.Page(PAGES / "routing.py", title="Routing"),
    st.Page(PAGES / "experts.py", title="Experts"),
    st.Page(PAGES / "compare.py", title="Compare"),
    st.Page(PAGES / "sweep.py", title="Sweep"),
    st.Page(PAGES / "batch.py", title="Batch"),
    st.Page(PAGES / "learn.py", title="Learn"),
    st.Page(PAGES / "export.py", title="Export"),
    st.Page(PAGES / "runs.py", title="Runs"),
]
st.navigation(pages, position="top").run()
