"""watch-demo: what a newcomer sees of a watched model without a line of code."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moe_core.__main__ import main
from moe_core.commands import common
from moe_core.runs import open_run, verify
from moe_core.schema import Config, Knobs, describe
from tests.server import ROOT


def demo(runs: Path, *words: str) -> int:
    return main(["watch-demo", "--runs", str(runs), *words])


def test_its_gate_collapses_and_each_evaluation_is_recorded(tmp_path: Path, capfd: Any) -> None:
    pytest.importorskip("transformers")
    assert demo(tmp_path, "--steps", "60", "--run-id", "a", "--json") == 0
    start, end = map(json.loads, capfd.readouterr().out.splitlines())
    assert (start["event"], start["run"], start["path"]) == ("start", "a", str(tmp_path / "a"))
    assert (end["event"], end["state"], end["step"]) == ("end", "finished", 60)
    run = open_run("a", tmp_path)
    assert (run.state, run.steps(), verify(run)) == ("finished", (1, 60), [])
    assert [(layer.experts, layer.k) for layer in run.description.layers] == [(16, 2)] * 4
    assert run.description.starts["router_aux_loss_coef"] == 0
    assert run.description.knobs["k"].label == describe(Config(), Knobs()).knobs["k"].label  # as in runs of our own
    assert run.description.probe == "tokens"
    assert run.snapshots("probe").tolist() == [1, 50]
    assert {"e", " ", "\n"} < set(run.labels["token"])  # bytes as text
    assert run.history("cv_counts", 3, first=30)[1].mean() > 1.5
    assert [evaluation.step for evaluation in run.evals()] == [50]
    assert run.evals()[0].metrics["loss"] < 4.0  # nats; log 256 is 5.5
    assert (run.history("task_loss")[1] == run.history("loss")[1]).all()  # the balancing loss weighs nothing
    assert demo(tmp_path, "--steps", "60", "--run-id", "a") == 2
    assert capfd.readouterr().err == f"moe: run a exists already in {tmp_path}; choose another --run-id\n"


def test_the_same_seed_trains_the_same_and_another_differs(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    losses = {}
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert demo(tmp_path, "--steps", "3", "--run-id", name, "--seed", seed) == 0
        losses[name] = open_run(name, tmp_path).history("loss")[1].tolist()
    assert losses["a"] == losses["b"] != losses["c"]


def test_it_is_steered_and_stopped_like_our_own_trainer(tmp_path: Path) -> None:
    """A page makes the folder, with the log in it, before the process begins."""
    pytest.importorskip("transformers")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "trainer.log").touch()
    words = [sys.executable, "-m", "moe_core", "watch-demo", "--runs", str(tmp_path), "--run-id", "a"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(
            "a trains; to see it and turn its knobs: python -m moe_core dashboard"
        )
        assert main(["set", "a", "router_aux_loss_coef=0.1", "--runs", str(tmp_path)]) == 0
        assert main(["pause", "a", "--runs", str(tmp_path)]) == 0
        process.terminate()  # also while it waits
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()
    run = open_run("a", tmp_path)
    assert run.state == "stopped"
    assert [(c.name, c.value, c.step is not None) for c in run.knob_changes()] == [("router_aux_loss_coef", 0.1, True)]


def test_without_transformers_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    found = common.find_spec
    monkeypatch.setattr(common, "find_spec", lambda name: None if name == "transformers" else found(name))
    assert demo(tmp_path) == 2
    assert capfd.readouterr().err == "moe: watch-demo needs transformers: pip install 'moescope[watch-demo]'\n"
    assert list(tmp_path.iterdir()) == []
