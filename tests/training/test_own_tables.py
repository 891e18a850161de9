"""Tables and arrays as people have them: what is taken for what, what is said of it, and what is refused with which flag."""

import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_core.schema import Config, Knobs, check
from moe_core.training.data import load
from moe_core.training.data.images import square_of_pixels
from moe_core.training.data.text import distinct_names

RNG = np.random.default_rng(0)
NOISE = RNG.normal(size=(40, 2)).round(3)


def table(heading: str, row: Any, rows: int = 40) -> str:
    lines = [",".join(map(str, row(n, *NOISE[n % 40]))) for n in range(rows)]
    return "\n".join([heading] * bool(heading) + lines) + "\n"


def loaded(path: Path, content: str | bytes, name: str = "own.csv", **config: Any) -> Any:
    (path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return load(Config.for_task("digits", data=str(path / name), **config))


def kind(n: int) -> str:
    return "ab"[n % 2]


# What stands in a table, and of it: the features' names, the classes, and words that must be said.
TAKEN: dict[str, tuple[str, dict[str, Any], list[str], list[str], str]] = {
    "label first": (table("label,p,q", lambda n, x, y: (n % 2, x, y)), {}, ["p", "q"], ["0", "1"], "class: column 'label', recognised"),
    "label by another name": (table("p,Species,q", lambda n, x, y: (x, kind(n), y)), {}, ["p", "q"], ["a", "b"], "column 'Species'"),
    "no names": (table("", lambda n, x, y: (n % 2, x, y)), {}, ["2", "3"], ["0", "1"], "without a line of names"),
    "no names, words": (table("", lambda n, x, y: (kind(n), x, y)), {}, ["2", "3"], ["a", "b"], "class: column '1'"),
    "names that count": (table("0,1,2,3", lambda n, x, y: (x, y, x, n % 2)), {}, ["0", "1", "2"], ["0", "1"], "40 rows"),
    "pandas' index": (table(",p,class", lambda n, x, y: (n, x, n // 20)), {}, ["p"], ["0", "1"], "left out: column 1, which has no name"),
    "unnamed: 0": (table("Unnamed: 0,p,y", lambda n, x, y: (n, x, n // 20)), {}, ["p"], ["0", "1"], "left out: column 'Unnamed: 0'"),
    "ids in words": (table("ID,p,y", lambda n, x, y: (f"a{n}", x, n // 20)), {}, ["p"], ["0", "1"], "left out: column 'ID'"),
    "rows counted down": (table("p,when,y", lambda n, x, y: (x, 900 - 3 * n, n // 20)), {}, ["p"], ["0", "1"], "whole numbers that fall"),
    "two names, one dropped": (table("p,class,target", lambda n, x, y: (x, kind(n), n % 3)), {"drop": ("target",)}, ["p"], ["a", "b"], "named by --drop"),
    "dropped by number": (table("p,class,target", lambda n, x, y: (x, kind(n), n % 3)), {"drop": ("2",)}, ["p"], ["0", "1", "2"], "column 'class'"),
    "label named": (table("class,p,kind", lambda n, x, y: (n % 2, x, n % 3)), {"label": "KIND"}, ["class", "p"], ["0", "1", "2"], "named by --label"),
    "label by number": (table("", lambda n, x, y: (n % 2, x, n % 3)), {"label": "3"}, ["1", "2"], ["0", "1", "2"], "named by --label"),
    "1 and 1.0": (table("p,y", lambda n, x, y: (x, ["1", "1.0", "01", "2"][n % 4])), {}, ["p"], ["1", "2"], "1 30, 2 10"),
    "a class of a long name": (table("p,y", lambda n, x, y: (x, ["a" * 50, "b"][n % 2])), {}, ["p"], ["a" * 50, "b"], f"{'a' * 39}… 20, b 20"),
    "ten after nine": (table("p,y", lambda n, x, y: (x, n % 12)), {}, ["p"], [str(i) for i in range(12)], "12 classes"),
    "none is a word": (table("p,y", lambda n, x, y: (x, ["none", "mild"][n % 2])), {}, ["p"], ["mild", "none"], "none 20"),
    "a coordinate y": (table("x,y,z,kind", lambda n, x, y: (x, y, x, kind(n))), {}, ["x", "y", "z"], ["a", "b"], "column 'kind'"),
    "filled": (table("p,q,y", lambda n, x, y: ("" if n == 3 else x, y, kind(n))), {"missing": "mean"}, ["p", "q"], ["a", "b"], "filled with their column's mean: 1 missing values in 1 columns"),
    "rows dropped": (table("p,q,y", lambda n, x, y: ("NA" if n == 3 else x, y, "nan" if n == 7 else kind(n))), {"missing": "drop"}, ["p", "q"], ["a", "b"], "left out: 2 of 40 rows, for want of a class or a value (rows 4, 8)"),
    "quoted, spaced": (table('"p, q", r ,y', lambda n, x, y: (x, f" {y} ", f" {kind(n)}")), {}, ["p, q", "r"], ["a", "b"], "40 rows"),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_taken_for_what_is_right_and_said(name: str, tmp_path: Path) -> None:
    content, config, features, classes, said = TAKEN[name]
    data = loaded(tmp_path, content, **config)
    assert list(data.features_named) == features
    assert data.names == classes
    assert data.features == len(features)
    assert said in "\n".join(data.taken)
    assert data.taken[0].startswith("own.csv: ")


REFUSED: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "both ends": (table("a,b,c", lambda n, x, y: (n % 2, x, n % 3)), {}, ("'a' and 'c' could each be the class", "--label")),
    "two names": (table("a,class,target", lambda n, x, y: (x, n % 2, n % 3)), {}, ("'class' and 'target'", "--label")),
    "two of words": (table("a,b,c", lambda n, x, y: (kind(n), x, "xyz"[n % 3])), {}, ("'a' and 'c'", "--label")),
    "words left": (table("a,b,c", lambda n, x, y: (kind(n), x, "xyz"[n % 3])), {"label": "c"}, ("row 1 has 'a' in column 'a'", "--drop 'a'")),
    "no such column": (table("a,b,y", lambda n, x, y: (x, y, kind(n))), {"drop": ("d",)}, ("no column 'd' for --drop", "a, b, y")),
    "no such number": (table("a,b,y", lambda n, x, y: (x, y, kind(n))), {"label": "4"}, ("no column '4' for --label",)),
    "both flags": (table("a,b,y", lambda n, x, y: (x, y, kind(n))), {"label": "y", "drop": ("y",)}, ("--label and --drop both",)),
    "empty labels": (table("a,y", lambda n, x, y: (x, "" if n in (2, 9) else kind(n))), {}, ("2 of 40 rows without a class (rows 3, 10)", "--missing drop")),
    "nan labels": (table("a,y", lambda n, x, y: (x, "nan" if n == 2 else n % 2)), {"missing": "mean"}, ("1 of 40 rows without a class (row 3)",)),
    "missing": (table("a,b,y", lambda n, x, y: (x, "" if n < 5 else y, kind(n))), {}, ("lacks values in 1 columns (b 5; first in row 1)", "--missing mean", "--missing drop")),
    "none of them": (table("a,b,y", lambda n, x, y: (x, "", kind(n))), {"missing": "mean"}, ("no value in column b", "--drop")),
    "infinity": (table("a,b,y", lambda n, x, y: (x, "inf" if n == 4 else y, kind(n))), {}, ("row 5 has infinity in column 'b'",)),
    "beyond float32": (table("a,b,y", lambda n, x, y: (f"{x}e300", y, kind(n))), {}, ("values too large for float32; scale them first",)),
    "measurements": (table("a,target", lambda n, x, y: (x, y)), {}, ("from 2 to 20 different values in 40 rows", "--label")),
    "nothing beside": (table("id,y", lambda n, x, y: (n, kind(n))), {}, ("at least two columns are wanted, a class and a feature, and 1 can be used", "column 'id' is left out")),
    "all rows dropped": (table("a,b,y", lambda n, x, y: ("" if n % 2 else x, y if n % 2 else "", kind(n))), {"missing": "drop"}, ("has 0 rows",)),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_ambiguous_or_missing_is_refused_with_the_flag_that_decides(name: str, tmp_path: Path) -> None:
    content, config, said = REFUSED[name]
    with pytest.raises(ValueError) as refused:
        loaded(tmp_path, content, **config)
    for words in said:
        assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_index_of_sorted_rows_teaches_nothing(tmp_path: Path) -> None:
    """Noise in two classes, one behind the other: with the index as a feature a classifier knows all."""
    content = table(",p,q,class", lambda n, x, y: (n, x, y, n // 20))
    data = loaded(tmp_path, content)
    assert data.features == 2
    assert abs(np.corrcoef(data.train_NF[:, 0], data.train_N)[0, 1]) < 0.5


def test_a_missing_value_stands_at_the_mean_of_the_rows_that_are_trained_on(tmp_path: Path) -> None:
    content = table("p,y", lambda n, x, y: ("" if n % 4 == 0 else 5.0 + n, kind(n)))
    data = loaded(tmp_path, content, missing="mean")
    assert (data.train_NF == 0).sum() + (data.held_NF == 0).sum() >= 10
    assert data.train_NF.mean().abs() < 1e-6
    assert np.isnan(data.probe()[1]["features"]).sum() == (data.held_NF == 0).sum()  # shown as missing


def test_columns_of_any_scale_and_one_that_never_changes_train_alike(tmp_path: Path) -> None:
    content = table("p,q,r,y", lambda n, x, y: (f"{x * 1e-30:.17g}", f"{1e9 + y * 1e3:.17g}", 1e12 if n == 39 else 7, kind(n)))  # fmt: skip
    data = loaded(tmp_path, content)
    assert data.train_NF.isfinite().all()
    assert data.held_NF.isfinite().all()
    spread = data.train_NF.std(0, correction=0)
    assert ((spread - 1).abs() < 1e-3).logical_or(spread == 0).all()
    assert (spread[:2] > 0).all()
    if spread[2] == 0:
        assert (data.held_NF[:, 2] == 0).all()  # what was never seen to change says nothing, and shouts nothing


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


LABELS = np.arange(40) % 2
IMAGES = RNG.integers(0, 256, (40, 12, 9), dtype=np.uint8)


@pytest.mark.parametrize(
    ("x", "shape", "features"),
    [
        (IMAGES, (8, 12, 9), 108),
        (IMAGES[..., None], (8, 12, 9), 108),
        (IMAGES[:, None], (8, 12, 9), 108),
        (np.stack([IMAGES] * 3, -1), (8, 12, 9), 324),
        (np.stack([IMAGES] * 3, 1), (8, 12, 9), 324),
        (RNG.random((40, 70, 50)), (8, 23, 16), 3500),
        (RNG.random((40, 2, 500)), (8, 1, 31), 1000),
    ],
    ids=str,
)
def test_images_of_any_size_are_kept_as_images(x: Any, shape: tuple, features: int, tmp_path: Path) -> None:
    data = loaded(tmp_path, npz(X=x, Y=LABELS[:, None]), "OWN.NPZ")
    images = data.probe()[1]["images"]
    assert images.shape == shape
    assert images.dtype == np.uint8
    assert (images.min(), images.max()) == (0, 16)
    assert data.features == features
    assert "shown as images of" in "\n".join(data.taken)
    assert abs(float(data.train_NF.std()) - 1) < 0.1


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        (npz(x=np.empty((0, 4)), y=np.empty(0)), "X.NPZ", "has 0 rows; give at least 10"),
        (npz(x=np.empty((40, 0)), y=LABELS), "x.npz", "x must be (n, features)"),
        (npz(x=np.zeros((40, 5, 3, 4)), y=LABELS), "x.npz", "neither rows nor images; give (n, features)"),
        (npz(x=np.zeros((40, 2, 3, 4, 5)), y=LABELS), "x.npz", "neither rows nor images"),
        (npz(x=NOISE, y=np.where(LABELS, 1.0, np.nan)), "x.npz", "20 of 40 rows without a class"),
        (npz(x=NOISE, y=NOISE[:, 0]), "x.npz", "give classes, not measurements"),
        (npz(images=NOISE, labels=LABELS), "x.npz", "must hold arrays x and y, got images, labels"),
        (b"p,q,y\n" * 20, "x.npz", "is not a readable .npz"),
        (gzip.compress(b"a,b\n" * 99, mtime=0)[:-9], "x.csv.gz", "is damaged gzip"),
        *(
            (
                content,
                name,
                f"is {what}, which is not read; convert it, and give a CSV, an .npz with x and y, or an .npy",
            )
            for content, name, what in (
                (b"PAR1" + bytes(90), "x.parquet", "a Parquet file"),
                (b'{"p": 1, "q": 2.5, "y": "a"}\n' * 40, "x.jsonl", "JSON"),
                (b'\xef\xbb\xbf [\n {"p": 1}]', "x.json", "JSON"),
                (b"[[1, 2], [3, 4]]", "x.csv", "JSON"),
                (b"{}", "x.npz", "JSON"),
                (gzip.compress(b'{\n  "p": [1, 2]}', mtime=0), "x.json.gz", "JSON"),
                (b'\x40\0\0\0\0\0\0\0{"x":{"dtype":"F32"}}' + bytes(90), "x.safetensors", "a safetensors file"),
            )
        ),
        (b"p,q,y\n" + b"\xff,1,a\n" * 20, "x.csv", "give a CSV, an .npz with x and y, or an .npy"),
    ],
)
def test_arrays_that_cannot_be_used_are_refused_in_one_line(
    content: bytes, name: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError) as refused:
        loaded(tmp_path, content, name)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_is_read_as_what_it_is_whatever_its_name_says(tmp_path: Path) -> None:
    csv = table("p,q,y", lambda n, x, y: (x, y, n % 2))
    matrix = io.BytesIO()
    np.save(matrix, np.column_stack([NOISE, LABELS]))
    files = {
        "a.csv": csv.encode(), "a.csv.gz": gzip.compress(csv.encode()), "a.CSV": b"\xef\xbb\xbf" + csv.encode(),
        "b.npy": matrix.getvalue(), "b.dat": gzip.compress(matrix.getvalue()), "X.NPZ": npz(x=NOISE, y=LABELS.astype(str)),
    }  # fmt: skip
    found = [loaded(tmp_path, content, name) for name, content in files.items()]
    for data in found:
        assert data.names == ["0", "1"]
        np.testing.assert_allclose(data.train_NF, found[0].train_NF, atol=1e-6)


def test_flat_rows_are_images_only_if_their_values_look_like_pixels() -> None:
    images = np.kron(RNG.integers(0, 255, (30, 4, 4)), np.ones((4, 4))).reshape(30, 256)
    images[:, :8] = 0
    names = [str(i) for i in range(256)]
    assert square_of_pixels(images, names) == 16
    assert square_of_pixels(RNG.integers(0, 255, (30, 256)), names) is None
    assert square_of_pixels(images - 1, names) is None
    assert square_of_pixels(images[:, RNG.permutation(256)], names) is None
    assert square_of_pixels(images[:, :255], names[:255]) is None
    assert square_of_pixels(RNG.random((30, 256)), [f"pixel{i}" for i in range(256)]) == 16


def test_flags_for_columns_belong_to_a_table(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="say how --data is read"):
        check(Config.for_task("digits", label="y"), Knobs())
    with pytest.raises(ValueError, match="its classes in y"):
        loaded(tmp_path, npz(x=NOISE, y=LABELS), "x.npz", label="y")


def test_two_texts_of_one_name_are_told_apart(tmp_path: Path) -> None:
    assert distinct_names([Path("/p/a/notes"), Path("/p/b/notes"), Path("/p/code.py")]) == [
        "a/notes",
        "b/notes",
        "code.py",
    ]
    assert distinct_names([Path("/a/x/notes"), Path("/b/x/notes"), Path("/notes")]) == [
        "a/x/notes",
        "b/x/notes",
        "/notes",
    ]
    with pytest.raises(ValueError, match="given twice"):
        distinct_names([Path("/a/notes"), Path("/a/b/../notes")])
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "notes").write_bytes(b"hello " * 500)
    (tmp_path / "more.txt.gz").write_bytes(gzip.compress(b"world " * 500, mtime=0))
    paths = tuple(str(tmp_path / name) for name in ("a/notes", "b/notes", "more.txt.gz"))
    data = load(Config(text=paths))
    assert data.names == ["a/notes", "b/notes", "more.txt.gz"]
    assert bytes(data.train[2][:6].tolist()) == b"world "
    assert data.taken[2] == "domain more.txt.gz: 3,000 bytes, of which 300 are held out"
