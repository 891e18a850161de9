"""The ways of keeping experts in balance, each a line of BALANCING: how it routes, its losses, what follows an update.

Any may be switched to at any step. schema.STRATEGIES has the same strategies by name, with their flags and help;
docs/strategies.md has a recipe to add one.

Shapes: T tokens, D model width, E experts, K experts per token. `x_TD` is (T, D).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from moe_core.nn.balance import (
    importance_loss,
    load_loss,
    sequence_loss,
    switch_loss,
    switch_sequence_loss,
    threshold_loss,
    z_loss,
)
from moe_core.nn.checks import check_capacity, check_noise, check_off, shown
from moe_core.nn.gating import Routing, count_selections, dense_gates, experts_on
from moe_core.schema import STRATEGIES, WEIGHINGS, Knobs, meta_of, weighing


class Step(NamedTuple):
    """What a loss, or an update of the strategy's state, is computed from: one layer in one training step."""

    gate: nn.Module
    routing: Routing
    knobs: Knobs
    sequence: int  # tokens in each sequence; all tokens of the batch where there are none
    micro: int | None = None  # tokens of each rank; None: there is one


class Balancing(NamedTuple):
    """One strategy. losses: unweighted, each under the name of the knob that weighs it."""

    route: Callable[..., Routing]  # (gate, x_TD, k, noise, noisy, off, weigh, and a hierarchical gate's own)
    losses: Mapping[str, Callable[[Step], Tensor]] = {}
    after_update: Callable[[Step], None] = lambda step: None


def route(
    gate: nn.Module,
    x_TD: Tensor,
    k: int | None,
    strategy: str = "paper",
    capacity_factor: float = 0.0,
    weigh: str = "own",
    noise: float = 1.0,
    off: Sequence[int] = (),
    **options: Any,
) -> Routing:
    """Route x_TD by the strategy, its experts weighed as the knob `weigh` says.

    options: noisy; k_primary and noise_primary of a hierarchical gate. ValueError, in a line, for an impossible value.
    """
    if not isinstance(strategy, str) or strategy not in BALANCING:
        raise ValueError(f"strategy must be one of {', '.join(BALANCING)}, got {shown(strategy)}")
    if not isinstance(weigh, str) or weigh not in WEIGHINGS:
        raise ValueError(f"weigh must be one of {', '.join(WEIGHINGS)}, got {shown(weigh)}")
    if gate.groups and not STRATEGIES[strategy].hierarchical:
        raise ValueError(f"strategy {strategy} does not work with groups of experts; use none, paper or switch")
    if not STRATEGIES[strategy].noisy and (unknown := options.keys() - {"noisy"}):
        raise ValueError(f"strategy {strategy} has no option {min(unknown)}; leave it out")
    k = gate.k if k is None else gate.check_k(k)
    check_noise(noise)
    check_capacity(capacity_factor)
    off, weigh = check_off(off, gate.num_experts), weighing(strategy, weigh)
    routing = BALANCING[strategy].route(gate, x_TD, k, weigh=weigh, noise=noise, off=off, **options)
    return limit(routing, capacity_factor) if capacity_factor and STRATEGIES[strategy].by_token else routing


def losses(step: Step) -> dict[str, Tensor]:
    """The strategy's losses of a layer, unweighted, by the knob that weighs each; those with weight 0 are left out."""
    by_weight = BALANCING[step.knobs.strategy].losses
    flat = step.routing.primary is None
    return {
        weight: loss(step)
        for weight, loss in by_weight.items()
        if getattr(step.knobs, weight) and not (flat and meta_of(Knobs, weight).hierarchical)
    }


@torch.no_grad()
def after_update(step: Step) -> None:
    """Update the strategy's state after each optimizer step, from the whole batch's routing."""
    BALANCING[step.knobs.strategy].after_update(step)
    remember_counts(step)


# How each routes


def noisy_top_k(gate: nn.Module, x_TD: Tensor, k: int, **options: Any) -> Routing:
    """The gate itself. (Shazeer 2017, section 2.1)"""
    return gate(x_TD, k, **options)


