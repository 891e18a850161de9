"""The processes of a run on ranks on this machine: torchrun and its ranks. When a person has stopped the run, none of them stays, not one
that hangs either, or that somebody has halted (SIGSTOP). Only where the system has /proc."""

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from moe_core.runs.database import StoreError
from moe_core.runs.locks import command_line, started, stat_words

UNTIL_KILLED = 60.0  # seconds in which a process that is not halted must end: torchrun itself gives its ranks 30
# Seconds after SIGKILL: a process that waits for a dead disk does not end, nor does one of another user.
UNTIL_GIVEN_UP = 5.0
# States of a process: it was stopped by a signal; its first thread has ended, and nobody has asked for its status.
HALTED, ENDED = "T", "Z"


class Process(NamedTuple):
    """A process; began, since its number is given to others later."""

    pid: int
    began: str

    @property
    def state(self) -> str:
        """Its state in a letter, as in /proc; "" once it has ended, even if nobody has asked for its status. Its other threads may end after its
        first, and hold its locks until then."""
        words = stat_words(self.pid)
        there = words[19] == self.began and (words[0] != ENDED or int(words[17]) > 1)
        return words[0] if there else ""


def processes_below(pid: int) -> list[Process]:
    """What a process has started and what still runs of it."""
    found: list[Process] = []
    with contextlib.suppress(OSError, ValueError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            children = map(int, (task / "children").read_text().split())
            found += [Process(child, began) for child in children if (began := started(child))]
    return found


def launched_with(rank: int) -> list[Process]:
    """The torchrun that started a rank, and all of its ranks on this machine; [] of a process that torchrun has not started."""
    above = int(stat_words(rank)[1] or 0)
    return [Process(above, started(above)), *processes_below(above)] if is_torchrun(above) else []


def is_torchrun(pid: int) -> bool:
    words = command_line(pid)
    return b"torch.distributed.run" in words or any(word.rpartition(b"/")[2] == b"torchrun" for word in words[:2])


def end_processes(processes: Sequence[Process], patience: float) -> None:
    """Wait until these processes have ended. A halted process is killed after `patience` seconds, any other after UNTIL_KILLED. With patience 0
    all are killed at once. StoreError, which names them, for those that cannot be killed, once the others have ended."""
    began, killed = time.monotonic(), dict[Process, float]()
    while states := {process: state for process in processes if (state := process.state)}:
        now = time.monotonic()
        if all(now > killed.get(process, now) + UNTIL_GIVEN_UP for process in states):
            left = ", ".join(str(process.pid) for process in states)
            raise StoreError(f"what torchrun started cannot be ended; see on this machine why process {left} stays")
        for process, state in states.items():
            if now - began >= (patience if state == HALTED or not patience else UNTIL_KILLED):
                killed.setdefault(process, now)
                # It has just ended, or is another user's.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.02)
