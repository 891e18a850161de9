"""A trainer's session in this process: a signal ends it as a stop does, and what it was before is as it was again."""

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moe_core.runs import fingerprint, flags, open_run, verify
from moe_core.schema import Config, Knobs
from moe_core.training import checkpoint
from moe_core.training.again import resume
from moe_core.training.loop import Trainer
from moe_core.training.pace import Flushes
from moe_core.training.session import train

ROOT = Path(__file__).parents[2]
CONFIG = Config.for_task(
    "plane", num_experts=4, layers=1, tokens=32, d_model=8, d_hidden=8, threads=1, steps=3000, eval_every=5
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_a_run_after_its_step(number: int, tmp_path: Path) -> None:
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    events: list[dict[str, Any]] = []

    def tell(event: dict[str, Any]) -> None:
        events.append(event)
        if [e["event"] for e in events].count("eval") == 1 and event["event"] == "eval":
            os.kill(os.getpid(), number)

    try:
        folder, state = train(CONFIG, Knobs(), tmp_path, notify=tell)
        after = {one: signal.getsignal(one) for one in before}
    finally:
        signal.signal(signal.SIGHUP, hangup)
    run = open_run(folder)
    assert state == run.state == "stopped"
    assert 5 <= run.steps()[1] < 3000
    assert list(checkpoint.list_checkpoints(folder)) == [run.steps()[1]]
    assert verify(run) == []
    assert after == before


def test_under_nohup_a_terminal_that_closes_ends_nothing(tmp_path: Path) -> None:
    def tell(event: dict[str, Any]) -> None:
        if event["event"] == "start":
            os.kill(os.getpid(), signal.SIGHUP)

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert train(replace(CONFIG, steps=20), Knobs(), tmp_path, "a", tell)[1] == "finished"
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


ON_A_TERMINAL = """
import fcntl, signal, sys, termios
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the tests run under nohup, and then by the trainer too, as it should be
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from moe_core.__main__ import main
sys.exit(main(sys.argv[1:]) or "torch._dynamo" in sys.modules)  # its import would double the time that a start takes
"""


def test_a_terminal_that_closes_ends_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    """As SIGTERM does, though nobody takes what is printed any more."""
    master, terminal = os.openpty()
    words = ["train", *flags(replace(CONFIG, steps=0), Knobs()), "--runs", str(tmp_path), "--run-id", "a"]
    with subprocess.Popen(
        [sys.executable, "-c", ON_A_TERMINAL, *words],
        stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True, cwd=ROOT,
    ) as trainer:  # fmt: skip
        os.close(terminal)
        while b"step" not in os.read(master, 4096):
            assert trainer.poll() is None
        os.close(master)
    run = open_run("a", tmp_path)
    assert run.state == "stopped"
    assert list(checkpoint.list_checkpoints(run.path)) == [run.steps()[1]]
    assert run.steps()[1] > 0
    assert trainer.returncode == 0


def test_the_steps_before_a_failure_are_recorded_and_the_run_goes_on_from_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long a commit may be put off; and what a turn does in the step that fails, it does when that is trained again."""
    trained = Trainer.train_step

    def fail(trainer: Trainer, began: float) -> None:
        if trainer.step == 18:
            with contextlib.closing(open_run(trainer.folder)) as run:
                run.turn("person", noise=0.25)
        if trainer.step == 19:
            trainer.step += 1
            raise RuntimeError("out of memory")
        trained(trainer, began)

    monkeypatch.setattr(Flushes, "wait", lambda self, folder, behind: 60.0)
    config = replace(CONFIG, steps=30)
    with monkeypatch.context() as failing:
        failing.setattr(Trainer, "train_step", fail)
        folder, state = train(config, Knobs(), tmp_path, "a", script=[(12, "noise", 0.5)])
    run = open_run(folder)
    assert (state, run.status().reason, run.steps()) == ("failed", "RuntimeError: out of memory", (1, 19))
    assert [eval.step for eval in run.evals()] == [5, 10, 15]
    assert [change.step for change in run.knob_changes()] == [12, None]
    assert resume(open_run(folder))[1] == "finished"
    whole, _ = train(config, Knobs(), tmp_path, "b", script=[(12, "noise", 0.5), (20, "noise", 0.25)])
    assert fingerprint(open_run(folder)) == fingerprint(open_run(whole))
    assert verify(open_run(folder)) == []
