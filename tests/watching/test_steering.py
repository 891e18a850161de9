"""A bias that is steered evens the load, in every family that carries one; nothing else moves it.

Shapes: N tokens, E experts.
"""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers", reason="transformers is not installed: pip install 'moescope[watch-demo]'")

from moe_core.nn.gating import NoisyTopKGate
from moe_core.nn.strategies import Step, after_update, route
from moe_core.schema import Knobs
from moe_core.watching.readers import find_taps
from moe_core.watching.routers import Groups, Router, best_of, choose, find_routers
from moe_core.watching.steering import Steering, evening_bias, towards_even
from tests.watching import families
from tests.watching.test_routers import build as build_skewed
from tests.watching.test_routers import read
from tests.watching.test_taps import FAMILIES

# Families that carry a bias, as the test below sees them.
BIASED = [
    "afmoe", "axk1", "axk2", "bailing_hybrid", "beam", "deepseek_v3", "deepseek_v32", "deepseek_v4", "dots1", "dots3_note",
    "ernie4_5_moe", "exaone_moe", "glm4_moe", "glm4_moe_lite", "glm4v_moe", "glm_moe_dsa", "hy_v3", "hy_v4", "inkling",
    "inkling2", "kimi_linear", "kolibri1", "laguna", "lfm2_moe", "longcat_flash", "minimax_m2", "minimax_m3_vl", "muse_spark",
    "nemotron_h", "solar_open", "step3p7", "zaya",
]  # fmt: skip


def max_violation(counts_E: Tensor) -> float:
    """(largest - mean) / mean."""
    counts_E = counts_E.double()
    return ((counts_E.max() - counts_E.mean()) / counts_E.mean()).item()


def many() -> Tensor:
    """A batch of 4 sequences of 32 tokens."""
    return torch.randint(3, 60, (4, 32), generator=torch.Generator().manual_seed(5))


