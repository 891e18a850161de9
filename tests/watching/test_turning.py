"""What a turned knob reaches: optimizers that are stepped by a closure, made late or replaced, layers that cannot switch off."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from moe_core.diagnosis import diagnose
from moe_core.nn import MoELayer
from moe_core.runs import Run, StoreError
from moe_core.watching import Knob, turning, watch
from moe_core.watching import taps as taps_module
from moe_core.watching.readers import find_taps
from moe_core.watching.routers import find_routers
from moe_core.watching.taps import Taps
from tests.server import ROOT
from tests.watching.sums import counts_of, importance_of
from tests.watching.test_counting import Block, D, E, Experts, K, Model, batch, reference
from tests.watching.test_live import ended, sgd, train
from tests.watching.test_live_faults import said

# The optimizer


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("by_name", [False, True])
def test_a_router_stays_frozen_where_a_closure_computes_the_gradients(kind: type, by_name: bool) -> None:
    model = Model()
    optimizer = kind(model.parameters(), lr=0.1)
    rates = turning.Rates(optimizer, [block.gate for block in model.blocks])

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(batch()).square().mean()
        loss.backward()
        return loss

    def step() -> list[bool]:
        before = [p.detach().clone() for p in model.parameters()]
        loss = optimizer.step(closure=closure) if by_name else optimizer.step(closure)
        assert float(loss.detach()) > 0
        return [torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True)]

    of_gates = ["gate" in name for name, _ in model.named_parameters()]
    assert step() == [False] * len(of_gates)
    rates.frozen = True
    assert step() == of_gates
    rates.frozen = False
    assert step() == [False] * len(of_gates)


def test_an_optimizer_that_moves_parameters_without_gradients_freezes_no_router(tmp_path: Path) -> None:
    model = Model()
    assert (
        "freeze_router" not in watch(model, "a", optimizer=torch.optim.LBFGS(model.parameters()), runs=tmp_path).knobs
    )


def test_a_learning_rate_of_0_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As before a scheduler that warms up is made."""
    model = Model()
    optimizer = sgd(model, lr=0.0)
    live = watch(model, "a", optimizer=optimizer, runs=tmp_path)
    assert "lr" not in live.knobs
    assert "weight_decay" in live.knobs
    (line,) = said(caplog)
    assert line.startswith("there is no knob lr: the optimizer's learning rate is 0")
    optimizer = sgd(model, lr=0.5)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    assert watch(model, "b", optimizer=optimizer, runs=tmp_path).knobs.lr == 0.5
    assert len(said(caplog)) == 1


def test_an_optimizer_that_takes_no_part_any_more_is_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = Model()
    optimizer = sgd(model)
    live = watch(model, "a", optimizer=optimizer, runs=tmp_path)
    train(live, model, optimizer, 3)
    train(live, model, sgd(model), turning.UNSTEPPED - 1)
    assert said(caplog) == []
    train(live, model, sgd(model), 5)
    (line,) = said(caplog)
    assert line.startswith("the SGD that watch() was given did not step in the last 10 steps")


TURN = """
import sys
from pathlib import Path
from moe_core.runs import Run

run = Run(Path(sys.argv[1]))
for turn in range(20):
    run.turn(sys.argv[2], noise=float(sys.argv[3]) + turn)
"""


def test_two_processes_turn_the_same_knob_beside_each_other(tmp_path: Path) -> None:
    model = Model()
    live = watch(model, "a", knobs={"noise": Knob(0.0, 0, 1000)}, runs=tmp_path)
    optimizer = sgd(model)
    train(live, model, optimizer, 1)
    run = [sys.executable, "-c", TURN, str(live.path)]
    writers = [subprocess.Popen([*run, name, first], cwd=ROOT) for name, first in (("one", "100"), ("two", "200"))]
    while any(writer.poll() is None for writer in writers):
        train(live, model, optimizer, 1)
    live.next_read = 0.0
    train(live, model, optimizer, 2)
    changes = ended(live).knob_changes()
    assert sorted(change.value for change in changes) == [*range(100, 120), *range(200, 220)]
    assert all(after.previous == before.value for before, after in itertools.pairwise(changes))
    assert [change.step for change in changes] == sorted(change.step for change in changes)
    assert live.knobs.noise == changes[-1].value


# Where it is recorded


def test_what_is_no_folder_and_no_name_is_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for runs in (file, file / "runs"):
        with pytest.raises(StoreError, match=r"runs must name a folder, and .*file is a file"):
            watch(Model(), "a", runs=runs)
    for name in (3, "", Path("a")):
        with pytest.raises(StoreError, match="a run's name is letters"):
            watch(Model(), name, runs=tmp_path)
    assert watch(Model(), "a", runs=tmp_path / "new" / "runs").path.name == "a"


# Experts that are off


