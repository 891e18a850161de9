"""Over how many ranks a run was trained at each step, and the balance of their devices, whoever reads it."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_core.dashboard.feed import Feed
from moe_core.runs import Batch, Run, create_run, hold_lock, open_run, resume_run
from moe_core.runs.branch import branch_off
from moe_core.runs.identity import MOST, deals_of
from moe_core.runs.statistics import Deal, deal_at, device_statistic
from moe_core.schema import Config, Knobs
from tests.figures.ranked import E, choices, record_ranks

STAT = "max_over_mean_devices"


def by_hand(step: int, layer: int, expert: int) -> float:
    """In plain Python: each device has the same number of experts that follow one another."""
    loads = [0] * expert
    for chosen in choices(step, layer).ravel().tolist():
        loads[chosen // (E // expert)] += 1
    return max(loads) / (sum(loads) / expert)


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two groups of two, then one of four, then one process, then two ranks that have all experts each, then two."""
    folder = tmp_path_factory.mktemp("runs") / "moved"
    return record_ranks(folder, (30, 2, 2), (50, 1, 4), (60, 1, 1), (70, 2, 1), (90, 1, 2))


PARTS = [2] * 30 + [4] * 20 + [1] * 20 + [2] * 20  # over how many devices the experts lay in each step
DEALS = (Deal(1, 2, 2), Deal(31, 1, 4), Deal(51), Deal(61, 2, 1), Deal(71, 1, 2))


def test_each_session_says_on_which_ranks_it_trained(moved: Run) -> None:
    assert moved.deals == DEALS
    assert [deal_at(DEALS, step).ranks for step in (1, 30, 31, 50, 51, 61, 90)] == [4, 4, 4, 4, 1, 2, 2]
    assert deal_at(DEALS[1:], 30) == Deal(1)


@pytest.mark.parametrize("layer", [0, 1])
def test_the_balance_of_devices_is_that_of_the_ranks_of_each_step(moved: Run, layer: int) -> None:
    steps, values = moved.history(STAT, layer)
    assert steps.tolist() == list(range(1, 91))
    wanted = [by_hand(step, layer, M) if M > 1 else np.nan for step, M in enumerate(PARTS, 1)]
    np.testing.assert_allclose(values, wanted, rtol=1e-12)
    _, some = moved.history(STAT, layer, first=45, last=55)
    np.testing.assert_allclose(some, wanted[44:55], rtol=1e-12)


def test_a_page_reads_the_ranks_again_only_where_something_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with each piece of new rows; a session that began between two of them counts."""
    config, facts = Config.for_task("plane", num_experts=4, layers=1), {"ranks": {"data": 1, "expert": 2}}
    writer = create_run(tmp_path / "a", config, Knobs(), facts=facts, ranks=2)
    reads, deals = list[int](), Run.deals
    monkeypatch.setattr(Run, "deals", property(lambda run: reads.append(1) or deals.fget(run)))
    feed = Feed(open_run(tmp_path / "a"))

    def commit(first: int) -> int:
        """How often the ranks are read when two steps come."""
        writer.commit(Batch(first, np.ones((2, writer.layout.width), np.float32), state="training"))
        feed.refresh(now=True)
        reads.clear()
        writer.commit(Batch(first + 2, np.ones((2, writer.layout.width), np.float32)))
        feed.refresh(now=True)
        assert feed.last == first + 3
        return len(reads)

    assert commit(1) == 0
    feed.run.command("pause")
    writer.commit(Batch(5, np.ones((2, writer.layout.width), np.float32)))
    feed.refresh(now=True)
    assert len(reads) == 1
    writer.finish("stopped")
    writer = resume_run(tmp_path / "a", hold_lock(tmp_path / "a"), "test", 99, ranks={"data": 2, "expert": 1})
    assert commit(7) == 0
    assert feed.deals == (Deal(1, 1, 2), Deal(7, 2, 1))
    writer.finish("stopped")
    feed.run.close()


def test_a_page_reads_the_same(moved: Run) -> None:
    feed = Feed(moved)
    feed.refresh(now=True)
    assert feed.deals == DEALS
    for given in ({}, {"bins": 1000}, {"first": 20, "last": 80}):
        for one, other in zip(feed.history(STAT, 1, **given), moved.history(STAT, 1, **given), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_page_that_is_open_learns_of_other_ranks_with_their_first_step(tmp_path: Path) -> None:
    run = record_ranks(tmp_path / "a", (20, 1, 4))
    feed = Feed(run)
    feed.most = 5  # rows in memory, so that its lines are kept apart from them, and added to
    feed.refresh(now=True)
    feed.history(STAT, 0, bins=100)
    more = record_ranks_on(tmp_path / "a", 40, 1, 2)
    feed.refresh(now=True)
    np.testing.assert_array_equal(feed.history(STAT, 0, bins=100)[1], more.history(STAT, 0)[1])
    assert feed.history(STAT, 0, bins=100)[1][-1] == by_hand(40, 0, 2)


def record_ranks_on(folder: Path, last: int, data: int, expert: int) -> Run:
    """Goes on with a run of record_ranks()."""
    from moe_core.runs import Batch, hold_lock, resume_run
    from moe_core.schema import stats_of_ranks
    from tests.figures.ranked import L, rows_of

    first = open_run(folder).steps()[1] + 1
    writer = resume_run(folder, hold_lock(folder), "test", last, ranks={"data": data, "expert": expert})
    writer.commit(Batch(first, rows_of(first, last, data * expert, L, E, False, stats_of_ranks(2)), state="training"))
    writer.finish("finished")
    return open_run(folder)


def test_an_expert_that_is_off_leaves_its_device_with_less_to_do() -> None:
    """So it counts, unlike in the balance of the gate."""
    counts = np.array([[8.0, 8, 8, 8], [8, 8, 0, 8], [0, 0, 0, 0], [8, 8, 0, 0]])
    values = device_statistic(STAT, counts, np.arange(1, 5), [Deal(1, 1, 2)])
    np.testing.assert_array_equal(values, [1.0, 16 / 12, np.nan, 2.0])


def test_where_experts_cannot_lie_so_nothing_is_said() -> None:
    counts = np.ones((2, 6))
    assert np.isnan(device_statistic(STAT, counts, np.arange(1, 3), [Deal(1, 1, 4)])).all()
    assert np.isnan(device_statistic(STAT, counts, np.arange(1, 3), ())).all()


@pytest.mark.parametrize("at", [0, 20, 40, 55, 90])
def test_a_fork_knows_the_ranks_of_its_parents_steps(moved: Run, tmp_path: Path, at: int) -> None:
    """And none of its own before it is trained; what the parent's facts say of ranks is not true of a fork by one process."""
    os.close(branch_off(moved, at, {}, tmp_path / "fork", 200))
    fork = Run(tmp_path / "fork")
    assert fork.deals == tuple(deal for deal in DEALS if deal.first <= at)
    assert "ranks" not in fork.facts
    assert fork.parent == (moved.id, at)
    np.testing.assert_array_equal(fork.history(STAT, 0)[1], moved.history(STAT, 0, last=at)[1])
    fork.close()
    gone_on = record_ranks_on(tmp_path / "fork", at + 5, 1, 8)
    assert [deal_at(gone_on.deals, step).expert for step in range(1, at + 6)] == [*PARTS[:at], *[8] * 5]
    again = tmp_path / "again"
    os.close(branch_off(gone_on, at + 3, {}, again, 200))
    assert Run(again).deals == gone_on.deals


