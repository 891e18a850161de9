"""The balancing losses, unweighted: the knobs' weights are applied in training.

Shapes: T tokens, E experts, K experts per token, B sequences, S tokens of each. `x_E` is (E,).
`on` holds the indices of the experts that are on, None if all are: an expert that is switched off takes no part in a loss.
"""

import torch
from torch import Tensor


def cv_squared(x_E: Tensor) -> Tensor:
    """Squared coefficient of variation: 0 when all are equal, E - 1 when one has it all. (Shazeer 2017, section 4)

    Population variance, in float32 or wider; 0 for E = 1.
    """
    x_E = x_E.to(torch.promote_types(x_E.dtype, torch.float32))
    return x_E.var(correction=0) / (x_E.mean().square() + 1e-10)


def importance_loss(importance_E: Tensor, on: Tensor | None = None) -> Tensor:
    """CV(importance) squared: every expert should get the same sum of gates. (Shazeer 2017, section 4)"""
    return cv_squared(importance_E if on is None else importance_E[on])


def load_loss(load_E: Tensor, on: Tensor | None = None) -> Tensor:
    """CV(load) squared: every expert should get the same number of tokens. (Shazeer 2017, appendix A)

    It has a gradient only where there is noise and k < E: without noise the load is a count.
    """
    return cv_squared(load_E if on is None else load_E[on])


def switch_loss(clean_logits_TE: Tensor, counts_E: Tensor, on: Tensor | None = None) -> Tensor:
    """E sum_i f_i P_i: f_i the share of the selections, before any drop, P_i the mean gate. (Fedus et al. 2021, eq. 4 to 6)

    P is the mean softmax over all experts, and alone has a gradient. 1 when both are even, which is no lower bound: f
    and P can disagree. For k > 1 f_i is a share of all T * k selections, so the value does not grow with k.
    """
    num_experts = clean_logits_TE.shape[1] if on is None else len(on)
    share_E = counts_E.to(clean_logits_TE.dtype) / counts_E.sum()
    return num_experts * (share_E * clean_logits_TE.softmax(1).mean(0)).sum()


def switch_sequence_loss(
    clean_logits_TE: Tensor, experts_TK: Tensor, sequence: int, on: Tensor | None = None
) -> Tensor:
    """switch_loss of each sequence of so many tokens by itself, f and P both, mean over sequences.

    experts_TK are the selections before any drop, each of a token's another expert.
    """
    num_experts = clean_logits_TE.shape[1] if on is None else len(on)
    gates_TE = clean_logits_TE.softmax(1)
    chosen_TE = torch.zeros_like(gates_TE).scatter_(1, experts_TK, 1.0)
    share_BE = chosen_TE.unflatten(0, (-1, sequence)).mean(1) / experts_TK.shape[1]
    return num_experts * (share_BE * gates_TE.unflatten(0, (-1, sequence)).mean(1)).sum(1).mean()


def z_loss(clean_logits_TE: Tensor) -> Tensor:
    """Mean over tokens of (log sum_i exp c_i)^2, which keeps logits small. (ST-MoE, Zoph et al. 2022, eq. 5)"""
    return clean_logits_TE.logsumexp(1).square().mean()


def sequence_loss(clean_logits_TE: Tensor, k: int, sequence: int, on: Tensor | None = None) -> Tensor:
    """sum_i f_i P_i in each sequence of so many tokens, mean over sequences. (DeepSeek-V3, eq. 17 to 20)

    f_i = E / (k S) times the tokens whose k largest affinities sigmoid(c), without any bias, include i's; P_i the mean
    share of i in a token's affinities, which alone has a gradient. 1 when even.
    """
    num_experts = clean_logits_TE.shape[1] if on is None else len(on)
    affinity_TE = clean_logits_TE.sigmoid()
    # By logits, whose order is the affinities': saturated affinities would tie.
    chosen_TE = torch.zeros_like(affinity_TE).scatter_(1, clean_logits_TE.topk(k, dim=1).indices, 1.0)
    share_TE = affinity_TE / (affinity_TE.sum(1, keepdim=True) + 1e-20)
    f_BE = chosen_TE.unflatten(0, (-1, sequence)).mean(1) * (num_experts / k)
    return (f_BE * share_TE.unflatten(0, (-1, sequence)).mean(1)).sum(1).mean()


def threshold_loss(clean_logits_TE: Tensor, experts_TK: Tensor, threshold_E: Tensor) -> Tensor:
    """L_batchwise: how far the thresholds are from keeping what the batch kept. (Shazeer 2017, appendix F)

    sum over tokens and experts of (M_threshold - M_batchwise)(G - T_i): no term is negative. experts_TK is the
    batchwise mask, E where a place is empty. G has no gradient; that of T_i is m minus the number that pass, so T_i
    rises when too many do. An expert that is off (logit minus infinity) adds nothing.
    """
    tokens, num_experts = clean_logits_TE.shape
    gates_TE = clean_logits_TE.detach().softmax(1)
    kept_TE = gates_TE.new_zeros(tokens, num_experts + 1).scatter_(1, experts_TK, 1.0)[:, :num_experts]
    passes_TE = (gates_TE > threshold_E).to(gates_TE.dtype)
    on_TE = ~clean_logits_TE.isneginf()
    return ((passes_TE - kept_TE) * on_TE * (gates_TE - threshold_E)).sum()
