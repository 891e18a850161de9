"""A router's logits, scores, bias and groups repeat its choice exactly, in every transformers family that taps cover."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers", reason="transformers is not installed: pip install 'moescope[watch-demo]'")

from moe_core.watching import routers
from moe_core.watching.readers import find_taps
from moe_core.watching.routers import (
    SCORES,
    Groups,
    Logits,
    Router,
    best_of,
    choose,
    find_routers,
    limited,
    score_statistics,
)
from moe_core.watching.taps import Tap
from tests.watching import families
from tests.watching.test_taps import FAMILIES, batch, loss_of

# Families whose choice is not that of the logits alone, each with the reason.
NOT_REPEATED = {
    "phimoe": "it samples in training; in evaluation its choice is repeated too",
}


def build(family: str, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A model whose routers tell the tokens apart and whose selection biases are not zero, so that both change what is chosen."""
    if family == "deepseek_v4":  # the first three take ids from a table
        monkeypatch.setitem(families.OWN, family, {"num_hidden_layers": 4})
    if family in ("deepseek_v2", "unlimited_ocr"):
        monkeypatch.setitem(families.OWN, family, {"topk_method": "group_limited_greedy"})
    model = families.build(family)
    torch.manual_seed(2)
    for router in find_routers(model, find_taps(model)).values():
        for p in router.module.parameters():
            if p.dim() == 2 and p.requires_grad:
                p.data.normal_(0, 1.7 * p.shape[1] ** -0.5)
        if router.bias is not None:
            router.bias.normal_(-0.5, 0.2)  # below 0, which A.X-K2 gives to experts of other groups
    return model


def read(model: nn.Module, ids: Tensor) -> dict[str, tuple[Tap, Router, Tensor, Tensor]]:
    """Of each tap with a router: both, the logits, and the ids that its experts were called with."""
    taps = find_taps(model)
    routers = find_routers(model, taps)
    logits, chosen, hooks = {}, {}, []

    def hook(tap: Tap):
        def hear(module, args, kwargs, output=None):
            chosen_NK, weights_NK = tap.read(module, args, kwargs, output)
            # ZAYA writes expert 0 with weight 0 for its class that skips the experts, which comes last.
            chosen[tap.name] = torch.where(weights_NK == 0, tap.experts, chosen_NK)

        return hear

    for tap in taps:
        early, late = tap.module.register_forward_pre_hook, tap.module.register_forward_hook
        hooks.append((early if tap.early else late)(hook(tap), with_kwargs=True))
    for name, router in routers.items():

        def keep(module, args, kwargs, output, name=name, router=router):
            logits[name] = router.read(module, args, kwargs, output)

        hooks.append(router.module.register_forward_hook(keep, with_kwargs=True))
    loss_of(model, ids)
    for one in hooks:
        one.remove()
    return {
        tap.name: (tap, routers[tap.name], logits[tap.name], chosen[tap.name]) for tap in taps if tap.name in routers
    }


