"""A run is resumed with the data that it was trained on; a refusal leaves the run as it was."""

import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_core.__main__ import main
from moe_core.runs import Run, StoreError, open_run, runner, verify
from moe_core.schema import Config, Knobs
from moe_core.training import checkpoint, session
from moe_core.training.again import replay, resume
from moe_core.training.data import load
from moe_core.training.data.identity import identity
from moe_core.training.session import train

SMALL: dict[str, Any] = {"num_experts": 4, "tokens": 32, "d_model": 8, "d_hidden": 8, "layers": 1, "threads": 1, "steps": 20, "eval_every": 10}  # fmt: skip
CLASSES = ("setosa", "versicolor", "virginica")


def flowers(path: Path) -> list[str]:
    """A table of 60 rows, 4 features and 3 classes."""
    rng = np.random.default_rng(0)
    rows = [",".join([*(f"{x:.3f}" for x in rng.normal(i % 3, 1, 4)), CLASSES[i % 3]]) for i in range(60)]
    path.write_text("\n".join(rows))
    return rows


def texts(folder: Path) -> tuple[str, ...]:
    rng = np.random.default_rng(0)
    for name in ("notes", "code"):
        (folder / name).write_bytes(rng.integers(97, 123, 3000, np.uint8).tobytes())
    return tuple(str(folder / name) for name in ("notes", "code"))


@pytest.fixture
def table(tmp_path: Path) -> Run:
    (tmp_path / "own").mkdir()
    flowers(tmp_path / "own" / "t.csv")
    config = Config.for_task("digits", **SMALL, data=str(tmp_path / "own" / "t.csv"))
    return open_run(train(config, Knobs(), tmp_path / "runs", "a")[0])


@pytest.fixture
def text(tmp_path: Path) -> Run:
    (tmp_path / "own").mkdir()
    config = Config.for_task("text", **SMALL, context=16, text=texts(tmp_path / "own"))
    return open_run(train(config, Knobs(), tmp_path / "runs", "a")[0])


