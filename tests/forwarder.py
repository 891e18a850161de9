"""A proxy on this machine, as a person may have before the dashboard: it takes a path off and may put its own Host."""

import asyncio
import re
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


@contextmanager
def forwarding(to: int, prefix: str = "", host: str | None = None) -> Iterator[int]:
    """A port that forwards to another, while it is open. prefix: taken off the path; host: put in place of the browser's."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except (asyncio.IncompleteReadError, OSError):
            writer.close()
            return
        head = re.sub(rf"^(\w+) {re.escape(prefix)}/", r"\1 /", head)
        if host:
            head = re.sub(r"(?im)^host:.*\r$", f"Host: {host}\r", head)
        if "upgrade: websocket" not in head.lower():  # a request a connection
            head = re.sub(r"(?im)^connection:.*\r\n", "", head).replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")
        there, back = await asyncio.open_connection("127.0.0.1", to)
        back.write(head.encode("latin-1"))
        await asyncio.gather(pipe(reader, back), pipe(there, writer))

    opened: Future[int] = Future()
    stop: Future[asyncio.Event] = Future()

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            over = asyncio.Event()
            stop.set_result(over)
            loop.set_result(asyncio.get_running_loop())
            opened.set_result(server.sockets[0].getsockname()[1])
            await over.wait()

    loop: Future[asyncio.AbstractEventLoop] = Future()
    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)  # a playwright has the loop of this one
    thread.start()
    try:
        yield opened.result(timeout=30)
    finally:
        loop.result().call_soon_threadsafe(stop.result().set)
        thread.join(timeout=10)
