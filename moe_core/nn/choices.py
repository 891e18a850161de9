"""How the experts of the same tokens compare between two moments.

Shapes: N tokens, K experts per token, E experts. A place that holds E is empty: no expert took it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def in_common(one_NK: Tensor, other_NK: Tensor, num_experts: int) -> Tensor:
    """(N, K) bool: which experts of each token in the first are in the second too; an empty place is in neither."""
    mask_NE = torch.zeros(len(other_NK), num_experts + 1, dtype=torch.bool, device=other_NK.device)
    return mask_NE.scatter_(1, other_NK, True).gather(1, one_NK) & (one_NK < num_experts)


def churn(now_NK: Tensor, before_NK: Tensor, num_experts: int) -> Tensor:
    """Share of tokens whose first expert differs. Experts in order of gate."""
    return (first_expert(now_NK, num_experts) != first_expert(before_NK, num_experts)).float().mean()


def first_expert(experts_NK: Tensor, num_experts: int) -> Tensor:
    """Each token's first expert (N,): that of its first place which is not empty; num_experts where all are."""
    place_N1 = (experts_NK < num_experts).int().argmax(1, keepdim=True)
    return experts_NK.gather(1, place_N1)[:, 0]


def saturation(now_NK: Tensor, before_NK: Tensor, num_experts: int) -> Tensor:
    """Mean share of a token's experts now that were among its experts before (OLMoE, arXiv 2409.02060).

    A token without an expert now has no share and is left out; NaN if there is no other.
    """
    real_NK = now_NK < num_experts
    same_NK = in_common(now_NK, before_NK, num_experts)
    share_N, some_N = same_NK.sum(1) / real_NK.sum(1).clamp(min=1), real_NK.any(1)
    return share_N.sum() / some_N.sum()


def same_width(layers: Sequence[Tensor], empty: Sequence[int]) -> list[Tensor]:
    """Each layer as (N, K), K the largest width among them, padded with its own `empty`, the value of an empty place."""
    width = max(x.shape[1] for x in layers)
    return [F.pad(x, (0, width - x.shape[1]), value=value) for x, value in zip(layers, empty, strict=True)]