def by_biased_affinity(
    gate: nn.Module, x_TD: Tensor, k: int, off: Sequence[int] = (), weigh: str = "kept", **_: Any
) -> Routing:
    """Top k of sigmoid(c) + b, weighed by sigmoid(c) alone, normalised over the chosen. (Wang et al. 2024; DeepSeek-V3)

    weigh="all": sigmoid(c) as it is, which is an expert's weight among all. b chooses in evaluation too. The places of a
    token are in order of weight, not of the biased score.
    """
    clean_TE = clean_logits(gate, x_TD, k, off)
    affinity_TE = clean_TE.sigmoid()
    biased_TE = (affinity_TE + gate.bias_E).masked_fill(clean_TE.isneginf(), -math.inf)
    experts_TK = biased_TE.topk(k, dim=1).indices
    affinity_TK, order_TK = affinity_TE.gather(1, experts_TK).sort(dim=1, descending=True, stable=True)
    weights_TK = affinity_TK / (affinity_TK.sum(1, keepdim=True) + 1e-20) if weigh == "kept" else affinity_TK
    routing = routing_of(clean_TE, weights_TK, experts_TK.gather(1, order_TK), off)
    return routing._replace(scores_TE=biased_TE.detach(), affinity_TE=affinity_TE.detach())


def by_expert(gate: nn.Module, x_TD: Tensor, k: int, off: Sequence[int] = (), **_: Any) -> Routing:
    """Each expert takes the k T / E tokens with the highest softmax over experts, which is their weight. (Zhou et al. 2022)

    A token may get any number of experts, none too. An expert that is off takes none, and the others take no more than
    before.
    """
    clean_TE = clean_logits(gate, x_TD, k, off)
    gates_TE = clean_TE.softmax(1)
    experts_TK, taken_TK = places(
        best_tokens(gates_TE, share_of(gate, len(clean_TE), k)) & ~clean_TE.isneginf(), gates_TE
    )
    weights_TK = padded(gates_TE, experts_TK).masked_fill(~taken_TK, 0)
    return routing_of(clean_TE, weights_TK, experts_TK, off, ragged=True)


def strictly_balanced(gate: nn.Module, x_TD: Tensor, k: int, off: Sequence[int] = (), **_: Any) -> Routing:
    """Softmax gates, of which a mask keeps some; the kept ones of a token sum to 1. (Shazeer 2017, appendix F)

    In training each expert keeps the k T / E tokens with its largest gates, else those whose gate is above its
    threshold. A token that no expert keeps gets no expert, and the layer adds nothing to it.
    """
    clean_TE = clean_logits(gate, x_TD, k, off)
    gates_TE = clean_TE.softmax(1)
    mask_TE = best_tokens(gates_TE, share_of(gate, len(clean_TE), k)) if gate.training else gates_TE > gate.threshold_E
    experts_TK, taken_TK = places(mask_TE & ~clean_TE.isneginf(), gates_TE)
    # A softmax over the kept logits is the gates renormalised, also where all the kept gates underflow to 0.
    kept_TK = padded(clean_TE, experts_TK).masked_fill(~taken_TK, -math.inf)
    weights_TK = kept_TK.masked_fill(~taken_TK[:, :1], 0).softmax(1).masked_fill(~taken_TK, 0)
    return routing_of(clean_TE, weights_TK, experts_TK, off, ragged=True)


def in_turn(gate: nn.Module, x_TD: Tensor, k: int, off: Sequence[int] = (), **_: Any) -> Routing:
    """Tokens dealt to the experts like cards, k each, with equal weights, whatever the logits say: the control."""
    clean_TE = clean_logits(gate, x_TD, k, off).detach()
    tokens, num_experts = clean_TE.shape
    dealt_TK = torch.arange(tokens * k, device=clean_TE.device).view(tokens, k) % (num_experts - len(off))
    on = experts_on(off, clean_TE)
    experts_TK = dealt_TK if on is None else on[dealt_TK]
    return routing_of(clean_TE, clean_TE.new_full((tokens, k), 1 / k), experts_TK, off)


def limit(routing: Routing, capacity_factor: float) -> Routing:
    """At most ceil(capacity_factor K T / E) tokens an expert, and never more than T: the other choices are dropped. (GShard)

    All first choices come before any second choice, and position decides within a rank. The weights that are kept are
    not normalised again. importance_E, load_E and counts_E stay as the gate decided, before the drop.
    """
    (tokens, k), num_experts = routing.experts_TK.shape, routing.counts_E.shape[0]
    # Rounded first: 1.1 * 2 * 1000 / 10 is a little above 220 in floating point.
    capacity = max(1, math.ceil(round(min(tokens, capacity_factor * k * tokens / num_experts), 9)))
    chosen_N = routing.experts_TK.T.flatten()  # rank by rank, and within a rank by position
    sorted_N, order_N = chosen_N.sort(stable=True)
    starts_E = routing.counts_E.cumsum(0) - routing.counts_E
    turn_N = torch.arange(tokens * k, device=chosen_N.device) - starts_E[sorted_N]
    full_N = torch.empty_like(order_N, dtype=torch.bool).scatter_(0, order_N, turn_N >= capacity)
    full_TK = full_N.view(k, tokens).T
    return routing._replace(
        weights_TK=routing.weights_TK.masked_fill(full_TK, 0),
        experts_TK=routing.experts_TK.masked_fill(full_TK, num_experts),
        kept_E=routing.counts_E.clamp(max=capacity),
        dropped_from_TK=routing.experts_TK,
    )