def rewrite(change: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "t.csv"
        path.write_text("\n".join(change(path.read_text().splitlines())))

    return apply


OTHER_TABLES = {
    "shuffled": rewrite(lambda rows: [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]),
    "a class renamed": rewrite(lambda rows: [row.replace("setosa", "tulipa") for row in rows]),
    "a class more": rewrite(lambda rows: [*rows[:-2], *(row.replace("ver", "per") for row in rows[-2:])]),
    "a row less": rewrite(lambda rows: rows[:-1]),
    "a digit": rewrite(lambda rows: [f"9{rows[0].lstrip('-')}", *rows[1:]]),
    "a column less": rewrite(lambda rows: [row.split(",", 1)[1] for row in rows]),
}
OTHER_TEXTS = {
    "another text": lambda folder: (folder / "notes").write_bytes(b"so it is " * 400),
    "a byte": lambda folder: (folder / "notes").write_bytes(b"!" + (folder / "notes").read_bytes()[1:]),
    "swapped": lambda folder: [
        (folder / "notes").rename(folder / "x"),
        (folder / "code").rename(folder / "notes"),
        (folder / "x").rename(folder / "code"),
    ],
}
ASKED = (
    ["train", "--resume", "a", "--steps", "30"],
    ["fork", "a", "--at", "10", "noise=0.5"],
    ["fork", "a", "--at", "10", "--detach"],
    ["replay", "a"],
    ["ablate", "a"],
)


def refused_and_as_it_was(run: Run, asked: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command is refused; nothing is written and the run has still finished."""
    run.close()
    before = {path: path.read_bytes() for path in sorted(run.path.parent.rglob("*")) if path.is_file()}
    assert main([*asked, "--runs", str(run.path.parent)]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1), said
    assert {path: path.read_bytes() for path in sorted(run.path.parent.rglob("*")) if path.is_file()} == before
    assert run.state == "finished"
    assert verify(run) == []
    return said.err


@pytest.mark.parametrize("change", OTHER_TABLES)
def test_another_table_is_refused(table: Run, tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]) -> None:
    OTHER_TABLES[change](tmp_path / "own")
    for asked in ASKED:
        line = refused_and_as_it_was(table, asked, capsys)
        assert "was trained on other data: 60 rows of 4 features in 3 classes (setosa, versicolor, virginica)" in line
        assert "give the present path of the same data with --data" in line


@pytest.mark.parametrize("change", OTHER_TEXTS)
def test_another_text_is_refused(text: Run, tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]) -> None:
    OTHER_TEXTS[change](tmp_path / "own")
    for asked in ASKED:
        assert "give the present path of the same data with --text" in refused_and_as_it_was(text, asked, capsys)


def test_data_that_lie_elsewhere_now_are_named_once(
    table: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And found again by later resumes and forks, without being named."""
    moved = tmp_path / "elsewhere.csv"
    shutil.move(tmp_path / "own" / "t.csv", moved)
    for asked in ASKED:
        assert "is not a file" in refused_and_as_it_was(table, asked, capsys)
    runs = ["--runs", str(table.path.parent)]
    for asked in (["replay", "a"], ["ablate", "a"]):
        assert main([*asked, "--data", str(moved), *runs]) == 0
    capsys.readouterr()
    other = tmp_path / "other.csv"
    other.write_text("\n".join(moved.read_text().splitlines()[:-1]))
    for asked in ASKED:
        assert "other data" in refused_and_as_it_was(table, [*asked, "--data", str(other)], capsys)
        assert "leave --text out" in refused_and_as_it_was(table, [*asked, "--text", str(other)], capsys)
    assert main(["train", "--resume", "a", "--steps", "25", "--data", str(moved), *runs]) == 0
    assert main(["train", "--resume", "a", "--steps", "30", *runs]) == 0
    assert main(["fork", "a", "--at", "10", "--run-id", "b", *runs]) == 0
    assert [open_run(name, table.path.parent).config.data for name in "ab"] == [str(moved)] * 2
    assert main(["replay", "b", *runs]) == 0
    straight = replace(table.config, steps=30, data=str(moved))
    again = open_run(train(straight, Knobs(), tmp_path / "runs", "straight")[0])
    assert replay(open_run("a", table.path.parent)).recorded == replay(again).recorded


def test_a_text_may_be_called_something_else_where_it_lies_now(text: Run, tmp_path: Path) -> None:
    """Its domain keeps the name that it has in the record."""
    (tmp_path / "own").rename(tmp_path / "old")
    (tmp_path / "old" / "notes").rename(tmp_path / "old" / "diary")
    places = [str(tmp_path / "old" / name) for name in ("diary", "code")]
    runs = ["--runs", str(text.path.parent)]
    assert main(["train", "--resume", "a", "--steps", "25", "--text", *places, *runs]) == 0
    assert main(["fork", "a", "--at", "20", "noise=0", "--run-id", "b", *runs]) == 0
    assert open_run("b", text.path.parent).config.text == tuple(places)
    assert open_run("b", text.path.parent).labels["domain"] == ["notes", "code"]


def test_a_fork_in_the_background_is_told_where_its_data_lie(table: Run, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere.csv"
    shutil.move(tmp_path / "own" / "t.csv", moved)
    name = runner.fork(table, 10, {}, moved={"data": str(moved)})
    runner._children[name].wait(120)
    run = open_run(name, table.path.parent)
    assert (run.state, run.config.data) == ("finished", str(moved))


@pytest.mark.parametrize("task", ["plane", "digits", "text"])
def test_built_in_data_are_compared_too(
    tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The standard library's text is another in another Python."""
    config = Config.for_task(task, **SMALL | ({"context": 16} if task == "text" else {}))
    run = open_run(train(config, Knobs(), tmp_path, "a")[0])
    assert "leave --data out" in refused_and_as_it_was(run, [*ASKED[0], "--data", "t.csv"], capsys)
    assert replay(run).notes == []

    def another(config: Config) -> Any:
        data = load(config)
        tensor = data.held[0] if task == "text" else data.held_NF
        tensor[0] += 1
        return data

    monkeypatch.setattr("moe_core.training.recorded.load", another)
    says = {
        "plane": "drawn by NumPy",
        "digits": "install the version that the run was trained with",
        "text": "differs between their versions",
    }
    assert says[task] in refused_and_as_it_was(run, ASKED[0], capsys)


def test_a_record_without_a_fingerprint_goes_on_with_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own").mkdir()
    flowers(tmp_path / "own" / "t.csv")
    monkeypatch.setattr(session, "identity", lambda data: None)
    config = Config.for_task("digits", **SMALL, data=str(tmp_path / "own" / "t.csv"))
    run = open_run(train(config, Knobs(), tmp_path / "runs", "a")[0])
    OTHER_TABLES["a class more"](tmp_path / "own")
    assert "now there are 60 rows of 4 features in 4 classes" in refused_and_as_it_was(run, ASKED[0], capsys)
    flowers(tmp_path / "own" / "t.csv")
    resume(run, 25)
    (note,) = open_run(run.path).sessions()[0]["notes"]
    assert "kept no fingerprint of its data" in note


def test_a_fingerprint_is_of_all_that_is_read() -> None:
    """Each name and each array, in its place and of its kind; and nothing else."""
    data = load(Config.for_task("digits"))
    before = identity(data)
    assert identity(load(Config.for_task("digits", tokens=64))) == before
    assert identity(load(Config.for_task("digits", seed=1)))["sha256"] != before["sha256"]
    assert before["what"].startswith("1,797 rows of 64 features in 10 classes (0, 1, 2, 3, …)")
    seen = {before["sha256"]}
    for name in ("train_NF", "train_N", "held_NF", "held_N"):
        array = getattr(data, name)
        for other in (array.roll(1, 0), array[:-1], array.double()):
            seen.add(identity(replace(data, **{name: other}))["sha256"])
    seen.add(identity(replace(data, names=data.names[::-1]))["sha256"])
    assert len(seen) == 14


# Checkpoints and records that cannot be resumed


def other_run(tmp_path: Path, **changes: Any) -> Path:
    config = replace(Config.for_task("plane", **SMALL), **changes)
    return checkpoint.list_checkpoints(train(config, Knobs(), tmp_path / "others")[0])[20]


def of_another_seed(path: Path, tmp_path: Path) -> None:
    replaced_by(path, other_run(tmp_path, seed=7))


def of_another_shape(path: Path, tmp_path: Path) -> None:
    replaced_by(path, other_run(tmp_path, d_model=16))


def of_another_step(path: Path, tmp_path: Path) -> None:
    state = checkpoint.read(path)
    path.unlink()
    checkpoint.write(path.parent, 20, state | {"step": 19})


def of_something_else(path: Path, tmp_path: Path) -> None:
    path.unlink()
    checkpoint.write(path.parent, 20, {"step": 20})


def damaged(path: Path, tmp_path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def replaced_by(path: Path, other: Path) -> None:
    for end in ("", ".sha256"):
        shutil.copyfile(f"{other}{end}", f"{path}{end}")


@pytest.mark.parametrize("spoil", [damaged, of_another_seed, of_another_shape, of_another_step, of_something_else])
def test_a_bad_checkpoint_is_passed_over_and_the_run_comes_out_the_same(
    tmp_path: Path, spoil: Callable[[Path, Path], None]
) -> None:
    config = Config.for_task("plane", **SMALL)
    straight = train(replace(config, steps=30), Knobs(), tmp_path, "straight")[0]
    run = open_run(train(config, Knobs(), tmp_path, "a")[0])
    spoil(checkpoint.list_checkpoints(run.path)[20], tmp_path)
    assert resume(run, 30)[1] == "finished"
    found = replay(open_run(run.path))
    assert (found.difference, found.recorded) == (None, replay(open_run(straight)).recorded)
    (note,) = open_run(run.path).sessions()[0]["notes"]
    assert note.startswith("checkpoint-000000020.pt ")
    assert note.endswith("; it is skipped")
    assert "\n" not in note


def test_a_damaged_record_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    run = open_run(train(Config.for_task("plane", **SMALL), Knobs(), tmp_path, "a")[0])
    for path in run.path.glob("*.pt"):
        path.unlink()
    run.close()
    with sqlite3.connect(run.path / "run.db") as db:
        db.execute("UPDATE blocks SET data = zeroblob(9) WHERE id = 1")
    db.close()
    before = (run.path / "run.db").read_bytes()
    with pytest.raises(StoreError, match="damaged"):
        resume(run, 30)
    run.close()
    assert (run.path / "run.db").read_bytes() == before
    assert run.state == "finished"


def test_what_goes_wrong_while_a_trainer_is_made_leaves_the_run_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(train(Config.for_task("plane", **SMALL), Knobs(), tmp_path, "a")[0])

    def out_of_memory(*arguments: Any) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr("moe_core.training.loop.build", out_of_memory)
    with pytest.raises(RuntimeError, match="out of memory"):
        resume(run, 30)
    assert run.state == "finished"
