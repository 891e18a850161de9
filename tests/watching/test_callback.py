"""MoECallback in a real Trainer on a tiny random Mixtral, whose counts are repeated in plain torch on the batches it was given."""

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", reason="transformers is not installed: pip install 'moescope[watch-demo]'")
pytest.importorskip("accelerate", reason="accelerate is not installed: pip install accelerate")

from transformers import Trainer, TrainerCallback, TrainingArguments

from moe_core.runs import Run, open_run
from moe_core.watching import MoECallback
from tests.watching.families import build

LENGTH, ROWS = 8, 2  # of a sequence, and how many in a batch


def sequences(many: int = 40) -> list[dict[str, Tensor]]:
    """Of 3 to 8 tokens, padded on the right."""
    draw = torch.Generator().manual_seed(0)
    rows = []
    for row in range(many):
        ids = torch.randint(1, 64, (LENGTH,), generator=draw)
        mask = (torch.arange(LENGTH) < 3 + row % 6).long()
        labels = torch.where(mask.bool(), ids, -100)
        rows.append({"input_ids": ids * mask, "attention_mask": mask, "labels": labels})
    return rows


class Collator:
    """Stacks rows, and remembers the batches."""

    def __init__(self) -> None:
        self.batches: list[dict[str, Tensor]] = []

    def __call__(self, rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        self.batches.append(dict(batch))
        return batch


def reference(model: torch.nn.Module, batches: list[dict[str, Tensor]]) -> list[list[int]]:
    """The selections of each layer in these batches without their padding, from the model's own router logits."""
    counts = [torch.zeros(8, dtype=torch.int64) for _ in range(3)]
    model.eval()
    for batch in batches:
        with torch.no_grad():
            logits = model(**batch, output_router_logits=True).router_logits
        kept = batch["attention_mask"].bool().flatten()
        for layer, logits_NE in enumerate(logits):
            counts[layer] += torch.bincount(logits_NE[kept].topk(2).indices.flatten(), minlength=8)
    model.train()
    return [one.tolist() for one in counts]


def trainer_of(folder: Path, callback: TrainerCallback, model: Any = None, data: Any = None, **changed: Any) -> Trainer:
    """A Trainer on the CPU that reports to nobody. The rate is so low that float32 weights do not move by it."""
    more = {name: changed.pop(name) for name in ("compute_loss_func", "callbacks", "eval_dataset") if name in changed}
    settings = {
        "per_device_train_batch_size": ROWS, "max_steps": 6, "logging_steps": 3, "learning_rate": 1e-30, "use_cpu": True,
        "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "output_dir": str(folder / "trained"),
    }  # fmt: skip
    return Trainer(
        model or build("mixtral"),
        TrainingArguments(**settings | changed),
        train_dataset=data or sequences(),
        data_collator=Collator(),
        callbacks=[callback, *more.pop("callbacks", [])],
        **more,
    )


@pytest.mark.parametrize("setting", ["plain", "accumulated", "checkpointed", "own loss"])
def test_each_step_of_a_trainer_is_recorded_exactly(setting: str, tmp_path: Path) -> None:
    changed: dict[str, dict[str, Any]] = {
        "plain": {},
        "accumulated": {"gradient_accumulation_steps": 2},
        "checkpointed": {"activation_checkpointing": True},
        "own loss": {
            "compute_loss_func": lambda out, labels, num_items_in_batch=None: (
                out["logits"].square().mean() * (1 if labels is None else 2)
            )
        },
    }
    trainer = trainer_of(tmp_path, MoECallback("a", runs=tmp_path), **changed[setting])
    trainer.train()
    run = open_run("a", tmp_path)
    assert (run.state, run.steps()) == ("finished", (1, 6))
    many = 2 if setting == "accumulated" else 1
    batches = trainer.data_collator.batches
    for step in range(6):
        wanted = reference(trainer.model, batches[step * many : (step + 1) * many])
        assert [run.history("counts", layer)[1][step].tolist() for layer in range(3)] == wanted
    losses, norms = run.history("loss")[1], run.history("grad_norm")[1]
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["loss"] for entry in logs] == pytest.approx([losses[:3].mean(), losses[3:].mean()], rel=1e-5)
    assert len(set(losses)) == 6  # each its own, not the mean that is logged
    assert np.flatnonzero(~np.isnan(norms)).tolist() == [2, 5]  # only those of a log
    assert [entry["grad_norm"] for entry in logs] == pytest.approx(norms[[2, 5]], rel=1e-5)
    if setting == "own loss":
        with torch.no_grad():
            inputs = {k: v for k, v in batches[0].items() if k != "labels"}
            assert losses[0] == pytest.approx(2 * trainer.model(**inputs).logits.square().mean().item(), rel=1e-4)


def test_training_computes_the_same_losses_watched_or_not(tmp_path: Path) -> None:
    def losses(*callbacks: TrainerCallback) -> list[float]:
        trainer = trainer_of(tmp_path, TrainerCallback(), callbacks=callbacks, logging_steps=1, learning_rate=1e-2)
        trainer.train()
        assert "training_step" not in vars(trainer)
        assert not trainer.model._forward_pre_hooks
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    assert losses() == losses(MoECallback("a", runs=tmp_path))


