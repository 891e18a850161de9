"""The MoE layer beside dense products, beside sort + torch.nn.functional.grouped_mm, and beside peers: `python -m moe_core bench layer`.

Forward and backward, with gate, losses and statistics, on one thread. Of grouped_mm only the dispatch differs from ours; a peer
has its own gate and balancing loss (peers.py). The rivals take turns within each round, so that whatever else the machine does
falls on all alike; CPU time, medians, and medians over rounds of the ratios. `dense` is the limit: relu(x @ A) @ B on as many
rows, without gate or dispatch.
"""

import argparse
import ctypes
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from moe_core.benchmarks.peers import NOTES, Forward, peer
from moe_core.benchmarks.results import keep
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


def rivals(
    tokens: int, d_model: int, d_hidden: int, num_experts: int, k: int, peers: Sequence[str] = ()
) -> dict[str, Callable[[], None]]:
    """One training step's forward and backward of each, on the same batch; ours and grouped_mm have the same weights too."""
    torch.manual_seed(0)
    layer = MoELayer(d_model, d_hidden, num_experts, k)
    x_TD = torch.randn(tokens, d_model, requires_grad=True)
    grad_TD = torch.randn(tokens, d_model)
    rows_ND = torch.randn(tokens * k, d_model, requires_grad=True)
    a_DH, b_HD = (torch.randn(shape, requires_grad=True) for shape in ((d_model, d_hidden), (d_hidden, d_model)))
    grad_ND = torch.randn(tokens * k, d_model)

    def step_of(module: torch.nn.Module, forward: Forward) -> Callable[[], None]:
        def step() -> None:
            module.zero_grad(set_to_none=True)
            x_TD.grad = None
            y_TD, balance = forward(x_TD)
            outputs, grads = ([y_TD], [grad_TD]) if balance is None else ([y_TD, balance], [grad_TD, None])
            torch.autograd.backward(outputs, grads)

        return step

    def balanced(forward: Callable[[Tensor], tuple[Tensor, Routing]]) -> Callable[[], None]:
        def with_loss(x_TD: Tensor) -> tuple[Tensor, Tensor]:
            y_TD, routing = forward(x_TD)
            return y_TD, 0.1 * importance_loss(routing.importance_E) + 0.1 * load_loss(routing.load_E)

        return step_of(layer, with_loss)

    def dense() -> None:
        rows_ND.grad = a_DH.grad = b_HD.grad = None
        (F.relu(rows_ND @ a_DH) @ b_HD).backward(grad_ND)

    steps = {
        "ours": balanced(layer),
        "dense": dense,
        "grouped_mm": balanced(lambda x_TD: grouped_mm_layer(layer, x_TD)),
    }
    return steps | {name_of(text): step_of(*peer(text, (d_model, d_hidden, num_experts, k))) for text in peers}


def name_of(text: str) -> str:
    return text.partition("=")[0]


def measure(size: tuple[int, ...], seconds: float, peers: Sequence[str] = ()) -> dict[str, Any]:
    """Median CPU milliseconds of each rival; over_ours: the median over rounds of its time over ours."""
    steps = rivals(*size, peers=peers)
    for step in (*steps.values(), *steps.values()):  # twice, to warm up
        step()
    taken: dict[str, list[float]] = {name: [] for name in steps}
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(taken["ours"]) < 5:
        for name, step in steps.items():
            begin = time.process_time()
            step()
            taken[name].append(1000 * (time.process_time() - begin))
    over_ours = {
        name: statistics.median(b / a for a, b in zip(taken["ours"], times, strict=True))
        for name, times in taken.items()
        if name != "ours"
    }
    medians = {name: statistics.median(times) for name, times in taken.items()}
    return {"rounds": len(taken["ours"]), "ms": medians, "over_ours": over_ours}


def keep_memory() -> bool:
    """What the trainer's environment does (MALLOC_MMAP_MAX_=0, MALLOC_TRIM_THRESHOLD_ large), from inside; glibc only."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(-4, 0) and mallopt(-1, 2**31 - 1))


def main(options: argparse.Namespace) -> int:
    """options: peer, allocator, seconds, json, quick, out."""
    kept = options.allocator == "kept" and keep_memory()
    peers = options.peer or []
    if len({"ours", "dense", "grouped_mm", *map(name_of, peers)}) < 3 + len(peers):
        raise ValueError(
            f"each peer needs a name of its own, other than ours, dense and grouped_mm, got {', '.join(peers)}"
        )
    said = {
        "threads": 1,
        "dtype": "float32",
        "allocator": "kept" if kept else "default",
        "peers": {name_of(text): NOTES.get(text, "as in its file") for text in peers},
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.disable()
    seconds = 0.0 if options.quick else 4.0 if options.seconds is None else options.seconds
    rows: list[dict[str, Any]] = []
    try:
        for size in SIZES[:1] if options.quick else SIZES:
            row = dict(zip(("tokens", "d_model", "d_hidden", "num_experts", "k"), size, strict=True))
            rows.append(row | measure(size, seconds, peers))
            print_row(rows, said, options.json)
    finally:
        gc.enable()
        torch.set_num_threads(threads)
    if options.out:
        keep(options.out, rows, **said)
    return 0


def print_row(rows: list[dict[str, Any]], said: dict[str, Any], as_json: bool) -> None:
    """The last row, below a heading if it is the first one."""
    row = rows[-1]
    if as_json:
        print(json.dumps(row | {"allocator": said["allocator"]}), flush=True)
        return
    over_ours = {name: ratio for name, ratio in row["over_ours"].items() if name != "dense"}
    if len(rows) == 1:
        print(
            f"torch {torch.__version__}, 1 thread, float32, allocator {said['allocator']}; CPU ms, forward + backward"
        )
        heading = "".join(f"{name + '/ours':>{len(name) + 7}}" for name in over_ours)
        print(f"{'tokens':>7}{'d':>6}{'h':>6}{'E':>5}{'k':>3}{'ours':>9}{'dense':>9}{'dense/ours':>12}{heading}")
        for name, note in said["peers"].items():
            print(f"{name}: {note}", file=sys.stderr)
    sizes = (row[name] for name in ("tokens", "d_model", "d_hidden", "num_experts", "k"))
    numbers = "".join(f"{value:{width}}" for value, width in zip(sizes, (7, 6, 6, 5, 3), strict=True))
    ratios = "".join(f"{ratio:{len(name) + 7}.2f}" for name, ratio in over_ours.items())
    print(
        f"{numbers}{row['ms']['ours']:9.2f}{row['ms']['dense']:9.2f}{row['over_ours']['dense']:12.2f}{ratios}",
        flush=True,
    )
