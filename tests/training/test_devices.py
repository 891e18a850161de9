"""A training step and what is measured of it, on each device, beside the same step on the CPU.

The CPU's cases run everywhere; those marked `cuda` are what benchmarks/gpu.py runs on a machine with a GPU.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from moe_core.nn.models import build, routing_options
from moe_core.schema import STRATEGIES, Config, Knobs, layout
from moe_core.training.data import load
from moe_core.training.evaluation import held_out_loss
from moe_core.training.step import update
from moe_core.training.telemetry import Probe, Telemetry
from moe_core.training.window import Window

CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA GPU")],
)
DEVICES = ["cpu", CUDA]
TASKS = {
    "text": Config.for_task("text", num_experts=4, layers=2, tokens=64, context=16, d_model=16, d_hidden=16),
    "digits": Config.for_task("digits", num_experts=4, layers=2, tokens=64, d_model=16, d_hidden=16),
    "plane": Config.for_task("plane", num_experts=4, layers=2, tokens=64, d_model=16, d_hidden=16),
}


def made(config: Config, knobs: Knobs, device: str):
    """(model, optimizer, data) with the same weights on every device."""
    torch.manual_seed(0)
    data = load(config)
    model = build(config, data.features, data.classes, knobs.k, knobs.noise, knobs.strategy).to(device)
    return model, torch.optim.Adam(model.parameters(), lr=knobs.lr), data


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_step_without_noise_is_the_cpus(strategy: str, device: str, precision: str) -> None:
    """The first step: later ones part at the first token whose choice is a matter of rounding."""
    config = replace(TASKS["plane"], precision=precision)
    knobs = Knobs(strategy=strategy, noise=0.0)
    model, optimizer, data = made(config, knobs, device)
    done = update(model, optimizer, data.batch(1).to(torch.device(device)), config, knobs)
    cpu_model, cpu_optimizer, _ = made(TASKS["plane"], knobs, "cpu")
    wanted = update(cpu_model, cpu_optimizer, data.batch(1), TASKS["plane"], knobs)
    near = 1e-3 if precision == "float32" else 5e-2
    assert done.finite
    assert done.loss.item() == pytest.approx(wanted.loss.item(), rel=near)
    assert done.grad_norm.item() == pytest.approx(wanted.grad_norm.item(), rel=3 * near)
    assert sum(done.routings[0].counts_E.tolist()) == sum(wanted.routings[0].counts_E.tolist())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("task", TASKS)
def test_every_task_learns_and_is_measured(task: str, device: str, precision: str) -> None:
    """Twenty steps at a high rate lower the held-out loss; rows, window and probe come off the device whole."""
    config, knobs = replace(TASKS[task], precision=precision), Knobs(lr=0.02)
    model, optimizer, data = made(config, knobs, device)
    there = torch.device(device)
    telemetry, probe = Telemetry(config, there), Probe(config, data, there)
    window = Window(config, {name: len(values) for name, values in data.labels.items()})
    held_out = [batch.to(there) for batch in data.held_out()]
    before = held_out_loss(model, held_out, routing_options(config, knobs))["loss"]
    for step in range(1, 21):
        batch = data.batch(step).to(there)
        done = update(model, optimizer, batch, config, knobs)
        window.add(done.routings, batch.labels)
        telemetry.record(step, done.loss, done.task_loss, done.grad_norm, 0.1, done.routings)
    assert held_out_loss(model, held_out, routing_options(config, knobs))["loss"] < before
    snapshots = probe.snapshot(model, routing_options(config, knobs), full=True, window=window)()
    first, rows_nC = telemetry.take()
    columns = {(c.stat, c.layer): c for c in layout(config.layers, config.num_experts)}
    counts = columns["counts", 1]
    assert (first, len(rows_nC)) == (1, 20)
    assert np.isfinite(rows_nC[:, columns["loss", -1].start]).all()
    assert (rows_nC[:, counts.start : counts.start + counts.width].sum(1) == 2 * 64).all()
    assert snapshots["probe"]["experts"].shape[0] == config.layers
