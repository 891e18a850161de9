"""What autobalance decides beside what people turn: nobody is overwritten unseen, and what is trained again is the same.

A person's turn is put exactly where it could be lost: between what the trainer last looked at and the row of the decision.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from moe_core.__main__ import main
from moe_core.recording.holding import EVERY
from moe_core.runs import Run, RunWriter, StoreError, first_difference, flags, open_run, read_script, script_of
from moe_core.runs.branch import branch_off
from moe_core.schema import AUTOBALANCE, Config, Knobs
from moe_core.training.again import replay, resume
from moe_core.training.autobalance import Autobalance, follows_from
from moe_core.training.session import train

CONFIG = Config.for_task(
    "plane", num_experts=8, layers=1, tokens=32, d_model=8, d_hidden=8, steps=130, eval_every=200, threads=1,
    checkpoint_every=0,
)  # fmt: skip
KNOBS = Knobs(w_importance=0.0, w_load=0.0, autobalance=0.1)
AT = 75  # a step after which autobalance decides
LONGER = 180  # steps of a run that goes on beyond its own: autobalance decides after two of them


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that nobody disturbs: it decides after each 25 steps."""
    run = open_run(train(CONFIG, KNOBS, tmp_path_factory.mktemp("runs"), "alone")[0])
    assert {c.step for c in run.knob_changes()} >= {26, 51, 76, 101}
    return run


def same(one: Run, other: Run, last: int = CONFIG.steps) -> bool:
    return first_difference(one.rows(1, last), one.layout, other.rows(1, last), other.layout, 1) is None


def turned(run: Run, after: int = 0) -> list[tuple[int | None, str, float | str, str]]:
    return [(c.step, c.name, c.value, c.who) for c in run.knob_changes() if c.step is None or c.step > after]


def before_the_row(monkeypatch: pytest.MonkeyPatch, folder: Path, act: Callable[[RunWriter], None]) -> None:
    """Let something happen when the decision after step AT of the run in `folder` is made and not yet written."""
    write = RunWriter.decide

    def decide(self: RunWriter, *arguments: object) -> None:
        if self.folder == folder and self.step == AT:
            act(self)
        write(self, *arguments)

    monkeypatch.setattr(RunWriter, "decide", decide)


