"""rename, note, tag and rm: what they print, what they leave, what they refuse."""

import io
import json
from pathlib import Path

import pytest

from moe_core.__main__ import main
from moe_core.runs import create_run, read_notes
from moe_core.schema import Config, Knobs

SMALL = Config.for_task("plane", num_experts=4)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOE_RUNS", str(tmp_path))
    for name in ("a", "b"):
        create_run(tmp_path / name, SMALL, Knobs()).finish("stopped")
    return tmp_path


def test_what_is_written_about_a_run_is_printed_and_listed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rename", "a", "even\x1b[31m = \u202e<b>"]) == 0
    assert main(["note", "even [31m = <b>", "one\ntwo"]) == 0
    assert main(["tag", "a", "paper", "class"]) == 0
    assert main(["tag", "a", "--remove", "class", "--json"]) == 0
    assert main(["note", "a"]) == 0
    *_, tags, one, two = capsys.readouterr().out.splitlines()
    assert (json.loads(tags), one, two) == ({"event": "tag", "run": "a", "tags": ["paper"]}, "one", "two")
    main(["runs"])
    assert "“even [31m = <b>”; #paper" in capsys.readouterr().out
    main(["runs", "--json"])
    listed = {line["run"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert (listed["a"]["name"], listed["a"]["note"], listed["b"]["name"]) == ("even [31m = <b>", "one\ntwo", "")


def test_the_list_says_how_many_ranks_trained_a_run_last(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    create_run(runs / "c", SMALL, Knobs(), facts={"ranks": {"data": 2, "expert": 2}}, ranks=4).finish("stopped")
    main(["runs"])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert lines["c"].endswith("  4 ranks")
    assert "rank" not in lines["a"] + lines["b"]
    main(["runs", "--json"])
    ranks = {line["run"]: line["ranks"] for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert ranks == {"a": 1, "b": 1, "c": 4}


def test_a_name_of_two_runs_is_refused_with_their_ids(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run in ("a", "b"):
        main(["rename", run, "same"])
    assert main(["note", "same", "x"]) == 2
    assert "is the name of several runs" in capsys.readouterr().err


def test_a_file_of_notes_that_cannot_be_read_is_said(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "a" / "notes.json").write_text("{")
    assert main(["note", "a"]) == 2
    assert capsys.readouterr().err.startswith("moe: notes.json of run a cannot be read: ")


def test_rm_asks_once_and_deletes_nothing_without_a_yes(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stdin in (io.StringIO("y\n"), Terminal("\n"), Terminal("no\n")):
        monkeypatch.setattr("sys.stdin", stdin)
        assert main(["rm", "a", "b"]) == 2
    told = capsys.readouterr()
    assert "KB become free" in told.out
    assert (told.err.count("Delete these 2 for ever?"), sorted(p.name for p in runs.iterdir())) == (2, ["a", "b"])
    monkeypatch.setattr("sys.stdin", Terminal("Yes\n"))
    assert main(["rm", "a"]) == 0
    assert [path.name for path in runs.iterdir()] == ["b"]


def test_rm_refuses_before_it_deletes_anything(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = create_run(runs / "c", SMALL, Knobs())
    for words, why in (
        (["a", "c"], "c is being trained; `stop` it first. Nothing was deleted"),
        (["a", "zz"], "'zz' is no run"),
    ):
        assert main(["rm", *words, "--yes"]) == 2
        assert why in capsys.readouterr().err
    (runs / "plain").mkdir()
    assert main(["rm", str(runs / "plain"), "--yes"]) == 2
    writer.finish("stopped")
    assert sorted(path.name for path in runs.iterdir()) == ["a", "b", "c", "plain"]


def test_rm_as_json_says_what_goes_and_that_it_is_gone(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rm", "a", "a", "--yes", "--json"]) == 0
    said, done = map(json.loads, capsys.readouterr().out.splitlines())
    assert (said["deleted"], done["deleted"]) == (False, True)
    assert said["goes"].endswith(" become free")
    assert read_notes(runs / "a") == ("", "", (), "")
