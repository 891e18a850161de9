"""Checks Host and Origin of every request, HTTP and WebSocket, then the token if one is required.

A stranger's page may point its own name at 127.0.0.1 and then talk to any local server as if it were its own
(DNS rebinding); Streamlit's own check accepts that when Origin and Host agree. So Host must be ours by name, and Origin,
which names the page that asks, must be that same Host or a name in MOE_ALLOW (a proxy may have put its own Host). The
token comes in the link once and is a cookie from then on. There are two: who has the one turns, who has the other only looks;
the header ROLE tells the pages which (gate.py). Every answer forbids other pages to frame it.
"""

import base64
import hashlib
import re
import secrets
from html import escape
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode

import streamlit
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moe_core.dashboard import stcore
from moe_core.dashboard.address import ENTRY, LOOKS, TOKEN, TURNS, Door, lets_in, words
from moe_core.dashboard.gate import REFUSED, ROLE
from moe_core.dashboard.log import note, short

DAYS = 30  # for which a browser keeps the token
STREAMLIT = "_stcore/stream"  # the end of the path of Streamlit's own socket
NO_SOCKET = "wanted a WebSocket, got a plain request; a proxy before the dashboard must pass Upgrade and Connection on"


def policy() -> str:
    """What a page may load and from where: this server and nobody else.

    Streamlit and plotly.js style by inline rules; a component's script is a blob; pictures are made as data and blobs.
    """
    page = Path(streamlit.__file__).parent / "static" / "index.html"
    own = [
        hashlib.sha256(text.encode()).digest()
        for text in re.findall(r"<script>(.*?)</script>", page.read_text(), re.DOTALL)
    ]
    scripts = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in own)
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src 'self' blob: {scripts}",
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data: blob:",
            "font-src 'self' data:",
            "connect-src 'self'",
            "media-src 'self'",
            "manifest-src 'self'",
            "base-uri 'self'",
            "form-action 'self'",
            "frame-ancestors 'none'",
        ]
    )


