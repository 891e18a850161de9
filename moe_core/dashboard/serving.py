"""The start of the server: who may reach it, and the addresses that it prints."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import streamlit as st
from starlette.middleware import Middleware

from moe_core.dashboard import address
from moe_core.dashboard.gate import DOOR
from moe_core.dashboard.guard import Guard

MIDDLEWARE = [Middleware(Guard, DOOR)]

_serves = False


def serves() -> bool:
    """Whether this process is a server that answers a browser, and not a test that runs the script."""
    return _serves


@asynccontextmanager
async def say_where(app: Any) -> AsyncIterator[None]:
    """Print the addresses. Streamlit's own lines are hidden: they name addresses that are refused, and to find one of them
    it asks a server on the internet."""
    global _serves
    _serves = True
    secure = bool(st.get_option("server.sslCertFile"))
    print(
        *address.lines(DOOR, st.get_option("server.port"), st.get_option("server.baseUrlPath"), secure),
        sep="\n",
        flush=True,
    )
    yield
