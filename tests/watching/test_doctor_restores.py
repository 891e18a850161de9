"""After the doctor's check a model is as it was, bit for bit, and so is the optimizer; also where a loss raised. What cannot be checked is an error."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers", reason="transformers is not installed: pip install 'moescope[watch-demo]'")

from moe_core.watching.doctor import check
from tests.watching.families import build
from tests.watching.test_doctor import GATE, batch, healthy, steer


def bits(model: nn.Module) -> dict[str, Any]:
    held: dict[str, Any] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    held |= {f"{name}.grad": None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    for path, module in model.named_modules():
        held[f"{path}:hooks"] = (len(module._forward_hooks), len(module._forward_pre_hooks))
        held |= {f"{path}:{k}": v for k, v in vars(module).items() if isinstance(v, int | float | str)}
    held["config"] = str(vars(model.config))
    held["random"] = (torch.get_rng_state(), random.random(), float(np.random.rand()))
    return held


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        if torch.is_tensor(a[name]):
            assert torch.equal(a[name].view(-1).view(torch.uint8), b[name].view(-1).view(torch.uint8)), name
        elif name == "random":
            assert torch.equal(a[name][0], b[name][0])
            assert a[name][1:] == b[name][1:]
        else:
            assert a[name] == b[name], name


class Broken(Exception):
    pass


@pytest.mark.parametrize("fails_at", [None, 1, 2, 9])
def test_the_model_is_the_same_bits_after_it(fails_at: int | None) -> None:
    model = build("deepseek_v3")
    gate = model.get_submodule(GATE)
    gate.register_forward_hook(steer)
    gate.e_score_correction_bias[3] = float("nan")
    gate.e_score_correction_bias[3] = 0.25
    model.model.layers[2].eval()
    model(**batch()).loss.backward()
    model.lm_head.weight.grad = None
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    optimizer.step()
    calls = 0

    def loss(model: nn.Module, rows: dict[str, Tensor]) -> Tensor:
        nonlocal calls
        calls += 1
        random.random(), np.random.rand()
        if calls == fails_at:
            raise Broken("the user's own")
        return model(**rows).loss

    random.seed(0), np.random.seed(0)
    before, moments = bits(model), {p: s["exp_avg"].clone() for p, s in optimizer.state.items()}
    random.seed(0), np.random.seed(0)
    if fails_at in (1, 2):
        with pytest.raises(Broken, match="the user's own"):
            check(model, batch(), loss=loss, optimizer=optimizer)
    else:
        findings = check(model, batch(), loss=loss, optimizer=optimizer)
        assert [f.saw for f in findings if f.level == "not checked"] == ["Broken: the user's own"] * (fails_at == 9)
    assert_same(before, bits(model))
    assert all(torch.equal(optimizer.state[p]["exp_avg"], m) for p, m in moments.items())
    assert all(int(state["step"]) == 1 for state in optimizer.state.values())


def test_what_a_model_keeps_beside_its_buffers_is_put_back() -> None:
    model = healthy()
    model.seen, model.losses, model.average = 0, [], torch.zeros(2)

    def note(module: Any, args: Any, out: Any) -> None:
        module.seen += 1
        module.losses.append(out)
        module.average = module.average + 1
        module.new = True

    model.register_forward_hook(note)
    check(model, batch())
    assert (model.seen, model.losses, model.average.tolist(), hasattr(model, "new")) == (0, [], [0, 0], False)


# Errors


def test_a_batch_without_a_loss_and_a_dense_model_are_errors() -> None:
    rows = batch()
    del rows["labels"]
    with pytest.raises(
        ValueError, match="check needs a loss, and MixtralForCausalLM gave none for this batch: put labels"
    ):
        check(healthy(), rows)
    with pytest.raises(ValueError, match="Linear has no experts that can be watched"):
        check(nn.Linear(2, 2), torch.ones(2, 2), loss=lambda model, x: model(x).sum())
