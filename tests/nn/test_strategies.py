"""Each strategy against its own float64 definition, forward and gradients, at the limits, and by what it does to a gate."""

import copy
import math
from fractions import Fraction

import pytest
import torch

from moe_core.nn.experts import reference_mixture
from moe_core.nn.gating import NoisyTopKGate
from moe_core.nn.layer import MoELayer
from moe_core.nn.strategies import BALANCING, Step, after_update, limit, losses, route
from moe_core.schema import STRATEGIES, WEIGHINGS, Knobs, meta_of, strategies_with

T, D, E, K = 24, 5, 6, 2
ALL = tuple(STRATEGIES)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def gate_of(num_experts=E, k=K, scale=1.0):
    gate = NoisyTopKGate(D, num_experts, k)
    torch.nn.init.normal_(gate.w_gate, std=scale)
    torch.nn.init.normal_(gate.w_noise)
    return gate


def logits_of(gate, x):
    """(the gate's weight, its clean logits), both in float64 and apart from the gate."""
    w = gate.w_gate.detach().double().requires_grad_()
    return w, x.double() @ w


def agree(routing, gate, gates, w, taught=True):
    """The routing's dense gates, importance and counts, and the gradient of some function of the gates, as defined.

    taught: whether that gradient is one, or nothing but rounding.
    """
    torch.testing.assert_close(routing.gates_TE.double(), gates, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(routing.importance_E.double(), gates.sum(0), atol=1e-5, rtol=1e-4)
    counts = torch.stack([(routing.experts_TK == e).sum() for e in range(gates.shape[1])])
    assert routing.counts_E.tolist() == counts.tolist() == (gates > 0).sum(0).tolist()
    weigh = torch.randn(gates.shape)
    ours = torch.autograd.grad((routing.gates_TE * weigh).sum(), gate.w_gate, retain_graph=True)[0]
    reference = torch.autograd.grad((gates * weigh).sum(), w)[0]
    torch.testing.assert_close(ours.double(), reference, atol=1e-4, rtol=1e-3)
    assert ours.abs().max() > 1e-3 if taught else ours.abs().max() < 1e-6
    return ours


def test_every_strategy_is_declared_once_and_its_knobs_say_so():
    assert BALANCING.keys() == STRATEGIES.keys()
    for name, balancing in BALANCING.items():
        for weight in balancing.losses:
            assert name in meta_of(Knobs, weight).strategies
    for field in Knobs.__dataclass_fields__:
        meta = meta_of(Knobs, field)
        assert set(meta.strategies) <= set(STRATEGIES)
        if field.startswith("w_"):
            assert set(meta.strategies) == {name for name, b in BALANCING.items() if field in b.losses}


@pytest.mark.parametrize("strategy", ALL)
def test_what_a_strategy_is_declared_to_be_is_what_it_does(strategy):
    """Everything that asks what a strategy is asks these flags: the knobs, the messages, the charts."""
    flags, gate = STRATEGIES[strategy], gate_of(E, K)
    gate.bias_E.normal_()
    x = torch.randn(T, D)
    routing = route(gate, x, K, strategy, noise=1.0)
    assert flags.noisy == bool(routing.noise_std_TE.any())
    assert flags.by_token == (routing.margin_T is not None)
    assert flags.biased == (routing.affinity_TE is not None)
    assert flags.learns == (routing.weights_TK.requires_grad)
    unbiased = route(gate_with_bias_of_zero(gate), x, K, strategy, noise=0.0)
    biased = route(gate, x, K, strategy, noise=0.0)
    assert flags.biased == (unbiased.experts_TK.tolist() != biased.experts_TK.tolist())
    assert flags.by_token == (route(gate, x, K, strategy, capacity_factor=0.25).dropped_from_TK is not None)
    assert flags.noisy or not flags.losses_even  # the load loss, by which it was measured, needs noise


def gate_with_bias_of_zero(gate):
    other = copy.deepcopy(gate)
    other.bias_E.zero_()
    return other


# How the chosen are weighed


def defined_gates(scores, chooses, k, over_all):
    """Each token's k highest by `chooses`, weighed by their scores: over the chosen, or over all as they are."""
    gates = torch.zeros_like(scores)
    for t in range(len(scores)):
        chosen = sorted(range(scores.shape[1]), key=lambda e: -chooses[t, e].item())[:k]
        total = 1.0 if over_all else sum(scores[t, e] for e in chosen)
        for e in chosen:
            gates[t, e] = scores[t, e] / total
    return gates


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("k", [1, 2, E])
@pytest.mark.parametrize("weigh", WEIGHINGS)
@pytest.mark.parametrize("strategy", strategies_with("by_token"))
def test_the_chosen_are_weighed_as_the_knob_says_and_the_gate_is_taught_accordingly(strategy, weigh, k, training):
    """Softmax over the kept k (Shazeer 2017, eq. 3) or over all (Fedus 2021, eq. 2); sigmoids likewise. Float64, by loops."""
    gate, x = gate_of(k=k).train(training), torch.randn(T, D)
    torch.manual_seed(1)
    routing = route(gate, x, k, strategy, weigh=weigh, noise=0.7)
    torch.manual_seed(1)
    w, clean = logits_of(gate, x)
    std = 0.7 * (torch.nn.functional.softplus(x.double() @ gate.w_noise.detach().double()) + 1e-2)
    noisy = clean + torch.randn(T, E).double() * std if STRATEGIES[strategy].noisy and training else clean
    over_all = weigh == "all" or (weigh == "own" and strategy == "switch")
    if STRATEGIES[strategy].biased:
        scores = 1 / (1 + (-clean).exp())
    else:
        scores = noisy.exp() / noisy.exp().sum(1, keepdim=True)
    taught = over_all or k > 1
    ours = agree(routing, gate, defined_gates(scores, noisy, k, over_all), w, taught)
    if not taught and STRATEGIES[strategy].noisy:
        assert not ours.any()  # exactly
    sums = routing.weights_TK.sum(1)
    if not over_all or (k == E and STRATEGIES[strategy].noisy):
        torch.testing.assert_close(sums, torch.ones(T))
    else:
        assert (sums.detach() - 1).abs().min() > 1e-4
    assert (routing.weights_TK.diff(dim=1) <= 0).all()


@pytest.mark.parametrize("strategy", [name for name in ALL if not STRATEGIES[name].by_token])
def test_those_that_weigh_in_a_way_of_their_own_do_not_read_the_knob(strategy):
    gate, x = gate_of(), torch.randn(T, D)
    ways = [route(gate, x, K, strategy, weigh=weigh).gates_TE for weigh in WEIGHINGS]
    assert torch.equal(ways[0], ways[1])
    assert torch.equal(ways[0], ways[2])


def test_an_expert_that_is_off_has_no_part_in_a_softmax_over_all():
    gate, x = gate_of(), torch.randn(T, D)
    routing = route(gate, x, K, "switch", noise=0.0, off=(0, 3))
    _, clean = logits_of(gate, x)
    left = clean[:, [1, 2, 4, 5]].softmax(1).topk(K).values
    torch.testing.assert_close(routing.weights_TK.double(), left, atol=1e-5, rtol=1e-4)


def test_a_weighing_that_is_none_is_refused():
    with pytest.raises(ValueError, match="weigh must be one of own, kept, all, got 'some'"):
        route(gate_of(), torch.randn(T, D), K, weigh="some")


# Loss-free


@pytest.mark.parametrize("training", [True, False])
def test_loss_free_chooses_with_the_bias_and_weighs_without_it(training):
    gate, x = gate_of().train(training), torch.randn(T, D)
    gate.bias_E.copy_(torch.tensor([0.5, -0.5, 0.3, 0, 0, -0.2]))
    w, clean = logits_of(gate, x)
    affinity = 1 / (1 + (-clean).exp())
    gates = torch.zeros_like(affinity)
    for t in range(T):
        chosen = sorted(range(E), key=lambda e: -(affinity[t, e] + gate.bias_E[e].double()).item())[:K]
        total = sum(affinity[t, e] for e in chosen) + 1e-20
        for e in chosen:
            gates[t, e] = affinity[t, e] / total
    routing = route(gate, x, K, "loss-free")
    agree(routing, gate, gates, w)
    unbiased = affinity.topk(K).indices.sort().values
    assert not torch.equal(routing.experts_TK.sort().values, unbiased)  # the bias decided something
    assert (routing.weights_TK.diff(dim=1) <= 0).all()


def test_the_bias_moves_by_the_sign_after_an_update_and_only_there():
    layer, x = MoELayer(D, 8, E, K, zero_init=False), torch.randn(T, D)
    _, routing = layer(x, strategy="loss-free")
    assert not layer.gate.bias_E.any()
    routing = routing._replace(counts_E=torch.tensor([20, 8, 7, 8, 5, 0]))
    knobs = Knobs(strategy="loss-free", bias_speed=0.01)
    after_update(Step(layer.gate, routing, knobs, T))
    torch.testing.assert_close(layer.gate.bias_E, torch.tensor([-0.01, 0, 0.01, 0, 0.01, 0.01]))
    after_update(Step(layer.gate, routing, knobs, T))
    torch.testing.assert_close(layer.gate.bias_E[0].item(), -0.02)
    after_update(Step(layer.gate, routing, Knobs(strategy="paper"), T))
    torch.testing.assert_close(layer.gate.bias_E[0].item(), -0.02)


def test_the_bias_of_an_expert_that_is_off_stays_and_the_mean_is_of_the_others():
    gate = gate_of()
    routing = route(gate, torch.randn(T, D), K, "loss-free", off=(0,))
    routing = routing._replace(counts_E=torch.tensor([0, 12, 9, 9, 9, 9]))
    after_update(Step(gate, routing, Knobs(strategy="loss-free", bias_speed=1e-2), T))
    torch.testing.assert_close(gate.bias_E, torch.tensor([0, -0.01, 0.01, 0.01, 0.01, 0.01]))


# Expert choice and strict balance


def best_of_each_expert(gates, many):
    """Column by column, in plain Python."""
    mask = torch.zeros_like(gates, dtype=torch.bool)
    for e in range(gates.shape[1]):
        for t in sorted(range(len(gates)), key=lambda t: -gates[t, e].item())[:many]:
            mask[t, e] = True
    return mask


def test_expert_choice_takes_each_experts_best_tokens_with_their_softmax_as_the_weight():
    gate, x = gate_of(), torch.randn(T, D)
    w, clean = logits_of(gate, x)
    gates = clean.exp() / clean.exp().sum(1, keepdim=True)
    routing = route(gate, x, K, "expert-choice")
    agree(routing, gate, gates * best_of_each_expert(gates, K * T // E), w)
    assert routing.counts_E.tolist() == [K * T // E] * E
    assert routing.kept_E.tolist() == routing.counts_E.tolist()
    sums = routing.gates_TE.sum(1)
    assert (sums < 0.99).any()  # not normalised again


def test_strict_balance_in_training_renormalises_what_the_batch_keeps():
    gate, x = gate_of(), torch.randn(T, D)
    w, clean = logits_of(gate, x)
    gates = clean.exp() / clean.exp().sum(1, keepdim=True)
    kept = gates * best_of_each_expert(gates, K * T // E)
    routing = route(gate, x, K, "strictly-balanced")
    agree(routing, gate, kept / kept.sum(1, keepdim=True).clamp_min(1e-300), w)
    assert routing.counts_E.tolist() == [K * T // E] * E


def test_strict_balance_in_evaluation_goes_by_the_thresholds():
    gate, x = gate_of().eval(), torch.randn(T, D)
    with torch.no_grad():
        gate.threshold_E.copy_(torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9, 2.0]))
    w, clean = logits_of(gate, x)
    gates = clean.exp() / clean.exp().sum(1, keepdim=True)
    kept = gates * (gates > gate.threshold_E.detach().double())
    routing = route(gate, x, K, "strictly-balanced")
    agree(routing, gate, kept / kept.sum(1, keepdim=True).clamp_min(1e-300), w)
    assert routing.counts_E[5] == 0
    assert (routing.experts_TK == E).all(1).any()  # some token has no expert
    assert (routing.weights_TK[routing.experts_TK == E] == 0).all()


def defined_threshold_loss(gates, mask, threshold):
    total = 0.0
    for t in range(len(gates)):
        for e in range(gates.shape[1]):
            term = ((gates[t, e] > threshold[e]).double() - mask[t, e].double()) * (gates[t, e] - threshold[e])
            assert term >= 0
            total = total + term
    return total


def test_the_threshold_loss_and_that_its_gradient_is_m_less_those_that_pass():
    gate, x = gate_of(), torch.randn(T, D)
    many, pass_E = K * T // E, [8, 3, 12, 0, 8, 24]
    with torch.no_grad():
        # Half way between two gates, so that no rounding decides which pass. At the batch's own cut, 8, the loss is 0;
        # moved away from it, every term is 0 or more.
        sorted_TE = (x @ gate.w_gate).softmax(1).sort(0, descending=True).values
        edges_E = torch.cat([torch.full((1, E), 2.0), sorted_TE, torch.full((1, E), -1.0)])  # all or none pass there
        gaps = torch.tensor([[edges_E[n, e], edges_E[n + 1, e]] for e, n in enumerate(pass_E)])
        assert (gaps[:, 0] - gaps[:, 1]).min() > 1e-6
        gate.threshold_E.copy_(gaps.mean(1))
    step = Step(gate, route(gate, x, K, "strictly-balanced"), Knobs(strategy="strictly-balanced", w_importance=0), T)
    loss = losses(step)["w_threshold"]
    gates = (x.double() @ gate.w_gate.detach().double()).softmax(1)
    threshold = gate.threshold_E.detach().double().requires_grad_()
    reference = defined_threshold_loss(gates, best_of_each_expert(gates, many), threshold)
    torch.testing.assert_close(loss.double(), reference, atol=1e-5, rtol=1e-4)
    loss.backward()
    assert (gates > threshold).sum(0).tolist() == pass_E
    assert gate.threshold_E.grad.tolist() == [many - n for n in pass_E]
    assert gate.w_gate.grad is None  # the gates have no gradient here


def test_thresholds_learn_to_keep_the_batchs_share():
    gate, x = gate_of(scale=0.5), torch.randn(240, D)
    optimizer = torch.optim.Adam([gate.threshold_E], lr=3e-3)
    knobs = Knobs(strategy="strictly-balanced", w_importance=0)
    for _ in range(150):
        optimizer.zero_grad()
        step = Step(gate, route(gate, x, K, "strictly-balanced"), knobs, 240)
        (knobs.w_threshold * losses(step)["w_threshold"]).backward()
        optimizer.step()
    counts = route(gate.eval(), x, K, "strictly-balanced").counts_E
    assert ((counts - 80).abs() <= 8).all(), counts


@pytest.mark.parametrize("strategy", ["expert-choice", "strictly-balanced"])
def test_a_share_that_is_no_whole_number_is_refused_in_training_and_rounded_elsewhere(strategy):
    gate, x = gate_of(), torch.randn(25, D)
    with pytest.raises(ValueError, match=r"k \* tokens must be divisible by num_experts=6, got 2 \* 25"):
        route(gate, x, K, strategy)
    assert route(gate.eval(), x[:1], K, strategy).counts_E.sum() >= (strategy == "expert-choice")
    if strategy == "expert-choice":
        assert route(gate, x, K, strategy).counts_E.tolist() == [8] * E


def test_an_expert_takes_exactly_its_share_where_all_gates_tie():
    gate = NoisyTopKGate(D, E, K)
    assert route(gate, torch.randn(T, D), K, "expert-choice").counts_E.tolist() == [8] * E
    routing = route(gate, torch.randn(T, D), K, "strictly-balanced")
    assert routing.counts_E.tolist() == [8] * E
    assert routing.weights_TK.isfinite().all()


# Even


def test_even_deals_the_tokens_in_turn_and_teaches_the_gate_nothing():
    layer, x = MoELayer(D, 8, E, K, zero_init=False), torch.randn(T, D)
    y, routing = layer(x, strategy="even")
    assert routing.experts_TK.tolist() == [[2 * t % 6, (2 * t + 1) % 6] for t in range(T)]
    assert (routing.weights_TK == 0.5).all()
    y.sum().backward()
    assert layer.gate.w_gate.grad is None
    assert layer.w1.grad.any()
    _, routing = layer(x, strategy="even", off=(0, 3))
    assert routing.counts_E.tolist() == [0, 12, 12, 0, 12, 12]
    assert all(len(set(row)) == 2 for row in routing.experts_TK.tolist())


# Capacity


def defined_drop(experts, factor, num_experts):
    """All first choices, then all second ones; within a rank by position. Exact arithmetic."""
    tokens, k = experts.shape
    most = min(tokens, math.ceil(Fraction(str(factor)) * k * tokens / num_experts))
    taken, kept = [0] * num_experts, torch.zeros_like(experts, dtype=torch.bool)
    for rank in range(k):
        for t in range(tokens):
            e = int(experts[t, rank])
            if taken[e] < most:
                taken[e] += 1
                kept[t, rank] = True
    return kept, taken


@pytest.mark.parametrize("factor", [0.05, 0.5, 1.0, 1.1, 1.25, 8.0])
@pytest.mark.parametrize(("tokens", "k"), [(24, 2), (23, 3), (1, 1), (30, 6)])
def test_capacity_drops_in_the_order_of_choice_then_position(factor, tokens, k):
    gate, x = gate_of(), torch.randn(tokens, D)
    whole = route(gate, x, k, "none", noise=0.0)
    kept, taken = defined_drop(whole.experts_TK, factor, E)
    limited = limit(whole, factor)
    assert torch.equal(limited.experts_TK, whole.experts_TK.masked_fill(~kept, E))
    assert torch.equal(limited.weights_TK, whole.weights_TK * kept)  # not normalised again
    assert limited.kept_E.tolist() == taken
    assert limited.counts_E is whole.counts_E
    assert limited.importance_E is whole.importance_E


def test_a_capacity_is_not_rounded_up_by_floating_point():
    """1.1 * 2 * 1000 / 10 is 220 and a little in binary."""
    gate = NoisyTopKGate(D, 10, 2)
    assert limit(route(gate, torch.randn(1000, D), 2, noise=0.0), 1.1).kept_E.max() == 220


@pytest.mark.parametrize("strategy", ALL)
def test_capacity_is_for_those_that_choose_by_token(strategy):
    layer, x = MoELayer(D, 8, E, K, zero_init=False), torch.randn(T, D)
    _, routing = layer(x, noise=0.0, strategy=strategy, capacity_factor=0.25)
    kept = (routing.kept_E if routing.kept_E is not None else routing.counts_E).tolist()
    assert (max(kept) <= 2) == STRATEGIES[strategy].by_token


# The layer


@pytest.mark.parametrize("capacity_factor", [0.0, 0.5])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("strategy", ALL)
def test_the_layer_adds_up_what_the_routing_says_and_nothing_else(strategy, training, capacity_factor):
    layer, x = MoELayer(8, 16, E, K, zero_init=False).train(training), torch.randn(T, 8, requires_grad=True)
    with torch.no_grad():
        layer.gate.w_gate *= 50
    y, routing = layer(x, noise=0.5, strategy=strategy, capacity_factor=capacity_factor)
    wide = [t.detach().double().requires_grad_() for t in (x, layer.w1, layer.w2)]
    real = routing.experts_TK < E
    reference = torch.zeros(T, 8, dtype=torch.float64)
    for t in range(T):
        chosen, weights = routing.experts_TK[t][real[t]], routing.weights_TK[t][real[t]].detach().double()
        for e, weight in zip(chosen.tolist(), weights, strict=True):
            reference[t] += weight * ((wide[0][t] @ wide[1][e]).relu() @ wide[2][e].T)
    torch.testing.assert_close(y.double(), reference, atol=1e-5, rtol=1e-4)
    assert (y[~real.any(1)] == 0).all()
    grad = torch.randn(T, 8)
    ours = torch.autograd.grad(y, [layer.w1, layer.w2], grad)
    for a, b in zip(ours, torch.autograd.grad(reference, wide[1:], grad.double()), strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-4, rtol=1e-4)


def test_reference_mixture_is_what_the_others_are_compared_with_for_full_routings():
    layer, x = MoELayer(8, 16, E, K, zero_init=False), torch.randn(T, 8)
    y, r = layer(x, strategy="loss-free")
    torch.testing.assert_close(y, reference_mixture(x, r.weights_TK, r.experts_TK, layer.w1, layer.w2))


@pytest.mark.parametrize(("num_experts", "k", "off"), [(1, 1, ()), (4, 4, ()), (6, 2, ()), (6, 2, (1, 4))])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4, 1e30])
@pytest.mark.parametrize("strategy", ALL)
def test_everything_is_finite_at_the_limits(strategy, num_experts, k, scale, off):
    knobs = Knobs(strategy=strategy, k=k, w_sequence=0.1, w_z=1e-30)
    for noise in (0.0, 1e-30, 1.0) if STRATEGIES[strategy].noisy else (0.0,):
        gate = gate_of(num_experts, k, scale)
        x = torch.randn(12, D)
        routing = route(gate, x, k, strategy, noise=noise, off=off, capacity_factor=0.5)
        step = Step(gate, routing, knobs, 6)
        loss = sum(losses(step).values()) + routing.weights_TK.square().sum()
        if scale < 1e30:  # the z-loss of such logits overflows, and is right to
            assert torch.isfinite(loss)
        if loss.requires_grad and scale < 1e30:
            loss.backward()
            assert all(p.grad is None or p.grad.isfinite().all() for p in gate.parameters())
        after_update(step)
        assert gate.bias_E.isfinite().all()
        assert all(routing[i].isfinite().all() for i in (0, 5, 6, 7))
        if strategy != "strictly-balanced" and not off:
            assert routing.counts_E.sum() == 12 * k
        for e in off:
            assert routing.counts_E[e] == routing.load_E[e] == routing.importance_E[e] == 0
            assert not (routing.experts_TK == e).any()


@pytest.mark.parametrize("strategy", ALL)
def test_with_all_experts_on_for_each_token_every_load_is_full(strategy):
    gate = gate_of(4, 4)
    assert route(gate, torch.randn(12, D), 4, strategy).counts_E.tolist() == [12] * 4


# Experts switched off


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("strategy", ALL)
def test_an_expert_that_is_off_is_chosen_by_nobody(strategy, training):
    layer, x = MoELayer(8, 16, E, K, zero_init=False).train(training), torch.randn(T, 8)
    with torch.no_grad():
        layer.gate.threshold_E.fill_(-1.0)  # even where a gate of 0 would pass
        layer.gate.bias_E[3] = 100.0  # and a bias would draw all
    y, routing = layer(x, strategy=strategy, off=(0, 3))
    assert not ((routing.experts_TK == 0) | (routing.experts_TK == 3)).any()
    assert routing.counts_E[[0, 3]].tolist() == [0, 0]
    assert routing.on.tolist() == [1, 2, 4, 5]
    y.square().sum().backward()
    assert not layer.w1.grad[[0, 3]].any()
    assert layer.w1.grad[[1, 2, 4, 5]].any()
    if strategy != "even":
        assert layer.gate.w_gate.grad.isfinite().all()
        assert not layer.gate.w_gate.grad[:, [0, 3]].any()


def test_smooth_load_is_that_of_the_gate_without_the_experts_that_are_off():
    gate, x = gate_of(), torch.randn(T, D)
    on = [1, 2, 4, 5]
    smaller = NoisyTopKGate(D, 4, K)
    with torch.no_grad():
        smaller.w_gate.copy_(gate.w_gate[:, on])
        smaller.w_noise.copy_(gate.w_noise[:, on])
    draws = torch.randn(T, E)
    original = torch.randn_like
    try:
        torch.randn_like = lambda t: draws if t.shape[1] == E else draws[:, on]
        whole, less = gate(x, off=(0, 3)), smaller(x)
    finally:
        torch.randn_like = original
    torch.testing.assert_close(whole.load_E[on], less.load_E)
    torch.testing.assert_close(whole.importance_E[on], less.importance_E)
    knobs = Knobs(w_importance_primary=0.0)
    ours, theirs = (losses(Step(g, r, knobs, T)) for g, r in ((gate, whole), (smaller, less)))
    assert ours.keys() == {"w_importance", "w_load"}
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name])
    a = torch.autograd.grad(sum(ours.values()), [gate.w_gate, gate.w_noise])
    b = torch.autograd.grad(sum(theirs.values()), [smaller.w_gate, smaller.w_noise])
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one[:, on], other)
        assert not one[:, [0, 3]].any()


