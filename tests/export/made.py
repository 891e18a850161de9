"""Runs made of seeded random numbers, whole as a trainer would leave them: for what reads a record, not for what trains."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from moe_core.runs import Batch, Run, create_run, open_run
from moe_core.schema import METRICS, Config, Knobs, layout

SHOTS = 12  # snapshots of the probe, spread over the steps


def make_run(
    folder: Path, task: str = "text", steps: int = 200, experts: int = 8, turned: bool = True, name: str | None = None
) -> Run:
    """A finished run with telemetry, evaluations, snapshots and one knob change at half its steps."""
    rng = np.random.default_rng(7)
    config = Config.for_task(task)
    config = replace(config, num_experts=experts, layers=1)
    tokens = 64
    labels, probe, extra = parts(task, tokens, experts, rng)
    writer = create_run(
        folder / (name or task), config, Knobs(k=2), labels=labels, probe=probe, facts={"device": "cpu"}
    )
    half = steps // 2
    commit(writer, config, rng, 1, half, tokens, experts, extra)
    if turned:
        run = open_run(writer.folder)
        run.turn(who="script", noise=0.5)
        run.close()
        (change,) = writer.pending().knobs
        commit(writer, config, rng, half + 1, steps - half, tokens, experts, extra, ((change.id, half + 1),))
    else:
        commit(writer, config, rng, half + 1, steps - half, tokens, experts, extra)
    writer.finish("finished")
    return open_run(folder / (name or task))


def parts(task: str, tokens: int, E: int, rng: Any) -> tuple[dict[str, list[str]], dict[str, Any], dict[str, Any]]:
    """Names of labels, the probe as a person sees it, and what a snapshot of the task has beside experts and gates."""
    kinds = rng.integers(0, 2, tokens).astype(np.uint8)
    if task == "text":
        text = np.frombuffer(b"<b>&def f(x):\n\treturn =x" * 3, np.uint8)[:tokens]
        return {"domain": ["prose", "code"]}, {"tokens": text, "domain": kinds, "sequence": kinds}, {}
    if task == "digits":
        names = [str(i) for i in range(10)]
        return {"class": names}, {"images": rng.integers(0, 17, (tokens, 64)).astype(np.uint8), "class": kinds}, {}
    points = rng.uniform(-1, 1, (tokens, 2)).astype(np.float32)
    probe = {"points": points, "extent": np.array([-1, 1, -1, 1], np.float32), "class": kinds}
    return {"class": ["0", "1"]}, probe, {"regions": rng.integers(0, E, (1, 16, 16)).astype(np.uint8)}


def commit(
    writer: Any,
    config: Config,
    rng: Any,
    first: int,
    count: int,
    tokens: int,
    E: int,
    extra: dict[str, Any],
    applied: Any = (),
) -> None:
    rows = rng.uniform(0.5, 2.0, (count, sum(c.width for c in layout(config.layers, E)))).astype(np.float32)
    shots = []
    for step in sorted({first + i * count // SHOTS for i in range(SHOTS)}):
        experts = np.argsort(rng.random((config.layers, tokens, E)), axis=2)[:, :, :2].astype(np.uint8)
        gates = np.sort(rng.dirichlet(np.ones(2), (config.layers, tokens)), axis=2)[:, :, ::-1].astype(np.float16)
        shots.append((step, "probe", {"experts": experts, "gates": gates, **extra}))
        shots.append((step, "choices", {"experts": experts}))
    full = {
        "clean_gates": rng.dirichlet(np.ones(E), (config.layers, tokens)).astype(np.float16),
        "w_gate": rng.normal(size=(config.layers, 16, E)).astype(np.float16),
        "coactivation": rng.random((config.layers, E, E)).astype(np.float32),
        "specialisation_domain": rng.random((config.layers, 2, E)).astype(np.float32),
        "specialisation_class": rng.random((config.layers, 2, E)).astype(np.float32),
        "specialisation_byte": rng.random((config.layers, 256, E)).astype(np.float32),
    }
    shots.append((first, "full", full))
    metrics = {name: 1.5 for name, *_ in METRICS[config.task]}
    writer.commit(Batch(first, rows, [(first + count - 1, metrics, "<script>sample</script>")], shots, applied))
