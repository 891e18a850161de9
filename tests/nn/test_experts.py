"""The dispatch against plain autograd in float64, both kinds of products."""

import pytest
import torch
from torch.backends import mkldnn

from moe_core.nn.experts import Fused, Grouped, Mixture, OneByOne, fused_pays, mixture, reference_mixture, windows
from moe_core.nn.layer import MoELayer


def batch(tokens, k, num_experts, dtype=torch.float32):
    torch.manual_seed(0)
    experts_TK = torch.rand(tokens, num_experts).topk(k).indices
    shapes = ((tokens, 8), (tokens, k), (num_experts, 8, 16), (num_experts, 8, 16))
    return experts_TK, [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def count(experts_TK, num_experts):
    return experts_TK.flatten().bincount(minlength=num_experts)[:num_experts]


def assert_agrees_with_float64(y, experts, x, weights, w1, w2):
    grad = torch.randn(y.shape)
    wide = [t.detach().double().requires_grad_() for t in (x, weights, w1, w2)]
    reference = reference_mixture(wide[0], wide[1], experts, wide[2], wide[3])
    torch.testing.assert_close(y.double(), reference, atol=1e-4, rtol=1e-4)
    ours = torch.autograd.grad(y, (x, weights, w1, w2), grad)
    for a, b in zip(ours, torch.autograd.grad(reference, wide, grad.double()), strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-4, rtol=1e-4)
    return y, ours


@pytest.mark.parametrize("products", [OneByOne, Fused, Grouped])
@pytest.mark.parametrize(
    ("tokens", "k", "num_experts"), [(40, 2, 6), (3, 1, 8), (10, 4, 4), (7, 1, 1), (1, 2, 5), (331, 3, 17)]
)
def test_output_and_gradients_agree_with_float64(products, tokens, k, num_experts):
    experts, tensors = batch(tokens, k, num_experts)
    y = Mixture.apply(*tensors[:2], experts, count(experts, num_experts), *tensors[2:], products, experts.numel())
    assert_agrees_with_float64(y, experts, *tensors)


def some_empty(experts_TK):
    """Every third place, and the whole of token 1."""
    empty_TK = torch.arange(experts_TK.numel()).view(experts_TK.shape) % 3 == 0
    empty_TK[1] = True
    return empty_TK


def as_expert_choice(experts_TK):
    """A place for each expert, of which each expert takes two tokens at random; token 0 gets none."""
    chosen_TE = torch.rand(experts_TK.shape).index_fill_(0, torch.tensor(0), -1).topk(2, dim=0).indices
    return torch.ones(experts_TK.shape, dtype=torch.bool).scatter(0, chosen_TE, False)


@pytest.mark.parametrize("products", [OneByOne, Fused, Grouped])
@pytest.mark.parametrize("host_knows", [False, True])
@pytest.mark.parametrize(
    ("k", "empty"),
    [
        (2, some_empty),
        (2, torch.zeros_like),  # none is empty
        (2, torch.ones_like),  # all are
        (2, lambda experts_TK: experts_TK != 3),  # one expert only
        (6, as_expert_choice),
    ],
)
def test_empty_places_count_for_nothing(products, host_knows, k, empty):
    experts, tensors = batch(40, k, 6)
    empty = empty(experts).bool()
    with torch.no_grad():
        tensors[1][empty] = torch.inf  # whatever stands there
    experts = experts.masked_fill(empty, 6)
    counts = count(experts, 6)
    filled = int(counts.sum()) if host_knows or products is not Grouped else None
    y = Mixture.apply(*tensors[:2], experts, counts, *tensors[2:], products, filled)
    y, (_, weights_grad, *_) = assert_agrees_with_float64(y, experts, *tensors)
    assert not y[(experts == 6).all(1)].any()
    assert not weights_grad[empty].any()


@pytest.mark.parametrize("k", [2, 6])
def test_empty_places_cost_no_products(k, monkeypatch):
    shapes, forward = [], Grouped.forward
    monkeypatch.setattr(Grouped, "forward", lambda x, *args: shapes.append(tuple(x.shape)) or forward(x, *args))
    experts, (x, weights, w1, w2) = batch(40, k, 6)
    experts[10:] = 6
    mixture(x, weights, experts, count(experts, 6), w1, w2, gaps=True)
    assert shapes == [(10 * k, 8)]


@pytest.mark.parametrize("products", [OneByOne, Fused, Grouped])
def test_an_expert_that_nothing_selected_is_not_evaluated(products):
    experts, (x, weights, w1, w2) = batch(10, 2, 4)
    with torch.no_grad():
        w1[3:], w2[3:] = torch.nan, torch.nan
    experts = experts % 3
    y = Mixture.apply(x, weights, experts, count(experts, 4), w1, w2, products, experts.numel())
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


def test_an_expanded_gradient_and_hooks_and_no_grad():
    experts, tensors = batch(10, 2, 4)
    tensors[2].register_hook(lambda grad: 2 * grad)
    y = mixture(*tensors[:2], experts, count(experts, 4), *tensors[2:])
    y.sum().backward()  # an expanded scalar
    wide = [t.detach().double().requires_grad_() for t in tensors]
    reference_mixture(*wide[:2], experts, *wide[2:]).sum().backward()
    for name, a, b, factor in zip(("x", "weights", "w1", "w2"), tensors, wide, (1, 1, 2, 1), strict=True):
        torch.testing.assert_close(a.grad.double(), factor * b.grad, atol=1e-4, rtol=1e-4, msg=name)
    with torch.no_grad():
        assert torch.equal(mixture(*tensors[:2], experts, count(experts, 4), *tensors[2:]), y)


@pytest.mark.parametrize("gaps", [False, True])
def test_autocast_agrees_with_float64(gaps):
    experts, tensors = batch(20, 2, 4)
    if gaps:
        experts[:5] = 4
    with torch.autocast("cpu", torch.bfloat16):
        y = mixture(*tensors[:2], experts, count(experts, 4), *tensors[2:], gaps)
    assert y.dtype == torch.bfloat16
    grads = torch.autograd.grad(y.float().sum(), tensors)
    wide = [t.detach().bfloat16().double().requires_grad_() for t in tensors]  # or a relu may fall the other way
    reference = reference_mixture(*wide[:2], experts, *wide[2:])
    assert (y - reference).norm() < 0.02 * reference.norm()
    for a, b in zip(grads, torch.autograd.grad(reference.sum(), wide), strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 0.02 * b.norm()


def test_autocast_keeps_the_statistics_in_float32():
    layer, x = MoELayer(8, 16, 4, 2), torch.randn(2, 3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y, routing = layer(x)
    assert y.dtype == torch.bfloat16
    assert y.shape == x.shape
    assert {t.dtype for t in routing if t is not None} == {torch.float32, torch.int64}
    y.float().sum().backward()
    assert layer.w1.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("tokens", "wide", "used"), [(4, 1, Grouped), (2**16, 1, OneByOne), (1024, 128, Fused), (1020, 128, OneByOne)]
)
def test_products_are_chosen_by_size(tokens, wide, used, monkeypatch):
    calls, forward = [], used.forward
    monkeypatch.setattr(used, "forward", lambda *args: calls.append(used) or forward(*args))
    experts, (x, weights, w1, w2) = batch(tokens, 2, 4)
    w1, w2 = (w.repeat(1, wide, wide // 4 or 1) for w in (w1, w2))
    mixture(x.repeat(1, wide), weights, experts, count(experts, 4), w1, w2)
    assert calls == [used]


def test_a_torch_without_onednn_multiplies_as_well(monkeypatch):
    experts, (x, weights, w1, w2) = batch(40, 2, 4)
    monkeypatch.setattr("moe_core.nn.experts.MANY", 1)
    monkeypatch.setattr("moe_core.nn.experts.WIDE", 1)
    monkeypatch.setattr("moe_core.nn.experts.SMALL", 0)
    assert fused_pays(x, 80, w1)
    assert not fused_pays(x.double(), 80, w1)
    y = mixture(x, weights, experts, count(experts, 4), w1, w2)
    monkeypatch.setattr(mkldnn, "is_available", lambda: False)
    assert not fused_pays(x, 80, w1)
    torch.testing.assert_close(mixture(x, weights, experts, count(experts, 4), w1, w2), y)


@pytest.mark.parametrize("rows", [[5, 0, 40, 33, 7], [3], [0, 0], [64, 64]])
def test_rows_go_to_onednn_in_numbers_that_it_has_seen(rows):
    seen = list(windows(rows))
    begins = [sum(rows[:e]) for e in range(len(rows))]
    assert [(own.start, own.stop) for _, own, _ in seen] == [(b, b + n) for b, n in zip(begins, rows, strict=True)]
    for window, own, inside in seen:
        size = window.stop - window.start
        assert 0 <= window.start <= window.stop <= sum(rows)
        assert size % 32 == 0 or size == sum(rows)
        assert range(window.start, window.stop)[inside] == range(own.start, own.stop)
