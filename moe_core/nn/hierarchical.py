"""Two levels of gates: a primary one chooses groups, and in each a secondary one its experts. (Shazeer 2017, appendix B)

Shapes: T tokens, D model width, G groups, B experts in each, E = G * B experts in all, group by group, P groups per
token, K experts per token and group. `x_TD` is (T, D).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from moe_core.nn.checks import check_k, check_noise, check_off, check_size
from moe_core.nn.compiled import never_compiled
from moe_core.nn.gating import (
    NoisyTopKGate,
    Routing,
    add_noise,
    add_recent_counts,
    alone,
    count_selections,
    dense_gates,
    experts_on,
    logits,
    selection_chance_TE,
    start_weights,
    switch_off,
)
from moe_core.nn.layer import MoELayer


class HierarchicalGate(nn.Module):
    """Chooses k_primary of the groups, and k experts in each; an expert's gate is the product of both levels'.

    k and noise are of the secondary level, k_primary and noise_primary of the primary one. The Routing is over all
    experts: its importance_E and load_E are Importance_H and Load_H of the paper, through which gradients reach both
    levels, and primary has the primary level's own. clean_logits_TE are such that their softmax is the product of both
    softmaxes, and their logsumexp that of the primary logits.
    """

    bring_together: Callable[[Tensor], Tensor] = staticmethod(alone)

    def __init__(
        self, d_model: int, num_experts: int, groups: int, k: int, k_primary: int = 2, zero_init: bool = True
    ) -> None:
        super().__init__()
        num_experts, groups = check_size("num_experts", num_experts), check_size("groups", groups)
        if groups < 2 or num_experts % groups:
            raise ValueError(f"num_experts must be divisible by 2 or more groups, got {num_experts} in {groups}")
        self.num_experts, self.groups, self.size = num_experts, groups, num_experts // groups
        self.k, self.k_primary = self.check_k(k), check_k(k_primary, groups, "k_primary", "groups")
        self.primary = NoisyTopKGate(d_model, groups, k_primary, zero_init)
        self.w_gate, self.w_noise = start_weights(d_model, num_experts, zero_init)
        add_recent_counts(self, num_experts)

    def check_k(self, k: int) -> int:
        return check_k(k, self.size, of="num_experts / groups")

    @never_compiled
    def forward(
        self,
        x_TD: Tensor,
        k: int | None = None,
        noise: float = 1.0,
        noisy: bool | None = None,
        off: Sequence[int] = (),
        k_primary: int | None = None,
        noise_primary: float = 1.0,
        weigh: str = "kept",
    ) -> Routing:
        """Routes x_TD. off are experts that take no part; a group must keep k of them on, or none. weigh is of both levels."""
        k = self.k if k is None else self.check_k(k)
        if k_primary is not None:
            k_primary = check_k(k_primary, self.groups, "k_primary", "groups")
        check_noise(noise)
        check_noise(noise_primary, "noise_primary")
        empty, off = self.switched_off(check_off(off, self.num_experts), k)
        if (left := self.groups - len(empty)) < (chosen := k_primary or self.k_primary):
            raise ValueError(f"at least k_primary={chosen} groups must keep experts that are on, got {left}")
        noisy = self.training if noisy is None else noisy
        primary = self.primary(x_TD, k_primary, noise_primary, noisy, empty, weigh)
        with torch.autocast(x_TD.device.type, enabled=False):
            x_TD = x_TD.to(torch.promote_types(x_TD.dtype, torch.float32))
            return self.route(x_TD, primary, k, noise if noisy else 0.0, empty, off, weigh)

    def switched_off(self, off: Sequence[int], k: int) -> tuple[list[int], list[int]]:
        """The groups whose experts are all off, and the experts that are off in the other groups."""
        on = [self.size - sum(e // self.size == group for e in off) for group in range(self.groups)]
        if any(0 < n < k for n in on):
            raise ValueError(f"each group must keep k={k} experts on, or none, got {', '.join(map(str, on))} on")
        empty = [group for group, n in enumerate(on) if n == 0]
        return empty, [e for e in off if e // self.size not in empty]

    def route(
        self,
        x_TD: Tensor,
        primary: Routing,
        k: int,
        noise: float,
        empty: Sequence[int],
        off: Sequence[int],
        weigh: str,
    ) -> Routing:
        """The equations, for rows in float32 or wider, with the noise as it is to be applied."""
        clean_TE = switch_off(logits(self, x_TD, self.w_gate), off)
        noisy_TE, std_TE = add_noise(self, clean_TE, x_TD, noise)
        shape_TGB = (len(clean_TE), self.groups, self.size)
        clean_TGB, noisy_TGB, std_TGB = (t.view(shape_TGB) for t in (clean_TE, noisy_TE, std_TE))

        # Both levels' choices as one, the largest product first. The primary level never chooses an empty group.
        top_TGK, inner_TGK = noisy_TGB.topk(k, dim=2)
        inner_weights_TGK = top_TGK.softmax(2) if weigh == "kept" else noisy_TGB.softmax(2).gather(2, inner_TGK)
        groups_TPK = primary.experts_TK[:, :, None].expand(-1, -1, k)
        products_TPK = primary.weights_TK[:, :, None] * inner_weights_TGK.gather(1, groups_TPK)
        experts_TPK = groups_TPK * self.size + inner_TGK.gather(1, groups_TPK)
        weights_TN, order_TN = products_TPK.flatten(1).sort(dim=1, descending=True, stable=True)
        experts_TN = experts_TPK.flatten(1).gather(1, order_TN)

        noisy_joint_TE = joint_logits(primary.noisy_logits_TE, noisy_TGB)
        all_off = [*off, *(g * self.size + b for g in empty for b in range(self.size))]
        return Routing(
            *(weights_TN, experts_TN),
            joint_logits(primary.clean_logits_TE, clean_TGB),
            noisy_joint_TE,
            std_TE,
            importance_E=dense_gates(weights_TN, experts_TN, self.num_experts).sum(0),
            load_E=hierarchical_load(primary, clean_TGB, noisy_TGB, std_TGB, k, noise > 0).flatten(),
            counts_E=count_selections(experts_TN, self.num_experts),
            on=experts_on(all_off, clean_TE),
            primary=primary,
            scores_TE=noisy_joint_TE.detach(),
        )


def joint_logits(primary_TG: Tensor, secondary_TGB: Tensor) -> Tensor:
    """(T, E) p_i + s_ij - log sum_j exp s_ij: their softmax is softmax(p)_i softmax(s_i)_j."""
    return (primary_TG[:, :, None] + secondary_TGB.log_softmax(2)).flatten(1)


def hierarchical_load(
    primary: Routing, clean_TGB: Tensor, noisy_TGB: Tensor, std_TGB: Tensor, k: int, noisy: bool
) -> Tensor:
    """(G, B) Load_H: Load_primary(X)_i Load_i(X^(i))_j / |X^(i)|, X^(i) the tokens that chose group i. (appendix B)

    Both loads are smooth, so that the gradient reaches both gates; |X^(i)| is the hard count, plus 1e-10 for a group
    that nothing chose. Without noise at a level its load is the count.
    """
    size = clean_TGB.shape[2]
    if k == size:
        chance_TGB = torch.ones_like(clean_TGB)
    elif noisy:
        flat_NB = (t.flatten(0, 1) for t in (clean_TGB, noisy_TGB, std_TGB))
        chance_TGB = selection_chance_TE(*flat_NB, k).view(clean_TGB.shape)
    else:
        chance_TGB = torch.zeros_like(clean_TGB).scatter_(2, noisy_TGB.topk(k, dim=2).indices, 1.0)
    chose_TG = torch.zeros_like(primary.clean_logits_TE).scatter_(1, primary.experts_TK, 1.0)
    load_GB = (chance_TGB * chose_TG[:, :, None]).sum(0)
    return primary.load_E[:, None] * load_GB / (primary.counts_E[:, None] + 1e-10)


class HierarchicalMoELayer(MoELayer):
    """An MoELayer below a gate of two levels: y = sum_i sum_j G_primary(x)_i G_i(x)_j Expert_ij(x).

    layer(x, k, noise, noisy, k_primary=…, noise_primary=…) -> (y, Routing over all experts).
    """

    def __init__(
        self,
        d_model: int,
        d_hidden: int,
        num_experts: int,
        groups: int,
        k: int,
        k_primary: int = 2,
        zero_init: bool = True,
    ) -> None:
        gate = HierarchicalGate(d_model, num_experts, groups, k, k_primary, zero_init)
        super().__init__(d_model, d_hidden, num_experts, k, gate=gate)
