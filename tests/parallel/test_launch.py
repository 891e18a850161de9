"""Which run the ranks go on with when torchrun has started them again: the one that this launch began, and no other."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_core.commands.branch import fork_here
from moe_core.commands.ranks import begun_before
from moe_core.parallel.launch import launch_name
from moe_core.runs import Run, create_run
from moe_core.runs.branch import branch_off
from moe_core.runs.statistics import Deal
from moe_core.schema import Config, Knobs
from moe_core.training.again import resume
from moe_core.training.loop import Trainer
from moe_core.training.session import train

Begin = Callable[..., Path]


@pytest.fixture
def again(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is of a second try of the launch "mine"."""
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")


@pytest.fixture
def begin(tmp_path: Path) -> Begin:
    def begun(name: str, **facts: Any) -> Path:
        create_run(tmp_path / name, Config.for_task("plane"), Knobs(), facts=facts).finish("failed", "killed")
        return tmp_path / name

    return begun


def asked(runs: Path, run_id: str | None = None, **more: Any) -> argparse.Namespace:
    return argparse.Namespace(runs=str(runs), run_id=run_id, **more)


def test_a_run_of_that_name_is_gone_on_with_only_if_this_launch_began_it(
    again: None, begin: Begin, tmp_path: Path
) -> None:
    mine = begin("first", launch="mine")
    begin("other", launch="another")
    begin("alone")
    assert begun_before(asked(tmp_path, "first")) == mine
    assert [begun_before(asked(tmp_path, name)) for name in ("other", "alone", "fir", "none")] == [None] * 4


def test_without_a_name_it_is_found_by_its_launch(
    again: None, begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = begin("first", launch="mine")
    begin("second", launch="another")
    begin("third", launch="")
    assert begun_before(asked(tmp_path)) == mine
    assert begun_before(asked(tmp_path, resume="second")) is None
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert begun_before(asked(tmp_path)) is None


def test_launches_that_torchrun_calls_none_are_told_apart(
    again: None, begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert launch_name() == "mine"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    own = launch_name()
    assert own.endswith(f"-{os.getppid()}")
    mine = begin("first", launch=own)
    begin("second", launch="none")
    monkeypatch.setattr(os, "getppid", lambda: 1)
    theirs = begin("third", launch=launch_name())
    assert begun_before(asked(tmp_path)) == theirs
    monkeypatch.undo()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert begun_before(asked(tmp_path)) == mine


def test_a_fork_is_of_the_launch_that_made_it(
    again: None, begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fork by one process is of none, though its parent has one; without --runs it is looked for beside its parent."""
    parent = Run(begin("parent", launch="another", threads=1))
    os.close(branch_off(parent, 0, {}, tmp_path / "by one", None))
    assert Run(tmp_path / "by one").facts.keys() == parent.facts.keys() - {"launch"}
    parent.close()
    monkeypatch.setattr("moe_core.commands.branch.go_on", lambda arguments, folder, lock, joined: os.close(lock))
    given = argparse.Namespace(
        run=str(tmp_path / "parent"), runs=None, run_id=None, changes=[], at=0, steps=None, detach=False, text=None, data=None
    )  # fmt: skip
    ranks = argparse.Namespace(size=2, expert=2)
    fork_here(given, argparse.Namespace(ranks=ranks, facts={"launch": "mine", "ranks": {"data": 1, "expert": 2}}))
    made = begun_before(given)
    assert made
    assert made.parent == tmp_path
    facts = Run(made).facts
    assert facts["ranks"] == {"data": 1, "expert": 2}
    assert facts["threads"] == 1


def test_a_session_says_on_how_many_ranks_it_trained(tmp_path: Path) -> None:
    """The facts only say how the run began; one process that goes on is none of several."""
    config = Config.for_task("plane", tokens=64, d_model=16, d_hidden=16, steps=3, eval_every=1000, threads=1)
    folder, state = train(config, Knobs(), tmp_path, "a")
    joined = argparse.Namespace(
        make=Trainer,
        ranks=argparse.Namespace(size=2),
        device=torch.device("cpu"),
        dismiss=lambda: None,
        facts={"launch": "x", "ranks": {"data": 1, "expert": 2}},
    )
    for steps, ranks in ((5, joined), (7, None), (9, joined)):
        assert state == "finished"
        folder, state = resume(Run(folder), steps, joined=ranks)
    assert Run(folder).deals == (Deal(4, 1, 2), Deal(6), Deal(8, 1, 2))


def test_a_fork_that_its_ranks_cannot_share_leaves_nothing(tmp_path: Path) -> None:
    config = Config.for_task("plane", tokens=63, d_model=16, d_hidden=16, steps=3, eval_every=1000, threads=1)
    train(config, Knobs(), tmp_path, "a")
    given = {"run": "a", "runs": str(tmp_path), "run_id": "b", "changes": [], "at": 3, "steps": 9, "detach": False}
    joined = argparse.Namespace(ranks=argparse.Namespace(size=2, expert=2), facts={})
    with pytest.raises(ValueError, match="a batch must have a multiple of 2 rows or sequences"):
        fork_here(argparse.Namespace(**given), joined)
    assert not (tmp_path / "b").exists()
