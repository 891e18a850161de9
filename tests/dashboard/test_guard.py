"""Who is let in: whoever sits at this machine, and whom MOE_ALLOW and a token let in."""

import asyncio
import re
from typing import Any

import pytest

from moe_core.dashboard.address import TOKEN, Door, class_link, door, lines
from moe_core.dashboard.guard import HEADERS, Guard

HOST, HERE = "127.0.0.1:8501", "http://127.0.0.1:8501"
HOME = Door()
HUB = Door(("hub.example.org", "lab:8443"))
LAN = Door((), "0.0.0.0", "secret", look="glance")


def call(
    kind: str,
    headers: dict[str, str],
    door: Door = HOME,
    path: str = "/",
    query: str = "",
    scheme: str = "http",
    method: str = "GET",
) -> list[dict[str, Any]]:
    """What a guarded app answers to one request; "in" is what the app behind the guard says, with the headers it was shown."""
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        names = [name for name, _ in scope["headers"]]
        assert len(set(names)) == len(names)
        await send({"type": "in", "headers": dict(scope["headers"])})

    async def receive() -> dict[str, Any]:
        return {"type": f"{kind}.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {
        "type": kind,
        "headers": raw,
        "server": ("127.0.0.1", 8501),
        "path": path,
        "scheme": scheme,
        "method": method,
    }
    asyncio.run(Guard(app, door)(scope | {"query_string": query.encode()}, receive, send))
    return sent


def comes_in(kind: str, headers: dict[str, str], door: Door = HOME, **more: str) -> bool:
    return call(kind, headers, door, **more)[0]["type"] == "in"


# An ssh -L, a container's published port or a proxy on this machine may have another port, or none.
OURS = ["127.0.0.1:8501", "localhost:8501", "[::1]:8501", "localhost:9000", "127.0.0.1:1", "localhost"]


@pytest.mark.parametrize("host", OURS)
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_our_own_pages_come_in(host: str, kind: str) -> None:
    assert comes_in(kind, {"Host": host, "Origin": f"http://{host}"})


def test_a_page_that_is_typed_into_the_browser_has_no_origin() -> None:
    assert comes_in("http", {"Host": HOST})


STRANGERS = [
    {"Host": "rebind.evil.com:8501", "Origin": "http://rebind.evil.com:8501"},
    {"Host": "localhost.evil.com:8501", "Origin": "http://localhost.evil.com:8501"},
    {"Host": "127.0.0.1.evil.com", "Origin": "http://127.0.0.1.evil.com"},
    {"Host": "192.168.1.5:8501", "Origin": "http://192.168.1.5:8501"},
    {"Host": HOST, "Origin": "http://evil.com"},
    {"Host": HOST, "Origin": "null"},
    {"Host": HOST, "Origin": "file://"},
    {"Host": HOST, "Origin": "http://127.0.0.1:9999"},
    {"Host": HOST, "Origin": "http://localhost:8501"},
    {"Host": "localhost:9000", "Origin": "http://localhost:9001"},
    {"Host": "localhost:9000", "Origin": "http://localhost"},
    {"Host": "evil.com@127.0.0.1:8501", "Origin": HERE},
    {"Host": "", "Origin": HERE},
    {"Origin": HERE},
]


@pytest.mark.parametrize("headers", STRANGERS)
@pytest.mark.parametrize("door", [Door(), HUB])
def test_a_stranger_is_refused_and_is_not_framed_with(headers: dict[str, str], door: Door) -> None:
    start, body = call("http", headers, door)
    assert start["status"] == 403
    assert b"is refused; allowed are localhost" in body["body"]
    assert set(HEADERS) <= set(start["headers"])
    (closed,) = call("websocket", headers, door)
    assert (closed["type"], closed["code"]) == ("websocket.close", 4403)


def test_a_websocket_must_say_where_it_comes_from() -> None:
    (closed,) = call("websocket", {"Host": HOST})
    assert closed["code"] == 4403


