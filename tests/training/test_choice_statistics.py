"""Router margin, confidence and the bias's effect: against definitions in float64, at the limits, and without a wait for the device."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from moe_core.nn.gating import NoisyTopKGate, Routing
from moe_core.nn.hierarchical import HierarchicalGate
from moe_core.nn.strategies import route
from moe_core.schema import STRATEGIES, Config, strategies_with
from moe_core.training.telemetry import OF_RANKS, Telemetry, bias_effect, confidence, margins

T, D = 48, 8
NAN = math.nan


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def gate_of(E: int, k: int, groups: int = 0) -> Any:
    gate = HierarchicalGate(D, E, groups, k) if groups else NoisyTopKGate(D, E, k)
    for name, p in gate.named_parameters():
        if "w_gate" in name:
            torch.nn.init.normal_(p, std=0.5)
    if not groups:
        gate.bias_E.normal_(std=0.3)
    return gate


def routed(strategy: str, E: int, k: int, groups: int = 0, **asked: Any) -> tuple[Routing, Any]:
    gate = gate_of(E, k, groups)
    return route(gate, torch.randn(T, D), k, strategy, **asked), gate


def chosen(routing: Routing) -> list[list[int]]:
    E = routing.counts_E.shape[0]
    return [[e for e in row if e < E] for row in routing.chosen_TK.tolist()]


def margin_by_hand(scores: np.ndarray, experts: list[int]) -> float:
    others = [s for e, s in enumerate(scores) if e not in experts and np.isfinite(s)]
    return min(scores[e] for e in experts) - max(others)


def scores_of(routing: Routing, gate: Any, strategy: str) -> np.ndarray:
    if STRATEGIES[strategy].biased:
        c = routing.clean_logits_TE.detach().double()
        return (c.sigmoid() + gate.bias_E.double()).masked_fill(c.isneginf(), -math.inf).numpy()
    return routing.noisy_logits_TE.detach().double().numpy()


@pytest.mark.parametrize("asked", [{}, {"noise": 0.0}, {"off": (1, 3)}, {"capacity_factor": 0.5}], ids=str)
@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("strategy", strategies_with("by_token"))
def test_margin_confidence_and_overlap_are_their_definitions(strategy: str, k: int, asked: dict[str, Any]) -> None:
    routing, gate = routed(strategy, 8, k, **asked)
    scores, picked = scores_of(routing, gate, strategy), chosen(routing)
    by_hand = np.array([margin_by_hand(scores[t], picked[t]) for t in range(T)])
    (mean,), (tenth,) = margins([routing])
    assert mean == pytest.approx(by_hand.mean(), rel=1e-5)
    assert tenth == pytest.approx(np.quantile(by_hand, 0.1), rel=1e-5)
    assert (by_hand >= 0).all()

    clean = routing.clean_logits_TE.detach().double()
    mass = (clean.sigmoid() if STRATEGIES[strategy].biased else clean.exp()).numpy()
    share = [mass[t, picked[t]].sum() / mass[t].sum() for t in range(T)]
    assert confidence(routing) == pytest.approx(np.mean(share), rel=1e-5)

    overlap = bias_effect(routing)
    if not STRATEGIES[strategy].biased:
        assert overlap.isnan()
        return
    without = [set(np.argsort(-clean[t].numpy())[:k].tolist()) for t in range(T)]
    jaccard = [len(set(a) & b) / len(set(a) | b) for a, b in zip(picked, without, strict=True)]
    assert overlap == pytest.approx(np.mean(jaccard), rel=1e-5)
    assert overlap < 1 or k == 5


def test_an_error_below_half_the_margin_changes_no_choice_and_one_above_does() -> None:
    routing, _ = routed("none", 8, 2)
    scores_TE, picked = routing.noisy_logits_TE.detach().double(), chosen(routing)
    margin_T = routing.margin_T
    assert margin_T is not None
    for t in range(T):
        down = torch.full((8,), 1.0, dtype=torch.float64)
        down[picked[t]] = -1.0  # each chosen one lower, each other higher
        for part, same in ((0.49, True), (0.51, False)):
            moved = scores_TE[t] + part * margin_T[t].item() * down
            assert (set(moved.topk(2).indices.tolist()) == set(picked[t])) is same


@pytest.mark.parametrize("asked", [{}, {"noise": 0.0, "noise_primary": 0.0}, {"off": (0, 1, 2, 3)}], ids=str)
@pytest.mark.parametrize(("k", "k_primary"), [(1, 1), (2, 2), (4, 2), (2, 3)])
def test_with_groups_it_is_the_smaller_margin_of_both_levels(k: int, k_primary: int, asked: dict[str, Any]) -> None:
    """Within a group the joint logits differ as the secondary ones do."""
    if k_primary == 3 and "off" in asked:
        k_primary = 2
    routing, _ = routed("paper", 12, k, groups=3, k_primary=k_primary, **asked)
    assert routing.primary is not None
    first = routing.primary.noisy_logits_TE.detach().double().numpy()
    joint = routing.noisy_logits_TE.detach().double().numpy()
    by_hand = []
    for t, experts in enumerate(chosen(routing)):
        groups = sorted({e // 4 for e in experts})
        unchosen = [g for g in range(3) if g not in groups and np.isfinite(first[t, g])]
        levels = [min(first[t, groups]) - max(first[t, unchosen])] if unchosen else []
        if k < 4:
            levels += [margin_by_hand(joint[t, 4 * g : 4 * g + 4], [e - 4 * g for e in experts if e // 4 == g]) for g in groups]  # fmt: skip
        by_hand.append(min(levels, default=NAN))
    assert margins([routing])[0].item() == pytest.approx(np.mean(by_hand), rel=1e-4, nan_ok=True)
    assert margins([routing])[1].item() == pytest.approx(np.quantile(by_hand, 0.1), rel=1e-4, nan_ok=True)
    assert confidence(routing) == pytest.approx(mass_of(routing), rel=1e-5)
    assert bias_effect(routing).isnan()


def mass_of(routing: Routing) -> float:
    gates = routing.clean_logits_TE.detach().double().softmax(1).numpy()
    shares = [gates[t, experts].sum() for t, experts in enumerate(chosen(routing)) if experts]
    return float(np.mean(shares))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("strategy", ["expert-choice", "strictly-balanced", "even"])
def test_where_tokens_do_not_choose_there_is_no_margin_and_no_bias(strategy: str, training: bool) -> None:
    """The share of what they were given is theirs all the same; a token that got nothing is left out."""
    gate = gate_of(8, 1).train(training)
    with torch.no_grad():
        gate.threshold_E.fill_(0.3)
    routing = route(gate, torch.randn(T, D), 1, strategy)
    assert torch.cat(margins([routing])).isnan().all()
    assert bias_effect(routing).isnan()
    assert confidence(routing) == pytest.approx(mass_of(routing), rel=1e-5)
    assert strategy == "even" or not all(
        chosen(routing)
    )  # some got nothing, or this would not show that they are left out


def test_a_batch_that_no_expert_takes_has_no_confidence() -> None:
    gate = gate_of(4, 2).eval()
    with torch.no_grad():
        gate.threshold_E.fill_(2.0)
    assert confidence(route(gate, torch.randn(T, D), 2, "strictly-balanced")).isnan()


@pytest.mark.parametrize(
    ("E", "k", "off"), [(1, 1, ()), (4, 4, ()), (4, 2, (0, 3))], ids=["one expert", "k = E", "k = those on"]
)
@pytest.mark.parametrize("strategy", ["paper", "loss-free"])
def test_without_a_choice_there_is_no_margin(strategy: str, E: int, k: int, off: tuple[int, ...]) -> None:
    routing, _ = routed(strategy, E, k, off=off)
    assert torch.cat(margins([routing])).isnan().all()
    assert confidence(routing) == pytest.approx(1)
    assert bias_effect(routing).isnan() == (strategy == "paper")
    assert strategy == "paper" or bias_effect(routing) == 1


@pytest.mark.parametrize("strategy", ["none", "loss-free"])
def test_ties_have_a_margin_of_zero_and_alike_tokens_the_same_one(strategy: str) -> None:
    gate = gate_of(8, 2)
    gate.bias_E.zero_()
    alike = route(gate, torch.randn(1, D).expand(T, D), 2, strategy, noise=0.0)
    (mean,), (tenth,) = margins([alike])
    assert mean == pytest.approx(tenth.item(), rel=1e-5)
    assert mean > 0
    with torch.no_grad():
        gate.w_gate.zero_()
    tied = route(gate, torch.randn(T, D), 2, strategy, noise=0.0)
    assert [x.item() for x in margins([tied])] == [0, 0]
    assert confidence(tied) == pytest.approx(2 / 8)


def test_a_bias_of_zero_changes_nothing_even_where_affinities_saturate() -> None:
    gate = gate_of(8, 3)
    gate.bias_E.zero_()
    with torch.no_grad():
        gate.w_gate.mul_(1e3)
    assert bias_effect(route(gate, torch.randn(T, D), 3, "loss-free")) == 1
    gate.bias_E[2] = 5.0  # chosen for every token
    assert bias_effect(route(gate, torch.randn(T, D), 3, "loss-free")) < 1


@pytest.mark.parametrize("tokens", [1, 2, 10, 11])
def test_the_tenth_percentile_is_numpys_for_few_tokens_too(tokens: int) -> None:
    routing = route(gate_of(8, 2), torch.randn(tokens, D), 2, "none")
    assert routing.margin_T is not None
    wanted = np.quantile(routing.margin_T.double().numpy(), 0.1)
    assert margins([routing])[1].item() == pytest.approx(wanted, rel=1e-5)


CASES = [(name, groups) for name, s in STRATEGIES.items() for groups in ((0, 3) if s.hierarchical else (0,))]


@pytest.mark.parametrize(("strategy", "groups"), CASES)
def test_a_row_is_measured_without_reading_anything_back_from_the_device(strategy: str, groups: int) -> None:
    """Fake tensors have no values: to ask one for its value is an error, as on a GPU it is a wait."""
    routing, _ = routed(strategy, 12, 2, groups, **({} if groups else {"off": (1,)} | {"capacity_factor": 1.0}))
    mode = FakeTensorMode()
    fake = tree_map_only(torch.Tensor, lambda t: mode.from_tensor(t.detach()), routing)
    with mode:
        telemetry = Telemetry(Config(num_experts=12, layers=1), torch.device("cpu"))
        one = torch.ones(())
        telemetry.record(1, one, one, one, 0.1, [fake])
    (held,) = telemetry.held
    assert held.values_V.shape == (3 + len(OF_RANKS) + 4 + 3 * 12,)
    assert [x.shape for x in held.slow] == [(1,)] * 9
