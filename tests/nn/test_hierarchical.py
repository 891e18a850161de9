"""The gate of two levels against appendix B in float64, expert by expert, and at its limits."""

import math

import pytest
import torch
from torch.nn.functional import softplus

from moe_core.nn.balance import cv_squared
from moe_core.nn.hierarchical import HierarchicalGate, HierarchicalMoELayer
from moe_core.nn.strategies import Step, losses, route
from moe_core.schema import Knobs

T, D, G, B = 20, 5, 3, 4
E = G * B


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def layer_of(k=2, k_primary=2, groups=G, size=B, scale=1.0, d=D):
    layer = HierarchicalMoELayer(d, 8, groups * size, groups, k, k_primary)
    for p in (layer.gate.w_gate, layer.gate.w_noise, layer.gate.primary.w_gate, layer.gate.primary.w_noise):
        torch.nn.init.normal_(p, std=scale)
    return layer


def weights_of(gate):
    return [gate.primary.w_gate, gate.primary.w_noise, gate.w_gate, gate.w_noise]


def kept_softmax(row, k, weigh):
    kept = sorted(range(len(row)), key=lambda i: -row[i].item())[:k]
    total = sum(row[i].exp() for i in (kept if weigh == "kept" else range(len(row))))
    return [row[i].exp() / total if i in kept else row[i] * 0 for i in range(len(row))], kept


def chances(clean, noisy, std, k):
    """P of appendix A for each component of one row."""
    found = []
    for i in range(len(clean)):
        if k == len(clean):
            found.append(torch.ones((), dtype=torch.float64))
            continue
        kth = torch.stack([noisy[j] for j in range(len(clean)) if j != i]).sort(descending=True).values[k - 1]
        if std[i] > 0:
            found.append(0.5 * (1 + torch.erf((clean[i] - kth) / std[i] / math.sqrt(2))))
        else:
            found.append((clean[i] > kth).double())
    return found


def defined(x, weights, draws, k, k_primary, noise, noise_primary, weigh="kept"):
    """(gates (T, E), Importance_H, Load_H, primary importance, primary load), all by loops."""
    w, n, ws, ns = weights
    x = x.double()
    clean_p, std_p = x @ w, noise_primary * (softplus(x @ n) + 1e-2)
    clean_s, std_s = x @ ws, noise * (softplus(x @ ns) + 1e-2)
    noisy_p, noisy_s = clean_p + draws[0].double() * std_p, clean_s + draws[1].double() * std_s
    gates, primary, load_p = [], [], []
    load = [[0.0 for _ in range(B)] for _ in range(G)]
    chose = [0] * G
    for t in range(len(x)):
        top, groups = kept_softmax(noisy_p[t], k_primary, weigh)
        primary.append(torch.stack(top))
        load_p.append(torch.stack(chances(clean_p[t], noisy_p[t], std_p[t], k_primary)))
        row = []
        for g in range(G):
            part = slice(g * B, (g + 1) * B)
            inner, _ = kept_softmax(noisy_s[t, part], k, weigh)
            row += [top[g] * one for one in inner]
            if g in groups:
                chose[g] += 1
                for b, p in enumerate(chances(clean_s[t, part], noisy_s[t, part], std_s[t, part], k)):
                    load[g][b] = load[g][b] + p
        gates.append(torch.stack(row))
    gates, load_p = torch.stack(gates), sum(load_p)
    load_h = torch.stack([load_p[g] * load[g][b] / (chose[g] + 1e-10) for g in range(G) for b in range(B)])
    return gates, gates.sum(0), load_h, sum(primary), load_p


