"""Biases that drown the tokens, and experts that no token can reach: planted in tiny models, they are told while these are
trained, and nothing of the kind is told of a healthy one."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("transformers", reason="transformers is not installed: pip install 'moescope[watch-demo]'")

from moe_core import diagnosis
from moe_core.diagnosis import Finding, diagnose
from moe_core.recording import recent
from moe_core.runs import open_run
from moe_core.watching import Live, measuring, watch
from moe_core.watching.routers import Groups, best_of, lacking, limited, out_of_reach_of_kept
from tests.watching.families import build

PLANTED = 3  # the expert, counted from 0
NEW = {"constant_bias", "idle_bias", "unreachable"}


@pytest.fixture(autouse=True)
def diagnoses_at_every_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "EVERY", 0.0)
    monkeypatch.setattr(recent, "REST", 0)
    for module in (diagnosis, measuring):  # an expert is called dead sooner, to save time
        monkeypatch.setattr(module, "DEAD_AFTER", 20)


def deepseek(bias: float = 0.0, scale: float = 1.0) -> nn.Module:
    """With this selection bias for one expert in its last layer, whose router's weights are multiplied by scale."""
    model = build("deepseek_v3")
    gate = model.model.layers[2].mlp.gate
    with torch.no_grad():
        gate.e_score_correction_bias[PLANTED] = bias
        gate.weight.mul_(scale)
    return model


def mixtral(preference: float = 0.0) -> nn.Module:
    """All its tokens share a direction, by which the last layer's router, which has no bias, prefers or avoids one expert."""
    model = build("mixtral")
    shared_D = torch.ones(32) / 32**0.5
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(10).add_(2 * shared_D)
        weight_ED = model.model.layers[2].mlp.gate.weight
        weight_ED.sub_((weight_ED @ shared_D)[:, None] * shared_D)
        weight_ED[PLANTED].add_(preference * shared_D)
    return model


def train(
    model: nn.Module, runs: Path, steps: int, then: Callable[[Live], object] | None = None
) -> tuple[Live, list[Finding]]:
    """What was told of the last layer in so many steps, and in 40 more after `then`."""
    told: list[Finding] = []
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    live = watch(model, "a", optimizer=optimizer, runs=runs)
    live.on_alert(told.append)
    for step in range(steps + (40 if then else 0)):
        if then is not None and step == steps:
            then(live)
        ids = torch.randint(3, 60, (4, 16), generator=torch.Generator().manual_seed(step))
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        live.step(loss=loss)
        if step % 10 == 8:
            live.recorder.flush()
            live.recorder.committer.settle()
    live.close()
    last = len(live.recorder.experts) - 1
    return live, [finding for finding in told if finding.layer == last]


def rules_at_the_end(live: Live) -> set[str]:
    return {finding.rule for finding in diagnose(open_run(live.path), len(live.recorder.experts) - 1)}


def test_a_selection_bias_that_outweighs_the_tokens_is_told_and_what_is_offered_mends_it(tmp_path: Path) -> None:
    live, told = train(deepseek(bias=5.0), tmp_path, 30, then=lambda live: live.turn(balance="quantile"))
    (finding,) = [finding for finding in told if finding.rule == "constant_bias"]
    assert finding.what.startswith("A constant bias outweighs the tokens: 100 % of them choose expert 4")
    assert "without it overlap" in finding.why
    assert finding.remedy == {"balance": "quantile"}
    assert not rules_at_the_end(live) & {"constant_bias", "collapse"}


def test_an_expert_whose_bias_no_token_makes_up_for_is_unreachable_and_comes_back_by_what_is_offered(
    tmp_path: Path,
) -> None:
    live, told = train(deepseek(bias=-5.0), tmp_path, 45, then=lambda live: live.turn(balance="quantile"))
    (finding,) = told
    assert finding.rule == "unreachable"
    assert finding.what.startswith("No token can reach expert 4: ")
    assert finding.remedy == {"balance": "quantile"}
    assert rules_at_the_end(live) == set()


def test_a_dead_expert_that_some_tokens_come_near_is_dead_only(tmp_path: Path) -> None:
    _, told = train(deepseek(bias=-0.7, scale=8.0), tmp_path, 45)
    assert [finding.rule for finding in told] == ["dead_experts"]


@pytest.mark.parametrize(("preference", "rule"), [(2.0, "constant_bias"), (-2.0, "unreachable")])
def test_a_router_without_a_bias_may_prefer_or_avoid_an_expert_at_every_token(
    tmp_path: Path, preference: float, rule: str
) -> None:
    _, told = train(mixtral(preference), tmp_path, 45)
    (finding,) = [finding for finding in told if finding.rule in NEW]
    assert finding.rule == rule
    assert finding.remedy is None
    assert "router_aux_loss_coef" in finding.try_this
    assert rule != "constant_bias" or "router's own scores" in finding.why


def test_a_bias_that_changes_nothing_beside_a_collapse_is_idle(tmp_path: Path) -> None:
    _, told = train(deepseek(scale=0.0), tmp_path, 30)  # every score is the same, so the first experts win
    (finding,) = [finding for finding in told if finding.rule == "idle_bias"]
    assert finding.what.startswith("The selection bias changes no choice")


@pytest.mark.parametrize("model", [deepseek, mixtral])
def test_of_healthy_models_nothing_is_told(tmp_path: Path, model: Callable[[], nn.Module]) -> None:
    live, told = train(model(), tmp_path, 45)
    assert told == []
    assert (open_run(live.path).history("unreachable", 0)[1] == 0).all()


@pytest.mark.parametrize("groups", [None, Groups(4, 2, 2, -torch.inf), Groups(4, 2, 1, -torch.inf)])
def test_a_score_that_is_raised_by_less_than_it_lacks_is_not_chosen(groups: Groups | None) -> None:
    scores_NE = torch.randn(50, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    limits = None if groups is None else limited(scores_NE[None], groups)
    lack_NE = lacking(scores_NE[None], best_of(scores_NE, 3, groups)[None], groups, limits)[0]
    for e in range(16):
        for by, any_chosen in ((-1e-6, False), (1e-6, True)):
            raised_NE = scores_NE.clone()
            raised_NE[:, e] += lack_NE[:, e] + by
            chosen_N = (best_of(raised_NE, 3, groups) == e).any(1)
            was_N = lack_NE[:, e] <= 0
            assert not (chosen_N & ~was_N).any() or any_chosen
            assert groups is not None or chosen_N[~was_N].all() or not any_chosen


def test_padding_has_no_say_in_what_can_be_reached() -> None:
    lack_LNE = torch.tensor([2.0, 3.0, -1.0]).repeat(1, 40, 1)
    lack_LNE[0, :20, 0] = 0.1  # only of padding
    kept_N = torch.arange(40) >= 20
    assert out_of_reach_of_kept(lack_LNE, kept_N).tolist() == [2]
    assert out_of_reach_of_kept(lack_LNE, None).tolist() == [1]
    assert out_of_reach_of_kept(lack_LNE, torch.arange(40) >= 30).isnan().all()  # too few tokens
