"""How far off `simulate` is: trainings by 1, 2 and 4 ranks of this machine, and what it predicts for 2 and 4 from the one by 1.

`python benchmarks/simulated.py --out benchmarks/results/simulated.json`: each round trains the text task by 1 rank, by 2 and 4 with
the same batch (strong), by 2 and 4 with a batch as large for each rank (weak), and measures the network that they have, gloo over the
loopback: the time that an exchange of one number, and of 1 MB by each rank, adds to a product of matrices. The ranks share the machine's cores, and the prediction is
told so. A time is that of the fastest tenth of all rounds' steps or exchanges, which nothing else on the machine slows down; medians
are kept beside it. Nothing is fitted to what 2 and 4 ranks took. `--quick`: one round of few
small steps by 2 ranks, strong, which a test starts.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed, multiprocessing

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from moe_core.benchmarks.results import keep  # noqa: E402
from moe_core.commands.common import count_flag  # noqa: E402
from moe_core.runs import cores, open_run  # noqa: E402
from moe_core.runs.estimate import WARM  # noqa: E402
from moe_core.scaling.loads import max_over_mean, of_devices  # noqa: E402
from moe_core.scaling.measured import measured_run  # noqa: E402
from moe_core.scaling.predict import Network, Plan, predict  # noqa: E402

SETTINGS = "--task text --threads 1 --eval-every 1000000 --checkpoint-every 0 --w-importance 0.1 --w-load 0.1"
QUICK = "--context 16 --d-model 16 --layers 1 --num-experts 4"
LARGE = 1 << 18  # float32 numbers that a rank exchanges: 1 MB
WORK = 256  # rows of a product of matrices that takes about a millisecond
REPEATS = 80


def train(runs: Path, name: str, ranks: int, tokens: int, steps: int, more: str) -> dict[str, Any]:
    """Train, and read what was measured of its steps, without the first ones."""
    words = (
        f"-m moe_core train {SETTINGS} {more} --tokens {tokens} --steps {steps} --run-id {name} --runs {runs}".split()
    )
    torchrun = f"-m torch.distributed.run --standalone --nproc-per-node {ranks}"
    words = [*torchrun.split(), *words, "--expert-parallel", str(ranks)]
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    run = open_run(runs / name)
    found = {"ms": 1e3 * run.history("seconds", first=WARM + 1)[1]}
    counts_LSE = [run.history("counts", layer, first=WARM + 1)[1] for layer in range(run.config.layers)]
    rows_SLM = of_devices(np.stack(counts_LSE, 1).astype(np.float64), ranks)
    found["balance"] = np.array([max_over_mean(rows_LM) for rows_LM in rows_SLM])
    if ranks > 1:
        found |= {stat: run.history(stat, first=WARM + 1)[1] for stat in ("sent_bytes", "communication")}
    run.close()
    return found


def fastest(times: Any) -> float:
    """Up to which the fastest tenth took."""
    return float(np.quantile(times, 0.1))


# The network


def exchange(rank: int, ranks: int, folder: str) -> None:
    """One rank of those that measure a small and a large exchange; rank 0 writes their seconds."""
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{folder}/store", ranks)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=ranks)

    def seconds(numbers: int) -> float:
        """Of an exchange after some work, as in a step: ranks that have waited for nothing else answer sooner."""
        sent, received = torch.ones(numbers * ranks), torch.empty(numbers * ranks)
        alone, both = [], []
        for _ in range(REPEATS):
            distributed.barrier()
            alone.append(timed(work))
            distributed.barrier()
            both.append(timed(lambda: (work(), distributed.all_to_all_single(received, sent))))
        return fastest(both[5:]) - fastest(alone[5:])

    x_NN = torch.ones(WORK, WORK)

    def work() -> None:
        torch.mm(x_NN, x_NN)

    took = [seconds(1), seconds(LARGE // ranks)]
    if rank == 0:
        Path(folder, "took.json").write_text(json.dumps(took))
    distributed.barrier()
    distributed.destroy_process_group()


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def network(ranks: int) -> tuple[float, float]:
    """(bytes a second of each rank, seconds of a message) of gloo over the loopback."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.start_processes(exchange, (ranks, folder), nprocs=ranks, start_method="fork")
        small, large = json.loads(Path(folder, "took.json").read_text())
    sent = 4 * (LARGE // ranks) * (ranks - 1)
    return sent / max(large - small, 1e-9), small / (ranks - 1)


# Beside each other


def rounds(runs: Path, given: argparse.Namespace) -> tuple[dict[Any, list[Any]], dict[int, list[Any]], list[Any]]:
    """What each training and each network gave, and the runs by one rank, a round after the other."""
    more, tokens = (QUICK, 64) if given.quick else ("", given.tokens)
    trained: dict[Any, list[Any]] = {}
    networks: dict[int, list[Any]] = {}
    alone = []
    for number in range(given.rounds):
        name = f"alone-{number}"
        trained.setdefault((1, True), []).append(train(runs, name, 1, tokens, given.steps, more))
        alone.append(measured_run(open_run(runs / name)))
        for ranks in given.ranks:
            networks.setdefault(ranks, []).append(network(ranks))
            for strong in (True,) if given.quick else (True, False):
                name = f"{ranks}-{strong}-{number}"
                batch = tokens if strong else ranks * tokens
                trained.setdefault((ranks, strong), []).append(train(runs, name, ranks, batch, given.steps, more))
    return trained, networks, alone


def compared(trained: dict[Any, list[Any]], networks: dict[int, list[Any]], alone: list[Any]) -> list[dict[str, Any]]:
    """A row for each number of ranks and way of scaling."""
    pooled = {key: {name: np.concatenate([f[name] for f in found]) for name in found[0]} for key, found in trained.items()}  # fmt: skip
    one = alone[0]._replace(seconds=fastest(pooled.pop((1, True))["ms"]) / 1e3)
    rows = []
    for (ranks, strong), steps in pooled.items():
        measured = {name: float(values.mean()) for name, values in steps.items()}
        measured |= {"ms": fastest(steps["ms"]), "median_ms": float(np.median(steps["ms"]))}
        bandwidth, latency = max(of[0] for of in networks[ranks]), min(of[1] for of in networks[ranks])
        told = predict(one, Plan(ranks, ranks, strong=strong, cores=cores()), Network(bandwidth, latency))
        predicted = {
            "ms": 1e3 * told.seconds, "balance": told.max_over_mean_devices, "sent_bytes": told.sent_bytes,
            "communication": told.communication,
        }  # fmt: skip
        off = {name: round(100 * (predicted[name] / measured[name] - 1), 2) for name in ("ms", "balance", "sent_bytes")}
        rows.append(
            {
                "ranks": ranks, "scaling": "strong" if strong else "weak", "alone_ms": round(1e3 * one.seconds, 2), "as_rank": one.as_rank,
                "GB_per_second": round(bandwidth / 1e9, 3), "latency_us": round(1e6 * latency, 1),
                "measured": shortened(measured), "predicted": shortened(predicted), "off_percent": off,
                "median_ms_of_rounds": [round(float(np.median(f["ms"])), 2) for f in trained[ranks, strong]],
            }
        )  # fmt: skip
    return rows


def shortened(values: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.5g}") for name, value in values.items()}


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--rounds", type=count_flag, default=2)
    asked.add_argument("--steps", type=count_flag, default=50, help="of each training")
    asked.add_argument("--tokens", type=count_flag, default=1024, help="of the batch of one rank")
    asked.add_argument("--quick", action="store_true", help="one round of few small steps, to see that it works")
    asked.add_argument("--out", metavar="FILE", help="keep the table as JSON")
    given = asked.parse_args()
    given.ranks = (2, 4)
    if given.quick:
        given.rounds, given.steps, given.ranks = 1, 30, (2,)
    began, before = time.monotonic(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as runs:
        trained, networks, alone = rounds(Path(runs), given)
    rows = compared(trained, networks, alone)
    for row in rows:
        print(json.dumps(row), flush=True)
    if given.out:
        ms = [round(float(np.median(f["ms"])), 2) for f in trained[1, True]]
        took = round(time.monotonic() - began)
        keep(
            Path(given.out),
            rows,
            rounds=given.rounds,
            seconds=took,
            load_before=round(before, 2),
            alone_median_ms_of_rounds=ms,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
