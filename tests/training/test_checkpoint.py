"""A checkpoint is whole or not there, and a flipped bit is seen."""

from pathlib import Path

import pytest
import torch

from moe_core.training.checkpoint import read, write


def test_what_was_written_is_read_and_the_last_two_are_kept(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-000000000.pt.tmp").write_bytes(b"half")
    paths = [write(tmp_path, step, {"w": torch.arange(5.0) + step, "step": step}) for step in (1, 2, 3)]
    assert torch.equal(read(paths[2])["w"], torch.arange(5.0) + 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        p.name + end for p in paths[1:] for end in ("", ".sha256")
    )


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
