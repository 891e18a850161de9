"""Experts that a person switched off: no statistic counts them, at whatever step and by whatever way it is read."""

from pathlib import Path

import numpy as np
import pytest

from moe_core.dashboard.feed import Feed
from moe_core.recording.recent import Recent
from moe_core.runs import Batch, Run, create_run, open_run
from moe_core.runs.statistics import FOR_EVER, derive, off_spans
from moe_core.schema import DEAD_AFTER, Config, Knobs, describe, layout

E, L, STEPS = 8, 2, 400
CONFIG = Config.for_task("plane", num_experts=E, layers=L)
COLUMNS = layout(L, E)
# (step of effect, value): expert 4 of both layers and 8 of the second, 8 by itself, all on, 1 of the first.
TURNS = ((61, "4,2:8"), (181, "2:8"), (241, ""), (301, "1:1"))
DIES = 5  # an expert of layer 1 that nothing selects any more from step DIED on, by itself
DIED = 30


def off_at(step: int, layer: int) -> set[int]:
    """The experts that are off, from 0, by hand."""
    found: set[int] = set()
    for begin, text in TURNS:
        if step >= begin:
            words = [word.rpartition(":") for word in text.split(",") if word]
            found = {int(expert) - 1 for one, _, expert in words if not one or int(one) == layer + 1}
    return found


def made_rows() -> np.ndarray:
    rng = np.random.default_rng(0)
    rows = rng.uniform(1, 9, (STEPS, COLUMNS[-1].start + COLUMNS[-1].width)).astype(np.float32).round()
    of = {(column.stat, column.layer): slice(column.start, column.start + column.width) for column in COLUMNS}
    last = np.zeros((L, E))
    for step in range(1, STEPS + 1):
        for layer in range(L):
            gone = [*off_at(step, layer), *([DIES] if layer == 0 and step >= DIED else [])]
            for stat in ("load", "counts", "importance"):
                rows[step - 1, of[stat, layer]][gone] = 0
            last[layer] = np.where(rows[step - 1, of["counts", layer]] > 0, step, last[layer])
            rows[step - 1, of["dead_experts", layer]] = (step - last[layer] >= DEAD_AFTER).sum()
    return rows


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Run:
    writer = create_run(tmp_path_factory.mktemp("runs") / "a", CONFIG, Knobs())
    rows, at = made_rows(), 0
    for step, value in (*TURNS, (STEPS + 1, None)):
        writer.commit(Batch(at + 1, rows[at : step - 1]))
        at = step - 1
        if value is not None:
            id = open_run(writer.folder).turn("test", off=value)
            writer.commit(Batch(0, rows[:0], applied=[(id, step)]))
    writer.finish("finished")
    return open_run(writer.folder)


def by_hand(stat: str, layer: int, step: int) -> float:
    """A statistic of one step from its definition, over the experts that are on."""
    rows = made_rows()
    on = [e for e in range(E) if e not in off_at(step, layer)]
    of = {
        column.stat: rows[:, column.start : column.start + column.width] for column in COLUMNS if column.layer == layer
    }
    if stat == "dead_experts":
        recent = of["counts"][max(0, step - DEAD_AFTER) : step]
        return float(sum(step >= DEAD_AFTER and not recent[:, e].any() for e in on))
    x = of["load" if "load" in stat else "counts"][step - 1][on].astype(np.float64)
    p = x / x.sum()
    p = p[p > 0]
    found = {
        "cv_load": x.std() / x.mean(),
        "load_loss": (x.std() / x.mean()) ** 2,
        "max_over_mean_load": x.max() / x.mean(),
        "min_vio": x.min() / x.mean() - 1,
        "effective_experts": np.exp(-(p * np.log(p)).sum()),
        "entropy": -(p * np.log(p)).sum() / np.log(len(on)),
    }
    return float(found[stat])


SOURCES = ("run", "feed", "feed zoomed", "watch")


