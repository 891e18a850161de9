"""The live route: a WebSocket that sends the page's numbers and charts as they change, and the files that draw them.

The server decimates and calls the figures' specs; the browser draws them, or hands them to Plotly.react. What a person turns comes
back over the same socket, checked by the same guard. A frame (frames.py) leaves out the figures whose bytes did not change,
and is sent only after the viewer has drawn the one before.
"""

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import plotly
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from moe_core.dashboard import choosing, starting
from moe_core.dashboard.address import TURNS
from moe_core.dashboard.gate import REFUSED, ROLE
from moe_core.dashboard.links import run_name
from moe_core.dashboard.log import note, short
from moe_core.dashboard.messages import Deed, Refused
from moe_core.dashboard.panel import act, did_not_start
from moe_core.dashboard.shared import join, leave_all, watchers
from moe_core.dashboard.viewer import LONGEST, WORDS, Viewer, viewers
from moe_core.runs import reap, runs_folder, words_of_failure
from moe_core.runs.log import LOG

EARLY = 0.005  # seconds by which a frame is to be ready before the last one is drawn
SOON = 0.02  # seconds until the next frame while a turn waits to take effect,
AT_ONCE = 0.004  # and between two looks at the log
GREETING = 10.0  # seconds for a socket to say what it shows; until then it does not count as a viewer
STARTING = 60.0  # seconds that a trainer may take until its record exists
MOST = 128  # viewers at once: three tabs each of a class of thirty, and some; and as many who turn
NO_RUN = "there is no such run"

HERE = Path(__file__).parent / "component"
PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
FILES = {path.name: path for path in [*sorted(HERE.glob("*.js")), *sorted(HERE.glob("*.css")), PLOTLY]}


async def stream(websocket: WebSocket) -> None:
    """One viewer of one run: frames out, acknowledgements and deeds in, until either goes away. Closed here only."""
    await websocket.accept()
    viewer = Viewer(looks=websocket.headers.get(ROLE) != TURNS)
    try:
        code, reason = await serve(websocket, viewer)
        await websocket.close(code, short(reason, 120))
    except WebSocketDisconnect:
        pass
    finally:
        viewers.discard(viewer)
        leave_all(viewer)


async def serve(websocket: WebSocket, viewer: Viewer) -> tuple[int, str]:
    """Serve a viewer until the socket has to be closed. Returns the code to close it with and the reason."""
    try:
        path = (runs_folder() / run_name(websocket.path_params["run"])).absolute()
    except ValueError:
        return 4404, NO_RUN
    if not path.is_dir():
        return 4404, NO_RUN
    try:
        await asyncio.wait_for(take(websocket, viewer), GREETING)
    except TimeoutError:
        return 4408, f"no message came for {GREETING:g} s; reload the page"
    except Refused as error:
        return refuse(error)
    if sum(other.looks == viewer.looks for other in viewers) >= MOST:
        note("viewers", f"{MOST} pages look at runs already; another one was refused")
        return 4429, f"{MOST} pages look at runs already; close one"
    viewers.add(viewer)
    if asked := starting.unstarted(path.name):
        viewer.feed = asked
        await websocket.send_bytes(await asyncio.to_thread(viewer.frame))  # type: ignore[arg-type]
    if reason := await wait_for_run(path):
        return 4404, reason
    listening: asyncio.Task[tuple[int, str]] | None = None
    try:
        viewer.feed = await asyncio.to_thread(join, path, viewer)
        listening = asyncio.create_task(listen(websocket, viewer))
        await show(websocket, viewer, listening)
        return await listening
    except (ValueError, KeyError, TypeError) as error:
        return 4400, str(error)
    finally:
        if listening:
            listening.cancel()
            await asyncio.wait([listening])


async def show(websocket: WebSocket, viewer: Viewer, listening: "asyncio.Task[Any]") -> None:
    """Send frames while the viewer is connected: one whenever something changed, after the last one was drawn. It is made while the
    viewer still draws."""
    feed = viewer.feed
    while not listening.done():
        viewer.woken.clear()
        if feed.waiting:  # the step that is waited for may come while the viewer draws
            await first_of(viewer.drawn.wait(), listening)
        began, asked = time.monotonic(), viewer.asked
        frame = await asyncio.to_thread(viewer.timed_frame)
        made = time.monotonic()
        if frame is not None:
            behind = 2.0
            while 0 < feed.behind < behind and not viewer.drawn.is_set() and not listening.done():
                behind = feed.behind  # where a record is damaged it stays behind
                await asyncio.to_thread(feed.catch_up)
            # A hidden tab draws nothing: it gets no further frame until it has drawn this one.
            await first_of(viewer.drawn.wait(), listening)
            if listening.done():
                return
            if viewer.asked is not asked or time.monotonic() - made > LONGEST:
                viewer.forget()  # the frame is of another view, or old by now
                continue
            viewer.drawn.clear()
            now = time.monotonic()
            viewer.awaited, viewer.gap, viewer.sent_at = viewer.seq, min(LONGEST, now - viewer.sent_at), now
            await websocket.send_bytes(frame)
        # A tick counts from one frame to the next, and a frame is ready just before the last one is drawn.
        rest = max(0.002, viewer.tick() - (time.monotonic() - began), viewer.lag - (made - began) - EARLY)
        if frame is None and feed.status().state == "training" and not feed.behind:
            await next_step(viewer, listening)
            continue
        if feed.waiting or feed.behind:
            rest = SOON
        elif frame is None:
            rest = WORDS  # where nothing trains little is new but deeds, and those wake the viewer
        await first_of(viewer.woken.wait(), listening, timeout=rest)


