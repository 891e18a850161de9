"""Lets in whoever sits at this machine and nobody else: Host and Origin of every request, HTTP and WebSocket.

A page of a stranger's may point its own name at 127.0.0.1 and then talk to any local server as if it were its own
(DNS rebinding); Streamlit's own check accepts that when Origin and Host agree. So Host must be ours by name.
"""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

NAMES = ("127.0.0.1", "localhost", "[::1]")


def refusal(scope: Scope) -> str:
    """Why a request is refused; "" if it may pass."""
    headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
    host, origin = headers.get(b"host", ""), headers.get(b"origin")
    name, _, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
    server = scope.get("server")
    if name not in NAMES or (server and server[1] and port != str(server[1])):
        return f"wanted Host 127.0.0.1 with this server's port, got {host!r}; open the address that the terminal shows"
    if origin is None:
        return "a WebSocket without Origin is refused" if scope["type"] == "websocket" else ""
    if origin not in (f"http://{host}", f"https://{host}"):
        return f"wanted Origin http://{host}, got {origin!r}"
    return ""


class Guard:
    """ASGI middleware; answers 403, or closes a WebSocket before it opens."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reason = refusal(scope) if scope["type"] in ("http", "websocket") else ""
        if not reason:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 4403, "reason": reason[:120]})
        else:
            headers = [(b"content-type", b"text/plain; charset=utf-8")]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": reason.encode()})


MIDDLEWARE = [Middleware(Guard)]
