"""The live route: a WebSocket that sends the page's numbers and charts as they change, and the files that draw them.

The server decimates and calls the figures' specs; the browser draws them, or hands them to Plotly.react. What a person turns comes
back over the same socket, checked by the same guard. A frame (frames.py) leaves out the figures whose bytes did not change,
and is sent only after the viewer has drawn the one before.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plotly
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from moe_core.dashboard import choosing, going, starting
from moe_core.dashboard.address import TURNS
from moe_core.dashboard.feed import JUDGED
from moe_core.dashboard.frames import Part, framed, packed
from moe_core.dashboard.gate import REFUSED, ROLE
from moe_core.dashboard.links import run_name
from moe_core.dashboard.log import note, short
from moe_core.dashboard.messages import Deed, Refused, parsed
from moe_core.dashboard.panel import act, banner, did_not_start, findings, panel
from moe_core.dashboard.shared import join, leave_all, watchers
from moe_core.dashboard.views import View, hold_busiest, view_of
from moe_core.figures.catalog import FIGURES, offered, tiles_of
from moe_core.figures.smooth import SMOOTH, over_steps, with_means
from moe_core.figures.theme import THEMES, paper_colours
from moe_core.runs import last_words, reap, runs_folder
from moe_core.runs.source import At
from moe_core.schema import STAT, first_line

SHORTEST, LONGEST = 1 / 30, 0.2  # seconds between two frames to a viewer: as few as it and the server have time for
HALF = 0.5  # of a viewer's time that frames may take
SERVED = 0.25  # of a core that the frames of all viewers may take
WORDS = 0.1  # seconds between two updates of the numbers and words beside the figures: nobody reads quicker
SOON = 0.02  # seconds until the next frame while a turn waits to take effect
GREETING = 10.0  # seconds for a socket to say what it shows; until then it does not count as a viewer
STARTING = 60.0  # seconds that a trainer may take until its record exists
MOST = 128  # viewers at once: three tabs each of a class of thirty, and some; and as many who turn
DIAGNOSED = ("live", "routing")  # the pages that show the diagnosis

HERE = Path(__file__).parent / "component"
PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
FILES = {path.name: path for path in [*sorted(HERE.glob("*.js")), *sorted(HERE.glob("*.css")), PLOTLY]}


class Viewer:
    """One open page: which page, layer and step it shows, how large its charts are, and which parts it has drawn. looks: it
    only looks, and turns nothing."""

    def __init__(self, looks: bool = False) -> None:
        self.looks = looks
        self.feed: Any = None  # a Feed, or an Unstarted while the run is starting
        self.asked: dict[str, Any] = {}
        self.sent: dict[str, bytes] = {}
        self.drawn, self.woken = asyncio.Event(), asyncio.Event()
        self.seq = 0
        # Seconds that the last frame kept the viewer busy, and that it took to make; and when it was made.
        self.took, self.made, self.sent_at = 0.0, 0.0, 0.0
        # What the last frame was made from; while it is the same there is no new frame.
        self.state: tuple[Any, ...] = (None, None)
        self.last_words: dict[str, Any] = {}
        self.words_sent, self.words_owed = (
            -WORDS,
            False,
        )  # when they were sent, and whether a frame was sent without newer ones
        self.answer: dict[str, Any] = {}  # how the viewer's last deed ended: its number, and the error or ""

    def hear(self, text: str) -> Deed | None:
        """Take in a message. Returns a deed, for the caller to carry out; a view (page, layer, step, sizes, and the frame that
        was drawn last) is kept here. Raises Refused for a message that no page sends."""
        message = parsed(text)
        if isinstance(message, Deed):
            if not self.asked:
                raise Refused(
                    "the first message must say which page, layer and step are shown, got a deed; send a view first"
                )
            return message
        asked = {name: value for name, value in message._asdict().items() if name not in ("drawn", "took")}
        if any(asked[name] != self.asked.get(name) for name in ("theme", "page", "layer")):
            self.sent.clear()
        if asked != self.asked:
            self.asked = asked
            self.woken.set()
        if message.drawn == self.seq:
            self.took = message.took / 1000
            self.drawn.set()
        return None

    def frame(self) -> bytes | None:
        """The next frame; None when nothing changed. It has every figure that changed, and ten times a second (at once if the viewer
        waits for them) the numbers and words beside the figures."""
        feed, asked = self.feed, self.asked
        assert feed is not None
        feed.refresh(now=feed.waiting)
        source = view_of(feed, asked["options"], self)
        layer = min(max(asked["layer"], 0), len(feed.description.layers) - 1)
        step = asked["step"] if asked["step"] is not None and asked["step"] < feed.last else None
        ended, now = feed.status().state, time.monotonic()
        waits = asked, self.answer, ended, going.on(feed.path, ended), going.problem(feed.path, ended)
        state, since = (feed.version, waits, source.news(asked["page"])), now - self.words_sent
        due = step is not None or waits != self.state[1] or since >= WORDS
        if state == self.state and not (due and self.words_owed) and since < JUDGED:
            return None
        busiest = hold_busiest(source, layer, step or feed.last) if asked["page"] == "experts" else None
        words = self.words(source, layer, step) if due else self.last_words
        if due:
            self.words_sent = now
        if state == self.state and not self.words_owed and words == self.last_words:
            return None
        figures: dict[str, Part] = {}
        for name, size in asked["sizes"].items() if state != self.state else ():
            self.draw(source, name, size, layer, step, figures)
        self.state, self.last_words, self.words_owed = state, words, not due
        header = {"step": step or feed.last, "last": feed.last, "past": step is not None, "answer": self.answer}
        parts: dict[str, Part] = {}
        if due:
            problems = (run.problem for run in (feed, *source.others) if run.problem)
            header |= words | {"busiest": busiest, "problem": next(problems, words["problem"])}
            self.add("paper", paper_colours(THEMES[asked["theme"]]), parts)
            if shown := header.pop("panel"):
                self.add("panel", shown, parts)
        self.seq += 1
        header["seq"] = self.seq
        return framed({name: packed(value) for name, value in header.items()} | parts, figures)

    def words(self, source: View, layer: int, step: int | None) -> dict[str, Any]:
        """What a frame says beside its figures. Of a part that cannot be made there is the reason instead, under `problem`."""
        feed, page = self.feed, self.asked["page"]
        undrawn: list[str] = []

        def part(name: str, make: Callable[[], Any], instead: Any) -> Any:
            try:
                return make()
            except Exception as error:
                undrawn.append(undrawable(feed.id, name, error))
                return instead

        # Findings are of the last step only: a remedy offered at a past step would act on the run as it is now.
        diagnosed = page in DIAGNOSED and step is None
        return {
            "findings": part("diagnosis", lambda: findings(feed, layer, self.looks), []) if diagnosed else [],
            "reading": round(feed.behind, 3),
            "reason": feed.status().reason,
            "banner": part("banner", lambda: banner(feed, layer, self.looks), None),
            "turned": any(change.step is not None for change in feed.knob_changes()),
            "tiles": [
                tile._asdict() | {"help": help_of(tile.name)}
                for tile in part("numbers", lambda: tiles_of(page, source, At(layer, step)), [])
            ],
            "panel": part("panel", lambda: panel(feed, step, self.looks), None),
            "problem": " ".join(undrawn),
        }

    def timed_frame(self) -> bytes | None:
        """frame(), and how much of the server's time it took is kept."""
        began = time.thread_time()
        frame = self.frame()
        if frame is not None:
            self.made, self.sent_at = time.thread_time() - began, time.monotonic()
        return frame

    def tick(self) -> float:
        """Seconds from one frame to the next: each viewer's frames take half of its time at most, and all viewers' a share of the server's."""
        now = time.monotonic()
        made = sum(viewer.made for viewer in _viewers if now - viewer.sent_at < 1)
        return min(LONGEST, max(SHORTEST, self.took / HALF, made / SERVED))

    def draw(
        self,
        source: View,
        name: str,
        size: tuple[int, int],
        layer: int,
        step: int | None,
        figures: dict[str, Part],
    ) -> None:
        """Add a figure to the frame if it suits the run and has changed; if it cannot be drawn, add why."""
        asked, entry = self.asked, FIGURES.get(name)
        if entry is None:
            return
        width, height = size
        theme = THEMES[asked["theme"]]
        try:
            if not offered(source, name):
                return
            at = At(layer, step, asked["span"], max(100, width // 3))
            look = {"theme": theme, "size": (width, height, asked["wide"])}
            spec = entry.draw.spec(**entry.read(source, at), **look)
            spec["layout"]["meta"].pop("untold", None)  # a page tells it on hover
            if over_steps(spec):
                spec["layout"]["meta"]["smooth"] = 1  # the page offers to draw its means
                if (over := asked["options"].get("smooth")) in SMOOTH:
                    spec = with_means(spec, entry.draw.spec(**entry.read(source.means(over), at), **look), over)
        except Exception as error:
            spec = {"problem": undrawable(source.id, entry.title, error)}
        self.add(name, spec, figures)

    def add(self, name: str, value: Any, into: dict[str, Part]) -> None:
        """Put a part into the frame, unless the viewer has this very part already."""
        part = packed(value)
        if self.sent.get(name) != (mark := part.mark):
            self.sent[name] = mark
            into[name] = part


_logged: set[tuple[str, str, type]] = set()


def undrawable(run: str, name: str, error: Exception) -> str:
    """What the page says of a part that cannot be drawn. The log says it once for a run, with where it went wrong."""
    key = run, name, type(error)
    if key not in _logged:
        _logged.add(key)
        logging.getLogger("moescope").error("%s of run %s cannot be drawn", name, run, exc_info=error)
    reason = first_line(error)[:200]
    return f"{name} cannot be drawn: {type(error).__name__} {reason}".rstrip() + "; the server's log says where."


def help_of(stat: str) -> str:
    """The explanation shown when the pointer rests on a tile; "" for a tile that is not a statistic."""
    return STAT[stat].help if stat in STAT else ""


_viewers: set[Viewer] = set()


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
        _viewers.discard(viewer)
        leave_all(viewer)


async def serve(websocket: WebSocket, viewer: Viewer) -> tuple[int, str]:
    """Serve a viewer until the socket has to be closed. Returns the code to close it with and the reason."""
    try:
        path = (runs_folder() / run_name(websocket.path_params["run"])).absolute()
    except ValueError:
        return 4404, "there is no such run"
    if not path.is_dir():
        return 4404, "there is no such run"
    try:
        await asyncio.wait_for(take(websocket, viewer), GREETING)
    except TimeoutError:
        return 4408, f"no message came for {GREETING:g} s; reload the page"
    except Refused as error:
        return refuse(error)
    if sum(other.looks == viewer.looks for other in _viewers) >= MOST:
        note("viewers", f"{MOST} pages look at runs already; another one was refused")
        return 4429, f"{MOST} pages look at runs already; close one"
    _viewers.add(viewer)
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
    """Send frames while the viewer is connected: one whenever something changed, after the last one was drawn."""
    feed = viewer.feed
    while not listening.done():
        viewer.drawn.clear()
        viewer.woken.clear()
        began = time.monotonic()
        frame = await asyncio.to_thread(viewer.timed_frame)
        if frame is not None:
            await websocket.send_bytes(frame)
            while feed.behind and not viewer.drawn.is_set() and not listening.done():  # while the browser draws
                await asyncio.to_thread(feed.catch_up)
            # A hidden tab draws nothing: it gets no further frame until it has drawn this one.
            await first_of(viewer.drawn.wait(), listening)
        # A tick counts from one frame to the next, however long the viewer took to draw.
        rest = max(0.002, viewer.tick() - (time.monotonic() - began))
        if feed.waiting or feed.behind or (frame is None and feed.status().state == "training"):
            rest = SOON  # the next step may be there any moment
        await first_of(viewer.woken.wait(), listening, timeout=rest)


async def wait_for_run(path: Path) -> str:
    """Wait until a trainer that was just started has made its record. Returns "", or why there will be none."""
    until = time.monotonic() + STARTING
    while not (path / "run.db").is_file():
        reap()
        if time.monotonic() > until or not (path / "trainer.log").exists() or did_not_start(path):
            return f"the trainer did not start: {last_words(path)}"
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
    viewer.answer = answer
    feed.looked = 0.0
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
