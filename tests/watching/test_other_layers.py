"""Layers of other projects than transformers, written here by their interface: a gate within the layer's forward, as in davidmrau's
mixture-of-experts, and a router that the layer calls, as in torchtitan."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from moe_core.watching.readers import find_taps
from moe_core.watching.taps import Taps
from tests.watching.sums import counts_of, importance_of

D, E, K = 8, 6, 2


class GateWithin(nn.Module):
    """noisy_top_k_gating(x, train) gives gates (N, E) and a load; forward gives the output and a loss."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.num_experts, self.k, self.fails = E, K, fails
        self.w_gate = nn.Parameter(torch.randn(D, E, generator=torch.Generator().manual_seed(0)))
        self.experts = nn.ModuleList(nn.Linear(D, D) for _ in range(E))

    def noisy_top_k_gating(self, x: Tensor, train: bool) -> tuple[Tensor, Tensor]:
        logits = x @ self.w_gate + (torch.randn(len(x), E) if train else 0.0)
        top, ids = logits.topk(self.k, dim=1)
        gates = torch.zeros_like(logits).scatter(1, ids, top.softmax(1))
        self.seen = gates.detach()
        return gates, (gates > 0).sum(0)

    def forward(self, x: Tensor, loss_coef: float = 1e-2) -> tuple[Tensor, Tensor]:
        gates, load = self.noisy_top_k_gating(x, self.training)
        if self.fails:
            raise ValueError("of the layer itself")
        y = torch.stack([gates[:, e, None] * expert(x) for e, expert in enumerate(self.experts)]).sum(0)
        return y, loss_coef * load.float().std()


class TokenChoiceTopKRouter(nn.Module):
    """Scores and ids of the k best by score + bias, and the counts."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.num_experts, self.top_k = nn.Linear(D, E, bias=False), E, K

    def forward(self, x: Tensor, expert_bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        scores = self.gate(x).sigmoid()
        ids = (scores if expert_bias is None else scores + expert_bias).topk(self.top_k, dim=1).indices
        return scores.gather(1, ids), ids, torch.bincount(ids.flatten(), minlength=E)


class RouterCalled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.router = TokenChoiceTopKRouter()
        self.register_buffer("expert_bias", torch.linspace(0.2, -0.2, E))
        self.experts = nn.ModuleList(nn.Linear(D, D) for _ in range(E))

    def forward(self, x: Tensor) -> Tensor:
        scores, ids, self.counts = self.router(x, self.expert_bias)
        outputs = torch.stack([expert(x) for expert in self.experts], 1)
        return (outputs.gather(1, ids[:, :, None].expand(-1, -1, D)) * scores[:, :, None]).sum(1)


def batch() -> Tensor:
    return torch.randn(20, D, generator=torch.Generator().manual_seed(1))


def test_a_gate_within_the_layer_is_heard_with_the_noise_that_it_drew() -> None:
    layer = GateWithin()
    model = nn.ModuleDict({"moe": layer})
    torch.manual_seed(3)
    plain = layer(batch())[0]
    taps = Taps(model, find_taps(model))
    assert [tap.name for tap in taps.taps] == ["moe"]
    torch.manual_seed(3)
    assert torch.equal(layer(batch())[0], plain)
    counts, importance = (layer.seen > 0).sum(0), layer.seen.sum(0)
    assert counts_of(taps)[0][:-1] == counts.tolist()
    torch.manual_seed(3)
    layer(batch())
    assert importance_of(taps)[0][:-1] == pytest.approx(importance.tolist(), rel=1e-6)
    layer.eval()(batch())
    assert counts_of(taps) == {}
    assert "noisy_top_k_gating" not in vars(layer)
    taps.close()
    layer.train()(batch())
    assert counts_of(taps) == {}
    assert not layer._forward_hooks
    assert not layer._forward_pre_hooks


def test_its_method_is_put_back_also_where_its_forward_fails() -> None:
    layer = GateWithin(fails=True)
    taps = Taps(layer, find_taps(nn.ModuleDict({"moe": layer})))
    with pytest.raises(ValueError, match="of the layer itself"):
        layer(batch())
    assert "noisy_top_k_gating" not in vars(layer)
    taps.close()
    assert pickle.loads(pickle.dumps(layer)).k == copy.deepcopy(layer).k == K


def test_a_router_that_its_layer_calls_is_heard_with_its_bias() -> None:
    layer = RouterCalled()
    model = nn.ModuleDict({"moe": layer})
    plain = layer(batch())
    taps = Taps(model, find_taps(model))
    assert [tap.name for tap in taps.taps] == ["moe.router"]
    assert torch.equal(layer(batch()), plain)
    assert counts_of(taps)[0][:-1] == layer.counts.tolist()
    layer(batch())
    assert sum(importance_of(taps)[0]) == pytest.approx(
        layer.router(batch(), layer.expert_bias)[0].sum().item(), rel=1e-6
    )
    taps.close()
