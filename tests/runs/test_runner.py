"""Starting and stopping a trainer, and the command line that it is started with."""

import os
import re
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from moe_core.__main__ import main, parser
from moe_core.commands.train import said, settings_of
from moe_core.runs import (
    ENDED,
    StoreError,
    create_run,
    fingerprint,
    flags,
    is_alive,
    list_runs,
    new_id,
    open_run,
    resume,
    runner,
    start,
    stop,
    wait_ready,
)
from moe_core.runs.locks import holder
from moe_core.runs.overview import belonging
from moe_core.runs.room import FULL
from moe_core.runs.rows import Status
from moe_core.schema import PRESETS, Config, Knobs

SMALL = Config.for_task("plane", num_experts=4, tokens=64, threads=1)


@pytest.mark.parametrize(
    "config", [Config(), SMALL, Config(text=("a b", "-c"), steps=7), *(Config.for_task(task) for task in PRESETS)]
)
def test_the_flags_say_the_same_as_the_settings(config: Config) -> None:
    config = replace(config, text=tuple(path for path in config.text if not path.startswith("-")))
    knobs = Knobs(noise=0.1 + 0.2, k=3, lr=1e-5)
    assert settings_of(parser().parse_args(["train", *flags(config, knobs)])) == (config, knobs)


def test_ids_are_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the letters that are drawn have been drawn before."""
    drawn = iter("aaaaaaaaaaab")
    monkeypatch.setattr(runner.secrets, "choice", lambda letters: next(drawn))
    for last in ("aaaa", "aaab"):
        id = new_id(tmp_path, Config().task)
        assert re.fullmatch(rf"text-\d{{4}}-\d{{4}}-{last}", id)
        (tmp_path / id).mkdir()


def test_the_run_of_a_lesson_is_told_by_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "spawn", lambda name, words, log, **_: None)
    ids = [start(SMALL, Knobs(), tmp_path, who) for who in ("lesson 3", "dashboard")]
    assert [belonging(tmp_path / id) for id in ids] == [("", 3), ("", 0)]
    assert ids[1].startswith("plane-")


def test_a_trainer_is_started_found_and_stopped(tmp_path: Path) -> None:
    run = wait_ready(start(SMALL, Knobs(), tmp_path), 60, tmp_path)
    try:
        until = time.monotonic() + 60
        while run.steps()[1] < 5 and time.monotonic() < until:
            time.sleep(0.05)
        assert run.steps()[1] >= 5
        assert run.state == "training"
    finally:
        stop(run)
    assert not is_alive(run.path)
    assert run.state == "stopped"
    stop(run)  # twice is fine


def test_a_stop_that_is_asked_while_a_resumed_run_starts_is_for_its_trainer(tmp_path: Path) -> None:
    """And one that its last trainer did not live to see is not."""
    config = replace(SMALL, d_model=16, d_hidden=16, eval_every=1000, checkpoint_every=0.0)
    create_run(tmp_path / "a", config, Knobs()).finish("stopped")
    run = open_run("a", tmp_path)
    run.command("stop")
    time.sleep(0.05)  # the clock of the lock's file ticks
    resume(run, 0)
    run.command("stop")
    until = time.monotonic() + 50
    while (is_alive(run.path) or run.state != "stopped") and time.monotonic() < until:
        time.sleep(0.05)
    assert (run.state, is_alive(run.path)) == ("stopped", False)
    assert run.steps()[1] <= 2
    told = [(command.name, command.result) for command in run.commands()]
    assert told[:2] == [
        ("stop", "not obeyed: the trainer had ended"),
        ("stop", "asked again: the trainer was starting"),
    ]
    assert told[-1] == ("stop", "done")


def test_a_trainer_that_cannot_start_says_why(tmp_path: Path) -> None:
    run_id = start(replace(SMALL, device="cuda:77"), Knobs(), tmp_path)
    with pytest.raises(StoreError, match="did not start: moe: device 'cuda:77' is not on this machine"):
        wait_ready(run_id, 60, tmp_path)


def test_what_has_loaded_torch_ahead_becomes_the_next_trainer(tmp_path: Path) -> None:
    config, pids = replace(SMALL, steps=3), []
    for alive in (True, False):  # one that has died meanwhile is done without
        runner.load_torch_ahead(tmp_path)
        ahead = runner._ahead
        runner.load_torch_ahead(tmp_path)
        assert ahead is not None
        assert ahead is runner._ahead
        if not alive:
            ahead.kill()
            ahead.wait()
        run_id = start(config, Knobs(), tmp_path)
        assert (tmp_path / run_id / "trainer.log").exists()  # at once: a page takes a start without it for failed
        run = wait_ready(run_id, 60, tmp_path)
        wait_until(lambda run=run: run.state == "finished")
        pids.append((ahead.pid, run.status().pid))
    assert (pids[0][0] == pids[0][1], pids[1][0] == pids[1][1]) == (True, False)
    one, other = list_runs(tmp_path)
    assert fingerprint(open_run(one.id, tmp_path)) == fingerprint(open_run(other.id, tmp_path))


def test_what_has_loaded_torch_ahead_says_why_it_cannot_start_and_ends_with_its_dashboard(tmp_path: Path) -> None:
    runner.load_torch_ahead(tmp_path)
    run_id = start(replace(SMALL, device="cuda:77"), Knobs(), tmp_path)
    with pytest.raises(StoreError, match="did not start: moe: device 'cuda:77' is not on this machine"):
        wait_ready(run_id, 60, tmp_path)
    runner.load_torch_ahead(tmp_path)
    ahead = runner._ahead
    assert ahead is not None
    assert ahead.stdin
    ahead.stdin.close()  # as when the dashboard is killed
    assert ahead.wait(60) == 0


def test_what_reads_no_more_is_done_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It waited for ten minutes, and ends just now: its process is there, but nobody reads the pipe."""
    words = ["sh", "-c", "exec 0<&-; echo; exec sleep 60"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline()
        monkeypatch.setattr(runner, "_ahead", process)
        assert runner._hand_over(["--steps", "3"], tmp_path / "log") is None
        assert process.poll() is None
        process.kill()


@pytest.mark.parametrize(
    "line", ["", "garbage", "{}", "7", "[" * 100_000, '{"words": "--steps", "log": "a"}', '{"words": [1], "log": "a"}']
)
def test_a_line_that_no_dashboard_wrote_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="--wait reads a line") as told:
        said(line)
    assert len(str(told.value)) < 250


