"""The routers of other people's models: where their logits are, and how they choose by them, so that the choice can be repeated.

Taps say what was chosen; the logits say how close another choice was. transformers says in each model's `_can_record_outputs`
which modules give router logits, and at which index of what they return.

Shapes: L layers, N tokens, E experts, K experts of a token.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe_core.nn.gating import FEW, out_of_reach
from moe_core.watching.readers import Tap, parent_of

# How logits become the scores by which a router chooses.
SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits: logits.softmax(-1),
    "sigmoid": torch.sigmoid,
    "logits": lambda logits: logits,
    "sqrtsoftplus": lambda logits: F.softplus(logits).sqrt(),  # DeepSeek-V4
}
# The scores of routers for which scores_of() would guess wrong, by their class.
SCORES_OF = {
    "Ernie4_5_MoeTopKRouter": "softmax",
    "FlintTopKRouter": "sigmoid",
    "Kolibri1TopKRouter": "logits",
    "Lfm2MoeTopKRouter": "sigmoid",
    "Llama4Router": "sigmoid",
    "LongcatFlashTopkRouter": "softmax",
    "ZayaRouter": "softmax",
}
# How many experts a token goes to, as modules and configs of models call it, and as routers and their blocks do too.
K_NAMES = ("top_k", "num_experts_per_tok", "top_k_experts")
K_NAMES_OF_ROUTERS = (*K_NAMES, "topk", "k", "num_experts_per_token")
# A tensor that is added to the scores for selection only: of the router, of a module in it, or of the block that calls it.
BIASES = ("e_score_correction_bias", "expert_bias", "balancing_biases")


class Groups(NamedTuple):
    """Selection that is limited to some groups of experts: of `many` groups the `kept` ones with the largest sum of their
    `best` (1 or 2) largest scores. The scores of all others count as `masked`."""

    many: int
    kept: int
    best: int
    masked: float


class Logits:
    """Reads a router's logits (N, E) from what it returned: (module, args, kwargs, output) -> Tensor, detached.

    Some routers return probabilities in their place (Gemma 4; several before transformers 5.6). We take their logarithm. It differs
    from the logits by one number per token, which margin, confidence and spread do not depend on; a z-loss of it would be 0. The
    first call decides whether the router returns logits or probabilities, and only that call waits for the device.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.probabilities: bool | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Tensor:
        given = cast(Tensor, output if torch.is_tensor(output) else output[self.index])
        logits_NE = given.detach().flatten(0, -2)
        if self.probabilities is None:
            if not len(logits_NE):  # no token tells which
                return logits_NE
            self.probabilities = bool(are_probabilities(logits_NE))
        return logits_NE.log() if self.probabilities else logits_NE


def are_probabilities(values_NE: Tensor) -> Tensor:
    """() bool: whether rows sum to 1 and none is negative. The tolerance is that of bfloat16."""
    return (values_NE >= 0).all() & ((values_NE.float().sum(-1) - 1).abs() < 0.02).all()


@dataclass(frozen=True)
class Router:
    """What chooses for one tap. name: the path of its module; read: its logits, given to a forward hook (with_kwargs) of module;
    scores: a name of SCORES; bias_attribute: the module that holds the selection bias, and the bias's name in it, or None."""

    name: str
    module: nn.Module
    read: Logits
    scores: str
    groups: Groups | None
    bias_attribute: tuple[nn.Module, str] | None

    @property
    def kind(self) -> tuple[str, Groups | None, bool]:
        """Routers of one kind choose in the same way."""
        return self.scores, self.groups, self.bias_attribute is not None

    @property
    def bias(self) -> Tensor | None:
        """(E,) the tensor that is added to the scores for selection only, as a view of what the model holds now: a model that
        is moved to another device holds another tensor."""
        if self.bias_attribute is None:
            return None
        owner, name = self.bias_attribute
        return cast(Tensor, getattr(owner, name)).detach().view(-1)


def find_routers(model: nn.Module, taps: Sequence[Tap]) -> dict[str, Router]:
    """The router of each tap, by the tap's name. A tap is left out if the model does not say which modules give router logits, if
    several do beside the tap, or if the layer's ids come from a table."""
    indices = logit_indices(model)
    modules = dict(model.named_modules())
    is_router = {name: modules[name] for name in modules if isinstance(modules[name], tuple(indices))}
    routers = {}
    for tap in taps:
        others = [other.name for other in taps if other.name != tap.name]
        near = nearest(tap.name, list(is_router), others)
        if near is not None:
            index = next(index for kind, index in indices.items() if isinstance(is_router[near], kind))
            routers[tap.name] = router_of(near, is_router[near], index, modules)
    return routers


