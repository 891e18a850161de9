"""One step by itself: its losses and norm against their definitions, and what is not finite changes nothing."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from moe_core.nn.models import build, routing_options
from moe_core.nn.strategies import Step, losses
from moe_core.schema import STRATEGIES, Config, Knobs, from_dict, strategies_with, untaught
from moe_core.training import step as step_module
from moe_core.training.data import load
from moe_core.training.step import Adam, optimizer_of, update

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


def test_the_optimizer_computes_what_torchs_own_does_to_the_last_bit(made) -> None:
    """Also after its state was kept and taken up again, as from a checkpoint."""
    model, own, _ = made
    twin = copy.deepcopy(model)
    ours = Adam(twin.parameters(), lr=1.0)
    for step in range(1, 4):
        for one, optimizer in ((model, own), (twin, ours)):
            torch.manual_seed(step)  # the same noise for both
            update(one, optimizer, load(CONFIG).batch(step), CONFIG, KNOBS)
        ours.load_state_dict(copy.deepcopy(ours.state_dict()))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert all(p.requires_grad and p.is_leaf for p in twin.parameters())


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("strategy", ["paper", "loss-free"])
@pytest.mark.parametrize("fused", [False, True])
def test_what_is_not_finite_changes_no_weight_and_no_memory(made, where: str, strategy: str, fused: bool) -> None:
    """fused: decided on the device, as on a GPU."""
    model, optimizer, batch = made
    optimizer = Adam(model.parameters(), lr=1.0, fused=True) if fused else optimizer
    knobs = replace(KNOBS, strategy=strategy, w_sequence=0.1)
    update(model, optimizer, batch, CONFIG, knobs)
    if where == "loss":
        batch = batch._replace(inputs=batch.inputs * torch.nan)
    else:
        model.head.bias.register_hook(lambda gradient: gradient * torch.inf)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    done = update(model, optimizer, batch, CONFIG, knobs)
    assert not done.finite
    assert bool(done.loss.isfinite()) == (where == "gradient")
    for name, kept in before[0].items():
        assert torch.equal(model.state_dict()[name], kept), name
    for at, kept in before[1].items():
        assert all(torch.equal(optimizer.state_dict()["state"][at][name], kept[name]) for name in kept)


def step_of(config: Config, knobs: Knobs, measure: bool = True):
    """A fresh model, and what one step did to it."""
    torch.manual_seed(0)
    data = load(config)
    model = build(config, data.features, data.classes, knobs.k, knobs.noise, knobs.strategy)
    optimizer = torch.optim.Adam(model.parameters(), lr=knobs.lr)
    return model, update(model, optimizer, data.batch(1), config, knobs, measure)


def test_the_tasks_gradient_is_without_the_balancing_losses(made) -> None:
    """Against a backward pass of the task's loss by itself, from the same weights and the same noise."""
    model, optimizer, batch = made
    alone, random = copy.deepcopy(model), torch.get_rng_state()
    done = update(model, optimizer, batch, CONFIG, KNOBS, measure=True)
    torch.set_rng_state(random)
    logits, _ = alone(batch.inputs, **routing_options(CONFIG, KNOBS))
    torch.nn.functional.cross_entropy(logits, batch.targets).backward()
    wanted = torch.stack([layer.gate.w_gate.grad.norm() for layer in alone.moe_layers])
    torch.testing.assert_close(done.task_gradient_L, wanted)
    assert (wanted > 0).all()
    assert not torch.allclose(
        wanted, torch.stack([layer.gate.w_gate.grad.norm() for layer in model.moe_layers]), rtol=0.01
    )


