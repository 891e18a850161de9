"""Small made-up runs, recorded as a trainer records them: every statistic, the probe's snapshots and the windows."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from moe_core.runs import Batch, Run, create_run, open_run
from moe_core.runs.begin import create_record
from moe_core.schema import Config, Description, Knobs, Layer, Loss, columns_of, layout

N, D = 64, 6  # probe tokens, model width
CLASSES = {
    "text": ("domain", ["prose", "code <b>"]),
    "digits": ("class", list("0123456789")),
    "plane": ("class", ["a", "b"]),
    "table": ("class", ["setosa", "=virginica <b>"]),
}
FEATURES = [
    "sepal length",
    "=petal <i>",
    *(f"feature {i}" for i in range(40)),
]  # of the digits task on a person's table


def probe_of(task: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    label, names = CLASSES[task]
    labels = np.sort(rng.integers(0, len(names), N)).astype(np.uint8)
    shown: dict[str, dict[str, np.ndarray]] = {
        "text": {
            "tokens": rng.integers(32, 127, N).astype(np.uint8),
            "sequence": (np.arange(N) // 32).astype(np.uint8),
        },
        "digits": {"images": rng.integers(0, 17, (N, 64)).astype(np.uint8)},
        "plane": {"points": rng.normal(size=(N, 2)).astype(np.float32), "extent": np.array([-2, 2, -2, 2], np.float32)},
        "table": {
            "features": np.where(rng.random((N, 42)) < 0.02, np.nan, rng.normal(size=(N, 42))).astype(np.float32)
        },
    }
    return shown[task] | {label: labels}


def snapshots_of(task: str, L: int, E: int, k: int, rng: np.random.Generator) -> dict[str, dict[str, Any]]:
    """A probe and a full snapshot; experts of a token differ, the first gate is the largest."""
    small = np.uint8 if E <= 255 else np.uint16
    experts = np.argsort(rng.random((L, N, E)), axis=2)[:, :, :k].astype(small)
    gates = -np.sort(-rng.dirichlet(np.ones(k), (L, N)), axis=2).astype(np.float16)
    probe = {"experts": experts, "gates": gates}
    if task == "plane":
        probe["regions"] = rng.integers(0, E, (L, 8, 8)).astype(small)
    label, names = CLASSES[task]
    both = rng.random((L, E, E)).astype(np.float32)
    both[:, np.arange(E), np.arange(E)] = 1
    full = {
        "clean_gates": rng.dirichlet(np.ones(E), (L, N)).astype(np.float16),
        "w_gate": rng.normal(size=(L, D, E)).astype(np.float16),
        "coactivation": both,
        f"specialisation_{label}": rng.dirichlet(np.ones(E), (L, len(names))).astype(np.float32),
    }
    if task == "text":
        full["specialisation_byte"] = rng.dirichlet(np.ones(E), (L, 256)).astype(np.float32)
    return {"probe": probe, "choices": {"experts": experts}, "full": full}


def record(
    folder: Path,
    task: str = "text",
    E: int = 4,
    L: int = 2,
    steps: int = 60,
    k: int = 2,
    seed: int = 0,
    state: str = "finished",
    selections: Any = None,
    knobs: Knobs = Knobs(),  # noqa: B008 - frozen
    **config: Any,
) -> Run:
    """A run of `steps` steps with snapshots and churn at every 20th; 0 leaves it as a trainer does before its first step."""
    rng = np.random.default_rng(seed)
    k = min(k, E)
    label, names = CLASSES[task]
    labels = {label: names} | ({"byte": [str(i) for i in range(256)]} if task == "text" else {})
    labels |= {"feature": FEATURES} if task == "table" else {}
    task_of = "digits" if task == "table" else task
    given = Config.for_task(task_of, num_experts=E, layers=L, **{"churn_every": 20} | config)
    writer = create_run(
        folder,
        given,
        replace(knobs, k=k),
        labels=labels,
        probe=probe_of(task, rng),
        facts={"device": "cpu", "threads": 1},
    )
    columns = layout(L, E)
    # Each from numbers of its own, so that a statistic that is added changes no other.
    own = [np.random.default_rng([seed, c.layer + 1, crc32(c.stat.encode())]) for c in columns]
    parts = [draw.uniform(0.1, 2, (steps, c.width)) for draw, c in zip(own, columns, strict=True)]
    rows = np.concatenate(parts, axis=1).astype(np.float32)
    taken = [
        (step, kind, arrays)
        for step in range(20, steps + 1, 20)
        for kind, arrays in snapshots_of(task, L, E, k, rng).items()
    ]
    metrics: dict[str, Any] = (
        {"bits_per_byte": 2.5, "perplexity": 5.6} if task == "text" else {"accuracy": 0.9, "loss": 0.3}
    )
    metrics |= {} if selections is None else {"selections": selections}
    evals = [(step, metrics, None) for step in range(20, steps + 1, 20)]
    writer.commit(Batch(1, rows, evals=evals, snapshots=taken, state="training"))
    if state != "training":
        writer.finish(state)
    else:
        _open.append(writer)  # or its lock would go with it
    return open_run(folder)


_open: list[Any] = []


def probe_of_tokens(N: int, E: int = 8, K: int = 2, seed: int = 0) -> dict[str, Any]:
    """How a layer routes N tokens, as the figures take it."""
    rng = np.random.default_rng(seed)
    experts = np.argsort(rng.random((N, E)), axis=1)[:, :K].astype(np.uint8)
    return {"experts_NK": experts, "gates_NK": np.full((N, K), 1 / K, np.float16), "num_experts": E}


def record_tokens(folder: Path, names: list[str] | None, ids: np.ndarray, E: int = 8, steps: int = 20) -> Run:
    """A watched run of two layers whose probe is tokens of a vocabulary, with snapshots at every tenth step."""
    layers = (Layer("a", E, 2), Layer("b", E, 2))
    measures = ("loss", "seconds", "counts", "churn", "saturation")
    about = Description("watched", "own", layers, {}, (), Loss(), "tokens", (), {}, churn_every=10, measures=measures)
    arrays: dict[str, np.ndarray] = {
        "tokens": ids.astype(np.int32),
        "sequence": (np.arange(len(ids)) // 128).astype(np.uint16),
    }
    writer = create_record(folder, about, labels=None if names is None else {"token": names}, probe=arrays)
    taken: list[Any] = []
    for step in range(10, steps + 1, 10):
        both = [probe_of_tokens(len(ids), E, seed=step + layer) for layer in range(2)]
        one = {name: np.stack([layer[f"{name}_NK"] for layer in both]) for name in ("experts", "gates")}
        taken += [(step, "probe", one), (step, "choices", {"experts": one["experts"]})]
    rows = np.ones((steps, sum(column.width for column in columns_of(about.experts, measures))), np.float32)
    writer.commit(Batch(1, rows, snapshots=taken, state="training"))
    writer.finish("finished")
    return open_run(folder)