class Both(nn.Module):
    """A layer whose experts are called with ids, and one that is read by what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.ours = Block(), MoELayer(D, 4, num_experts=E, k=K)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.ours(self.block(x))[0]


def test_a_layer_that_can_switch_no_expert_off_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = Both()
    live = watch(model, "a", optimizer=sgd(model), runs=tmp_path)
    for off in ("3", "2:3"):
        with pytest.raises(ValueError, match="no expert of ours can be switched off"):
            live.turn(off=off)
    train(live, model, live.optimizer, 2)
    Run(live.path).turn("me", off="2:3")
    train(live, model, live.optimizer, 2)
    (line,) = said(caplog)
    assert "off was not turned to 2:3: no expert of ours can be switched off" in line
    live.turn(off="1:3")
    train(live, model, live.optimizer, 1)
    run = ended(live)
    assert run.history("counts", 0)[1][-1][2] == 0
    assert [(change.value, change.step) for change in run.knob_changes()] == [("2:3", None), ("1:3", 5)]


# Layers that differ, and layers within layers


class Small(nn.Module):
    """A router of k among so many experts."""

    def __init__(self, many: int, k: int) -> None:
        super().__init__()
        self.gate, self.experts, self.top_k = nn.Linear(D, many, bias=False), Experts(), k
        self.experts.num_experts = many

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, ids = self.gate(x).softmax(1).topk(self.top_k, dim=1)
        return x + self.experts(x, ids, weights)


@pytest.mark.parametrize(
    ("layers", "k"),
    [([(6, 1)], 1), ([(1, 1)], 1), ([(1, 1), (6, 2)], None), ([(6, 1), (6, 3)], None), ([(4, 2), (6, 2)], 2)],
)
def test_layers_of_one_choice_of_one_expert_and_of_different_k(
    tmp_path: Path, layers: list[tuple[int, int]], k: int | None
) -> None:
    """k is a knob only where all layers have the same, and no larger than what the smallest of them has."""
    torch.manual_seed(0)
    model = nn.Sequential(*(Small(*layer) for layer in layers))
    live = watch(model, "a", optimizer=sgd(model, 0.0), runs=tmp_path)
    assert live.knobs.get("k") == k
    assert k is None or live.turns["k"].knob.high == min(many for many, _ in layers)
    train(live, model, live.optimizer, 30)
    run = ended(live)
    assert [(one.experts, one.k) for one in run.description.layers] == layers
    for layer, (many, k_of_layer) in enumerate(layers):
        counts_nE = run.history("counts", layer)[1]
        assert counts_nE.shape == (30, many)
        assert (counts_nE.sum(1) == 20 * k_of_layer).all()
        assert diagnose(run, layer) == []


class WithinExperts(Experts):
    """Hands what it is called with on to experts within it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Experts()

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        return self.inner(hidden_states, top_k_index, top_k_weights)


def test_experts_within_experts_are_one_layer_and_shared_ones_too() -> None:
    model = Model()
    model.blocks[0].experts = WithinExperts()
    assert [tap.name for tap in find_taps(model)] == ["blocks.0.experts", "blocks.1.experts"]
    model.blocks[0].experts = model.blocks[1].experts  # both layers' selections, in one
    expected = [sum(both) for both in zip(*reference(model, batch()), strict=True)]
    taps = Taps(model, find_taps(model))
    model(batch())
    assert [row[:-1] for row in counts_of(taps).values()] == [expected]


# Forwards without a step


def test_forwards_that_no_step_ends_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taps_module, "CALLS", 10)
    model = Model()
    expected = [[100 * n for n in row] for row in reference(model, batch())]
    taps = Taps(model, find_taps(model))
    for _ in range(100):
        model(batch())
        assert len(taps.calls) <= 11
        assert len(taps.sums) <= 2
    assert [row[:-1] for row in counts_of(taps).values()] == expected
    model(batch())
    once = importance_of(taps)
    for _ in range(100):
        model(batch())
    for tap, importance in importance_of(taps).items():
        assert importance == pytest.approx([100 * n for n in once[tap]], rel=1e-4)


def test_scores_of_forwards_that_no_step_ends_are_their_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    from tests.watching.families import build

    model = build("mixtral")
    found = find_taps(model)
    taps = Taps(model, found, find_routers(model, found))
    ids = torch.randint(3, 60, (2, 16))
    model(input_ids=ids)
    (once,) = taps.take()
    monkeypatch.setattr(taps_module, "CALLS", 5)
    for _ in range(4):
        model(input_ids=ids)
    sums = taps.take()
    scores = torch.cat([one.scores_SC for one in sums if one.scores_SC is not None], 1)
    assert torch.allclose(scores, once.scores_SC.mean(1, keepdim=True).expand_as(scores), atol=1.0, equal_nan=True)
    assert sum(int(one.counts_CE1.sum()) for one in sums) == 4 * int(once.counts_CE1.sum())