@pytest.fixture(scope="module", params=["w_load", "autobalance"])
def disturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A person turns a knob that the decision after step AT follows from, before that decision has a row."""
    folder, turn = tmp_path_factory.mktemp("runs"), {request.param: 0.05}
    with pytest.MonkeyPatch.context() as patch:
        before_the_row(patch, folder / "run", lambda writer: writer.turn("me", **turn))
        run = open_run(train(CONFIG, KNOBS, folder, "run")[0])
    assert [row for row in turned(run) if row[0] == AT + 1] == [(AT + 1, request.param, 0.05, "me")]
    return run


def test_a_turn_that_a_decision_has_not_seen_stands_and_the_next_decision_knows_it(disturbed: Run, alone: Run) -> None:
    assert same(disturbed, alone, AT)
    own = [c for c in disturbed.knob_changes() if c.step > AT + 1 and c.who == AUTOBALANCE]
    assert own
    assert all(c.step % EVERY == 1 for c in own)
    if disturbed.knobs.autobalance == 0.1:
        assert next(c.previous for c in own if c.name == "w_load") == 0.05


def test_a_turn_of_another_knob_voids_nothing(tmp_path: Path, alone: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before_the_row(monkeypatch, tmp_path / "run", lambda writer: writer.turn("me", lr=0.001))
    run = open_run(train(CONFIG, KNOBS, tmp_path, "run")[0])
    decided = [row for row in turned(alone) if row[0] == AT + 1]
    assert decided
    assert [row for row in turned(run) if row[0] == AT + 1] == [(AT + 1, "lr", 0.001, "me"), *decided]


def test_a_turn_after_the_decision_wins_as_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = RunWriter.decide

    def decide(self: RunWriter, *arguments: object) -> None:
        write(self, *arguments)
        if self.step == AT:
            self.turn("me", w_load=0.05)

    monkeypatch.setattr(RunWriter, "decide", decide)
    run = open_run(train(replace(CONFIG, steps=AT + 1), KNOBS, tmp_path, "run")[0])
    assert [row[1:] for row in turned(run, AT)][-1] == ("w_load", 0.05, "me")
    assert run.knobs_at(AT + 1).w_load == 0.05
    assert run.knobs_at(AT + 1).w_importance != run.knobs_at(AT).w_importance  # the decision stands, but for that


def test_what_a_decision_follows_from_is_what_it_reads() -> None:
    assert follows_from(Knobs()) == {"autobalance", "strategy", "w_importance", "w_load"}
    assert follows_from(Knobs(strategy="switch")) == {"autobalance", "strategy", "w_switch"}


# Trained again


def test_what_was_void_is_void_again(disturbed: Run, tmp_path: Path) -> None:
    assert replay(disturbed).difference is None
    for at in (AT + 1, 110):
        os.close(branch_off(disturbed, at, {}, tmp_path / f"fork-{at}"))
        fork = open_run(resume(open_run(tmp_path / f"fork-{at}"))[0])
        assert same(fork, disturbed)
        assert turned(fork) == turned(disturbed)


def test_an_exported_script_trains_the_same(disturbed: Run, alone: Run, tmp_path: Path) -> None:
    """Autobalance is on in it too; its own changes are lines of the script, and none is made twice or beside them."""
    for name, run in (("alone", alone), ("disturbed", disturbed)):
        script = tmp_path / f"{name}.txt"
        script.write_text(script_of(run))
        words = [*flags(CONFIG, KNOBS), "--script", str(script), "--runs", str(tmp_path), "--run-id", name, "--json"]
        assert main(["train", *words]) == 0
        repeated = open_run(name, tmp_path)
        assert same(repeated, run)
        assert {row[3] for row in turned(repeated)} == {"script"}
        assert [row[:3] for row in turned(repeated)] == [row[:3] for row in turned(run)]
        assert repeated.knobs == run.knobs
        # And it goes on as the run itself would: there autobalance decides.
        for one in (repeated, run):
            os.close(branch_off(one, CONFIG.steps, {}, tmp_path / f"{name}-{one.path.parent.name}", LONGER))
        on, straight = (
            open_run(resume(open_run(tmp_path / f"{name}-{one.path.parent.name}"))[0]) for one in (repeated, run)
        )
        assert same(on, straight, LONGER)
        assert [row[:3] for row in turned(on)] == [row[:3] for row in turned(straight)]


def test_a_script_that_people_write_is_not_overwritten_either(tmp_path: Path) -> None:
    script = read_script(f"{AT + 1} w_load=0.05", CONFIG, KNOBS)
    run = open_run(train(CONFIG, KNOBS, tmp_path, "run", script=script)[0])
    assert [row for row in turned(run) if row[0] == AT + 1] == [(AT + 1, "w_load", 0.05, "script")]
    assert {row[3] for row in turned(run, AT + 1)} == {AUTOBALANCE}


def test_killed_before_its_row_the_decision_is_made_on_the_way_back(
    alone: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(writer: RunWriter) -> None:
        raise OSError("killed")

    with monkeypatch.context() as patch:
        before_the_row(patch, tmp_path / "run", die)
        folder, state = train(CONFIG, KNOBS, tmp_path, "run")
    run = open_run(folder)
    assert (state, run.steps()[1], len(turned(run, AT))) == ("failed", AT, 0)
    # A turn in the meantime is seen by the resumed trainer's decision no more than by the first one's.
    os.close(branch_off(run, AT, {"w_load": 0.05}, tmp_path / "fork"))
    resumed = open_run(resume(run)[0])
    assert same(resumed, alone)
    assert turned(resumed) == turned(alone)
    fork = open_run(resume(open_run(tmp_path / "fork"), AT + 10)[0])
    assert turned(fork, AT) == [(AT + 1, "w_load", 0.05, "fork")]


def test_killed_after_its_row_the_decision_is_not_made_twice(
    alone: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = RunWriter.decide

    def decide(self: RunWriter, *arguments: object) -> None:
        write(self, *arguments)
        if self.step == AT:
            raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(RunWriter, "decide", decide)
        folder, state = train(CONFIG, KNOBS, tmp_path, "run")
    assert (state, open_run(folder).steps()[1]) == ("failed", AT)
    resumed = open_run(resume(open_run(folder))[0])
    assert same(resumed, alone)
    assert turned(resumed) == turned(alone)


@pytest.mark.parametrize("at", [AT, AT + 5])
def test_a_fork_that_changes_nothing_stays_its_parent(alone: Run, tmp_path: Path, at: int) -> None:
    """Also from a step after which its parent decided: the fork decides the same."""
    os.close(branch_off(alone, at, {}, tmp_path / "fork"))
    fork = open_run(resume(open_run(tmp_path / "fork"))[0])
    assert same(fork, alone)
    assert turned(fork) == turned(alone)


def test_replay_and_the_way_back_decide_nothing(alone: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Autobalance, "decide", lambda *_: pytest.fail("decided"))
    assert replay(alone).difference is None


def test_a_line_of_a_script_that_cannot_be_written_is_not_lost_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: RunWriter, who: str, **knobs: float | str) -> int:
        raise StoreError("the record is locked")

    monkeypatch.setattr(RunWriter, "turn", refuse)
    folder, state = train(CONFIG, KNOBS, tmp_path, "run", script=[(10, "w_load", 0.05)])
    run = open_run(folder)
    assert (state, run.steps()[1]) == ("failed", 9)
    assert "the record is locked" in run.status().reason
