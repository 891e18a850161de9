"""The live route: a WebSocket that sends the page's numbers and charts as they change, and the files that draw them.

The server decimates and calls the figures' specs; the browser only hands them to Plotly.react. What a person turns comes
back over the same socket, behind the same guard. A frame is binary: the
length of a JSON header (uint32), the header padded to 8 bytes, then the arrays that it refers to, each once. Figures
whose bytes did not change are left out. The next frame waits until the viewer has drawn the last one.
"""

import asyncio
import contextlib
import hashlib
import json
import math
import re
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import plotly
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from moe_core.dashboard import starting
from moe_core.dashboard.feed import join, leave_all, watchers
from moe_core.dashboard.panel import act, banner, chooser_entry, did_not_start, findings, panel
from moe_core.dashboard.views import View, checked, hold_busiest, look_at
from moe_core.figures.catalog import FIGURES
from moe_core.figures.theme import THEMES
from moe_core.figures.tiles import TILES
from moe_core.runs import RUN_ID, last_words, list_runs, reap, runs_folder
from moe_core.schema import STAT

TICK = 0.2  # seconds between two frames to a viewer
SOON = 0.02  # seconds until the next look while a turn waits to take effect
PATIENCE = 20.0  # seconds to wait for a viewer that does not draw
STARTING = 60.0  # seconds that a trainer may take to make its run
LONGEST = 64 * 1024  # bytes of a message from a viewer
MOST = 32  # viewers at once
DIAGNOSED = ("live", "routing")  # the pages that say what is wrong

HERE = Path(__file__).parent / "component"
PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
FILES = {path.name: path for path in [*sorted(HERE.glob("*.js")), *sorted(HERE.glob("*.css")), PLOTLY]}