# What they share


def clean_logits(gate: nn.Module, x_TD: Tensor, k: int, off: Sequence[int]) -> Tensor:
    """(T, E) the gate's logits without noise. ValueError if fewer than k experts are on."""
    gate.check_on(k, off)
    return gate.clean_logits(x_TD, off)


def share_of(gate: nn.Module, tokens: int, k: int) -> int:
    """k T / E, the tokens that each expert takes. A whole number in training.

    In evaluation the number of tokens depends on the data, so there it is rounded, and at least 1 if there is a token.
    """
    if gate.training and k * tokens % gate.num_experts:
        raise ValueError(
            f"k * tokens must be divisible by num_experts={gate.num_experts}, got {k} * {tokens}; change k or tokens"
        )
    return min(tokens, max(1, round(k * tokens / gate.num_experts)))


def best_tokens(gates_TE: Tensor, many: int) -> Tensor:
    """(T, E) bool: for each expert, so many tokens with its largest gates. Exactly as many where gates tie."""
    best_nE = gates_TE.detach().topk(many, dim=0).indices
    return torch.zeros_like(gates_TE, dtype=torch.bool).scatter_(0, best_nE, True)


def places(mask_TE: Tensor, gates_TE: Tensor) -> tuple[Tensor, Tensor]:
    """The experts of each token, the largest gate first and E where a place is empty, and which places are not. (T, K) each.

    K is the most experts that a token has, at least 1: to know it, the host waits for the device.
    """
    k = max(1, int(mask_TE.sum(1).max())) if len(mask_TE) else 1
    rank_TE = gates_TE.detach().masked_fill(~mask_TE, -1.0)
    rank_TK, experts_TK = (t[:, :k] for t in rank_TE.sort(dim=1, descending=True, stable=True))
    taken_TK = rank_TK >= 0
    return experts_TK.masked_fill(~taken_TK, mask_TE.shape[1]), taken_TK


def padded(values_TE: Tensor, experts_TK: Tensor) -> Tensor:
    """(T, K) the value of each place's expert; of an empty place, the value of some expert."""
    return values_TE.gather(1, experts_TK.clamp(max=values_TE.shape[1] - 1))


def routing_of(
    clean_TE: Tensor, weights_TK: Tensor, experts_TK: Tensor, off: Sequence[int], ragged: bool = False
) -> Routing:
    """A Routing without noise, whose load is the count."""
    num_experts = clean_TE.shape[1]
    importance_E = dense_gates(weights_TK, experts_TK, num_experts + 1)[:, :num_experts].sum(0)
    counts_E = count_selections(experts_TK, num_experts + 1)[:num_experts]
    return Routing(
        *(weights_TK, experts_TK, clean_TE, clean_TE, torch.zeros_like(clean_TE)),
        *(importance_E, counts_E.to(clean_TE.dtype), counts_E),
        kept_E=counts_E if ragged else None,
        on=experts_on(off, clean_TE),
    )


def step_bias(step: Step) -> None:
    """b_i += bias_speed * sign(mean(counts) - counts_i), over the experts that are on. (Wang et al. 2024, algorithm 1)"""
    counts_E, bias_E, on = step.routing.counts_E.float(), step.gate.bias_E, step.routing.on
    mean = counts_E.mean() if on is None else counts_E[on].mean()
    move_E = step.knobs.bias_speed * (mean - counts_E).sign()
    bias_E += move_E if on is None else torch.zeros_like(move_E).index_copy_(0, on, move_E[on])


