"""What the layers of a model selected since the last step, added up on their device; nothing is copied to the host.

Shapes: N tokens, K places of a token, E experts, C calls of layers that are alike, M sampled tokens of a call.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# The statistics of a router's scores, in the order of Sums.scores_SC.
SCORE_STATS = ("router_margin", "router_margin_p10", "confidence", "logit_spread", "bias_effect", "unreachable")
SAMPLE = 1024  # at most so many tokens of a call, evenly spaced, have their scores kept and measured


class Call(NamedTuple):
    """One forward of a tapped layer. tap: the tap's number; step: the step that it belongs to; kept_N: which tokens count, None for
    all; logits_ME: the router's logits of every stride-th token, None if they were not kept; size: how many numbers it keeps."""

    tap: int
    step: int
    ids_NK: Tensor
    weights_NK: Tensor | None
    kept_N: Tensor | None
    logits_ME: Tensor | None = None
    stride: int = 1
    size: int = 0


class Sums(NamedTuple):
    """Calls of layers that are alike, added up. taps, steps: the tap's number and the step of each call. counts_CE1 (C, E + 1)
    int64: selections, the last column for places without an expert. importance_CE1 (C, E + 1) float32: sums of weights, None if the
    layers give no weights. scores_SC: SCORE_STATS, means over each call's tokens, None if no logits were kept."""

    taps: list[int]
    steps: list[int]
    counts_CE1: Tensor
    importance_CE1: Tensor | None
    places: int  # K
    scores_SC: Tensor | None = None


@torch.no_grad()
def add_up(calls: Sequence[Call], experts: int) -> Sums:
    """Add up calls whose ids have the same shape and mask, and whose layers have `experts` experts. An id outside 0 to E - 1 is no
    expert of the layer. Nor is an id of weight 0: some models write expert 0 in a place that they leave empty."""
    ids_CNK = torch.stack([call.ids_NK for call in calls])
    chosen_CNK = (ids_CNK >= 0) & (ids_CNK < experts)
    weights_CNK = None
    if calls[0].weights_NK is not None:
        weights_CNK = torch.stack([call.weights_NK for call in calls if call.weights_NK is not None])
        chosen_CNK &= weights_CNK != 0
    if calls[0].kept_N is not None:
        chosen_CNK &= calls[0].kept_N[:, None]
    place_CP = torch.where(chosen_CNK, ids_CNK, experts).long().flatten(1)
    sums = torch.zeros(len(calls), experts + 1, device=place_CP.device)
    counts_CE1 = sums.long().scatter_add_(1, place_CP, torch.ones_like(place_CP))
    taps, steps = [call.tap for call in calls], [call.step for call in calls]
    if weights_CNK is None:
        return Sums(taps, steps, counts_CE1, None, ids_CNK.shape[2])
    importance_CE1 = sums.scatter_add_(1, place_CP, weights_CNK.float().flatten(1))
    return Sums(taps, steps, counts_CE1, importance_CE1, ids_CNK.shape[2])


def merged(sums: Sequence[Sums]) -> list[Sums]:
    """Sums of the same step and tap, added into one row, so that memory does not grow while nobody calls live.step()."""
    rows: dict[tuple[int, int], list[tuple[Sums, int]]] = {}
    for one in sums:
        for row, key in enumerate(zip(one.taps, one.steps, strict=True)):
            rows.setdefault(key, []).append((one, row))
    return [together(tap, step, of_tap) for (tap, step), of_tap in rows.items()]


def together(tap: int, step: int, rows: Sequence[tuple[Sums, int]]) -> Sums:
    """One row of rows of the same step and tap: their sum, and the mean of the statistics of their scores."""
    first = rows[0][0]
    weighed = all(one.importance_CE1 is not None for one, _ in rows)
    weights = [one.importance_CE1[row] for one, row in rows if one.importance_CE1 is not None]
    scores = [one.scores_SC[:, row] for one, row in rows if one.scores_SC is not None]
    counts_E1 = torch.stack([one.counts_CE1[row] for one, row in rows]).sum(0)
    return Sums(
        [tap], [step], counts_E1[None], torch.stack(weights).sum(0)[None] if weighed else None, first.places,
        torch.stack(scores).mean(0)[:, None] if scores else None,
    )  # fmt: skip


def counts_by_tap(sums: Sequence[Sums]) -> dict[int, Tensor]:
    """The counts (E + 1,) of each tap, by its number."""
    counts: dict[int, Tensor] = {}
    for one in sums:
        for tap, counts_E1 in zip(one.taps, one.counts_CE1, strict=True):
            counts[tap] = counts[tap] + counts_E1 if tap in counts else counts_E1
    return counts


class Tally:
    """The sums of one layer, added to in place: for a compiled model, whose graph holds no list of calls."""

    def __init__(self, tap: int, experts: int, device: torch.device) -> None:
        self.tap, self.experts = tap, experts
        device = (
            torch.device("cpu") if device.type == "meta" else device
        )  # a model that is still to be made has no device yet
        self.counts_E1 = torch.zeros(experts + 1, dtype=torch.int64, device=device)
        self.importance_E1 = torch.zeros(experts + 1, device=device)
        self.weighed, self.places = True, 0  # places 0: not called yet

    @torch.no_grad()
    def add(self, ids_NK: Tensor, weights_NK: Tensor | None, kept_N: Tensor | None) -> None:
        """Add a call, as add_up() does."""
        if self.counts_E1.device != ids_NK.device:
            self.counts_E1, self.importance_E1 = (x.to(ids_NK.device) for x in (self.counts_E1, self.importance_E1))
        E = self.experts
        chosen_NK = (ids_NK >= 0) & (ids_NK < E)
        if weights_NK is not None:
            chosen_NK &= weights_NK != 0
        if kept_N is not None:
            chosen_NK &= kept_N[:, None]
        place_P = torch.where(chosen_NK, ids_NK, E).long().flatten()
        self.counts_E1.scatter_add_(0, place_P, torch.ones_like(place_P))
        self.weighed, self.places = weights_NK is not None, ids_NK.shape[1]
        if weights_NK is not None:
            self.importance_E1.scatter_add_(0, place_P, weights_NK.float().flatten())

    @torch.no_grad()
    def take(self, step: int) -> Sums:
        """What was added since the last take, in this step."""
        importance_CE1 = self.importance_E1[None].clone() if self.weighed else None
        taken = Sums([self.tap], [step], self.counts_E1[None].clone(), importance_CE1, self.places)
        self.counts_E1.zero_()
        self.importance_E1.zero_()
        return taken
