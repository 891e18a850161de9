"""Autobalance: the controller as a pure function, and a real gate that it brings back from a collapse and holds."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from moe_core.recording.holding import EVERY, HIGH, LARGEST, LEAST, LOW, factor, steer
from moe_core.runs import RunWriter, open_run, verify
from moe_core.runs.statistics import cv
from moe_core.schema import AUTOBALANCE, Config, Knobs
from moe_core.training import autobalance
from moe_core.training.autobalance import Autobalance
from moe_core.training.loop import Trainer
from moe_core.training.session import train


def test_the_factor_is_what_is_missing_and_damped_by_where_it_is_going() -> None:
    assert factor(0.2, 0.2, 0.1) == pytest.approx(2)
    assert factor(0.1, 0.1, 0.2) == pytest.approx(0.5)
    assert factor(0.1, 0.1, 0.1) == 1
    assert factor(0.2, 0.25, 0.1) < factor(0.2, 0.2, 0.1) < factor(0.2, 0.19, 0.1)
    assert factor(0.11, 0.2, 0.1) < 1  # above the target still, but falling fast


def test_the_factor_is_bounded_and_finite() -> None:
    assert factor(3.0, 0.1, 0.01) == pytest.approx(LARGEST)
    assert factor(0.0, 3.0, 1.0) == pytest.approx(1 / LARGEST)
    assert factor(0.0, 0.0, 1.0) == pytest.approx(1 / LARGEST)


def test_weights_stay_in_bounds_keep_their_ratio_and_small_changes_are_left_out() -> None:
    assert steer({"a": 0.1, "b": 0.01}, 2.0) == {"a": 0.2, "b": 0.02}
    assert steer({"a": 0.9, "b": 0.0}, 4.0) == {}  # the bound is nearer than LEAST, and 0 is what a person chose
    assert steer({"a": 0.5, "b": 0.0}, 4.0) == {"a": HIGH}
    assert steer({"a": LOW * 2}, 0.25) == {"a": LOW}
    assert steer({"a": 0.1}, LEAST - 0.01) == {}
    assert steer({"a": 0.1}, LEAST + 0.01) == {"a": 0.126}
    assert steer({"a": 0.123456}, 2.0) == {"a": 0.247}


def test_from_nothing_it_starts_only_where_more_is_needed() -> None:
    assert steer({"a": 0.0, "b": 0.0}, 4.0) == {"a": 4 * LOW, "b": 4 * LOW}
    assert steer({"a": 0.0, "b": 0.0}, 0.5) == {}


def test_nothing_winds_up() -> None:
    """However long the target was out of reach, one window below it turns the weight down."""
    weight = {"a": HIGH}
    for _ in range(100):
        weight |= steer(weight, factor(2.0, 2.0, 0.1))
    assert weight == {"a": HIGH}
    assert steer(weight, factor(0.05, 0.05, 0.1)) == {"a": HIGH / 2}


ONE, TWO = (Config(num_experts=2, layers=layers) for layers in (1, 2))


def routing(cv_load: float) -> SimpleNamespace:
    """Two experts whose load has this coefficient of variation."""
    return SimpleNamespace(load_E=torch.tensor([1 + cv_load, 1 - cv_load]))


def test_it_decides_by_step_and_from_whole_windows() -> None:
    knobs = Knobs(w_importance=0.1, w_load=0.1, autobalance=0.1)
    one = Autobalance(TWO)
    decided = {}
    for step in range(1, 4 * EVERY + 1):
        one.add(step, [routing(0.3), routing(0.1)])  # a mean of 0.2
        if wanted := one.decide(step, knobs):
            decided[step] = wanted
    assert list(decided) == [EVERY, 2 * EVERY, 3 * EVERY, 4 * EVERY]
    assert decided[EVERY] == {"w_importance": 0.2, "w_load": 0.2}
    assert one.decide(4 * EVERY, Knobs()) == {}
    late = Autobalance(TWO)
    for step in range(EVERY + 2, 2 * EVERY + 1):  # one short of a window
        late.add(step, [routing(0.2)])
    assert late.decide(2 * EVERY, knobs) == {}


def test_an_expert_that_is_off_asks_for_nothing() -> None:
    """Of 16, one is off and the others are even: over all of them CV(load) is 0.26, and no weight could lower it."""
    one, even = Autobalance(Config(num_experts=16, layers=2)), torch.full((16,), 8.0)
    load_E = even.clone()
    load_E[3] = 0
    for step in range(1, EVERY + 1):
        one.add(step, [SimpleNamespace(load_E=load_E), SimpleNamespace(load_E=even)])
    knobs = Knobs(autobalance=0.1, w_importance=0.0, w_load=0.0)
    assert one.decide(EVERY, knobs)
    assert one.decide(EVERY, replace(knobs, off="1:4")) == {}
    assert one.decide(EVERY, replace(knobs, off="2:4"))


def test_a_loss_that_is_not_finite_decides_nothing() -> None:
    one = Autobalance(ONE)
    for step in range(1, EVERY + 1):
        one.add(step, [routing(float("nan"))])
    assert one.decide(EVERY, Knobs(autobalance=0.1)) == {}


# On a real gate

CONFIG = Config.for_task("plane", steps=1000, eval_every=1000, threads=1)
COLLAPSED = Knobs(w_importance=0, w_load=0)
TARGET, ON = 0.25, 150


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """A gate that collapses for 150 steps; then autobalance is turned to 0.25."""
    patch, folder = pytest.MonkeyPatch(), tmp_path_factory.mktemp("runs")
    after = Trainer.after_step

    def turn_it_on(self) -> None:
        after(self)
        if self.step == ON:
            self.writer.turn("test", autobalance=TARGET)

    def decide(self, *arguments) -> None:
        write(self, *arguments)
        committed.append(self.step)

    write, committed = RunWriter.decide, []
    patch.setattr(Trainer, "after_step", turn_it_on)
    patch.setattr(RunWriter, "decide", decide)
    try:
        path, state = train(CONFIG, COLLAPSED, folder, "held")
    finally:
        patch.undo()
    assert state == "finished"
    run = open_run(path)
    run.committed = committed
    return run


def balance(run, first: int, last: int) -> float:
    return float(run.history("cv_load", first=first, last=last)[1].mean())


def test_from_a_collapse_it_reaches_the_target_and_holds_it(held) -> None:
    assert balance(held, ON - 50, ON) > 0.6
    assert balance(held, 701, 1000) == pytest.approx(TARGET, rel=0.2)
    assert balance(held, 501, 750) == pytest.approx(TARGET, rel=0.2)


SMALL = {"tokens": 256, "d_hidden": 16, "d_model": 16, "eval_every": 1000, "threads": 1}


@pytest.mark.parametrize(
    ("config", "knobs", "target", "steered"),
    [
        (
            Config.for_task("plane", steps=600, **SMALL),
            Knobs(strategy="switch", w_switch=0),
            0.25,
            {"w_switch"},
        ),
        (
            Config.for_task("plane", steps=600, **(SMALL | {"num_experts": 16, "groups": 4})),
            replace(COLLAPSED, w_importance_primary=0, w_load_primary=0),
            0.2,
            {"w_importance", "w_load"},
        ),
    ],
    ids=["switch", "groups"],
)
def test_it_holds_the_target_from_a_collapse_in_other_ways_too(tmp_path, config, knobs, target, steered) -> None:
    """Of two levels it steers the weights over all experts, whose gradient reaches both gates; those over groups stay."""
    run = open_run(train(config, knobs, tmp_path, "run", script=[(100, "autobalance", target)])[0])
    assert balance(run, 50, 99) > 0.6
    assert balance(run, 351, 600) == pytest.approx(target, rel=0.2)
    assert {c.name for c in run.knob_changes() if c.who == AUTOBALANCE} == steered


def test_the_weights_fall_again_once_the_balance_holds_by_itself(held) -> None:
    weights = [c.value for c in held.knob_changes() if c.name == "w_load"]
    assert max(weights) > 0.005
    assert weights[-1] < max(weights) / 4


def test_each_of_its_changes_is_in_the_record_with_its_step_and_the_chain_holds(held) -> None:
    own = [c for c in held.knob_changes() if c.who == AUTOBALANCE and c.step]  # the last may wait for step 1001
    assert 8 <= len(own) <= 2 * (1000 - ON) // EVERY
    assert {c.name for c in own} == {"w_importance", "w_load"}
    assert all(c.step % EVERY == 1 and c.step > ON for c in own)
    assert own[0].previous == 0
    # A change is written when the steps that it follows from are on the disk, and before the one in which it acts.
    assert [step for step in held.committed if step < 1000] == sorted({c.step - 1 for c in own})
    assert verify(held) == []


def test_what_it_decided_follows_from_the_record_alone(held) -> None:
    """Each decision made again from the recorded loads and knobs, as a resumed trainer would."""
    own = [c for c in held.knob_changes() if c.who == AUTOBALANCE and c.step]
    knobs, by_step = replace(COLLAPSED, autobalance=TARGET), {}
    for change in own:
        by_step.setdefault(change.step, {})[change.name] = change.value
    again = {}
    for step in range(ON + EVERY, 1000, EVERY):
        fresh = Autobalance(CONFIG)
        fresh.recall(held, step)
        if wanted := fresh.decide(step, knobs):
            again[step + 1] = wanted
            knobs = replace(knobs, **wanted)
    assert again == by_step


def test_the_mean_cv_is_that_of_the_record(held) -> None:
    fresh = Autobalance(CONFIG)
    fresh.recall(held, 10)
    loads = [load for _, load in fresh.loads]
    recorded = cv(held.history("load", last=10)[1].astype(np.float64))
    assert autobalance.mean_cv(loads, [()]) == pytest.approx(recorded, rel=1e-12)
