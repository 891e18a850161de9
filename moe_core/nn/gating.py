"""Noisy top-k gating, and the smooth load that makes balance differentiable. (Shazeer et al. 2017, arXiv 1701.06538)

Shapes: T tokens, D model width, E experts, K experts per token, J = min(K + 1, E). `x_TD` is (T, D).
Everything here is float32 or wider, whatever the model's precision: balance is a small difference of large sums.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe_core.nn.checks import check_k, check_noise, check_off, check_size, check_weigh
from moe_core.nn.compiled import never_compiled
from moe_core.nn.once import only_once
from moe_core.schema import GLOBAL_BATCHES

NOISE_FLOOR = 1e-2  # added to softplus, as in the authors' code; the noise knob multiplies it like the rest
SPREAD_FLOOR = 1e-6  # in the gradient only: noise below this is lost in a float32 logit, and its slope would overflow
LOOKED_AT = 256  # tokens, evenly spaced, of which it is measured in each step what no token can reach
FEW = 16  # tokens, below which it is not judged what no token can reach
LARGE, NARROW = 2**20, 8  # numbers in x, and columns of W, at which a CPU's products are faster with W column by column
CERTAIN = 16.0  # Phi(-16) is 6e-58: beyond so many spreads a selection is certain and its gradient is nothing

softmax_backward = torch.ops.aten._softmax_backward_data


class Routing(NamedTuple):
    """What the gate decided for one batch, with what the balancing losses and the telemetry need. T tokens, E experts.

    experts_TK holds each token's experts, the largest gate first. weights_TK sum to 1 over K, except where they are
    weighed over all experts, come from expert choice, or a capacity dropped some. noise_std_TE is the spread of the noise
    as applied, 0 without noise; the secondary level's in a hierarchical gate, whose K is that of both levels. importance_E
    and load_E carry gradients, counts_E (int64, the hard selections) cannot. Without noise load_E is the hard count too,
    and the load loss does nothing. An expert that is off has logits of minus infinity. importance_E, load_E and counts_E
    are before any drop.

    kept_E: None where each token has exactly K experts. Else experts_TK holds E, one past the last expert, and
    weights_TK 0 where a place is empty, and kept_E counts what experts_TK holds. on: the indices of the experts that
    are on, None if all are. primary: the choice of groups above, in a hierarchical gate.

    For the telemetry, without a gradient: scores_TE are the scores that each token chose by, noise and bias included, None where
    tokens do not choose. affinity_TE are the sigmoid affinities of a strategy that chooses by affinity + bias, else None.
    dropped_from_TK: experts_TK before choices were dropped from it, None if none were.
    """

    weights_TK: Tensor
    experts_TK: Tensor
    clean_logits_TE: Tensor
    noisy_logits_TE: Tensor
    noise_std_TE: Tensor
    importance_E: Tensor
    load_E: Tensor
    counts_E: Tensor
    kept_E: Tensor | None = None
    on: Tensor | None = None
    primary: "Routing | None" = None
    scores_TE: Tensor | None = None
    affinity_TE: Tensor | None = None
    dropped_from_TK: Tensor | None = None

    @property
    def gates_TE(self) -> Tensor:
        """The gates of all experts, 0 where not selected; computed on request."""
        num_experts = self.clean_logits_TE.shape[1]
        return dense_gates(self.weights_TK, self.experts_TK, num_experts + 1)[:, :num_experts]

    @property
    def margin_T(self) -> Tensor | None:
        """(T,) router_margin() of the scores that each token chose by; with groups the smaller of both levels'. Computed on request."""
        if self.scores_TE is None:
            return None
        if self.primary is None:
            return router_margin(self.scores_TE, self.chosen_TK)
        groups_TP = self.primary.chosen_TK
        tokens, groups = self.primary.clean_logits_TE.shape
        scores_TGB = self.scores_TE.view(tokens, groups, -1)  # within a group they differ as the second level's do
        best_TGK = scores_TGB.topk(self.chosen_TK.shape[1] // groups_TP.shape[1], dim=2).indices
        margin_TP = router_margin(scores_TGB, best_TGK).gather(1, groups_TP)
        # An error below both levels' margins changes no choice.
        return torch.minimum(router_margin(self.primary.scores_TE, groups_TP), margin_TP.amin(1))

    @property
    def unreachable(self) -> Tensor | None:
        """() how many experts no token comes near, by unreachable(); None with groups. Computed on request."""
        if self.scores_TE is None or self.primary is not None:
            return None
        return unreachable(self.scores_TE, self.chosen_TK)

    @property
    def chosen_TK(self) -> Tensor:
        """experts_TK before any drop."""
        return self.experts_TK if self.dropped_from_TK is None else self.dropped_from_TK

    @property
    def ragged(self) -> bool:
        """Whether chosen_TK has empty places: tokens had different numbers of experts before any drop."""
        return self.kept_E is not None and self.dropped_from_TK is None


def dense_gates(weights_TK: Tensor, experts_TK: Tensor, num_experts: int) -> Tensor:
    """(T, E) with each token's weights at its experts' places and 0 elsewhere."""
    return weights_TK.new_zeros(weights_TK.shape[0], num_experts).scatter(1, experts_TK, weights_TK)


@torch.no_grad()
def router_margin(scores_TE: Tensor, experts_TK: Tensor) -> Tensor:
    """(T,) the weakest chosen score minus the strongest unchosen one: a smaller error in the scores changes no choice.

    0 at a tie; infinite where nothing is unchosen: K = E, or all others off (scores of minus infinity).
    """
    unchosen_TE = scores_TE.scatter(-1, experts_TK, -math.inf)
    return scores_TE.gather(-1, experts_TK).amin(-1) - unchosen_TE.amax(-1)


@torch.no_grad()
def unreachable(scores_TE: Tensor, experts_TK: Tensor) -> Tensor:
    """() how many experts no token comes near by the scores that chose, of at most LOOKED_AT tokens. (out_of_reach)"""
    stride = max(1, -(-len(scores_TE) // LOOKED_AT))
    scores_TE, experts_TK = scores_TE[::stride], experts_TK[::stride]
    return out_of_reach(scores_TE.gather(-1, experts_TK).amin(-1, keepdim=True) - scores_TE)


def out_of_reach(lack_NE: Tensor) -> Tensor:
    """(...) of (..., N, E), what each expert's score lacks to be among a token's chosen: the number of experts of which even the
    token that comes closest lacks more than the closest and the farthest token differ. Another token like these does not choose such an expert.

    NaN of fewer than FEW tokens, which differ too little by chance. Experts that are off lack an infinite score: they do not count.
    """
    if lack_NE.shape[-2] < FEW:
        return lack_NE.new_full(lack_NE.shape[:-2], math.nan)
    nearest_E, farthest_E = lack_NE.amin(-2), lack_NE.amax(-2)
    return ((2 * nearest_E > farthest_E) & farthest_E.isfinite()).sum(-1).float()


def smooth_load(clean_TE: Tensor, noisy_TE: Tensor, std_TE: Tensor, k: int) -> Tensor:
    """(E,) expected number of tokens of each expert if only its own noise were drawn again. (Shazeer 2017, appendix A)

    Sum over tokens of P(x, i) = Phi((clean_i - kth_excluding(noisy, k, i)) / std_i). std_TE is the spread as applied
    and must be above 0. The gradient flows through clean, std and the threshold, as in the authors' code. With k = E all
    are certain: T each, and no gradient. An expert that is off (logits of minus infinity) has load 0; where only k are
    on, they are certain.
    """
    num_experts = noisy_TE.shape[1]
    if k == num_experts:
        return noisy_TE.new_full((num_experts,), noisy_TE.shape[0])
    return selection_chance_TE(clean_TE, noisy_TE, std_TE, k).sum(0)


def selection_chance_TE(clean_TE: Tensor, noisy_TE: Tensor, std_TE: Tensor, k: int) -> Tensor:
    """P(x, i) of the appendix, for k < E. At a tie the two thresholds are equal, so >= serves as `is selected`."""
    top_TJ = noisy_TE.topk(k + 1, dim=1).values
    kth_T1, next_T1 = top_TJ[:, k - 1 : k], top_TJ[:, k : k + 1]
    threshold_TE = torch.where(noisy_TE >= kth_T1, next_T1, kth_T1)
    return Chance.apply(clean_TE - threshold_TE, std_TE)


class Chance(torch.autograd.Function):
    """Phi(margin / std) with its derivative in closed form: autograd's has 0 times inf where the quotient overflows."""

    @staticmethod
    def forward(ctx, margin_TE, std_TE):
        std_TE = std_TE.clamp_min(torch.finfo(std_TE.dtype).tiny)
        z_TE = (margin_TE / std_TE).clamp_(-CERTAIN, CERTAIN)
        ctx.save_for_backward(z_TE, std_TE)
        return torch.special.ndtr(z_TE)

    @staticmethod
    @only_once
    def backward(ctx, grad_TE):
        return chance_gradients(grad_TE, *ctx.saved_tensors)


def chance_gradients(grad_TE: Tensor, z_TE: Tensor, std_TE: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of margin and std, z = margin / std. grad_TE may also be (E,), the same of each token."""
    density_TE = z_TE.square().mul_(-0.5).exp_().mul_((2 * math.pi) ** -0.5)
    margin_grad_TE = density_TE.mul_(grad_TE).div_(std_TE.clamp_min(SPREAD_FLOOR))
    return margin_grad_TE, margin_grad_TE * -z_TE


class Selection(torch.autograd.Function):
    """The k experts with the largest noisy logits: (weights (T, K), experts (T, K), importance (E,), load (E,), counts (E,)).

    weigh="kept": softmax(KeepTopK(logits, k)), over the kept k, so that a row's weights sum to 1; of k = 1 it is 1, and
    the logit gets no gradient. (Shazeer 2017, eq. 3 and 5) "all": the softmax over all experts, not normalised again.
    (Fedus et al. 2021, eq. 2) smooth: the load is smooth_load, else the count.

    One function with its gradient in closed form, because on a small batch calls cost more than arithmetic. Its results are, bit by
    bit, those of plain autograd, with which earlier runs were recorded: they replay the same.
    """

    @staticmethod
    def forward(ctx, clean_TE, noisy_TE, std_TE, k, weigh, smooth):
        tokens, num_experts = noisy_TE.shape
        top_TJ, order_TJ = noisy_TE.topk(min(k + 1, num_experts), dim=1)
        experts_TK = order_TJ[:, :k].contiguous()
        shares = top_TJ[:, :k].softmax(1) if weigh == "kept" else noisy_TE.softmax(1)
        weights_TK = shares if weigh == "kept" else shares.gather(1, experts_TK)
        importance_E = dense_gates(weights_TK, experts_TK, num_experts).sum(0)
        counts_E = count_selections(experts_TK, num_experts)
        z_TE = None
        if not smooth:
            load_E = counts_E.to(noisy_TE.dtype)
        elif k == num_experts:
            load_E = noisy_TE.new_full((num_experts,), tokens)
        else:
            # Without expert i the k-th largest is the next one for the selected, and the k-th itself for all others.
            kth_T1, next_T1 = top_TJ[:, k - 1 : k], top_TJ[:, k:]
            margin_TE = (clean_TE - kth_T1).scatter_(1, experts_TK, clean_TE.gather(1, experts_TK) - next_T1)
            std_TE = std_TE.clamp_min(torch.finfo(std_TE.dtype).tiny)
            z_TE = margin_TE.div_(std_TE).clamp_(-CERTAIN, CERTAIN)
            load_E = torch.special.ndtr(z_TE).sum(0)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(experts_TK, counts_E, *([load_E] if z_TE is None else []))
        ctx.save_for_backward(order_TJ, experts_TK, shares, z_TE, std_TE)
        ctx.k, ctx.weigh = k, weigh
        return weights_TK, experts_TK, importance_E, load_E, counts_E

    @staticmethod
    @only_once
    def backward(ctx, weights_grad_TK, _, importance_grad_E, load_grad_E, __):
        order_TJ, experts_TK, shares, z_TE, std_TE = ctx.saved_tensors
        k = ctx.k
        top_grad_TJ, noisy_grad_TE, clean_grad_TE, std_grad_TE = shares.new_zeros(order_TJ.shape), None, None, None
        if importance_grad_E is not None:
            of_importance_TK = importance_grad_E.index_select(0, experts_TK.flatten()).view(experts_TK.shape)
            weights_grad_TK = of_importance_TK if weights_grad_TK is None else of_importance_TK.add_(weights_grad_TK)
        if weights_grad_TK is not None and ctx.weigh == "kept":
            top_grad_TJ[:, :k] = softmax_backward(weights_grad_TK, shares, 1, shares.dtype)
        elif weights_grad_TK is not None:
            grad_TE = torch.zeros_like(shares).scatter_(1, experts_TK, weights_grad_TK)
            noisy_grad_TE = softmax_backward(grad_TE, shares, 1, shares.dtype)
        if load_grad_E is not None:
            clean_grad_TE, std_grad_TE = chance_gradients(load_grad_E, z_TE, std_TE)
            others_TE = clean_grad_TE.scatter(1, experts_TK, 0)
            top_grad_TJ[:, k - 1] -= others_TE.sum(1)
            top_grad_TJ[:, k] = (others_TE - clean_grad_TE).sum(1)
        if load_grad_E is not None or ctx.weigh == "kept":
            of_top_TE = top_grad_TJ.new_zeros(std_TE.shape).scatter_(1, order_TJ, top_grad_TJ)
            noisy_grad_TE = of_top_TE if noisy_grad_TE is None else noisy_grad_TE.add_(of_top_TE)
        return clean_grad_TE, noisy_grad_TE, std_grad_TE, None, None, None


def logits(gate: nn.Module, x_TD: Tensor, w_DE: Tensor) -> Tensor:
    """(T, E) x W. Where several ranks train, of the tokens of all ranks: the gate then decides for the whole batch."""
    w_DE = w_DE.to(x_TD.dtype)
    if x_TD.device.type == "cpu" and x_TD.numel() >= LARGE and w_DE.shape[1] <= NARROW:
        w_DE = w_DE.T.contiguous().T
    return gate.bring_together(x_TD @ w_DE)


def add_noise(gate: nn.Module, clean_TE: Tensor, x_TD: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """H(x) = c + noise * StandardNormal * (softplus(x W_noise) + floor), and the spread of its noise. (Shazeer 2017, eq. 4)

    Without noise H(x) is c itself, the spread is 0, and no random number is drawn.
    """
    if not noise:
        return clean_TE, torch.zeros_like(clean_TE)
    std_TE = noise * (F.softplus(logits(gate, x_TD, gate.w_noise)) + NOISE_FLOOR)
    return clean_TE + torch.randn_like(clean_TE) * std_TE, std_TE


def in_full(x_TD: Tensor) -> AbstractContextManager[Any]:
    """Autocast off, where it is on: to turn off what is off takes as long as a product of a small batch."""
    device = x_TD.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def start_weights(d_model: int, num_experts: int, zero_init: bool) -> tuple[nn.Parameter, nn.Parameter]:
    """W_g and W_noise (D, E) as a gate starts: zeros, or with zero_init=False W_g from normal(0, 0.02)."""
    w_gate, w_noise = (nn.Parameter(torch.zeros(d_model, num_experts)) for _ in range(2))
    if not zero_init:
        nn.init.normal_(w_gate, std=0.02)
    return w_gate, w_noise


def add_recent_counts(gate: nn.Module, num_experts: int) -> None:
    """Give a gate recent_WE: the selections (int64) of the batches before, the latest last, for balance_over="global".

    Checkpoints from before there was one have no such counts: they are loaded as zeros.
    """
    gate.register_buffer("recent_WE", torch.zeros(GLOBAL_BATCHES - 1, num_experts, dtype=torch.int64))
    gate.register_load_state_dict_pre_hook(fill_in_recent_counts)


def fill_in_recent_counts(gate: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    state.setdefault(prefix + "recent_WE", torch.zeros_like(gate.recent_WE))


def alone(x_TE: Tensor) -> Tensor:
    """The rows of all ranks, where there is one. (parallel/ranks.py has it for several)"""
    return x_TE


class NoisyTopKGate(nn.Module):
    """Chooses k of the experts for each token, with learnt noise while training. (Shazeer 2017, section 2.1)

    w_gate and w_noise (D, E) start at zero: the first batches are routed by noise alone, which is about balanced.
    zero_init=False starts w_gate from normal(0, 0.02), for a gate that starts without noise: there all zeros would tie,
    and every token would go to the same experts.

    bias_E and threshold_E are the state of the strategies loss-free and strictly-balanced, recent_WE that of switch
    (strategies.py). Every gate has them, so that a strategy can be switched to at any step and checkpoints have one shape.
    """

    groups = 0  # a hierarchical gate has some
    bring_together: Callable[[Tensor], Tensor] = staticmethod(alone)

    def __init__(self, d_model: int, num_experts: int, k: int, zero_init: bool = True) -> None:
        super().__init__()
        d_model, num_experts = check_size("d_model", d_model), check_size("num_experts", num_experts)
        self.num_experts = num_experts
        self.k = self.check_k(k)
        self.w_gate, self.w_noise = start_weights(d_model, num_experts, zero_init)
        self.register_buffer("bias_E", torch.zeros(num_experts))
        # An even gate gives 1 / E: near enough to any quantile for a threshold to reach it in a few dozen steps.
        self.threshold_E = nn.Parameter(torch.full((num_experts,), 1 / num_experts))
        add_recent_counts(self, num_experts)

    def check_k(self, k: int) -> int:
        return check_k(k, self.num_experts)

    def check_on(self, k: int, off: Sequence[int]) -> None:
        """ValueError if fewer than k experts stay on."""
        if self.num_experts - len(off) < k:
            raise ValueError(f"at least k={k} experts must stay on, got {self.num_experts - len(off)}")

    @never_compiled
    def forward(
        self,
        x_TD: Tensor,
        k: int | None = None,
        noise: float = 1.0,
        noisy: bool | None = None,
        off: Sequence[int] = (),
        weigh: str = "kept",
    ) -> Routing:
        """Routes x_TD; k is the constructor's unless given, noise scales the spread, off are experts that take no part.

        Noise is drawn in training mode only, unless noisy says otherwise. weigh as in Selection. ValueError for an impossible k,
        noise, off or weigh.
        """
        k = self.k if k is None else self.check_k(k)
        check_noise(noise)
        check_weigh(weigh)
        off = check_off(off, self.num_experts)
        self.check_on(k, off)
        noisy = self.training if noisy is None else noisy
        with in_full(x_TD):
            x_TD = x_TD.to(torch.promote_types(x_TD.dtype, torch.float32))
            return self.route(x_TD, k, noise if noisy else 0.0, off, weigh)

    def route(self, x_TD: Tensor, k: int, noise: float, off: Sequence[int], weigh: str) -> Routing:
        """The equations, for rows in float32 or wider, with the noise as it is to be applied."""
        clean_TE = switch_off(logits(self, x_TD, self.w_gate), off)
        noisy_TE, std_TE = add_noise(self, clean_TE, x_TD, noise)
        # Without noise P(x, i) is the selected mask: a branch of its own, not a division by a tiny number.
        weights_TK, experts_TK, *of_experts = Selection.apply(clean_TE, noisy_TE, std_TE, k, weigh, noise > 0)
        return Routing(
            *(weights_TK, experts_TK, clean_TE, noisy_TE, std_TE, *of_experts),
            on=experts_on(off, clean_TE),
            scores_TE=noisy_TE.detach(),
        )

    def clean_logits(self, x_TD: Tensor, off: Sequence[int] = ()) -> Tensor:
        """(T, E) x W_g in float32 or wider, without noise: the scores of the strategies that draw none."""
        with in_full(x_TD):
            x_TD = x_TD.to(torch.promote_types(x_TD.dtype, torch.float32))
            return switch_off(logits(self, x_TD, self.w_gate), off)


def switch_off(logits_TE: Tensor, off: Sequence[int]) -> Tensor:
    """Minus infinity for the experts that are off: no softmax, top-k or threshold can choose them, and no gradient flows."""
    return logits_TE.index_fill(1, indices(tuple(off), logits_TE.device), -math.inf) if off else logits_TE


def experts_on(off: Sequence[int], logits_TE: Tensor) -> Tensor | None:
    """The indices of the experts that are on, None if none is off."""
    if not off:
        return None
    return indices(tuple(e for e in range(logits_TE.shape[1]) if e not in off), logits_TE.device)


@lru_cache(maxsize=256)
def indices(experts: tuple[int, ...], device: torch.device) -> Tensor:
    """Experts as indices on a device. Kept there: to copy them anew in each step would make the host wait each time."""
    return torch.tensor(experts, device=device)


def count_selections(experts_TK: Tensor, num_experts: int) -> Tensor:
    """(E,) int64: how often each expert was selected. By index, because a selected gate can underflow to 0."""
    if experts_TK.device.type == "cpu":
        return experts_TK.flatten().bincount(minlength=num_experts)
    # bincount would make the host wait for the device.
    ones_TE = torch.zeros(experts_TK.shape[0], num_experts, dtype=torch.int32, device=experts_TK.device)
    return ones_TE.scatter_(1, experts_TK, 1).sum(0)
