"""The doctor finds each bug that was planted, names it, and finds none in a healthy model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

pytest.importorskip("transformers", reason="transformers is not installed: pip install 'moescope[watch-demo]'")

from transformers.models.mixtral import modeling_mixtral

from moe_core.watching.doctor import check
from moe_core.watching.findings import CheckFinding
from tests.watching.families import build


def healthy(family: str = "mixtral") -> Any:
    model = build(family)
    model.config.output_router_logits = True
    return model


def batch(rows: int = 4, length: int = 12) -> dict[str, Tensor]:
    ids = torch.randint(3, 60, (rows, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


def uneven() -> dict[str, Tensor]:
    """Rows of 12, 9, 6 and 3 tokens, padded on the right."""
    rows = batch()
    for row in range(4):
        rows["attention_mask"][row, 12 - 3 * row :] = 0
        rows["labels"][row, 12 - 3 * row :] = -100
    return rows


def found(findings: list[CheckFinding], level: str = "bug") -> list[tuple[str, str]]:
    return [(finding.rule, finding.layer) for finding in findings if finding.level == level]


GATE = "model.layers.1.mlp.gate"


# Healthy models


@pytest.mark.parametrize("rows", [batch(), uneven()], ids=["even", "uneven"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_nothing_is_found_in_a_healthy_model(family: str, checkpointing: bool, rows: dict[str, Tensor]) -> None:
    model = healthy(family)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    findings = check(model, rows)
    assert found(findings) == found(findings, "not checked") == []
    # What is so by its nature is a note, and says how much.
    (note,) = findings
    assert note.rule == "micro-batches"
    assert "its scale is right" in note.saw


def test_rounding_is_not_taken_for_a_difference() -> None:
    def in_autocast(model: nn.Module, rows: dict[str, Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(**rows).loss

    for findings in (check(healthy(), batch(8, 48), loss=in_autocast), check(healthy().bfloat16(), batch())):
        assert found(findings) == []
        assert {finding.rule for finding in findings} <= {"micro-batches", "precision"}
        assert "its scale is right" in findings[0].saw


def test_the_only_note_on_a_selection_bias_is_that_it_is_never_moved() -> None:
    (note,) = check(build("deepseek_v3"), batch())
    assert (note.rule, note.level) == ("bias-moves", "note")
    assert "2 of 2 selection biases stayed 0" in note.saw


def test_dropout_does_not_disturb_the_comparisons() -> None:
    model = healthy()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.3
        layer.mlp.jitter_noise = 0.1
    assert [finding.rule for finding in check(model, batch())] == ["micro-batches"]


def test_a_model_that_draws_random_numbers_is_not_compared() -> None:
    model = healthy()
    model.model.embed_tokens.register_forward_hook(lambda module, args, out: out + torch.randn_like(out))
    findings = check(model, batch())
    assert found(findings, "not checked") == [("micro-batches", ""), ("padding", "")]
    assert found(findings) == []


# 1 and 2: applied, and with a gradient


def test_an_auxiliary_loss_that_is_off_by_default_is_found() -> None:
    findings = check(build("mixtral"), batch())
    assert found(findings) == [("aux-not-applied", "")]
    assert findings[0].write == "model.config.output_router_logits = True"


def test_a_loss_that_leaves_the_auxiliary_loss_out_is_found() -> None:
    def loss(model: nn.Module, rows: dict[str, Tensor]) -> Tensor:
        logits = model(rows["input_ids"]).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), rows["labels"][:, 1:].flatten())

    findings = check(healthy(), batch(), loss=loss)
    assert found(findings) == [("aux-not-applied", "")]
    assert findings[0].write == "loss = loss + 0.001 * outputs.aux_loss"


def test_a_coefficient_that_was_changed_too_late_is_found() -> None:
    model = healthy()
    model.config.router_aux_loss_coef = 0.05
    findings = check(model, batch())
    assert found(findings) == [("aux-not-applied", "")]
    assert findings[0].saw == "the model computes with 0.001, its config says 0.05"
    model.router_aux_loss_coef = 0.05
    assert found(check(model, batch())) == []


def test_a_router_that_the_auxiliary_gradient_does_not_reach_is_found() -> None:
    model = healthy()
    model.get_submodule(GATE).register_forward_hook(lambda module, args, out: (out[0].detach(), *out[1:]))
    assert found(check(model, batch())) == [("aux-gradient", GATE)]


def test_one_finding_is_enough_if_no_router_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = modeling_mixtral.load_balancing_loss_func
    monkeypatch.setattr(modeling_mixtral, "load_balancing_loss_func", lambda *args: plain(*args).detach())
    findings = check(healthy(), batch())
    assert found(findings) == [("aux-gradient", "")]
    assert "in 3 of 3 routers" in findings[0].saw


# 3: micro-batches. A layer as in Megatron-LM and Automodel, whose auxiliary gradient comes in beside the loss


class AddGradient(torch.autograd.Function):
    """Passes the weights on; the backward also sends a gradient into the auxiliary loss."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, aux: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        ctx.save_for_backward(aux)
        return weights.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (aux,) = ctx.saved_tensors
        return gradient, torch.ones_like(aux) * ctx.scale, None


