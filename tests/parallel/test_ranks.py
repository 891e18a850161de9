"""1, 2 and 4 processes that train the same, side by side: the losses, statistics and weights are the same but for rounding.

The processes are several.py, started once. docs/decisions.md has the figures of 50 steps: `STEPS = 50` compares so many."""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from moe_core.commands.ranks import patience_flag
from moe_core.parallel.alive import EVERY, Alive
from moe_core.parallel.ranks import Ranks
from moe_core.scaling.measured import measured_by_hand
from moe_core.scaling.predict import Plan, exchanged
from moe_core.scaling.predict import dealt as dealt_config
from moe_core.scaling.sent import collectives, sent_bytes
from moe_core.schema import Knobs
from moe_core.training.devices import Dealt
from tests.parallel.several import CASES, ON_TWO

ROOT = Path(__file__).parents[2]
STEPS = 6
NEAR = 1e-5
# Differences of two numbers that lie close to each other: near by the size of the scores and not by their own.
SMALL_DIFFERENCES = ("router_margin", "router_margin_p10")


@pytest.fixture(scope="module")
def came_out(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.parallel.several", str(folder), str(STEPS)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return {many: torch.load(folder / f"{many}.pt", weights_only=False) for many in (1, 2, 4)}


def furthest(one: Any, other: Any) -> float:
    """The largest difference, by the largest number."""
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    assert np.array_equal(np.isnan(one), np.isnan(other))
    one, other = np.nan_to_num(one, posinf=0), np.nan_to_num(other, posinf=0)
    return float(np.abs(one - other).max() / max(np.abs(one).max(), 1e-12))


@pytest.mark.parametrize("many", [2, 4])
@pytest.mark.parametrize("case", CASES)
def test_several_ranks_train_as_one(case: str, many: int, came_out: dict[int, dict[str, Any]]) -> None:
    if many == 2 and case not in ON_TWO:
        return
    one, several = came_out[1][case], came_out[many][case]
    for (stat, layer), column in one["rows"].items():
        if stat != "seconds":
            near = 10 * NEAR if stat in SMALL_DIFFERENCES else NEAR
            assert furthest(column, several["rows"][stat, layer]) <= near, (stat, layer)
    for name, weight in one["model"].items():
        assert furthest(weight, several["model"][name]) <= 10 * NEAR, name
        difference = (weight.double() - several["model"][name].double()).norm()
        assert difference <= NEAR * max(1e-3, float(weight.double().norm())), name
    for at, state in one["optimizer"].items():
        assert furthest(state["exp_avg"], several["optimizer"][at]["exp_avg"]) <= 1e-3
        assert state["exp_avg"].shape == several["optimizer"][at]["exp_avg"].shape


def test_the_same_ranks_give_the_same_bits(came_out: dict[int, dict[str, Any]]) -> None:
    one, other = came_out[4]["paper"], came_out[4]["again"]
    clock = ("seconds", "communication")
    assert all(np.array_equal(x, other["rows"][key], equal_nan=True) for key, x in one["rows"].items() if key[0] not in clock)  # fmt: skip
    assert all(torch.equal(x, other["model"][name]) for name, x in one["model"].items())


def test_balance_over_the_micro_batch_is_another(came_out: dict[int, dict[str, Any]]) -> None:
    """Of one rank it is the batch's; of four it differs, and the batch's does not."""
    loss = {
        (many, name): came_out[many][name]["rows"]["loss", -1] for many in (1, 4) for name in ("batch", "micro-batch")
    }
    assert np.array_equal(loss[1, "batch"], loss[1, "micro-batch"])
    assert furthest(loss[1, "batch"], loss[4, "batch"]) <= NEAR
    assert furthest(loss[4, "batch"], loss[4, "micro-batch"]) > 20 * NEAR


def test_an_exchange_is_its_definition(came_out: dict[int, dict[str, Any]]) -> None:
    assert max(came_out[4]["exchanges"]) < 1e-12


def test_ranks_that_chose_differently_are_an_error(came_out: dict[int, dict[str, Any]]) -> None:
    assert "ranks 0, 1 have not chosen the same experts" in came_out[4]["disagreement"]


def test_groups_that_chose_differently_are_an_error_on_all_ranks_in_the_next_step(
    came_out: dict[int, dict[str, Any]],
) -> None:
    said = came_out[4]["disagreements of groups"]
    for differs in ("noise", "gate"):
        assert len(said[differs]) == 4
        assert all(one.startswith("step 2: ranks 0, 2, 3 have not chosen the same experts") for one in said[differs]), (
            said
        )
    assert said["nothing"] == [""] * 4


@pytest.mark.parametrize(
    ("many", "case"),
    [
        (2, "paper"), (2, "text"), (4, "none"), (4, "paper"), (4, "capacity"), (4, "expert-choice"), (4, "strictly-balanced"),
        (4, "even"), (4, "groups"), (4, "text"),
    ],
)  # fmt: skip
def test_what_is_sent_is_the_formula(many: int, case: str, came_out: dict[int, dict[str, Any]]) -> None:
    """moe_core/scaling/sent.py, by the settings alone, of the last step: docs/scaling.md. sent_bytes is stored as float32."""
    out = came_out[many][case]
    config, dealt = out["config"], out["dealt"]
    leaving = 0
    for experts_TK in out["chosen"]:
        rows_RR = dealt.rows_between(experts_TK.long(), config.num_experts)
        leaving += int(rows_RR.sum() - rows_RR.diagonal().sum())
    one = measured_by_hand(config, Knobs(**CASES[case][1]), 1.0)
    plan = Plan(dealt.ranks, dealt.expert, strong=True)
    step = exchanged(one, plan, dealt_config(one, plan), 0)._replace(leaving=leaving)
    sent = out["rows"]["sent_bytes", -1][-1, 0]
    assert sent_bytes(step) == pytest.approx(float(sent), rel=1e-6)
    assert collectives(step)["tokens"].sent > 0.02 * sent


def test_time_in_communication_is_a_share(came_out: dict[int, dict[str, Any]]) -> None:
    for many in (2, 4):
        share = came_out[many]["paper"]["rows"]["communication", -1]
        assert ((share > 0) & (share < 1)).all()
    assert not {stat for stat, _ in came_out[1]["paper"]["rows"]} & {"sent_bytes", "communication"}


def test_rows_between_ranks_are_counted_by_hand() -> None:
    """Four ranks, two groups of two: tokens 0 and 1 are rank 0's, and so on; experts 0 and 1 lie on the first of a group. 4 is none."""
    experts_TK = torch.tensor([[0, 1], [2, 4], [3, 2], [0, 4], [0, 3], [4, 4], [1, 3], [2, 3]])
    assert Dealt(2, 2).rows_between(experts_TK, 4).tolist() == [[2, 1, 0, 0], [1, 2, 0, 0], [0, 0, 1, 1], [0, 0, 1, 3]]


@pytest.mark.parametrize(
    ("experts", "rows", "message"),
    [(3, 32, "must divide num_experts .3., got 2; change"), (4, 33, "a multiple of 2 rows .* got 33; change tokens")],
)
def test_what_cannot_be_dealt_is_said_with_what_to_change(experts: int, rows: int, message: str) -> None:
    ranks: Any = SimpleNamespace(expert=2, size=2)
    Ranks.check(ranks, 4, 32)
    with pytest.raises(ValueError, match=message):
        Ranks.check(ranks, experts, rows)


@pytest.mark.parametrize("text", ["0", "-1", "1e300", "nan", "a"])
def test_a_patience_that_is_none_is_refused(text: str) -> None:
    assert patience_flag("0.5") == 0.5
    with pytest.raises(argparse.ArgumentTypeError):
        patience_flag(text)


def test_no_thread_is_in_the_store_when_python_ends() -> None:
    """Python ends such a thread in the middle of C++, which aborts the process: its exit status would be lost."""
    store = SimpleNamespace(set=lambda *_: time.sleep(0.3))
    alive = Alive(store, 0, 2)
    time.sleep(EVERY + 0.1)  # it is in the store now
    alive.end()
    assert not alive.thread.is_alive()
