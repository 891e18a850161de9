"""The torchrun above a rank: once it is gone its ranks end too, also in the seconds in which they still load torch."""

import os
import signal
import socket
import threading
import time

EVERY = 0.5  # seconds between two looks
UNTIL_EXIT = 60.0  # seconds that a run has to end after torchrun was killed


def watch_parent(parent: int) -> None:
    """Once torchrun is gone, end the run, or this process if there is no run yet. So no process is left behind.

    parent: torchrun's process, as it was when this one began; it may have ended meanwhile.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(EVERY)
        # Rank 0 then stops the run after its step and tells the others, which ignore the signal.
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(UNTIL_EXIT)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def store_address() -> str:
    """Where torchrun, on the first machine, has the store at which the ranks meet."""
    return f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"


def torchrun_has_ended() -> bool:
    """torchrun opens this store before it starts a rank. If nothing listens there, torchrun has ended, even if it did so before the rank could
    note its parent. False where rank 0 itself opens the store."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return False
    try:
        socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), timeout=5.0).close()
    except ConnectionRefusedError:
        return True
    except (OSError, KeyError, ValueError):  # what is wrong, the meeting of the ranks says
        return False
    return False
