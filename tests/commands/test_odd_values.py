"""Words that a script gives by mistake: of a variable that is not set, a file for a folder, a place that cannot be written."""

import math
import tempfile
from pathlib import Path
from typing import Any

import pytest

from moe_core.__main__ import main
from moe_core.runs import Run, StoreError, checked_id, create_run, open_run
from moe_core.runs.notes import read_notes
from moe_core.schema import Config, Knobs, parse_setting, value_text
from moe_core.sweep import jobs, make_plan, make_sweep
from tests.sweep.made import CONFIG, WEIGHTS, record


def said(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """The exit status, and the one line that says why."""
    try:
        status = main([str(word) for word in words])
    except SystemExit as ended:  # by argparse
        status = int(str(ended.code))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("moe: ")
    assert err.count("\n") == 1
    return status, err.removeprefix("moe: ").strip()


EMPTY = [
    ("train --task plane --steps 1", "--run-id"), ("train --task plane --steps 1", "--resume"), ("train --task plane --steps 1", "--script"), ("train --task plane --steps 1", "--data"), ("train --task plane --steps 1", "--label"), ("train --task plane --steps 1", "--runs"),
    ("fork a --at 1", "--run-id"), ("sweep --task plane --steps 1", "--sweep-id"), ("sweep --task plane --steps 1", "--resume"), ("sweep --task plane --steps 1", "--csv"), ("sweep --task plane --steps 1", "--data"),
    ("watch-demo --steps 1", "--run-id"), ("runs", "--runs"), ("ablate a", "--out"), ("report a", "--out"), ("ablate a", "--data"), ("ablate a", "--text"), ("bench ranks", "--run"),
    ("export a", "--out"), ("export a --out x", "--format"), ("export a --out x", "--style"), ("export a --out x", "--animate"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "flag"), EMPTY)
@pytest.mark.parametrize("word", ["", " "])
def test_an_empty_word_is_refused_and_not_taken_for_no_flag(
    command: str,
    flag: str,
    word: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    status, line = said(capsys, *command.split(), f"{flag}={word}")
    name = command.split()[0]
    assert status == 2
    assert line.startswith(f"argument {flag}: must not be empty; perhaps a variable is not set; see ")
    assert line.endswith(f" {name} --help")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--run-id", "--lr", "--task", "--text"])
def test_a_flag_that_is_given_two_dashes_is_refused(
    flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a script in which a variable has a flag too many. Python 3.11 would take it for an empty list."""
    monkeypatch.chdir(tmp_path)
    status, line = said(capsys, "train", "--steps", 1, f"{flag}=--")
    assert status == 2
    assert line.startswith(f"argument {flag}: must not be --, which stands before words that are no flags; see ")
    assert list(tmp_path.iterdir()) == []


def test_behind_two_dashes_a_word_may_be_anything(tmp_path: Path) -> None:
    create_run(tmp_path / "a", Config.for_task("plane"), Knobs()).finish("finished")
    assert main(["note", "--runs", str(tmp_path), "--", "a", "--so=--"]) == 0
    assert read_notes(tmp_path / "a").note == "--so=--"


def test_an_empty_word_names_no_run_though_there_is_one_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    create_run(tmp_path / "a", Config.for_task("plane"), Knobs()).finish("finished")
    assert open_run("a", tmp_path).id == "a"
    with pytest.raises(StoreError, match="a run must be named"):
        open_run("", tmp_path)
    for words in (["stop"], ["set", "", "noise=1"], ["fork", "", "--at", "0"], ["export", "", "--out", tmp_path / "o"]):
        words = words if len(words) > 1 else [*words, ""]
        status, line = said(capsys, *words, "--runs", tmp_path)
        assert (status, line) == (2, f"a run must be named, got an empty word; `runs` lists those in {tmp_path}")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("below", ["", "x", "x/y"])
@pytest.mark.parametrize("by_variable", [False, True])
def test_a_file_is_no_folder_of_runs(
    below: str, by_variable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    runs = tmp_path / "file" / below
    monkeypatch.setenv("MOE_RUNS", str(runs) if by_variable else "")
    given = [] if by_variable else ["--runs", runs]
    for words in (
        ["runs"],
        ["export", "a", "--out", tmp_path / "o"],
        ["train", "--steps", "1"],
        ["watch-demo", "--steps", "1"],
    ):
        status, line = said(capsys, *words, *given)
        assert (status, line) == (2, f"runs must name a folder, and {tmp_path / 'file'} is a file; name another place")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize(
    "name", ["я" * 101, "名" * 90, "x" * 101, "..", "a/b", "a\nb", "a\0b", ".a", "-a", "a b", "\udcff", ""]
)
def test_a_name_that_a_folder_cannot_have_is_refused(name: str) -> None:
    with pytest.raises(StoreError, match=r"at most 100 \(200 bytes\)"):
        checked_id(name)


@pytest.mark.parametrize("name", ["я" * 100, "名" * 66, "x" * 100, "a.b-c_d", "٣"])
def test_a_name_as_long_as_may_be_is_a_folder(name: str, tmp_path: Path) -> None:
    create_run(tmp_path / checked_id(name), Config.for_task("plane"), Knobs()).finish("finished")
    assert Run(tmp_path / name).id == name


@pytest.mark.parametrize("text", ["-0", "-0.0", "-0e5"])
def test_minus_nothing_is_nothing(text: str) -> None:
    value = parse_setting(Knobs, "noise", text)
    assert math.copysign(1, value) == 1
    assert value_text(value) == "0"


@pytest.mark.parametrize("formats", [",", " , ", ",,"])
def test_an_export_in_no_format_is_refused(formats: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    create_run(tmp_path / "a", Config.for_task("plane"), Knobs()).finish("finished")
    status, line = said(capsys, "export", tmp_path / "a", "--out", tmp_path / "o", "--format", formats)
    assert (status, line) == (2, f"--format names png, svg, pdf, html, csv, parquet or replay, got {formats!r}")
    assert not (tmp_path / "o").exists()


def refuse(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """From now on this function of the system's is refused, as for somebody without the permission."""

    def refused(*args: Any, **named: Any) -> None:
        raise PermissionError(13, "Permission denied", str(args[0]) if args else None)

    monkeypatch.setattr(owner, name, refused)


@pytest.mark.parametrize(
    ("words", "flag"), [(["sweep", "--task", "plane", "--steps", "1"], "--csv"), (["ablate", "a"], "--out")]
)
def test_a_table_that_cannot_be_written_is_refused_before_the_work(
    words: list[str], flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    create_run(tmp_path / "a", Config.for_task("plane"), Knobs()).finish("finished")
    refuse(monkeypatch, tempfile, "NamedTemporaryFile")
    status, line = said(capsys, *words, flag, tmp_path / "t.csv", "--runs", tmp_path)
    says = f"{flag} wants a file in a folder that can be written to, and {tmp_path} cannot: Permission denied; name another file"
    assert (status, line) == (2, says)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_sweeps_table_is_shown_though_its_file_cannot_be_written_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = make_sweep(make_plan(CONFIG, Knobs(), WEIGHTS), tmp_path, "s")
    for job in jobs(sweep):
        record(job, tmp_path, [1.0] * 4, 0.5).finish("finished")
    refuse(monkeypatch, Path, "replace")
    assert main(["sweep", "--resume", "s", "--runs", str(tmp_path), "--csv", str(tmp_path / "t.csv")]) == 2
    out, err = capsys.readouterr()
    assert "w_importance" in out
    assert f"moe: {tmp_path / 't.csv'}: Permission denied" in err  # and no name that nobody gave
    assert not [path.name for path in tmp_path.iterdir() if "t.csv" in path.name]


@pytest.mark.parametrize(
    ("flag", "word"), [("--steps", "-1"), ("--steps", "9999999999"), ("--seed", "-1"), ("--seed", "9999999999")]
)
def test_the_watched_example_takes_no_number_that_a_run_could_not_have(
    flag: str, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    status, line = said(capsys, "watch-demo", f"{flag}={word}", "--runs", tmp_path)
    assert status == 2
    assert line.startswith(f"{flag.removeprefix('--')} must be between 0 and ")
    assert list(tmp_path.iterdir()) == []


def test_the_watched_example_does_not_train_where_no_run_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    refuse(monkeypatch, Path, "mkdir")
    status, line = said(capsys, "watch-demo", "--steps", "1", "--run-id", "w", "--runs", tmp_path)
    assert (status, line) == (2, f"{tmp_path / 'w'}: Permission denied; name a place that can be read and written")


@pytest.mark.parametrize(
    ("left", "taken"), [((), False), (("trainer.log",), False), (("trainer.log", "notes.json"), True)]
)
def test_the_watched_example_takes_a_name_under_which_nothing_was_recorded(
    left: tuple[str, ...],
    taken: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One that was interrupted while it loaded its model leaves an empty folder."""
    pytest.importorskip("transformers")
    from moe_core.watching import demo

    def interrupted(*_: object) -> None:
        raise ValueError("interrupted")

    monkeypatch.setattr(demo, "fine_tune", interrupted)
    (tmp_path / "w").mkdir()
    for name in left:
        (tmp_path / "w" / name).touch()
    status, line = said(capsys, "watch-demo", "--run-id", "w", "--runs", tmp_path)
    assert (status, line) == (
        2,
        f"run w exists already in {tmp_path}; choose another --run-id" if taken else "interrupted",
    )


@pytest.mark.parametrize("command", ["runs", "verify a"])
def test_a_working_folder_that_was_deleted_is_said(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    assert said(capsys, *command.split()) == (
        2, "a command needs a working folder, and the one that it was started in was deleted; cd to one that is there"
    )  # fmt: skip
