"""What test_hosts.py starts: `python -m tests.parallel.again FOLDER RUN FIRST LAST` trains a recorded run again on four ranks of this
host, which share its experts. FOLDER/found.json then has the first difference from the record; and how many rows went to another
rank in the steps after FIRST up to LAST, and how many to another host if each has two ranks."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing

from moe_core.parallel.ranks import Ranks
from moe_core.parallel.trainer import Member
from moe_core.runs import Run
from moe_core.training.again import Nowhere, catch_up
from moe_core.training.data import load

RANKS = 4


def work(rank: int, folder: Path, path: Path, first: int, last: int) -> None:
    torch.set_num_threads(1)
    store = distributed.FileStore(str(folder / "store"), RANKS)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    ranks, run, device = Ranks(RANKS, torch.device("cpu")), Run(path), torch.device("cpu")
    writer: Any = Nowhere(path)
    trainer = Member(ranks, run.config, run.started_knobs, load(run.config), device, writer, lambda event: None, columns=run.layout)  # fmt: skip
    rows_RR, add = torch.zeros(RANKS, RANKS, dtype=torch.int64), trainer.window.add

    def count(routings: Any, labels: Any) -> None:
        add(routings, labels)
        if first < trainer.step <= last:
            for routing in routings:
                rows_RR.add_(trainer.window.dealt.rows_between(routing.experts_TK, run.config.num_experts))

    trainer.window.add = count
    difference = catch_up(trainer, run, run.steps()[1])
    trainer.committer.close()
    left_a_host = rows_RR[:2, 2:].sum() + rows_RR[2:, :2].sum()
    found = {
        "difference": difference and str(difference),
        "left_a_rank": int(rows_RR.sum() - rows_RR.diagonal().sum()),
        "left_a_host": int(left_a_host),
    }
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(found))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    given = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    multiprocessing.start_processes(work, given, nprocs=RANKS, start_method="fork")
