"""A cold server on a free port, and a real Chromium to drive its pages with."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.chromium import FLAGS, find

ROOT = Path(__file__).parents[2]


class Server:
    """`streamlit run app.py` as a person starts it, with its runs in a folder of its own."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        words = [
            sys.executable,
            "-m",
            "streamlit",
            "run",
            "app.py",
            "--server.headless",
            "true",
            "--server.port",
            str(self.port),
        ]
        self.process = subprocess.Popen(
            words, cwd=ROOT, env={**os.environ, "MOE_RUNS": str(self.runs)}, stdout=subprocess.DEVNULL
        )
        until = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/_stcore/health", timeout=2).close()
                return
            except OSError:
                assert time.monotonic() < until, "the server does not answer"
                time.sleep(0.1)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.kill()
    stop_trainers(tmp_path)


def stop_trainers(runs: Path) -> None:
    from moe_core.runs import StoreError, list_runs, open_run, stop

    for listed in list_runs(runs):
        try:
            stop(open_run(listed.id, runs))
        except StoreError as error:
            print(error)


@pytest.fixture(
    scope="module"
)  # not longer: a playwright that is open is a running event loop, and asyncio.run refuses
def browser() -> Iterator[Browser]:
    path = find()
    assert path, "no Chromium: run `python tests/chromium.py`, or name one in the variable CHROMIUM"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def tab(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens tabs, each a session of its own; at the end none may have said an error of ours."""
    contexts, complaints = [], []

    def hear(message: object) -> None:
        text, kind = message.text, message.type  # type: ignore[attr-defined]
        # Streamlit probes for its own paths below a page's, once a cold load.
        if "/_stcore/" in message.location.get("url", ""):  # type: ignore[attr-defined]
            return
        # Without a network Streamlit's own look-ups fail; a killed server's sockets do.
        if kind == "error" and not any(
            known in text
            for known in (
                "ERR_NAME_NOT_RESOLVED",
                "ERR_INTERNET_DISCONNECTED",
                "ERR_CONNECTION_REFUSED",
                "WebSocket connection",
                "when disconnected from server",
                "Client Error in reaching server endpoint - No response",
            )
        ):
            complaints.append(f"{text} {message.location.get('url')}")  # type: ignore[attr-defined]

    def open_tab(url: str, width: int = 1280, height: int = 800, theme: str = "light") -> Page:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", hear)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(url)
        return page

    yield open_tab
    for context in contexts:
        context.close()
    assert complaints == []