def test_a_refusal_says_what_was_seen_and_the_setting_that_allows_it() -> None:
    text = call("http", {"Host": "moe.example.org:443"}, HUB)[1]["body"].decode()
    assert "Host 'moe.example.org:443' is refused" in text
    assert text.endswith("start it with MOE_ALLOW=hub.example.org,lab:8443,moe.example.org:443")
    setting = text.rpartition("MOE_ALLOW=")[2]
    assert comes_in("http", {"Host": "moe.example.org:443"}, door("127.0.0.1", setting)._replace(token=""))
    text = call("http", {"Host": HOST, "Origin": "https://moe.example.org"})[1]["body"].decode()
    assert "Origin 'https://moe.example.org' is refused" in text
    assert text.endswith("MOE_ALLOW=moe.example.org")
    text = call("http", {"Host": "moe_app:8501"})[1]["body"].decode()  # as Docker names a container
    assert comes_in("http", {"Host": "moe_app:8501"}, door("0.0.0.0", text.rpartition("=")[2])._replace(token=""))
    text = call("http", {"Host": "\x1b[31m" + "x" * 500})[1]["body"].decode()  # nothing of a stranger's runs on
    assert "\x1b" not in text
    assert "MOE_ALLOW" not in text
    assert len(text) < 300


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Host": "hub.example.org", "Origin": "https://hub.example.org"}, True),
        ({"Host": HOST, "Origin": "https://hub.example.org"}, True),  # a proxy put its own Host
        ({"Host": "HUB.example.org", "Origin": "https://Hub.example.org"}, True),
        ({"Host": "lab:8443", "Origin": "https://lab:8443"}, True),
        ({"Host": "lab", "Origin": "https://lab"}, False),
        ({"Host": "hub.example.org:81", "Origin": "http://hub.example.org:81"}, False),
        ({"Host": HOST, "Origin": "https://hub.example.org:81"}, False),  # another app at the same machine
        ({"Host": "a.hub.example.org", "Origin": "https://a.hub.example.org"}, False),
    ],
)
def test_what_is_allowed_is_one_address_as_the_browser_shows_it(headers: dict[str, str], expected: bool) -> None:
    for kind in ("http", "websocket"):
        assert comes_in(kind, headers, HUB) is expected


@pytest.mark.parametrize(
    "allow", ["*", "*.example.org", "https://hub.example.org", "a b", "hub/x", "hub:http", "hub,,*"]
)
def test_a_setting_that_is_no_address_is_refused(allow: str) -> None:
    with pytest.raises(ValueError, match="MOE_ALLOW lists addresses"):
        door("127.0.0.1", allow)


@pytest.mark.parametrize(
    ("address", "allow", "asks"),
    [
        ("127.0.0.1", "", False),
        ("localhost", "", False),
        ("::1", "localhost:9000", False),
        ("127.0.0.1", "hub.example.org", True),
        ("127.0.0.1", "192.168.1.5", True),
        ("0.0.0.0", "", True),
        ("", "", True),  # which is every address for Streamlit
        ("192.168.1.5", "", True),
    ],
)
def test_a_token_is_asked_for_beyond_this_machine(address: str, allow: str, asks: bool) -> None:
    tokens = {door(address, allow).token for _ in range(2)}
    assert tokens == {""} if not asks else len(tokens) == 2
    assert all(len(token) >= 32 for token in tokens if token)


def test_beyond_this_machine_an_ip_address_comes_in_which_no_stranger_can_point_elsewhere() -> None:
    for host in ("192.168.1.5:8501", "[fe80::1]:8501", "localhost:8501"):
        assert comes_in("http", {"Host": host, "Cookie": "moescope-8501=secret"}, LAN)
    assert not comes_in("http", {"Host": "rebind.evil.com:8501", "Cookie": "moescope-8501=secret"}, LAN)


@pytest.mark.parametrize(
    "cookie", ["", "moescope-8501=", "moescope-8501=Secret", "moescope-8502=secret", "moescope-8501=secret2", "x"]
)
def test_without_the_token_nothing_comes_in(cookie: str) -> None:
    for path in ("/", "/experts", "/_stcore/health", "/static/js/index.js", "/moescope/runs", "/media/x.png"):
        start, body = call("http", {"Host": HOST, "Cookie": cookie}, LAN, path=path)
        assert start["status"] == 401
        assert b"secret" not in body["body"]
        assert b"glance" not in body["body"]
        assert set(HEADERS) <= set(start["headers"])
    for path in ("/_stcore/stream", "/moescope/live/a"):
        (closed,) = call("websocket", {"Host": HOST, "Origin": HERE, "Cookie": cookie}, LAN, path=path)
        assert closed["code"] == 4401
    for query in (f"{TOKEN}=wrong", f"{TOKEN}=secret" + "&a=1" * 100):  # more words than a link of ours has
        start, _ = call("http", {"Host": HOST}, LAN, query=query)
        assert start["status"] == 401
        assert set(HEADERS) <= set(start["headers"])


