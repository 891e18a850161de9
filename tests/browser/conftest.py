"""A cold server on a free port, and a real Chromium to drive its pages with."""

import contextlib
import errno
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Error, Page, expect, sync_playwright

from moe_core.runs import is_alive
from tests.browser.pages import make
from tests.chromium import FLAGS, find
from tests.server import Server

PATIENCE = 30_000  # ms that a slow machine may take for what takes a moment
expect.set_options(timeout=PATIENCE)

# What a browser says on its console and is not ours: Streamlit probes for its own paths below a page's, once a cold load.
PROBE = re.compile(r"/_stcore/(health|host-config)$")
# What it says only in a tab whose server was killed while it was open.
SERVER_KILLED = (
    "ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE|ERR_INCOMPLETE_CHUNKED_ENCODING|ERR_CONTENT_LENGTH_MISMATCH",
    "WebSocket connection",
    "when disconnected from server",
    "Streamlit server is not responding",
    "Client Error in reaching server endpoint - No response",
    "Failed to fetch dynamically imported module: .*/static/js/",
)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for a module's tests, which ask for `server`."""
    server = Server(tmp_path_factory.mktemp("runs"))
    yield server
    server.kill()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server and one folder of the runs that LINKS name, for a module's tests."""
    runs = tmp_path_factory.mktemp("runs")
    make(runs)
    server = Server(runs)
    yield server
    server.kill()
    end_trainers(runs)


@pytest.fixture
def server(running: Server) -> Iterator[Server]:
    """The module's server, whoever killed it before, without runs and with none at the end."""
    if running.process.poll() is not None:
        running.start()
    yield running
    end_trainers(running.runs)
    for path in running.runs.iterdir():
        remove(path) if path.is_dir() else path.unlink()


def remove(folder: Path) -> None:
    """A page that is still open may put run.seen into a folder that is being emptied; the folder is then emptied once more."""
    try:
        shutil.rmtree(folder)
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        shutil.rmtree(folder)


@pytest.fixture
def cold(server: Server) -> Server:
    """The server in its first moment: for what a page must be able to do on the first request of all."""
    server.kill()
    server.start()
    return server


def until(happens: Callable[[], object], page: Page) -> None:
    """Wait until something is so that a page does not show."""
    end = time.monotonic() + PATIENCE / 1000
    while not happens():
        assert time.monotonic() < end, "it did not come to that"
        page.wait_for_timeout(20)


def end_trainers(runs: Path) -> None:
    """Kill every process of ours at work in these runs, one that has not made its run yet too. Asking takes five seconds each."""
    for told in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = told.read_bytes().split(b"\0")
            if b"moe_core" in words and any(bytes(runs) in word for word in words):
                os.kill(int(told.parent.name), signal.SIGKILL)
    for path in runs.iterdir():
        while is_alive(path):  # the kernel lets go of the lock of a process that has ended
            time.sleep(0.01)


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


def wait_for_function(page: Page, expression: str, arg: object = None, timeout: float = 2 * PATIENCE) -> None:
    """As playwright's own, which our content security policy refuses: it evaluates a string within the page."""
    end, answer = time.monotonic() + timeout / 1000, None
    while True:
        try:
            answer = page.evaluate(expression, arg)
            if answer:
                return
        except Error as error:  # a page on its way to another has no answer
            answer = error
        assert time.monotonic() < end, f"it did not come to {expression}: {answer}"
        page.wait_for_timeout(20)


@pytest.fixture
def tab(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens tabs, each a session of its own; at the end none may have said an error of ours."""
    contexts, complaints = [], []

    def open_tab(url: str, width: int = 1280, height: int = 800, theme: str = "light", dense: float = 1) -> Page:
        """dense: pixels of the screen for one of CSS."""
        kills = Server.kills

        def hear(kind: str, text: str, at: str) -> None:
            if kind != "error" or ("404" in text and PROBE.search(at)):
                return
            if Server.kills == kills or not any(re.search(known, text) for known in SERVER_KILLED):
                complaints.append(f"{text} {at}")

        def asked(at: str) -> None:
            """Nothing leaves this machine: a page asks the server that it is of, or a file of the disk."""
            if urlsplit(at).hostname not in (None, "127.0.0.1", "localhost"):
                complaints.append(f"a request to {at}")

        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=theme, device_scale_factor=dense
        )
        contexts.append(context)
        context.set_default_timeout(2 * PATIENCE)
        page = context.new_page()
        page.on("console", lambda message: hear(message.type, message.text, message.location.get("url", "")))
        page.on("pageerror", lambda error: hear("error", str(error), ""))
        page.on("request", lambda request: asked(request.url))
        page.on("websocket", lambda websocket: asked(websocket.url))
        page.wait_for_function = partial(wait_for_function, page)
        page.goto(url)
        return page

    yield open_tab
    for context in contexts:
        context.close()
    assert complaints == []
