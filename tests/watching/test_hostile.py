"""What a user may do to a watched model, knowingly or not: it is copied, pickled, left in evaluation, given empty batches. Nothing is
miscounted, and what cannot be right is said where it was written."""

import copy
import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moe_core.runs import open_run
from moe_core.watching import Knob, watch
from moe_core.watching import taps as taps_module
from moe_core.watching.doctor import check
from moe_core.watching.readers import find_taps
from moe_core.watching.routers import Logits
from moe_core.watching.taps import Taps
from tests.watching.sums import counts_of
from tests.watching.test_counting import D, E, K, Model, batch, counted, reference
from tests.watching.test_live import ended, sgd, train

# Copies


def test_a_copy_of_a_watched_model_is_one_that_nobody_watches(tmp_path: Path) -> None:
    """As an average of the parameters and a model to compare with are."""
    model = Model()
    live = watch(model, "a", runs=tmp_path)
    train(live, model, sgd(model), 2)
    copies = [copy.deepcopy(model), torch.optim.swa_utils.AveragedModel(model)]
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies.append(torch.load(file, weights_only=False))
    for one in copies:
        assert torch.equal(one(batch()), model.eval()(batch()))
    model.train()
    live.taps.take_held_out()
    train(live, model, sgd(model), 1)
    assert ended(live).history("counts", 0)[1].sum(1).tolist() == [20 * K] * 3


