"""Other processes: whether one holds a file's lock, which one, and whether it is one of MoEscope's. The kernel keeps the
locks."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Callable
from pathlib import Path

OURS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a link may lead anywhere, and opening a pipe would block


def is_locked(path: Path) -> bool:
    """Whether a process holds the file's lock. A lock ends with its process, however that ended."""
    try:
        handle = os.open(path, os.O_RDONLY | OURS)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(handle)


def sign(handle: int, pid: int) -> None:
    """Say in a lock's file which process holds it: its id and when it started, since an id is given to others later."""
    with contextlib.suppress(OSError):  # a full disk does not take it
        os.pwrite(handle, f"{pid:>10} {started(pid):<20}\n".encode(), 0)


def post(handle: int) -> socket.socket:
    """A socket that holds the handle of a lock, to be a process's stdin. Whichever of its children fetches the handle holds the lock;
    if all end before, the system frees it."""
    slot, mailbox = socket.socketpair()
    with slot:
        socket.send_fds(slot, [b"lock"], [handle])
    return mailbox


def fetch(mailbox: int) -> int:
    """The handle of the lock out of such a mailbox. ValueError if it is none, or was emptied before."""
    try:
        with socket.socket(fileno=os.dup(mailbox)) as box:
            _, handles, _, _ = socket.recv_fds(box, 8, 1)
    except OSError:
        handles = []
    if not handles:
        raise ValueError("--lock on several ranks takes a mailbox of the dashboard's; leave it out")
    os.set_inheritable(handles[0], False)
    return handles[0]


def holder(path: Path) -> int | None:
    """The process that a lock's file names as its holder, 0 if that process has ended; None if the file names none."""
    try:
        handle = os.open(path, os.O_RDONLY | OURS)
        with open(handle, "rb") as file:
            pid, *when = file.read(64).decode("ascii").split()
        return int(pid) if "".join(when) == started(int(pid)) else 0
    except (OSError, ValueError):
        return None


def started(pid: int) -> str:
    """When a process started, in clock ticks since boot; "" on a system without /proc, or if the process has ended."""
    return stat_words(pid)[19]


def stat_words(pid: int) -> list[str]:
    """What /proc/PID/stat says of a process behind its name: 0 is its state, 1 its parent, 17 how many threads it has, 19 when it
    started. All are "" on a system without /proc, or if the process has gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return [""] * 20


def is_ours(pid: int, *commands: str) -> bool:
    """Whether a process runs one of these commands of `python -m moe_core`, or of `moescope`, which an installed wheel has."""

    def fits(words: list[bytes]) -> bool:
        ours = b"moe_core" in words or any(word.rpartition(b"/")[2] == b"moescope" for word in words)
        return ours and any(command.encode() in words for command in commands)

    return started_with(pid, fits)


def started_with(pid: int, fits: Callable[[list[bytes]], bool]) -> bool:
    """Whether a process is there and the words that it was started with fit. On a system without /proc they are not known: then it is
    enough that there is a process.

    Such a pid comes from a file or from another process: 0 or -1 would signal everybody, and another process may have it by now.
    """
    if pid <= 1:
        return False
    if words := command_line(pid):
        return fits(words)
    return not Path("/proc/self").exists() and exists(pid)


def exists(pid: int) -> bool:
    """Whether a process has this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def command_line(pid: int) -> list[bytes]:
    """The words that a process was started with; none if it has ended, or on a system without /proc."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []
