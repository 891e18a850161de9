"""The dispatch against plain autograd in float64, both kinds of products."""

import pytest
import torch

from moe_core.nn.experts import Grouped, Mixture, OneByOne, mixture, reference_mixture
from moe_core.nn.layer import MoELayer


def batch(tokens, k, num_experts, dtype=torch.float32):
    torch.manual_seed(0)
    experts_TK = torch.rand(tokens, num_experts).topk(k).indices
    shapes = ((tokens, 8), (tokens, k), (num_experts, 8, 16), (num_experts, 8, 16))
    return experts_TK, [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("tokens", "k", "num_experts"), [(40, 2, 6), (3, 1, 8), (10, 4, 4), (7, 1, 1)])
def test_output_and_gradients_agree_with_float64(grouped, tokens, k, num_experts):
    experts, (x, weights, w1, w2) = batch(tokens, k, num_experts)
    grad = torch.randn(tokens, 8)
    counts = experts.flatten().bincount(minlength=num_experts)
    y = Mixture.apply(x, weights, experts, counts, w1, w2, grouped)
    wide = [t.detach().double().requires_grad_() for t in (x, weights, w1, w2)]
    reference = reference_mixture(wide[0], wide[1], experts, wide[2], wide[3])
    torch.testing.assert_close(y.double(), reference, atol=1e-4, rtol=1e-4)
    ours = torch.autograd.grad(y, (x, weights, w1, w2), grad)
    for a, b in zip(ours, torch.autograd.grad(reference, wide, grad.double()), strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("grouped", [False, True])
def test_an_expert_that_nothing_selected_is_not_evaluated(grouped):
    experts, (x, weights, w1, w2) = batch(10, 2, 4)
    with torch.no_grad():
        w1[3:], w2[3:] = torch.nan, torch.nan
    experts = experts % 3
    y = Mixture.apply(x, weights, experts, experts.flatten().bincount(minlength=4), w1, w2, grouped)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    assert not w1.grad[3].any()
    assert not w2.grad[3].any()


def test_gradients_accumulate_and_a_graph_may_be_used_twice():
    layer, x = MoELayer(8, 16, 4, 2).eval(), torch.randn(6, 8)
    y = layer(layer(x)[0])[0].sum()
    y.backward(retain_graph=True)
    once = layer.w1.grad.clone()
    y.backward()
    torch.testing.assert_close(layer.w1.grad, 2 * once)


def test_autocast_keeps_the_statistics_in_float32():
    layer, x = MoELayer(8, 16, 4, 2), torch.randn(2, 3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y, routing = layer(x)
    assert y.dtype == torch.bfloat16
    assert y.shape == x.shape
    assert {t.dtype for t in routing} == {torch.float32, torch.int64}
    y.float().sum().backward()
    assert layer.w1.grad.dtype == torch.float32


@pytest.mark.parametrize(("tokens", "used"), [(4, Grouped), (2**16, OneByOne)])
def test_products_are_chosen_by_size(tokens, used, monkeypatch):
    calls, forward = [], used.forward
    monkeypatch.setattr(used, "forward", lambda *args: calls.append(used) or forward(*args))
    experts, (x, weights, w1, w2) = batch(tokens, 2, 4)
    mixture(x, weights, experts, experts.flatten().bincount(minlength=4), w1, w2)
    assert calls == [used]
