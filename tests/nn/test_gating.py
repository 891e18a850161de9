"""The gate and its losses against a float64 definition, and at their limits."""

import math

import pytest
import torch

from moe_core.nn.balance import cv_squared, importance_loss, load_loss
from moe_core.nn.gating import NoisyTopKGate, Selection, dense_gates, selection_chance_TE, smooth_load
from moe_core.nn.layer import MoELayer


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def random_gate(k=2, num_experts=6):
    gate = NoisyTopKGate(5, num_experts, k)
    torch.nn.init.normal_(gate.w_gate)
    torch.nn.init.normal_(gate.w_noise)
    return gate


def defined_load(clean, noisy, std, k):
    """Appendix A, component by component."""
    total = []
    for i in range(clean.shape[1]):
        others = torch.cat([noisy[:, :i], noisy[:, i + 1 :]], 1)
        kth = others.sort(1, descending=True).values[:, k - 1]
        z = (clean[:, i] - kth) / std[:, i]
        total.append((0.5 * (1 + torch.erf(z / math.sqrt(2)))).sum())
    return torch.stack(total)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_smooth_load_and_its_gradients_agree_with_the_definition(k):
    clean, noisy = torch.randn(2, 20, 6, dtype=torch.float64).unbind()
    inputs = [clean, clean + noisy, torch.rand(20, 6, dtype=torch.float64) + 0.1]
    inputs = [t.detach().requires_grad_() for t in inputs]
    ours, reference = smooth_load(*inputs, k), defined_load(*inputs, k)
    torch.testing.assert_close(ours, reference)
    for a, b in zip(
        torch.autograd.grad(cv_squared(ours), inputs), torch.autograd.grad(cv_squared(reference), inputs), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_the_whole_gate_agrees_with_the_definition():
    gate = random_gate()
    x = torch.randn(30, 5)
    torch.manual_seed(1)
    routing = gate(x, noise=0.7)
    torch.manual_seed(1)
    draws = torch.randn(30, 6).double()
    w_gate, w_noise = (p.detach().double().requires_grad_() for p in (gate.w_gate, gate.w_noise))
    clean = x.double() @ w_gate
    std = 0.7 * (torch.nn.functional.softplus(x.double() @ w_noise) + 1e-2)
    noisy = clean + draws * std
    gates = noisy.masked_fill(noisy < noisy.topk(2).values[:, -1:], -math.inf).softmax(1)
    torch.testing.assert_close(routing.gates_TE.double(), gates, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(routing.importance_E.double(), gates.sum(0), atol=1e-5, rtol=1e-4)
    assert routing.counts_E.tolist() == (gates > 0).sum(0).tolist()
    ours = importance_loss(routing.importance_E) + load_loss(routing.load_E)
    load, importance = defined_load(clean, noisy, std, 2), gates.sum(0)
    reference = sum(v.var(correction=0) / v.mean() ** 2 for v in (load, importance))
    torch.testing.assert_close(ours.double(), reference, atol=1e-5, rtol=1e-4)
    for a, b in zip(
        torch.autograd.grad(ours, [gate.w_gate, gate.w_noise]),
        torch.autograd.grad(reference, [w_gate, w_noise]),
        strict=True,
    ):
        torch.testing.assert_close(a.double(), b, atol=1e-4, rtol=1e-3)


def selection_by_autograd(clean, noisy, std, k, weigh, smooth):
    """Selection as a graph of torch's own."""
    top, order = noisy.topk(min(k + 1, noisy.shape[1]), dim=1)
    experts = order[:, :k]
    weights = top[:, :k].softmax(1) if weigh == "kept" else noisy.softmax(1).gather(1, experts)
    counts = torch.zeros(noisy.shape[1]).index_add(0, experts.flatten(), torch.ones(experts.numel()))
    load = smooth_load(clean, noisy, std, k) if smooth else counts.to(noisy.dtype)
    return weights, experts, dense_gates(weights, experts, noisy.shape[1]).sum(0), load, counts.long()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("weigh", ["kept", "all"])
@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize(
    ("tokens", "num_experts", "k", "off"),
    [(200, 16, 2, 0), (1, 6, 2, 0), (30, 6, 1, 0), (30, 5, 4, 2), (30, 5, 5, 0), (7, 1, 1, 0), (90, 64, 7, 57), (0, 4, 2, 0)],
)  # fmt: skip
def test_a_selection_and_its_gradients_have_the_bits_of_a_graph(dtype, weigh, smooth, tokens, num_experts, k, off):
    """Whichever of its outputs are used: each alone, and all together. Between experts that are on, no logits tie."""
    k = min(k, num_experts - off)
    clean, draws = torch.randn(2, tokens, num_experts, dtype=dtype).unbind()
    std = torch.rand(tokens, num_experts, dtype=dtype) + 0.01
    clean[:, num_experts - off :] = -math.inf
    inputs = [t.requires_grad_() for t in (clean, clean + draws * std, std)]
    inputs[1] = inputs[1].detach().requires_grad_()
    ours = Selection.apply(*inputs, k, weigh, smooth)
    graph = selection_by_autograd(*inputs, k, weigh, smooth)
    for a, b in zip(ours, graph, strict=True):
        assert torch.equal(a, b)
        assert a.requires_grad == b.requires_grad
    grads = [torch.randn_like(t) if t.requires_grad else None for t in ours]
    used = [at for at, grad in enumerate(grads) if grad is not None]
    for chosen in (*([at] for at in used), used):
        by_ours, by_graph = (
            torch.autograd.grad(
                [outputs[at] for at in chosen], inputs, [grads[at] for at in chosen],
                retain_graph=True, allow_unused=True, materialize_grads=True,
            )
            for outputs in (ours, graph)
        )  # fmt: skip
        for a, b in zip(by_ours, by_graph, strict=True):
            assert torch.equal(a, b), chosen


def test_the_chance_is_the_share_of_redraws_that_select():
    clean, std = torch.randn(4, 6), torch.rand(4, 6) + 0.3
    noisy, draws = clean + torch.randn(4, 6) * std, 20_000
    chance = selection_chance_TE(clean, noisy, std, 2)
    for i in range(6):
        redrawn = noisy.repeat(draws, 1, 1)
        redrawn[:, :, i] = clean[:, i] + torch.randn(draws, 4) * std[:, i]
        share = (redrawn.topk(2).indices == i).any(-1).float().mean(0)
        assert ((share - chance[:, i]).abs() < 5 * (0.25 / draws) ** 0.5).all()


@pytest.mark.parametrize(("num_experts", "k"), [(1, 1), (4, 4), (6, 2)])
@pytest.mark.parametrize("noise", [0.0, 1e-30, 1e-3, 1.0, 4.0])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4, 1e30])
def test_everything_is_finite_at_the_limits(num_experts, k, noise, scale):
    gate = random_gate(k, num_experts)
    x = torch.randn(16, 5)
    with torch.no_grad():
        gate.w_gate *= scale
    routing = gate(x, noise=noise)
    loss = importance_loss(routing.importance_E) + load_loss(routing.load_E) + routing.weights_TK.square().sum()
    loss.backward()
    margin_T = routing.margin_T
    assert margin_T.isinf().all() if k == num_experts else margin_T.isfinite().all()
    assert all(t.isfinite().all() for t in routing if t is not None)
    assert all(p.grad is None or p.grad.isfinite().all() for p in gate.parameters())
    assert routing.counts_E.sum() == 16 * k
    assert ((routing.load_E >= 0) & (routing.load_E <= 16)).all()
    if k == num_experts:
        assert routing.load_E.tolist() == [16.0] * num_experts
    elif noise == 0:
        assert routing.load_E.tolist() == routing.counts_E.tolist()
        assert not routing.load_E.requires_grad
    elif scale == 1e30:  # far beyond the noise
        assert routing.load_E.tolist() == routing.counts_E.tolist()


