"""The selections of a run's last steps, and what is counted of them: which experts work together, and on what.

Shapes: L layers, T tokens, E experts, K experts per token, C values of a label.
"""

import copy
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from moe_core.nn.gating import Routing
from moe_core.schema import WINDOW, Config
from moe_core.training.data import Data
from moe_core.training.devices import Dealt

TOGETHER = 16  # steps that are converted at a time


class Window:
    """The selections of the last WINDOW steps, from which co-activation and specialisation are counted exactly.

    Kept in uint8, which holds 255 experts and an empty place, or 256 values of a label: 4 KB a layer and step at the default sizes.
    TOGETHER steps are converted at a time, since each by itself costs many small calls. dealt: how several ranks share batch and
    experts, None if there is one.
    """

    dealt: Dealt | None = None

    def __init__(self, config: Config, sizes: dict[str, int]):
        self.num_experts, self.sizes = config.num_experts, sizes
        self.steps: deque[tuple[list[Tensor], dict[str, Tensor]]] = deque(maxlen=WINDOW)
        self.large: list[tuple[list[Tensor], dict[str, Tensor]]] = []  # the latest steps, as they came

    def add(self, routings: list[Routing], labels: dict[str, Tensor]) -> None:
        """Add a step. Its tensors are kept, and must not be written to any more."""
        self.large.append(([r.experts_TK for r in routings], labels))
        if len(self.large) == TOGETHER:
            self.shrink()

    def shrink(self) -> None:
        """Convert the latest steps to small integers."""
        large, self.large = self.large, []
        kind = torch.uint8 if self.num_experts < 256 else torch.int16
        layers = [small(of_layer, kind) for of_layer in zip(*(chosen for chosen, _ in large), strict=True)]
        labels = {
            name: small([labels[name] for _, labels in large], torch.uint8) for name in (large[0][1] if large else ())
        }
        for at in range(len(large)):
            self.steps.append(([layer[at] for layer in layers], {name: x[at] for name, x in labels.items()}))

    def now(self) -> "Window":
        """A copy for another thread, without what is added to this window later."""
        self.shrink()
        window = copy.copy(self)
        window.steps, window.large = self.steps.copy(), []
        return window

    def state(self) -> list[list[Tensor]]:
        """The selections, for a checkpoint; the labels follow from the data."""
        self.shrink()
        return [chosen for chosen, _ in self.steps]

    def restore(self, state: list[list[Tensor]], step: int, data: Data, device: torch.device) -> None:
        """Set the window to its state after a step."""
        self.steps.clear()
        self.large.clear()
        for at, chosen in enumerate(state, step - len(state) + 1):
            labels = {name: x.to(device, torch.uint8) for name, x in data.batch(at).labels.items()}
            self.steps.append(([x.to(device) for x in chosen], labels))

    def coactivation(self) -> Tensor:
        """(L, E, E): of the tokens of expert i, the share that also goes to j. Rows of an unused expert are 0."""
        self.shrink()
        layers = []
        for layer in range(len(self.steps[0][0])):
            both_EE = sum(together(chosen[layer].long(), self.num_experts) for chosen, _ in self.steps)
            layers.append(both_EE / both_EE.diagonal()[:, None].clamp(min=1))
        return torch.stack(layers)

    def rows_between_ranks(self, dealt: Dealt) -> Tensor:
        """(L, R, R): how many rows each rank sent to each over these steps. Those of a column are the load of its device."""
        self.shrink()
        layers = range(len(self.steps[0][0]))
        return torch.stack(
            [sum(dealt.rows_between(chosen[at].long(), self.num_experts) for chosen, _ in self.steps) for at in layers]
        )

    def specialisation(self, label: str) -> Tensor:
        """(L, C, E): of the selections for tokens with value c of the label, the share that went to each expert."""
        self.shrink()
        E, C = self.num_experts, self.sizes[label]
        layers = []
        for layer in range(len(self.steps[0][0])):
            pairs = [
                (labels[label].long()[:, None] * (E + 1) + chosen[layer].long()).flatten()
                for chosen, labels in self.steps
            ]
            counts_CE = torch.bincount(torch.cat(pairs), minlength=C * (E + 1)).view(C, E + 1)[:, :E].float()
            layers.append(counts_CE / counts_CE.sum(1, keepdim=True).clamp(min=1))
        return torch.stack(layers)


def together(experts_TK: Tensor, num_experts: int) -> Tensor:
    """(E, E) tokens that go to both i and j, in float; of i and i, all that go to i. An empty place is left out."""
    (tokens, k), E = experts_TK.shape, num_experts
    if k * k < E:  # pairs are fewer than the cells of a product of masks
        pairs_TKK = experts_TK[:, :, None] * (E + 1) + experts_TK[:, None, :]
        return pairs_TKK.flatten().bincount(minlength=(E + 1) ** 2).view(E + 1, E + 1)[:E, :E].float()
    mask_TE = torch.zeros(tokens, E + 1, device=experts_TK.device).scatter_(1, experts_TK, 1.0)[:, :E]
    return mask_TE.T @ mask_TE


def small(of_steps: Sequence[Tensor], kind: torch.dtype) -> Sequence[Tensor]:
    """The tensors in smaller integers: in one call if all have the same shape, which only strategies that give tokens different
    numbers of experts change."""
    if len({x.shape for x in of_steps}) == 1:
        return torch.stack(list(of_steps)).to(kind).unbind()
    return [x.to(kind) for x in of_steps]
