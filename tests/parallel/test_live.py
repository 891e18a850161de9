"""A run of two ranks under torchrun, as a person has it: turned, paused, stepped and stopped. What a killed rank does is tested by
the short form of benchmarks/kills.py."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moe_core.parallel.session import joined
from moe_core.runs import Run, verify
from moe_core.runs.locks import is_locked
from moe_core.runs.statistics import Deal
from moe_core.schema import Knobs
from moe_core.training import checkpoint
from moe_core.training.again import Nowhere
from moe_core.training.data import load
from moe_core.training.loop import Trainer

ROOT = Path(__file__).parents[2]
SETTINGS = "--task plane --layers 2 --num-experts 4 --tokens 64 --d-model 16 --d-hidden 16 --threads 1 --eval-every 1000 --checkpoint-every 0"
FIRST, LAST = 10, 40  # steps that are trained at least before and after a turn


def until(true: Callable[[], Any], seconds: float = 40.0) -> Any:
    """What true() returns, once that is something."""
    end = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return value


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A run that was turned, paused, stepped and stopped."""
    runs = tmp_path_factory.mktemp("runs")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "moe_core",
        "train",
    ]
    command += ["--expert-parallel", "2", "--runs", str(runs), "--run-id", "two", *SETTINGS.split()]
    torchrun = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        until(lambda: (runs / "two" / "run.db").exists() and Run(runs / "two").status().step > FIRST)
        run = Run(runs / "two")
        run.turn("person", {"noise": 0.25})
        run.command("pause")
        until(lambda: run.status().state == "paused")
        paused = run.status().step
        run.command("step")
        until(lambda: run.status().step == paused + 1)
        run.command("resume")
        until(lambda: run.status().step > paused + LAST)
        run.command("checkpoint")
        until(lambda: list(run.path.glob("checkpoint-*.pt.sha256")))
        run.command("stop")
        said, _ = torchrun.communicate(timeout=40)
        yield {"run": run, "paused": paused, "code": torchrun.returncode, "said": said}
        run.close()
    finally:
        torchrun.kill()  # a rank of a torchrun that was killed ends by itself
        torchrun.communicate(timeout=40)


def test_a_turn_takes_effect_in_the_same_step_on_all_ranks(lived: dict[str, Any]) -> None:
    """One process that is turned in the step of the record has the same losses."""
    run = lived["run"]
    (turn,) = run.knob_changes()
    assert turn.step
    assert FIRST < turn.step <= lived["paused"] + 1
    writer: Any = Nowhere(run.path)
    trainer = Trainer(run.config, run.started_knobs, load(run.config), torch.device("cpu"), writer, lambda event: None)
    trainer.replaying = True
    last = turn.step + 15
    for step in range(1, last + 1):
        if step == turn.step:
            trainer.take(turn)
        trainer.train_step(0.0)
    trainer.committer.close()
    assert trainer.knobs == Knobs(**{**vars(run.started_knobs), "noise": 0.25})
    _, rows_nC = trainer.telemetry.take()
    recorded_nC = run.rows(1, last)
    for stat in ("loss", "counts", "noise_scale"):
        now = next(c for c in trainer.telemetry.columns if c.stat == stat)
        then = next(c for c in run.layout if c.stat == stat)
        np.testing.assert_allclose(
            recorded_nC[:, then.start : then.start + then.width],
            rows_nC[:, now.start : now.start + now.width],
            rtol=2e-5,
        )


def test_what_the_ranks_sent_is_in_the_record(lived: dict[str, Any]) -> None:
    run = lived["run"]
    place = next(c.start for c in run.layout if c.stat == "sent_bytes")
    assert (run.rows(1, FIRST)[:, place] > 0).all()
    assert run.facts["ranks"] == {"data": 1, "expert": 2}
    assert run.deals == (Deal(1, 1, 2),)


def test_the_load_of_a_device_is_that_of_its_experts(lived: dict[str, Any]) -> None:
    """What the ranks counted row by row is what follows from the selections of each expert."""
    run = lived["run"]
    step, full = run.snapshot(kind="full")
    assert step == run.steps()[1]
    for layer in range(2):
        counts_nE = run.history("counts", layer, first=max(1, step - 99))[1].astype(int)
        of_devices = counts_nE.reshape(-1, 2, 2).sum(axis=2)
        assert full["rows_between_ranks"][layer].sum(axis=0).tolist() == of_devices.sum(axis=0).tolist()
        balance = run.history("max_over_mean_devices", layer, first=max(1, step - 99))[1]
        np.testing.assert_allclose(balance, of_devices.max(axis=1) / of_devices.mean(axis=1))


def test_it_stops_on_all_ranks(lived: dict[str, Any]) -> None:
    assert lived["code"] == 0, lived["said"]
    assert "trains on 2 ranks (cpu); its record is" in lived["said"]
    assert lived["run"].status().state == "stopped"
    assert not is_locked(lived["run"].path / "lock")
    assert verify(lived["run"]) == []


def test_its_checkpoint_has_all_experts(lived: dict[str, Any]) -> None:
    """And the state of the optimizer, in the file that one process writes."""
    state = checkpoint.read(next(iter(checkpoint.list_checkpoints(lived["run"].path).values())))
    assert state["model"]["moe.0.w1"].shape == (4, 16, 16)
    assert {tuple(of["exp_avg"].shape) for of in state["optimizer"]["state"].values()} >= {(4, 16, 16)}


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="it asks /proc which threads there are")
def test_ranks_leave_no_thread_of_their_exchanges(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch aborts a process that ends before such a thread has let go of the last exchange."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", str(port))):
        monkeypatch.setenv(name, value)

    def threads() -> int:
        return sum("gloo_runloop" in task.read_text() for task in Path("/proc/self/task").glob("*/comm"))

    before = threads()
    with joined(1, "cpu") as here:
        here.ranks.meet()
        assert threads() > before
    until(lambda: threads() == before, 10)  # the system lists one that has ended a moment longer
