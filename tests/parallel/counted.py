"""What test_counted.py starts: `python -m tests.parallel.counted FOLDER` counts rows on 4 ranks as `bench ranks` does, and beside it what a
single process finds for the same batches. The ranks are forks of one process: importing torch takes longer than all else.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, multiprocessing

from moe_core.benchmarks.one_rank import CPU, Subject, count
from moe_core.nn.models import build, routing_options
from moe_core.parallel.ranks import Ranks
from moe_core.schema import Config, Knobs
from moe_core.training.data import load

SMALL = {"layers": 1, "num_experts": 8, "tokens": 96, "d_model": 16, "d_hidden": 16, "threads": 1}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "paper": ({"layers": 2}, {}),
    "one expert a token": ({}, {"k": 1}),
    "as many as there are": ({"num_experts": 4}, {"k": 4}),
    "no noise": ({}, {"noise": 0.0}),
    "capacity": ({}, {"capacity_factor": 0.5}),
    "expert-choice": ({}, {"strategy": "expert-choice"}),
    "one is off": ({}, {"off": "2"}),
    "groups": ({"groups": 4}, {"k": 1, "k_primary": 2}),
    "text": ({"task": "text", "context": 16}, {"strategy": "switch"}),
}  # fmt: skip
BATCHES, RANKS = 3, 4


def subject_of(case: tuple[dict[str, Any], dict[str, Any]]) -> Subject:
    config = Config(**{"task": "plane", **SMALL, **case[0]})
    return Subject(config, Knobs(**case[1]), load(config), 0, None)


def alone(subject: Subject) -> Tensor:
    """(M, n, L, E) the rows of each expert from each rank's batch, by one process that routes the batches of all ranks as one."""
    config, knobs, data = subject.config, subject.knobs, subject.data
    torch.manual_seed(config.seed)
    model = build(config, data.features, data.classes, knobs.k, knobs.noise, knobs.strategy).train()
    found = torch.zeros(RANKS, BATCHES, config.layers, config.num_experts, dtype=torch.int64)
    for at in range(BATCHES):
        torch.manual_seed(at)
        inputs = torch.cat([data.batch(1 + at * RANKS + rank).inputs for rank in range(RANKS)])
        with torch.no_grad():
            _, routings = model(inputs, **routing_options(config, knobs))
        for layer, routing in enumerate(routings):
            for rank, experts_tK in enumerate(routing.experts_TK.chunk(RANKS)):
                for expert in range(config.num_experts):
                    found[rank, at, layer, expert] = (experts_tK == expert).sum()
    return found


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = distributed.FileStore(str(folder / "store"), RANKS)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    ranks, came_out = Ranks(RANKS, CPU), {}
    for name, case in CASES.items():
        subject = subject_of(case)
        own, all_, products = count(subject, ranks, BATCHES)
        came_out[name] = {
            "own": own,
            "all": all_,
            "rows": [len(one.x_nD) for one in products],
            "alone": alone(subject) if rank == 0 else None,
        }
    torch.save(came_out, folder / f"{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    multiprocessing.start_processes(work, (Path(sys.argv[1]),), nprocs=RANKS, start_method="fork")