class Viewer:
    """One open page: what it looks at, how large its charts are, and what it has drawn."""

    def __init__(self) -> None:
        self.feed: Any = None  # a Feed; of a run that is starting, what reads like one
        self.asked: dict[str, Any] = {}
        self.sent: dict[str, bytes] = {}
        self.drawn, self.woken = asyncio.Event(), asyncio.Event()
        self.seq = 0
        self.looked: Any = None  # the version and the question of the last frame
        self.answer: dict[str, Any] = {}  # what came of the viewer's last deed

    def hear(self, text: str) -> dict[str, Any] | None:
        """Take a message: what is looked at, and which frame was drawn. Returns one that asks for a deed.

        ValueError, KeyError or TypeError if it is not one of ours.
        """
        if len(text) > LONGEST:
            raise ValueError("a message of more than 64 KB")
        said = json.loads(text)
        if not isinstance(said, dict):
            raise ValueError("a message that is not ours")
        if said.keys() & {"turn", "command", "fork"}:
            return said
        theme, page, layer, step = said["theme"], said["page"], int(said["layer"]), said.get("step")
        sizes, span = said["sizes"], said.get("span")
        if theme not in THEMES or not re.fullmatch(r"\w{0,40}", page) or not isinstance(sizes, dict):
            raise ValueError("a message that is not ours")
        if step is not None and (type(step) is not int or not 0 < step < 2**53):
            raise ValueError(f"a step is a whole number from 1 on, got {step!r}")
        if span is not None:
            low, high = map(float, span)
            if not -(2**53) < low < high < 2**53:
                raise ValueError(f"a span is two steps, the lower first, got {span!r}")
            span = (low, high)
        asked = {"theme": theme, "page": page, "layer": layer, "step": step, "sizes": sizes, "span": span}
        asked |= {"wide": said.get("wide") is True, "options": checked(said.get("options") or {})}
        if any(asked[name] != self.asked.get(name) for name in ("theme", "page", "layer")):
            self.sent.clear()
        if asked != self.asked:
            self.asked = asked
            self.woken.set()
        if said.get("drawn") == self.seq:
            self.drawn.set()
        return None

    def frame(self) -> bytes | None:
        """The next frame; None when nothing changed."""
        feed, asked = self.feed, self.asked
        assert feed is not None
        feed.refresh(now=feed.waiting)
        source = look_at(feed, asked["options"], self)
        layer = min(max(asked["layer"], 0), feed.config.layers - 1)
        step = asked["step"] if asked["step"] is not None and asked["step"] < feed.last else None
        # What is wrong is said of now: at a past step a remedy would mend something else.
        found = findings(feed, layer) if asked["page"] in DIAGNOSED and step is None else []
        looked = feed.version, asked, self.answer, source.news(asked["page"]), found
        if looked == self.looked:
            return None
        self.looked = looked
        busiest = hold_busiest(source, layer, step or feed.last) if asked["page"] == "experts" else None
        tiles = TILES.get(asked["page"])
        arrays = Arrays()
        header: dict[str, Any] = {
            "step": step or feed.last,
            "last": feed.last,
            "past": step is not None,
            "reading": round(feed.behind, 3),
            "problem": next((one.problem for one in (feed, *source.others) if one.problem), ""),
            "reason": feed.status().reason,
            "answer": self.answer,
            "busiest": busiest,
            "banner": banner(feed, layer),
            "findings": found,
            "turned": any(change.step is not None for change in feed.knob_changes()),
            "tiles": [tile._asdict() | {"help": help_of(tile.name)} for tile in tiles(source, layer, step)]
            if tiles
            else [],
        }
        for name, size in asked["sizes"].items():
            self.draw(source, name, size, layer, step, arrays, header.setdefault("figures", {}))
        self.add("panel", panel(feed, step), arrays, header)
        self.seq += 1
        return arrays.frame(
            arrays.plain({name: part for name, part in header.items() if name != "figures"})
            | {"figures": header.get("figures", {}), "seq": self.seq}
        )

    def draw(
        self,
        source: View,
        name: str,
        size: Any,
        layer: int,
        step: int | None,
        arrays: "Arrays",
        figures: dict[str, Any],
    ) -> None:
        """One figure into the frame, if it is one of the run's task and changed."""
        asked, entry = self.asked, FIGURES.get(name)
        if entry is None or source.config.task not in entry.tasks:
            return
        width, height = (min(max(int(side), 40), 8000) for side in size)
        arguments = entry.read(source, layer, step, asked["span"], max(100, width // 3))
        theme = THEMES[asked["theme"]]
        self.add(name, entry.draw.spec(**arguments, theme=theme, size=(width, height, asked["wide"])), arrays, figures)

    def add(self, name: str, part: Any, arrays: "Arrays", into: dict[str, Any]) -> None:
        """A part of a frame, if the viewer does not have it yet."""
        mark = fingerprint(part)
        if self.sent.get(name) != mark:
            self.sent[name] = mark
            into[name] = arrays.plain(part)


def help_of(stat: str) -> str:
    """What a statistic is, for a pointer that rests on its number; nothing where the tile says it all."""
    return STAT[stat].help if stat in STAT else ""


class Arrays:
    """The arrays of a frame, each sent once however many traces share it."""

    def __init__(self) -> None:
        self.places: dict[int, dict[str, Any]] = {}
        self.kept: list[np.ndarray] = []  # so that no id is used again while the frame is made
        self.parts: list[bytes] = []
        self.size = 0

    def plain(self, value: Any) -> Any:
        """value with arrays replaced by references, and numbers that JSON lacks by null."""
        if isinstance(value, dict):
            return {key: self.plain(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.plain(inner) for inner in value]
        if isinstance(value, np.ndarray):
            return self.refer(value) if value.dtype.kind in "fiub" and value.size else self.plain(value.tolist())
        if isinstance(value, np.generic):
            value = value.item()
        return None if isinstance(value, float) and not math.isfinite(value) else value

    def refer(self, array: np.ndarray) -> dict[str, Any]:
        if id(array) not in self.places:
            # Steps may pass 2^24 and need doubles; everything else is drawn in floats.
            kind = (
                "f8"
                if array.dtype.kind in "iu" and array.dtype.itemsize > 4
                else "u1"
                if array.dtype == np.uint8
                else "f4"
            )
            data = np.ascontiguousarray(array, "<" + kind).tobytes()
            data += bytes(-len(data) % 8)
            self.places[id(array)] = {"$array": [kind, self.size, *array.shape]}
            self.kept.append(array)
            self.parts.append(data)
            self.size += len(data)
        return self.places[id(array)]

    def frame(self, header: dict[str, Any]) -> bytes:
        text = json.dumps(header, allow_nan=False, separators=(",", ":")).encode()
        text += b" " * (-(len(text) + 4) % 8)
        return b"".join([struct.pack("<I", len(text)), text, *self.parts])


def fingerprint(spec: Any) -> bytes:
    """A hash of a spec, so that what did not change is not sent."""
    digest = hashlib.blake2b(digest_size=16)

    def add(value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                digest.update(f"{key}:".encode())
                add(inner)
        elif isinstance(value, (list, tuple)):
            digest.update(b"[")
            for inner in value:
                add(inner)
        elif isinstance(value, np.ndarray) and value.dtype.kind != "O":
            digest.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
        else:
            digest.update(repr(value).encode())

    add(spec)
    return digest.digest()


_viewers: set[Viewer] = set()


async def stream(websocket: WebSocket) -> None:
    """One viewer of one run: frames out, acknowledgements and deeds in, until either goes away."""
    await websocket.accept()
    run = websocket.path_params["run"]
    path = (runs_folder() / run).absolute()
    if len(_viewers) >= MOST or not re.fullmatch(RUN_ID, run) or not path.is_dir():
        await websocket.close(4404, "no such run, or too many viewers")
        return
    viewer = Viewer()
    _viewers.add(viewer)
    listening: asyncio.Task[None] | None = None
    try:
        viewer.hear(await asyncio.wait_for(websocket.receive_text(), PATIENCE))
        if asked := starting.unstarted(run):
            viewer.feed = asked
            await websocket.send_bytes(await asyncio.to_thread(viewer.frame))  # type: ignore[arg-type]
        if reason := await made(path):
            await websocket.close(4404, reason[:100])
            return
        feed = viewer.feed = await asyncio.to_thread(join, path, viewer)
        listening = asyncio.create_task(listen(websocket, viewer))
        while not listening.done():
            viewer.drawn.clear()
            viewer.woken.clear()
            began = time.monotonic()
            frame = await asyncio.to_thread(viewer.frame)
            if frame is not None:
                await websocket.send_bytes(frame)
                while feed.behind and not viewer.drawn.is_set() and not listening.done():  # while the browser draws
                    await asyncio.to_thread(feed.catch_up)
                # A hidden tab draws nothing: it gets no further frame until it has drawn this one.
                await first_of(viewer.drawn.wait(), listening)
            # A tick counts from one frame to the next, however long the viewer took to draw.
            rest = SOON if feed.waiting or feed.behind else max(SOON, TICK - (time.monotonic() - began))
            await first_of(viewer.woken.wait(), listening, timeout=rest)
    except (WebSocketDisconnect, TimeoutError):
        pass
    except (ValueError, KeyError, TypeError) as error:
        await close(websocket, str(error))
    finally:
        _viewers.discard(viewer)
        if listening:
            listening.cancel()
        leave_all(viewer)


async def made(path: Path) -> str:
    """Wait for a trainer that was just started to make its run. Returns why it will not, or ""."""
    until = time.monotonic() + STARTING
    while not (path / "run.db").is_file():
        reap()
        if time.monotonic() > until or not (path / "trainer.log").exists() or did_not_start(path):
            return f"the trainer did not start: {last_words(path)}"
        await asyncio.sleep(SOON)
    return ""


async def first_of(happens: Any, listening: "asyncio.Task[None]", timeout: float | None = None) -> None:
    """Wait until something happens, the viewer leaves, or the time is up."""
    waiting = asyncio.create_task(happens)
    await asyncio.wait([waiting, listening], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


async def listen(websocket: WebSocket, viewer: Viewer) -> None:
    try:
        while True:
            deed = viewer.hear(await websocket.receive_text())
            if deed is not None:
                await do(viewer, deed)
    except WebSocketDisconnect:
        return
    except (ValueError, KeyError, TypeError) as error:
        await close(websocket, str(error))


async def do(viewer: Viewer, deed: dict[str, Any]) -> None:
    """Carry out what a viewer asks, and wake all who watch the run, so that the effect is seen at once."""
    feed = viewer.feed
    assert feed is not None
    answer: dict[str, Any] = {"nth": deed.get("nth"), "error": ""}
    try:
        answer |= await asyncio.to_thread(act, feed.run, deed)
    except (ValueError, TypeError) as error:
        answer["error"] = str(error)
    viewer.answer = answer
    feed.looked = 0.0
    for other in watchers(feed.run.path):
        other.woken.set()


async def close(websocket: WebSocket, reason: str) -> None:
    with contextlib.suppress(RuntimeError):  # it was closed already
        await websocket.close(4400, reason[:100])


def file(request: Request) -> Response:
    """The component's scripts and style, and plotly.js out of the installed package."""
    path = FILES.get(request.path_params["name"])
    if path is None:
        return Response(status_code=404)
    long = "max-age=31536000, immutable" if path == PLOTLY else "no-cache"
    return FileResponse(path, headers={"Cache-Control": long})


def listed(request: Request) -> Response:
    """The runs that there are, for the chooser."""
    reap()
    return JSONResponse([chooser_entry(run.id, run.config, run.created, run.state) for run in list_runs()])


def home(request: Request) -> Response:
    """Live is the first page, and has its own link too."""
    query = f"?{request.url.query}" if request.url.query else ""
    return RedirectResponse(f"/{query}")


ROUTES = [
    Route("/live", home),
    Route("/moescope/runs", listed),
    Route("/moescope/{name}", file),
    WebSocketRoute("/moescope/live/{run}", stream),
]