async def next_step(viewer: Viewer, listening: "asyncio.Task[Any]") -> None:
    """Wait until the run's log is written to, or the viewer asks for something else; no longer than until words are due."""
    feed, until = viewer.feed, time.monotonic() + WORDS
    pause = AT_ONCE if feed.waiting else max(viewer.tick(), viewer.gap) / 8
    while time.monotonic() < until and not (viewer.woken.is_set() or listening.done()):
        await asyncio.sleep(pause)
        if feed.log.has_news(feed.path):
            return


async def wait_for_run(path: Path) -> str:
    """Wait until a trainer that was just started has made its record. Returns "", or why there will be none. A run.db that
    is no file ends the wait too: it is refused where it is opened."""
    until = time.monotonic() + STARTING
    while not os.path.lexists(path / "run.db"):
        reap()
        if not os.path.lexists(path / LOG):
            return NO_RUN
        if time.monotonic() > until or did_not_start(path):
            return f"the trainer did not start: {words_of_failure(path)}"
        await asyncio.sleep(SOON)
    return ""


async def first_of(happens: Any, listening: "asyncio.Task[Any]", timeout: float | None = None) -> None:
    """Wait until `happens` is done, the viewer leaves, or the time is up."""
    waiting = asyncio.create_task(happens)
    await asyncio.wait([waiting, listening], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


async def listen(websocket: WebSocket, viewer: Viewer) -> tuple[int, str]:
    """Take a viewer's messages until one is not valid. Returns the code to close with and why; raises WebSocketDisconnect when
    the viewer leaves."""
    try:
        while True:
            deed = await take(websocket, viewer)
            if deed is not None:
                await do(viewer, deed)
    except Refused as error:
        return refuse(error)


async def take(websocket: WebSocket, viewer: Viewer) -> Deed | None:
    """The viewer's next message."""
    message = await websocket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005))
    if message.get("text") is None:
        raise Refused("a message must be text, got bytes")
    return viewer.hear(message["text"])


def refuse(error: Refused) -> tuple[int, str]:
    note("message refused", str(error))
    return 4400, str(error)


async def do(viewer: Viewer, deed: Deed) -> None:
    """Carry out a viewer's deed, unless it only looks, and send everyone who watches the run a new frame at once."""
    feed = viewer.feed
    assert feed is not None
    answer: dict[str, Any] = {"nth": deed.nth, "error": ""}
    try:
        if viewer.looks:
            raise ValueError(REFUSED)
        answer |= await asyncio.to_thread(act, feed.run, deed)
    except (ValueError, OSError) as error:
        answer["error"] = str(error)
    # The store is read first. Otherwise a frame could carry the answer with a panel from before the turn: the page would show the old
    # value again, and a key pressed then would start from it.
    await asyncio.to_thread(feed.refresh, now=True)
    viewer.answer = answer
    for other in watchers(feed.run.path):
        other.woken.set()


def file(request: Request) -> Response:
    """The component's scripts and style, and plotly.js out of the installed package."""
    path = FILES.get(request.path_params["name"])
    if path is None:
        return Response(status_code=404)
    long = "max-age=31536000, immutable" if path == PLOTLY else "no-cache"
    return FileResponse(path, headers={"Cache-Control": long})


def list_runs(request: Request) -> Response:
    """The runs, as the chooser and the page of all runs list them; the query says which, and in what order."""
    reap()
    return JSONResponse(choosing.listed(request.query_params))


def home(request: Request) -> Response:
    """Live is the first page, and has its own link too. Relative: a proxy may serve it below a longer path."""
    query = f"?{request.url.query}" if request.url.query else ""
    return RedirectResponse(f"./{query}")


def routes(base: str) -> list[BaseRoute]:
    """The routes of this module, below the path that the server was started with (server.baseUrlPath)."""
    base = f"/{base.strip('/')}".rstrip("/")
    return [
        Route(f"{base}/live", home),
        Route(f"{base}/moescope/runs", list_runs),
        Route(f"{base}/moescope/{{name}}", file),
        WebSocketRoute(f"{base}/moescope/live/{{run}}", stream),
    ]
