"""A captured step follows the knobs that it reads, and is captured anew where the work changes. On a CPU, where the same function
runs again over the same kept tensors: nothing of it has been tried on a GPU."""

import copy
from dataclasses import fields, replace

import pytest
import torch

from moe_core.nn.models import build
from moe_core.schema import STRATEGIES, Config, Knobs
from moe_core.training.data import load
from moe_core.training.graph import AGAIN, LIVE, UNREAD, WARM_UP, Backend, Graphed, may_be_captured, updater
from moe_core.training.step import Adam, Live, update

CONFIG = Config.for_task("plane", num_experts=8, layers=2, tokens=64, d_model=8, d_hidden=8, threads=1)
# Every weight above 0, and numbers that a float32 on the device holds exactly.
KNOBS = Knobs(noise=0.5, lr=2**-6, bias_speed=2**-5, **{name: 2**-4 for name in LIVE if name.startswith("w_")})


def write_over(kept, new) -> None:
    """The values of what a step gave into the tensors of what one gave before, as a replay writes them."""
    if isinstance(kept, torch.Tensor):
        kept.data.copy_(new.data)
    elif isinstance(kept, tuple | list):
        for one, other in zip(kept, new, strict=True):
            write_over(one, other)


class Counted:
    """The CPU's backend, which counts, and writes over what it gave back before, as a GPU does. captures: how often a step was
    captured."""

    def __init__(self) -> None:
        self.warmed = self.captures = self.replays = 0
        self.backend = Backend(self.warm_up, self.capture)

    def warm_up(self, run):
        self.warmed += 1
        return AGAIN.warm_up(run)

    def capture(self, run):
        self.captures += 1

        done = []

        def replay():
            self.replays += 1
            new = run()
            if done:
                write_over(done[0], new)
            else:
                done.append(new)
            return done[0]

        return replay


class Pair:
    """A model that is trained eagerly, and its twin that is trained by a captured step."""

    def __init__(self, config: Config = CONFIG, knobs: Knobs = KNOBS) -> None:
        torch.manual_seed(0)
        self.config, self.data, self.step = config, load(config), 0
        self.model = build(config, self.data.features, self.data.classes, knobs.k, knobs.noise, knobs.strategy)
        self.twin = copy.deepcopy(self.model)
        self.eager, self.counted = Adam(self.model.parameters(), lr=1.0, fused=True), Counted()
        self.graphed = Graphed(
            self.twin, Adam(self.twin.parameters(), lr=1.0, fused=True), config, self.counted.backend
        )

    def train(self, knobs: Knobs, steps: int = 1, measure: bool = False):
        for _ in range(steps):
            self.step += 1
            batch = self.data.batch(self.step)
            torch.manual_seed(self.step)
            one = update(self.model, self.eager, batch, self.config, knobs, measure)
            torch.manual_seed(self.step)
            other = self.graphed(batch, knobs, measure)
            assert torch.equal(one.loss, other.loss), self.step
            assert torch.equal(one.grad_norm, other.grad_norm), self.step
        return other

    def same(self) -> bool:
        pairs = zip(self.model.state_dict().values(), self.twin.state_dict().values(), strict=True)
        return all(torch.equal(a, b) for a, b in pairs)


READ = [
    (name, strategy, groups)
    for name, strategy, groups in (
        *((name, "paper", 0) for name in ("noise", "w_importance", "w_load", "w_z", "lr")),
        *((name, "paper", 4) for name in ("noise", "noise_primary", "w_importance_primary", "w_load_primary")),
        *((name, "loss-free", 0) for name in ("bias_speed", "w_sequence")),
        ("w_switch", "switch", 0),
        ("w_threshold", "strictly-balanced", 0),
    )
]


def test_every_number_that_a_step_reads_is_turned_below() -> None:
    assert {name for name, *_ in READ} == set(LIVE)
    others = {field.name for field in fields(Knobs)} - set(LIVE) - UNREAD.keys()
    assert others == {"k", "strategy", "weigh", "balance_over", "capacity_factor", "off", "k_primary"}