def logit_indices(model: nn.Module) -> dict[type[nn.Module], int]:
    """Which item of what a module returns holds router logits, by the module's class, as transformers' models say it."""
    indices: dict[type[nn.Module], int] = {}
    for module in model.modules():
        said = (getattr(type(module), "_can_record_outputs", None) or {}).get("router_logits", ())
        for one in said if isinstance(said, list | tuple) else [said]:
            kind = getattr(one, "target_class", one)
            if isinstance(kind, type) and issubclass(kind, nn.Module):
                indices[kind] = int(getattr(one, "index", 0))
    return indices


def nearest(tap: str, routers: Sequence[str], others: Sequence[str]) -> str | None:
    """The router at a tap, else the only one in the smallest module that holds both and no other tap; None if there is none."""
    within = tap
    while True:
        inside = [name for name in routers if is_in(name, within)]
        if len(inside) == 1:
            return inside[0]
        if inside or not within:
            return None
        within = parent_of(within)
        if any(is_in(other, within) for other in others):
            return None


def is_in(name: str, path: str) -> bool:
    """Whether the module `name` is the one at `path`, or inside it."""
    return not path or name == path or name.startswith(f"{path}.")


def router_of(name: str, module: nn.Module, index: int, modules: Mapping[str, nn.Module]) -> Router:
    """What is known of a router."""
    bias_attribute = bias_attribute_of(module, modules[parent_of(name)])
    return Router(name, module, Logits(index), scores_of(module, bias_attribute), groups_of(module), bias_attribute)


def bias_attribute_of(router: nn.Module, block: nn.Module) -> tuple[nn.Module, str] | None:
    """The module that holds a router's selection bias, and the bias's name in it: the router or a part of it, else its block."""
    for owner in (*router.modules(), block):
        for bias in BIASES:
            if torch.is_tensor(getattr(owner, bias, None)):
                return owner, bias
    return None


def scores_of(router: nn.Module, bias_attribute: tuple[nn.Module, str] | None) -> str:
    """The name of a router's scores: by its class, else by the function or the name that it holds, else by what is usual: the
    sigmoid with a selection bias (DeepSeek-V3), the softmax without."""
    for kind in type(router).__mro__:
        if kind.__name__ in SCORES_OF:
            return SCORES_OF[kind.__name__]
    if (said := getattr(router, "expert_selection_fn", None)) in SCORES:
        return cast(str, said)
    for word in ("score_fn", "scoring_function"):
        if callable(function := getattr(router, word, None)):
            values = torch.linspace(-3, 3, 7)
            for name, score in SCORES.items():
                if torch.allclose(function(values), score(values)):
                    return name
    return "softmax" if bias_attribute is None else "sigmoid"


def k_of(*holders: Any) -> int:
    """How many experts a router chooses, as the first of these says: the router, its block, the model's config. 0 if none does."""
    for holder in holders:
        for name in K_NAMES_OF_ROUTERS:
            if isinstance(k := getattr(holder, name, None), int):
                return k
    return 0


def groups_of(router: nn.Module) -> Groups | None:
    """A router's limit to groups, None without one."""
    many = getattr(router, "num_group", None) or getattr(router, "n_group", None)
    kept = getattr(router, "topk_group", None)
    # Only DeepSeek-V2 has a method: "greedy" does not limit, the other one ranks groups by their largest score.
    method = getattr(router, "topk_method", None)
    if not isinstance(many, int) or not isinstance(kept, int) or many == 1 or method == "greedy":
        return None
    # A.X-K2 masks by 0, so that a score that its bias makes negative loses to an expert of another group.
    masked = 0.0 if hasattr(router, "apply_group_scoring") else -math.inf
    return Groups(many, kept, best=2 if method is None else 1, masked=masked)


# A choice, repeated


def choose(router: Router, logits_NE: Tensor, k: int) -> Tensor:
    """(N, K) the experts that a router chooses by these logits, in no order. Not those of a router that samples (PhiMoE)."""
    bias_E = router.bias
    scores_NE = SCORES[router.scores](logits_NE.float())
    return best_of(scores_NE if bias_E is None else scores_NE + bias_E, k, router.groups)


def best_of(scores_NE: Tensor, k: int, groups: Groups | None) -> Tensor:
    """(..., N, K) the k largest scores, of the groups that are kept."""
    return (scores_NE if groups is None else limited(scores_NE, groups)[0]).topk(k, dim=-1, sorted=False).indices


Limits = tuple[Tensor, Tensor, Tensor]  # what limited() gives


