"""Files that others wrote: read up to a limit, plain files only, never waited for; and JSON without surprises."""

import io
import json
import os
import re
import subprocess
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from moe_core.runs import Ablation, StoreError, last_words, limits, open_run, read_ablation, verify, write_ablation
from moe_core.runs.ablation import NAME
from moe_core.runs.branch import link_checkpoints
from moe_core.runs.measuring import measured
from moe_core.schema import Config, Knobs
from moe_core.sweep import make_plan, make_sweep, open_sweep, sweep_ids
from moe_core.training import checkpoint
from tests.memory import memory
from tests.runs.test_store import record

HUGE = 5 << 30
DEEP = "[" * 200_000 + "]" * 200_000


READS = re.compile(r"\.read_text\(|\.read_bytes\(|json\.load|np\.load\(|torch\.load\(|\bopen\([^)]*\"r[bt]?\"|gzip\.")
TRUSTED = {
    "benchmarks/one_rank.py": "what the launcher that started it tells it",
    "benchmarks/ranks.py": "what its own ranks wrote, into a folder that it made",
    "benchmarks/results.py": "what the system says of its processor",
    "commands/train.py": "what whoever started us writes to us",
    "parallel/alive.py": "what another rank of the same training said of itself",
    "dashboard/exports.py": "what a process of ours wrote for us",
    "dashboard/jobs.py": "what a process of ours wrote for us",
    "dashboard/own.py": "what a process of ours printed for us",
    "dashboard/guard.py": "a cookie, within what the server takes of a header",
    "dashboard/messages.py": "a message, whose length is looked at",
    "runs/database.py": "the head of a journal",
    "runs/processes.py": "what the system says of its processes",
    "export/animation.py": "the film that was just made",
    "export/fonts.py": "files of ours",
    "export/replay.py": "files of ours",
    "export/style.py": "up to a limit",
    "export/web.py": "files of packages",
    "runs/limits.py": "here",
    "runs/locks.py": "the kernel",
    "training/checkpoint.py": "one that was just written, and one whose sum and parts were looked at",
    "training/data/digits.py": "a file of a package",
    "training/data/opening.py": "up to a limit, packed and unpacked",
    "training/data/tables.py": "an archive whose parts were looked at",
    "training/data/text.py": "files of Python and of packages",
}


def sparse(path: Path, size: int = HUGE) -> Path:
    """A file that takes no room on the disk and all its size in memory."""
    path.unlink(missing_ok=True)
    path.touch()
    os.truncate(path, size)
    return path


@pytest.fixture
def little_memory() -> Iterator[None]:
    with memory(1 << 30):
        yield


# What may lie in the place of a side file. Each is refused with a word, or read to its limit.
STRANGE: dict[str, Callable[[Path], object]] = {
    "huge": sparse,
    "pipe": os.mkfifo,
    "link": lambda path: path.symlink_to("/dev/zero"),
    "link-to-itself": lambda path: path.symlink_to(path.name),
    "folder": Path.mkdir,
    "deep": lambda path: path.write_text(DEEP),
    "bytes": lambda path: path.write_bytes(bytes(range(256)) * 20),
    "empty": Path.touch,
    "infinity": lambda path: path.write_text('{"step": Infinity, "config": 1e999, "cells": [-Infinity]}'),
    "digits": lambda path: path.write_text('{"step": ' + "9" * 400 + ', "seeds": [' + "9" * 5000 + "]}"),
    "list": lambda path: path.write_text("[1, 2]"),
    "half a character": lambda path: path.write_text('{"step": "\\ud800"}'),
    "twice": lambda path: path.write_text('{"step": 1, "step": 2}'),
}


@pytest.mark.parametrize("strange", STRANGE)
def test_a_side_file_that_is_none_is_a_line_and_nothing_waits(
    strange: str, tmp_path: Path, little_memory: None
) -> None:
    folder = record(tmp_path / "a")
    (folder / "run.tip").unlink()
    for name in (NAME, "run.tip", "trainer.log", "checkpoint-000000030.pt", "checkpoint-000000030.pt.sha256"):
        STRANGE[strange](folder / name)
    with pytest.raises(StoreError, match=f"{NAME} of a cannot be read") as refused:
        read_ablation(folder)
    assert len(str(refused.value)) < 300
    assert any("run.tip" in finding for finding in verify(open_run(folder)))
    assert len(last_words(folder)) <= 300
    with pytest.raises(ValueError, match=r"checkpoint-000000030\.pt"):
        checkpoint.read(folder / "checkpoint-000000030.pt")


