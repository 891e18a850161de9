"""The trainer's loop against a record in memory: determinism, knobs, commands, and a loss that is not finite."""

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from moe_core.schema import STRATEGIES, Config, Knobs, layout
from moe_core.training import machine
from moe_core.training.data import load
from moe_core.training.graph import updater
from moe_core.training.loop import Trainer
from moe_core.training.machine import choose_device
from moe_core.training.pace import FLUSH_READ, Looks
from moe_core.training.step import Adam
from tests.training.test_pace import Clock

CONFIG = Config.for_task(
    "plane", num_experts=4, layers=1, tokens=64, d_model=8, d_hidden=8, steps=12, eval_every=5, threads=1
)


KNOBS = Knobs()


class Record:
    """A writer that keeps what it is given. script: step -> knob changes and commands found at the top of the next one."""

    folder, put_off = Path(), ""
    knob_seen = command_seen = step = 0

    def __init__(self, script: dict[int, dict] | None = None):
        self.script, self.batches, self.trainer = script or {}, [], None

    def asked(self) -> bool:
        return True

    def pending(self):
        found = self.script.pop(self.trainer.step, {})
        return SimpleNamespace(knobs=found.get("knobs", []), commands=found.get("commands", []))

    def commit(self, batch) -> None:
        self.batches.append(batch)

    def beat(self) -> None:
        pass

    def reopen(self, error: BaseException) -> None:
        pass

    @property
    def rows(self) -> np.ndarray:
        return np.concatenate([b.rows for b in self.batches if len(b.rows)])

    def all(self, name: str) -> list:
        return [item for batch in self.batches for item in getattr(batch, name)]


def run(config: Config = CONFIG, knobs: Knobs = KNOBS, script: dict | None = None, prepare=lambda trainer: None):
    torch.set_num_threads(1)
    record = Record(script)
    trainer = Trainer(config, knobs, load(config), torch.device("cpu"), record, lambda event: None)
    record.trainer = trainer
    prepare(trainer)
    state = trainer.run()
    assert trainer.committer.close() == ""
    return state, record, trainer


def turned(id: int, name: str, value: float) -> SimpleNamespace:
    return SimpleNamespace(id=id, name=name, value=value, who="somebody")


def told(id: int, name: str) -> SimpleNamespace:
    return SimpleNamespace(id=id, name=name)


def column(record: Record, stat: str, layers: int = 1) -> np.ndarray:
    return record.rows[:, next(c.start for c in layout(layers, 4) if c.stat == stat)]


def test_every_step_has_one_row_and_the_losses_repeat_bit_for_bit() -> None:
    state, one, _ = run()
    _, again, _ = run()
    assert state == "finished"
    assert len(one.rows) == 12
    assert np.array_equal(column(one, "loss"), column(again, "loss"))
    assert not np.array_equal(column(one, "loss"), column(run(Config(**{**CONFIG.__dict__, "seed": 1}))[1], "loss"))


def test_looking_all_the_time_does_not_change_the_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    _, one, _ = run()
    monkeypatch.setattr(Looks, "look_if_due", lambda self, folder, look, shared: look(True))
    _, watched, _ = run()
    assert len(watched.all("snapshots")) > len(one.all("snapshots"))
    assert np.array_equal(column(one, "loss"), column(watched, "loss"))


