"""The three tasks and a person's own files: seeded, split, labelled, and refused in words that help."""

from pathlib import Path

import numpy as np
import pytest
import torch

from moe_core.schema import PLANES, PROBE_TOKENS, Config
from moe_core.training.data import load


def same(a, b) -> bool:
    return torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets)


@pytest.mark.parametrize("task", ["text", "digits", "plane"])
def test_a_batch_is_a_function_of_seed_and_step(task: str) -> None:
    one, again, other = (load(Config.for_task(task, seed=seed)) for seed in (1, 1, 2))
    assert same(one.batch(7), again.batch(7))
    assert not same(one.batch(7), one.batch(8))
    assert not same(one.batch(7), other.batch(7))


@pytest.mark.parametrize("task", ["text", "digits", "plane"])
def test_every_token_knows_each_label(task: str) -> None:
    config = Config.for_task(task)
    data = load(config)
    batch = data.batch(1)
    assert batch.targets.numel() == config.tokens
    assert set(batch.labels) == set(data.labels)
    for name, values in batch.labels.items():
        assert values.shape == (config.tokens,)
        assert values.min() >= 0
        assert values.max() < len(data.labels[name])


@pytest.mark.parametrize("task", ["text", "digits", "plane"])
def test_the_probe_is_small_fixed_and_shown_as_the_model_sees_it(task: str) -> None:
    data = load(Config.for_task(task))
    batch, shown = data.probe()
    size = batch.targets.numel()
    assert 250 <= size <= PROBE_TOKENS
    assert same(batch, data.probe()[0])
    if task == "text":
        assert np.array_equal(shown["tokens"], batch.inputs.flatten().numpy())
        assert set(shown["domain"]) == {0, 1, 2}
    else:
        assert np.array_equal(shown["class"], batch.targets.numpy())
    if task == "digits":
        assert shown["images"].shape == (256, 8, 8)
        assert shown["images"].dtype == np.uint8
        assert shown["images"].max() == 16
    if task == "plane":
        assert np.array_equal(shown["points"], batch.inputs.numpy())
        x0, x1, y0, y1 = shown["extent"]
        assert x0 < -0.9
        assert x1 > 0.9
        assert y0 < y1


def test_the_target_of_a_byte_is_the_byte_after_it() -> None:
    batch = load(Config()).batch(3)
    assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])


def test_no_held_out_byte_is_trained_on(tmp_path: Path) -> None:
    """A text whose last tenth has bytes of its own: training never shows them, evaluation shows nothing else."""
    path = tmp_path / "own.txt"
    path.write_bytes(b"a" * 9000 + b"z" * 1000)
    data = load(Config(text=(str(path),)))
    seen = torch.cat([data.batch(step).targets.flatten() for step in range(1, 40)])
    assert set(seen.tolist()) == {ord("a")}
    assert {int(v) for batch in data.held_out() for v in batch.inputs.unique()} == {ord("z")}


@pytest.mark.parametrize("task", ["digits", "plane"])
def test_held_out_rows_are_not_among_the_trained_ones(task: str) -> None:
    data = load(Config.for_task(task))
    trained = {row.numpy().tobytes() for row in data.train_NF}
    held = [row.numpy().tobytes() for row in data.held_NF]
    assert len(held) > 300
    assert sum(row in trained for row in held) == 0


def test_each_batch_of_text_is_dealt_to_its_three_domains_as_evenly_as_it_goes() -> None:
    data = load(Config())
    assert data.names == ["prose", "code", "table"]
    drawn = torch.stack([data.batch(step).labels["domain"].bincount(minlength=3) for step in range(1, 61)]) // 128
    assert (drawn.sum(1) == 8).all()
    assert set(drawn.flatten().tolist()) == {2, 3}
    assert drawn.float().mean(0).min() > 2.4  # over many batches each domain has its turn at one more


def test_folders_and_files_are_domains_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"hello " * 500)
    (folder / ".hidden").write_bytes(b"\x00" * 5000)
    (tmp_path / "code.py").write_bytes(b"x = 1\n" * 500)
    data = load(Config(text=(str(folder), str(tmp_path / "code.py"))))
    assert data.names == ["notes", "code.py"]
    assert not (data.train[0] == 0).any()


@pytest.mark.parametrize("plane", PLANES)
def test_each_pattern_has_all_its_classes_and_lies_in_its_extent(plane: str) -> None:
    data = load(Config.for_task("plane", plane=plane, plane_noise=0.02))
    assert data.classes >= 2
    assert data.train_N.bincount(minlength=data.classes).min() > 300
    assert (data.train_NF.abs() <= data.shown["extent"][1]).float().mean() > 0.99


