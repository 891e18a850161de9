"""A run folder that is renamed or deleted while its trainer works: it is followed, or the trainer ends and says why."""

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moe_core.__main__ import main
from moe_core.runs import Run, is_alive, list_runs, open_run, runner, start, stop, verify, wait_ready
from moe_core.schema import Config, Knobs
from moe_core.training import checkpoint
from moe_core.training.session import train

CONFIG = Config.for_task(
    "plane", num_experts=4, layers=1, tokens=32, d_model=8, d_hidden=8, threads=1, steps=60, eval_every=10
)


def remove(folder: Path) -> None:
    """The committing thread makes and renames files in it meanwhile."""
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)


def wait_until(true: Callable[[], bool], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)


def at_the_first_evaluation(
    act: Callable[[], object], events: list[dict[str, Any]]
) -> Callable[[dict[str, Any]], None]:
    """Act as somebody else would, when some of the run is recorded."""

    def notify(event: dict[str, Any]) -> None:
        events.append(event)
        if event["event"] == "eval" and [e["event"] for e in events].count("eval") == 1:
            act()

    return notify


def told(events: list[dict[str, Any]], kind: str, name: str) -> list[str]:
    return [event[name] for event in events if event["event"] == kind]


@pytest.mark.parametrize("parent", [False, True])
def test_a_renamed_folder_is_followed(tmp_path: Path, parent: bool) -> None:
    """Its own name, or that of the runs' folder; later steps, turns, a checkpoint and the end are in the new place."""
    old, new = tmp_path / "runs" / "a", tmp_path / ("moved/a" if parent else "runs/b")
    events: list[dict[str, Any]] = []

    def rename() -> None:
        (tmp_path / "runs").rename(tmp_path / "moved") if parent else old.rename(new)
        Run(new).turn("me", noise=0.5)
        Run(new).command("checkpoint")

    # A commit a step, so that many follow the rename.
    config = replace(CONFIG, checkpoint_every=1e-9)
    script = [(40, "lr", 0.01)]
    folder, state = train(config, Knobs(), tmp_path / "runs", "a", at_the_first_evaluation(rename, events), script)
    assert (folder, state) == (new, "finished")
    assert not old.exists()
    run = open_run(new)
    assert (run.state, run.steps(), verify(run)) == ("finished", (1, 60), [])
    assert told(events, "note", "note") == [f"the run's folder was renamed; it is {new} now"]
    assert {change.name for change in run.knob_changes() if change.step} == {"noise", "lr"}
    assert "checkpoint-0" in str(run.commands()[0].result)
    assert max(checkpoint.list_checkpoints(new)) == 60
    assert {path.name for path in new.iterdir() if ".pt" not in path.name} == {"lock", "run.db", "run.tip"}
    assert [(one.id, one.state) for one in list_runs(new.parent)] == [(new.name, "finished")]


def test_a_trainer_whose_folder_was_renamed_is_found_and_stopped(tmp_path: Path) -> None:
    started = start(replace(CONFIG, steps=0), Knobs(), tmp_path)
    run = wait_ready(started, 120, tmp_path)
    try:
        wait_until(lambda: run.steps()[1] > 5)
        run.close()
        run.path.rename(tmp_path / "b")
        run = open_run("b", tmp_path)
        reached = run.steps()[1]
        wait_until(lambda: run.steps()[1] > reached)
        assert [(one.id, one.state) for one in list_runs(tmp_path)] == [("b", "training")]
        wait_until(lambda: (tmp_path / "b" / "trainer.log").read_text().count("was renamed") == 1)
    finally:
        stop(run)
        runner.end_child(started)
    assert (run.state, is_alive(run.path)) == ("stopped", False)
    assert list(checkpoint.list_checkpoints(run.path)) == [run.steps()[1]]
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("again", [False, True])
def test_a_deleted_folder_ends_the_trainer(tmp_path: Path, again: bool) -> None:
    """And what somebody has put in its place is not touched."""
    events: list[dict[str, Any]] = []

    def delete() -> None:
        remove(tmp_path / "a")
        if again:
            (tmp_path / "a").mkdir()
            for name in ("lock", "run.db", "ballast"):
                (tmp_path / "a" / name).write_bytes(b"another")

    _, state = train(replace(CONFIG, steps=0), Knobs(), tmp_path, "a", at_the_first_evaluation(delete, events))
    assert state == "failed"
    (error,) = told(events, "error", "error")
    assert error.startswith(
        "the folder of run a, or its record, was deleted or moved to another disk while it trained, after"
    )
    left = {path.name: path.read_bytes() for path in tmp_path.glob("a/*")}
    assert left == (dict.fromkeys(("lock", "run.db", "ballast"), b"another") if again else {})


def test_a_paused_trainer_notices_too(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []

    def delete() -> None:
        run = Run(tmp_path / "a")
        wait_until(lambda: run.state == "paused")
        run.close()
        remove(tmp_path / "a")

    def pause() -> None:
        Run(tmp_path / "a").command("pause")
        deleter.start()

    deleter = threading.Thread(target=delete)
    notify = at_the_first_evaluation(pause, events)
    assert train(replace(CONFIG, steps=0), Knobs(), tmp_path, "a", notify)[1] == "failed"
    deleter.join()
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_says_it_in_one_line_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def delete(trainer: Any, text: bool) -> None:
        remove(tmp_path / "a")

    monkeypatch.setattr("moe_core.training.loop.Trainer.evaluate", delete)
    words = ["train", "--task", "plane", "--steps", "0", "--threads", "1", "--eval-every", "5", "--run-id", "a"]
    assert main([*words, "--runs", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert [line for line in said.err.splitlines() if line.startswith("moe: ")] == [said.err.splitlines()[-1]]
    assert "moe: the folder of run a, or its record, was deleted" in said.err
