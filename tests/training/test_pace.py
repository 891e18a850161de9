"""The trainer looks at its probe batch rarely while nobody does, and often while somebody does; what it measures rarely is held."""

import os
from pathlib import Path

import numpy as np
import pytest

from moe_core.dashboard.feed import Feed
from moe_core.runs import open_run
from moe_core.runs.seen import FOR, READ, SEEN, is_looked_at, look
from moe_core.schema import Config, Knobs
from moe_core.training import pace
from moe_core.training.pace import FLUSH, FLUSH_READ, FLUSH_SLOW, LEAST, Flushes, Looks, falls_on
from moe_core.training.session import train
from tests.figures.record import record


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(pace.time, "perf_counter", lambda: self.now)


def looks_in(seconds: float, clock: Clock, folder: Path, took: float, share: int = 0) -> list[bool]:
    """Those of a training with a step each 10 ms, in which a look takes so long, but nothing in each step that is a multiple
    of `share`."""
    looks, taken = Looks(), list[bool]()
    end, step = clock.now + seconds, 0
    while clock.now < end:
        step += 1
        shared = share > 0 and step % share == 0

        def take(full: bool, shared: bool = shared) -> None:
            taken.append(full)
            clock.now += 0 if shared else took

        looks.look_if_due(folder, take, shared)
        clock.now += 0.01
    return taken


def test_looks_take_a_five_hundredth_of_the_time_and_a_tenth_while_somebody_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    assert 19 <= len(looks_in(50, clock, tmp_path, 0.005)) <= 21  # 0.005 s each: one in 2.5 s
    look(tmp_path)
    assert 180 <= len(looks_in(20, clock, tmp_path, 0.005)) <= 200  # no more than ten a second
    assert 18 <= len(looks_in(20, clock, tmp_path, 0.1)) <= 21


def test_every_tenth_look_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = looks_in(30, Clock(monkeypatch), tmp_path, 0.002)
    assert len(full) >= 29
    assert [at for at, one in enumerate(full, 1) if one] == [10, 20, 30][: len(full) // 10]


def test_a_look_that_costs_nothing_comes_after_half_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """0.02 s each: one in 10 s. Of those for nothing, in each 6th second, the first comes after 5 s, and takes the others' place."""
    clock = Clock(monkeypatch)
    assert len(looks_in(101, clock, tmp_path, 0.02)) == 11
    assert 16 <= len(looks_in(101, clock, tmp_path, 0.02, share=600)) <= 18
    assert len(looks_in(101, clock, tmp_path, 0.02, share=1200)) == 11  # too late to help


def test_commits_follow_those_who_read_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, flushes = Clock(monkeypatch), Flushes()
    assert flushes.wait(tmp_path, behind=False) == flushes.wait(tmp_path, behind=True) == FLUSH == 1
    look(tmp_path)  # at the probe: that says nothing of reading along
    clock.now += LEAST
    assert flushes.wait(tmp_path, behind=False) == FLUSH
    look(tmp_path, READ)
    assert flushes.wait(tmp_path, behind=False) == FLUSH  # asked a moment ago
    clock.now += LEAST
    assert flushes.wait(tmp_path, behind=False) == FLUSH_READ <= 1 / 30
    assert flushes.wait(tmp_path, behind=True) == FLUSH_SLOW  # nothing queues
    (tmp_path / READ).unlink()
    clock.now += LEAST
    assert flushes.wait(tmp_path, behind=False) == FLUSH


def test_a_turn_is_seen_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, taken = Clock(monkeypatch), list[bool]()
    looks = Looks()

    def take(full: bool) -> None:
        taken.append(full)
        clock.now += 0.05

    for wait, turned, many in ((0, False, 1), (0.2, False, 1), (0.2, True, 2), (0.0, True, 2)):
        clock.now += wait
        if turned:
            looks.soon()
        looks.look_if_due(tmp_path, take)
        assert len(taken) == many  # the last would be less than a tenth of a second after the one before


def test_a_look_counts_for_a_while_and_no_folder_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_looked_at(tmp_path)
    look(tmp_path)
    assert is_looked_at(tmp_path)
    now = (tmp_path / SEEN).stat().st_mtime
    monkeypatch.setattr("moe_core.runs.seen.time.time", lambda: now + FOR + 1)
    assert not is_looked_at(tmp_path)
    look(tmp_path / "none")
    assert not is_looked_at(tmp_path / "none")


@pytest.mark.parametrize(
    ("state", "step", "says"), [("training", None, True), ("training", 5, False), ("stopped", None, False)]
)
def test_whoever_asks_for_the_last_snapshot_of_a_run_that_trains_says_so(
    tmp_path: Path, state: str, step: int | None, says: bool
) -> None:
    record(tmp_path / "a", state=state).close()
    feed = Feed(open_run(tmp_path / "a"))
    feed.refresh(now=True)
    assert not (tmp_path / "a" / SEEN).exists()
    assert (tmp_path / "a" / READ).exists() is (state == "training")  # it reads along
    feed.snapshot(step)
    assert (tmp_path / "a" / SEEN).exists() is says
    feed.run.close()


def test_steps_of_a_measurement() -> None:
    assert [step for step in range(1, 30) if falls_on(step, 10)] == [1, 11, 21]
    assert all(falls_on(step, 1) for step in range(1, 5))


def test_what_is_measured_rarely_is_held_and_measured_at_a_turn(tmp_path: Path) -> None:
    config = Config.for_task("plane", num_experts=4, tokens=64, d_model=8, d_hidden=8, threads=1, steps=40,
                             scores_every=10, task_gradient_every=20)  # fmt: skip
    folder, state = train(config, Knobs(), tmp_path, "a", script=[(25, "noise", 2.0)])
    assert state == "finished"
    run = open_run(folder)
    for stat, measured in (
        ("router_margin", {1, 11, 21, 25, 31}),
        ("confidence", {1, 11, 21, 25, 31}),
        ("task_gradient", {1, 21}),
    ):
        values = run.history(stat)[1].astype(np.float32)
        changed = {1} | {step for step in range(2, 41) if values[step - 1] != values[step - 2]}
        assert changed == measured, stat
    run.close()


def test_a_look_follows_no_link(tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    run.mkdir()
    (run / SEEN).symlink_to(other)
    look(run)
    assert not other.exists()
    other.write_text("theirs")
    os.utime(other, (1, 1))
    look(run)
    assert other.stat().st_mtime == 1
