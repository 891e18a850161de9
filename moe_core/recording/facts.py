"""What a record says of the machine and the software that it was made with."""

import platform
import sys

import numpy as np
import torch

from moe_core import __version__


def device_name(device: torch.device) -> str:
    """The name of the GPU, or of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """The version of each piece of software that numbers depend on."""
    return {
        "moescope": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": sys.version.split()[0],
    }
