"""Who is let in: whoever sits at this machine."""

import asyncio
from typing import Any

import pytest

from moe_core.dashboard.guard import Guard

HOST, HERE = "127.0.0.1:8501", "http://127.0.0.1:8501"


def call(kind: str, headers: dict[str, str]) -> list[dict[str, Any]]:
    """What a guarded app answers to one request; "in" is what the app behind the guard says."""
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "in"})

    async def receive() -> dict[str, Any]:
        return {"type": f"{kind}.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(Guard(app)({"type": kind, "headers": raw, "server": ("127.0.0.1", 8501)}, receive, send))
    return sent


@pytest.mark.parametrize("host", [HOST, "localhost:8501", "[::1]:8501"])
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_our_own_pages_come_in(host: str, kind: str) -> None:
    assert call(kind, {"Host": host, "Origin": f"http://{host}"}) == [{"type": "in"}]


def test_a_page_that_is_typed_into_the_browser_has_no_origin() -> None:
    assert call("http", {"Host": HOST}) == [{"type": "in"}]


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "rebind.evil.com:8501", "Origin": "http://rebind.evil.com:8501"},
        {"Host": "127.0.0.1:9999", "Origin": "http://127.0.0.1:9999"},
        {"Host": "127.0.0.1", "Origin": "http://127.0.0.1"},
        {"Host": HOST, "Origin": "http://evil.com"},
        {"Host": HOST, "Origin": "null"},
        {"Host": HOST, "Origin": "http://127.0.0.1:9999"},
        {"Host": HOST, "Origin": "http://localhost:8501"},
        {"Origin": HERE},
    ],
)
def test_a_stranger_is_refused(headers: dict[str, str]) -> None:
    start, body = call("http", headers)
    assert start["status"] == 403
    assert b"wanted" in body["body"]
    (closed,) = call("websocket", headers)
    assert (closed["type"], closed["code"]) == ("websocket.close", 4403)


def test_a_websocket_must_say_where_it_comes_from() -> None:
    (closed,) = call("websocket", {"Host": HOST})
    assert closed["code"] == 4403