def source_of(recorded: Run, kind: str):
    if kind == "run":
        return recorded.history
    if kind == "watch":
        watch = Recent(describe(CONFIG, Knobs()), Knobs())
        watch.next_diagnosis = float("inf")
        for step, value in TURNS:
            watch.note_turns(step, Knobs(off=value))
        watch.add(Batch(1, made_rows()))
        return watch.history
    feed = Feed(recorded)
    feed.refresh()
    if kind == "feed zoomed":
        feed.most = 20  # as of a long run: what is older is read from the store
        return lambda stat, layer: feed.history(stat, layer, first=1, last=STEPS)
    return lambda stat, layer: feed.history(stat, layer, bins=STEPS)


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("stat", ["cv_load", "load_loss", "max_over_mean_load", "min_vio", "effective_experts", "entropy", "dead_experts"])  # fmt: skip
def test_no_statistic_counts_an_expert_that_is_off(stat: str, kind: str, recorded: Run) -> None:
    read = source_of(recorded, kind)
    for layer in range(L):
        steps, values = read(stat, layer)
        assert list(steps) == list(range(1, STEPS + 1))
        for step in (1, 60, 61, 99, 100, 129, 130, 160, 161, 180, 181, 240, 241, 300, 301, STEPS):
            assert values[step - 1] == pytest.approx(by_hand(stat, layer, step), abs=1e-5), (layer, step)


def test_a_part_of_the_history_says_the_same_as_the_whole(recorded: Run) -> None:
    """How many are dead looks back, and must not depend on what else is read."""
    whole = recorded.history("dead_experts", 0)[1]
    for first, last in ((61, 61), (100, 140), (170, 182), (241, STEPS)):
        np.testing.assert_array_equal(recorded.history("dead_experts", 0, first, last)[1], whole[first - 1 : last])


def test_shares_by_expert_stay_shares_of_the_whole(recorded: Run) -> None:
    _, share = recorded.history("selection_share", 1)
    np.testing.assert_allclose(share.sum(axis=1), 1)
    assert (share[60:180][:, [3, 7]] == 0).all()
    fair = recorded.history("utilisation", 1)[1]
    np.testing.assert_allclose(fair[:60].sum(axis=1), E)
    np.testing.assert_allclose(fair[60:180].sum(axis=1), E - 2)


def test_what_is_stored_is_read_as_it_is(recorded: Run) -> None:
    stored = {c.stat: made_rows()[:, c.start : c.start + c.width] for c in COLUMNS if c.layer == 0}
    np.testing.assert_array_equal(recorded.history("counts", 0)[1], stored["counts"])
    assert stored["dead_experts"][:, 0].max() > recorded.history("dead_experts", 0)[1].max()


def test_with_all_experts_on_nothing_is_computed_otherwise() -> None:
    x = np.random.default_rng(1).uniform(0, 5, (50, E))
    np.testing.assert_array_equal(
        derive("cv_load", {"load": x}, np.ones((50, E), bool)), derive("cv_load", {"load": x})
    )


def test_a_run_may_start_with_experts_off() -> None:
    spans = off_spans([E] * L, Knobs(off="2"), (), lambda *_: np.zeros((0, E)))
    assert [(s.layer, s.expert, s.first, s.end, s.dead) for s in spans] == [
        (0, 1, 0, FOR_EVER, DEAD_AFTER),
        (1, 1, 0, FOR_EVER, DEAD_AFTER),
    ]


def test_a_fork_knows_what_its_parent_switched_off(recorded: Run, tmp_path: Path) -> None:
    import os

    from moe_core.runs.branch import branch_off

    os.close(branch_off(recorded, 200, {}, tmp_path / "fork"))
    fork = open_run(tmp_path / "fork")
    assert fork.steps() == (1, 200)
    np.testing.assert_array_equal(fork.history("cv_load", 1)[1], recorded.history("cv_load", 1, last=200)[1])