class Gate(nn.Module):
    """scaled_by: what the auxiliary gradient is multiplied by; dropped: the wrapped weights are not used (Automodel#1408)."""

    def __init__(self, dropped: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 16) * 0.3)
        self.aux_loss_coeff, self.dropped, self.scaled_by, self.top_k = 0.01, dropped, 1.0, 2
        self.sums_tokens = False

    def forward(self, x_TD: Tensor) -> Tensor:
        p_TE = (x_TD @ self.weight.T).softmax(-1)
        top_TK, ids_TK = p_TE.topk(2, dim=-1)
        share_E = torch.zeros(8).scatter_add_(0, ids_TK.flatten(), torch.ones(ids_TK.numel())) / len(x_TD)
        aux = self.aux_loss_coeff * 8 * (share_E * p_TE.mean(0)).sum() * (len(x_TD) if self.sums_tokens else 1)
        weights_TE = torch.zeros_like(p_TE).scatter(1, ids_TK, top_TK)
        wrapped_TE = AddGradient.apply(weights_TE, aux, self.scaled_by)
        return weights_TE if self.dropped else wrapped_TE


class Small(nn.Module):
    def __init__(self, **gate: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.gate = nn.Embedding(64, 16), Gate(**gate)
        self.experts_EDD = nn.Parameter(torch.randn(8, 16, 16) * 0.3)
        self.head = nn.Linear(16, 64)

    def forward(self, ids: Tensor) -> Tensor:
        x_TD = self.embed(ids).flatten(0, 1)
        y_TED = torch.einsum("td,edf->tef", x_TD, self.experts_EDD)
        return self.head(x_TD + (self.gate(x_TD)[..., None] * y_TED).sum(1))


def task_loss(model: nn.Module, ids: Tensor) -> Tensor:
    return F.cross_entropy(model(ids), ids.roll(-1, dims=1).flatten())


def with_a_scale(count_of: Callable[[list[Tensor]], float]) -> Callable[[nn.Module, list[Tensor]], None]:
    """How these trainers accumulate: a scale is set for the auxiliary gradients of a step."""

    def micro(model: Any, batches: list[Tensor]) -> None:
        model.gate.scaled_by = count_of(batches)
        for rows in batches:
            (task_loss(model, rows) / len(batches)).backward()

    return micro


def test_an_auxiliary_gradient_that_accumulation_multiplies_is_found() -> None:
    ids = batch(8, 40)["input_ids"]
    findings = check(Small(), ids, loss=task_loss)
    assert found(findings) == [("micro-batches", "")]
    assert "2: 2.00 times as large; 4: 4.00 times as large" in findings[0].saw
    assert found(check(Small(), ids, loss=task_loss, micro=with_a_scale(lambda batches: 1 / len(batches)))) == []


def test_an_auxiliary_loss_that_sums_over_tokens_is_found() -> None:
    model = Small()
    model.gate.sums_tokens = True
    findings = check(
        model, batch(8, 200)["input_ids"], loss=task_loss, micro=with_a_scale(lambda batches: 1 / len(batches))
    )
    assert found(findings) == [("micro-batches", "")]
    assert "that of the whole batch: 2: 0.5" in findings[0].saw
    assert findings[0].write.startswith("aux_loss = aux_loss_sum / tokens")


def test_a_wrapped_tensor_that_is_dropped_is_an_auxiliary_loss_without_effect() -> None:
    assert found(check(Small(dropped=True), batch()["input_ids"], loss=task_loss)) == [("aux-not-applied", "")]


def of_all_targets(divided: bool) -> Callable[[nn.Module, list[dict[str, Tensor]]], None]:
    """The task's loss over the targets of all micro-batches; the auxiliary loss divided by their number, or not."""

    def micro(model: Any, batches: list[dict[str, Tensor]]) -> None:
        targets = sum(int((rows["labels"][:, 1:] != -100).sum()) for rows in batches)
        for rows in batches:
            out = model(**rows, num_items_in_batch=targets)
            coefficient = model.router_aux_loss_coef
            (out.loss - (coefficient * out.aux_loss * (1 - 1 / len(batches)) if divided else 0)).backward()

    return micro


def mean_of_means(model: Any, batches: list[dict[str, Tensor]]) -> None:
    for rows in batches:
        (model(**rows).loss / len(batches)).backward()


def test_a_trainer_that_divides_only_the_tasks_loss_is_found() -> None:
    findings = check(healthy(), uneven(), micro=of_all_targets(divided=False))
    assert found(findings) == [("micro-batches", "")]
    assert "auxiliary gradient" in findings[0].saw
    assert findings[0].write == "(task_loss + coefficient * aux_loss / number_of_micro_batches).backward()"
    assert found(check(healthy(), uneven(), micro=of_all_targets(divided=True))) == []


def test_a_mean_of_means_is_found_as_the_tasks() -> None:
    findings = check(healthy(), uneven(), micro=mean_of_means)
    assert found(findings) == [("micro-batches", "")]
    assert findings[0].saw.startswith("the task's gradient differs")
    assert found(check(healthy(), batch(), micro=mean_of_means)) == []


def test_losses_that_are_added_and_not_averaged_are_found() -> None:
    def micro(model: nn.Module, batches: list[Tensor]) -> None:
        for rows in batches:
            task_loss(model, rows).backward()

    findings = check(Small(), batch()["input_ids"], loss=task_loss, micro=micro)
    assert found(findings) == [("micro-batches", "")] * 2  # of the task and of the auxiliary loss
    assert "2: by 100%, 2.00 times as large; 4: by 300%, 4.00 times as large" in findings[0].saw
    assert findings[0].write == "(loss / number_of_micro_batches).backward()"


def test_one_row_cannot_be_cut() -> None:
    assert found(check(healthy(), batch(1)), "not checked") == [("micro-batches", "")]


# 4: recomputed forwards


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_counter_that_counts_a_recomputed_forward_is_found(reentrant: bool) -> None:
    model = healthy()
    gate = model.get_submodule(GATE)
    gate.register_buffer("counts", torch.zeros(8))

    def count(module: Any, args: Any, out: Any) -> None:
        module.counts += torch.bincount(out[2].flatten(), minlength=8)

    gate.register_forward_hook(count)
    assert found(check(model, batch())) == []
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    findings = check(model, batch())
    # With the reentrant kind, transformers 5.23 reads the router logits in a forward without gradients: no router is balanced.
    cut_off = [("aux-gradient", "")] if reentrant else []
    assert found(findings) == [*cut_off, ("recomputed", GATE)]
    assert not reentrant or findings[0].write == 'gradient_checkpointing_kwargs={"use_reentrant": False}'
    assert findings[-1].saw == "counts moved by 96 in the forward, by 192 with the backward"


# 5: the selection bias


def steer(module: Any, args: Any, out: Any) -> None:
    counts = torch.bincount(out[2].flatten(), minlength=8)
    module.e_score_correction_bias += 1e-3 * (counts.float().mean() - counts).sign()


def test_a_bias_that_moves_in_evaluation_is_found() -> None:
    model = build("deepseek_v3")
    gate = model.get_submodule(GATE)
    gate.register_forward_hook(steer)
    findings = check(model, batch())
    assert found(findings) == [("bias-moves", GATE)]
    assert "moved by up to 0.001" in findings[-2].saw


def test_a_bias_that_moves_in_training_only_is_healthy() -> None:
    model = build("deepseek_v3")
    for module in model.modules():
        if hasattr(module, "e_score_correction_bias"):
            module.register_forward_hook(lambda gate, args, out: steer(gate, args, out) if gate.training else None)
    assert [finding for finding in check(model, batch()) if finding.rule == "bias-moves"] == []


def test_a_bias_that_the_step_moves_is_healthy() -> None:
    model = build("deepseek_v3")
    optimizer = torch.optim.AdamW(model.parameters())
    gates = [module for module in model.modules() if hasattr(module, "e_score_correction_bias")]
    assert found(check(model, batch(), optimizer=optimizer), "note") == [("bias-moves", "")]

    def move(*_: Any) -> None:
        for gate in gates:
            gate.e_score_correction_bias += torch.linspace(-1e-3, 1e-3, 8)

    hook = optimizer.register_step_post_hook(move)
    assert check(model, batch(), optimizer=optimizer) == []
    hook.remove()
    assert check(model, batch(), step=move) == []
    assert not optimizer.state


# 6: padding


def test_padding_that_counts_in_the_auxiliary_loss_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = modeling_mixtral.load_balancing_loss_func
    monkeypatch.setattr(modeling_mixtral, "load_balancing_loss_func", lambda logits, E, k, mask: plain(logits, E, k))
    findings = check(healthy(), batch())
    assert found(findings) == [("padding", "")] * 2
    assert [finding.did for finding in findings if finding.rule == "padding"] == [
        "put padding on the right",
        "put padding on the left",
    ]


def test_padding_of_a_batch_without_an_attention_mask_is_told_by_mask() -> None:
    rows = uneven()
    mask = rows.pop("attention_mask")
    findings = check(healthy(), rows, mask=mask)
    assert found(findings) == [("padding", "")]
    assert findings[-1].did == "replaced the padding by other tokens"
    model = healthy()
    assert (
        found(check(model, rows, mask=mask, loss=lambda m, b: m(**b, attention_mask=mask[: len(b["labels"])]).loss))
        == []
    )


# 7 and 8: what routers give


def test_probabilities_for_logits_are_found() -> None:
    model = healthy()
    model.get_submodule(GATE).register_forward_hook(lambda module, args, out: (out[0].softmax(-1), *out[1:]))
    findings = check(model, batch())
    assert found(findings) == [("probabilities-for-logits", GATE)]


def test_weights_of_the_chosen_experts_are_not_taken_for_probabilities() -> None:
    def weights(module: Any, args: Any, out: Any) -> Any:
        return torch.zeros_like(out[0]).scatter(1, out[2], out[1]), *out[1:]

    model = healthy()
    model.get_submodule(GATE).register_forward_hook(weights)
    assert "probabilities-for-logits" not in [finding.rule for finding in check(model, batch())]


def test_a_margin_below_the_rounding_of_bfloat16_is_noted() -> None:
    findings = check(healthy().bfloat16(), batch(8, 48))
    assert found(findings) == []
    note = next(finding for finding in findings if finding.rule == "precision")
    assert "of 384 tokens: their margin is below the rounding of bfloat16" in note.saw


def test_a_router_in_float32_of_a_model_in_bfloat16_is_healthy() -> None:
    findings = check(build("deepseek_v3").bfloat16(), batch())
    assert [finding.rule for finding in findings] == ["bias-moves"]
