"""A held-out number of a model that saw later tokens: one function decides, and whoever shows the number says so."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_core.commands.train import Teller
from moe_core.dashboard import compare
from moe_core.dashboard.feed import Feed
from moe_core.dashboard.panel import banner
from moe_core.export.report import evaluations
from moe_core.figures.tiles import compare_tiles, heldout_tile
from moe_core.runs import Batch, Run, create_run, ending, open_run
from moe_core.schema import LOOKS_AHEAD, STRATEGIES, TASKS, Config, Knobs, layout, looks_ahead

CONFIG = Config(num_experts=4, layers=1, tokens=128)
ROW = np.ones((1, sum(column.width for column in layout(1, 4))), np.float32)


def recorded(folder: Path, begins: str, ends: str) -> Run:
    """Forty steps under one strategy and forty under another, evaluated at steps 40 and 80."""
    writer = create_run(folder, CONFIG, Knobs(strategy=begins))
    first, second = ({"bits_per_byte": bits, "perplexity": 2**bits} for bits in (2.0, 1.5))
    writer.commit(Batch(1, ROW.repeat(40, 0), evals=[(40, first, None)], state="training"))
    writer.turn("test", strategy=ends)
    (change,) = writer.pending().knobs
    writer.commit(Batch(41, ROW.repeat(40, 0), applied=[(change.id, 41)], evals=[(80, second, None)]))
    writer.finish("finished")
    return open_run(folder)


@pytest.fixture
def ahead(tmp_path: Path) -> Run:
    """Evaluated under expert choice at the end, though not before."""
    return recorded(tmp_path / "ahead", "paper", "expert-choice")


@pytest.fixture
def plain(tmp_path: Path) -> Run:
    """Under expert choice once, but not at the last evaluation."""
    return recorded(tmp_path / "plain", "expert-choice", "paper")


def test_only_a_model_of_sequences_can_look_ahead_and_only_by_expert_choice() -> None:
    found = {(task, strategy) for task in TASKS for strategy in STRATEGIES if looks_ahead(task, strategy)}
    assert found == {("text", "expert-choice")}


def test_an_end_says_it_by_the_strategy_at_its_evaluation(ahead: Run, plain: Run, tmp_path: Path) -> None:
    assert (ending(ahead)["comparable"], ending(plain)["comparable"]) == (False, True)
    create_run(tmp_path / "none", CONFIG, Knobs(strategy="expert-choice")).finish("stopped")
    assert ending(open_run(tmp_path / "none"))["comparable"] is None


def test_train_says_it_beside_the_held_out_numbers_and_no_others(
    ahead: Run, plain: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    for run, marked in ((ahead, {"held-out bits_per_byte", "held-out perplexity"}), (plain, set())):
        Teller(False, CONFIG).tell({"event": "end", **ending(run)})
        lines = capsys.readouterr().out.splitlines()
        names = {line[:23].strip(): f"({LOOKS_AHEAD})" in line for line in lines}
        assert {name for name, is_marked in names.items() if is_marked} == marked
        assert {"training loss", "held-out bits_per_byte", "cv_load"} <= set(names)


def test_the_report_marks_the_evaluations_made_so(ahead: Run, plain: Run) -> None:
    assert [row[-1] for row in evaluations(ahead).rows] == ["", LOOKS_AHEAD]
    assert [row[-1] for row in evaluations(plain).rows] == [LOOKS_AHEAD, ""]
    for run in (ahead, plain):
        found = evaluations(run)
        assert {len(row) for row in found.rows} == {len(found.heading)}


def test_compare_takes_no_difference_of_what_does_not_compare(ahead: Run, plain: Run) -> None:
    def held_out(*runs: Any) -> list[str]:
        return dict(compare.end_figures(runs))["held-out loss, bits/byte"]

    assert held_out(plain, ahead) == ["1.500", f"1.500, {LOOKS_AHEAD}"]
    assert held_out(ahead, plain) == [f"1.500, {LOOKS_AHEAD}", "1.500"]
    assert held_out(plain, plain) == ["1.500", "1.500 (0.000)"]


def test_the_tiles_say_it(ahead: Run, plain: Run) -> None:
    assert heldout_tile(ahead, 80).lines == (LOOKS_AHEAD,)
    assert heldout_tile(ahead, 79).lines != (LOOKS_AHEAD,)  # the last evaluation until then was made otherwise
    assert heldout_tile(plain, 79).lines == (LOOKS_AHEAD,)
    ahead.others = (plain,)  # type: ignore[attr-defined]
    first, second = compare_tiles(ahead)
    assert LOOKS_AHEAD in " ".join(first.lines)
    assert LOOKS_AHEAD not in " ".join(second.lines)


def test_the_banner_of_a_run_that_ended_says_it(ahead: Run, plain: Run) -> None:
    for run, said in ((ahead, True), (plain, False)):
        feed = Feed(run)
        feed.refresh(now=True)
        told = banner(feed, 0)
        assert told
        assert (f"Held-out loss 1.50 bits/byte ({LOOKS_AHEAD}), CV" in told["text"]) == said