@pytest.mark.parametrize("strange", STRANGE)
def test_a_sweep_that_is_none_is_a_line_and_hides_no_other(strange: str, tmp_path: Path, little_memory: None) -> None:
    config = Config.for_task("plane", steps=1)
    make_sweep(make_plan(config, Knobs(), {"noise": [1.0, 0.5]}), tmp_path, "good")
    (tmp_path / "bad").mkdir()
    STRANGE[strange](tmp_path / "bad" / "sweep.json")
    assert "good" in sweep_ids(tmp_path)
    assert len(open_sweep("good", tmp_path).plan.cells) == 2
    with pytest.raises(StoreError, match=r"bad cannot be read|bad' is not a sweep") as refused:
        open_sweep("bad", tmp_path)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("strange", STRANGE)
def test_a_measurement_that_is_none_measured_nothing(strange: str, tmp_path: Path, little_memory: None) -> None:
    STRANGE[strange](tmp_path / "batch.jsonl")
    found = measured(tmp_path / "batch.jsonl")
    assert len(found.tokens) == 0
    assert len(found.problem) <= 200
    assert bool(found.problem) == (strange != "empty")


def test_an_ablation_of_another_model_is_refused(tmp_path: Path) -> None:
    run = open_run(record(tmp_path / "a"))
    for shape, fits in (((run.config.layers, run.config.num_experts), True), ((1, 3), False)):
        write_ablation(run.path, Ablation(1, 0.5, np.zeros(shape), np.zeros(shape)))
        if fits:
            assert run.ablation().rise_LE.shape == shape
        else:
            assert run.ablation() is None
            assert "of another model" in run.damage[-1]