def test_churn_and_saturation_are_of_fixed_steps_whatever_the_clock_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the choices recorded at multiples of churn_every say; between them a row has what was measured last."""
    config = replace(CONFIG, churn_every=5, steps=32)
    _, one, _ = run(config)
    monkeypatch.setattr(Looks, "look_if_due", lambda self, folder, look, shared: look(True))
    _, watched, _ = run(config)
    monkeypatch.setattr(Looks, "look_if_due", lambda *_: None)
    _, alone, _ = run(config)
    taken = {step: arrays["experts"][0] for step, kind, arrays in one.all("snapshots") if kind == "choices"}
    assert list(taken) == [0, 5, 10, 15, 20, 25, 30]
    last = [(step, step // 5 * 5) for step in range(5, 33)]
    moved = [(taken[at][:, 0] != taken[at - 5][:, 0]).mean() for _, at in last]
    kept = [(taken[at][:, :, None] == taken[at - 5][:, None]).any(2).mean() for _, at in last]
    assert len(set(moved)) > 2
    for stat, values in (("churn", moved), ("saturation", kept)):
        for record in (one, watched, alone):
            np.testing.assert_allclose(column(record, stat), [np.nan] * 4 + values, rtol=1e-6)


def test_measuring_churn_changes_no_bit_of_the_training() -> None:
    weights = []
    for every in (0, 1, 5):
        _, record, trainer = run(replace(CONFIG, churn_every=every))
        assert np.isnan(column(record, "churn")).all() == (every == 0)
        weights.append([column(record, "loss"), *(p.detach().numpy() for p in trainer.model.parameters())])
    for other in weights[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(weights[0], other, strict=True))


def test_evaluations_go_by_step_and_end_with_one() -> None:
    _, record, _ = run()
    evals = record.all("evals")
    assert [step for step, *_ in evals] == [5, 10, 12]
    assert set(evals[0][1]) == {"accuracy", "loss", "selections"}
    assert record.all("snapshots")[0][0] == 0


def test_a_knob_read_after_step_4_acts_in_step_5() -> None:
    changes = [turned(1, "noise", 0.0), turned(2, "k", 1)]
    _, record, trainer = run(script={4: {"knobs": changes}})
    assert record.all("applied") == [(1, 5), (2, 5)]
    assert (column(record, "noise_scale")[:4] > 0).all()
    assert (column(record, "noise_scale")[4:] == 0).all()
    assert (column(record, "top1_gate")[4:] == 1).all()
    assert trainer.knobs.k == 1


@pytest.mark.parametrize(("name", "value"), [("w_importance", 1.0), ("w_load", 1.0)])
def test_each_loss_weight_is_live(name: str, value: float) -> None:
    none = Knobs(w_importance=0.0, w_load=0.0)
    _, record, _ = run(knobs=none, script={4: {"knobs": [turned(1, name, value)]}})
    extra = column(record, "loss") - column(record, "task_loss")
    assert (extra[:4] == 0).all()
    assert (extra[4:] > 0).all()


def test_the_learning_rate_is_live() -> None:
    _, still, _ = run()
    _, record, trainer = run(script={4: {"knobs": [turned(1, "lr", 0.05)]}})
    assert np.array_equal(column(still, "loss")[:5], column(record, "loss")[:5])
    assert not np.array_equal(column(still, "loss")[5:], column(record, "loss")[5:])
    assert trainer.optimizer.param_groups[0]["lr"] == 0.05


def test_a_change_that_this_run_cannot_take_is_answered_and_ignored() -> None:
    _, record, trainer = run(script={4: {"knobs": [turned(1, "k", 99)]}})
    assert record.all("applied") == [(1, 5)]
    assert trainer.knobs.k == 2


def test_pause_step_resume_and_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """While paused the step does not move, so the script goes by how often the loop looked."""
    looks = []

    def idle(self) -> None:
        looks.append(self.step)
        self.flush()
        then = {1: "step", 2: "resume"}.get(len(looks))
        self.writer.script[self.step] = {"commands": [told(10 + len(looks), then)]} if then else {}

    monkeypatch.setattr(Trainer, "idle", idle)
    state, record, _ = run(script={3: {"commands": [told(1, "pause")]}, 7: {"commands": [told(20, "stop")]}})
    assert state == "stopped"
    assert looks == [3, 4]
    assert len(record.rows) == 7
    assert record.all("acks") == [(1, 3, "done"), (11, 3, "done"), (12, 4, "done"), (20, 7, "done")]
    assert [b.state for b in record.batches if b.state] == ["training", "paused", "training"]


def test_a_knob_turned_while_paused_waits_for_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def idle(self) -> None:
        seen.append(self.knobs.noise)
        found = {"knobs": [turned(1, "noise", 0.5)]} if len(seen) == 1 else {"commands": [told(2, "resume")]}
        self.writer.script[self.step] = found

    monkeypatch.setattr(Trainer, "idle", idle)
    _, record, trainer = run(script={3: {"commands": [told(1, "pause")]}})
    assert seen == [1.0, 1.0]
    assert record.all("applied") == [(1, 4)]
    assert trainer.knobs.noise == 0.5


def test_a_loss_that_is_not_finite_changes_no_weight_and_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {}

    def idle(self) -> None:
        held["reason"], held["step"] = self.reason, self.step
        held["after"] = [p.detach().clone() for p in self.model.parameters()]
        self.writer.script[self.step] = {"commands": [told(1, "stop")]}

    def poison(trainer: Trainer) -> None:
        with torch.no_grad():
            trainer.model.head.bias[0] = torch.nan
        held["before"] = [p.detach().clone() for p in trainer.model.parameters()]

    monkeypatch.setattr(Trainer, "idle", idle)
    state, record, _ = run(prepare=poison)
    assert state == "stopped"
    assert held["step"] == 1
    assert "loss of step 1 is not finite" in held["reason"]
    assert "learning rate" in held["reason"]
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(held["before"], held["after"], strict=True))
    assert np.isnan(column(record, "loss")[0])


def test_a_gpu_learns_with_the_flush_that_a_step_was_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here by a fused optimizer on the CPU. Steps after it are trained until then; those that are not finite change nothing."""
    held = {}

    def idle(self) -> None:
        held["reason"], held["step"] = self.reason, self.step
        held["count"] = {int(state["step"]) for state in self.optimizer.state.values()}
        self.writer.script[self.step] = {"commands": [told(1, "stop")]}

    def late(trainer: Trainer) -> None:
        trainer.late = True
        trainer.optimizer = Adam(trainer.model.parameters(), lr=0.01, fused=True)
        trainer.update = updater(trainer.model, trainer.optimizer, trainer.config, trainer.device)
        batch = trainer.data.batch

        def poisoned(step: int):
            one = batch(step)
            return one._replace(inputs=one.inputs * torch.nan) if step in (3, 4) else one

        trainer.data = SimpleNamespace(batch=poisoned)
        monkeypatch.setattr(trainer, "maybe_flush", lambda: trainer.step == 6 and trainer.flush())

    monkeypatch.setattr(Trainer, "idle", idle)
    state, record, _ = run(prepare=late)
    assert (state, held["step"], held["count"]) == ("stopped", 6, {4})
    assert "loss of step 3 is not finite" in held["reason"]
    assert np.isnan(column(record, "loss")).tolist() == [False, False, True, True, False, False]


