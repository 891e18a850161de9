"""docs/watch.md: its code runs in order, its table names the families that the tests count, and the example is one."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("transformers", reason="transformers is not installed: pip install 'moescope[watch-demo]'")

from moe_core.runs import open_run
from tests.server import ROOT
from tests.watching.families import build
from tests.watching.test_taps import FAMILIES, NOT_YET

DOCUMENT = ROOT / "docs" / "watch.md"


def families_in_words() -> str:
    """What stands between the two marks of docs/watch.md."""
    named = ", ".join(f"`{family}`" for family in FAMILIES)
    rows = "\n".join(f"| `{family}` | {reason} |" for family, reason in NOT_YET.items())
    return f"{named}.\n\n| not checked | since |\n|---|---|\n{rows}"


def test_the_table_of_families_is_that_of_the_tests() -> None:
    text = DOCUMENT.read_text()
    (written,) = re.findall(r"<!-- families -->\n(.*)\n<!-- end of families -->", text, re.DOTALL)
    assert written == families_in_words()


class Other(nn.Module):
    """Routers that nothing finds by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 6)


def test_every_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOE_RUNS", str(tmp_path / "runs"))
    model = build("mixtral")
    ids = torch.randint(3, 60, (2, 12))
    loader = [{"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}] * 3
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    names: dict[str, Any] = {"model": model, "loader": loader, "optimizer": optimizer, "other": Other(), "torch": torch}
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    assert {language for language, _ in blocks} == {"python"}
    for _, text in blocks:
        exec(text, names)
    for name in ("my-finetune", "with-padding", "with-a-knob", "with-stop"):
        run = open_run(name, tmp_path / "runs")
        assert (run.state, run.steps()) == ("finished", (1, 3))
    evaluation = open_run("with-padding", tmp_path / "runs").evals()[0]
    assert evaluation.metrics.keys() == {"loss", "accuracy"}
    assert evaluation.counts is not None
    changes = open_run("with-a-knob", tmp_path / "runs").knob_changes()
    assert ("dropout", 0.2) in [(change.name, change.value) for change in changes]


def test_the_example_of_a_plain_loop_runs(tmp_path: Path) -> None:
    more = {"MOE_RUNS": str(tmp_path), "PYTHONPATH": str(ROOT), "STEPS": "50", "RUN": "plain", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(ROOT / "examples" / "watch_plain_loop.py")]
    done = subprocess.run(words, cwd=tmp_path, env=os.environ | more, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()
    assert (first, last.startswith("finished after 50 steps; CV(selections) of layer 2 is ")) == ("run plain", True)
    assert len(open_run("plain", tmp_path).evals()) == 1
