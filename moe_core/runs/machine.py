"""What this machine has to train on, as far as it can be told without torch: its cores, its GPUs, and which of them a run takes."""

import os
import platform
import sys
from pathlib import Path

from moe_core.schema import Config


def cores() -> int:
    """The processor's cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> int:
    """The CUDA GPUs that this process may use."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = len(list(Path("/dev").glob("nvidia[0-9]*")))
    return there if chosen is None else min(there, len([word for word in chosen.split(",") if word.strip()]))


def device_of(config: Config) -> str:
    """The kind of device that a run will train on."""
    if config.device != "auto":
        return config.device.split(":")[0]
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    return "cuda" if Path("/dev/nvidiactl").exists() else "mps" if apple else "cpu"
