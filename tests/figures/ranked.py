"""A made-up run of several ranks, recorded as they would record it: every choice of every token is known."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from moe_core.runs import Batch, Run, create_run, hold_lock, open_run, resume_run
from moe_core.schema import Config, Knobs, layout, stats_of_ranks
from tests.figures.record import CLASSES, probe_of

E, L, T, K = 8, 2, 32, 2  # experts, layers, tokens of a step, experts of a token
EVERY = 20  # steps from one full snapshot to the next


@cache
def choices(step: int, layer: int, num_experts: int = E) -> np.ndarray:
    """(T, K) the experts of each token, uneven ones."""
    score = np.random.default_rng([step, layer]).gumbel(size=(T, num_experts))
    return np.argsort(-(score + 1.5 * np.log(np.arange(num_experts) + 1.0 + layer)), axis=1)[:, :K]


def rows_between(step: int, layer: int, data: int, expert: int, drop: bool = False, num_experts: int = E) -> np.ndarray:
    """(R, R) by hand: over the last 100 steps, each token's rows go from its rank to the ranks of its experts in the same group.
    drop: the first choice of the first token of each step was dropped."""
    ranks, each = data * expert, num_experts // expert
    rows = np.zeros((ranks, ranks), np.int64)
    for at in range(max(1, step - 99), step + 1):
        for token, experts in enumerate(choices(at, layer, num_experts).tolist()):
            sender = token // (T // ranks)
            for chosen in experts[1:] if drop and token == 0 else experts:
                rows[sender, sender // expert * expert + chosen // each] += 1
    return rows


def rows_of(first: int, last: int, ranks: int, layers: int, num_experts: int, gpu: bool, named: Sequence[str]) -> Any:
    """(n, C) in the layout of a run that measures these; of one process and on a GPU some have no value."""
    columns = layout(layers, num_experts, named)
    rng = np.random.default_rng(first)
    rows = rng.uniform(0.1, 0.9, (last - first + 1, columns[-1].start + columns[-1].width)).astype(np.float32)
    for column in columns:
        part = rows[:, column.start : column.start + column.width]
        if column.stat in ("counts", "load"):
            of_steps = (choices(step, column.layer, num_experts) for step in range(first, last + 1))
            part[:] = [np.bincount(chosen.ravel(), minlength=num_experts) for chosen in of_steps]
        elif column.stat == "sent_bytes":
            part[:] = np.nan if ranks == 1 else 1000.0 * np.arange(first, last + 1)[:, None]
        elif column.stat == "communication" and (ranks == 1 or gpu):
            part[:] = np.nan
    return rows


def snapshots(first: int, last: int, data: int, expert: int, layers: int, num_experts: int, drop: bool) -> list[Any]:
    taken = []
    for step in sorted({*range(-(-first // EVERY) * EVERY, last + 1, EVERY), last}):
        full: dict[str, Any] = {"w_gate": np.ones((layers, 6, num_experts), np.float16)}
        if data * expert > 1:
            full["rows_between_ranks"] = np.stack(
                [rows_between(step, layer, data, expert, drop, num_experts) for layer in range(layers)]
            )
        taken.append((step, "full", full))
    return taken


def record_ranks(
    folder: Path,
    *sessions: tuple[int, int, int],
    layers: int = L,
    num_experts: int = E,
    gpu: bool = False,
    drop: bool = False,
    knobs: Knobs = Knobs(),  # noqa: B008 - frozen
) -> Run:
    """A run of these sessions, one after the other: the step that each reaches, and its data x expert ranks."""
    begun = 1
    for last, data, expert in sessions:
        ranks = {"data": data, "expert": expert} if data * expert > 1 else None
        if begun == 1:
            named = stats_of_ranks(data * expert)
            config = Config.for_task("plane", num_experts=num_experts, layers=layers, tokens=T)
            facts: dict[str, Any] = {"device": "cuda" if gpu else "cpu", **({"ranks": ranks} if ranks else {})}
            shown = {"labels": {"class": CLASSES["plane"][1]}, "probe": probe_of("plane", np.random.default_rng(0))}
            writer = create_run(folder, config, knobs, **shown, facts=facts, ranks=data * expert)
        else:
            writer = resume_run(folder, hold_lock(folder), "test", last, ranks=ranks)
        rows = rows_of(begun, last, data * expert, layers, num_experts, gpu, named)
        taken = snapshots(begun, last, data, expert, layers, num_experts, drop)
        writer.commit(Batch(begun, rows, snapshots=taken))
        writer.finish("finished")
        begun = last + 1
    return open_run(folder)
