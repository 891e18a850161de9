"""Ending a rank that hangs: once it was named, or once a signal tells the ranks to end. Its own main thread does not react to a signal,
and that of rank 0 waits for it in an exchange. So another thread ends it: one of its own or, if it was halted, one of rank 0."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from moe_core.parallel import alive as signs
from moe_core.parallel.alive import Alive, called
from moe_core.runs.locks import is_ours
from moe_core.training.session import ending_signals


class Hung(Exception):
    """What a rank that hangs says of itself: another of its threads does."""


@contextlib.contextmanager
def told_to_end(act: Callable[[threading.Event], None]) -> Iterator[None]:
    """Within it, a thread calls act() once a signal tells this process to end. The event that act() is given is set when the block ends.

    Python handles a signal between two lines of the main thread, so not while that waits in an exchange. The system writes its number into a
    socket at once, and the thread reads there.
    """
    if threading.current_thread() is not threading.main_thread():  # only that one may ask for the signals
        yield
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    over, ending = threading.Event(), ending_signals()

    def wait() -> None:
        while numbers := ours.recv(64):
            if any(number in ending for number in numbers):
                act(over)
                break

    thread = threading.Thread(target=wait, name="stopping", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        theirs.close()
        thread.join()
        ours.close()


def end_itself(alive: Alive, over: threading.Event) -> None:
    """What any other rank does: it ends its process if that hangs, so that the exchange in which the others wait for it fails."""
    told = time.monotonic()
    while not over.wait(signs.EVERY):
        if alive.hangs(told):
            alive.report(Hung("it came to no exchange any more, and ended itself when it was told to end"))
            os._exit(1)


def end_what_is_halted(alive: Alive, over: threading.Event) -> None:
    """What rank 0 does: end_silent, again and again until that has ended a rank or the run is over."""
    while not over.is_set() and not end_silent(alive, over):
        pass


def end_silent(alive: Alive, over: threading.Event) -> bool:
    """End a rank of this machine that gave no sign of life for SILENT seconds in which this one did not get on, and name it. True once that is
    done, or the run is over."""
    others = [rank for rank in range(alive.size) if rank != alive.rank]
    progress, first = alive.progress, {rank: alive.read("alive", rank) for rank in others}
    if over.wait(signs.SILENT) or alive.progress != progress:
        return over.is_set()
    for rank, facts in first.items():
        if here(facts) and alive.read("alive", rank).get("beat") == facts["beat"]:
            if over.is_set():  # so it may have ended in peace
                return True
            alive.gone = (
                rank,
                f"{called(rank, facts)} hung, last seen in {facts['doing']}; it was ended when the run was stopped",
            )
            end_rank(alive, rank)
            return True
    return False


def end_rank(alive: Alive, rank: int) -> None:
    """Kill a rank that was named, if it is on this machine: torchrun would wait 30 s for it."""
    facts = alive.read("alive", rank)
    if here(facts):
        with contextlib.suppress(OSError):  # it has just ended
            os.kill(facts["pid"], signal.SIGKILL)


def here(facts: dict[str, Any]) -> bool:
    """Whether a rank, by what it said of itself, is a process of this machine. It may be gone, and another have its number by now."""
    return facts.get("host") == socket.gethostname() and is_ours(facts["pid"], "train", "fork")
