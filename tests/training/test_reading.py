"""What people ask for: read when the tip tells of it, else now and then, and once, also while a checkpoint waits for the disk."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moe_core.runs import Pending, create_run, open_run
from moe_core.schema import Config, Knobs
from moe_core.training import loop
from moe_core.training.data import load
from moe_core.training.loop import READ, Trainer


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
    trainer.step, trainer.steps_asked, trainer.paused, trainer.next_read = 0, 0, True, 0.0
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


class Writer:
    """Counts how often the record is read. told: whether the tip tells of something new."""

    knob_seen = command_seen = 0
    told, read = False, 0

    def asked(self) -> bool:
        return self.told

    def pending(self) -> Pending:
        self.read += 1
        return Pending([], [])


def test_the_record_is_read_when_the_tip_tells_of_something_and_else_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A step takes 1 ms here; READ, as long as a turn may wait whose tip could not be written, is well below 60 ms."""
    now = 0.0
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now)
    trainer: Any = Trainer.__new__(Trainer)
    trainer.writer, trainer.changes, trainer.next_read = Writer(), [], 0.0
    for step in range(1000):
        now = step / 1000
        trainer.read()
    assert READ <= 0.05
    assert 19 <= trainer.writer.read <= 1 / READ + 1
    before, trainer.writer.told = trainer.writer.read, True
    for _ in range(3):
        trainer.read()
    assert trainer.writer.read == before + 3


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