@pytest.mark.parametrize(
    ("path", "query", "rest"),
    [("/", "", "./"), ("/experts", "run=a&step=40", "./experts?run=a&amp;step=40"), ("//evil.com", "", "./evil.com"), ('/x"><script>', "", "./x%22%3E%3Cscript%3E")],
)  # fmt: skip
def test_the_link_becomes_a_cookie_and_the_address_forgets_it(path: str, query: str, rest: str) -> None:
    asked = f"{query}&{TOKEN}=secret".lstrip("&")
    for scheme in ("http", "https"):
        start, body = call("http", {"Host": HOST}, LAN, path=path, query=asked, scheme=scheme)
        headers = dict(start["headers"])
        assert start["status"] == 200
        assert f'content="0;url={rest}"' in body["body"].decode()
        cookie = headers[b"set-cookie"].decode()
        assert re.match(r"moescope-8501=secret; Max-Age=\d+; HttpOnly; SameSite=Strict", cookie)
        assert ("Secure" in cookie) is (scheme == "https")
        assert headers[b"cache-control"] == b"no-store"
    own = cookie.partition(";")[0]
    for kind in ("http", "websocket"):
        assert comes_in(kind, {"Host": HOST, "Origin": HERE, "Cookie": f"a=b; {own}; c"}, LAN)


def test_streamlit_is_shown_one_address_and_no_other() -> None:
    """Its own check knows fewer, and would ask the internet for this machine's."""
    (message,) = call("websocket", {"Host": HOST, "Origin": "https://hub.example.org", "Cookie": "a=b"}, HUB)
    shown = {b"host": b"127.0.0.1:8501", b"origin": b"http://127.0.0.1:8501", b"cookie": b"a=b"}
    assert message["headers"] == shown | {b"moescope-role": b"turns"}


def test_a_proxy_that_passes_no_sockets_on_is_told_so() -> None:
    start, body = call("http", {"Host": HOST}, path="/base/_stcore/stream")
    assert start["status"] == 426
    assert b"must pass Upgrade" in body["body"]


@pytest.mark.parametrize(
    ("door", "base"), [(Door(), ""), (Door(), "/a/b/"), (LAN, "x"), (LAN, ""), (Door((), "192.168.1.5", "secret"), ""), (door("127.0.0.2", ""), ""), (door("::1", ""), ""), (door("MyHost", "")._replace(token="secret"), ""), (Door(("hub.example.org",), "", "secret"), "")]
)  # fmt: skip
def test_every_address_that_is_printed_comes_in(door: Door, base: str) -> None:
    shown = [
        re.fullmatch(r"MoEscope: http://([^/]+)(/\S*?)(?:\?moe_token=(\S+))?", line)
        for line in lines(door, 8501, base, False)
    ]
    found = [match for match in shown if match]
    assert found
    for match in found:
        host, path, token = match.groups()
        assert path == f"/{base.strip('/')}/".replace("//", "/")
        assert (token or "") == door.token  # that of the one who turns
        cookie = f"moescope-8501={token}" if token else ""
        assert comes_in("http", {"Host": host, "Cookie": cookie}, door)


def role(cookie: str, door: Door = LAN, **headers: str) -> str:
    """The role that the pages are told, the same over HTTP and by WebSocket; "" if nothing comes in."""
    told = set()
    for kind in ("http", "websocket"):
        (first, *_) = call(kind, {"Host": HOST, "Origin": HERE, "Cookie": cookie, **headers}, door)
        told.add(first["headers"][b"moescope-role"].decode() if first["type"] == "in" else "")
    (only,) = told
    return only