def limited(scores_NE: Tensor, groups: Groups) -> Limits:
    """Scores (..., N, E), those of groups that are not kept masked; each group's score (..., N, G); the kept groups (..., N, G')."""
    in_groups_NGB = scores_NE.reshape(*scores_NE.shape[:-1], groups.many, -1)
    first_NG1, at_NG1 = in_groups_NGB.max(-1, keepdim=True)
    group_scores_NG = first_NG1[..., 0]
    if groups.best == 2:  # a top-k of two takes five times as long on a CPU
        group_scores_NG = group_scores_NG + in_groups_NGB.scatter(-1, at_NG1, -math.inf).amax(-1)
    kept_NG = group_scores_NG.topk(groups.kept, dim=-1).indices
    is_kept_NG = torch.zeros_like(group_scores_NG, dtype=torch.bool).scatter(-1, kept_NG, True)
    return in_groups_NGB.masked_fill(~is_kept_NG[..., None], groups.masked).flatten(-2), group_scores_NG, kept_NG


# What the logits say of a choice


class ScoreStatistics(NamedTuple):
    """Of each layer, (L,), as schema.STATS defines them; NaN where there is none."""

    router_margin_L: Tensor
    router_margin_p10_L: Tensor
    confidence_L: Tensor
    logit_spread_L: Tensor
    bias_effect_L: Tensor
    unreachable_L: Tensor


@torch.no_grad()
def score_statistics(
    logits_LNE: Tensor,
    ids_LNK: Tensor,
    scores: str = "softmax",
    bias_LE: Tensor | None = None,
    groups: Groups | None = None,
    kept_N: Tensor | None = None,
) -> ScoreStatistics:
    """Statistics of layers whose routers are alike. Nothing is copied to the host.

    ids_LNK: what was chosen, each from 0 to E - 1. kept_N (N,) bool: the tokens that count; None: all do.
    The margin is measured on the numbers that select: the logits, or, with a bias or groups, the scores + bias.
    """
    logits_LNE = logits_LNE.float()
    plain = bias_LE is None and groups is None
    scores_LNE = logits_LNE if plain else SCORES[scores](logits_LNE)
    by_LNE = scores_LNE if bias_LE is None else scores_LNE + bias_LE[:, None]
    chosen_LNK = logits_LNE.gather(-1, ids_LNK)
    limits = None if groups is None else limited(by_LNE, groups)
    margin_LN = margins(by_LNE, ids_LNK, groups, limits, chosen_LNK if plain else None)
    unreachable_L = out_of_reach_of_kept(lacking(by_LNE, ids_LNK, groups, limits), kept_N)
    values = [margin_LN, chosen_share(logits_LNE, chosen_LNK, scores), spread(logits_LNE)]
    if bias_LE is not None:
        values.append(overlap(ids_LNK, best_of(scores_LNE, ids_LNK.shape[-1], groups)))
    means = mean_over(torch.stack(values), kept_N)
    none_L = torch.full_like(means[0], math.nan)
    # Where nothing is unchosen, the margin is infinite.
    tenth_L = low_tenth(margin_LN) if kept_N is None else low_tenth_of_kept(margin_LN, kept_N)
    mean_L, tenth_L = (none_L, none_L) if ids_LNK.shape[-1] == logits_LNE.shape[-1] else (means[0], tenth_L)
    return ScoreStatistics(mean_L, tenth_L, means[1], means[2], none_L if bias_LE is None else means[3], unreachable_L)


def margins(
    by_LNE: Tensor,
    ids_LNK: Tensor,
    groups: Groups | None = None,
    limits: Limits | None = None,
    chosen_LNK: Tensor | None = None,
) -> Tensor:
    """(L, N) the weakest chosen score minus the strongest unchosen one; infinite where nothing is unchosen. (gating.router_margin)

    With groups the smaller of that within the kept groups, and of the weakest kept group's score minus the strongest other's,
    divided by how many scores it sums: an error of less than half of it in each score changes no choice. limits: the scores as
    limited() gives them, None without groups.
    """
    if limits is not None:
        by_LNE, group_scores_LNG, kept_LNG = limits
    chosen_LNK = by_LNE.gather(-1, ids_LNK) if chosen_LNK is None else chosen_LNK
    margin_LN = chosen_LNK.amin(-1) - by_LNE.scatter(-1, ids_LNK, -math.inf).amax(-1)
    if groups is None or limits is None:
        return margin_LN
    return torch.minimum(margin_LN, margins(group_scores_LNG, kept_LNG) / groups.best)


