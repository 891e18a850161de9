"""A checkpoint is whole or not there, a flipped bit is seen, and what is kept stays bounded."""

import itertools
from pathlib import Path

import pytest
import torch

from moe_core.training import checkpoint
from moe_core.training.checkpoint import NEWEST, OLDER, name_of, read, restore_newest, steps_to_keep, write


def test_what_was_written_is_read_and_leftovers_go(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-000000000.pt.tmp").write_bytes(b"half")
    paths = [write(tmp_path, step, {"w": torch.arange(5.0) + step, "step": step}) for step in (1, 2, 3)]
    assert torch.equal(read(paths[2])["w"], torch.arange(5.0) + 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name + end for p in paths for end in ("", ".sha256"))


def test_older_ones_are_kept_ever_further_apart() -> None:
    """Over a long run: the newest two always, never too many, and the way back to one is a share of its age."""
    there: set[int] = set()
    for step in range(100, 100_001, 100):
        there = steps_to_keep(dict.fromkeys(there | {step}, 1))
        assert {step, max(step - 100, 100)} <= there
        assert len(there) <= NEWEST + OLDER
    steps = sorted({0, *there})
    for before, after in itertools.pairwise(steps):
        age = 100_000 - before
        assert after - before <= max(200, 0.8 * age), (before, after)
    assert sum(step > 95_000 for step in there) >= 4


def test_heavy_ones_are_fewer_but_the_newest_two_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "BUDGET", 35)
    assert len(steps_to_keep(dict.fromkeys(range(1, 11), 10))) == NEWEST + 3
    assert steps_to_keep(dict.fromkeys(range(1, 11), 100)) == {9, 10}


def test_a_write_removes_what_is_not_kept(tmp_path: Path) -> None:
    for step in range(1, 20):
        write(tmp_path, step, {"step": step})
    left = set(checkpoint.list_checkpoints(tmp_path))
    assert len(left) == NEWEST + OLDER
    assert {path.name for path in tmp_path.iterdir()} == {name_of(s) + end for s in left for end in ("", ".sha256")}


def test_the_nearest_is_the_newest_whole_one_at_or_before_a_step(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        write(tmp_path, step, {"step": step})
    told: list[str] = []

    def found(step: int) -> int | None:
        return restore_newest(tmp_path, step, lambda state: int(state["step"]), told.append)

    assert [found(step) for step in (29, 20, 9)] == [20, 20, None]
    assert told == []
    (tmp_path / name_of(20)).write_bytes(b"damaged")
    assert found(29) == 10
    write(tmp_path, 15, {"foreign": 15})
    assert found(29) == 10
    assert "checkpoint-000000020.pt is damaged" in told[0]
    assert told[-1] == "checkpoint-000000015.pt does not fit this run (KeyError: 'step'); it is skipped"


def test_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, 1, {"w": torch.ones(1000)})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        read(path)


def test_a_checkpoint_without_its_sum_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, 1, {"w": torch.ones(3)})
    path.with_name(path.name + ".sha256").unlink()
    with pytest.raises(ValueError, match="sha256"):
        read(path)
