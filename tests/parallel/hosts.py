"""Two hosts on one machine: two network namespaces, each with a name of its own, and a virtual link between them.

As root the namespaces are made at once; as anybody else within a user namespace, where the system allows those. Each is held by
a process that ends when this one does, and the kernel removes a namespace, with its end of the link, once nothing runs in it: so
nothing is left, however a test ends.
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

LINK = "wire"  # the name of the link's end on each host
ADDRESSES = ("10.99.0.1", "10.99.0.2")


class NoHosts(Exception):
    """This machine does not allow namespaces, or lacks a program; says which command failed, and how."""


class Hosts:
    """holders: for each host the process that keeps its namespaces."""

    def __init__(self) -> None:
        self.holders: list[subprocess.Popen[str]] = []
        self.own_users = os.geteuid() != 0

    def make(self) -> None:
        own_users = ["--user", "--map-root-user"] if self.own_users else []
        self.hold(["unshare", *own_users, "--net", "--uts"])
        self.hold([*self.within(0), "unshare", "--net", "--uts"])
        other = str(self.holders[1].pid)
        checked([*self.within(0), "ip", "link", "add", LINK, "type", "veth", "peer", "name", LINK, "netns", other])
        for host, address in enumerate(ADDRESSES):
            for words in (f"hostname host-{host}", "ip link set lo up", f"ip address add {address}/24 dev {LINK}", f"ip link set {LINK} up"):  # fmt: skip
                checked([*self.within(host), *words.split()])

    def hold(self, unshare: list[str]) -> None:
        """Keep new namespaces by a process that ends when its standard input does."""
        command = [*unshare, "sh", "-c", "echo held; exec cat"]
        try:
            holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
        except OSError as error:
            raise NoHosts(f"{' '.join(command)}: {error.strerror}") from None
        self.holders.append(holder)
        assert holder.stdout
        if (said := holder.stdout.readline().strip()) != "held":
            raise NoHosts(f"{' '.join(command)}: {said}")

    def within(self, host: int) -> list[str]:
        """What comes before a command that is to run on this host."""
        own_users = ["--user", "--preserve-credentials"] if self.own_users else []
        return ["nsenter", "--target", str(self.holders[host].pid), *own_users, "--net", "--uts"]

    def link(self, way: str) -> None:
        """Cut the link (`down`), or mend it (`up`)."""
        checked([*self.within(0), "ip", "link", "set", LINK, way])

    def crossed(self) -> int:
        """Bytes that have crossed the link, either way, by its own counters."""
        for line in Path(f"/proc/{self.holders[0].pid}/net/dev").read_text().splitlines():
            name, _, numbers = line.strip().partition(":")
            if name == LINK:
                return int(numbers.split()[0]) + int(numbers.split()[8])
        raise AssertionError("there is no link")

    def processes(self, variable: str = "") -> list[int]:
        """What runs on the hosts, beside the holders; only what has this variable in its environment, if one is given."""
        held = {holder.pid for holder in self.holders}
        spaces, found = set[str](), []
        for pid in held:
            with contextlib.suppress(OSError):  # it could not be made
                spaces.add(os.readlink(f"/proc/{pid}/ns/net"))
        spaces.discard(os.readlink("/proc/self/ns/net"))
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended, or is another person's
                has = not variable or f"\0{variable}=".encode() in (entry / "environ").read_bytes()
                if has and os.readlink(entry / "ns" / "net") in spaces and int(entry.name) not in held:
                    found.append(int(entry.name))
        return found

    def end(self) -> None:
        """Kill what runs on the hosts, and let them go."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for holder in self.holders:
            holder.kill()
            holder.communicate()


def checked(command: list[str]) -> None:
    """Run a command. NoHosts, with what it said, if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except OSError as error:
        raise NoHosts(f"{' '.join(command)}: {error.strerror}") from None
    if done.returncode:
        raise NoHosts(f"{' '.join(command)}: {done.stderr.strip() or f'exit status {done.returncode}'}")


@contextlib.contextmanager
def two_hosts() -> Iterator[Hosts]:
    hosts = Hosts()
    try:
        hosts.make()
        yield hosts
    finally:
        hosts.end()
