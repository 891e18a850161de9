"""The balance of the held-out split beside that of training: recorded, read, and said in words."""

import math
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from moe_core.dashboard.views import View
from moe_core.export.report import parts_of
from moe_core.figures.catalog import tiles_of
from moe_core.figures.pages.words import balance_words, held_out_line
from moe_core.figures.reading import HeldOut, held_out_at
from moe_core.runs import Run, StoreError, ending, open_run
from moe_core.runs.source import At
from moe_core.runs.statistics import chance_cv, held_out_balance
from moe_core.watching import watch
from tests.figures.record import record
from tests.watching.test_counting import Model, batch

E = 4


def cv(x: list[float]) -> float:
    return float(np.std(x) / np.mean(x))


@pytest.mark.parametrize(
    ("counts", "on"),
    [([5, 5, 5, 5], [5, 5, 5, 5]), ([0, 8, 4, 8], [0, 8, 4, 8]), ([math.nan, 8, 4, 8], [8, 4, 8]), ([20, 0, 0, 0], [20, 0, 0, 0])],
)  # fmt: skip
def test_balance_is_over_the_experts_that_are_on(counts: list[float], on: list[float]) -> None:
    balance = held_out_balance(np.array([counts, [1, 1, 1, 1]]))
    assert balance["cv_held_out"].tolist() == pytest.approx([cv(on), 0])
    assert balance["max_over_mean_held_out"].tolist() == pytest.approx([max(on) / np.mean(on), 1])


def balance(value: float, since: bool = True, where: str = "without noise") -> HeldOut:
    return HeldOut(300, value, 2.0, where, since)


@pytest.mark.parametrize(
    ("training", "held_out", "words", "line"),
    [
        ("Balanced", None, "Balanced in training", ""),
        ("Balanced", balance(0.1), "Balanced", "without noise 0.10, balanced"),
        ("Balanced", balance(0.52), "Balanced in training, uneven without noise", "without noise 0.52, uneven"),
        ("Uneven", balance(1.2), "Uneven in training, collapsed without noise", "without noise 1.20, collapsed"),
        ("Uneven", balance(0.2, where="in evaluation"), "Uneven in training, balanced in evaluation", "in evaluation 0.20, balanced"),
        ("Balanced", balance(1.2, since=False), "Balanced in training", "without noise 1.20, step 300"),
        ("", balance(0.1), "", "without noise 0.10, balanced"),
        ("Not learning", balance(0.1), "Not learning", "without noise 0.10"),
    ],
)  # fmt: skip
def test_the_word_says_of_which_balance_it_speaks(training: str, held_out: Any, words: str, line: str) -> None:
    assert balance_words(training, held_out) == words
    assert held_out_line(held_out, training) == line


@pytest.fixture
def old(tmp_path: Path) -> Run:
    """As the first version recorded it: no selections."""
    return record(tmp_path / "old", "plane", E=E, L=2)


@pytest.fixture
def new(tmp_path: Path) -> Run:
    return record(tmp_path / "new", "plane", E=E, L=2, selections=[[10, 10, 10, 10], [40, 0, None, 20]])


def test_selections_are_read_with_a_gap_for_who_was_off(new: Run) -> None:
    counts = new.evals()[-1].counts
    np.testing.assert_array_equal(counts, [[10, 10, 10, 10], [40, 0, np.nan, 20]])
    assert new.evals()[-1].metrics.keys() == {"accuracy", "loss"}
    assert held_out_at(new, 1, 60)[:3] == (60, pytest.approx(cv([40, 0, 20])), 2.0)
    assert held_out_at(new, 1, 19) is None


def test_a_run_without_selections_says_what_it_said(old: Run) -> None:
    assert [e.counts for e in old.evals()] == [None] * 3
    assert ending(old)["cv_held_out"] is None
    tiles = {tile.name: tile for tile in tiles_of("live", old)}
    assert tiles["cv_load"].lines == ("not measured without noise",)
    assert tiles["max_over_mean_load"].lines == ("ceiling 2 ×",)
    rows = [row for part in parts_of(old, lambda *one: one)[:5] for piece in part.content for row in piece.rows]
    assert not any("held-out" in row[0] and "selections" in row[0] for row in rows)


