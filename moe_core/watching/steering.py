"""Balances a model by the selection bias that its routers carry, which nothing else moves: a fine-tune leaves it as it was.

A bias changes which experts are chosen and no weight, so it needs no loss and disturbs no gradient.
Shapes: N tokens, E experts, K experts of a token, G groups.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from moe_core.watching.readers import Tap
from moe_core.watching.routers import SCORES, Groups, Router, k_of, limited

KINDS = ("loss-free", "quantile")


class Steering:
    """Moves the selection bias of each router that has one, at update() and at no other time.

    kind: "loss-free" moves each bias by `speed` towards an even count (Wang et al. 2024, arXiv 2408.15664); "quantile" sets the
    bias that would have evened the last tokens (Su 2026), has no speed, and needs their logits.
    ValueError for a model without such a bias, for a kind that does not exist, and where "quantile" cannot be computed.
    """

    def __init__(
        self, model: nn.Module, taps: Sequence[Tap], routers: Mapping[str, Router], kind: str, speed: float = 1e-3
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        if not 0 < speed < math.inf:
            raise ValueError(f"speed must be above 0, got {speed}")
        self.taps = [tap for tap in taps if tap.name in routers and routers[tap.name].bias_attribute is not None]
        if not self.taps:
            raise ValueError(
                f"steering wants a model whose routers add a bias to the scores for selection only, such as DeepSeek-V3's "
                f"e_score_correction_bias; {type(model).__name__} has none: balance it by its auxiliary loss"
            )
        self.routers = {tap.name: routers[tap.name] for tap in self.taps}
        if kind == "quantile":
            for tap in self.taps:
                check_quantile(tap, self.routers[tap.name])
        self.kind, self.speed = kind, speed
        self.exact: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, counts: Mapping[str, Tensor], logits: Mapping[str, Tensor] | None = None) -> None:
        """Move the biases, between two optimizer steps. counts, logits: by the tap's name; a tap that is missing keeps its bias.

        counts: selections (E,) since the last update, of training only, summed over ranks; a Tally's counts_E1 will do.
        logits: for "quantile", those (N, E) of the tokens that count, from all ranks if ranks are to keep the same bias.
        Nothing is copied to the host.
        """
        for tap in self.taps:
            router = self.routers[tap.name]
            bias_E, exact_E = self._biases(tap.name, router)
            if self.kind == "loss-free":
                if tap.name not in counts:
                    continue
                # Only real experts: ZAYA's bias has a last place for the class that skips them, which is left as it was.
                moved_E = exact_E.clone()
                moved_E[: tap.experts] += towards_even(counts[tap.name][: tap.experts], self.speed)
            else:
                if logits is None or tap.name not in logits or not len(logits[tap.name]):
                    continue
                scores_NE = SCORES[router.scores](logits[tap.name].float())
                moved_E = evening_bias(scores_NE, exact_E, k_of(router.module), router.groups)
            bias_E.copy_(moved_E)
            if self.exact.get(tap.name) is not None:
                self.exact[tap.name] = moved_E

    def _biases(self, name: str, router: Router) -> tuple[Tensor, Tensor]:
        """The model's bias, and what it was before it was rounded to a format that is coarser than float32.

        A bfloat16 bias of 0.5 or more has steps of 0.004 and would never move by 0.001. What a person or a checkpoint has
        written since the last update is taken as it is.
        """
        bias_E = router.bias
        assert bias_E is not None
        if bias_E.dtype in (torch.float32, torch.float64):
            return bias_E, bias_E
        exact_E = self.exact.get(name)
        if exact_E is None or exact_E.device != bias_E.device:
            exact_E = bias_E.float()
        self.exact[name] = torch.where(exact_E.to(bias_E.dtype) == bias_E, exact_E, bias_E.float())
        return bias_E, self.exact[name]


def check_quantile(tap: Tap, router: Router) -> None:
    """ValueError for a router whose bias cannot be set by quantiles."""
    bias_E = router.bias
    if bias_E is None or len(bias_E) != tap.experts or not k_of(router.module):
        raise ValueError(
            f"quantile wants as many biases as experts, each with the same share, and a router that says its top_k; "
            f"{router.name} has {0 if bias_E is None else len(bias_E)} biases for {tap.experts} experts: take 'loss-free'"
        )


def towards_even(counts_E: Tensor, speed: float) -> Tensor:
    """(E,) speed * sign(mean(counts) - counts_i). (Wang et al. 2024, algorithm 1)"""
    counts_E = counts_E.float()
    return (counts_E.mean() - counts_E).sign() * speed


def evening_bias(scores_NE: Tensor, bias_E: Tensor, k: int, groups: Groups | None = None) -> Tensor:
    """(E,) the k / E quantile over the tokens of the bias with which a token would just have chosen each expert, minus the mean.
    With it each expert would have got its share of these tokens, all else equal. (Su 2026)

    A token chooses i if s_i + b_i is above its cutoff, the (k+1)-th largest of s + b. Where selection is limited to groups, the
    cutoff is that of its kept groups, and to choose an expert of another group, the bias must also lift that group's score
    above the weakest kept one's. After 6 updates with fresh tokens that left MaxVio at 0.2 to 0.5 with 64 to 256 experts in 8
    groups; with the groups left out of account it stayed at 1 to 2.6.
    """
    N, E = scores_NE.shape
    if k == E:
        return bias_E  # every expert is chosen, whatever its bias
    by_NE = scores_NE + bias_E
    if groups is None:
        required_NE = by_NE.topk(k + 1, dim=1).values[:, -1:] - scores_NE
    else:
        required_NE = required_with_groups(scores_NE, bias_E, k, groups)
    position = k / E * (N - 1)  # of the quantile, between two tokens; torch.quantile takes no large batch
    sorted_NE = required_NE.sort(dim=0).values
    new_E = sorted_NE[math.floor(position)].lerp(sorted_NE[math.ceil(position)], position % 1)
    return new_E - new_E.mean()


def required_with_groups(scores_NE: Tensor, bias_E: Tensor, k: int, groups: Groups) -> Tensor:
    """(N, E) the bias with which each token would just have chosen each expert, all other biases being equal."""
    limited_NE, group_scores_NG, kept_NG = limited(scores_NE + bias_E, groups._replace(masked=-math.inf))
    # Where every expert of the kept groups is chosen, the smallest of their scores is the cutoff.
    choosable = groups.kept * scores_NE.shape[1] // groups.many
    cutoff_N1 = limited_NE.topk(min(k + 1, choosable), dim=1).values[:, -1:]
    weakest_N1 = group_scores_NG.gather(1, kept_NG).amin(1, keepdim=True)
    # A group's score is a sum of `best` scores. Its other experts lack tokens too and are raised as well, so each gets only its
    # part of the gap. If each got the whole gap, two groups would take turns at having all tokens.
    gap_NG = (weakest_N1 - group_scores_NG) / groups.best
    gap_NE = gap_NG.repeat_interleave(scores_NE.shape[1] // groups.many, dim=1)
    required_NE = cutoff_N1 - scores_NE
    return torch.where(gap_NE > 0, torch.maximum(required_NE, bias_E + gap_NE), required_NE)