def test_a_run_of_one_process_has_no_ranks(tmp_path: Path) -> None:
    run = record_ranks(tmp_path / "a", (20, 1, 1), (30, 1, 1))
    assert run.deals == ()
    assert "deals" not in run.about.get("parent", {})
    os.close(branch_off(run, 10, {}, tmp_path / "b"))
    assert Run(tmp_path / "b").about["parent"] == {"run": "a", "step": 10}


@pytest.mark.parametrize(
    "ranks",
    [None, 3, "x", [], {}, {"data": 1}, {"data": 0, "expert": 2}, {"data": True, "expert": 2}, {"data": 1.0, "expert": 2}, {"data": -1, "expert": -2}, {"data": [1], "expert": {}}, {"data": 2**60, "expert": 2}],
)  # fmt: skip
def test_what_is_not_a_number_of_ranks_is_none(ranks: Any) -> None:
    session = {"step": 5, "ranks": {"data": 1, "expert": 2}}
    assert deals_of({"facts": {"ranks": ranks}}, []) == ()
    assert deals_of({"facts": {"ranks": ranks}}, [session]) == (Deal(6, 1, 2),)
    assert deals_of({"facts": {"ranks": {"data": 1, "expert": 4}}}, [session | {"ranks": ranks}]) == (
        Deal(1, 1, 4),
        Deal(6),
    )
    parent = {"run": "a", "step": 9, "deals": [ranks, [1, 1, 2], [4, [ranks], 2], ["5", 1, 1], [7], [8, 1, 2, 3]]}
    assert deals_of({"facts": {}, "parent": parent}, []) == (Deal(1, 1, 2), Deal(4))


def test_only_what_follows_from_the_deals_reads_them(moved: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read from all commands, which takes longer than a short history."""
    monkeypatch.setattr(Run, "deals", property(lambda self: pytest.fail("they were read")))
    moved.history("max_over_mean_load", 0)
    with pytest.raises(pytest.fail.Exception):
        moved.history(STAT, 0)


def test_damaged_sessions_leave_the_ranks_unknown(tmp_path: Path) -> None:
    record_ranks(tmp_path / "a", (20, 1, 2), (40, 1, 4)).close()
    import sqlite3

    db = sqlite3.connect(tmp_path / "a" / "run.db")
    db.execute("""UPDATE commands SET result = replace(result, '"expert": 4', '"expert": 2')""")
    db.commit()
    db.close()
    run = Run(tmp_path / "a")
    assert run.deals == ()
    assert run.damage
    assert np.isnan(run.history(STAT, 0)[1]).all()


def test_the_statistic_is_only_that_of_runs_that_began_on_ranks(tmp_path: Path) -> None:
    from moe_core.runs.statistics import measured_by

    assert measured_by(record_ranks(tmp_path / "a", (5, 2, 1)).description, STAT)
    alone = record_ranks(tmp_path / "b", (5, 1, 1), (9, 1, 2), knobs=Knobs(noise=0.5))
    assert not measured_by(alone.description, STAT)
    assert alone.deals == (Deal(6, 1, 2),)


def test_a_record_that_names_more_ranks_one_after_the_other_than_can_be_says_none() -> None:
    """Each chart asks which ranks there were at a step: 200,000 of them took seconds."""
    for many, known in ((MOST, True), (MOST + 1, False)):
        entries = [[first, 1, 2 + first % 2] for first in range(1, many + 1)]
        assert bool(deals_of({"facts": {}, "parent": {"deals": entries}}, [])) == known
