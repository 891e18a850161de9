"""The remedies that the diagnosis offers even a collapsed gate: the small form of benchmarks/remedies.py."""

import math
import re

import pytest
import torch

from benchmarks.remedies import NONE, Patient, alarms, collapse, findings, offers, try_remedy
from moe_core import diagnosis
from moe_core.diagnosis import SETTLED
from moe_core.remedies import SOON
from moe_core.schema import Config, Knobs
from moe_core.training import telemetry
from moe_core.training.data import load

NEW = {"constant_bias", "idle_bias", "unreachable"}
CONFIG = Config.for_task(
    "text",
    layers=1,
    tokens=256,
    context=64,
    d_model=32,
    d_hidden=32,
    eval_every=10**9,
    task_gradient_every=25,
    threads=1,
)


@pytest.fixture(scope="module")
def data():
    torch.set_num_threads(1)
    return load(CONFIG)


@pytest.mark.parametrize(
    "then",
    [{}, {"noise": 0.0, "w_load": 0.1}, {"w_importance": 0.01, "w_load": 0.0}],
    ids=["as it is", "idle load loss", "weak"],
)
def test_each_remedy_that_is_offered_works(then, data) -> None:
    patient = collapse(CONFIG, Knobs(**NONE), data)
    assert patient is not None, "the gate did not collapse, so this says nothing"
    patient.turn(then)
    patient.step()
    remedies, kept = offers(patient), patient.keep()
    assert {"collapse", *(["idle_load_loss"] if "noise" in then else [])} >= set(remedies) >= {"collapse"}
    for rule, remedy in remedies.items():
        patient.back(kept)
        assert patient.uneven(10) > 1
        after, _ = try_remedy(patient, remedy, within=120)
        assert after is not None, f"{rule} offers {remedy}, which left CV(load) at {patient.uneven(10)}"


@pytest.mark.parametrize("strategy", ["paper", "loss-free"])
def test_a_gate_that_the_task_teaches_nothing_is_taught_by_what_is_offered_and_not_by_waiting(strategy, data) -> None:
    patient = Patient(CONFIG, Knobs(k=1, strategy=strategy), data)
    step = lambda steps: [patient.step() for _ in range(steps)] and {f.rule for f in findings(patient)}
    assert "no_gradient" in step(30)
    remedy, kept = offers(patient)["no_gradient"], patient.keep()
    assert "no_gradient" in step(30)
    patient.back(kept)
    patient.turn(remedy)
    assert "no_gradient" not in step(30)
    gradient, whole = (patient.watch.history(name)[1][-1] for name in ("task_gradient", "grad_norm"))
    assert gradient > 1e-4 * whole


def test_of_a_healthy_run_nothing_is_said() -> None:
    """From its first steps to where a gate is judged against its noise; benchmarks/remedies.py has the other tasks."""
    torch.set_num_threads(1)
    lines = []
    assert alarms("plane", 0, lines.append, SETTLED + SOON) == []
    assert "nothing" in lines[0]


def test_without_a_remedy_it_stays_collapsed(data) -> None:
    """Or the test above would pass by waiting."""
    patient = collapse(CONFIG, Knobs(**NONE), data)
    after, end = try_remedy(patient, {}, within=120)
    assert after is None
    assert math.isfinite(end)
    assert end > 0.8


@pytest.mark.parametrize(("bias", "rule"), [(5.0, "constant_bias"), (-5.0, "unreachable")])
def test_a_bias_that_was_planted_in_our_own_gate_is_told(bias: float, rule: str, data, monkeypatch) -> None:
    for module in (diagnosis, telemetry):  # an expert is called dead sooner, to save time
        monkeypatch.setattr(module, "DEAD_AFTER", 20)
    patient = Patient(CONFIG, Knobs(strategy="loss-free", bias_speed=0.0), data)
    patient.trainer.model.moe_layers[0].gate.bias_E[3] = bias
    for _ in range(45):
        patient.step()
    said = {finding.rule: finding for finding in findings(patient)}
    assert re.search(r"experts? [^:]*\b4\b", said[rule].what)
    assert NEW & said.keys() == {rule}
