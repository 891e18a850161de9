"""Two processes that train one model: the record holds what both counted, and what is turned acts on both in the same step.

The processes are two_ranks.py, started once for the cases that must be exact and once for the others.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moe_core.runs import open_run, verify
from tests.watching.test_counting import K
from tests.watching.two_ranks import TOKENS

ROOT = Path(__file__).parents[2]
Seen = dict[str, dict[str, Any]]


def started(cases: str, folder: Path) -> tuple[Path, list[Seen], list[str]]:
    """The folder of the runs, what each rank saw, and what each said on stderr."""
    command = [sys.executable, "-m", "tests.watching.two_ranks", cases, str(folder)]
    ranks = [
        subprocess.Popen([*command, rank], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in "01"
    ]
    try:
        told = [rank.communicate(timeout=60) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()  # one that waits for the other
    assert [rank.returncode for rank in ranks] == [0, 0], told
    return folder, [json.loads(out) for out, _ in told], [err for _, err in told]


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Seen], list[str]]:
    return started("exact", tmp_path_factory.mktemp("exact"))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Seen], list[str]]:
    return started("others", tmp_path_factory.mktemp("others"))


@pytest.mark.parametrize("case", ["plain", "ddp", "fsdp", "fsdp checkpointed"])
def test_the_record_holds_what_all_ranks_counted(exact: tuple[Path, list[Seen], list[str]], case: str) -> None:
    folder, ranks, _ = exact
    run = open_run("a", folder / case)
    assert (run.state, run.steps(), verify(run)) == ("finished", (1, 7), [])
    wanted = np.add(*(rank[case]["counts"] for rank in ranks))
    for layer in range(2):
        assert run.history("counts", layer)[1].tolist() == wanted[:, layer].tolist()
    importance = run.history("importance", 0)[1].sum(1)
    assert ((importance > 0.4 * 2 * TOKENS) & (importance < 2 * TOKENS)).all()
    both = np.mean([rank[case]["losses"] for rank in ranks], axis=0)
    assert run.history("loss")[1].tolist() == pytest.approx(both.tolist())
    for rank in ranks:
        assert rank[case]["losses"] == rank[case]["plain"]
        assert rank[case]["problem"] == ""
    assert run.description.task == ("FSDPModel" if case.startswith("fsdp") else "Model")


def test_what_is_turned_acts_in_the_same_step_on_all_ranks_and_so_do_pause_and_stop(
    others: tuple[Path, list[Seen], list[str]],
) -> None:
    folder, (first, second), _ = others
    seen = first["turns"]["seen"]
    assert seen == second["turns"]["seen"]
    assert seen[:3] == [[1.0, "", 0.1], [1.0, "", 0.1], [2.0, "", 0.1]]
    assert seen[3:10] == [[0.5, "2:2", 0.1]] * 7
    assert seen[10:] == [[0.5, "2:2", 0.0]] * 6
    run = open_run("a", folder / "turns")
    assert [(c.name, c.value, c.step) for c in run.knob_changes()] == [
        ("noise", 2.0, 3),
        ("noise", 0.5, 4),
        ("off", "2:2", 4),
        ("lr", 0.0, 11),
    ]
    assert [(c.name, c.step) for c in run.commands()] == [("pause", 15), ("step", 15), ("stop", 16)]
    assert (run.state, run.steps()) == ("stopped", (1, 16))
    assert first["turns"]["stopped"] == second["turns"]["stopped"] == "the run a was stopped after step 16"
    counts = run.history("counts", 1)[1]
    assert (counts[:3, 1] > 0).all()  # expert 2 of layer 2
    assert (counts[3:, 1] == 0).all()  # on both ranks, from the step of effect on


def test_the_selections_of_an_evaluation_are_those_of_all_ranks(others: tuple[Path, list[Seen], list[str]]) -> None:
    folder, *_ = others
    (evaluation,) = open_run("a", folder / "evaluations").evals()
    assert (evaluation.step, evaluation.metrics) == (4, {"loss": 1.5})
    assert evaluation.counts is not None
    assert evaluation.counts.sum(1).tolist() == [2 * TOKENS * K] * 2


def test_when_watching_fails_on_one_rank_all_stop_watching_and_go_on_training(
    others: tuple[Path, list[Seen], list[str]],
) -> None:
    folder, (first, second), said = others
    assert (first["failure"], second["failure"]) == (
        {"steps": 12, "problem": "watching failed on 1 of 2 ranks"},
        {"steps": 12, "problem": "division by zero"},
    )
    assert "stopped watching a after step 5: watching failed on 1 of 2 ranks. The training goes on." in said[0]
    assert open_run("a", folder / "failure").steps() == (1, 3)  # those of the last meeting before


def test_a_step_that_not_all_ranks_call_is_said(others: tuple[Path, list[Seen], list[str]]) -> None:
    _, ranks, said = others
    assert [rank["uneven"]["steps"] for rank in ranks] == [6, 6]
    assert all("live.step must be called on each of the 2 ranks, once for each step" in one for one in said)


def test_without_a_group_there_are_no_ranks() -> None:
    from moe_core.watching.ranks import ranks_of
    from moe_core.watching.readers import find_taps
    from moe_core.watching.taps import Taps
    from tests.watching.test_counting import Model

    model = Model()
    assert not torch.distributed.is_initialized()
    assert ranks_of(Taps(model, find_taps(model))) is None
