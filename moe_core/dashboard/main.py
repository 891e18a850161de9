"""The script that Streamlit runs for every page: the frame, the sidebar, then the page. app.py serves it."""

import sys
from pathlib import Path

import streamlit as st

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from moe_core.dashboard import controls, links  # noqa: E402

# A file: Streamlit would fetch an icon given by name from another server.
ICON = Path(__file__).parent / "component" / "icon.svg"
st.set_page_config("MoEscope", ICON, layout="wide", initial_sidebar_state=288)
controls.style()
links.say_unread()
pages = [
    st.Page(ROOT / "pages" / "live.py", title="Live", default=True),
    st.Page(ROOT / "pages" / "routing.py", title="Routing"),
    st.Page(ROOT / "pages" / "experts.py", title="Experts"),
    st.Page(ROOT / "pages" / "compare.py", title="Compare"),
    st.Page(ROOT / "pages" / "sweep.py", title="Sweep"),
    st.Page(ROOT / "pages" / "batch.py", title="Batch"),
    st.Page(ROOT / "pages" / "learn.py", title="Learn"),
    st.Page(ROOT / "pages" / "export.py", title="Export"),
]
st.navigation(pages, position="top").run()
