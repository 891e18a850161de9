"""docs/watch.md: its code runs in order, its table names the families that the tests count, and the example is one."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers", reason="transformers is not installed: pip install 'moescope[watch-demo]'")

from moe_core import watch
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


class Words:
    """A tokenizer of whole words, as the probe calls it."""

    def __call__(self, texts: list[str], **how: Any) -> dict[str, Tensor]:
        rows = [[3 + len(word) for word in text.split()] for text in texts]
        longest = max(map(len, rows))
        return {
            "input_ids": torch.tensor([row + [0] * (longest - len(row)) for row in rows]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
        }

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return ["▁" + "x" * (id - 3) for id in ids]


def blocks_of(document: str) -> list[str]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / "docs" / document).read_text(), re.MULTILINE | re.DOTALL)
    assert {language for language, _ in blocks} == {"python"}
    return [text for _, text in blocks]


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a reader of the documents has: a model, its optimizer and data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOE_RUNS", str(tmp_path / "runs"))
    model = build("mixtral")
    ids = torch.randint(3, 60, (4, 12))
    loader = [{"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}] * 3
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return {
        "model": model, "loader": loader, "optimizer": optimizer, "other": Other(), "torch": torch, "tokenizer": Words(),
        "batch": loader[0], "deepseek": build("deepseek_v3"), "watch": watch,
    }  # fmt: skip


def test_the_blocks_about_the_probe_and_the_check_run(
    names: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (text,) = blocks_of("watch_probe.md")
    exec(text, names)
    for text in blocks_of("watch_check.md"):
        exec(text, names)
    assert "aux-not-applied" in capsys.readouterr().out  # output_router_logits is off


def test_the_blocks_about_trainers_and_mirrors_run(names: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    pytest.importorskip("tensorboard")
    from transformers import Trainer, TrainingArguments

    rows = [dict(zip(names["batch"], values, strict=True)) for values in zip(*names["batch"].values(), strict=True)]  # fmt: skip
    arguments = TrainingArguments(
        str(tmp_path / "out"), max_steps=3, report_to=[], use_cpu=True, per_device_train_batch_size=2
    )
    names |= {"Trainer": Trainer, "args": arguments, "data": rows}
    trained, mirrored = blocks_of("watch_trainer.md")
    exec(trained, names)
    run = open_run("my-finetune", tmp_path / "runs")
    assert (run.state, run.steps()) == ("finished", (1, 3))
    exec(mirrored.replace("my-finetune", "mirrored"), names)
    names["live"].close()


def test_every_block_runs(names: dict[str, Any], tmp_path: Path) -> None:
    for text in blocks_of("watch.md"):
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
