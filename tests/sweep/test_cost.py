"""What a sweep takes, before it starts and while it runs."""

from dataclasses import replace
from pathlib import Path

import pytest

from moe_core.runs.estimate import Speed, estimate
from moe_core.schema import Knobs
from moe_core.sweep import Result, Sweep, cost, jobs, left_of, make_plan
from moe_core.sweep.cost import BEGIN
from tests.sweep.made import CONFIG

HERE = replace(CONFIG, device="cpu")
# Runs of these sizes took half a second a step.
RECORDED = [Speed("cpu", HERE, Knobs(), (2, 2), 0.5)]
STEP = estimate(HERE, Knobs(), 2, 2, RECORDED).seconds


def test_it_is_the_sum_of_its_runs_shared_by_the_places() -> None:
    plan = make_plan(HERE, Knobs(), {"w_load": [0.0, 0.1, 0.2]}, seeds=2)
    one = BEGIN + HERE.steps * STEP
    found = cost(plan, 2, RECORDED)
    assert (found.cells, found.runs) == (3, 6)
    assert found.seconds == pytest.approx(3 * one)
    assert cost(plan, 100, RECORDED).seconds == pytest.approx(one)  # no sooner than a run
    assert found.disk == pytest.approx(6 * estimate(HERE, Knobs(), 2, 2, RECORDED).disk(HERE.steps))
    assert found.words(2).startswith("6 runs (3 cells), 2 at a time: about ")
    assert found.words(2).endswith(" of disk")
    assert cost(make_plan(HERE, Knobs(), {}), 1, RECORDED).words(1).startswith("1 run (1 cell), 1 at a time")


def test_what_trains_the_same_is_counted_once() -> None:
    plan = make_plan(HERE, Knobs(w_load=0.0, w_importance=0.0), {"strategy": ["none", "paper"]})
    assert (cost(plan, 1, RECORDED).cells, cost(plan, 1, RECORDED).runs) == (2, 1)


def test_larger_runs_cost_more_and_an_unknown_device_has_no_time() -> None:
    small, large = (make_plan(HERE, Knobs(), {"num_experts": [4, experts]}) for experts in (8, 64))
    assert cost(large, 1, RECORDED).disk > cost(small, 1, RECORDED).disk
    assert cost(large, 1, []).seconds > cost(small, 1, []).seconds
    unknown = cost(make_plan(replace(HERE, device="cuda"), Knobs(), {}), 1, RECORDED)
    assert unknown.seconds is None
    assert "not known before one has run" in unknown.words(1)


def test_the_time_left_counts_what_is_not_done() -> None:
    plan = make_plan(HERE, Knobs(), {"w_load": [0.0, 0.1, 0.2, 0.3]})
    first, second, third, fourth = jobs(Sweep("s", Path(), plan))
    done = Result(first, "finished", HERE.steps, ended={"step": 60})
    half = Result(second, "training", HERE.steps // 2)
    failed = Result(third, "failed", 3, "it died")
    waiting = Result(fourth, "waiting", 0)
    assert left_of([done, failed], RECORDED) == ""
    assert left_of([half], RECORDED) == f", about {HERE.steps // 2 * STEP:.0f} s left"
    seconds = BEGIN + (HERE.steps + HERE.steps // 2) * STEP
    assert left_of([done, half, failed, waiting], RECORDED) == f", about {seconds:.0f} s left"
    assert left_of([half, half], RECORDED) == f", about {HERE.steps // 2 * STEP:.0f} s left"  # two at a time
