"""The Mixture-of-Experts layer: a noisy top-k gate over ReLU experts. (Shazeer et al. 2017, arXiv 1701.06538)

Shapes: T tokens, D model width, H expert width, E experts. `x_TD` is (T, D).
"""

from typing import Any

import torch
from torch import Tensor, nn

from moe_core.nn.checks import check_rows, check_size, shown
from moe_core.nn.compiled import never_compiled
from moe_core.nn.experts import mixture
from moe_core.nn.gating import NoisyTopKGate, Routing
from moe_core.nn.strategies import route


class MoELayer(nn.Module):
    """y = sum_i G(x)_i Expert_i(x), Expert_i(x) = w2_i relu(w1_i x): only the selected experts are evaluated.

    w1 and w2 are both (E, D, H), so that all products read them row by row. zero_init as in NoisyTopKGate; another gate
    may take its place.
    """

    def __init__(
        self,
        d_model: int,
        d_hidden: int,
        num_experts: int,
        k: int,
        zero_init: bool = True,
        gate: nn.Module | None = None,
    ) -> None:
        super().__init__()
        d_model, d_hidden = check_size("d_model", d_model), check_size("d_hidden", d_hidden)
        num_experts = check_size("num_experts", num_experts)
        if gate is not None and not (isinstance(gate, nn.Module) and hasattr(gate, "num_experts")):
            raise ValueError(f"gate must be a module with num_experts, as NoisyTopKGate is, got {shown(gate)}")
        self.gate = NoisyTopKGate(d_model, num_experts, k, zero_init) if gate is None else gate
        if self.gate.num_experts != num_experts:
            raise ValueError(
                f"the gate must have num_experts={num_experts} experts as the layer, got {self.gate.num_experts}"
            )
        self.mix = mixture  # where the experts are on several ranks, parallel/exchange.py
        # The bounds of nn.Linear: 1 / sqrt(inputs).
        self.w1 = nn.Parameter(torch.empty(num_experts, d_model, d_hidden).uniform_(-(d_model**-0.5), d_model**-0.5))
        self.w2 = nn.Parameter(torch.empty(num_experts, d_model, d_hidden).uniform_(-(d_hidden**-0.5), d_hidden**-0.5))

    @property
    def num_experts(self) -> int:
        return self.gate.num_experts

    @never_compiled
    def forward(
        self, x: Tensor, k: int | None = None, noise: float = 1.0, noisy: bool | None = None, **options: Any
    ) -> tuple[Tensor, Routing]:
        """x (..., D) -> (y (..., D), Routing over the T tokens of the leading dimensions); k, noise, noisy as the gate's.

        options: strategy (schema.STRATEGIES; "paper" is the gate by itself), weigh (over the "kept"
        experts, over "all", or the strategy's "own"), capacity_factor (0 drops nothing), off (experts that take no part,
        counted from 0). ValueError, in a line, for an impossible value.

        Without tokens the output is empty and all statistics are 0. A token that holds NaN or infinity gets NaN as its output and changes
        the output of no other. It makes NaN of the importance of its experts, of every expert's smooth load, and so of the balancing losses;
        the counts stay right. Where experts choose (STRATEGIES' `whole`), it takes up a place of each expert, and its output is 0, like that
        of a token that no expert took. There are first derivatives only: create_graph=True is refused (once.py), and torch refuses the
        transforms of torch.func. torch.compile leaves the layer as it is, and compiles what is around it.
        """
        check_rows(x, self.w1.shape[1])
        x_TD = x.reshape(-1, x.shape[-1])
        routing = route(self.gate, x_TD, k, noise=noise, noisy=noisy, **options)
        gaps = routing.kept_E is not None
        y_TD = self.mix(
            x_TD,
            routing.weights_TK,
            routing.experts_TK,
            routing.kept_E if gaps else routing.counts_E,
            self.w1,
            self.w2,
            gaps,
        )
        return y_TD.reshape(x.shape), routing
