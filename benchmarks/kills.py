"""What a rank that dies or hangs costs: `python benchmarks/kills.py --kills 20`.

One run of several ranks is begun under torchrun. Again and again a random rank is killed at a random moment (each fifth time it is
stopped instead, as if it hung), and `train --resume` goes on with the run. Counted are: how often the record said which rank it
was, and after how many seconds; processes that were left; acknowledged turns of a knob that were lost; how often the record was
whole. Prints a JSON object for each kill, and one for all.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from moe_core.benchmarks.results import keep  # noqa: E402
from moe_core.commands.common import count_flag, seconds_flag  # noqa: E402
from moe_core.runs import Run, Status, StoreError, verify  # noqa: E402

SETTINGS = "--task plane --layers 2 --num-experts 4 --tokens 64 --steps 0 --checkpoint-every 1 --eval-every 1000000"
HANGS_EACH = 5  # each fifth rank is stopped instead of killed
WITHIN = 10.0  # seconds in which the record must say which rank it was


def torchrun(runs: Path, ranks: int, patience: float, *words: str) -> subprocess.Popen[bytes]:
    command = f"-m torch.distributed.run --standalone --nproc-per-node {ranks} -m moe_core train --expert-parallel 2"
    return subprocess.Popen(
        [sys.executable, *command.split(), "--patience", str(patience), "--runs", str(runs), *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def ranks_of(pid: int) -> dict[int, int]:
    """The ranks that a torchrun has started: rank -> process."""
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            found |= {int(word[5:]): int(child) for word in words if word.startswith(b"RANK=")}
    return found


def until(true: Callable[[], Any], seconds: float) -> float:
    """The seconds until true() is; infinity if it is not within so many."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        with contextlib.suppress(StoreError, OSError):
            if true():
                return time.monotonic() - began
        time.sleep(0.02)
    return float("inf")


def status_of(folder: Path) -> Status:
    run = Run(folder)
    try:
        return run.status()
    finally:
        run.close()


def one(runs: Path, number: int, ranks: int, patience: float, draw: random.Random) -> dict[str, Any]:
    """Begin or go on, kill a rank, and see what the record says of it."""
    folder = runs / "killed"
    words = ["--resume", "killed"] if number else ["--run-id", "killed", *SETTINGS.split()]
    before = status_of(folder).step if number else 0
    started = torchrun(runs, ranks, patience, *words)
    try:
        trains = until(lambda: (now := status_of(folder)).state == "training" and now.step > before, 60)
        time.sleep(draw.uniform(0, 2))
        run = Run(folder)
        run.turn("person", {"w_load": round(draw.uniform(0, 1), 3)})
        until(lambda: run.knob_changes()[-1].step, 20)
        turns, step = run.knob_changes(), run.status().step
        rank, hangs = draw.randrange(ranks), number % HANGS_EACH == HANGS_EACH - 1
        processes = ranks_of(started.pid)
        os.kill(processes[rank], signal.SIGSTOP if hangs else signal.SIGKILL)
        took = until(lambda: run.status().state == "failed", 30 + patience)
        started.wait(60)
        after = run.status()
        kept = [(turn.id, turn.value, turn.step) for turn in turns]
        found = [(turn.id, turn.value, turn.step) for turn in run.knob_changes()[: len(turns)]]
        outcome = {
            "rank": rank, "hangs": hangs, "seconds_to_train": round(trains, 2), "seconds": round(took - patience * hangs, 2),
            "named": f"rank {rank} " in after.reason, "reason": after.reason,
            "orphans": sum(Path(f"/proc/{pid}").exists() for pid in processes.values()),
            "lost_steps": max(0, step - after.step), "lost_turns": kept != found, "whole": not verify(run),
        }  # fmt: skip
        run.close()
        return outcome
    finally:
        started.terminate()
        started.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=count_flag, default=20)
    parser.add_argument("--ranks", type=count_flag, default=4)
    parser.add_argument(
        "--patience", type=seconds_flag, default=60.0, help="seconds after which a rank counts as hanging"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="one kill of two ranks")
    parser.add_argument("--out", metavar="FILE", help="keep the table as JSON")
    given = parser.parse_args()
    if given.quick:
        given.kills, given.ranks = 1, 2
    draw, rows = random.Random(given.seed), []
    with tempfile.TemporaryDirectory() as runs:
        for number in range(given.kills):
            rows.append(one(Path(runs), number, given.ranks, given.patience, draw))
            print(json.dumps(rows[-1]), flush=True)
        last = status_of(Path(runs) / "killed").step
        words = ["-m", "moe_core", "train", "--resume", "killed", "--steps", str(last + 1), "--runs", runs]
        ended = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True)
    said = {
        "kills": len(rows), "ranks": given.ranks, "patience": given.patience, "named": sum(row["named"] for row in rows),
        "slowest": max(row["seconds"] for row in rows), "orphans": sum(row["orphans"] for row in rows),
        "lost_turns": sum(row["lost_turns"] for row in rows), "lost_steps": sum(row["lost_steps"] for row in rows),
        "whole": sum(row["whole"] for row in rows), "one_process_ended_it": ended.returncode == 0,
    }  # fmt: skip
    print(json.dumps(said))
    if given.out:
        keep(Path(given.out), rows, **said)
    good = said["named"] == said["whole"] == len(rows) and not (
        said["orphans"] or said["lost_turns"] or said["lost_steps"]
    )
    return 0 if good and said["slowest"] < WITHIN and said["one_process_ended_it"] else 1


if __name__ == "__main__":
    sys.exit(main())
