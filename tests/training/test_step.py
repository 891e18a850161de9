"""One step by itself: its losses and norm against their definitions, and what is not finite changes nothing."""

import copy
import math

import pytest
import torch

from moe_core.nn.models import build
from moe_core.nn.strategies import Step, losses
from moe_core.schema import Config, Knobs
from moe_core.training.data import load
from moe_core.training.step import update

CONFIG = Config.for_task("plane", num_experts=4, layers=2, tokens=64, d_model=8, d_hidden=8, threads=1)
KNOBS = Knobs(noise=0.5, w_importance=0.3, w_load=0.2, w_z=0.1, lr=0.01)


@pytest.fixture
def made():
    """A model with its optimizer, and its first batch."""
    torch.manual_seed(0)
    data = load(CONFIG)
    model = build(CONFIG, data.features, data.classes, KNOBS.k)
    return model, torch.optim.Adam(model.parameters(), lr=1.0), data.batch(1)


def test_the_loss_is_the_tasks_and_each_weighed_loss_of_each_layer(made) -> None:
    model, optimizer, batch = made
    before = copy.deepcopy(model.state_dict())
    done = update(model, optimizer, batch, CONFIG, KNOBS)
    wanted = done.task_loss
    for layer, routing in zip(model.moe_layers, done.routings, strict=True):
        by_knob = losses(Step(layer.gate, routing, KNOBS, 64))
        assert set(by_knob) == {"w_importance", "w_load", "w_z"}
        wanted = wanted + 0.3 * by_knob["w_importance"] + 0.2 * by_knob["w_load"] + 0.1 * by_knob["w_z"]
    torch.testing.assert_close(done.loss, wanted)
    norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None))
    assert float(done.grad_norm) == pytest.approx(norm, rel=1e-5)
    assert done.finite
    moved = (model.head.bias.detach() - before["head.bias"]).abs()
    assert float(moved.max()) == pytest.approx(
        0.01, rel=1e-3
    )  # Adam's first step is the knob's learning rate, not its own


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_changes_no_weight_and_no_memory(made, where: str) -> None:
    model, optimizer, batch = made
    update(model, optimizer, batch, CONFIG, KNOBS)
    if where == "loss":
        batch = batch._replace(inputs=batch.inputs * torch.nan)
    else:
        model.head.bias.register_hook(lambda gradient: gradient * torch.inf)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    done = update(model, optimizer, batch, CONFIG, KNOBS)
    assert not done.finite
    assert bool(done.loss.isfinite()) == (where == "gradient")
    for name, kept in before[0].items():
        assert torch.equal(model.state_dict()[name], kept), name
    for at, kept in before[1].items():
        assert all(torch.equal(optimizer.state_dict()["state"][at][name], kept[name]) for name in kept)