def test_evaluations_the_best_model_and_going_on_from_a_checkpoint(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    best = {
        "load_best_model_at_end": True,
        "gradient_accumulation_steps": 2,
        "torch_compile": False,
        "eval_on_start": True,
    }
    trainer = trainer_of(tmp_path, MoECallback("a", runs=tmp_path), eval_dataset=sequences(4), **saving, **best)
    trainer.train()
    run = open_run("a", tmp_path)
    assert (run.state, run.steps(), [one.step for one in run.evals()]) == ("finished", (1, 6), [2, 4, 6])
    going_on = trainer_of(tmp_path, MoECallback("b", runs=tmp_path), max_steps=8)
    going_on.train(resume_from_checkpoint=str(tmp_path / "trained" / "checkpoint-6"))
    assert open_run("b", tmp_path).steps() == (1, 2)  # a run of its own, whose steps begin anew
    none = trainer_of(tmp_path, MoECallback("c", runs=tmp_path), max_steps=0, num_train_epochs=1)
    none.train()  # it takes a step all the same
    assert open_run("c", tmp_path).steps() == (1, none.state.global_step)


class Page(TrainerCallback):
    """Somebody at the page: asks a run for something when a step begins."""

    def __init__(self, folder: Path, **asked: Any) -> None:
        self.folder, self.asked = folder, asked

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        for command, step in self.asked.items():
            if step == state.global_step:
                Run(self.folder).command(command)


def test_what_is_turned_acts_through_what_accelerate_wraps_around_the_optimizer(tmp_path: Path) -> None:
    weights: list[Tensor] = []

    class Turn(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **given: Any) -> None:
            weights.append(model.lm_head.weight.detach().clone())

        def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if state.global_step == 2:
                Run(tmp_path / "a").turn("me", lr=0.0)

    callback = MoECallback("a", runs=tmp_path)
    trainer_of(tmp_path, callback, callbacks=[Turn()], learning_rate=1e-2, lr_scheduler_type="constant").train()
    assert [(c.name, c.step) for c in open_run("a", tmp_path).knob_changes()] == [("lr", 4)]
    moved = [not torch.equal(one, other) for one, other in itertools.pairwise(weights)]
    assert moved == [True, True, False, False, False]


@pytest.mark.parametrize(("every", "known"), [(1, 6), (3, 0)])
def test_where_the_trainer_is_not_found_a_logged_loss_counts_only_if_it_is_of_one_step(
    every: int, known: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moe_core.watching.callback.trainer_of", lambda state: None)
    trainer = trainer_of(tmp_path, MoECallback("a", runs=tmp_path), logging_steps=every)
    trainer.train()
    losses = open_run("a", tmp_path).history("loss")[1]
    assert (~np.isnan(losses)).sum() == known
    if known:
        logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert losses.tolist() == pytest.approx(logged)


def test_stop_and_checkpoint_are_the_trainers_own(tmp_path: Path) -> None:
    page = Page(tmp_path / "a", checkpoint=1, stop=3)
    trainer = trainer_of(tmp_path, MoECallback("a", runs=tmp_path), callbacks=[page])
    trainer.train()
    run = open_run("a", tmp_path)
    assert (run.state, run.steps(), trainer.state.global_step) == ("stopped", (1, 4), 4)
    assert [(c.name, c.step, c.result) for c in run.commands()] == [
        ("checkpoint", 2, "asked of the Trainer, which saves now"),
        ("stop", 4, "done"),
    ]
    assert sorted(path.name for path in (tmp_path / "trained").iterdir()) == ["checkpoint-2"]


def test_evaluations_are_recorded_in_their_step(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    held_out = sequences(4)
    trainer = trainer_of(
        tmp_path, MoECallback("a", metrics=["loss", "one"], runs=tmp_path), eval_dataset=held_out,
        eval_strategy="steps", eval_steps=2, per_device_eval_batch_size=2, eval_on_start=True,
    )  # fmt: skip
    trainer.compute_metrics = lambda predicted: {"one": 1.0, "two": 2.0}
    trainer.train()
    run = open_run("a", tmp_path)
    assert [one.step for one in run.evals()] == [2, 4, 6]
    seen = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert [one.metrics["loss"] for one in run.evals()] == pytest.approx(seen[1:])
    assert {one.metrics["one"] for one in run.evals()} == {1.0}
    wanted = reference(trainer.model, [Collator()(held_out[:2]), Collator()(held_out[2:])])
    assert [counts.tolist() for counts in run.evals()[0].counts] == wanted
    said = [record.getMessage() for record in caplog.records if record.name == "moescope"]
    assert [one for one in said if "evaluations" in one] == [
        "of the evaluations two is not recorded; MoECallback(metrics=['loss', 'one', 'two']) would",
    ]


def test_an_error_in_a_step_is_noted_and_the_next_training_is_another_run(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, MoECallback("a", runs=tmp_path))
    inner, steps = trainer.compute_loss, []

    def compute_loss(*args: Any, **kwargs: Any) -> Any:
        steps.append(0)
        if len(steps) == 4:
            raise KeyError("mine")
        return inner(*args, **kwargs)

    trainer.compute_loss = compute_loss
    with pytest.raises(KeyError, match="mine"):
        trainer.train()
    run = open_run("a", tmp_path)
    assert (run.state, run.status().reason, run.steps()) == ("failed", "KeyError: 'mine'", (1, 3))
    trainer.train()
    again = open_run("a-2", tmp_path)
    assert (again.state, again.steps()) == ("finished", (1, 6))


def test_mistakes_are_one_line() -> None:
    with pytest.raises(TypeError, match=r"MoECallback takes run and .*checkpoint, .*, got optimiser"):
        MoECallback("a", optimiser=1)
    program = (
        "import sys; from moe_core import watch; assert 'transformers' not in sys.modules;"
        "sys.modules['transformers'] = None; from moe_core import MoECallback"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (
        told.stderr.splitlines()[-1]
        == "ImportError: MoECallback needs transformers: pip install transformers accelerate"
    )