def test_a_sweep_of_more_runs_than_one_may_have_is_refused(tmp_path: Path) -> None:
    sweep = make_sweep(make_plan(Config.for_task("plane", steps=1), Knobs(), {"noise": [1.0]}), tmp_path, "many")
    path = sweep.folder / "sweep.json"
    told = {name: value for name, value in json.loads(path.read_text()).items() if name != "sum"}
    path.write_text(json.dumps(told | {"cells": told["cells"] * 1001}))
    with pytest.raises(StoreError, match="1 to 1000 runs, not 1001"):
        open_sweep("many", tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (DEEP, "deep"),
        ("[" * 40 + "]" * 40, "deep"),
        ('{"a":' * 40 + "1" + "}" * 40, "deep"),
        ("NaN", "not a finite number"),
        ("[-Infinity]", "not a finite number"),
        ("1e999", "not a finite number"),
        ("9" * 400, "beyond 64 bits"),
        (str(2**64), "beyond 64 bits"),
        ('{"a": 1, "a": 2}', "given twice"),
        ('["\\udc00"]', "surrogates not allowed"),
        ("{", "Expecting"),
        (b"\xff\xfe", "utf-8"),
        (b"", "Expecting"),
    ],
)
def test_json_that_a_reader_would_stumble_over_is_refused(text: str | bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        limits.read_json(text)


def test_other_json_is_read_as_it_is() -> None:
    for value in ([[[1.5, None, True]]], {"a": -(2**63), "b": "ü \u2028 👋"}, 0, "text"):
        assert limits.read_json(json.dumps(value)) == value
        assert limits.read_json(b"\xef\xbb\xbf" + json.dumps(value, ensure_ascii=False).encode()) == value
    assert limits.read_json("[NaN, Infinity]", finite=False)[1] == float(
        "inf"
    )  # the perplexity of a model that diverged


# What a person names


def test_a_pipe_is_read_when_somebody_writes_and_refused_when_nobody_does(tmp_path, monkeypatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(b"3 noise=0.5\n" * 10_000,))
    writer.start()
    assert limits.read_given(tmp_path / "pipe", 1 << 20) == b"3 noise=0.5\n" * 10_000
    writer.join()
    monkeypatch.setattr(limits, "SILENCE", 0.05)
    with pytest.raises(ValueError, match=r"nobody wrote to it for 0\.05 s"):
        limits.read_given(tmp_path / "pipe", 1 << 20)


def test_a_pipe_that_never_ends_is_read_to_the_limit(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    yes = subprocess.Popen(["sh", "-c", f"exec yes > {tmp_path / 'pipe'}"], stderr=subprocess.DEVNULL)
    try:
        with pytest.raises(ValueError, match=r"more than 1\.0 MB"):
            limits.read_given(tmp_path / "pipe", 1_000_000)
    finally:
        yes.kill()
        yes.wait()


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/tmp"])
def test_neither_a_device_nor_a_folder_is_read(path: str) -> None:
    with pytest.raises((ValueError, IsADirectoryError)):
        limits.read_given(Path(path), 1 << 20)


def test_a_file_is_read_to_its_limit_and_not_beyond(tmp_path: Path, little_memory: None) -> None:
    (tmp_path / "a").write_bytes(b"x" * 1000)
    (tmp_path / "link").symlink_to("a")
    assert len(limits.read_given(tmp_path / "link", 1000)) == 1000
    for read in (limits.read_given, limits.read_side):
        with pytest.raises(ValueError, match="more than 999 bytes"):
            read(tmp_path / "a", 999)
        with pytest.raises(ValueError, match=r"more than 1\.0 GB"):
            read(sparse(tmp_path / "huge"), 1_000_000_000)
    with pytest.raises(ValueError, match="not a plain file"):
        limits.read_side(tmp_path / "link", 1000)


# Archives


def test_a_checkpoint_that_swells_is_refused_whatever_its_sum(tmp_path: Path) -> None:
    path = checkpoint.write(tmp_path, 1, {"step": 1})
    assert checkpoint.read(path) == {"step": 1}
    with zipfile.ZipFile(path) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
        archive.writestr("archive/data/0", bytes(1 << 20))
    path.with_name(path.name + ".sha256").write_text(checkpoint._sha256(path))
    with pytest.raises(ValueError, match="unpacks to more bytes than it has"):
        checkpoint.read(path)


def test_a_checkpoint_is_known_by_a_name_of_ours_only(tmp_path: Path) -> None:
    source, fork = tmp_path / "a", tmp_path / "b"
    source.mkdir()
    fork.mkdir()
    whole = checkpoint.write(source, 30, {"step": 30})
    for name in ("checkpoint-best.pt", "checkpoint-٣٣٣٣٣٣٣٣٣.pt", f"checkpoint-{'9' * 200}.pt", "checkpoint-3.pt"):
        (source / name).write_bytes(whole.read_bytes())
    (source / "checkpoint-000000020.pt").symlink_to(whole)
    os.mkfifo(source / "checkpoint-000000010.pt")
    assert list(checkpoint.list_checkpoints(source)) == [30, 20, 10]
    link_checkpoints(source, fork, 40)
    assert sorted(path.name for path in fork.iterdir()) == [whole.name, whole.name + ".sha256"]


def test_what_an_archive_holds_is_known_without_unpacking_it() -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(10 << 20))
    assert [(part.filename, part.file_size) for part in limits.zip_parts(packed)] == [("zeros", 10 << 20)]
    for damaged in (b"", b"PK\5\6", packed.getvalue()[:-30], np.random.default_rng(0).bytes(5000)):
        with pytest.raises(ValueError, match="not a zip archive"):
            limits.zip_parts(io.BytesIO(damaged))


def test_nothing_of_ours_reads_a_whole_file_of_others() -> None:
    """Where a file is read without a limit, it is one that we or the system made; a new place is looked at and added."""
    root = Path(__file__).parents[2]
    files = [path for path in (root / "moe_core").rglob("*.py") if READS.search(path.read_text())]
    assert {str(path.relative_to(root / "moe_core")) for path in files} == TRUSTED.keys()
