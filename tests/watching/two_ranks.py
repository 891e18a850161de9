"""What test_ranks.py starts twice, as rank 0 and rank 1: each case watches a small model; the last line printed says what this
rank saw, as JSON."""

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from moe_core.runs import Run
from moe_core.watching import Knob, Live, StopTraining, watch
from tests.watching.test_counting import D, E, K, Model

TOKENS = 20


def tokens(rank: int, step: int) -> torch.Tensor:
    return torch.randn(TOKENS, D, generator=torch.Generator().manual_seed(100 * rank + step)).requires_grad_()


class Loop:
    """A training on this rank's own tokens, with what its gates chose in each step, seen by hooks of its own."""

    def __init__(self, rank: int, wrap: Callable[[Model], nn.Module], repeat: bool | None = None) -> None:
        self.rank, self.model = rank, Model(repeat)
        self.number = 0
        self.chosen: dict[tuple[int, int], list[int]] = {}
        for block, one in enumerate(self.model.blocks):
            one.gate.register_forward_hook(lambda gate, args, logits, block=block: self.see(block, logits))
        self.wrapped = wrap(self.model)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.losses: list[float] = []

    def see(self, block: int, logits: torch.Tensor) -> None:
        ids = logits.detach().topk(K, dim=1).indices.flatten()
        if self.model.training:
            self.chosen.setdefault((self.number, block), torch.bincount(ids, minlength=E).tolist())

    def step(self, live: Live | None) -> None:
        loss = self.wrapped(tokens(self.rank, self.number)).square().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(loss.item())
        if live is not None:
            live.step(loss=loss)
        self.number += 1

    def counts(self) -> list[list[list[int]]]:
        """By step and block."""
        return [[self.chosen[step, block] for block in range(2)] for step in range(self.number)]


def alone(model: Model) -> nn.Module:
    return model


def sharded(model: Model) -> nn.Module:
    for block in model.blocks:
        fully_shard(block)
    return fully_shard(model)


def exactly(rank: int, runs: Path, wrap: Callable[[Model], nn.Module], repeat: bool | None = None) -> dict[str, Any]:
    """Seven steps, watched and not."""
    plain, loop = Loop(rank, wrap, repeat), Loop(rank, wrap, repeat)
    live = watch(loop.wrapped, "a", optimizer=loop.optimizer, runs=runs)
    for _ in range(7):
        plain.step(None)
        loop.step(live)
    live.close()
    return {"counts": loop.counts(), "losses": loop.losses, "plain": plain.losses, "problem": live.problem}


def turns(rank: int, runs: Path) -> dict[str, Any]:
    """Rank 0 is asked for turns, two of them by its script; then for a pause, and in it for a single step and a stop."""
    loop, seen = Loop(rank, alone), []
    live = watch(loop.model, "a", optimizer=loop.optimizer, knobs={"noise": Knob(1.0, 0, 4, help="mine")}, runs=runs)
    live.turn(noise=2.0)
    asked: dict[int, Callable[[], object]] = {
        3: lambda: Run(live.path).turn("me", noise=0.5, off="2:2"),
        8: lambda: live.turn(lr=0.0),
        12: lambda: Run(live.path).command("pause"),
        15: lambda: [
            threading.Timer(n, Run(live.path).command, [name]).start() for n, name in ((0.5, "step"), (1, "stop"))
        ],
    }
    try:
        for step in range(1, 30):
            if step in asked and rank == 0:
                asked[step]()
            seen.append([live.knobs.noise, live.knobs.off, live.knobs.lr])
            loop.step(live)
    except StopTraining as stopped:
        return {"seen": seen, "stopped": str(stopped), "losses": loop.losses}
    return {"seen": seen}


def evaluations(rank: int, runs: Path) -> dict[str, Any]:
    loop = Loop(rank, alone)
    live = watch(loop.model, "a", runs=runs)
    for step in range(6):
        loop.step(live)
        if step == 3:
            loop.model.eval()(tokens(rank, 50))
            loop.model.train()
            live.eval(loss=1.5 + rank)
    live.close()
    return {}


def failure(rank: int, runs: Path) -> dict[str, Any]:
    """A hook of rank 1 breaks after its fourth step; both go on training, and neither waits."""
    loop = Loop(rank, alone)
    live = watch(loop.model, "a", runs=runs)
    for step in range(12):
        if step == 4 and rank == 1:
            live.taps._keep = lambda *_: 1 / 0
        loop.step(live)
    live.close()
    return {"steps": len(loop.losses), "problem": live.problem}


def uneven(rank: int, runs: Path) -> dict[str, Any]:
    """Rank 1 says each step twice."""
    loop = Loop(rank, alone)
    live = watch(loop.model, "a", runs=runs)
    for _ in range(6):
        loop.step(live)
        if rank == 1:
            live.step()
    live.close()
    return {"steps": len(loop.losses), "problem": live.problem}


EXACT: dict[str, Callable[[int, Path], dict[str, Any]]] = {
    "plain": lambda rank, runs: exactly(rank, runs, alone),
    "ddp": lambda rank, runs: exactly(rank, runs, DistributedDataParallel),
    "fsdp": lambda rank, runs: exactly(rank, runs, sharded),
    "fsdp checkpointed": lambda rank, runs: exactly(rank, runs, sharded, repeat=False),
}
OTHERS: dict[str, Callable[[int, Path], dict[str, Any]]] = {
    "turns": turns,
    "evaluations": evaluations,
    "failure": failure,
    "uneven": uneven,
}


def main(cases: str, folder: str, rank: int) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    seen = {}
    for name, case in {"exact": EXACT, "others": OTHERS}[cases].items():
        runs = Path(folder) / name
        runs.mkdir(exist_ok=True)
        seen[name] = case(rank, runs)
    distributed.destroy_process_group()
    print(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
