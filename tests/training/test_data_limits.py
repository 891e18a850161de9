"""Data of a person's own that would not fit in memory: refused in a line, before it is read or unpacked."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from moe_core.runs import limits
from moe_core.schema import Config
from moe_core.training.data import load
from tests.memory import memory


def bomb(path: Path, name: str, shape: tuple[int, ...], kind: str = "<f8", size: int = 1 << 20) -> Path:
    """An .npz whose array says what it likes, and holds `size` bytes of zeros."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": kind, "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for part in ("x.npy", "y.npy"):
            if part != name:
                with archive.open(part, "w") as file:
                    np.save(file, np.arange(20) % 2)
        with archive.open(name, "w", force_zip64=True) as file:
            file.write(header.getvalue())
            for _ in range(size >> 20):
                file.write(bytes(1 << 20))
    return path


@pytest.mark.parametrize(
    ("name", "shape", "kind", "says"),
    [
        ("x.npy", (400_000, 784), "<f8", "x has 313,600,000 values"),
        ("x.npy", (400_000, 784), "|u1", "x has 313,600,000 values"),
        ("y.npy", (20,), "<U30000000", "is not a readable .npz"),
        ("x.npy", (10**9, 10**9, 10**9), "<f8", "fit in memory"),
        ("x", (400_000, 784), "<f8", "x has 313,600,000 values"),
    ],
    ids=["claims", "small numbers", "long words", "beyond 64 bits", "without its ending"],
)
def test_an_npz_that_swells_is_refused_before_it_is_unpacked(
    name: str, shape: tuple[int, ...], kind: str, says: str, tmp_path: Path
) -> None:
    path = bomb(tmp_path / "own.npz", name, shape, kind)
    with memory(512 << 20), pytest.raises(ValueError) as refused:
        load(Config.for_task("digits", data=str(path)))
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_npz_that_holds_more_than_its_array_claims_is_refused(tmp_path: Path, monkeypatch) -> None:
    path = bomb(tmp_path / "own.npz", "x.npy", (20, 2), size=2 << 20)
    monkeypatch.setattr(limits, "VALUES", 1 << 17)
    with pytest.raises(ValueError, match=r"x has 40 values in 2\.1 MB; up to 131,072 fit in memory"):
        load(Config.for_task("digits", data=str(path)))


def test_files_too_large_for_the_memory_are_refused_before_they_are_read(tmp_path: Path) -> None:
    for name in ("own.csv", "own.npz", "own.txt", "folder/a", "folder/b", "many/a", "more/a"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, 5 << 30 if name.startswith("own") else 200 << 20)
    with memory(512 << 20):
        for name, says in (("own.csv", "more than 210 MB"), ("own.npz", "more than 1.1 GB")):
            with pytest.raises(ValueError, match=says):
                load(Config.for_task("digits", data=str(tmp_path / name)))
        for name in ("own.txt", "folder"):
            with pytest.raises(ValueError, match="more than 268 MB; give a part of it"):
                load(Config(text=(str(tmp_path / name),)))


def test_texts_that_are_too_large_together_are_refused(tmp_path: Path, monkeypatch) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(b"some text " * 1000)
    paths = tuple(str(tmp_path / name) for name in ("a", "b", "c"))
    assert load(Config(text=paths)).names == ["a", "b", "c"]
    monkeypatch.setattr(limits, "TEXT", 25_000)
    with pytest.raises(ValueError, match=r"up to --text '.*/c' have more than"):
        load(Config(text=paths))


def test_a_folder_of_too_many_files_is_refused_before_all_are_seen(tmp_path: Path, monkeypatch) -> None:
    for i in range(30):
        (tmp_path / f"{i}.txt").write_text("some text " * 100)
    assert load(Config(text=(str(tmp_path),))).names == [tmp_path.name]
    monkeypatch.setattr(limits, "FILES", 20)
    with pytest.raises(ValueError, match="more than 20 files"):
        load(Config(text=(str(tmp_path),)))


def test_a_mark_that_an_editor_put_before_a_file_is_not_learnt(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + b"some text " * 500)
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbf" + b"some text " * 500)
    text = load(Config(text=(str(tmp_path),)))
    assert bytes(text.train[0].tolist()).startswith(b"some text")
    assert 0xEF not in text.train[0].tolist()
    (tmp_path / "own.csv").write_bytes(b"\xef\xbb\xbf" + b"a,b,label\n" + b"1,2,0\n3,4,1\n" * 10)
    assert load(Config.for_task("digits", data=str(tmp_path / "own.csv"))).classes == 2
