"""A small plan, and runs as a sweep's trainers would leave them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moe_core.runs import Batch, RunWriter, create_run
from moe_core.schema import METRICS, Config, layout
from moe_core.sweep import Job

CONFIG = Config.for_task("plane", num_experts=4, tokens=64, d_model=8, d_hidden=8, steps=60, threads=1)
TEXT = Config(num_experts=4, tokens=128, d_model=8, d_hidden=8, layers=1, steps=60, threads=1)
WEIGHTS = {"w_importance": [0.0, 0.1], "w_load": [0.0, 0.1]}


def record(job: Job, runs: Path, load: Sequence[float], metric: float, steps: int = 60) -> RunWriter:
    """A run as its trainer would leave it, but for the end: the same load at every step. metric: the task's headline."""
    writer = create_run(runs / job.run_id, job.config, job.knobs)
    columns = layout(job.config.layers, job.config.num_experts)
    rows = np.ones((steps, sum(c.width for c in columns)), np.float32)
    for column in columns:
        if column.stat == "load":
            rows[:, column.start : column.start + column.width] = load
    (headline, *_), (other, *_) = METRICS[job.config.task]
    writer.commit(Batch(1, rows, evals=[(steps, {headline: metric, other: 1.0}, None)], state="training"))
    return writer
