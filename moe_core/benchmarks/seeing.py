"""What seeing costs a training: `python -m moe_core bench seeing`.

The default step of a task is trained with all that is recorded (statistics, looks at the probe batch, commits by their own thread)
and without, a block of steps each in turn, in one process, on one thread. Evaluations and checkpoints are left out of both: any
training has them. Printed are the CPU time of a step without, and what recording adds to it in per cent: by the wall clock, in
which the committing thread counts too where cores are short, and by the training thread's CPU time.
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

# By task: how many blocks, and of how many steps. A block takes about a third of a second, so that other programs on the machine slow
# neighbouring blocks alike.
BLOCKS = {"text": (80, 10), "digits": (40, 60), "plane": (40, 60)}


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
    """What seeing adds over all blocks, and the quartiles over pairs of neighbouring ones. watched: as while somebody reads along and
    looks at the probe batch."""
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
    # Of sums, since a block is too short to have its share of commits and looks.
    wall, own = (100 * (sum(a[which] for a, _ in pairs) / sum(b[which] for _, b in pairs) - 1) for which in (0, 1))
    quartiles = statistics.quantiles((100 * (a[1] / b[1] - 1) for a, b in pairs), n=4)
    return {
        "ms": 1000 * statistics.median(b[1] for _, b in pairs) / steps,
        "wall %": wall,
        "CPU %": own,
        "CPU % quartile 1": quartiles[0],
        "CPU % quartile 3": quartiles[2],
    }


def main(arguments: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    keep_memory()
    about = facts_of(torch.device("cpu"), 1)
    if not arguments.json:
        print(f"{'':16}{'unrecorded step, CPU ms':>25}{'wall, + %':>12}{'CPU, + %':>12}{'quartiles':>16}")
    rows = []
    for task in list(BLOCKS)[:1] if arguments.quick else BLOCKS:
        blocks, steps = (4, 5) if arguments.quick else BLOCKS[task]
        for watched in (False, True):
            row = measure(task, blocks, steps, watched)
            rows.append({"task": task, "watched": watched, "blocks": blocks, "steps_per_block": steps, **row})
            if arguments.json:
                print(json.dumps(rows[-1] | {"machine": about}))
                continue
            name = task + (", watched" if watched else "")
            print(f"{name:16}{row['ms']:25.2f}{row['wall %']:12.1f}{row['CPU %']:12.1f}"
                  f"{row['CPU % quartile 1']:9.1f} to{row['CPU % quartile 3']:5.1f}")  # fmt: skip
    if arguments.out:
        keep(arguments.out, rows, threads=1)
    return 0