@pytest.mark.parametrize(
    ("cookie", "expected"),
    [
        ("moescope-8501=secret", "turns"),
        ("moescope-8501=glance", "looks"),
        ("moescope-8501=glance; moescope-8501=secret", "turns"),  # of two paths; who has the one token may turn
        ("moescope-8501=glance; moescope-8501=secre", "looks"),
        ("moescope-8502=secret; moescope-8501=glance", "looks"),
        ("moescope-role=turns; moescope-8501=glance", "looks"),
        ("moescope-8501=turns", ""),
        ("moescope-8501=", ""),
    ],
)
def test_the_cookie_alone_says_who_turns_and_who_looks(cookie: str, expected: str) -> None:
    assert role(cookie) == expected
    for name in ("moescope-role", "MoEscope-Role", "MOESCOPE-ROLE"):
        for forged in ("turns", "looks", ""):
            assert role(cookie, **{name: forged}) == expected
    assert role(cookie, HOME) == "turns"  # no token is asked for


def test_tokens_of_an_earlier_start_open_nothing() -> None:
    before, now = door("0.0.0.0", ""), door("0.0.0.0", "")
    assert len({before.token, before.look, now.token, now.look}) == 4
    for token in (before.token, before.look):
        assert role(f"moescope-8501={token}", now) == ""
        assert call("http", {"Host": HOST}, now, query=f"{TOKEN}={token}")[0]["status"] == 401


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE", "PATCH", "OPTIONS"])
def test_who_only_looks_uploads_nothing(method: str) -> None:
    start, body = call(
        "http", {"Host": HOST, "Cookie": "moescope-8501=glance"}, LAN, "/_stcore/upload_file/a/b", method=method
    )
    assert (start["status"], body["body"]) == (403, b"With this link you only look; nothing was changed.")
    assert comes_in("http", {"Host": HOST, "Cookie": "moescope-8501=secret"}, LAN, method=method)


def test_the_link_of_a_class_takes_no_right_away() -> None:
    def cookie_after(cookie: str, token: str) -> str | None:
        start, body = call("http", {"Host": HOST, "Cookie": cookie}, LAN, path="/learn", query=f"{TOKEN}={token}")
        assert (start["status"], b"url=./learn" in body["body"]) == (200, True)
        return dict(start["headers"]).get(b"set-cookie", b"").decode().partition(";")[0]

    assert cookie_after("", "glance") == cookie_after("moescope-8501=old", "glance") == "moescope-8501=glance"
    assert cookie_after("moescope-8501=glance", "secret") == "moescope-8501=secret"
    assert cookie_after("moescope-8501=secret", "glance") == ""  # the teacher tries the link, and turns on


@pytest.mark.parametrize(
    ("url", "allowed", "bound", "link"),
    [
        ("http://192.168.1.5:8501/learn", "", "0.0.0.0", "http://192.168.1.5:8501/learn?moe_token=glance"),
        ("https://hub.example.org/user/me/proxy/8501/live?run=a", "hub.example.org", "", "https://hub.example.org/user/me/proxy/8501/learn?moe_token=glance"),
        ("http://[fe80::1]:8501/", "", "0.0.0.0", "http://[fe80::1]:8501/learn?moe_token=glance"),
        ("http://localhost:8501/learn", "", "0.0.0.0", "http://192.0.2.7:8501/learn?moe_token=glance"),
        ("http://localhost:9000/learn", "hub.example.org", "", ""),  # by a tunnel: the class has another address
        ("", "", "0.0.0.0", ""),
    ],
)  # fmt: skip
def test_the_link_of_a_class_has_an_address_that_the_class_can_reach(
    url: str, allowed: str, bound: str, link: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moe_core.dashboard.address.own_address", lambda: "192.0.2.7")
    assert class_link(Door((allowed,) if allowed else (), bound, "secret", look="glance"), url) == link


def test_the_terminal_shows_a_link_for_a_class_where_a_token_is_asked_for() -> None:
    shown = "\n".join(lines(LAN, 8501, "x", False))
    assert re.search(r"^For a class, which only looks: http://\S+:8501/x/learn\?moe_token=glance$", shown, re.MULTILINE)
    assert "glance" not in "".join(lines(HOME, 8501, "", False))
    far = Door(("hub.example.org",), "", "secret", look="glance")
    assert (
        lines(far, 8501, "", False)[-1]
        == "At hub.example.org, append ?moe_token=secret once; for a class, learn?moe_token=glance."
    )
