"""By what a run is found again after torchrun has started its ranks anew."""

import os
import socket


def launch_name() -> str:
    """The name of this launch of torchrun, the same after each restart. Without --standalone and --rdzv-id torchrun calls every launch
    "none"; its process, which survives a restart of the ranks, then tells them apart."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return name if name != "none" else f"none-{socket.gethostname()}-{os.getppid()}"
