"""Which rank's tokens go to which rank's experts, of a training by several.

Shapes: T tokens, K experts per token, E experts, R ranks.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Dealt(NamedTuple):
    """How a batch and the experts are dealt: each rank has as many tokens, each group of `expert` ranks has all experts."""

    data: int
    expert: int

    @property
    def ranks(self) -> int:
        return self.data * self.expert

    def rows_between(self, experts_TK: Tensor, num_experts: int) -> Tensor:
        """(R, R) int64: how many rows each rank (the first axis) sends to each; to itself those that stay."""
        sender_T1 = (torch.arange(len(experts_TK), device=experts_TK.device) * self.ranks // len(experts_TK))[:, None]
        group_T1 = sender_T1 // self.expert
        receiver_TK = group_T1 * self.expert + experts_TK // (num_experts // self.expert)
        pairs_TK = sender_T1 * self.ranks + receiver_TK
        pairs_N = pairs_TK[experts_TK < num_experts]
        return pairs_N.bincount(minlength=self.ranks**2).view(self.ranks, self.ranks)
