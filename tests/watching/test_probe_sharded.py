"""The probe under FSDP2, on two ranks."""

import json
import subprocess
import sys
from pathlib import Path

SHARDED = """
import os, sys, warnings
import torch, torch.distributed as dist
from pathlib import Path
from torch import nn
from torch.distributed.fsdp import fully_shard
from moe_core.runs import open_run
from moe_core.watching import watch
from tests.parallel.test_live import until
from tests.watching.test_probe import ROWS, V, Talker, sgd

warnings.simplefilter("ignore")
rank, folder = int(sys.argv[1]), Path(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)

def threads():  # that carry out the exchanges of gloo; 0 on a system that does not say
    return sum("gloo_runloop" in task.read_text() for task in Path("/proc/self/task").glob("*/comm"))

losses = {}
for probed in (False, True):
    model = Talker()
    for module in (*model.blocks, model):
        fully_shard(module)
    optimizer = sgd(model)
    live = watch(model, f"{probed}", optimizer=optimizer, runs=folder, **({"probe": ROWS, "probe_every": 2} if probed else {}))
    torch.manual_seed(rank)
    losses[probed] = []
    for step in range(6):
        ids = torch.randint(0, V, (4, 12), generator=torch.Generator().manual_seed(10 * step + rank))
        loss = nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
        loss.backward()
        if step % 2:  # before the optimizer's step, which is not how it is meant
            live.step()
        optimizer.step()
        optimizer.zero_grad()
        if not step % 2:
            live.step()
        losses[probed].append(loss.item())
    live.close()
    until(lambda: threads() <= 2, 10)  # of the default group only; or torch may abort a process that ends before them
assert losses[True] == losses[False], losses
if rank == 0:  # which alone writes the record
    run = open_run(folder / "True")
    assert run.snapshots("choices").tolist() == [2, 4, 6]
    assert run.snapshot(kind="choices")[1]["experts"].tolist() == [one.experts_NK.tolist() for one in live.probe.last.values()]
print([one.experts_NK.tolist() for one in live.probe.last.values()])
dist.destroy_process_group()
"""


def test_each_rank_of_fsdp2_is_shown_the_probe_in_step_and_trains_the_same_bits(tmp_path: Path) -> None:
    words = [sys.executable, "-c", SHARDED]
    ranks = [subprocess.Popen([*words, str(rank), str(tmp_path)], stdout=subprocess.PIPE, text=True) for rank in (0, 1)]
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert said[0] == said[1]
    assert len(json.loads(said[0])) == 2