HEADERS = [
    (b"content-security-policy", policy().encode()),
    (b"x-frame-options", b"DENY"),  # for browsers that do not know frame-ancestors
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


def refusal(scope: Scope, door: Door) -> str:
    """Why a request is refused for where it comes from; "" if it may pass."""
    headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
    host, origin = headers.get(b"host", ""), headers.get(b"origin")
    if not lets_in(door, host):
        return refusal_text(host, origin, host, door)
    if origin is None:
        return "a WebSocket without Origin is refused: no browser sends one" if scope["type"] == "websocket" else ""
    scheme, _, name = origin.partition("://")
    if scheme in ("http", "https") and name.lower() in (host.lower(), *door.allowed):
        return ""
    return refusal_text(host, origin, name, door)


def refusal_text(host: str, origin: str | None, missing: str, door: Door) -> str:
    """The refusal in words. missing: the name that is not allowed."""
    seen = f"Host {short(host, 80)!r}" + (f", Origin {short(origin, 80)!r}" if origin is not None else "")
    allowed = f"allowed are {words(door)}" + ("" if missing == host else ", and an Origin that is the Host's")
    if not re.fullmatch(ENTRY, missing) or len(missing) > 80:
        return f"{seen} is refused; {allowed}"
    names = ",".join([*door.allowed, missing.lower()])
    return (
        f"{seen} is refused; {allowed}. If {missing} is your own name for this server, start it with MOE_ALLOW={names}"
    )


class Guard:
    """ASGI middleware; answers 403 or 401, or closes a WebSocket before it opens."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self.app, self.door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
        elif reason := refusal(scope, self.door):
            note("refused", reason)
            await refuse(scope, receive, send, 403, reason.encode(), b"text/plain; charset=utf-8")
        elif scope["type"] == "http" and (given := token_in(scope, self.door)):
            await enter(scope, send, self.door, given)
        elif not (role := role_of(scope, self.door)):
            note("no token", f"{short(scope['path'], 80)}: open the address with {TOKEN} that is shown above")
            await refuse(scope, receive, send, 401, ASK.encode(), b"text/html; charset=utf-8")
        elif scope["type"] == "websocket":
            await self.socket(told(scope, role), receive, send, role)
        elif scope["path"].endswith(STREAMLIT):
            note("no WebSocket", NO_SOCKET)
            await refuse(scope, receive, send, 426, NO_SOCKET.encode(), b"text/plain; charset=utf-8")
        elif role != TURNS and scope["method"] not in ("GET", "HEAD"):  # an upload
            await refuse(scope, receive, send, 403, REFUSED.encode(), b"text/plain; charset=utf-8")
        else:
            await self.app(told(scope, role), receive, with_headers(send))

    async def socket(self, scope: Scope, receive: Receive, send: Send, role: str) -> None:
        """Streamlit has a check of its own, which knows fewer addresses. What was let in is shown to it as a page of this
        machine."""
        port = (scope.get("server") or ("", 0))[1]
        own = [(b"host", f"127.0.0.1:{port}".encode()), (b"origin", f"http://127.0.0.1:{port}".encode())]
        others = [(name, value) for name, value in scope["headers"] if name.lower() not in (b"host", b"origin")]
        scope = {**scope, "headers": [*own, *others]}
        if scope["path"].endswith(STREAMLIT):
            receive, send = stcore.checked(receive, send, role)
        await self.app(scope, receive, send)


def told(scope: Scope, role: str) -> Scope:
    """The request with its role in a header: no other header of that name comes in."""
    headers = [(name, value) for name, value in scope["headers"] if name.lower() != ROLE.encode()]
    return {**scope, "headers": [*headers, (ROLE.encode(), role.encode())]}


def with_headers(send: Send) -> Send:
    async def headed(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
        await send(message)

    return headed


async def refuse(scope: Scope, receive: Receive, send: Send, status: int, body: bytes, kind: bytes) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 4000 + status})
    else:
        await answer(send, status, body, [(b"content-type", kind), (b"cache-control", b"no-store")])


async def answer(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *HEADERS]})
    await send({"type": "http.response.body", "body": body})


# The token


ASK = f"""<!doctype html><html lang="en"><meta charset="utf-8"><link rel="icon" href="data:,"><title>MoEscope: token</title>
<style>body {{ font: 15px/22px system-ui, sans-serif; max-width: 60ch; margin: 80px auto; padding: 0 24px; }}</style>
<h1>This dashboard asks for a token</h1>
<p>Open the address that its terminal shows, which ends in {TOKEN}=…, or give the token here.</p>
<form><label>Token <input type="password" name="{TOKEN}" required></label> <button>Open</button></form>
<p>Did you follow a link on another site? Then <a href="">open this page again</a>: a browser that has the token does not send it along with such a link.</p>
</html>"""
MOVE = """<!doctype html><html lang="en"><meta charset="utf-8"><link rel="icon" href="data:,"><meta http-equiv="refresh" content="0;url={url}">
<title>MoEscope</title><p><a href="{url}">Go on</a></p></html>"""


def token_in(scope: Scope, door: Door) -> str:
    """The token in the address, if it is one of ours; "" if there is none or a wrong one."""
    if not door.token or TOKEN.encode() not in scope["query_string"]:
        return ""
    try:
        asked = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True, max_num_fields=100)
    except ValueError:  # more words than a link of ours has
        return ""
    given = [value for name, value in asked if name == TOKEN]
    return next((token for token in (door.token, door.look) if any(same(value, token) for value in given)), "")


def without_token(scope: Scope) -> str:
    """The address without its token, relative to itself."""
    asked = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    rest = urlencode([(name, value) for name, value in asked if name != TOKEN])
    return f"./{quote(scope['path'].rpartition('/')[2])}" + (f"?{rest}" if rest else "")


async def enter(scope: Scope, send: Send, door: Door, token: str) -> None:
    """Keep the token as a cookie, and go on without it in the address. A browser that may turn may still do so when it opens
    the link of a class.

    Not by a redirect: that would still be the stranger's link, on which a browser sends no SameSite=Strict cookie. Without
    a Path the browser takes the folder of the address that it sees, which a proxy may have given a longer name.
    """
    secure = "; Secure" if scope["scheme"] == "https" else ""
    headers = [(b"content-type", b"text/html; charset=utf-8"), (b"cache-control", b"no-store")]
    if token == door.token or role_of(scope, door) != TURNS:
        cookie = f"{cookie_name(scope)}={token}; Max-Age={DAYS * 86400}; HttpOnly; SameSite=Strict{secure}"
        headers.append((b"set-cookie", cookie.encode()))
    await answer(send, 200, MOVE.format(url=escape(without_token(scope))).encode(), headers)


def role_of(scope: Scope, door: Door) -> str:
    """What a request may do, by its cookie: TURNS, also if no token is asked for, LOOKS, or "" for nothing."""
    if not door.token:
        return TURNS
    cookies = b"; ".join(value for name, value in scope["headers"] if name.lower() == b"cookie").decode("latin-1")
    pairs = (pair.strip().partition("=") for pair in cookies.split(";"))
    given = [value for name, _, value in pairs if name == cookie_name(scope)]
    if any(same(value, door.token) for value in given):
        return TURNS
    return LOOKS if door.look and any(same(value, door.look) for value in given) else ""


def cookie_name(scope: Scope) -> str:
    """Cookies know no ports: two dashboards of one machine each have their own."""
    return f"moescope-{(scope.get('server') or ('', 0))[1]}"


def same(one: str, other: str) -> bool:
    """Whether two texts are the same, in a time that does not tell how much of one is right."""
    return secrets.compare_digest(one.encode(errors="replace"), other.encode())
