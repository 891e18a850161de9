"""Resume, fork, replay and scripts: what is trained again comes out the same, bit for bit, and what is not says so."""

import json
import os
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moe_core.__main__ import main
from moe_core.runs import (
    BY_THE_CLOCK,
    COMPARED,
    KnobChange,
    Run,
    RunWriter,
    StoreError,
    fingerprint,
    first_difference,
    flags,
    hold_lock,
    is_alive,
    open_run,
    read_script,
    runner,
    script_of,
    verify,
)
from moe_core.runs.branch import branch_off
from moe_core.runs.codec import HEADER, link, pack_rows
from moe_core.runs.sums import insert
from moe_core.schema import Config, Knobs
from moe_core.training import again, checkpoint
from moe_core.training.again import replay, resume
from moe_core.training.loop import Trainer
from moe_core.training.machine import facts_of
from moe_core.training.session import train

ROOT = Path(__file__).parents[1]
STEPS = 160
CONFIG = Config.for_task(
    "plane",
    num_experts=8,
    layers=2,
    tokens=32,
    d_model=8,
    d_hidden=8,
    steps=STEPS,
    eval_every=20,
    churn_every=20,
    threads=1,
    checkpoint_every=0,
)
KNOBS = Knobs(noise=0.0, w_importance=0.0, w_load=0.0, k=1)  # so that some experts die
SCRIPT = [(30, "lr", 0.1 / 30), (120, "noise", 0.5), (120, "lr", 0.01), (140, "w_load", 0.1)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that nothing interrupted, with which the others are compared."""
    folder, state = train(CONFIG, KNOBS, tmp_path_factory.mktemp("runs"), "whole", script=SCRIPT)
    assert state == "finished"
    run = open_run(folder)
    assert run.history("dead_experts")[1].max() > 0
    return run


def newest(run: Run) -> dict[str, Any]:
    return checkpoint.read(max(run.path.glob("checkpoint-*.pt")))


def same_training(one: Run, other: Run, last: int | None = None) -> bool:
    """All steps once, and every number the same that does not depend on the clock."""
    last = last or one.steps()[1]
    if last > min(one.steps()[1], other.steps()[1]) or one.steps()[0] != 1 or other.steps()[0] != 1:
        return False
    return first_difference(one.rows(1, last), one.layout, other.rows(1, last), other.layout, 1) is None


def equal(one: Any, other: Any) -> bool:
    """Nested tensors and plain values, to the last bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(equal(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def same_end(one: Run, other: Run) -> bool:
    """Weights, optimizer, random state, knobs, and the statistics' memory."""
    a, b = newest(one), newest(other)
    kept = ("model", "optimizer", "step", "torch_random", "knobs", "window")
    return all(equal(a[name], b[name]) for name in kept) and equal(
        a["telemetry"]["last_selected"], b["telemetry"]["last_selected"]
    )


def measured(run: Run) -> list[tuple[int, dict[str, float]]]:
    return [(e.step, e.metrics) for e in run.evals()]


def turned(run: Run) -> list[tuple[int | None, str, float | str]]:
    return [(c.step, c.name, c.value) for c in run.knob_changes()]


def start_trainer(runs: Path, run_id: str, config: Config, script: Path) -> "subprocess.Popen[str]":
    words = [sys.executable, "-m", "moe_core", "train", "--runs", str(runs), "--run-id", run_id, "--json"]
    return subprocess.Popen(
        [*words, "--script", str(script), *flags(config, replace(KNOBS, speed_limit=150.0))],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for(run: Run, step: int) -> None:
    until = time.monotonic() + 60
    while run.steps()[1] < step and time.monotonic() < until:
        time.sleep(0.005)


# Resume


@pytest.mark.parametrize("moment", [0, 25, 90, 125])
def test_killed_and_resumed_it_is_as_if_nothing_had_happened(tmp_path: Path, whole: Run, moment: int) -> None:
    """At several moments, with checkpoints as often as can be, one fork of the living run, and a stop that came too late."""
    script = tmp_path / "script"
    script.write_text(script_of(whole))
    with start_trainer(tmp_path, "a", replace(CONFIG, checkpoint_every=0.1), script) as trainer:
        assert trainer.stdout
        assert json.loads(trainer.stdout.readline())["event"] == "start"
        run = open_run("a", tmp_path)
        wait_for(run, moment)
        if moment == 90:
            os.close(branch_off(run, 80, {}, tmp_path / "b"))
        trainer.send_signal(signal.SIGKILL)
        trainer.stdout.read()
    assert run.state == "interrupted"
    reached = run.steps()[1]
    assert moment <= reached < STEPS
    run.command("stop")
    run.close()
    torch.set_num_threads(2)  # of whoever resumes; the run's own is used again
    folder, state = resume(run)
    assert torch.get_num_threads() == 1
    run = open_run(folder)
    assert state == run.state == "finished"
    assert same_training(run, whole)
    assert same_end(run, whole) or newest(run)["knobs"]["speed_limit"] == 150.0
    assert equal(newest(run)["model"], newest(whole)["model"])
    assert equal(newest(run)["optimizer"], newest(whole)["optimizer"])
    assert measured(run) == measured(whole)
    assert turned(run) == turned(whole)
    assert verify(run) == []
    assert [(s["step"], s["steps"], s["notes"]) for s in run.sessions()] == [(reached, STEPS, [])]
    (stop,) = (c for c in run.commands() if c.name == "stop")
    assert (stop.step, stop.result) == (reached, "not obeyed: the trainer had ended")
    if moment == 90:
        assert open_run("b", tmp_path).state == "interrupted"
        forked = open_run(resume(open_run("b", tmp_path))[0])
        assert same_training(forked, whole)
        assert equal(newest(forked)["model"], newest(whole)["model"])
        assert turned(forked) == turned(whole)


def test_a_finished_run_is_gone_on_with(tmp_path: Path, whole: Run) -> None:
    """50 is no step of an evaluation by itself, so the end's is one more; the last is not made twice."""
    folder, _ = train(replace(CONFIG, steps=50), KNOBS, tmp_path, "a", script=SCRIPT[:1])
    run = open_run(folder)
    watching = open_run(folder)
    watching.status()
    with pytest.raises(StoreError, match="has 50 steps; give --steps above that"):
        resume(run)
    run.turn(who="me", w_load=0.1)
    assert resume(run, 60)[1] == "finished"
    assert resume(run, 80)[1] == "finished"
    run = open_run(folder)
    assert run.config == replace(CONFIG, steps=80)
    assert run.config.steps == 80
    assert turned(run) == [(30, "lr", 0.1 / 30), (51, "w_load", 0.1)]
    assert [step for step, _ in measured(run)] == [20, 40, 50, 60, 80]
    assert same_training(run, whole, 50)
    assert not same_training(run, whole, 51)
    assert verify(run) == []
    assert watching.steps() == (1, 80)
    straight, _ = train(replace(CONFIG, steps=80), KNOBS, tmp_path, "b", script=[*SCRIPT[:1], (51, "w_load", 0.1)])
    assert same_training(run, open_run(straight), 80)
    assert same_end(run, open_run(straight))


def test_a_run_killed_after_its_last_step_only_ends(tmp_path: Path) -> None:
    """Its last evaluation is in the record already, and is not made twice."""
    folder, _ = train(replace(CONFIG, steps=30), KNOBS, tmp_path, "a")
    lock = hold_lock(folder)
    writer = RunWriter(folder, lock)
    writer.transact(state="training")
    writer.db.close()
    os.close(lock)
    assert resume(open_run(folder))[1] == "finished"
    run = open_run(folder)
    assert (run.state, run.steps(), [step for step, _ in measured(run)]) == ("finished", (1, 30), [20, 30])


def test_a_step_that_was_not_finite_pauses_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person has resumed it since: on the way back nobody is there to do it again."""
    trained, paused = Trainer.train_step, []

    def step(self: Trainer, began: float) -> None:
        bias = self.model.head.bias
        kept = bias.detach().clone()
        if self.step == 4:
            bias.data.fill_(torch.nan)
        trained(self, began)
        if self.step == 5:
            bias.data.copy_(kept)

    def idle(self: Trainer) -> None:
        paused.append(self.step)
        self.flush()
        Run(self.folder).command("resume")

    monkeypatch.setattr(Trainer, "train_step", step)
    monkeypatch.setattr(Trainer, "idle", idle)
    folder, _ = train(replace(CONFIG, steps=10), KNOBS, tmp_path, "a")
    assert paused == [5]
    assert np.isnan(open_run(folder).history("loss")[1][4])
    os.close(branch_off(open_run(folder), 8, {}, tmp_path / "b", 10))
    assert resume(open_run("b", tmp_path))[1] == "finished"
    assert paused == [5]
    assert same_training(open_run("b", tmp_path), open_run(folder))
    assert replay(open_run(folder)).difference is None


def test_a_stop_on_the_way_back_leaves_the_record_as_it_was(
    tmp_path: Path, whole: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.close(branch_off(whole, 140, {}, tmp_path / "a"))
    before = fingerprint(open_run("a", tmp_path))
    for path in (tmp_path / "a").glob("*.pt"):
        path.unlink()
    trained = Trainer.train_step

    def step(self: Trainer, began: float) -> None:
        trained(self, began)
        if self.step == 110 and self.replaying:
            Run(self.folder).command("stop")

    monkeypatch.setattr(Trainer, "train_step", step)
    assert resume(open_run("a", tmp_path))[1] == "stopped"
    run = open_run("a", tmp_path)
    assert (run.steps(), fingerprint(run)) == ((1, 140), before)
    assert newest(run)["step"] == 110  # what was done is not lost
    monkeypatch.setattr(Trainer, "train_step", trained)
    assert resume(run)[1] == "finished"
    assert same_training(open_run("a", tmp_path), whole)
    assert same_end(open_run("a", tmp_path), whole)


def test_a_machine_that_adds_up_differently_is_told_of(
    tmp_path: Path, whole: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_another(device: torch.device, threads: int) -> dict[str, Any]:
        facts = facts_of(device, threads)
        return {**facts, "versions": {**facts["versions"], "torch": "1.0"}, "instructions": "none"}

    os.close(branch_off(whole, 100, {}, tmp_path / "a"))
    monkeypatch.setattr(again, "facts_of", of_another)
    events: list[dict[str, Any]] = []
    resume(open_run("a", tmp_path), 110, events.append)
    notes = [event["note"] for event in events if event["event"] == "note"]
    assert len(notes) == 2
    assert notes[0] == f"torch was {torch.__version__} and is 1.0, so the last bits may differ"
    assert open_run("a", tmp_path).sessions()[0]["notes"] == notes


def tamper(run: Run, step: int, stat: str) -> None:
    """Another number in the place of one, in a record whose chain and tip are right."""
    db = sqlite3.connect(run.path / "run.db")
    chain = db.execute("SELECT chain FROM run").fetchone()[0]
    for block in run.blocks():
        rows = block.rows.copy()
        if block.first <= step < block.first + len(rows):
            column = next(c for c in run.layout if c.stat == stat)
            rows[step - block.first, column.start] += 1
        data = pack_rows(rows)
        chain = link(chain, HEADER.pack(block.first, *rows.shape), data)
        db.execute("UPDATE blocks SET data = ?, chain = ? WHERE id = ?", (data, chain, block.id))
    db.commit()
    db.close()
    run.close()


def test_a_record_that_does_not_come_out_again_is_told_of(tmp_path: Path, whole: Run) -> None:
    os.close(branch_off(whole, 100, {}, tmp_path / "a"))
    tamper(open_run("a", tmp_path), 77, "loss")
    events: list[dict[str, Any]] = []
    assert resume(open_run("a", tmp_path), 110, events.append)[1] == "finished"
    (note,) = (event["note"] for event in events if event["event"] == "note")
    assert "differ from the record" in note
    assert "step 77: loss was" in note
    run = open_run("a", tmp_path)
    assert run.sessions()[0]["notes"] == [note]
    assert run.steps() == (1, 110)
    assert verify(run) == []


def test_what_cannot_be_resumed_is_refused_and_stays_as_it_was(
    tmp_path: Path, whole: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = branch_off(whole, 10, {}, tmp_path / "a")
    before = (tmp_path / "a" / "run.db").read_bytes()

    def refused(*words: str) -> str:
        assert main(["train", "--runs", str(tmp_path), "--resume", *words]) == 2
        return capsys.readouterr().err

    assert "being trained by another process" in refused("a")
    os.close(lock)
    assert "leave out --k, --lr" in refused("a", "--k", "2", "--lr", "0.1")
    assert "--run-id" in refused("a", "--run-id", "b")
    assert "steps must be a number" in refused("a", "--steps", "many")
    assert "give --steps above that" in refused("a", "--steps", "5")
    assert "is no run" in refused("b")
    assert not is_alive(tmp_path / "a")
    assert (tmp_path / "a" / "run.db").read_bytes() == before


# Checkpoints


def test_checkpoints_by_the_clock_change_nothing(tmp_path: Path, whole: Run) -> None:
    folder, _ = train(replace(CONFIG, steps=40, checkpoint_every=1e-9), KNOBS, tmp_path, "a", script=SCRIPT[:1])
    run = open_run(folder)
    assert same_training(run, whole, 40)
    steps = sorted(checkpoint.list_checkpoints(folder))
    assert len(steps) == checkpoint.NEWEST + checkpoint.OLDER
    assert steps[-2:] == [39, 40]
    assert [path.name for path in whole.path.glob("*.pt")] == [checkpoint.name_of(STEPS)]  # 0: only at the end


@pytest.mark.parametrize("step", [1, 119, 159])
def test_every_checkpoint_is_a_place_to_go_on_from(tmp_path: Path, whole: Run, step: int) -> None:
    """Of the resumed run, the same steps and the same end, wherever it was restored."""
    folder, _ = train(replace(CONFIG, steps=step), KNOBS, tmp_path, "a", script=[c for c in SCRIPT if c[0] <= step])
    child = tmp_path / "b"
    os.close(branch_off(open_run(folder), step, {}, child, STEPS))
    assert [path.name for path in child.glob("*.pt")] == [checkpoint.name_of(step)]
    for at, name, value in SCRIPT:
        if at == step + 1:
            open_run(child).turn("script", **{name: value})
    resume(open_run(child))
    last = min([STEPS, *(at - 1 for at, *_ in SCRIPT if at > step + 1)])
    assert same_training(open_run(child), whole, last)
    if last == STEPS:
        assert same_end(open_run(child), whole)


STRATEGY_SCRIPT = "\n".join(
    f"{10 * i} strategy={strategy}"
    for i, strategy in enumerate(
        ("switch", "loss-free", "expert-choice", "strictly-balanced", "even", "none", "paper"), 1
    )
)


@pytest.mark.parametrize("at", [25, 29, 45, 60, 75])
def test_what_a_strategy_has_learnt_is_in_the_checkpoint(tmp_path: Path, at: int) -> None:
    """Gone on with in the middle of each strategy, from the checkpoint: biases, thresholds, switched-off experts."""
    config = replace(CONFIG, steps=90)
    script = [*read_script(STRATEGY_SCRIPT, config, Knobs()), (5, "off", "1:3,2:4"), (5, "bias_speed", 0.1)]
    straight = open_run(train(config, Knobs(), tmp_path, "straight", script=script)[0])
    folder, _ = train(replace(config, steps=at), Knobs(), tmp_path, "a", script=[c for c in script if c[0] <= at])
    os.close(branch_off(open_run(folder), at, {}, tmp_path / "b", 90))
    child = open_run("b", tmp_path)
    assert child.script == []
    child.script = [c for c in script if c[0] > at]  # what is still to come, as the straight run has it
    resume(child)
    assert same_training(open_run("b", tmp_path), straight)
    assert same_end(open_run("b", tmp_path), straight)


@pytest.mark.parametrize("over", ["sequence", "global"])
def test_the_batches_that_balance_over_remembers_are_in_the_checkpoint(tmp_path: Path, over: str) -> None:
    """Gone on with, forked and replayed soon after the knob was turned, when some of the 8 batches are there."""
    # Each step measures its scores, since a turn's step always does, which would part the two at step 20.
    config = replace(CONFIG, steps=40, scores_every=1)
    knobs, script = Knobs(strategy="switch", w_switch=0.5), [(20, "balance_over", over)]
    straight = open_run(train(config, knobs, tmp_path, "straight", script=script)[0])
    unturned = open_run(train(config, knobs, tmp_path, "unturned")[0])
    assert same_training(unturned, straight, 20)
    if over == "global":  # points form no sequences: there sequence is the batch, but for rounding
        assert not same_training(unturned, straight)
        assert all(
            counts.any() for name, counts in newest(straight)["model"].items() if name.endswith("gate.recent_WE")
        )
    halted = open_run(train(replace(config, steps=24), knobs, tmp_path, "halted", script=script)[0])
    os.close(branch_off(halted, 24, {}, tmp_path / "fork", 40))
    halted.close()
    for run in (open_run("halted", tmp_path), open_run("fork", tmp_path)):
        resume(run, 40)
        gone_on = open_run(run.path)
        assert same_training(gone_on, straight)
        assert same_end(gone_on, straight)
        assert replay(gone_on).difference is None


# Fork


def test_a_fork_is_its_parent_up_to_its_step_and_then_goes_its_way(tmp_path: Path, whole: Run) -> None:
    """Before the parent's only checkpoint, so from scratch."""
    os.close(branch_off(whole, 100, {"noise": "2", "w_load": 0.2}, tmp_path / "a"))
    before = open_run("a", tmp_path)
    assert before.parent == ("whole", 100)
    assert whole.parent is None
    assert before.steps() == (1, 100)
    assert before.config == whole.config
    assert measured(before) == [e for e in measured(whole) if e[0] <= 100]
    assert before.snapshots().tolist() == [s for s in whole.snapshots() if s <= 100]
    assert verify(before) == []
    resume(before)
    run = open_run("a", tmp_path)
    assert same_training(run, whole, 100)
    found = first_difference(run.rows(1, STEPS), run.layout, whole.rows(1, STEPS), whole.layout, 1)
    assert found is not None
    assert found.step == 101
    mine = [(c.step, c.name, c.value, c.who) for c in run.knob_changes() if c.who == "fork"]
    assert mine == [(101, "noise", 2.0, "fork"), (101, "w_load", 0.2, "fork")]
    assert [c for c in turned(run) if c[0] != 101] == turned(whole)  # the script goes on
    assert run.steps() == (1, STEPS)
    assert [step for step, _ in measured(run)] == [step for step, _ in measured(whole)]
    assert verify(run) == []
    assert replay(run).difference is None


@pytest.mark.parametrize("at", [0, 29, 120, STEPS])
def test_a_fork_with_no_change_is_its_parent_throughout(tmp_path: Path, whole: Run, at: int) -> None:
    os.close(branch_off(whole, at, {}, tmp_path / "a", STEPS if at < STEPS else STEPS + 10))
    assert resume(open_run("a", tmp_path))[1] == "finished"
    run = open_run("a", tmp_path)
    assert same_training(run, whole, STEPS)
    assert turned(run) == turned(whole)
    if at < STEPS:
        assert same_end(run, whole)
        assert measured(run) == measured(whole)


def test_a_fork_of_a_fork_starts_from_the_checkpoint_of_its_ancestor(
    tmp_path: Path, whole: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(replace(CONFIG, steps=40), KNOBS, tmp_path, "a", script=SCRIPT[:1])
    steps_trained: list[int] = []
    trained = Trainer.train_step
    monkeypatch.setattr(
        Trainer, "train_step", lambda self, began: (steps_trained.append(self.step + 1), trained(self, began))
    )
    for parent, child, steps in (("a", "b", 60), ("b", "c", 80)):
        os.close(branch_off(open_run(parent, tmp_path), 40 if parent == "a" else 50, {}, tmp_path / child, steps))
        steps_trained.clear()
        resume(open_run(child, tmp_path))
        assert steps_trained == list(range(41, steps + 1))
        assert same_training(open_run(child, tmp_path), whole, steps)
    assert open_run("c", tmp_path).parent == ("b", 50)


def test_a_fork_in_the_background_is_never_without_a_trainer(tmp_path: Path, whole: Run) -> None:
    run_id = runner.fork(whole, 140, {"noise": 2}, tmp_path, who="me")
    try:
        run = open_run(run_id, tmp_path)
        seen, until = set(), time.monotonic() + 60
        while run.state != "finished" and time.monotonic() < until:
            seen.add(run.state)
            run.close()
            time.sleep(0.01)
        assert seen <= {"starting", "training"}
        assert run.state == "finished"
        run.close()  # or its trainer could not seal the file
    finally:
        runner.stop(open_run(run_id, tmp_path))
        while runner._children:
            runner.reap()
            time.sleep(0.01)
    assert [(c.step, c.who) for c in run.knob_changes()[-2:]] == [(140, "script"), (141, "me")]
    assert run.sessions()[0]["who"] == "me"
    with pytest.raises(StoreError, match="between 0 and 160"):
        runner.fork(whole, STEPS + 1, {}, tmp_path)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--at", "161"], "between 0 and 160 in whole, got 161"),
        (["--at", "-1"], "between 0 and 160"),
        (["--at", "9", "nose=1"], "unknown knob 'nose'"),
        (["--at", "9", "k=9"], "k must be between 1 and num_experts=8, got 9"),
        (["--at", "9", "--steps", "9"], "--steps must be above --at 9"),
        (["--at", "9", "--steps", "x"], "steps must be a number"),
    ],
)
def test_a_fork_that_cannot_be_is_one_line_and_nothing_written(
    tmp_path: Path, whole: Run, words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for detach in ([], ["--detach"]):
        assert main(["fork", str(whole.path), "--runs", str(tmp_path / "runs"), *words, *detach]) == 2
        said = capsys.readouterr()
        assert (said.out, said.err.count("\n")) == ("", 1)
        assert says in said.err
        assert not (tmp_path / "runs").exists()


def test_a_fork_of_a_damaged_parent_leaves_nothing(tmp_path: Path, whole: Run) -> None:
    os.close(branch_off(whole, 100, {}, tmp_path / "a"))
    with sqlite3.connect(tmp_path / "a" / "run.db") as db:
        db.execute("UPDATE blocks SET data = zeroblob(9)")
    db.close()
    with pytest.raises(ValueError, match="damaged"):
        branch_off(open_run("a", tmp_path), 50, {}, tmp_path / "b")
    assert not (tmp_path / "b").exists()
    os.close(hold_lock(tmp_path / "a"))


def test_fork_trains_in_the_foreground_and_tells_of_it(
    tmp_path: Path, whole: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "fork",
        str(whole.path),
        "--at",
        "20",
        "--json",
        "noise=0.5",
        "--runs",
        str(tmp_path / "w=1"),
        "--run-id",
        "a",
        "k=2",
    ]
    assert main([*words, "--steps", "30"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (events[0]["event"], events[0]["run"]) == ("start", "a")
    assert (events[-1]["event"], events[-1]["state"], events[-1]["step"]) == ("end", "finished", 30)
    assert turned(open_run("a", tmp_path / "w=1")) == [(21, "noise", 0.5), (21, "k", 2.0), (30, "lr", 0.1 / 30)]


# Replay


def test_a_session_of_a_person_is_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Paused, turned, stepped, resumed, stopped, gone on with, and forked in the end."""
    looks = []

    def idle(self: Trainer) -> None:
        self.flush()
        looks.append(self.step)
        run = Run(self.folder)
        if len(looks) == 1:
            run.turn("me", noise=0.5)
        run.command({1: "step", 2: "step"}.get(len(looks), "resume"))
        run.close()

    trained = Trainer.train_step

    def step(self: Trainer, began: float) -> None:
        trained(self, began)
        if not self.replaying and (then := {15: "pause", 33: "stop"}.get(self.step)):
            Run(self.folder).command(then)

    monkeypatch.setattr(Trainer, "idle", idle)
    monkeypatch.setattr(Trainer, "train_step", step)
    folder, state = train(CONFIG, KNOBS, tmp_path, "a")
    assert (state, looks) == ("stopped", [15, 16, 17])
    run = open_run(folder)
    assert run.steps() == (1, 33)
    run.turn("me", lr=0.01)
    resume(run, 45)
    os.close(branch_off(open_run(folder), 40, {"k": 2}, tmp_path / "b", 60))
    resume(open_run("b", tmp_path))
    assert turned(open_run("b", tmp_path)) == [(16, "noise", 0.5), (34, "lr", 0.01), (41, "k", 2.0)]
    for name in ("a", "b"):
        before = {path: path.read_bytes() for path in (tmp_path / name).iterdir()}
        assert main(["replay", name, "--json", "--runs", str(tmp_path)]) == 0
        end = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert end["same"] is True
        assert end["recorded"] == end["again"] == fingerprint(open_run(name, tmp_path))
        assert set(end["compared"]) == set(COMPARED)
        assert set(end["not_compared"]) == {"seconds"} < set(BY_THE_CLOCK)  # the others are of several ranks
        assert {path: path.read_bytes() for path in (tmp_path / name).iterdir()} == before
    assert main(["replay", "a", "--runs", str(tmp_path)]) == 0
    assert fingerprint(open_run("a", tmp_path)) in capsys.readouterr().out


# Without a bias its effect is NaN, and no expert is out of reach: neither is changed by a factor.
@pytest.mark.parametrize("stat", [stat for stat in COMPARED if stat not in ("bias_effect", "unreachable")])
def test_replay_finds_a_number_that_was_changed(
    tmp_path: Path, whole: Run, stat: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a record that is whole by every other check."""
    os.close(branch_off(whole, 45, {}, tmp_path / "a"))
    tamper(open_run("a", tmp_path), 41, stat)
    assert main(["replay", "a", "--json", "--runs", str(tmp_path)]) == 1
    end = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (end["same"], end["difference"]["step"], end["difference"]["stat"], end["again"]) == (
        False,
        41,
        stat,
        None,
    ) or (
        end["again"] and end["difference"]["step"] == 41  # the last comparison may end at the last step
    )
    if stat == "loss":  # the same in words, whatever the statistic
        assert main(["replay", "a", "--runs", str(tmp_path)]) == 1
        assert "step 41: loss" in capsys.readouterr().out


def test_replay_does_not_compare_the_clock(tmp_path: Path, whole: Run) -> None:
    os.close(branch_off(whole, 60, {}, tmp_path / "a"))
    tamper(open_run("a", tmp_path), 41, "seconds")
    found = replay(open_run("a", tmp_path))
    assert found.difference is None
    assert found.recorded == found.again == fingerprint(whole, 60)


def test_a_changed_knob_history_does_not_replay(tmp_path: Path, whole: Run) -> None:
    os.close(branch_off(whole, 60, {}, tmp_path / "a"))
    with sqlite3.connect(tmp_path / "a" / "run.db") as db:
        knob = db.execute("SELECT min(knob) FROM applied").fetchone()[0]
        insert(db, "applied", {"knob": knob, "step": 31})
    db.close()
    found = replay(open_run("a", tmp_path)).difference
    assert found is not None
    assert found.step == 30  # that of the turn, in which the scores were measured


def test_a_run_without_steps_is_not_replayed(tmp_path: Path, whole: Run, capsys: pytest.CaptureFixture[str]) -> None:
    os.close(branch_off(whole, 0, {}, tmp_path / "a"))
    assert main(["replay", "a", "--runs", str(tmp_path)]) == 2
    assert "has no steps yet" in capsys.readouterr().err


def test_bits_are_compared_and_nan_is_nan(whole: Run) -> None:
    columns = whole.layout
    one = np.zeros((3, whole.columns), np.float32)
    one[1, 0] = np.nan
    other = one.copy()
    assert first_difference(one, columns, other, columns, 10) is None
    other[2, 1] = -0.0
    found = first_difference(one, columns, other, columns, 10)
    assert found is not None
    assert (found.step, found.stat) == (12, columns[1].stat)
    one[1, 0] = 0
    found = first_difference(one, columns, other, columns, 10)
    assert found is not None
    assert (found.step, found.stat) == (11, "loss")


# Scripts


def test_an_exported_script_trains_the_same(tmp_path: Path, whole: Run) -> None:
    out = tmp_path / "out"
    assert main(["export", str(whole.path), "--out", str(out), "--format", "csv", "--figure", "loss"]) == 0
    words = [
        *flags(CONFIG, KNOBS),
        "--script",
        str(out / "script.txt"),
        "--runs",
        str(tmp_path),
        "--run-id",
        "a",
        "--json",
    ]
    assert main(["train", *words]) == 0
    run = open_run("a", tmp_path)
    assert fingerprint(run) == fingerprint(whole)
    assert same_training(run, whole)
    assert turned(run) == turned(whole)
    assert {c.who for c in run.knob_changes()} == {"script"}
    assert (
        script_of(run).splitlines()[2:]
        == script_of(whole).splitlines()[2:]
        == (out / "script.txt").read_text().splitlines()[2:]
    )


def test_the_script_of_a_run_that_goes_on_meanwhile_ends_where_its_heading_says(
    whole: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole, "steps", lambda: (1, 120))
    script = read_script(script_of(whole), replace(CONFIG, steps=120), KNOBS)
    assert script == [change for change in SCRIPT if change[0] <= 120]
    assert f"train {shlex.join(flags(replace(whole.config, steps=120), KNOBS))} --script FILE" in script_of(whole)


def test_of_several_turns_of_a_knob_in_a_step_the_last_stands_where_it_was_made(
    whole: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = [("k", 1.0), ("off", "1:1"), ("k", 2.0)]
    changes = [KnobChange(id, name, value, 0.0, "me", 0.0, 10) for id, (name, value) in enumerate(turns, 1)]
    monkeypatch.setattr(whole, "knob_changes", lambda: changes)
    assert script_of(whole).splitlines()[-1] == "10 off=1:1 k=2"


def test_a_script_as_a_person_writes_it() -> None:
    text = "# what I did\n\n 20 noise=0.5   k=1 # both at once\n300 w-load='0.1'\n"
    assert read_script(text, Config(), Knobs()) == [(20, "noise", 0.5), (20, "k", 1), (300, "w_load", 0.1)]
    assert read_script("", Config(), Knobs()) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("noise=0.5", "line 1 of the script: wanted a step and changes"),
        ("5", "wanted a step and changes"),
        ("-5 noise=1", "wanted a step and changes"),
        ("1.5 noise=1", "wanted a step and changes"),
        ("0 noise=1", "must be above 0, got 0"),
        ("\n9 k=1\n9 noise=1", "line 3 of the script: the step must be above 9, got 9"),
        ("9 nose=1", "unknown knob 'nose'"),
        ("9 k=77", "k must be between 1 and num_experts=8"),
        ("9 noise", "a change is written knob=value, got 'noise'"),
        ("9 noise='1", "No closing quotation"),
        ("161 noise=1", "step 161 is beyond the last, 160"),
    ],
)
def test_a_bad_script_is_one_line_and_nothing_written(
    tmp_path: Path, text: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "script").write_text(text)
    words = [*flags(CONFIG, KNOBS), "--script", str(tmp_path / "script"), "--runs", str(tmp_path / "runs")]
    assert main(["train", *words]) == 2
    said = capsys.readouterr()
    assert says in said.err
    assert said.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()
    assert main(["train", "--script", str(tmp_path / "nowhere"), "--runs", str(tmp_path / "runs")]) == 2


def test_autobalance_decides_after_a_resume_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    """Its decisions are rows of the record: those before the stop are trained again, those after it are made anew."""
    knobs, config = Knobs(w_importance=0.0, w_load=0.0, autobalance=0.1), replace(CONFIG, checkpoint_every=0)
    straight = open_run(train(config, knobs, tmp_path, "straight")[0])
    folder, _ = train(replace(config, steps=110), knobs, tmp_path, "halted")
    resume(open_run(folder), STEPS)
    halted = open_run(folder)
    assert any(step > 110 for step, *_ in turned(straight) if step)
    assert turned(halted) == turned(straight)
    assert same_training(straight, halted)
    assert same_end(straight, halted)
    assert replay(halted).difference is None