def test_a_record_that_cannot_be_written_ends_the_training() -> None:
    def fail(batch) -> None:
        raise OSError("no room")

    def break_it(trainer: Trainer) -> None:
        trainer.writer.commit = fail

    torch.set_num_threads(1)
    with pytest.raises(RuntimeError, match="no room"):
        run(Config(**{**CONFIG.__dict__, "steps": 5000}), prepare=break_it)


WALK = ("loss-free", "expert-choice", "strictly-balanced", "even", "switch", "none", "paper", "quantile", "loss-free")


@pytest.mark.parametrize("task", ["plane", "text"])
def test_a_run_walks_through_all_strategies_and_keeps_training(task: str) -> None:
    own = {"context": 16} if task == "text" else {}
    config = replace(CONFIG, task=task, steps=8 * len(WALK) + 8, eval_every=8, layers=2, **own)
    assert set(WALK) == set(STRATEGIES)
    script = {8 * (i + 1): {"knobs": [turned(i + 1, "strategy", name)]} for i, name in enumerate(WALK)}
    script[12] = {"knobs": [turned(90, "w_sequence", 0.1), turned(91, "w_z", 0.01)]}
    script[20] = {"knobs": [turned(92, "off", "1,2:3"), turned(93, "capacity_factor", 1.0)]}
    script[68] = {"knobs": [turned(94, "off", "")]}
    knobs = replace(KNOBS, w_load=0.0)
    _, record, trainer = run(config, knobs, {step: dict(found) for step, found in script.items()})
    _, again, _ = run(config, knobs, {step: dict(found) for step, found in script.items()})
    rows = record.rows
    # What has no meaning under a strategy is NaN under it, and nothing else ever is.
    meaning = {
        "router_margin": "by_token",
        "router_margin_p10": "by_token",
        "bias_effect": "biased",
        "unreachable": "by_token",
    }
    ran = [name for name in (knobs.strategy, *WALK) for _ in range(8)]
    for column_of in layout(2, 4):
        flag = meaning.get(column_of.stat)
        known = np.array([not flag or getattr(STRATEGIES[name], flag) for name in ran])
        if column_of.stat.startswith("router_margin") and column_of.layer == 1:
            known[20:68] = False  # with two of four off, k = 2 is no choice
        values = rows[:, column_of.start : column_of.start + column_of.width]
        from_then_on = slice(config.churn_every - 1, None)
        assert (np.isfinite(values) == known[:, None])[from_then_on].all(), column_of
    assert len(rows) == config.steps
    same = np.array([c.stat != "seconds" for c in layout(2, 4) for _ in range(c.width)])
    assert np.array_equal(rows[:, same], again.rows[:, same], equal_nan=True)
    assert trainer.reason == ""
    task_loss = column(record, "task_loss", 2)
    assert task_loss[-8:].mean() < task_loss[:8].mean()
    at = {(c.stat, c.layer): rows[:, c.start : c.start + c.width] for c in layout(2, 4)}
    assert (at["noise_scale", 0][:8] > 0).all()
    assert (at["noise_scale", 0][8:40] == 0).all()
    assert not at["counts", 0][20:68, 0].any()
    assert not at["counts", 1][20:68, 2].any()
    assert (at["counts", 0][20:68, 2] > 0).mean() > 0.9  # off in the other layer only
    assert (at["counts", 0][16:20] == 32).all()  # expert choice before anything is off
    assert (at["dropped", 0][40:68] > 0).any()
    assert trainer.model.moe_layers[0].gate.bias_E.any()
    for step, metrics, _ in record.all("evals"):
        selections = metrics.pop("selections")
        assert all(np.isfinite(v) for v in metrics.values())
        assert (selections[0][0] is None) == (20 < step <= 68)  # off, and not just without a token