def measure(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Counts (E + 1,) and logits of a forward, by tap."""
    with torch.no_grad():
        found = read(model, many())
    counts = {
        name: torch.bincount(ids.flatten(), minlength=tap.experts + 1) for name, (tap, _, _, ids) in found.items()
    }
    return counts, {name: logits for name, (_, _, logits, _) in found.items()}


def worst(counts: dict[str, Tensor], names: list[str]) -> float:
    return float(np.mean([max_violation(counts[name][:-1]) for name in names]))


@pytest.mark.parametrize("family", FAMILIES)
def test_steering_evens_the_load(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 updates by the choice that the bias changes, then a forward of the model, which must be as even."""
    if family == "longcat_flash":
        monkeypatch.setitem(families.OWN, family, {"num_layers": 2, "zero_expert_num": 4})
    model = build_skewed(family, monkeypatch)
    taps = find_taps(model)
    routers = find_routers(model, taps)
    if family not in BIASED:
        with pytest.raises(ValueError, match="has none"):
            Steering(model, taps, routers, "loss-free")
        return
    names = [tap.name for tap in taps if routers.get(tap.name)]
    for router in routers.values():  # all tokens want the same experts
        router.bias[:8] = torch.linspace(-0.2, 0.2, 8)
    start = [routers[name].bias.clone() for name in names]
    before, logits = measure(model)
    for kind in ("loss-free", "quantile"):
        for name, bias_E in zip(names, start, strict=True):
            routers[name].bias.copy_(bias_E)
        if (family, kind) == ("zaya", "quantile"):  # what skips the experts has no share to get
            with pytest.raises(ValueError, match="take 'loss-free'"):
                Steering(model, taps, routers, kind)
            continue
        steering = Steering(model, taps, routers, kind, speed=0.03)
        counts = before
        for _ in range(20):
            steering.update(counts, logits)
            counts = {name: count(routers[name], logits[name], before[name]) for name in names}
        assert worst(counts, names) < 0.6 * worst(before, names), kind
        if kind == "loss-free":  # the experts of the first layer, whose input no other bias changes
            assert torch.equal(measure(model)[0][names[0]], counts[names[0]])
        if family == "zaya":
            assert routers[names[0]].bias[-1] == start[0][-1]


def count(router: Router, logits_NE: Tensor, before_E1: Tensor) -> Tensor:
    """(E + 1,) selections, as many of each token as before."""
    ids_NK = choose(router, logits_NE, int(before_E1.sum()) // len(logits_NE))
    return torch.bincount(ids_NK.flatten(), minlength=len(before_E1))


def skewed(skew_E: Tensor):
    """A stream of sigmoid scores (4096, E) of fresh tokens, whose experts' logits differ by skew_E."""
    random = torch.Generator().manual_seed(0)
    while True:
        yield (torch.randn(4096, len(skew_E), generator=random) + skew_E).sigmoid()


def violation(scores_NE: Tensor, bias_E: Tensor, k: int, groups: Groups | None = None) -> float:
    ids_NK = best_of(scores_NE + bias_E, k, groups)
    return max_violation(torch.bincount(ids_NK.flatten(), minlength=len(bias_E)))


@pytest.mark.parametrize(("E", "k"), [(16, 2), (64, 8), (256, 8)])
def test_one_quantile_update_evens_fresh_tokens(E: int, k: int) -> None:
    stream, bias_E = skewed(torch.linspace(-1.5, 1.5, E)), torch.zeros(E)
    assert violation(next(stream), bias_E, k) > 1.5
    bias_E = evening_bias(next(stream), bias_E, k)
    assert violation(next(stream), bias_E, k) < 0.5


@pytest.mark.parametrize(("E", "k", "groups"), [
    (64, 8, Groups(8, 4, 2, -math.inf)),
    (256, 8, Groups(8, 4, 2, -math.inf)), (160, 6, Groups(8, 3, 1, -math.inf)),
])  # fmt: skip
def test_with_groups_a_few_updates_even_fresh_tokens(E: int, k: int, groups: Groups) -> None:
    skew_E = 1.5 * torch.randn(E, generator=torch.Generator().manual_seed(1))
    stream, bias_E, unaware_E = skewed(skew_E), torch.zeros(E), torch.zeros(E)
    for _ in range(6):
        bias_E = evening_bias(next(stream), bias_E, k, groups)
        unaware_E = evening_bias(next(stream), unaware_E, k)
    after = np.mean([violation(next(stream), bias_E, k, groups) for _ in range(4)])
    unaware = np.mean([violation(next(stream), unaware_E, k, groups) for _ in range(4)])
    assert after < 0.5
    assert after < 0.6 * unaware


@pytest.mark.parametrize("strategy", ["loss-free", "quantile"])
@pytest.mark.parametrize(("N", "E", "k"), [(65, 8, 2), (7, 5, 4), (1, 4, 2), (16, 4, 4)])
def test_a_bias_moves_as_that_of_our_own_runs(strategy: str, N: int, E: int, k: int) -> None:
    torch.manual_seed(N)
    gate = NoisyTopKGate(E, E, k)
    gate.w_gate.data.copy_(torch.eye(E))
    gate.bias_E.normal_(0, 0.2)
    bias_E, x_NE = gate.bias_E.clone(), torch.randn(N, E)
    routing = route(gate, x_NE, k, strategy)
    after_update(Step(gate, routing, Knobs(strategy=strategy, k=k, bias_speed=0.01), N))
    if strategy == "quantile":
        moved_E = evening_bias(x_NE.sigmoid(), bias_E, k)
    else:
        moved_E = bias_E + towards_even(routing.counts_E, 0.01)
    torch.testing.assert_close(moved_E, gate.bias_E, atol=1e-6, rtol=0)


def steered(kind: str = "loss-free", speed: float = 1e-3) -> tuple[nn.Module, Router, Steering]:
    model = families.build("minimax_m2")
    taps = find_taps(model)
    routers = find_routers(model, taps)
    steering = Steering(model, taps, routers, kind, speed)
    return model, routers[taps[0].name], steering


def test_only_update_moves_a_bias() -> None:
    model, _, steering = steered("quantile")
    for training in (True, False):
        model.train(training)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        counts, logits = measure(model)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    steering.update({}, {})
    assert torch.equal(model.state_dict()["model.layers.0.mlp.e_score_correction_bias"], torch.zeros(8))
    steering.update(counts, logits)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"model.layers.{n}.mlp.e_score_correction_bias" for n in range(3)}


def test_counts_of_no_token_move_nothing() -> None:
    _, router, steering = steered()
    steering.update({tap.name: torch.zeros(9, dtype=torch.int64) for tap in steering.taps})
    assert (router.bias == 0).all()


def test_a_bias_of_half_precision_moves_by_less_than_its_rounding() -> None:
    model, router, steering = steered()
    model.bfloat16()
    router.bias.fill_(0.75)
    counts_E1 = torch.tensor([9, 0, 0, 0, 0, 0, 0, 0, 0])  # the last is of places without an expert
    for n in range(1, 11):
        steering.update({tap.name: counts_E1 for tap in steering.taps})
        assert router.bias.dtype == torch.bfloat16
        wanted_E = torch.tensor([0.75 - 1e-3 * n] + [0.75 + 1e-3 * n] * 7).bfloat16()
        assert torch.equal(router.bias, wanted_E)
    assert router.bias[0] != 0.75
    router.bias.fill_(-2)  # a checkpoint is loaded
    steering.update({tap.name: counts_E1 for tap in steering.taps})
    assert torch.equal(router.bias, torch.tensor([-2.001] + [-1.999] * 7).bfloat16())
    assert steering.exact[steering.taps[0].name][1] == pytest.approx(-1.999)


@pytest.mark.parametrize(("kind", "speed", "said"), [
    ("sign", 1e-3, "kind must be one of loss-free, quantile, got 'sign'"), ("loss-free", 0, "speed must be above 0, got 0"),
    ("loss-free", math.nan, "speed must be above 0, got nan"),
])  # fmt: skip
def test_what_cannot_be_is_refused(kind: str, speed: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        steered(kind, speed)