def same(one_NK: Tensor, other_NK: Tensor) -> Tensor:
    """Whether both hold the same experts, in any order."""
    return (one_NK.sort(-1).values == other_NK.sort(-1).values).all(-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_choice_is_repeated_from_the_logits(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(family, monkeypatch)
    if family in NOT_REPEATED:
        model.eval()
    found = read(model, batch())
    without = [tap.name for tap in find_taps(model) if tap.name not in found]
    assert without == ([f"model.layers.{n}.mlp.experts" for n in range(3)] if family == "deepseek_v4" else [])
    for tap, router, logits_NE, ids_NK in found.values():
        assert logits_NE.shape[0] == batch().numel()
        assert not logits_NE.requires_grad
        assert logits_NE.std(-1).min() > 0
        k = ids_NK.shape[1]
        assert same(choose(router, logits_NE, k), ids_NK).all(), tap.name
        if router.bias is not None:  # else the bias would not be tested
            assert router.bias.shape == logits_NE.shape[1:]
            assert not same(choose(_without_bias(router), logits_NE, k), ids_NK).all(), tap.name


def _without_bias(router: Router) -> Router:
    return Router(router.name, router.module, router.read, router.scores, router.groups, None)


def test_a_model_that_limits_nothing_to_groups_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    model = families.build("deepseek_v2")  # greedy unless told otherwise
    found = read(model, batch())
    assert found
    for _, router, logits_NE, ids_NK in found.values():
        assert router.groups is None
        assert same(choose(router, logits_NE, 2), ids_NK).all()


def test_where_two_routers_stand_beside_a_tap_none_is_taken() -> None:
    model = families.build("mixtral")
    block = model.model.layers[1].mlp
    block.more = type(block.gate)(model.config)
    assert set(find_routers(model, find_taps(model))) == {f"model.layers.{n}.mlp.experts" for n in (0, 2)}


def test_the_bias_is_that_which_the_model_holds_now() -> None:
    model = families.build("deepseek_v3")
    router = next(iter(find_routers(model, find_taps(model)).values()))
    model.double()  # a buffer is replaced
    assert router.bias is not None
    router.bias.fill_(3)
    assert (router.module.e_score_correction_bias == 3).all()


@pytest.mark.parametrize("given", ["logits", "probabilities"])
def test_probabilities_are_taken_for_what_they_are(given: str) -> None:
    logits_NE = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    read_logits = Logits(1)
    output = (None, logits_NE if given == "logits" else logits_NE.softmax(-1))
    said_NE = read_logits(nn.Identity(), (), {}, output)
    torch.testing.assert_close(said_NE, logits_NE if given == "logits" else logits_NE.log_softmax(-1))
    assert read_logits.probabilities == (given == "probabilities")


def defined(logits_NE, ids_NK, scores, bias_E, groups) -> dict[str, list[float]]:
    """The statistics of one layer token by token in float64, as schema.STATS defines them: the lowest and the highest
    that ties allow."""
    x = logits_NE.double().numpy()
    E, K = x.shape[1], ids_NK.shape[1]
    e = np.exp(x - x.max(1, keepdims=True))
    s = {"softmax": e / e.sum(1, keepdims=True), "sigmoid": 1 / (1 + np.exp(-x)), "logits": x}[scores]
    weights = 1 / (1 + np.exp(-x)) if scores == "logits" else s
    by = x if bias_E is None and groups is None else s + (0 if bias_E is None else bias_E.double().numpy())
    margin, share, same_share = [], [], ([], [])
    for n, ids in enumerate(ids_NK.tolist()):

        def group_scores(values):
            parts = np.split(values, groups.many)
            return [sum(sorted(part)[-groups.best :]) for part in parts]

        def allowed(values):
            if groups is None:
                return list(range(E)), math.inf
            sums = group_scores(values)
            order = sorted(range(groups.many), key=lambda g: -sums[g])
            gap = (sums[order[groups.kept - 1]] - sums[order[groups.kept]]) / groups.best
            return [
                i for g in order[: groups.kept] for i in range(g * E // groups.many, (g + 1) * E // groups.many)
            ], gap

        inside, gap = allowed(by[n])
        others = [by[n, i] for i in inside if i not in ids]
        margin.append(min(gap, by[n, ids].min() - max(others, default=-math.inf)))
        share.append(weights[n, ids].sum() / weights[n].sum())
        for shares, chosen_first in zip(same_share, (False, True), strict=True):  # at a tie
            ranked = sorted(allowed(s[n])[0], key=lambda i: (-s[n, i], (i in ids) != chosen_first))
            both = len(set(ids) & set(ranked[:K]))
            shares.append(both / (2 * K - both))
    return {
        "router_margin_L": [math.nan if K == E else np.mean(margin)] * 2,
        "router_margin_p10_L": [math.nan if K == E else np.quantile(margin, 0.1)] * 2,
        "confidence_L": [np.mean(share)] * 2,
        "logit_spread_L": [x.std(1).mean()] * 2,
        "bias_effect_L": [math.nan if bias_E is None else np.mean(shares) for shares in same_share],
    }


CASES = {
    "plain": {},
    "k = 1": {"k": 1},
    "k = E": {"k": 8},
    "one expert": {"E": 1, "k": 1},
    "one token": {"N": 1},
    "sampled": {"sampled": True},
    "ties": {"ties": True},
    "ties with a bias": {"ties": True, "scores": "sigmoid", "bias": True},
    "bias": {"scores": "sigmoid", "bias": True},
    "softmax with a bias": {"scores": "softmax", "bias": True, "k": 3},
    "logits with a bias": {"scores": "logits", "bias": True},
    "bias, k = E": {"scores": "sigmoid", "bias": True, "k": 8},
    "sigmoid without a bias": {"scores": "sigmoid"},
    "groups": {"scores": "sigmoid", "bias": True, "groups": Groups(4, 2, 2, -math.inf), "k": 3},
    "groups by their largest": {"scores": "softmax", "groups": Groups(4, 2, 1, -math.inf)},
    "half precision": {"dtype": torch.bfloat16},
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_statistics_are_those_of_their_definition(case: str, masked: bool) -> None:
    own = CASES[case]
    N, E, k, scores, groups = (
        own.get("N", 37),
        own.get("E", 8),
        own.get("k", 2),
        own.get("scores", "softmax"),
        own.get("groups"),
    )
    random = torch.Generator().manual_seed(3)
    logits_LNE = torch.randn(3, N, E, generator=random, dtype=torch.float64).to(own.get("dtype", torch.float32)) * 2
    if own.get("ties"):
        logits_LNE = logits_LNE.round()
    bias_LE = torch.randn(3, E, generator=random) * 0.2 if own.get("bias") else None
    by_LNE = SCORES[scores](logits_LNE.float()) + (0 if bias_LE is None else bias_LE[:, None])
    ids_LNK = best_of(by_LNE, k, groups)
    if own.get("sampled"):
        ids_LNK = torch.rand(3, N, E, generator=random).topk(k).indices
    kept_N = (torch.arange(N) % 3 != 1) if masked else None
    kept = slice(None) if kept_N is None else kept_N
    measured = score_statistics(logits_LNE, ids_LNK, scores, bias_LE, groups, kept_N)
    for layer in range(3):
        bias_E = None if bias_LE is None else bias_LE[layer]
        for name, (low, high) in defined(logits_LNE[layer, kept], ids_LNK[layer, kept], scores, bias_E, groups).items():
            value = getattr(measured, name)[layer].item()
            middle, half = (low + high) / 2, (high - low) / 2
            assert value == pytest.approx(middle, abs=half + 2e-6 + 2e-5 * abs(middle), nan_ok=True), name


def test_no_token_that_counts_gives_no_number() -> None:
    logits_LNE = torch.randn(1, 9, 8, generator=torch.Generator().manual_seed(0))
    measured = score_statistics(logits_LNE, logits_LNE.topk(2).indices, kept_N=torch.zeros(9, dtype=torch.bool))
    assert all(value.isnan().all() for value in measured)


@pytest.mark.parametrize(("best", "bias", "times"), [(2, False, 1), (1, False, 1), (2, True, 2)])
def test_groups_are_found_once_for_each_of_the_scores(
    monkeypatch: pytest.MonkeyPatch, best: int, bias: bool, times: int
) -> None:
    asked = []
    monkeypatch.setattr(routers, "limited", lambda *given: asked.append(given) or limited(*given))
    groups, random = Groups(4, 2, best, -math.inf), torch.Generator().manual_seed(0)
    logits_LNE, bias_LE = torch.randn(2, 9, 16, generator=random), torch.randn(2, 16, generator=random)
    ids_LNK = limited(logits_LNE.sigmoid(), groups)[0].topk(3).indices
    score_statistics(logits_LNE, ids_LNK, "sigmoid", bias_LE if bias else None, groups)
    assert len(asked) == times  # with a bias once more, without it
