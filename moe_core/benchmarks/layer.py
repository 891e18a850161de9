"""The MoE layer beside sort + torch.nn.functional.grouped_mm and beside dense products: `python -m moe_core bench layer`.

Forward and backward with the same gate, losses and statistics; only the dispatch differs. The rivals take turns within
each round, so that whatever else the machine does falls on all alike. One thread, CPU time, medians. `dense` is the
limit: relu(x @ A) @ B on as many rows, without gate or dispatch.
"""

import argparse
import ctypes
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from moe_core.nn.balance import importance_loss, load_loss
from moe_core.nn.gating import Routing
from moe_core.nn.layer import MoELayer

# tokens, model width, expert width, experts, k; the first is the text task's default.
SIZES = (
    (1024, 64, 128, 16, 2),
    (1024, 64, 256, 16, 2),
    (4096, 128, 512, 16, 2),
    (4096, 256, 1024, 8, 2),
    (4096, 256, 1024, 64, 2),
)


def grouped_mm_layer(layer: MoELayer, x_TD: Tensor) -> tuple[Tensor, Routing]:
    """The same layer as one would write it with grouped_mm and autograd. index_select: faster here than x_TD[token_N]."""
    routing = layer.gate(x_TD)
    order_N = routing.experts_TK.flatten().argsort(stable=True)
    token_N = order_N // routing.experts_TK.shape[1]
    offs = routing.counts_E.cumsum(0, dtype=torch.int32)
    hidden_NH = F.grouped_mm(x_TD.index_select(0, token_N), layer.w1, offs=offs).relu()
    weights_N = routing.weights_TK.flatten().index_select(0, order_N).to(x_TD.dtype)
    out_ND = F.grouped_mm(hidden_NH, layer.w2.mT, offs=offs) * weights_N[:, None]
    return torch.zeros_like(x_TD).index_add(0, token_N, out_ND), routing


def rivals(tokens: int, d_model: int, d_hidden: int, num_experts: int, k: int) -> dict[str, Callable[[], None]]:
    """One training step's forward and backward of each, on the same batch and weights."""
    torch.manual_seed(0)
    layer = MoELayer(d_model, d_hidden, num_experts, k)
    x_TD = torch.randn(tokens, d_model, requires_grad=True)
    grad_TD = torch.randn(tokens, d_model)
    rows_ND = torch.randn(tokens * k, d_model, requires_grad=True)
    a_DH, b_HD = (torch.randn(shape, requires_grad=True) for shape in ((d_model, d_hidden), (d_hidden, d_model)))
    grad_ND = torch.randn(tokens * k, d_model)

    def step(forward: Callable[[Tensor], tuple[Tensor, Routing]]) -> None:
        layer.zero_grad(set_to_none=True)
        x_TD.grad = None
        y_TD, routing = forward(x_TD)
        balance = 0.1 * importance_loss(routing.importance_E) + 0.1 * load_loss(routing.load_E)
        torch.autograd.backward([y_TD, balance], [grad_TD, None])

    def dense() -> None:
        rows_ND.grad = a_DH.grad = b_HD.grad = None
        (F.relu(rows_ND @ a_DH) @ b_HD).backward(grad_ND)

    return {
        "ours": lambda: step(layer),
        "grouped_mm": lambda: step(lambda x_TD: grouped_mm_layer(layer, x_TD)),
        "dense": dense,
    }


def measure(size: tuple[int, ...], seconds: float) -> dict[str, float]:
    """Median CPU milliseconds of each rival, and the median over rounds of grouped_mm's time over ours."""
    steps = rivals(*size)
    for step in (*steps.values(), *steps.values()):  # twice, to warm up
        step()
    taken: dict[str, list[float]] = {name: [] for name in steps}
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(taken["ours"]) < 5:
        for name, step in steps.items():
            begin = time.process_time()
            step()
            taken[name].append(1000 * (time.process_time() - begin))
    medians = {name: statistics.median(times) for name, times in taken.items()}
    medians["speedup"] = statistics.median(b / a for a, b in zip(taken["ours"], taken["grouped_mm"], strict=True))
    medians["rounds"] = len(taken["ours"])
    return medians


def keep_memory() -> bool:
    """What the trainer's environment does (MALLOC_MMAP_MAX_=0, MALLOC_TRIM_THRESHOLD_ large), from inside; glibc only."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(-4, 0) and mallopt(-1, 2**31 - 1))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="moe bench layer", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a size instead of the table")
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each size (default 4)")
    parser.add_argument("--quick", action="store_true", help="the smallest size only, to see that it works")
    parser.add_argument("--allocator", choices=("kept", "default"), default="kept", help="kept: as in the trainer")
    options = parser.parse_args(argv)
    kept = options.allocator == "kept" and keep_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.disable()
    try:
        if not options.json:
            print(
                f"torch {torch.__version__}, 1 thread, float32, allocator {'kept' if kept else 'default'}; CPU ms, forward + backward"
            )
            print(
                f"{'tokens':>7}{'d':>6}{'h':>6}{'E':>5}{'k':>3}{'ours':>9}{'grouped':>9}{'dense':>9}{'grouped/ours':>14}{'dense/ours':>12}"
            )
        for size in SIZES[:1] if options.quick else SIZES:
            medians = measure(size, 0.0 if options.quick else options.seconds)
            if options.json:
                names = dict(zip(("tokens", "d_model", "d_hidden", "num_experts", "k"), size, strict=True))
                print(json.dumps(names | medians | {"allocator": "kept" if kept else "default"}), flush=True)
            else:
                cells = "".join(f"{medians[name]:9.2f}" for name in ("ours", "grouped_mm", "dense"))
                numbers = "".join(f"{value:{width}}" for value, width in zip(size, (7, 6, 6, 5, 3), strict=True))
                print(
                    f"{numbers}{cells}{medians['speedup']:14.2f}{medians['dense'] / medians['ours']:12.2f}", flush=True
                )
    finally:
        gc.enable()
        torch.set_num_threads(threads)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