@pytest.mark.parametrize(("name", "strategy", "groups"), READ)
def test_a_number_that_is_turned_acts_in_the_next_replay_as_it_does_eagerly(
    name: str, strategy: str, groups: int
) -> None:
    knobs = replace(KNOBS, strategy=strategy)
    pair = Pair(replace(CONFIG, groups=groups), knobs)
    pair.train(knobs, WARM_UP + 2)
    turned = replace(knobs, **{name: 4 * getattr(knobs, name)})
    pair.train(turned, 2)
    assert pair.same()
    assert pair.counted.captures == 1
    assert pair.counted.replays == 4
    # The knob does something: without the turn the same steps end elsewhere.
    still = Pair(replace(CONFIG, groups=groups), knobs)
    still.train(knobs, WARM_UP + 4)
    assert any(
        not torch.equal(a, b)
        for a, b in zip(still.twin.state_dict().values(), pair.twin.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    "turned",
    [
        {"k": 3},
        {"strategy": "switch"},
        {"off": "2"},
        {"noise": 0.0},
        {"w_load": 0.0},
        {"capacity_factor": 1.0},
        {"weigh": "all"},
    ],
)
def test_what_shapes_the_work_is_captured_anew(turned: dict) -> None:
    pair = Pair()
    pair.train(KNOBS, WARM_UP + 1)
    pair.train(replace(KNOBS, **turned), WARM_UP + 2)
    assert (pair.counted.captures, pair.counted.warmed, pair.counted.replays) == (2, 2 * WARM_UP, 3)
    pair.train(replace(KNOBS, **turned, speed_limit=10.0, autobalance=0.5))
    assert pair.counted.captures == 2
    assert pair.same()


def test_with_and_without_the_tasks_gradient_are_two_captures_that_both_stay() -> None:
    pair = Pair()
    for _ in range(WARM_UP + 2):
        assert pair.train(KNOBS, 2).task_gradient_L is None
        assert pair.train(KNOBS, 1, measure=True).task_gradient_L.shape == (2,)
    assert pair.counted.captures == 2
    assert pair.same()


def test_what_a_step_gives_back_is_left_alone_by_the_next() -> None:
    pair = Pair()
    done = pair.train(KNOBS, WARM_UP + 2)
    kept = copy.deepcopy([done.loss, *(r.experts_TK for r in done.routings)])
    pair.train(KNOBS, 2)
    assert all(map(torch.equal, kept, [done.loss, *(r.experts_TK for r in done.routings)]))
    assert not any(x.requires_grad for r in done.routings for x in r if isinstance(x, torch.Tensor))


def test_a_replay_leaves_out_what_is_not_finite_too() -> None:
    pair = Pair()
    pair.train(KNOBS, WARM_UP + 1)
    batch, before = pair.data.batch(1), copy.deepcopy(pair.twin.state_dict())
    done = pair.graphed(batch._replace(inputs=batch.inputs * torch.nan), KNOBS)
    assert not done.finite
    assert all(torch.equal(x, before[name]) for name, x in pair.twin.state_dict().items())


def test_a_live_number_is_its_tensor_to_torch_and_a_float_to_python() -> None:
    tensor = torch.tensor(2.0)
    live, ones = Live(2.0, tensor), torch.ones(3)
    tensor.fill_(5.0)
    for result in (live * ones, ones * live, torch.mul(ones, live), ones.clone().mul_(other=live)):
        assert result.tolist() == [5, 5, 5]
    assert (ones / live).tolist() == pytest.approx([0.2] * 3)
    assert live > 1
    assert not live < 0
    assert bool(live)


def test_on_a_gpu_a_step_that_waits_is_not_captured_and_only_a_run_that_chose_it_is() -> None:
    cuda, half = torch.device("cuda"), replace(CONFIG, precision="bfloat16")
    assert not may_be_captured(CONFIG, KNOBS, cuda)  # in 32 bits each expert is called with its count
    assert not may_be_captured(replace(half, d_hidden=12), KNOBS, cuda)
    captured = {name for name in STRATEGIES if may_be_captured(half, replace(KNOBS, strategy=name), cuda)}
    assert captured == set(STRATEGIES) - {"expert-choice", "strictly-balanced"}
    assert all(may_be_captured(CONFIG, replace(KNOBS, strategy=name), torch.device("cpu")) for name in STRATEGIES)
    model = torch.nn.Linear(1, 1)
    optimizer = Adam(model.parameters())
    graph = replace(CONFIG, launch="graph")
    assert isinstance(updater(model, optimizer, graph, cuda), Graphed)
    for config, device in ((graph, torch.device("cpu")), (CONFIG, cuda), (replace(CONFIG, launch="waiting"), cuda)):
        assert not isinstance(updater(model, optimizer, config, device), Graphed)