def test_live_has_both_balances(new: Run) -> None:
    tiles = {tile.name: tile for tile in tiles_of("live", new, At(layer=1))}
    assert tiles["cv_load"].word == "Uneven"
    assert tiles["cv_load"].lines == ("without noise 0.82, uneven",)
    assert tiles["max_over_mean_load"].lines == ("held-out 2.00 ×",)
    assert tiles["max_over_mean_load"].more == "ceiling 2 ×"
    assert tiles_of("compare", new, At(1))[0].more == "without noise 0.82, uneven"
    first, second = tiles_of("compare", View(new, {}, (new,)), At(1))
    assert (
        second.lines[0] == first.word == tiles["cv_load"].word
    )  # no run is called more balanced than its own page says
    assert second.lines[1] == first.lines[0]


def test_the_end_and_the_report_have_it(new: Run) -> None:
    end = ending(new)
    assert end["cv_held_out"] == pytest.approx(cv([40, 0, 20]) / 2)
    assert end["max_over_mean_held_out"] == pytest.approx(1.5)
    parts = parts_of(new, lambda *one: one)
    summary, evals = parts[0].content[0].rows, parts[4].content[0]
    assert ("CV(selections), held-out, layer 2", "0.816 (without noise, step 60)") in summary
    assert evals.heading[:5] == ("step", "held-out accuracy", "held-out loss, nats", "CV(selections), held-out", "max / mean selections, held-out, x")  # fmt: skip
    assert evals.rows[-1][3:5] == ("0.4082", "1.5")


@pytest.mark.parametrize(
    "selections",
    [[[1, 2], [3, 4]], [[1, 2, 3, -1]] * 2, [[1, 2, 3, 1e999]] * 2, "many", {"a": 1}, [[1, 2, 3, "x"]] * 2, [[[1]] * 4] * 2, 7],
    ids=str,
)  # fmt: skip
def test_selections_that_are_none_are_said_in_a_line(selections: Any, tmp_path: Path) -> None:
    record(tmp_path / "a", "plane", E=E, L=2, selections=selections).close()
    with pytest.raises(StoreError, match="an evaluation is not valid"):
        open_run(tmp_path / "a").evals()


def test_what_draws_no_noise_is_not_said_to(new: Run) -> None:
    quiet = SimpleNamespace(strategy="loss-free", noise=1.0)
    source = SimpleNamespace(
        description=new.description, evals=new.evals, knob_changes=new.knob_changes, knobs_at=lambda step: quiet
    )
    assert held_out_at(source, 0, 60).where == "in evaluation"


def test_what_few_rows_show_by_chance_is_not_called_uneven() -> None:
    """15 held-out rows of two experts each over eight: dealt at random they have a CV near 0.45."""
    dealt = [np.random.default_rng(seed).multinomial(30, np.full(8, 1 / 8)).astype(float) for seed in range(400)]
    assert chance_cv(dealt[0]) == pytest.approx(np.mean([cv(counts) for counts in dealt]), abs=0.04)
    assert chance_cv(np.array([math.nan, 4096, 4096])) == pytest.approx((1 / 8192) ** 0.5)
    few = balance(0.6)._replace(few=True)
    assert balance_words("Balanced", few) == "Balanced in training"
    assert held_out_line(few, "Balanced") == "without noise 0.60, by few rows"


def test_a_watched_loss_is_called_the_same_by_its_name_as_by_default(tmp_path: Path) -> None:
    model, described = Model(), {}
    for run, metrics in (("named", {"metrics": ["loss", "accuracy", "mine"]}), ("default", {})):
        with watch(model, run, runs=tmp_path, **metrics) as live:
            model(batch())
            live.step(loss=2.0)
            live.eval(loss=1.5)
        with closing(open_run(live.path)) as watched:
            tile = {tile.name: tile for tile in tiles_of("live", watched, At(0))}["heldout"]
            assert (tile.label, tile.value, tile.unit) == ("Held-out loss", "1.50", "nats")
            described[run] = watched.description.metrics
    assert described["named"][:1] == described["default"]
    assert described["named"][1:] == (("accuracy", "held-out accuracy", "", False), ("mine", "mine", "", True))
