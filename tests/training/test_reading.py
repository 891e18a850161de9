"""What people ask for while a checkpoint, which somebody asked for before, waits for the disk."""

from types import SimpleNamespace
from typing import Any

from moe_core.runs import Pending
from moe_core.training.loop import Trainer


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
    trainer.step, trainer.steps_asked, trainer.paused = 0, 0, True
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