def test_an_even_tie_with_tiny_noise_is_no_certainty_for_all():
    torch.testing.assert_close(
        NoisyTopKGate(5, 6, 2)(torch.randn(4000, 5), noise=1e-30).load_E.sum().item(), 8000.0, rtol=0.05, atol=0
    )


def test_cv_squared_has_the_population_variance():
    assert cv_squared(torch.tensor([8.0, 0, 0, 0])).item() == pytest.approx(3)
    assert (
        cv_squared(torch.ones(4)).item() == cv_squared(torch.ones(1)).item() == cv_squared(torch.zeros(4)).item() == 0
    )


def test_noise_is_for_training_unless_asked_for():
    gate, x = random_gate().eval(), torch.randn(8, 5)
    assert torch.equal(gate(x).noisy_logits_TE, gate(x).clean_logits_TE)
    assert not gate(x).noise_std_TE.any()
    assert not torch.equal(gate(x, noisy=True).noisy_logits_TE, gate(x).clean_logits_TE)


@pytest.mark.parametrize("k", [0, 7])
def test_a_k_out_of_range_is_refused(k):
    with pytest.raises(ValueError, match=f"k must be between 1 and num_experts=6, got {k}"):
        random_gate()(torch.randn(3, 5), k=k)


def cv_after_training(loss, steps=150):
    """CV(counts) of a gate that favoured one expert, after training on this loss alone."""
    layer, x = MoELayer(8, 8, 8, 2), torch.randn(256, 8)
    x[:, 0] = 1.0
    with torch.no_grad():
        layer.gate.w_gate[0, 0] = 3.0
    optimizer = torch.optim.Adam(layer.gate.parameters(), lr=0.03)
    for _ in range(steps):
        optimizer.zero_grad()
        _, routing = layer(x)
        (loss(routing) + 0 * routing.importance_E.sum()).backward()
        optimizer.step()
    return routing.counts_E.double().var(correction=0).sqrt().item() / routing.counts_E.double().mean().item()


def test_each_loss_alone_evens_a_gate_that_favours_one_expert():
    assert cv_after_training(lambda routing: routing.importance_E.sum() * 0) > 0.8
    assert cv_after_training(lambda routing: importance_loss(routing.importance_E)) < 0.4
    assert cv_after_training(lambda routing: load_loss(routing.load_E)) < 0.4


def test_logits_of_many_rows_and_few_experts_agree_with_float64(monkeypatch):
    """From a size on W is taken column by column."""
    monkeypatch.setattr("moe_core.nn.gating.LARGE", 40)
    gate, x = NoisyTopKGate(5, 4, 2, zero_init=False), torch.randn(8, 5, requires_grad=True)
    wide = [t.detach().double().requires_grad_() for t in (x, gate.w_gate)]
    grad = torch.randn(8, 4)
    ours = torch.autograd.grad(gate.clean_logits(x), (x, gate.w_gate), grad)
    for a, b in zip(ours, torch.autograd.grad(wide[0] @ wide[1], wide, grad.double()), strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-6, rtol=1e-5)
