"""The machine that a run trains on: which device, how many threads, and the facts that a run's numbers depend on."""

import statistics
import time
from typing import Any

import torch

from moe_core.nn.models import build, routing_options
from moe_core.recording.facts import device_name, versions
from moe_core.runs import cores
from moe_core.schema import Config, Knobs
from moe_core.training.data import Data


def choose_device(wanted: str) -> torch.device:
    """auto is cuda, else mps, else cpu. ValueError if this machine does not have the wanted one."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu, cuda, cuda:1 or mps, got {wanted!r}") from None
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device.type):
        raise ValueError(f"device {wanted!r} is not on this machine; use --device auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {wanted!r} is not on this machine, which has {torch.cuda.device_count()}; use --device auto"
        )
    return device


def choose_threads(config: Config, data: Data, knobs: Knobs, device: torch.device) -> int:
    """config.threads, or the quickest of 1, 2, 4, ... that leaves a core to the dashboard, by timing a few steps of each."""
    if config.threads:
        return config.threads
    candidates = [n for n in (1, 2, 4, 8, 16) if n == 1 or n < cores()]
    if len(candidates) == 1 or device.type != "cpu":
        return candidates[0]
    model = build(config, data.features, data.classes, knobs.k, knobs.noise, knobs.strategy)
    batch = data.batch(1)

    def seconds(threads: int) -> float:
        torch.set_num_threads(threads)
        times = []
        for _ in range(4):
            began = time.perf_counter()
            logits, _ = model(batch.inputs, **routing_options(config, knobs))
            logits.float().mean().backward()
            times.append(time.perf_counter() - began)
        return statistics.median(times[1:])

    return min(candidates, key=seconds)


def facts_of(device: torch.device, threads: int) -> dict[str, Any]:
    """What floating-point sums depend on beside Config and Knobs, for whoever reads or resumes the run."""
    return {
        "device": str(device),
        "device_name": device_name(device),
        "threads": threads,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "versions": versions(),
    }
