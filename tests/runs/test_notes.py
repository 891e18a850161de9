"""Names, notes and tags lie beside the record and survive hostile content; a run is deleted whole or not at all."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from moe_core.runs import (
    StoreError,
    change_notes,
    create_run,
    list_runs,
    open_run,
    read_notes,
    remove_run,
    verify,
    what_goes,
)
from moe_core.runs import notes as notes_module
from moe_core.runs.branch import branch_off
from moe_core.runs.notes import DRAFT, NOTES
from moe_core.runs.overview import deletion, overview
from moe_core.runs.remove import GONE
from moe_core.schema import Config, Knobs
from tests.figures.record import record

SMALL = Config.for_task("plane", num_experts=4)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    create_run(tmp_path / "a", SMALL, Knobs()).finish("stopped")
    return tmp_path / "a"


def test_what_is_written_is_read_and_the_record_stays_as_it_was(run: Path) -> None:
    before = (run / "run.db").read_bytes()
    change_notes(run, name="  even from\nthe start ", note="two\nlines\n", add=["paper", "class 3", "paper"])
    change_notes(run, add=["new"], remove=["class 3", "never had"])
    assert read_notes(run) == ("even from the start", "two\nlines", ("paper", "new"), "")
    change_notes(run, name="")
    assert read_notes(run).name == ""
    assert read_notes(run).note == "two\nlines"
    assert (run / "run.db").read_bytes() == before
    assert not (run / DRAFT).exists()
    assert verify(open_run(run)) == []


@pytest.mark.parametrize(
    "name", ["../up", "a/b", "..", "<b>bold</b>", "🧪👩‍🔬 gate", "موازنة الخبراء", "=1+1", "-flag", "नमस्ते", "x" * 100]
)
def test_any_text_is_a_name_and_moves_no_folder(run: Path, name: str) -> None:
    assert change_notes(run, name=name).name == name
    assert overview(run.parent)[0].name == name
    assert sorted(path.name for path in run.parent.iterdir()) == ["a"]
    if "/" not in name:
        assert open_run(name, run.parent).id == "a"


def test_text_that_is_too_long_is_refused_and_control_characters_go(run: Path) -> None:
    for words, given in (
        ("name has at most 100", {"name": "x" * 5000}),
        ("note has at most 10,000", {"note": "x" * 10001}),
    ):
        with pytest.raises(StoreError, match=words):
            change_notes(run, **given)  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="at most 20 tags, got 21"):
        change_notes(run, add=[str(i) for i in range(21)])
    assert not (run / NOTES).exists()
    assert change_notes(run, name="a\x1b[31m\x00\u202eb\udc00").name == "a [31m b"


@pytest.mark.parametrize(
    "content",
    [b"{", b"[]", b'{"name": 3}', b'{"tags": "x"}', b'{"name": "\\ud800"}', b"\xff", b" " * (5 << 20), b"[" * 100_000],
)
def test_a_file_that_cannot_be_read_is_one_line_and_the_run_opens(run: Path, content: bytes) -> None:
    (run / NOTES).write_bytes(content)
    assert open_run("a", run.parent).id == "a"
    (entry,) = overview(run.parent)
    assert entry.name == "a"
    assert entry.notes.problem.startswith("notes.json of run a cannot be read: ")
    assert len(entry.notes.problem) < 300
    with pytest.raises(StoreError, match="delete that file to begin anew"):
        change_notes(run, name="b")
    assert (run / NOTES).read_bytes() == content


def test_a_long_note_is_cut_where_it_is_shown_and_kept_in_the_file_with_unknown_fields(run: Path) -> None:
    (run / NOTES).write_text(
        json.dumps({"note": "x" * 1_000_000, "colour": [1, {"a": 2}], "tags": ["t" * 500, "u", ""]})
    )
    notes = read_notes(run)
    assert (len(notes.note), [len(tag) for tag in notes.tags]) == (10_000, [40, 1])
    change_notes(run, name="b")
    kept = json.loads((run / NOTES).read_text())
    assert (kept["name"], len(kept["note"]), kept["colour"]) == ("b", 1_000_000, [1, {"a": 2}])


def test_a_link_or_a_pipe_in_place_of_the_file_is_neither_read_nor_written(run: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text('{"name": "secret"}')
    (run / NOTES).symlink_to(secret)
    assert read_notes(run).problem.endswith("it is not a plain file")
    (run / NOTES).unlink()
    os.mkfifo(run / NOTES)
    assert read_notes(run).problem.endswith("it is not a plain file")
    (run / NOTES).unlink()
    for make in (
        lambda: os.link(secret, run / DRAFT),
        lambda: (run / DRAFT).symlink_to(secret),
        lambda: os.mkfifo(run / DRAFT),
    ):
        make()
        with pytest.raises(StoreError, match=r"not a plain file|cannot be written"):
            change_notes(run, name="b")
        (run / DRAFT).unlink()
    assert secret.read_text() == '{"name": "secret"}'


def test_two_processes_that_tag_at_once_lose_no_tag(run: Path) -> None:
    code = "import sys; from moe_core.runs import change_notes; from pathlib import Path\n"
    code += "for i in range(10): change_notes(Path(sys.argv[1]), add=[sys.argv[2] + str(i)], name=sys.argv[2])"
    both = [subprocess.Popen([sys.executable, "-c", code, str(run), who]) for who in ("x", "y")]
    assert [one.wait(60) for one in both] == [0, 0]
    assert {*read_notes(run).tags} == {f"{who}{i}" for who in "xy" for i in range(10)}
    assert read_notes(run).name in ("x", "y")


def test_a_full_disk_leaves_the_old_notes_and_no_draft(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_notes(run, name="old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(notes_module.os, "fsync", full)
    with pytest.raises(StoreError, match="cannot be written: No space left on device"):
        change_notes(run, name="new")
    assert read_notes(run).name == "old"
    assert not (run / DRAFT).exists()


def test_somebody_who_writes_for_long_is_said(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notes_module, "WAIT", 0.05)
    with notes_module._draft(run), pytest.raises(StoreError, match="being written by another process"):
        change_notes(run, name="b")


# Deleting


def test_a_run_is_deleted_whole_and_its_fork_needs_nothing_of_it(tmp_path: Path) -> None:
    parent = record(tmp_path / "parent")
    (parent.path / "checkpoint-000000002.pt").write_bytes(b"weights")
    (parent.path / "checkpoint-000000002.pt.sha256").write_text("sum")
    os.close(branch_off(parent, 3, {"noise": 0.5}, tmp_path / "child"))
    parent.close()
    going = what_goes(parent.path)
    assert (going.checkpoints, going.shared) == (1, len("weights") + len("sum"))
    told = deletion(parent.path, overview(tmp_path))
    assert "; checkpoints that go: 1; " in told
    assert "its fork (child) can still be read and trained" in told
    remove_run(parent.path)
    assert [path.name for path in tmp_path.iterdir()] == ["child"]
    child = open_run("child", tmp_path)
    assert child.steps()[1] == 3
    assert (child.path / "checkpoint-000000002.pt").read_bytes() == b"weights"


def test_a_run_that_trains_is_not_deleted(tmp_path: Path) -> None:
    writer = create_run(tmp_path / "a", SMALL, Knobs())
    with pytest.raises(StoreError, match="being trained by another process; stop that one first"):
        remove_run(tmp_path / "a")
    assert open_run("a", tmp_path).state == "starting"
    writer.finish("stopped")
    remove_run(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_of_a_link_only_the_link_goes_and_a_damaged_run_goes_too(tmp_path: Path, run: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "linked").symlink_to(run)
    (runs / "broken").mkdir()
    (runs / "broken" / "run.db").write_bytes(b"no database")
    for name in ("linked", "broken"):
        remove_run(runs / name)
    assert list(runs.iterdir()) == []
    assert open_run(run).id == "a"


def test_a_deletion_that_stops_halfway_shows_no_half_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stuck(path: Path) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("moe_core.runs.remove.shutil.rmtree", stuck)
    with pytest.raises(StoreError, match=rf"run a is deleted, but files of it are left in .*{GONE}a-"):
        remove_run(run)
    assert list_runs(run.parent) == overview(run.parent) == []
