"""Other processes: whether one holds a file's lock, by the kernel's account, and whether one was started by us."""

import fcntl
import os
from pathlib import Path

OURS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a link may lead anywhere, and a pipe keeps who opens it waiting


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


def is_ours(pid: int, *commands: str) -> bool:
    """Whether a process runs one of these commands of `python -m moe_core`.

    The pid comes from a file: 0 or -1 would signal everybody, and another process may have it by now.
    """
    if pid <= 1:
        return False
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return not Path("/proc/self").exists()  # a system without /proc: the held lock has to do
    return b"moe_core" in words and any(command.encode() in words for command in commands)
