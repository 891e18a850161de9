"""The layer in a model that torch.compile has compiled: the same numbers as in one that it has not."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from moe_core.nn import HierarchicalMoELayer, MoELayer

ROOT = Path(__file__).parents[2]


class Around(nn.Module):
    """A layer between two that are compiled."""

    def __init__(self, layer: MoELayer, width: int) -> None:
        super().__init__()
        self.before, self.layer, self.after = nn.Linear(width, width), layer, nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        y, routing = self.layer(self.before(x), noisy=False)
        return self.after(y).sum() + routing.load_E.square().sum()


# Widths that the grouped kernel takes, and that only the loop does. (experts.py)
@pytest.mark.parametrize("width", [8, 6])
@pytest.mark.parametrize("kind", [MoELayer, HierarchicalMoELayer])
@pytest.mark.filterwarnings("ignore")  # torch, while it compiles, warns of what it does itself
def test_a_compiled_model_gives_the_same_loss_and_gradients(kind: type[MoELayer], width: int) -> None:
    torch.manual_seed(0)
    sizes = (width, 4, 4, 2) if kind is MoELayer else (width, 4, 4, 2, 1, 1)
    model, x = Around(kind(*sizes), width), torch.randn(20, width)
    expected = model(x)
    expected.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    loss = torch.compile(model, backend="eager")(x)
    loss.backward()
    assert loss == expected
    for before, parameter in zip(gradients, model.parameters(), strict=True):
        assert (before is None) == (parameter.grad is None)
        assert before is None or torch.equal(before, parameter.grad)


@pytest.mark.filterwarnings("ignore")  # torch, while it compiles, warns of what it does itself
def test_a_gate_by_itself_can_be_compiled_around() -> None:
    gate = MoELayer(8, 4, 4, 2).gate
    x = torch.randn(20, 8)
    routing = torch.compile(gate, backend="eager")(x, noisy=False)
    routing.importance_E.square().sum().backward()
    assert torch.equal(routing.counts_E, gate(x, noisy=False).counts_E)
    assert gate.w_gate.grad is not None


def test_what_compiles_nothing_imports_no_compiler() -> None:
    code = "import sys, torch; from moe_core.nn import MoELayer; MoELayer(8, 4, 4, 2)(torch.randn(5, 8))[0].sum().backward(); sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
