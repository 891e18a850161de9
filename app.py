"""The ASGI app: the Streamlit script, the live route, and the guard around both. `streamlit run app.py` serves it."""

import sys

try:
    import fcntl  # noqa: F401
except ImportError:
    sys.exit("moe: this system has no file locks (fcntl): MoEscope runs on Linux and macOS, on Windows in WSL")

import streamlit as st

from moe_core.dashboard import serving
from moe_core.dashboard.live import routes
from moe_core.folders import PACKAGE

app = st.App(
    PACKAGE / "dashboard" / "main.py",
    routes=routes(st.get_option("server.baseUrlPath")),
    middleware=serving.MIDDLEWARE,
    lifespan=serving.say_where,
)