def wait_until(true: Callable[[], bool], seconds: float = 180) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.05)


def test_a_frozen_trainer_is_seen_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training or paused; even if it keeps everybody from writing to the record."""
    monkeypatch.setattr(runner, "PATIENCE", 0.5)
    monkeypatch.setattr("moe_core.runs.database.WAIT", 0.2)
    run = wait_ready(start(SMALL, Knobs(speed_limit=20), tmp_path), 120, tmp_path)
    pid = run.status().pid
    assert holder(run.path / "lock") == pid
    try:
        wait_until(lambda: run.steps()[1] > 5)
        for state in ("training", "paused"):
            if state == "paused":
                run.command("pause")
            wait_until(lambda: run.state == state)  # noqa: B023
            os.kill(pid, signal.SIGSTOP)
            wait_until(lambda: run.status().quiet > 0)
            (listed,) = list_runs(tmp_path)
            assert listed.state == state
            assert listed.reason.startswith("its trainer has not answered for ")
            if state == "training":
                os.kill(pid, signal.SIGCONT)
                wait_until(lambda: run.status().quiet == 0)
        reached = run.steps()[1]
        with sqlite3.connect(run.path / "run.db", isolation_level=None) as db:
            db.execute("BEGIN IMMEDIATE")
            assert main(["stop", run.id, "--runs", str(tmp_path)]) == 0
        db.close()
        assert "it did not answer, so its process was ended (SIGKILL); its record is kept" in capsys.readouterr().out
        assert not is_alive(run.path)
        assert (run.state, run.steps()[1]) == ("interrupted", reached)
        runner.reap()
        assert holder(run.path / "lock") == 0  # the process that it names runs no more
    finally:
        if is_alive(run.path):
            os.kill(pid, signal.SIGKILL)


def test_only_the_process_that_the_lock_names_is_signalled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its id and when it started: the id may be another's by now."""
    signalled: list[int] = []
    monkeypatch.setattr(runner.os, "kill", lambda pid, number: signalled.append(pid))
    monkeypatch.setattr(runner, "is_ours", lambda pid, *commands: True)
    writer = create_run(tmp_path / "a", SMALL, Knobs())
    run = open_run(tmp_path / "a")
    assert runner.trainer_of(run) == os.getpid()
    os.pwrite(writer.lock, f"{os.getpid():>10} {'7':<20}\n".encode(), 0)
    assert runner.trainer_of(run) == 0
    with pytest.raises(StoreError, match="cannot be stopped"):
        stop(run, 0.0)
    assert signalled == []
    os.ftruncate(writer.lock, 0)  # of an earlier version's trainer: the record says which
    assert runner.trainer_of(run) == os.getpid()
    run.close()
    writer.finish("stopped")
    assert runner.trainer_of(run) == 0


@pytest.mark.parametrize("state", ["starting", "training", "paused", *ENDED, "interrupted"])
def test_a_trainer_that_beats_no_more_does_not_answer(state: str) -> None:
    """Unless it has ended, or cannot beat for want of room."""
    assert Status(state, 9, "", 12.7, 1).quiet == (12 if state in ("training", "paused") else 0)
    assert Status(state, 9, "", 3.0, 1).quiet == 0
    assert Status(state, 9, FULL, 12.7, 1).quiet == 0