def set_bias(step: Step) -> None:
    """b_i: the k / E quantile over the batch's tokens of the bias with which a token would just have chosen i, minus the mean over
    the experts that are on. With it each expert would have got its share of this batch, all else equal. (Su 2026)

    A token t chooses i if s_ti + b_i is above its cutoff, the (k+1)-th largest of s_t + b.
    """
    routing, bias_E = step.routing, step.gate.bias_E
    (tokens, k), on = routing.experts_TK.shape, routing.on
    affinity_TE, old_E = routing.affinity_TE.float(), bias_E.float()
    if on is not None:
        affinity_TE, old_E = affinity_TE[:, on], old_E[on]
    if k == len(old_E) or not tokens:
        return  # every expert is chosen, whatever its bias, or none is
    cutoff_T1 = (affinity_TE + old_E).topk(k + 1, dim=1).values[:, -1:]
    required_TE = (cutoff_T1 - affinity_TE).sort(dim=0).values
    place = k / len(old_E) * (tokens - 1)  # of the quantile, between two tokens; torch.quantile takes no large batch
    low = math.floor(place)
    new_E = required_TE[low].lerp(required_TE[min(low + 1, tokens - 1)], place - low)
    new_E = (new_E - new_E.mean()).to(bias_E.dtype)
    bias_E.copy_(new_E if on is None else bias_E.index_copy(0, on, new_E))


def remember_counts(step: Step) -> None:
    """Put this batch's selections behind those of the batches before it, whose oldest goes. Only under "global"."""
    recent_WE = step.gate.recent_WE
    if step.knobs.strategy == "switch" and step.knobs.balance_over == "global":
        recent_WE.copy_(torch.cat([recent_WE[1:], step.routing.counts_E[None]]))
    else:
        recent_WE.zero_()  # once it is turned to again, the batches that were remembered are long past


def recent_counts(step: Step) -> Tensor:
    """(E,) the selections of this batch and of those remembered, of the experts that are on now."""
    counts_E, on = step.gate.recent_WE.sum(0) + step.routing.counts_E, step.routing.on
    return counts_E if on is None else torch.zeros_like(counts_E).index_copy_(0, on, counts_E[on])


def switch(step: Step) -> Tensor:
    """Switch's loss over the scope of the knob balance_over. (Qiu et al. 2025, arXiv 2501.11873)

    Under "batch" f and P are of all ranks' tokens, under "micro-batch" of each rank's by themselves, and their mean is
    taken. Under "global" f is of the last GLOBAL_BATCHES batches together, P of this one. The paper adds up f over all
    ranks, and where these are few over the batches of one update, too, in a buffer. Here there is one batch an update, so
    the buffer goes back over updates.
    """
    routing = step.routing
    parts = {"sequence": step.sequence, "micro-batch": step.micro}
    if part := parts.get(step.knobs.balance_over):
        return switch_sequence_loss(routing.clean_logits_TE, routing.chosen_TK, part, routing.on)
    counts_E = recent_counts(step) if step.knobs.balance_over == "global" else routing.counts_E
    return switch_loss(routing.clean_logits_TE, counts_E, routing.on)


# The losses, each under its knob

IMPORTANCE = {"w_importance": lambda step: importance_loss(step.routing.importance_E, step.routing.on)}
LOAD_AND_IMPORTANCE = IMPORTANCE | {"w_load": lambda step: load_loss(step.routing.load_E, step.routing.on)}
# The primary level's own, where there is one.
PRIMARY = {
    "w_importance_primary": lambda step: importance_loss(step.routing.primary.importance_E, step.routing.primary.on),
    "w_load_primary": lambda step: load_loss(step.routing.primary.load_E, step.routing.primary.on),
}
SWITCH = {"w_switch": switch}
SEQUENCE = {
    "w_sequence": lambda step: sequence_loss(step.routing.clean_logits_TE, step.knobs.k, step.sequence, step.routing.on)
}
THRESHOLD = {
    "w_threshold": lambda step: threshold_loss(
        step.routing.clean_logits_TE, step.routing.experts_TK, step.gate.threshold_E
    )
}
Z = {"w_z": lambda step: z_loss(step.routing.clean_logits_TE)}

BALANCING = {
    "none": Balancing(noisy_top_k, Z),
    "paper": Balancing(noisy_top_k, LOAD_AND_IMPORTANCE | PRIMARY | Z),
    "switch": Balancing(noisy_top_k, SWITCH | Z),
    "loss-free": Balancing(by_biased_affinity, SEQUENCE | Z, step_bias),
    "quantile": Balancing(by_biased_affinity, SEQUENCE | Z, set_bias),
    "expert-choice": Balancing(by_expert, Z),
    "strictly-balanced": Balancing(strictly_balanced, IMPORTANCE | THRESHOLD | Z),
    "even": Balancing(in_turn),
}