@pytest.mark.parametrize("weigh", ["kept", "all"])
@pytest.mark.parametrize(("k", "k_primary"), [(2, 2), (1, 1), (4, 3), (4, 1), (1, 3)])
@pytest.mark.parametrize(("noise", "noise_primary"), [(0.7, 1.3), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_gates_importance_load_and_gradients_agree_with_appendix_b(k, k_primary, noise, noise_primary, weigh):
    gate, x = layer_of(k, k_primary).gate, torch.randn(T, D)
    torch.manual_seed(1)
    routing = gate(x, noise=noise, noise_primary=noise_primary, weigh=weigh)
    torch.manual_seed(1)
    draws = [torch.randn(T, n) if scale else torch.zeros(T, n) for n, scale in ((G, noise_primary), (E, noise))]
    wide = [p.detach().double().requires_grad_() for p in weights_of(gate)]
    gates, importance, load, importance_p, load_p = defined(x, wide, draws, k, k_primary, noise, noise_primary, weigh)
    for ours, reference in (
        (routing.gates_TE, gates),
        (routing.importance_E, importance),
        (routing.load_E, load),
        (routing.primary.importance_E, importance_p),
        (routing.primary.load_E, load_p),
    ):
        torch.testing.assert_close(ours.double(), reference, atol=1e-5, rtol=1e-4)
    assert routing.counts_E.tolist() == (gates > 0).sum(0).tolist()
    assert routing.experts_TK.shape == (T, k * k_primary)
    assert (routing.weights_TK.diff(dim=1) <= 0).all()
    if weigh == "kept" or (k, k_primary) == (B, G):
        torch.testing.assert_close(routing.weights_TK.sum(1), torch.ones(T))

    mix = torch.randn(T, E)  # what the task would do with the gates
    ours = torch.autograd.grad((routing.gates_TE * mix).sum(), weights_of(gate), retain_graph=True, allow_unused=True)
    theirs = torch.autograd.grad((gates * mix).sum(), wide, retain_graph=True, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        a, b = (torch.zeros(1) if g is None else g for g in (a, b))
        torch.testing.assert_close(
            a.double().expand(b.shape) if a.numel() == 1 else a.double(), b.double(), atol=1e-4, rtol=1e-3
        )
    taught = [bool(ours[at].abs().max() > 1e-3) for at in (0, 2)]  # W_g of the primary level, and of the secondary
    assert taught == [weigh == "all" or k_primary > 1, weigh == "all" or k > 1]

    step = Step(gate, routing, Knobs(), T)
    found = losses(step)
    assert found.keys() == {"w_importance", "w_load", "w_importance_primary", "w_load_primary"}
    wanted = dict(zip(found, map(cv_squared, (importance, load, importance_p, load_p)), strict=True))
    for name, loss in found.items():
        torch.testing.assert_close(loss.double(), wanted[name], atol=1e-5, rtol=1e-4)
        if loss.requires_grad and wanted[name].requires_grad:
            ours = torch.autograd.grad(loss, weights_of(gate), retain_graph=True, allow_unused=True)
            theirs = torch.autograd.grad(wanted[name], wide, retain_graph=True, allow_unused=True)
            for a, b in zip(ours, theirs, strict=True):
                a, b = (torch.zeros(1) if g is None else g for g in (a, b))
                torch.testing.assert_close(a.double().sum(), b.double().sum(), atol=1e-4, rtol=1e-3)
                if a.numel() > 1 and b.numel() > 1:
                    torch.testing.assert_close(a.double(), b, atol=1e-4, rtol=1e-3)
        else:
            assert not loss.requires_grad


def test_the_load_loss_over_all_experts_teaches_the_primary_gate():
    gate = layer_of().gate
    losses(Step(gate, gate(torch.randn(T, D)), Knobs(w_importance=0), T))["w_load"].backward()
    assert gate.primary.w_gate.grad.abs().max() > 1e-4
    assert gate.w_gate.grad.abs().max() > 1e-4


def test_the_layer_is_the_sum_of_products_of_gates_and_experts():
    layer, x = layer_of(d=8), torch.randn(T, 8)
    y, routing = layer(x)
    gates = routing.gates_TE
    reference = sum(gates[:, e, None] * ((x @ layer.w1[e]).relu() @ layer.w2[e].T) for e in range(E))
    torch.testing.assert_close(y, reference, atol=1e-5, rtol=1e-4)


def test_the_joint_logits_are_the_product_of_both_softmaxes():
    gate, x = layer_of().eval().gate, torch.randn(T, D)
    routing = gate(x)
    first = (x @ gate.primary.w_gate).softmax(1)
    inner = (x @ gate.w_gate).view(T, G, B).softmax(2)
    torch.testing.assert_close(routing.clean_logits_TE.softmax(1), (first[:, :, None] * inner).flatten(1))
    torch.testing.assert_close(routing.clean_logits_TE.logsumexp(1), (x @ gate.primary.w_gate).logsumexp(1))


def test_experts_and_whole_groups_are_switched_off():
    layer, x = layer_of(d=8), torch.randn(200, 8)
    off = (1, 4, 5, 6, 7)  # one of the first group, all of the second
    y, routing = layer(x, off=off)
    assert routing.counts_E[list(off)].tolist() == [0] * 5
    assert routing.load_E[list(off)].tolist() == [0] * 5
    assert routing.on.tolist() == [0, 2, 3, 8, 9, 10, 11]
    assert routing.primary.on.tolist() == [0, 2]
    assert not routing.clean_logits_TE.softmax(1)[:, list(off)].any()
    step = Step(layer.gate, routing, Knobs(w_z=0.1), 200)
    (sum(losses(step).values()) + y.square().sum()).backward()
    for p in weights_of(layer.gate):
        assert p.grad.isfinite().all()
    assert not layer.gate.w_gate.grad[:, list(off)].any()
    assert not layer.gate.primary.w_gate.grad[:, 1].any()


@pytest.mark.parametrize("off", [(0, 1, 2), (0, 1, 2, 3, 4, 5, 6, 7)])
def test_a_group_that_cannot_give_k_experts_and_too_few_groups_are_refused(off):
    with pytest.raises(ValueError, match=r"must keep k=2 experts on|must keep experts that are on, got 1"):
        layer_of().gate(torch.randn(T, D), off=off)


@pytest.mark.parametrize(("groups", "size", "k", "k_primary"), [(2, 1, 1, 1), (2, 3, 3, 2), (4, 2, 1, 2)])
@pytest.mark.parametrize("noise", [0.0, 1e-30, 1.0])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4, 1e30])
def test_everything_is_finite_at_the_limits(groups, size, k, k_primary, noise, scale):
    gate, x = layer_of(k, k_primary, groups, size, scale).gate, torch.randn(16, D)
    routing = gate(x, noise=noise, noise_primary=noise)
    loss = sum(losses(Step(gate, routing, Knobs(k=k), 16)).values()) + routing.weights_TK.square().sum()
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in gate.parameters())
    assert routing.counts_E.sum() == 16 * k * k_primary