def lacking(by_LNE: Tensor, ids_LNK: Tensor, groups: Groups | None, limits: Limits | None) -> Tensor:
    """(L, N, E) how much each expert's score would have to rise, alone, for each token to choose it: to the weakest chosen score, or,
    where its group is not kept, at least so far that the group is. Not above 0 for an expert that was chosen."""
    within_LNE = by_LNE.gather(-1, ids_LNK).amin(-1, keepdim=True) - by_LNE
    if groups is None or limits is None:
        return within_LNE
    _, group_scores_LNG, kept_LNG = limits
    weakest_LN1 = group_scores_LNG.gather(-1, kept_LNG).amin(-1, keepdim=True)
    needed_LNG1 = weakest_LN1[..., None].expand_as(group_scores_LNG[..., None])
    in_groups_LNGB = by_LNE.reshape(*by_LNE.shape[:-1], groups.many, -1)
    if groups.best == 2:  # a group's score is the expert's and the best other one's
        first_LNG1, at_LNG1 = in_groups_LNGB.max(-1, keepdim=True)
        second_LNG1 = in_groups_LNGB.scatter(-1, at_LNG1, -math.inf).amax(-1, keepdim=True)
        is_first_LNGB = torch.zeros_like(in_groups_LNGB, dtype=torch.bool).scatter(-1, at_LNG1, True)
        needed_LNG1 = needed_LNG1 - torch.where(is_first_LNGB, second_LNG1, first_LNG1)
    is_kept_LNG = torch.zeros_like(group_scores_LNG, dtype=torch.bool).scatter(-1, kept_LNG, True)
    is_kept_LNE = is_kept_LNG.repeat_interleave(in_groups_LNGB.shape[-1], dim=-1)
    return torch.where(is_kept_LNE, within_LNE, (needed_LNG1 - in_groups_LNGB).flatten(-2))


def out_of_reach_of_kept(lack_LNE: Tensor, kept_N: Tensor | None) -> Tensor:
    """(L,) out_of_reach() of the tokens that count. Every other token is replaced by a copy of the first that counts, which
    changes neither the smallest nor the largest lack."""
    if kept_N is None:
        return out_of_reach(lack_LNE)
    first = kept_N.int().argmax().view(1)
    unreachable_L = out_of_reach(torch.where(kept_N[:, None], lack_LNE, lack_LNE.index_select(1, first)))
    return torch.where(kept_N.sum() < FEW, math.nan, unreachable_L)


def chosen_share(logits_LNE: Tensor, chosen_LNK: Tensor, scores: str) -> Tensor:
    """(L, N) the chosen experts' share of the scores over all experts, without a bias. A router that chooses by its logits
    (Kolibri) weighs by their sigmoids, so there it is the share of the sigmoids."""
    if scores == "softmax":
        return (chosen_LNK - logits_LNE.logsumexp(-1, keepdim=True)).exp_().sum(-1)
    score = torch.sigmoid if scores == "logits" else SCORES[scores]
    return score(chosen_LNK).sum(-1) / score(logits_LNE).sum(-1)


def overlap(one_LNK: Tensor, other_LNK: Tensor) -> Tensor:
    """(L, N) |A and B| / |A or B| of two choices."""
    both_LN = (one_LNK[..., None] == other_LNK[..., None, :]).sum((-1, -2))
    return both_LN / (2 * one_LNK.shape[-1] - both_LN)


def spread(logits_LNE: Tensor) -> Tensor:
    """(L, N) the standard deviation over the experts. torch.std takes six times as long."""
    away_LNE = logits_LNE - logits_LNE.mean(-1, keepdim=True)
    length_LN: Tensor = torch.linalg.vector_norm(away_LNE, dim=-1)
    return length_LN / math.sqrt(logits_LNE.shape[-1])


def mean_over(values_N: Tensor, kept_N: Tensor | None) -> Tensor:
    """(...) the mean of (..., N) over the tokens that count; NaN if there is none."""
    return values_N.mean(-1) if kept_N is None else values_N.where(kept_N, 0).sum(-1) / kept_N.sum()


def low_tenth(margin_LN: Tensor) -> Tensor:
    """(L,) the 10th percentile over tokens, between two tokens as numpy's."""
    position = 0.1 * (margin_LN.shape[1] - 1)
    low_Ln = margin_LN.topk(math.ceil(position) + 1, dim=1, largest=False).values
    return low_Ln[:, math.floor(position)].lerp(low_Ln[:, -1], position % 1)


def low_tenth_of_kept(margin_LN: Tensor, kept_N: Tensor) -> Tensor:
    """(L,) low_tenth() over the tokens that count, whose number the host does not know."""
    position = 0.1 * (kept_N.sum() - 1)
    enough = math.ceil(0.1 * (margin_LN.shape[1] - 1)) + 1  # as many as are needed if all tokens count
    low_LN = margin_LN.masked_fill(~kept_N, math.inf).topk(enough, dim=1, largest=False).values
    low_L, high_L = (
        low_LN.index_select(1, at.long().clamp(min=0).view(1))[:, 0] for at in (position.floor(), position.ceil())
    )
    return torch.where(position < 0, math.nan, low_L.lerp(high_L, position.frac()))
