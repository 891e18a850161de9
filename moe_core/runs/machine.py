"""What this machine has to train on, as far as it can be told without torch: its cores, its GPUs, and which of them a run takes."""

import itertools
import os
import platform
import sys
from pathlib import Path

from moe_core.schema import Config


def cores() -> int:
    """The processor's cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> int:
    """The CUDA GPUs that this process may use. CUDA goes by the words of CUDA_VISIBLE_DEVICES up to the first that names none: "" and
    "-1" hide all."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = len(list(Path("/dev").glob("nvidia[0-9]*")))
    if chosen is None:
        return there
    words = (word.strip() for word in chosen.split(","))
    return min(there, len(list(itertools.takewhile(lambda word: word and not word.startswith("-"), words))))


def device_kind(config: Config) -> str:
    """The kind of device that a run will train on. Of a machine with a GPU and a torch that was built without CUDA it says cuda: that
    only torch can tell."""
    if config.device != "auto":
        return config.device.split(":")[0]
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    return "cuda" if gpus() else "mps" if apple else "cpu"