def test_a_strategy_that_this_run_cannot_take_is_answered_and_ignored() -> None:
    """63 tokens to 4 experts, two each, are no whole number."""
    _, record, trainer = run(
        replace(CONFIG, tokens=63), script={4: {"knobs": [turned(1, "strategy", "expert-choice")]}}
    )
    assert record.all("applied") == [(1, 5)]
    assert trainer.knobs.strategy == "paper"
    assert len(record.rows) == 12


def test_knobs_turned_at_one_step_are_each_checked_against_those_before() -> None:
    changes = [turned(1, "k", 4), turned(2, "off", "1"), turned(3, "k", 3), turned(4, "off", "1")]
    _, _, trainer = run(script={4: {"knobs": changes}})
    assert (trainer.knobs.k, trainer.knobs.off) == (3, "1,")


def test_a_hierarchical_run_trains_and_its_own_knobs_act() -> None:
    config = replace(CONFIG, num_experts=4, groups=2, steps=30, churn_every=5)
    script = {
        10: {"knobs": [turned(1, "k_primary", 1), turned(2, "noise_primary", 0.0)]},
        20: {"knobs": [turned(3, "off", "1,2"), turned(4, "strategy", "loss-free")]},
    }
    _, record, trainer = run(config, replace(KNOBS, k=1), script)
    counts = record.rows[:, next(c.start for c in layout(1, 4) if c.stat == "counts") :][:, :4]
    assert (counts[:10].sum(1) == 2 * 64).all()
    assert (counts[10:].sum(1) == 64).all()
    assert not counts[20:, :2].any()
    missing = ("bias_effect", "unreachable")  # with two levels
    none = np.array([c.stat in missing for c in layout(1, 4) for _ in range(c.width)])
    assert np.isfinite(record.rows[config.churn_every - 1 :, ~none]).all()
    assert np.isnan(record.rows[:, none]).all()
    assert trainer.knobs.strategy == "paper"


