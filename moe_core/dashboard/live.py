"""The live route: a WebSocket that sends the page's numbers and charts as they change, and the files that draw them.

The server decimates and calls the figures' specs; the browser only hands them to Plotly.react. A frame is binary: the
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
from pathlib import Path
from typing import Any

import numpy as np
import plotly
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from moe_core.dashboard.feed import Feed, join, leave
from moe_core.figures.catalog import FIGURES
from moe_core.figures.theme import THEMES
from moe_core.figures.tiles import TILES
from moe_core.runs import runs_folder

TICK = 0.2  # seconds between two frames to a viewer
PATIENCE = 20.0  # seconds to wait for a viewer that does not draw
LONGEST = 64 * 1024  # bytes of a message from a viewer
MOST = 32  # viewers at once

HERE = Path(__file__).parent / "component"
PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
FILES = {"live.js": HERE / "live.js", "live.css": HERE / "live.css", "plotly.min.js": PLOTLY}


class Viewer:
    """One open page: what it looks at, how large its charts are, and what it has drawn."""

    def __init__(self) -> None:
        self.feed: Feed | None = None
        self.asked: dict[str, Any] = {}
        self.sent: dict[str, bytes] = {}
        self.drawn = asyncio.Event()
        self.seq = 0

    def hear(self, text: str) -> None:
        """Take a message: what is looked at, or that a frame was drawn. ValueError if it is not one of ours."""
        if len(text) > LONGEST:
            raise ValueError("a message of more than 64 KB")
        said = json.loads(text)
        theme, page, layer, sizes = said["theme"], said["page"], int(said["layer"]), said["sizes"]
        spans = said.get("spans") or {}
        if theme not in THEMES or page not in TILES or not isinstance(sizes, dict) or not isinstance(spans, dict):
            raise ValueError("a message that is not ours")
        if (theme, page, layer) != tuple(self.asked.get(name) for name in ("theme", "page", "layer")):
            self.sent.clear()
        self.asked = {"theme": theme, "page": page, "layer": layer, "sizes": sizes, "spans": spans}
        self.asked["wide"] = said.get("wide") is True
        if said.get("drawn") == self.seq:
            self.drawn.set()

    def frame(self) -> bytes | None:
        """The next frame; None when nothing changed."""
        feed, asked = self.feed, self.asked
        assert feed is not None
        feed.refresh()
        layer = min(max(asked["layer"], 0), feed.config.layers - 1)
        arrays = Arrays()
        status = feed.status()
        tiles = [tile._asdict() for tile in TILES[asked["page"]](feed, layer)]
        header: dict[str, Any] = {"step": feed.last, "state": status.state, "reason": feed.problem or status.reason}
        header["tiles"] = tiles
        header["figures"] = figures = {}
        told = json.dumps(arrays.plain(header))
        for name, size in asked["sizes"].items():
            entry = FIGURES.get(name)
            if entry is None or feed.config.task not in entry.tasks:
                continue
            width, height = (min(max(int(side), 40), 8000) for side in size)
            span = asked["spans"].get(name)
            arguments = entry.read(feed, layer, None, tuple(span) if span else None, max(100, width // 3))
            spec = entry.draw.spec(**arguments, theme=THEMES[asked["theme"]], size=(width, height, asked["wide"]))
            mark = fingerprint(spec)
            if self.sent.get(name) != mark:
                self.sent[name] = mark
                figures[name] = arrays.plain(spec)
        if not figures and self.sent.get("") == told.encode():
            return None
        self.sent[""] = told.encode()
        self.seq += 1
        return arrays.frame(arrays.plain(header) | {"figures": figures, "seq": self.seq})


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
    """One viewer of one run: frames out, acknowledgements in, until either goes away."""
    await websocket.accept()
    run = websocket.path_params["run"]
    path = (runs_folder() / run).absolute()
    if len(_viewers) >= MOST or not re.fullmatch(r"\w[\w.-]{0,99}", run) or not (path / "run.db").is_file():
        await websocket.close(4404, "no such run, or too many viewers")
        return
    viewer = Viewer()
    _viewers.add(viewer)
    listening: asyncio.Task[None] | None = None
    try:
        viewer.hear(await asyncio.wait_for(websocket.receive_text(), PATIENCE))
        viewer.feed = await asyncio.to_thread(join, path, viewer)
        listening = asyncio.create_task(listen(websocket, viewer))
        while not listening.done():
            viewer.drawn.clear()
            frame = await asyncio.to_thread(viewer.frame)
            if frame is not None:
                await websocket.send_bytes(frame)
                # A hidden tab draws nothing: it gets no further frame until it has drawn this one.
                drawn = asyncio.create_task(viewer.drawn.wait())
                await asyncio.wait([drawn, listening], return_when=asyncio.FIRST_COMPLETED)
                drawn.cancel()
            await asyncio.wait([listening], timeout=TICK)
    except (WebSocketDisconnect, TimeoutError):
        pass
    except (ValueError, KeyError, TypeError) as error:
        await close(websocket, str(error))
    finally:
        _viewers.discard(viewer)
        if listening:
            listening.cancel()
        leave(path, viewer)


async def listen(websocket: WebSocket, viewer: Viewer) -> None:
    try:
        while True:
            viewer.hear(await websocket.receive_text())
    except WebSocketDisconnect:
        return
    except (ValueError, KeyError, TypeError) as error:
        await close(websocket, str(error))


async def close(websocket: WebSocket, reason: str) -> None:
    with contextlib.suppress(RuntimeError):  # it was closed already
        await websocket.close(4400, reason[:100])


def file(request: Request) -> Response:
    """The component's script and style, and plotly.js out of the installed package."""
    path = FILES.get(request.path_params["name"])
    if path is None:
        return Response(status_code=404)
    long = "max-age=31536000, immutable" if path == PLOTLY else "no-cache"
    return FileResponse(path, headers={"Cache-Control": long})


ROUTES = [Route("/moescope/{name}", file), WebSocketRoute("/moescope/live/{run}", stream)]