def test_a_table_of_ones_own_from_csv_and_npz_is_the_same_task(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 3)), np.array(["no", "yes"] * 25)
    np.savez(tmp_path / "own.npz", x=x, y=y)
    lines = ["a,b,c,y", *(",".join(map(repr, row.tolist())) + f",{label}" for row, label in zip(x, y, strict=True))]
    (tmp_path / "own.csv").write_text("\n".join(lines))
    from_npz, from_csv = (
        load(Config.for_task("digits", data=str(tmp_path / f"own.{kind}"))) for kind in ("npz", "csv")
    )
    assert from_npz.names == from_csv.names == ["no", "yes"]
    assert torch.allclose(from_npz.train_NF, from_csv.train_NF)
    assert from_npz.probe()[1]["features"].shape == (10, 3)


def write(kind: str, path: Path) -> Path:
    x, y = np.zeros((20, 2)), np.arange(20) % 2
    if kind == "pickle":
        np.savez(path / "p.npz", x=np.array([{"a": 1}] * 20, dtype=object), y=y)
        return path / "p.npz"
    if kind == "nan":
        x[3, 1] = np.nan
    if kind == "few":
        x, y = x[:5], y[:5]
    if kind == "lengths":
        y = y[:7]
    arrays = {"x": x} if kind == "no y" else {"x": x, "y": y}
    np.savez(path / "p.npz", **arrays)
    if kind == "damaged":
        content = (path / "p.npz").read_bytes()
        (path / "p.npz").write_bytes(content[: len(content) // 2])
    if kind == "empty":
        (path / "p.npz").write_bytes(b"")
    if kind == "missing":
        (path / "p.npz").unlink()
    return path / "p.npz"


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("pickle", "pickled"),
        ("nan", "lacks values in 1 columns (2 1; first in row 4); fill them with --missing mean"),
        ("few", "at least 10"),
        ("lengths", "x must be (n, features)"),
        ("no y", "arrays x and y, got x"),
        ("damaged", "not a readable .npz"),
        ("empty", "0 bytes"),
        ("missing", "is not a file"),
    ],
)
def test_an_npz_that_cannot_be_used_is_refused_in_one_line(kind: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as refused:
        load(Config.for_task("digits", data=str(write(kind, tmp_path))))
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "0 bytes"),
        (b"1,2\n3\n", "same two or more columns"),
        (b"1,2,0\n" * 9 + b"1,x,1\n", "row 10 has 'x'"),
        (b"1,2,0\n" * 9 + b"nan,1,1\n", "lacks values in 1 columns (1 1; first in row 10)"),
        (b"\xff\xfe1,2\n", "UTF-8"),
        (b"".join(b"1,%d.5\n" % i for i in range(300)), "from 2 to 150 different values in 300 rows, got 300"),
        (b"".join(b"1,%d\n" % (i * i % 599) for i in range(600)), "from 2 to 256"),
        (b"".join(b"1,%d\n" % i for i in range(40)), "whole numbers that rise from row to row"),
        (b"".join(b"1,%d\n" % (i * 7 % 40) for i in range(40)), "from 2 to 20 different values in 40 rows, got 40"),
        (b"1,same\n" * 20, "got 1; give classes"),
        (b"1;2;0\n" * 20, "commas between them"),
    ],
)
def test_a_csv_that_cannot_be_used_is_refused_in_one_line(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_bytes(content)
    with pytest.raises(ValueError) as refused:
        load(Config.for_task("digits", data=str(tmp_path / "own.csv")))
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("content", "says"), [(None, "is not there"), (b"", "0 bytes"), (b"short", "at least")])
def test_a_text_that_cannot_be_used_is_refused_in_one_line(content: bytes | None, says: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "own.txt").write_bytes(content)
    with pytest.raises(ValueError) as refused:
        load(Config(text=(str(tmp_path / "own.txt"),)))
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_features_are_scaled_by_the_rows_that_are_trained_on() -> None:
    """What the held-out rows are like must not reach the training."""
    digits = load(Config.for_task("digits"))
    moving = digits.train_NF.std(0) > 0
    assert digits.train_NF.mean(0).abs().max() < 1e-5
    assert (digits.train_NF.std(0, correction=0)[moving] - 1).abs().max() < 1e-4
    assert digits.held_NF.mean(0).abs().max() > 0.01
