"""What seeing costs a training: `python -m moe_core bench seeing`.

The default step of a task, trained in turn with everything that is recorded (statistics, looks at the probe batch, commits by their
own thread) and with nothing of that: a block of steps each, in one process, one thread. Evaluations and checkpoints are left out
of both: any training has them. Printed are the CPU time that a step takes without, and what seeing adds to it, in per cent: by the
wall clock, which pays for the committing thread where cores are short, and by the training thread's CPU time.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from moe_core.benchmarks.layer import keep_memory
from moe_core.benchmarks.results import keep
from moe_core.runs import create_run
from moe_core.runs.seen import READ, look
from moe_core.schema import Config, Knobs
from moe_core.training.data import load
from moe_core.training.loop import Trainer
from moe_core.training.machine import facts_of

TASKS = ("text", "digits", "plane")


@contextmanager
def trainer_of(task: str, device: str, precision: str) -> Iterator[Trainer]:
    """A trainer of the task's default settings with a record in a folder of its own, without evaluations and checkpoints."""
    rarely = {"eval_every": 1_000_000_000, "checkpoint_every": 0}
    config, knobs = Config.for_task(task, device=device, precision=precision, **rarely), Knobs()
    data = load(config)
    with tempfile.TemporaryDirectory() as folder:
        writer = create_run(Path(folder, task), config, knobs, labels=data.labels, probe=data.probe()[1])
        trainer = Trainer(config, knobs, data, torch.device(device), writer, lambda event: None)
        yield trainer
        trainer.flush()
        trainer.committer.close()
        writer.finish("finished")


def seen(trainer: Trainer) -> Callable[[], None]:
    """One step as the loop trains it."""

    def step() -> None:
        began = time.perf_counter()
        trainer.read()
        trainer.turn()
        trainer.train_step(began)
        trainer.after_step()

    return step


def unseen(trainer: Trainer) -> Callable[[], None]:
    """One step of which nothing is kept."""
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        trainer.update(trainer.data.batch(count).to(trainer.device), trainer.knobs, False)

    return step


def finish(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    task: str, blocks: int, steps: int, watched: bool, device: str = "cpu", precision: str = "float32"
) -> dict[str, float]:
    """The medians over neighbouring blocks. watched: while somebody reads along and looks at the probe batch."""
    with trainer_of(task, device, precision) as one, trainer_of(task, device, precision) as other:
        ways = {"seen": seen(one), "unseen": unseen(other)}
        one.flush("training")
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for block in range(blocks + 1):
            for name in list(ways)[:: 1 if block % 2 else -1]:
                if watched:
                    look(one.folder)
                    look(one.folder, READ)
                finish(one.device)
                began = time.perf_counter(), time.thread_time()
                for _ in range(steps):
                    ways[name]()
                finish(one.device)
                taken[name].append((time.perf_counter() - began[0], time.thread_time() - began[1]))
    pairs = list(zip(taken["seen"][1:], taken["unseen"][1:], strict=True))  # the first is to warm up
    wall, own = ([100 * (a[which] / b[which] - 1) for a, b in pairs] for which in (0, 1))
    quartiles = statistics.quantiles(own, n=4)
    return {
        "ms": 1000 * statistics.median(b[1] for _, b in pairs) / steps,
        "wall %": statistics.median(wall),
        "CPU %": statistics.median(own),
        "CPU % quartile 1": quartiles[0],
        "CPU % quartile 3": quartiles[2],
    }


def main(arguments: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    keep_memory()
    about = facts_of(torch.device("cpu"), 1)
    blocks, steps = (4, 5) if arguments.quick else (40, 50)
    if not arguments.json:
        print(f"{'':16}{'unrecorded step, CPU ms':>25}{'wall, + %':>12}{'CPU, + %':>12}{'quartiles':>16}")
    rows = []
    for task in TASKS[:1] if arguments.quick else TASKS:
        for watched in (False, True):
            row = measure(task, blocks, steps, watched)
            rows.append({"task": task, "watched": watched, **row})
            if arguments.json:
                print(json.dumps(rows[-1] | {"machine": about}))
                continue
            name = task + (", watched" if watched else "")
            print(f"{name:16}{row['ms']:25.2f}{row['wall %']:12.1f}{row['CPU %']:12.1f}"
                  f"{row['CPU % quartile 1']:9.1f} to{row['CPU % quartile 3']:5.1f}")  # fmt: skip
    if arguments.out:
        keep(arguments.out, rows, blocks=blocks, steps_per_block=steps, threads=1)
    return 0
