"""The chart of one statistic: its numbers, its axis, and which runs are offered it."""

from pathlib import Path

import numpy as np
import pytest

from moe_core.figures.needs import many_layers
from moe_core.figures.plain import plain_chart
from moe_core.runs import Batch, Run, create_run, open_run
from moe_core.runs.source import At
from moe_core.schema import Config, Knobs, layout

SAMPLE = plain_chart("churn", "Churn", "of first experts", axis="share", hover="%{y} at step %{x}", form=".1f")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """20 steps of 2 layers: each statistic has the number of its column, times the step, and none in the first five."""
    columns = layout(2, 4)
    rows = np.arange(1, 21, dtype=np.float32)[:, None] * np.arange(
        1, 1 + sum(c.width for c in columns), dtype=np.float32
    )
    rows[:5] = np.nan
    writer = create_run(tmp_path / "a", Config.for_task("plane", num_experts=4, layers=2, tokens=64), Knobs())
    writer.commit(Batch(1, rows))
    writer.finish("stopped")
    return open_run(tmp_path / "a")


def test_it_draws_its_own_statistic_of_the_layer_with_a_gap_where_there_is_none(run: Run) -> None:
    column = next(c.start for c in layout(2, 4) if (c.stat, c.layer) == ("churn", 1))
    spec = SAMPLE.draw.spec(**SAMPLE.read(run, At(1)))
    (trace,) = spec["data"]
    assert np.isnan(trace["y"][:5]).all()
    assert trace["y"][5:].tolist() == [step * (column + 1) for step in range(6, 21)]
    low, high = spec["layout"]["yaxis"]["range"]
    assert low == 0
    assert 20 * (column + 1) <= high < 40 * (column + 1)  # a round number above the largest
    assert f"{20 * (column + 1)}.0" in [note["text"] for note in spec["layout"]["annotations"]]
    assert (spec["layout"]["meta"]["figure"], SAMPLE.draw.name) == ("churn", "churn")


def test_an_axis_with_an_end_of_its_own_keeps_it(run: Run) -> None:
    share = plain_chart("churn", "Churn", "of first experts", axis="share", hover="", top=1.0)
    assert share.draw.spec(**share.read(run, At()))["layout"]["yaxis"]["range"] == [0.0, 1.0]


def test_it_needs_its_statistic_and_what_is_asked_besides(run: Run) -> None:
    assert all(need(run) for need in SAMPLE.needs)
    absent = plain_chart("bias_effect", "", "", axis="", hover="", needs=(many_layers,))
    assert [need(run) for need in absent.needs] == [True, False]
