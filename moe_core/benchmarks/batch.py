"""The shrinking batch problem, measured: tokens a second of one MoE layer by the size of its batch.

`python -m moe_core bench batch`. Forward and backward with gate, losses and statistics, wall time, medians. With k of E
experts an expert sees k*T/E tokens, so its products shrink as E grows; the sizes show what that costs on this machine.
"""

import argparse
import json
import os
import platform
import statistics
import time
from typing import Any

import torch

from moe_core.benchmarks.layer import keep_memory
from moe_core.benchmarks.results import keep
from moe_core.nn.balance import importance_loss, load_loss
from moe_core.nn.layer import MoELayer

SIZES = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
QUICK = (64, 128)
LONGEST = 4.0  # seconds for one step; a size that takes longer ends the series


def step_of(layer: MoELayer, tokens: int, d_model: int, device: torch.device):
    """One training step of the layer on a batch of its own, finished when it returns."""
    generator = torch.Generator().manual_seed(0)
    x_TD = torch.randn(tokens, d_model, generator=generator).to(device).requires_grad_()
    grad_TD = torch.randn(tokens, d_model, generator=generator).to(device)

    def step() -> None:
        layer.zero_grad(set_to_none=True)
        x_TD.grad = None
        y_TD, routing = layer(x_TD)
        balance = 0.1 * importance_loss(routing.importance_E) + 0.1 * load_loss(routing.load_E)
        torch.autograd.backward([y_TD, balance], [grad_TD, None])
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def measure(layer: MoELayer, tokens: int, d_model: int, device: torch.device, seconds: float) -> tuple[float, int]:
    """Median seconds of a step, and how many were timed."""
    step = step_of(layer, tokens, d_model, device)
    step()
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < 3 or time.perf_counter() < end:
        begin = time.perf_counter()
        step()
        taken.append(time.perf_counter() - begin)
        if taken[-1] > LONGEST:
            break
    return statistics.median(taken), len(taken)


def main(options: argparse.Namespace) -> int:
    """options: d_model, d_hidden, num_experts, k, device, threads (0: torch's own), seconds, json, quick, out."""
    device = torch.device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    keep_memory()  # as in the trainer: returning memory to the system costs more than the products of a large batch
    torch.manual_seed(0)
    layer = MoELayer(options.d_model, options.d_hidden, options.num_experts, options.k).to(device)
    machine = f"{platform.machine()}, {torch.get_num_threads()} thread(s), {device}, torch {torch.__version__}"
    sizes = {name: getattr(options, name) for name in ("d_model", "d_hidden", "num_experts", "k")}
    rows: list[dict[str, Any]] = []
    tokens_of, seconds = (QUICK, 0.0) if options.quick else (SIZES, 1.0 if options.seconds is None else options.seconds)
    if options.json:
        print(
            json.dumps({"event": "start", "pid": os.getpid(), "sizes": tokens_of, "machine": machine} | sizes),
            flush=True,
        )
    else:
        print(f"{machine}; one layer, forward + backward, float32")
        print(f"{'tokens':>8}{'per expert':>12}{'ms':>10}{'tokens/s':>12}{'rounds':>8}")
    for tokens in tokens_of:
        took, rounds = measure(layer, tokens, options.d_model, device, seconds)
        rows.append({"tokens": tokens, "ms": 1000 * took, "tokens_per_second": tokens / took, "rounds": rounds})
        if options.json:
            print(json.dumps({"event": "size"} | rows[-1]), flush=True)
        else:
            each = options.k * tokens / options.num_experts
            print(f"{tokens:>8}{each:>12.4g}{1000 * took:>10.2f}{tokens / took:>12,.0f}{rounds:>8}", flush=True)
        if took > LONGEST:
            break
    if options.out:
        keep(options.out, rows, device=str(device), threads=torch.get_num_threads(), **sizes)
    if options.json:
        print(json.dumps({"event": "end"}), flush=True)
    return 0
