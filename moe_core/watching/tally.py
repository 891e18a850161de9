"""What one layer selected since the last step, added up on the device of the model; nothing is copied to the host.

Shapes: N tokens, K places of a token, E experts.
"""

import torch
from torch import Tensor


class Tally:
    """counts_E1 (E + 1,) int64: selections, and last the places without an expert of this layer; importance_E1 (E + 1,) float32:
    sums of weights; tokens (1,) int64."""

    def __init__(self, experts: int) -> None:
        self.experts = experts
        self.counts_E1 = torch.zeros(experts + 1, dtype=torch.int64)
        self.importance_E1 = torch.zeros(experts + 1)
        self.tokens = torch.zeros(1, dtype=torch.int64)

    @torch.no_grad()
    def add(self, ids_NK: Tensor, weights_NK: Tensor | None, kept_N: Tensor | None = None) -> None:
        """Add a call's selections. An id outside 0 to E - 1 is of no expert of this layer, and so is a place of weight 0: some
        models write expert 0 there. kept_N (N,) bool: the tokens that count; None: all do.
        """
        if self.counts_E1.device != ids_NK.device:
            self.counts_E1, self.importance_E1, self.tokens = (
                sums.to(ids_NK.device) for sums in (self.counts_E1, self.importance_E1, self.tokens)
            )
        N, E = len(ids_NK), self.experts
        chosen_NK = (ids_NK >= 0) & (ids_NK < E)
        if weights_NK is not None:
            chosen_NK &= weights_NK != 0
        ids_NK = torch.where(chosen_NK, ids_NK, E).long()
        one_NK = torch.ones_like(ids_NK) if kept_N is None else kept_N.to(torch.int64)[:, None].expand_as(ids_NK)
        self.counts_E1.scatter_add_(0, ids_NK.flatten(), one_NK.flatten())
        self.tokens += N if kept_N is None else kept_N.sum()
        if weights_NK is not None:
            self.importance_E1.scatter_add_(0, ids_NK.flatten(), (weights_NK * one_NK).float().flatten())

    def clear(self) -> None:
        """Begin the next step."""
        for sums in (self.counts_E1, self.importance_E1, self.tokens):
            sums.zero_()