@pytest.mark.parametrize(
    ("config", "knobs"),
    [
        (CONFIG, KNOBS),
        (CONFIG, replace(KNOBS, strategy="even")),
        (CONFIG, replace(KNOBS, strategy="expert-choice")),
        (replace(CONFIG, groups=2), KNOBS),
        (replace(CONFIG, precision="bfloat16"), KNOBS),
    ],
)
def test_to_measure_it_changes_nothing_to_the_last_bit(config: Config, knobs: Knobs) -> None:
    looked, done = step_of(config, knobs)
    plain, other = step_of(config, knobs, measure=False)
    assert other.task_gradient_L is None
    assert torch.equal(done.loss, other.loss)
    assert torch.equal(done.grad_norm, other.grad_norm)
    for (name, a), (_, b) in zip(looked.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.equal(a, b), name
        assert a.grad is None if b.grad is None else torch.equal(a.grad, b.grad), name


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("weigh", ["own", "kept", "all"])
@pytest.mark.parametrize("strategy", [*strategies_with("by_token"), "even"])
def test_a_gate_that_the_task_teaches_nothing_is_told_from_one_that_it_teaches(strategy, weigh, k) -> None:
    _, done = step_of(CONFIG, replace(KNOBS, k=k, strategy=strategy, weigh=weigh))
    over_all = weigh == "all" or (weigh == "own" and strategy == "switch")
    wanted = strategy == "even" or (k == 1 and not over_all)
    assert untaught(done.task_gradient_L, done.grad_norm).tolist() == [wanted] * 2
    if wanted and not STRATEGIES[strategy].biased:  # whose quotient leaves a rounding
        assert done.task_gradient_L.tolist() == [0, 0]


@pytest.mark.parametrize(("k", "k_primary", "nothing"), [(2, 2, False), (1, 2, True), (2, 1, True)])
def test_of_two_levels_the_one_that_is_taught_less_counts(k: int, k_primary: int, nothing: bool) -> None:
    config = replace(CONFIG, num_experts=8, groups=2)
    _, done = step_of(config, replace(KNOBS, k=k, k_primary=k_primary, noise_primary=0.5))
    assert untaught(done.task_gradient_L, done.grad_norm).tolist() == [nothing] * 2
    assert not untaught(
        step_of(config, replace(KNOBS, k=k, k_primary=k_primary, weigh="all"))[1].task_gradient_L, done.grad_norm
    ).any()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_decided_on_the_device_a_training_is_the_same_and_goes_on_after_a_step_left_out(strategy: str) -> None:
    """The fused kernel rounds otherwise than the plain one, so the two are near each other and not the same bits."""
    knobs, data = replace(KNOBS, strategy=strategy, noise=0.0), load(CONFIG)
    torch.manual_seed(0)
    model = build(CONFIG, data.features, data.classes, knobs.k, 0.0, strategy)
    twin = copy.deepcopy(model)
    plain, fused = Adam(model.parameters(), lr=1.0), Adam(twin.parameters(), lr=1.0, fused=True)
    for step in range(1, 7):
        batch = data.batch(step)
        if step in (2, 5):
            batch = batch._replace(inputs=batch.inputs * math.nan)
        one, other = update(model, plain, batch, CONFIG, knobs), update(twin, fused, batch, CONFIG, knobs)
        assert bool(one.finite) == bool(other.finite) == (step not in (2, 5))
    for (name, a), (_, b) in zip(model.state_dict().items(), twin.state_dict().items(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)
    assert {int(state["step"]) for state in fused.state.values()} == {4}


def test_a_gpu_gets_the_fused_kernel_and_an_earlier_run_the_one_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(step_module, "Adam", lambda parameters, **options: asked.append(options))
    for launch in ("eager", "graph", "waiting"):
        for device in ("cpu", "mps", "cuda"):
            optimizer_of(torch.nn.Linear(1, 1), replace(CONFIG, launch=launch), 0.1, torch.device(device))
    plain = {"lr": 0.1}
    fused = plain | {"fused": True}
    assert asked == [
        *(plain, plain, fused | {"capturable": False}),
        *(plain, plain, fused | {"capturable": True}),
        *(plain, plain, plain),
    ]
    assert Config().launch == "eager"
    assert from_dict(Config, {"task": "text"}).launch == "waiting"