class Wrapped(nn.Module):
    """As PEFT wraps a model: its generate() calls the inner one by itself."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model = model

    def forward(self, **batch: Any) -> Any:
        return self.base_model(**batch)


def test_generate_of_a_model_within_another_does_not_count() -> None:
    pytest.importorskip("transformers")
    from tests.watching.families import build

    model = Wrapped(build("mixtral"))
    taps = Taps(model, find_taps(model))
    ids = torch.ones(1, 4, dtype=torch.long)
    model.base_model.generate(ids, max_new_tokens=5, do_sample=False, use_cache=True)
    assert counts_of(taps) == {}
    model(input_ids=ids)
    assert [sum(row) for row in counts_of(taps).values()] == [4 * 2] * 3


def test_a_prefix_that_is_trained_is_no_generation() -> None:
    """It is handed to the model as a cache is."""
    pytest.importorskip("transformers")
    from transformers import DynamicCache

    from tests.watching.families import build

    model = build("mixtral")
    taps = Taps(model, find_taps(model))
    model(
        input_ids=torch.ones(1, 4, dtype=torch.long), past_key_values=DynamicCache(config=model.config), use_cache=True
    )
    assert [sum(row) for row in counts_of(taps).values()] == [4 * 2] * 3


# Counting


def test_a_model_that_was_left_in_evaluation_is_named(tmp_path: Path) -> None:
    model = Model().eval()
    live = watch(model, "a", runs=tmp_path)
    with pytest.raises(RuntimeError, match=r"in evaluation mode in all 3 steps.*call model.train\(\)"):
        train(live, model, sgd(model), 3)


def test_a_batch_without_tokens_counts_nothing(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tests.watching.families import build

    model = build("mixtral")
    live = watch(model, "a", runs=tmp_path)
    for tokens in (0, 5, 0, 5, 0, 5):
        for layer in model.model.layers:
            layer.mlp(torch.randn(1, tokens, 32))
        live.step(loss=1.0)
    run = ended(live)
    assert not live.problem
    assert run.history("counts", 0)[1].sum(1).tolist() == [0, 10, 0, 10, 0, 10]


def test_no_token_tells_whether_a_router_gives_probabilities() -> None:
    read, logits_NE = Logits(0), torch.randn(3, E)
    read(nn.Identity(), (), {}, torch.empty(0, E))
    assert torch.equal(read(nn.Identity(), (), {}, logits_NE), logits_NE)


def test_evaluations_that_nobody_asks_for_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taps_module, "CALLS", 10)
    model = Model().eval()
    taps = Taps(model, find_taps(model))
    for _ in range(100):
        model(batch())
    assert len(taps.held_out) <= 11
    assert len(taps.held_out_sums) == 2
    counts = [sums.counts_CE1[0, :-1].tolist() for sums in taps.take_held_out()]
    assert counts == [[100 * n for n in row] for row in reference(model, batch())]


def test_an_evaluation_before_the_first_step_is_in_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = Model()
    live = watch(model, "a", runs=tmp_path)
    model.eval()(batch())
    live.eval(loss=2.0)
    assert "before the first live.step" in caplog.text
    train(live, model.train(), sgd(model), 1)
    model.eval()(batch())
    live.eval(loss=1.0)
    (row,) = ended(live).evals()
    assert [sum(counts) for counts in row.counts] == [20 * K] * 2


def test_a_mask_is_copied_and_may_be_a_list() -> None:
    model = Model()
    taps = Taps(model, find_taps(model))
    mask = torch.ones(20, dtype=torch.bool)
    taps.mask(mask)
    model(batch())
    mask.zero_()
    assert [sum(row) for row in counted(taps)] == [20 * K] * 2
    taps.mask([1] * 5 + [0] * 15)  # type: ignore[arg-type]
    model(batch())
    assert [sum(row) for row in counted(taps)] == [5 * K] * 2


def test_a_mask_of_another_device_is_brought_to_the_ids() -> None:
    model = Model().to("meta")
    taps = Taps(model, find_taps(model))
    taps.mask(torch.ones(20))
    taps.kept_N = torch.ones(20, dtype=torch.bool)  # as for a layer on a further device
    model(torch.randn(20, D, device="meta"))
    assert {sums.counts_CE1.device.type for sums in taps.take()} == {"meta"}


# What is said of a step


@pytest.mark.parametrize(
    "wrong",
    ["high", "1", b"1", bytearray(b"1"), [1.0], torch.ones(2), 1j, 10**400],
    ids=["text", "digits", "bytes", "bytearray", "list", "two", "complex", "large"],
)
def test_what_is_no_number_is_refused_at_the_step(tmp_path: Path, wrong: Any) -> None:
    live = watch(Model(), "a", runs=tmp_path)
    with pytest.raises(ValueError, match="loss must be a number or a tensor of one number, got"):
        live.step(loss=wrong)
    train(live, live.model, sgd(live.model), 1)
    with pytest.raises(ValueError, match="loss must be a number or a tensor of one number, got"):
        live.eval(loss=wrong)
    assert ended(live).steps() == (1, 1)


def test_a_loss_is_kept_as_it_was_at_its_step(tmp_path: Path) -> None:
    model = Model()
    live = watch(model, "a", runs=tmp_path)
    total = torch.zeros(())
    for step in range(4):
        model(batch())
        total += step
        live.step(loss=total)
        total.zero_()
    assert ended(live).history("loss")[1].tolist() == [0, 1, 2, 3]


def test_a_number_that_comes_too_late_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = Model()
    live = watch(model, "a", runs=tmp_path)
    for said in ({}, {"loss": 1.0}, {"loss": 1.0}):
        model(batch())
        live.step(**said)
    live.close()
    assert caplog.text.count("loss is not recorded, since the first live.step did not have it") == 1


# Knobs and the optimizer


@pytest.mark.parametrize(
    ("name", "knob", "says"),
    [
        ("a b", Knob(0.1), "a knob's name must be a word"),
        ("rate", 0.1, "knobs must be Knobs"),
        ("rate", Knob(5.0, 0, 1), "rate must be between 0 and 1"),
        ("rate", Knob(float("nan")), "rate must be between"),
    ],
)
def test_a_knob_that_no_record_holds_is_refused_at_once(tmp_path: Path, name: str, knob: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        watch(Model(), "a", knobs={name: knob}, runs=tmp_path)


def test_an_expert_is_switched_off_by_its_number_alone(tmp_path: Path) -> None:
    model = Model()
    live = watch(model, "a", runs=tmp_path)
    live.turn(off="4")
    train(live, model, sgd(model), 1)
    live.turn(off="3")
    train(live, model, sgd(model), 1)
    run = ended(live)
    assert run.history("counts", 0)[1][0, 3] == run.history("counts", 1)[1][1, 2] == 0
    assert not live.problem


def rate_of(optimizer: torch.optim.Optimizer, model: Model) -> float:
    """The learning rate of a step of SGD, as it moves a parameter."""
    scale = model.blocks[0].experts.scale_E
    before = scale.detach().clone()
    optimizer.zero_grad()
    scale.grad = torch.ones_like(scale)
    optimizer.step()
    optimizer.zero_grad()
    moved: Tensor = before - scale.detach()
    return round(float(moved[0]), 4)


def plain_sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def test_a_step_that_an_error_ends_leaves_the_rates_as_they_were(tmp_path: Path) -> None:
    model = Model()
    optimizer = plain_sgd(model)
    live = watch(model, "a", optimizer=optimizer, runs=tmp_path)
    live.turn(lr=0.05)

    def out_of_memory() -> float:
        raise MemoryError

    for _ in range(3):
        with pytest.raises(MemoryError):
            optimizer.step(out_of_memory)
    assert rate_of(optimizer, model) == 0.05
    assert optimizer.param_groups[0]["lr"] == 0.1
    live.close()


def test_a_closed_run_turns_no_rate_any_more(tmp_path: Path) -> None:
    model = Model()
    optimizer = plain_sgd(model)
    live = watch(model, "a", optimizer=optimizer, runs=tmp_path)
    live.turn(lr=0.05)
    assert rate_of(optimizer, model) == 0.05
    live.close()
    assert rate_of(optimizer, model) == 0.1
    live = watch(model, "b", optimizer=optimizer, runs=tmp_path)
    live.turn(lr=0.02)
    assert rate_of(optimizer, model) == 0.02
    live.close()


# The doctor


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (lambda model, x: 1.0, "a tensor of one number and has a gradient, got float"),
        (lambda model, x: model(x), r"a tensor of one number and has a gradient, got one of shape \(20, 8\)"),
        (lambda model, x: model(x).sum().detach(), "depends on no parameter with requires_grad"),
        (lambda model, x: model(x).sum() * float("nan"), "the loss is nan"),
    ],
)
def test_the_doctor_refuses_a_loss_of_which_it_could_tell_nothing(loss: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check(Model(), batch().detach(), loss=loss)


# Ends


@pytest.mark.parametrize(("code", "state"), [(0, "finished"), (None, "finished"), (3, "failed")])
def test_a_program_that_exits_in_the_block(tmp_path: Path, code: int | None, state: str) -> None:
    model = Model()
    live = watch(model, "a", runs=tmp_path)

    def block() -> None:
        with live:
            train(live, model, sgd(model), 1)
            sys.exit(code)

    with pytest.raises(SystemExit):
        block()
    assert open_run(live.path).state == state


def test_a_model_without_a_device_yet_is_watched_compiled() -> None:
    with torch.device("meta"):
        model = Model()
    taps = Taps(model, find_taps(model))
    model.to_empty(device="cpu")
    for tally in taps.tallies:
        tally.add(torch.zeros(3, K, dtype=torch.long), None, None)
        assert int(tally.counts_E1[0]) == 3 * K
