"""Balance that watch() gives: the selection bias is steered in training and only there, and a CV is held."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers", reason="transformers is not installed: pip install 'moescope[watch-demo]'")

from transformers import MixtralForCausalLM

from moe_core.diagnosis import diagnose
from moe_core.runs import open_run
from moe_core.watching import Live, watch
from tests.watching.families import build
from tests.watching.test_counting import Model


def skewed() -> nn.Module:
    """A DeepSeek-V3 whose biases send the tokens to the last experts, and whose scores differ from token to token."""
    model = build("deepseek_v3")
    with torch.no_grad():
        for layer in model.model.layers[1:]:
            layer.mlp.gate.weight.normal_(std=0.3)
            layer.mlp.gate.e_score_correction_bias.copy_(torch.linspace(-0.6, 0.6, 8))
    return model


def batch(step: int) -> Tensor:
    return torch.randint(3, 60, (8, 32), generator=torch.Generator().manual_seed(step))


def forward(model: nn.Module, live: Live, steps: int, first: int = 0) -> None:
    with torch.no_grad():  # only the bias moves
        for step in range(first, first + steps):
            model(input_ids=batch(step))
            live.step(loss=1.0)


def biases(model: nn.Module) -> list[Tensor]:
    return [layer.mlp.gate.e_score_correction_bias.clone() for layer in model.model.layers[1:]]


@pytest.mark.parametrize(("balance", "speed"), [("loss-free", 0.02), ("quantile", None)])
def test_a_bias_is_steered_in_training_and_only_there(tmp_path: Path, balance: str, speed: float | None) -> None:
    model = skewed()
    live = watch(model, "a", balance=balance, runs=tmp_path)
    if speed:
        live.turn(bias_speed=speed)
    before = biases(model)
    model.eval()(input_ids=batch(0))
    live.eval(loss=1.0)
    assert all(torch.equal(one, other) for one, other in zip(before, biases(model), strict=True))
    model.train()
    forward(model, live, 40)
    assert not any(torch.equal(one, other) for one, other in zip(before, biases(model), strict=True))
    live.turn(balance="off")
    held = biases(model)
    forward(model, live, 3, 40)
    assert all(torch.equal(one, other) for one, other in zip(held, biases(model), strict=True))
    live.close()
    run = open_run(live.path)
    for layer in range(2):
        violation = run.history("max_vio", layer)[1]
        assert violation[-5:].mean() < 0.5 * violation[0]
        assert run.history("bias_effect", layer)[1][0] < 0.8
    assert [(c.name, c.value) for c in run.knob_changes()] == [("balance", "off")] if not speed else True


def test_a_model_without_a_bias_is_told_so(tmp_path: Path) -> None:
    for model in (build("mixtral"), Model()):
        with pytest.raises(ValueError, match="steering wants a model whose routers add a bias to the scores"):
            watch(model, "a", balance="loss-free", runs=tmp_path)
    live = watch(Model(), "a", runs=tmp_path)
    assert not {"balance", "bias_speed", "autobalance"} & set(live.knobs)


def test_loss_free_rests_below_the_cv_that_autobalance_is_to_hold(tmp_path: Path) -> None:
    model = skewed()
    live = watch(model, "a", balance="loss-free", runs=tmp_path)
    live.turn(bias_speed=0.02, autobalance=0.9)
    forward(model, live, 150)
    rested = biases(model)
    live.turn(autobalance=0.0)
    forward(model, live, 100, 150)
    live.close()
    cv = [open_run(live.path).history("cv_counts", layer)[1] for layer in range(2)]
    for one in cv:
        assert one[100:150].mean() == pytest.approx(0.9, abs=0.25)
        assert one[-50:].mean() < 0.7
    assert rested


def test_autobalance_turns_the_coefficient_until_the_cv_is_held(tmp_path: Path) -> None:
    """Of one layer: over several the model's own loss is of their sums, in which opposite imbalances cancel."""
    torch.manual_seed(0)
    config = type(build("mixtral").config)(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4,
        num_local_experts=8, output_router_logits=True,
    )  # fmt: skip
    model = MixtralForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    live = watch(model, "a", optimizer=optimizer, runs=tmp_path)
    live.turn(autobalance=0.3, router_aux_loss_coef=0.01)
    for step in range(300):
        loss = model(input_ids=batch(step), labels=batch(step)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        live.step(loss=loss)
    live.close()
    run = open_run(live.path)
    own = [c for c in run.knob_changes() if c.who == "autobalance"]
    assert {c.name for c in own} == {"router_aux_loss_coef"}
    assert [c.step % 25 for c in own] == [1] * len(own)
    assert model.router_aux_loss_coef == live.knobs.router_aux_loss_coef == own[-1].value > 0
    cv = run.history("cv_counts", 0)[1]
    assert cv[-25:].mean() < 0.85 * cv[75:125].mean()


def test_a_collapse_beside_a_bias_that_nothing_moves_names_the_knob(tmp_path: Path) -> None:
    model = skewed()
    for layer in model.model.layers[1:]:
        layer.mlp.gate.e_score_correction_bias.copy_(torch.linspace(-3, 3, 8))  # all tokens go to the last two
    live = watch(model, "a", runs=tmp_path)
    forward(model, live, 40)
    live.close()
    (collapse,) = [finding for finding in diagnose(open_run(live.path), 1) if finding.rule == "collapse"]
    assert collapse.try_this.startswith("Turn balance to quantile: ")
    assert collapse.remedy == {"balance": "quantile"}
