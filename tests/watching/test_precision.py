"""Whether a margin is below rounding is judged by a router's own scores, bias and groups."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moe_core.watching.router_checks import below_rounding
from moe_core.watching.routers import SCORES, Logits, Router, router_of


class Gate(nn.Module):
    """What a router holds beside its weights."""

    def __init__(self, bias: Tensor, **attributes: Any) -> None:
        super().__init__()
        self.e_score_correction_bias = bias
        vars(self).update(attributes)


@pytest.mark.parametrize("scores", SCORES)
def test_a_margin_is_that_of_the_routers_own_scores(scores: str) -> None:
    """Near rounding where the bias makes up for what one score has more than another, and not where it makes up for less."""
    logits_NE = torch.tensor([[2.0, 1.0, -4.0]], dtype=torch.bfloat16)
    first, second, _ = SCORES[scores](logits_NE.float())[0].tolist()
    for less, near in ((0.0, True), (0.1, False)):
        gate = Gate(torch.tensor([0.0, first - second - less - 1e-4, 0.0]))
        router = Router("gate", gate, Logits(0), scores, None, (gate, "e_score_correction_bias"))
        assert below_rounding(router, logits_NE, 1).tolist() == [near]


def test_a_margin_counts_the_groups_that_are_kept() -> None:
    """Of two groups one is kept, and within it the choice is clear."""
    gate = Gate(torch.zeros(4), n_group=2, topk_group=1)
    router = router_of("gate", gate, 0, {"": nn.Module(), "gate": gate})
    assert router.groups is not None
    near = torch.tensor([[2.0, -1.0, 1.998, -1.0]], dtype=torch.bfloat16)
    assert below_rounding(router, near, 1).tolist() == [True]
    assert below_rounding(router, near - torch.tensor([0, 0, 0, 3.0], dtype=torch.bfloat16), 1).tolist() == [False]
