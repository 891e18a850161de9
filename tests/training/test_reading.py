"""What people ask for: read when the tip tells of it, else now and then, and once, also while a checkpoint waits for the disk."""

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moe_core.runs import Pending, create_run, open_run
from moe_core.schema import Config, Knobs
from moe_core.training import pace
from moe_core.training.data import load
from moe_core.training.loop import Trainer
from moe_core.training.pace import ASK, Readings


def test_what_is_read_while_a_checkpoint_waits_is_taken_once_and_in_order() -> None:
    knobs = [SimpleNamespace(id=id) for id in range(1, 5)]
    commands = [SimpleNamespace(id=id, name=name) for id, name in enumerate(("checkpoint", "step", "step"), start=1)]
    writer: Any = SimpleNamespace(knob_seen=0, command_seen=0)
    there = 3  # knob changes that are in the record by now
    writer.pending = lambda: Pending(
        [change for change in knobs[:there] if change.id > writer.knob_seen],
        [command for command in commands if command.id > writer.command_seen],
    )
    trainer: Any = Trainer.__new__(Trainer)
    trainer.writer, trainer.changes, trainer.collected = writer, [], {"acks": []}
    trainer.step, trainer.steps_asked, trainer.paused, trainer.readings = 0, 0, True, Readings()
    writer.folder = Path()
    writer.asked = lambda: True
    trainer.no_checkpoint_now = lambda: ""

    def write_checkpoint(asked: int) -> None:
        nonlocal there
        there = 4
        trainer.read()

    trainer.write_checkpoint = write_checkpoint
    assert trainer.read()
    assert not trainer.read()
    assert [change.id for change in trainer.changes] == [1, 2, 3, 4]
    assert trainer.steps_asked == 2
    assert [id for id, *_ in trainer.collected["acks"]] == [2, 3]


def test_the_record_is_read_when_tip_or_log_tell_of_something_and_else_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes 1 ms here; ASK, as long as a turn may wait of which the tip does not tell, is well below 60 ms."""
    now, told = 0.0, False
    monkeypatch.setattr(pace.time, "perf_counter", lambda: now)
    readings, log = Readings(), tmp_path / "run.db-wal"

    def train(steps: int) -> list[int]:
        """The steps, by number, in which the record is read."""
        nonlocal now
        read = []
        for step in range(steps):
            now = round(now + 0.001, 3)
            read += [step] if readings.is_due(tmp_path, lambda: told) else []
        return read

    log.touch()
    os.utime(log, (1, 1))
    assert ASK <= 0.05
    train(100)
    assert len(train(3000)) == 3  # ANYWAY
    os.utime(log, (2, 2))
    (first, *others) = train(200)
    assert first <= 1000 * ASK
    assert not others
    log.touch()  # just now: another write may follow in the same tick
    assert len(train(200)) == 4
    os.utime(log, (2, 2))
    train(100)
    told = True
    assert train(3) == [0, 1, 2]
    told = False
    readings.soon()
    assert train(10) == [0]
    log.unlink()  # there is none to ask
    assert len(train(200)) == 4


@pytest.mark.parametrize("tip", ["written", "lost"])
def test_a_turn_acts_in_the_next_step_or_within_a_twentieth_of_a_second(tmp_path: Path, tip: str) -> None:
    config = Config.for_task("plane", num_experts=4, tokens=64, d_model=8, d_hidden=8, threads=1)
    writer = create_run(tmp_path / "a", config, Knobs())
    run = open_run(tmp_path / "a")
    trainer = Trainer(config, Knobs(), load(config), torch.device("cpu"), writer, lambda event: None)
    try:
        trainer.read()
        if tip == "lost":
            (tmp_path / "a" / "run.tip").rename(tmp_path / "tip")
        run.turn(noise=0.5)
        began = time.perf_counter()
        while not trainer.read():
            assert tip == "lost", "the tip told of it"
            assert time.perf_counter() < began + 5
        assert [change.value for change in trainer.changes] == [0.5]
    finally:
        run.close()
        trainer.committer.close()
        writer.finish("stopped")
