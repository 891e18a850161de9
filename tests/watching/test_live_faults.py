"""Watching on a bad day: a killed process, a full disk, a deleted folder, a fork. The training goes on, and nothing that was written
is lost."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moe_core.runs import is_alive, open_run, verify
from moe_core.watching import recorder, watch
from tests.training.test_full_disk import Disk
from tests.watching.test_counting import Model
from tests.watching.test_live import sgd, train

ROOT = Path(__file__).parents[2]


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.01)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "moescope"]


def test_a_full_disk_lets_the_training_go_on_and_is_caught_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recorder, "FLUSH", 0.0)
    monkeypatch.setattr(recorder, "KEPT", 50)
    disk = Disk(monkeypatch, pages=104)
    model = Model()
    live = watch(model, "a", runs=tmp_path)
    optimizer, steps = sgd(model), 0
    while not disk.lacking.is_set():
        train(live, model, optimizer, 1)
        steps += 1
        assert steps < 5000, "the disk was never full"
    train(live, model, optimizer, 200)  # none of them waits
    full = live.recorder.committer.step
    assert full < steps + 200 - 50
    disk.grow(100_000)
    wait_until(lambda: not live.recorder.committer.full)
    train(live, model, optimizer, 5)
    live.close()
    run = open_run(live.path)
    assert (run.state, run.steps(), verify(run)) == ("finished", (1, steps + 205), [])
    loss = run.history("loss")[1]
    lost = np.isnan(loss)
    assert lost.any()  # of those that waited only the last 50 are kept
    assert not lost[-54:].any()
    assert np.array_equal(np.isnan(run.history("counts", 0)[1]).any(1), lost)  # what is kept of a step is kept whole
    assert sum("the disk is full" in line for line in said(caplog)) == 1


def test_a_folder_that_is_deleted_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = Model()
    live = watch(model, "a", runs=tmp_path)
    train(live, model, sgd(model), 2)
    shutil.rmtree(live.path)
    live.recorder.next_flush = 0.0
    train(live, model, sgd(model), 1)
    wait_until(lambda: bool(live.recorder.committer.error))
    live.recorder.next_flush = 0.0
    train(live, model, sgd(model), 3)
    live.close()
    assert len(said(caplog)) == 1
    assert "was deleted or moved to another disk" in said(caplog)[0]
    assert not (tmp_path / "a").exists()


KILLED = """
import sys
from moe_core import watch
from tests.watching.test_counting import Model
from tests.watching.test_live import sgd, train
model = Model()
live = watch(model, "a", runs=sys.argv[1])
while True:
    train(live, model, sgd(model), 1)
    print(live.written, flush=True)
"""


def test_a_kill_loses_no_step_that_was_said_to_be_written(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )  # fmt: skip
    assert process.stdout is not None
    written = 0
    for line in process.stdout:
        written = int(line)
        if written > 40:
            process.send_signal(signal.SIGKILL)
            break
    written = max([written, *map(int, process.stdout.read().split())])
    process.stdout.close()
    process.wait()
    run = open_run("a", tmp_path)
    assert (run.state, is_alive(run.path), verify(run)) == ("interrupted", False, [])
    assert run.steps()[1] >= written > 40


BARE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("streamlit", "plotly", "transformers", "sklearn"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
import torch
from moe_core import watch
from moe_core.nn import MoELayer

class Own(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.moe = MoELayer(8, 16, 4, k=2)

    def forward(self, x):
        return self.moe(x)[0]

model = Own()
live = watch(model, "bare", runs=sys.argv[1])
for _ in range(3):
    loss = model(torch.randn(16, 8)).square().mean()
    loss.backward()
    live.step(loss=loss)
assert "streamlit" not in sys.modules
"""
READ = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
from moe_core.runs import open_run
run = open_run("bare", sys.argv[1])
print(run.state, run.steps(), run.history("counts", "moe")[1].sum())
"""


def test_it_needs_no_dashboard_and_its_record_no_torch(tmp_path: Path) -> None:
    """And a program that ends without close() has finished."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for code, says in ((BARE, ""), (READ, "finished (1, 3) 96.0")):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert (done.stdout.strip(), done.stderr, done.returncode) == (says, "", 0)


def test_importing_moe_core_brings_no_torch() -> None:
    code = "import sys, moe_core; sys.exit(bool({'torch', 'numpy', 'streamlit'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("how", ["raise KeyError('mine')", "import os; os.kill(os.getpid(), 15)"])
def test_a_program_that_fails_is_failed(tmp_path: Path, how: str) -> None:
    code = KILLED.split("while True")[0] + f"train(live, model, sgd(model), 3)\n{how}\n"
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True
    )  # fmt: skip
    run = open_run("a", tmp_path)
    if "KeyError" in how:
        assert (run.state, run.status().reason, run.steps()) == ("failed", "KeyError: 'mine'", (1, 3))
    else:
        assert run.state == "interrupted"


def test_a_process_that_was_forked_leaves_the_record_alone(tmp_path: Path) -> None:
    """As workers of a DataLoader are."""
    model = Model()
    live = watch(model, "a", runs=tmp_path)
    train(live, model, sgd(model), 2)
    if (child := os.fork()) == 0:
        live.step(loss=1.0)
        live.close()
        os._exit(0)
    os.waitpid(child, 0)
    train(live, model, sgd(model), 2)
    live.close()
    run = open_run("a", tmp_path)
    assert (run.state, run.steps(), verify(run)) == ("finished", (1, 4), [])


def test_memory_is_flat(tmp_path: Path) -> None:
    model = Model()
    live = watch(model, "a", runs=tmp_path)
    optimizer = sgd(model)

    def objects() -> int:
        import gc

        import torch

        gc.collect()
        return sum(torch.is_tensor(one) for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter))

    train(live, model, optimizer, 50)
    live.recorder.flush()
    live.recorder.committer.settle()
    before = objects()
    train(live, model, optimizer, 500)
    live.recorder.flush()
    live.recorder.committer.settle()
    assert objects() <= before + 20
    logging.getLogger("moescope").debug("tensors: %d", before)
    live.close()
