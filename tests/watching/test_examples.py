"""The scripts in examples/, in their short form, as somebody runs them in a folder of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from moe_core.runs import Run, list_runs, open_run, verify

pytest.importorskip("transformers", reason="transformers is not installed: pip install 'moescope[watch-demo]'")
ROOT = Path(__file__).parents[2]


def carried_out(name: str, folder: Path, steps: int) -> tuple[Run, str]:
    """The run that it recorded, and what it printed."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "MOE_RUNS": str(folder / "runs"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(ROOT / "examples" / name), str(steps)]
    told = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert told.returncode == 0, told.stderr[-2000:]
    (listed,) = list_runs(folder / "runs")
    return open_run(listed.id, folder / "runs"), told.stdout


def test_the_trainers_example_is_recorded_with_its_evaluations(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed: pip install accelerate")
    run, _ = carried_out("watch_trainer.py", tmp_path, 9)
    assert (run.state, run.steps(), verify(run)) == ("finished", (1, 9), [])
    assert [one.step for one in run.evals()] == [3, 6, 9]
    assert "router_aux_loss_coef" in run.description.knobs


def test_trls_example_counts_each_token_once_though_layers_are_recomputed(tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="trl is not installed: pip install trl")
    run, told = carried_out("watch_trl.py", tmp_path, 10)
    assert (run.state, run.steps(), verify(run)) == ("finished", (1, 10), [])
    tokens = int(re.findall(r"'num_tokens': '?(\d+)", told)[0])  # as TRL counts them, without padding
    for layer in range(2):
        assert run.history("counts", layer)[1].sum() == 2 * tokens
    assert "router_aux_loss_coef" in run.description.knobs
