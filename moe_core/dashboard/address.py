"""By which addresses the dashboard may be reached, and whether a token is asked for.

At this machine only, that is localhost, 127.0.0.1 and [::1] with any port, since a forwarder (ssh -L) may have another
one. MOE_ALLOW adds names, each as a browser's address bar shows it. Whoever lets others in, by MOE_ALLOW or by
`--server.address`, gets two tokens, one to turn with and one to look with: see guard.py.
"""

import re
import secrets
import socket
from ipaddress import ip_address
from typing import NamedTuple
from urllib.parse import urlsplit

HERE = ("localhost", "127.0.0.1", "[::1]")
TURNS, LOOKS = "turns", "looks"  # what a token lets its holder do: everything, or nothing that changes anything
TOKEN = "moe_token"  # its name in a link; a proxy such as JupyterHub has a `token` of its own
EVERYWHERE = ("0.0.0.0", "::")
LABEL = r"[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?"  # Docker names its containers with underscores
ENTRY = rf"({LABEL}(\.{LABEL})*|\[[0-9A-Fa-f:.]+\])(:\d{{1,5}})?"


class Door(NamedTuple):
    """Who is let in. allowed: what MOE_ALLOW adds, "name" or "name:port"; bound: the address that the server listens at,
    "" if only this machine reaches it; token: for who turns, look: for who only looks, both "" if none is asked for; here:
    this machine's address that it listens at, as a browser shows it."""

    allowed: tuple[str, ...] = ()
    bound: str = ""
    token: str = ""
    here: str = "127.0.0.1"
    look: str = ""


def door(address: str, allow: str) -> Door:
    """The door of a server at an address, with the names of MOE_ALLOW. ValueError, in one line, for one that is not a name."""
    allowed = tuple(filter(None, (entry.strip().lower() for entry in allow.split(","))))
    for entry in allowed:
        if not re.fullmatch(ENTRY, entry):
            raise ValueError(
                f"MOE_ALLOW lists addresses as the browser shows them, name or name:port, with commas between and "
                f"without * or http://, got {entry!r}"
            )
    address = address.lower()  # as browsers send it
    bound = "" if is_here(address) else address or "0.0.0.0"
    others = bound or not all(is_here(split(entry)[0]) for entry in allowed)
    here = bracketed(address) if is_here(address) and is_number(address) else "127.0.0.1"
    token, look = (secrets.token_urlsafe(24) if others else "" for _ in range(2))
    return Door(allowed, bound, token, here, look)


def split(host: str) -> tuple[str, str]:
    """A Host header's name and port, "" if it has none."""
    name, _, port = host.rpartition(":") if ":" in host and not host.endswith("]") else (host, "", "")
    return name, port


def is_here(name: str) -> bool:
    """Whether a name means this machine to every browser, whatever a name server says."""
    try:
        return ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return name == "localhost"


def is_number(name: str) -> bool:
    """Whether it is an IP address, which no stranger can point elsewhere; a name can be."""
    try:
        return bool(ip_address(name.strip("[]")))
    except ValueError:
        return False


def lets_in(door: Door, host: str) -> bool:
    """Whether a Host header is one of ours."""
    name, _ = split(host.lower())
    return (
        name in (*HERE, door.here)
        or host.lower() in door.allowed
        or bool(door.bound and (is_number(name) or name == door.bound))
    )


def words(door: Door) -> str:
    """The addresses that are let in, in words."""
    more = ["any IP address"] if door.bound else []
    return ", ".join([*(f"{name} with any port" for name in dict.fromkeys((*HERE, door.here))), *more, *door.allowed])


def lines(door: Door, port: int, base: str, secure: bool) -> list[str]:
    """What the terminal shows: each address that works, and how to reach it from elsewhere."""
    path, query = "/" + f"{base.strip('/')}/".lstrip("/"), f"?{TOKEN}={door.token}" if door.token else ""
    names = [door.bound or door.here]
    if door.bound in EVERYWHERE:
        names = ["127.0.0.1", *filter(None, [own_address()])]
    scheme = "https" if secure else "http"
    shown = [f"MoEscope: {scheme}://{bracketed(name)}:{port}{path}{query}" for name in names]
    if not door.token:
        return shown
    look = f"learn?{TOKEN}={door.look}"
    shown += [f"For a class, which only looks: {scheme}://{bracketed(names[-1])}:{port}{path}{look}"] * bool(door.bound)
    return shown + [f"At {name}, append {query} once; for a class, {look}." for name in door.allowed]


def class_link(door: Door, url: str) -> str:
    """The link that lets a class look. url: of the teacher's page; "" if only the teacher's machine knows its name."""
    at = urlsplit(url)
    name, port = split(at.netloc)
    if is_here(name):
        name = own_address() if door.bound in EVERYWHERE else ""
    if not name:
        return ""
    path = at.path.rpartition("/")[0]
    return f"{at.scheme}://{bracketed(name)}{f':{port}' if port else ''}{path}/learn?{TOKEN}={door.look}"


def bracketed(name: str) -> str:
    return f"[{name}]" if ":" in name and not name.startswith("[") else name


def own_address() -> str:
    """This machine's address in its network; "" if it is in none. Nothing is sent: 192.0.2.1 is
    reserved for documentation."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return ""
        return str(probe.getsockname()[0])
