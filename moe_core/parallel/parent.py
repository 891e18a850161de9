"""The torchrun above a rank: once it is gone its ranks end too, also in the seconds in which they still load torch."""

import os
import signal
import socket
import threading
import time

EVERY = 0.5  # seconds between two looks
PATIENT = 60.0  # seconds that a run has to end after torchrun was killed


def watch_parent(parent: int) -> None:
    """Once torchrun is gone, end the run, or this process if there is no run yet. So no process is left behind.

    parent: torchrun's process, as it was when this one began; it may have ended meanwhile.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(EVERY)
        # Rank 0 then stops the run after its step and tells the others, which ignore the signal.
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENT)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def torchrun_has_ended() -> bool:
    """Whether nobody listens any more where torchrun has the store at which its ranks meet. It was there before they were: so of a torchrun
    that ended before a rank could ask for its parent, this still tells. False where a rank makes the store."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return False
    try:
        socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), timeout=5.0).close()
    except ConnectionRefusedError:
        return True
    except (OSError, KeyError, ValueError):  # what is wrong, the meeting of the ranks says
        return False
    return False
