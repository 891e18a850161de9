"""A made-up run of many layers, as a hook on somebody's model would record it, with counts drawn so that some layers are worse."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moe_core.runs import Batch, Run, open_run
from moe_core.runs.begin import make_file
from moe_core.runs.writer import RunWriter
from moe_core.schema import Config, Description, Knob, Knobs, Layer, Loss, columns_of, describe, to_json

STATS = (
    "loss",
    "task_loss",
    "grad_norm",
    "seconds",
    "importance",
    "load",
    "counts",
    "dead_experts",
    "dropped",
    "unrouted",
)
TOKENS = 4096


def name_of(layer: int) -> str:
    return f"model.layers.{layer}.mlp.experts"


def described(experts_L: Sequence[int], k: int = 8, names: Sequence[str] | None = None) -> Description:
    """A watched run of these layers, with the knobs `off` and `lr`."""
    started = describe(Config(), Knobs()).knobs
    layers = [Layer(names[i] if names else name_of(i), E, min(k, E)) for i, E in enumerate(experts_L)]
    return Description(
        "watched", "qwen3-moe", tuple(layers), {"lr": Knob(1e-5, 0.0, 1.0, "learning rate"), "off": started["off"]}, (),
        Loss(), "none", ("pause", "stop"), {"model": "a model of somebody"}, TOKENS,
    )  # fmt: skip


def counts_of(experts_L: Sequence[int], steps: int, k: int, seed: int) -> list[np.ndarray]:
    """(steps, E) selections of each layer: uneven in the first, two in three of the fourth's experts dead, the others fair."""
    rng, counts = np.random.default_rng(seed), []
    for layer, E in enumerate(experts_L):
        weight = rng.gamma(0.8 if layer == 0 else 12.0 / (1 + layer % 5), size=E) + 1e-3
        if layer == 3:
            weight[rng.permutation(E)[: 2 * E // 3]] = 0
        counts.append(rng.multinomial(TOKENS * min(k, E), weight / weight.sum(), size=steps))
    return counts


def rows_of(experts_L: Sequence[int], steps: int, k: int = 8, seed: int = 0) -> np.ndarray:
    """(steps, C) rows in the layout of columns_of(experts_L, STATS); load and importance are the counts."""
    columns = columns_of(experts_L, STATS)
    rows = np.full((steps, sum(c.width for c in columns)), 0.5, np.float32)
    counts = counts_of(experts_L, steps, k, seed)
    for column in columns:
        if column.stat in ("counts", "load", "importance"):
            rows[:, column.start : column.start + column.width] = counts[column.layer]
    return rows


def start_layers(folder: Path, experts_L: Sequence[int], k: int = 8, names: Sequence[str] | None = None) -> RunWriter:
    """A run that has recorded nothing yet."""
    about = {
        "description": to_json(described(experts_L, k, names)), "config": {}, "knobs": {}, "labels": {}, "facts": {}, "script": [],
        "layout": [list(column) for column in columns_of(experts_L, STATS)],
    }  # fmt: skip
    return RunWriter(folder, make_file(folder, about, {}))


def record_layers(
    folder: Path,
    experts_L: Sequence[int],
    steps: int = 60,
    k: int = 8,
    names: Sequence[str] | None = None,
    off: str = "",
) -> Run:
    """off: the experts that are switched off from step 31 on, as the knob of that name has it."""
    writer, rows = start_layers(folder, experts_L, k, names), rows_of(experts_L, steps, k)
    run = open_run(folder)
    for first in range(0, steps, 10):
        turned = [(run.turn("test", {"off": off}), 31)] if off and first == 30 else []
        writer.commit(Batch(first + 1, rows[first : first + 10], applied=turned, state="training"))
    writer.finish("finished")
    return open_run(folder)
