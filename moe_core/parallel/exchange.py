"""Tokens to the ranks that have their experts, and back: mixture() over several ranks, with the same result.

A token's row goes out once for each of its experts; rows are sorted by expert, and so by rank too. The ranks of a group first tell
each other how many rows they send, and a check sum of all choices: if the numbers did not fit, the exchange would hang instead of fail.
An expert's rank runs it with weight 1, and the sender weighs what comes back, so no gradient of a gate crosses the network.
A rank that receives no row takes part all the same, in backward too.

Shapes: t tokens of a rank, T of all, D model width, H expert width, E experts, e of them on a rank, M ranks in a group, K
places for experts per token, N rows that a rank sends, n that it receives.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, distributed
from torch.autograd.function import FunctionCtx

from moe_core.nn.experts import mixture
from moe_core.nn.once import only_once
from moe_core.parallel.traffic import Traffic, size_of

DIGEST = 2**31 - 1  # digests of choices are below; a prime


class Disagreement(RuntimeError):
    """Ranks that should have decided the same have not."""

    def __init__(self, ranks: list[int]) -> None:
        super().__init__(
            f"ranks {', '.join(map(str, ranks))} have not chosen the same experts for the same batch: their weights or their "
            "arithmetic differ; go on from a checkpoint, with the same hardware on all ranks"
        )


class Group(Protocol):
    """What an exchange needs to know of the ranks (ranks.py).

    place: which of the group's `expert` ranks this one is. chosen (): a digest of all choices so far, int64. unlike_R: by how much
    that of each rank differed from rank 0's after the last step.
    """

    rank: int
    place: int
    expert: int
    expert_group: distributed.ProcessGroup
    traffic: Traffic
    chosen: Tensor
    unlike_R: Tensor


def exchanged(
    ranks: Group,
    x_tD: Tensor,
    weights_TK: Tensor,
    experts_TK: Tensor,
    counts_E: Tensor,
    w1_eDH: Tensor,
    w2_eDH: Tensor,
    gaps: bool = False,
) -> Tensor:
    """(t, D) mixture() of this rank's tokens. weights_TK, experts_TK: of all ranks' tokens in training, of this rank's in
    evaluation; w1_eDH, w2_eDH: this rank's experts. Disagreement if the ranks have not chosen the same."""
    device = x_tD.device.type
    if torch.is_autocast_enabled(device):
        x_tD = x_tD.to(torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):
            return exchanged(ranks, x_tD, weights_TK, experts_TK, counts_E, w1_eDH, w2_eDH, gaps)
    tokens, (e, M) = len(x_tD), (len(w1_eDH), ranks.expert)
    own = slice(ranks.rank * tokens, (ranks.rank + 1) * tokens) if len(experts_TK) > tokens else slice(None)
    weights_tK, experts_tK = weights_TK[own].to(x_tD.dtype), experts_TK[own]
    counts_Me = experts_tK.flatten().bincount(minlength=e * M + 1)[: e * M].view(M, e)
    arriving_Me, (sends, receives) = announce(ranks, counts_Me, checksum(experts_TK))

    order_N = experts_tK.flatten().argsort(stable=True)[: sum(sends)]  # the empty places are last
    x_ND = x_tD.index_select(0, order_N // experts_tK.shape[1])
    x_nD = sent(x_ND, ranks, sends, receives)
    # By rank and, within one, by expert.
    expert_n1 = torch.arange(e, device=x_tD.device).repeat(M).repeat_interleave(arriving_Me.flatten())[:, None]
    y_nD = mixture(x_nD, x_nD.new_ones(len(x_nD), 1), expert_n1, arriving_Me.sum(0), w1_eDH, w2_eDH)
    y_ND = sent(y_nD, ranks, receives, sends)
    at_home_tKD = y_ND.new_zeros(experts_tK.numel(), y_ND.shape[1]).index_copy(0, order_N, y_ND)
    y_tD: Tensor = (weights_tK[:, None] @ at_home_tKD.view(*experts_tK.shape, -1))[:, 0]
    return y_tD


def checksum(experts_TK: Tensor) -> Tensor:
    """() one number for all choices: other choices give another number, but for rare chance."""
    place_N = torch.arange(experts_TK.numel(), device=experts_TK.device)
    mixed_N = (place_N * 1025 + experts_TK.flatten()) * 2654435761 % DIGEST
    return (mixed_N.square() % DIGEST).sum()  # squared: a sum of multiples is the same for many arrangements


def announce(ranks: Group, counts_Me: Tensor, chosen: Tensor) -> tuple[Tensor, tuple[list[int], list[int]]]:
    """What each rank of the group will send to this one, by its experts, and the rows that go and come, by rank.

    chosen: the check sum of this rank's choices. Disagreement if another rank of the group has a different one, or if any rank chose
    differently in the step before: groups exchange nothing but the sums at a step's end.
    """
    M = ranks.expert
    ranks.chosen = (ranks.chosen * 48271 + chosen) % DIGEST
    said = torch.cat([counts_Me, chosen.expand(M, 1)], 1)
    received = torch.empty_like(said)
    with ranks.traffic.waiting((M - 1) / M * size_of(said)):
        distributed.all_to_all_single(received, said, group=ranks.expert_group)
    # The only wait for a GPU.
    numbers = torch.cat([counts_Me.sum(1), received[:, :-1].sum(1), received[:, -1] - chosen, ranks.unlike_R]).tolist()
    sends, receives, differ, unlike = numbers[:M], numbers[M : 2 * M], numbers[2 * M : 3 * M], numbers[3 * M :]
    if any(differ):
        others = [ranks.rank - ranks.place + at for at, difference in enumerate(differ) if difference]
        raise Disagreement([ranks.rank, *others])
    if any(unlike):
        raise Disagreement([0, *(rank for rank, difference in enumerate(unlike) if difference)])
    return received[:, :-1], (sends, receives)


class Sent(FunctionCtx):
    """What an exchange keeps for its backward."""

    ranks: Group
    sends: list[int]
    receives: list[int]


class Send(torch.autograd.Function):
    """(n, D) the rows that the ranks of the group send here. Backward sends the gradients back.

    torch's all_to_all_single_autograd does the same, but imports torch._dynamo for it (docs/decisions.md).
    """

    @staticmethod
    def forward(ctx: Sent, rows_ND: Tensor, ranks: Group, sends: list[int], receives: list[int]) -> Tensor:
        ctx.ranks, ctx.sends, ctx.receives = ranks, sends, receives
        return all_to_all(ranks, rows_ND, sends, receives)

    @staticmethod
    @only_once
    def backward(ctx: Sent, grad_nD: Tensor) -> tuple[Tensor, None, None, None]:
        return all_to_all(ctx.ranks, grad_nD.contiguous(), ctx.receives, ctx.sends), None, None, None


sent: Callable[[Tensor, Group, list[int], list[int]], Tensor] = Send.apply


def all_to_all(ranks: Group, rows_ND: Tensor, sends: list[int], receives: list[int]) -> Tensor:
    """(n, D) the rows of all ranks of the group for this one, in order of rank."""
    rows_nD = rows_ND.new_empty(sum(receives), rows_ND.shape[1])
    to_others = sum(sends) - sends[ranks.place]
    with ranks.traffic.waiting(to_others * rows_ND.shape[1] * rows_ND.itemsize):
        distributed.all_to_all_single(rows_nD, rows_ND, receives, sends, group=ranks.expert_group)
    return rows_nD
