"""A training step asks the host for nothing, and a flush waits for the device once: seen on a CPU by tensors that have no values,
and by a count of the calls that ask for one."""

from dataclasses import replace

import pytest
import torch

from moe_core.benchmarks.waits import Steps, asked_for, unvalued
from moe_core.nn.experts import Grouped
from moe_core.schema import STRATEGIES, Config, Knobs
from moe_core.training import step

CONFIG = Config.for_task("text", layers=2, d_model=16, d_hidden=16, tokens=64, context=16)
KNOBS = Knobs(w_z=0.1, w_sequence=0.1, off="3")
CPU = torch.device("cpu")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_forward_backward_and_update_ask_for_no_value(strategy: str) -> None:
    """But where tokens have different numbers of experts: there the host asks for the most."""
    where = unvalued(CONFIG, replace(KNOBS, strategy=strategy))
    assert where.partition(":")[0] == ("strategies.py" if STRATEGIES[strategy].whole else "")
    assert unvalued(replace(CONFIG, groups=2), replace(KNOBS, off="")) == ""


@pytest.mark.parametrize("steps", [1, 7])
def test_a_flush_waits_once_however_many_steps_it_has(steps: int) -> None:
    (place, many), *others = asked_for(lambda: Steps(CONFIG, KNOBS, CPU).flush_after(steps)).items()
    assert (place.partition(":")[0], many, others) == ("telemetry.py", 1, [])


@pytest.mark.parametrize("ask", [bool, float, lambda x: x.item(), lambda x: x.tolist(), lambda x: x.cpu()])
def test_whoever_asks_is_found(monkeypatch: pytest.MonkeyPatch, ask) -> None:
    norm = step.norm

    def asking(model):
        total = norm(model)
        ask(total)
        return total

    monkeypatch.setattr(step, "norm", asking)
    assert "step.py" in str(asked_for(lambda: Steps(CONFIG, KNOBS, CPU).flush_after(1)))
    assert unvalued(CONFIG, KNOBS)


def test_who_asks_in_the_backward_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    backward = Grouped.backward
    monkeypatch.setattr(Grouped, "backward", lambda grad_ND, *rest: (grad_ND.sum().item(), backward(grad_ND, *rest))[1])
    assert unvalued(CONFIG, KNOBS)
