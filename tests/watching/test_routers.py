"""A router's logits, scores, bias and groups repeat its choice exactly, in every transformers family that taps cover."""

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers", reason="transformers is not installed: pip install 'moescope[watch-demo]'")

from moe_core.watching.routers import Router, choose, find_routers
from moe_core.watching.taps import Tap, find_taps
from tests.watching import families
from tests.watching.test_taps import FAMILIES, batch, loss_of

# Families whose choice is not that of the logits alone, each with the reason.
NOT_REPEATED = {
    "phimoe": "it samples in training; in evaluation its choice is repeated too",
}


def build(family: str, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A model whose routers tell the tokens apart and whose selection biases are not zero, so that both change what is chosen."""
    if family == "deepseek_v4":  # the first three take ids from a table
        monkeypatch.setitem(families.OWN, family, {"num_hidden_layers": 5})
    if family in ("deepseek_v2", "unlimited_ocr"):
        monkeypatch.setitem(families.OWN, family, {"topk_method": "group_limited_greedy"})
    model = families.build(family)
    torch.manual_seed(2)
    for router in find_routers(model, find_taps(model)).values():
        for p in router.module.parameters():
            if p.dim() == 2 and p.requires_grad:
                p.data.normal_(0, 1.7 * p.shape[1] ** -0.5)
        if router.bias is not None:
            router.bias.normal_(0, 0.2)
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