def test_a_bias_moves_after_an_update_and_not_after_one_that_was_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    knobs = replace(KNOBS, strategy="loss-free", bias_speed=0.01)
    _, _, trainer = run(replace(CONFIG, steps=1), knobs)
    bias = trainer.model.moe_layers[0].gate.bias_E
    assert bias.abs().max() == pytest.approx(0.01)
    assert ((bias.abs() < 1e-9) | (bias.abs() > 0.0099)).all()
    monkeypatch.setattr(Trainer, "idle", lambda self: setattr(self, "stopping", True))

    def poison(trainer: Trainer) -> None:
        with torch.no_grad():
            trainer.model.head.bias[0] = torch.nan

    _, _, trainer = run(CONFIG, knobs, prepare=poison)
    assert not trainer.model.moe_layers[0].gate.bias_E.any()


def test_a_full_queue_makes_the_trainer_wait_and_drops_nothing() -> None:
    gate = threading.Event()
    record = Record()
    kept = record.commit
    record.commit = lambda batch: (gate.wait(10), kept(batch))
    told_of = []
    trainer = Trainer(CONFIG, Knobs(), load(CONFIG), torch.device("cpu"), record, told_of.append)
    record.trainer = trainer

    def notify(event: dict) -> None:
        told_of.append(event["event"])
        if event["event"] == "waiting":
            gate.set()

    trainer.committer.notify = notify
    trainer.maybe_flush = trainer.flush  # one commit a step: 12 steps and more overfill nothing, so go on for 40
    trainer.config = Config(**{**CONFIG.__dict__, "steps": 40})
    trainer.run()
    trainer.committer.close()
    assert "waiting" in told_of
    assert len(record.rows) == 40
    assert [b.first_step for b in record.batches if len(b.rows)] == sorted(
        {b.first_step for b in record.batches if len(b.rows)}
    )


@pytest.mark.parametrize(("seconds", "together"), [(0.026, 1), (0.02, 1), (0.004, 8), (0.05, 1)])
def test_steps_are_committed_before_one_more_would_be_late(
    seconds: float, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 30 commits a second, each second step of 26 ms would be seen, 19 a second."""
    torch.set_num_threads(1)
    trainer = Trainer(CONFIG, KNOBS, load(CONFIG), torch.device("cpu"), Record(), print)
    trainer.committer.close()
    monkeypatch.setattr(trainer.flushes, "wait", lambda folder, behind: FLUSH_READ)
    clock, flushed = Clock(monkeypatch), list[int]()
    trainer.lasted, trainer.flushed = seconds, clock.now
    monkeypatch.setattr(trainer, "flush", lambda: setattr(trainer, "flushed", clock.now))
    for nth in range(1, 25):
        clock.now += seconds
        trainer.maybe_flush()
        if trainer.flushed == clock.now:
            flushed.append(nth)
    assert flushed == list(range(together, 25, together))


def test_a_device_that_is_not_there_is_refused() -> None:
    assert choose_device("cpu").type == "cpu"
    for wanted in ("nonsense", "cuda:77"):
        with pytest.raises(ValueError, match="device"):
            choose_device(wanted)


def test_one_core_is_left_to_the_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", tried.append)
    config = replace(CONFIG, threads=0)
    for cores, most in ((1, []), (2, []), (3, [1, 2]), (5, [1, 2, 4])):
        monkeypatch.setattr(machine, "cores", lambda cores=cores: cores)
        tried.clear()
        assert machine.choose_threads(config, load(config), KNOBS, torch.device("cpu")) in (most or [1])
        assert tried == most