def test_a_group_that_nothing_chose_has_no_load_and_finite_gradients():
    gate = layer_of().gate
    with torch.no_grad():
        gate.primary.w_gate[:] = torch.tensor([100.0, 50.0, -100.0])
    x = torch.rand(T, D) + 0.5
    routing = gate(x)
    assert routing.primary.counts_E.tolist() == [T, T, 0]
    assert routing.load_E[2 * B :].tolist() == [0] * B
    losses(Step(gate, routing, Knobs(w_importance=0), T))["w_load"].backward()
    assert gate.primary.w_gate.grad.isfinite().all()


def test_capacity_holds_over_both_levels():
    gate = layer_of().gate
    routing = route(gate, torch.randn(T, D), 2, "paper", capacity_factor=0.5, noise_primary=0.0)
    assert routing.kept_E.max() <= math.ceil(0.5 * 4 * T / E)
    assert (routing.experts_TK == E).any()


@pytest.mark.parametrize("strategy", ["none", "paper", "switch"])
def test_the_strategies_that_work_with_groups(strategy):
    _, routing = layer_of(d=8)(torch.randn(T, 8), strategy=strategy)
    assert routing.counts_E.sum() == 4 * T


@pytest.mark.parametrize("strategy", ["loss-free", "expert-choice", "strictly-balanced", "even"])
def test_the_others_are_refused(strategy):
    with pytest.raises(ValueError, match=f"strategy {strategy} does not work with groups"):
        layer_of(d=8)(torch.randn(T, 8), strategy=strategy)


def test_groups_that_do_not_divide_the_experts_are_refused():
    with pytest.raises(ValueError, match="num_experts must be divisible by 2 or more groups, got 10 in 4"):
        HierarchicalGate(D, 10, 4, 1)


def test_both_levels_even_out_from_a_gate_that_favours_one_group():
    layer, x = HierarchicalMoELayer(8, 8, 16, 4, 1, 1), torch.randn(256, 8)
    x[:, 0] = 1.0
    with torch.no_grad():
        layer.gate.primary.w_gate[0, 0] = layer.gate.w_gate[0, ::4] = 3.0
    optimizer = torch.optim.Adam(layer.gate.parameters(), lr=0.03)
    cvs = []
    for _ in range(150):
        optimizer.zero_grad()
        _, routing = layer(x)
        sum(losses(Step(layer.gate, routing, Knobs(), 256)).values()).backward()
        optimizer.step()
        cvs.append(cv_squared(routing.counts_E.double()).sqrt().item())
    assert cvs[0] > 2
    assert cvs[-1] < 0.5
