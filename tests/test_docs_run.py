"""Every block of code in README, guide and command line runs, in a short form and in the order in which it stands there."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_core.__main__ import main
from moe_core.commands.sweep import plan_of
from moe_core.diagnosis import Finding
from moe_core.runs import open_run, read_script
from moe_core.schema import Config, Knobs
from tests.watching.test_counting import Model

ROOT = Path(__file__).parents[1]
SMALL = ["--d-model", "8", "--d-hidden", "8", "--layers", "1", "--tokens", "128", "--threads", "1"]
SHORT = [*SMALL, "--steps", "4"]
STEPS = 60  # of the run that stands for RUN
LIVE = ("set", "pause", "step", "resume", "checkpoint", "stop")  # these need a trainer


def blocks(name: str) -> list[tuple[str, str]]:
    """(language, text) of each block of code in a document."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / name).read_text(), re.MULTILINE | re.DOTALL)


def lines(name: str) -> list[list[str]]:
    """The words of each command line in a document's blocks, without the comment."""
    return [
        words
        for language, text in blocks(name)
        if not language
        for line in text.splitlines()
        if (words := shlex.split(line, comments=True))
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the documents name: runs, a sweep, a person's texts and table, a script."""
    folder = tmp_path_factory.mktemp("docs")
    runs = ["--runs", str(folder / "runs")]
    assert main(["train", "--task", "plane", *SMALL, "--steps", str(STEPS), "--run-id", "text-1124", *runs]) == 0
    for name in ("sweep", "sweep-c01-s0", "sweep-c02-s0"):
        shutil.copytree(ROOT / "tests" / "fixtures" / "v0.1" / name, folder / "runs" / name)
    for name in ("my_notes", "my_code"):
        (folder / name).mkdir()
        (folder / name / "one.txt").write_text(f"What {name} is about, in words that come again. " * 100)
    rows = (f"{n % 7},{n * n % 11},{'ab'[n % 2]}" for n in range(60))
    (folder / "my_table.csv").write_text("width,height,class\n" + "\n".join(rows) + "\n")
    (folder / "changes.txt").write_text("2 noise=0.5 k=1\n")
    return folder


@pytest.fixture(autouse=True)
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("MOE_RUNS", str(place / "runs"))


@pytest.fixture(scope="module")
def trainer(place: Path) -> Iterator[str]:
    """The id of a run that trains until it is stopped."""
    words = ["train", "--task", "plane", *SMALL, "--speed-limit", "20", "--run-id", "live", "--json"]
    environment = os.environ | {"MOE_RUNS": str(place / "runs"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "moe_core", *words], cwd=place, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "start"
        yield "live"
    finally:
        process.kill()
        process.communicate()


def short(words: list[str]) -> list[str]:
    """A command line that does the same in a few seconds."""
    names = {"RUN": "live" if words[0] in LIVE else "text-1124", "FORK": "fork", "SWEEP": "sweep", "500": "40"}
    words = [names.get(word, word) for word in words]
    if "--resume" in words:
        return [*words, "--steps", str(STEPS + 4)]
    if words[0] == "rm":  # of a run that no other line is about
        shutil.copytree("runs/text-1124", "runs/doomed")
        return ["rm", "doomed", "--yes"]
    if words[0] == "watch-demo":
        return [*words, "--steps", "4"]
    if words[0] == "train":
        return [*words, *SHORT]
    if words[0] == "sweep":  # one cell
        words = ["0/0" if word == "table6" else word.rpartition(",")[2] for word in words]
        return [*words, *SHORT, "--seeds", "1", "--parallel", "1"]
    if words[0] == "export" and {"--out", "figures"} < set(words) and not {"--figure", "sweep"} & set(words):
        return [*words, "--figure", "balance", *["compare_balance"] * ("--with" in words)]
    if words[0] == "fork":
        return words if "--detach" in words else [*words, "--run-id", "fork"]
    return words + ["--quick"] * (words[0] == "bench") + ["--seconds", "1"] * ("--animate" in words)


@pytest.mark.parametrize("name", ["README.md", "docs/guide.md"])
def test_every_block_of_python_runs(name: str, trainer: str) -> None:
    """In order, as a reader would type them; the run that they turn trains."""
    model, loss = Model(), torch.ones(())
    optimizer = torch.optim.SGD(model.parameters())
    names: dict[str, Any] = {"x": torch.randn(64, 64), "model": model, "optimizer": optimizer, "loss": loss}
    code = [text for language, text in blocks(name) if language == "python"]
    assert code
    for text in code:
        if "run.turn(" in text:
            names["run"] = open_run(trainer)
        exec(text, names)
    assert names["y"].shape == (64, 64)
    if name == "docs/guide.md":
        assert len(names["steps"]) == len(names["load"]) >= STEPS
        assert names["balance"].isfinite()
        assert [(c.name, c.value) for c in names["run"].knob_changes() if c.who == "script"] == [("noise", 0.5)]


@pytest.mark.parametrize("nth", range(len(lines("docs/cli.md"))))
def test_every_command_of_the_command_line_runs(nth: int, request: pytest.FixtureRequest, capfd: Any) -> None:
    *python, first = lines("docs/cli.md")[nth][:4]
    if first == "dashboard":
        pytest.skip("it becomes a server: tests/browser/test_wheel.py opens it")
    assert python == ["python", "-m", "moe_core"]
    words = short([first, *lines("docs/cli.md")[nth][4:]])
    if first in LIVE:
        request.getfixturevalue("trainer")
    before = set(os.listdir("runs"))
    assert main(words) == 0, capfd.readouterr().err
    if "--detach" in words:
        wait_for(set(os.listdir("runs")) - before)
    if "--out" in words:
        assert Path(words[words.index("--out") + 1]).exists()


def wait_for(names: set[str]) -> None:
    """Until the trainers in the background have ended."""
    assert names
    until = time.monotonic() + 120
    while any(open_run(name).state not in ("finished", "failed") for name in names) and time.monotonic() < until:
        time.sleep(0.1)
    assert {open_run(name).state for name in names} == {"finished"}


def test_the_grid_that_makes_five_cells_makes_five() -> None:
    from moe_core.__main__ import parser

    (words,) = (words for words in lines("docs/cli.md") if "paper,switch,loss-free" in words)
    assert len(plan_of(parser().parse_args(words[3:])).cells) == 5
    assert "makes five cells, not twelve" in (ROOT / "docs/cli.md").read_text()


def test_the_script_of_the_guide_is_one_and_turns_what_it_shows() -> None:
    (text,) = (text for language, text in blocks("docs/guide.md") if not language)
    assert read_script(text, Config(), Knobs()) == [(120, "noise", 0.5), (120, "k", 1), (300, "noise", 0.0)]


def test_the_finding_shown_has_the_parts_of_one() -> None:
    shown = [json.loads(text) for language, text in blocks("docs/cli.md") if language == "json"]
    (alert,) = (event for event in shown if event["event"] == "alert")
    assert list(alert) == ["event", "step", *Finding._fields]


def test_every_other_block_is_a_target_of_make() -> None:
    """No block is left that no test runs. docs/remote.md is about other programs, docs/install.md about pip, which the tests of
    the wheel run, docs/scaling.md about torchrun, by which tests/parallel trains, docs/architecture.md has a drawing, and
    tests/watching/test_documented.py runs those about watching."""
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        name = document.relative_to(ROOT).as_posix()
        if name not in (
            "docs/cli.md",
            "docs/guide.md",
            "docs/remote.md",
            "docs/scaling.md",
            "docs/architecture.md",
            "docs/install.md",
            "docs/watch.md",
            "docs/watch_check.md",
            "docs/watch_probe.md",
            "docs/watch_trainer.md",
        ):
            for language, text in blocks(name):
                assert name == "README.md", f"{name} has a block of code that no test runs: {text}"
                if language != "python":
                    for words in (shlex.split(line, comments=True) for line in text.splitlines()):
                        assert words[0] == "make"
                        assert subprocess.run(["make", "-n", words[1]], cwd=ROOT, capture_output=True).returncode == 0
