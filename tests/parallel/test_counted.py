"""What `bench ranks` counts is what the gates choose: beside one process that routes the batches of all ranks as one."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_core.benchmarks.one_rank import about, least_mean_most, on_of
from tests.parallel.counted import BATCHES, CASES, RANKS, subject_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """By rank and case, what was counted there."""
    folder = tmp_path_factory.mktemp("counted")
    words = [sys.executable, "-m", "tests.parallel.counted", str(folder)]
    done = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("name", CASES)
def test_rows_are_those_that_the_gates_chose(counted: list[dict[str, Any]], name: str) -> None:
    here, subject = counted[0][name], subject_of(CASES[name])
    assert here["own"].shape == (RANKS, BATCHES, subject.config.layers, subject.config.num_experts)
    assert torch.equal(here["own"], here["alone"])
    assert torch.equal(here["all"], here["alone"].sum(0))  # an expert multiplies what all batches bring
    assert all(torch.equal(there[name][what], here[what]) for there in counted for what in ("own", "all"))


def test_what_is_timed_are_the_rows_that_arrived(counted: list[dict[str, Any]]) -> None:
    for name, case in CASES.items():
        E = subject_of(case).config.num_experts
        for rank, there in enumerate(counted):
            own = there[name]["all"][-1, :, rank * E // RANKS : (rank + 1) * E // RANKS].sum(1)
            assert there[name]["rows"] == own.tolist()


@pytest.mark.parametrize(
    ("name", "factor"),
    [("paper", 1.0), ("one expert a token", 1.0), ("groups", 1.0), ("one is off", 1.0), ("capacity", 0.5)],
)
def test_the_mean_is_the_formulas_unless_rows_are_dropped(
    counted: list[dict[str, Any]], name: str, factor: float
) -> None:
    subject = subject_of(CASES[name])
    said, on_LE = about(subject, RANKS), on_of(subject)
    for layer, (least, mean, most) in enumerate(least_mean_most(counted[0][name]["all"], on_LE)):
        formula = said["k"][layer] * said["tokens"] * RANKS / said["experts"][layer]
        assert mean <= factor * formula + 1e-9
        assert mean == pytest.approx(factor * formula, rel=0.02 if factor == 1 else 0.3)
        assert least <= mean <= most


def test_all_three_are_means_over_the_same_steps_and_leave_out_who_is_off() -> None:
    rows_nLE = torch.tensor([[[0, 1, 5, 9]], [[7, 2, 6, 6]], [[0, 3, 4, 8]]])
    on_LE = torch.tensor([[False, True, True, True]])
    assert least_mean_most(rows_nLE, on_LE) == [[2.0, 44 / 9, 23 / 3]]


def test_the_mean_lies_between_least_and_most_where_a_capacity_drops_the_rows_of_some_ranks() -> None:
    first_has_all_the_places = torch.tensor([[[4, 4]], [[0, 0]], [[0, 0]], [[0, 0]]])
    assert least_mean_most(first_has_all_the_places, torch.ones(1, 2, dtype=torch.bool)) == [[1.0, 1.0, 1.0]]
