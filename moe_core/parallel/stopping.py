"""Stopping a run while one rank hangs. Rank 0 is then stuck in an exchange and cannot react to a signal; so a thread ends the hanging rank."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator

from moe_core.parallel import alive as signs
from moe_core.parallel.alive import Alive, called
from moe_core.runs.locks import is_ours


@contextlib.contextmanager
def ending_what_hangs(alive: Alive) -> Iterator[None]:
    """Within it, once this process is told to end by a signal, a rank of this machine that gives no sign of life is killed, so that the
    exchange which waits for it fails at once. alive.gone then has its name.

    Python handles a signal between two lines of the main thread, so not while that waits in an exchange. The system writes its number into a
    socket at once, and a thread reads there.
    """
    if threading.current_thread() is not threading.main_thread():  # only that one may ask for the signals
        yield
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    over = threading.Event()

    def wait() -> None:
        while numbers := ours.recv(64):
            if signal.SIGTERM in numbers or signal.SIGINT in numbers:
                break
        while not over.is_set() and not end_silent(alive, over):
            pass

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


def end_silent(alive: Alive, over: threading.Event) -> bool:
    """Kill a rank of this machine that gave no sign of life for SILENT seconds in which this one did not get on, and name it. True once that is
    done, or the run is over."""
    others = [rank for rank in range(alive.size) if rank != alive.rank]
    progress, first = alive.progress, {rank: alive.read("alive", rank) for rank in others}
    if over.wait(signs.SILENT) or alive.progress != progress:
        return over.is_set()
    for rank, facts in first.items():
        here = facts.get("host") == socket.gethostname() and is_ours(facts["pid"], "train", "fork")
        if here and alive.read("alive", rank).get("beat") == facts["beat"]:
            if over.is_set():  # so it may have ended in peace
                return True
            alive.gone = (
                rank,
                f"{called(rank, facts)} hung, last seen in {facts['doing']}; it was ended when the run was stopped",
            )
            with contextlib.suppress(OSError):  # it has just ended
                os.kill(facts["pid"], signal.SIGKILL)
            return True
    return False