def test_where_only_k_experts_are_on_they_are_certain():
    routing = gate_of()(torch.randn(T, D), off=(0, 1, 2, 3))
    assert routing.load_E.tolist() == [0, 0, 0, 0, T, T]


@pytest.mark.parametrize("strategy", ALL)
def test_too_few_experts_on_are_refused(strategy):
    with pytest.raises(ValueError, match="at least k=2 experts must stay on, got 1"):
        route(gate_of(), torch.randn(T, D), K, strategy, off=(0, 1, 2, 3, 4))


def test_an_unknown_strategy_is_refused():
    with pytest.raises(ValueError, match=r"strategy must be one of none, paper, .*got 'hope'"):
        route(gate_of(), torch.randn(T, D), K, "hope")


# What it does


def cv_after(strategy, steps, **knobs):
    """CV of the counts of a gate that favoured one expert, after training on the strategy's balancing alone."""
    layer, x = MoELayer(8, 8, 8, 2), torch.randn(256, 8)
    x[:, 0] = 1.0
    with torch.no_grad():
        if not STRATEGIES[strategy].noisy:  # tokens that tie no bias can part
            layer.gate.w_gate.normal_(std=0.3)
        layer.gate.w_gate[0, 0] = 3.0
    optimizer = torch.optim.Adam(layer.gate.parameters(), lr=0.03)
    knobs = Knobs(strategy=strategy, **knobs)
    for _ in range(steps):
        optimizer.zero_grad()
        _, routing = layer(x, strategy=strategy)
        step = Step(layer.gate, routing, knobs, 256)
        loss = sum(losses(step).values()) + 0 * routing.importance_E.sum()
        if loss.requires_grad:
            loss.backward()
            optimizer.step()
        after_update(step)
    counts = routing.counts_E.double()
    return (counts.var(correction=0).sqrt() / counts.mean()).item()


def test_each_balancing_strategy_by_itself_evens_a_gate_that_favours_one_expert():
    assert cv_after("none", 1) > 0.8
    assert cv_after("none", 150) > 0.8
    assert cv_after("paper", 150) < 0.4
    assert cv_after("switch", 150, w_switch=1.0) < 0.4
    assert cv_after("loss-free", 1) > 0.6
    assert cv_after("loss-free", 200, bias_speed=0.005) < 0.1
    for strategy in ("expert-choice", "strictly-balanced", "even"):
        assert cv_after(strategy, 1) == 0
