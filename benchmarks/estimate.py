"""How far off the estimates are that the start page shows: short runs of random sizes, each beside what was estimated.

`python benchmarks/estimate.py`: twelve runs of about five seconds on one thread. A step is compared by the fastest tenth of a
run's steps, which nothing else on the machine slows down; memory is the trainer's peak, disk its folder at the end.
Each line is estimated over measured; the last one says within which factor half of them are, and all. `--quick`: one small run, which
a test starts.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from moe_core.commands.common import count_flag
from moe_core.runs import flags, open_run
from moe_core.runs.estimate import estimate, model_seconds, shape_of
from moe_core.runs.room import size_of
from moe_core.schema import Config, Knobs

SECONDS = 5.0  # of each run, by the estimate


def random_settings(rng: random.Random) -> tuple[Config, Knobs]:
    experts = rng.choice([2, 4, 8, 16, 32, 48, 96, 200])
    config = Config.for_task(
        rng.choice(["text", "text", "digits", "plane"]), num_experts=experts, layers=rng.choice([1, 2, 3, 5, 8]),
        d_model=rng.choice([16, 32, 48, 64, 96, 160, 256]), d_hidden=rng.choice([8, 32, 64, 128, 256]),
        tokens=rng.choice([128, 256, 512, 1024, 2048]), device="cpu", threads=1,
    )  # fmt: skip
    return config, Knobs(k=min(experts, rng.choice([1, 2, 2, 3])))


def ratios(config: Config, knobs: Knobs, seconds: float) -> dict[str, float]:
    """Estimated over measured of one run: seconds of a step, memory, disk."""
    shape = shape_of(config)
    found = estimate(config, knobs, *shape)
    step = model_seconds(config, knobs, *shape)
    steps = max(20, round(seconds / step))
    with tempfile.TemporaryDirectory() as folder:
        words = ["train", *flags(config, knobs), "--runs", folder, "--run-id", "one", "--json", "--steps", str(steps)]
        trainer = subprocess.Popen([sys.executable, "-m", "moe_core", *words], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(trainer.pid, 0)
        trainer.returncode = os.waitstatus_to_exitcode(status)
        assert trainer.returncode == 0, words
        run = open_run(Path(folder) / "one")
        taken = float(np.quantile(run.history("seconds", first=6)[1], 0.1))
        run.close()
        peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return {"step": step / taken, "memory": found.memory / peak, "disk": found.disk(steps) / size_of(run.path)}


def main() -> None:
    asked = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    asked.add_argument("--runs", type=count_flag, default=12, help="how many")
    asked.add_argument("--seed", type=int, default=11, help="of their sizes")
    asked.add_argument("--quick", action="store_true", help="one small run, to see that it works")
    given = asked.parse_args()
    rng = random.Random(given.seed)
    quick = [(Config.for_task("plane", device="cpu", threads=1), Knobs())]
    settings = quick if given.quick else [random_settings(rng) for _ in range(given.runs)]
    found = []
    for config, knobs in settings:
        found.append(ratios(config, knobs, 0.0 if given.quick else SECONDS))
        names = ("task", "num_experts", "layers", "d_model", "d_hidden", "tokens")
        sizes = {name: getattr(config, name) for name in names} | {"k": knobs.k}
        print(json.dumps(sizes | {name: round(ratio, 2) for name, ratio in found[-1].items()}), flush=True)
    off = {name: sorted(max(one[name], 1 / one[name]) for one in found) for name in found[0]}
    print(json.dumps({name: {"half_within": round(of[len(of) // 2], 2), "all_within": round(of[-1], 2)} for name, of in off.items()}))  # fmt: skip


if __name__ == "__main__":
    main()
