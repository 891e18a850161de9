"""Router churn and saturation are of a fixed number of steps: tile and chart say the same, old records say what they lack."""

import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from moe_core.dashboard.shared import join, leave_all
from moe_core.figures.catalog import FIGURES, tiles_of
from moe_core.runs import Batch, Run, create_run, open_run
from moe_core.runs.codec import START, link
from moe_core.runs.compare import compared, left_out
from moe_core.runs.source import At
from moe_core.schema import Config, Knobs, layout
from tests.figures.record import record

CHURN = 17 / 64


def stopped(folder: Path, every: int = 20, last: int = 71) -> Run:
    """A run that was stopped between two multiples of churn_every, its last snapshot taken by the clock at its last step."""
    config = Config.for_task("text", num_experts=4, layers=1, churn_every=every)
    writer = create_run(folder, config, Knobs(), probe={"tokens": np.full(64, 65, np.uint8)})
    rows = np.ones((last, sum(c.width for c in layout(1, 4))), np.float32)
    at = {c.stat: c.start for c in layout(1, 4)}
    rows[:, at["churn"]] = [np.nan if step < 20 else 0.5 if step < 60 else CHURN for step in range(1, last + 1)]
    rows[:, at["saturation"]] = 0.75
    rng = np.random.default_rng(0)

    def probe() -> dict[str, np.ndarray]:
        experts = np.argsort(rng.random((1, 64, 4)), axis=2)[:, :, :2].astype(np.uint8)
        return {"experts": experts, "gates": np.full((1, 64, 2), 0.5, np.float16)}

    writer.commit(Batch(1, rows, snapshots=[(step, "probe", probe()) for step in (0, 58, 69, last)], state="training"))
    writer.finish("stopped")
    return open_run(folder)


@pytest.mark.parametrize("step", [None, 71, 65, 60, 59, 25])
def test_tile_and_chart_say_the_same_of_every_step(tmp_path: Path, step: int | None) -> None:
    run = stopped(tmp_path / "a")
    entry = FIGURES["churn"]
    tile = tiles_of("routing", run, At(0, step))[0]
    trace = entry.draw.spec(**entry.read(run, At(0, step, None, 20)))["data"][0]
    shown = trace["y"][np.searchsorted(trace["x"], step or 71, "right") - 1]
    assert tile.value == f"{shown:.1f}" == ("26.6" if (step or 71) >= 60 else "50.0")
    assert trace["mode"] == "lines"
    assert trace["line"]["shape"] == "hv"
    ended = entry.draw.spec(**entry.read(run, At(0, None, None, 20)))["layout"]["annotations"]
    assert any("26.6 %" in note["text"] for note in ended)


def test_the_tiles_say_over_which_steps(tmp_path: Path) -> None:
    churn, _, saturation, *_ = tiles_of("routing", stopped(tmp_path / "a"))
    assert churn.lines == ("17 of 64 tokens changed expert", "steps 40 to 60")
    assert churn.word == "Restless"
    assert (saturation.value, saturation.lines) == ("0.75", ("of top 2 kept", "steps 40 to 60"))
    assert "20 steps" in FIGURES["churn"].draw.spec(np.arange(3), np.zeros(3), 20)["layout"]["title"]["text"]


def test_before_it_is_measured_it_is_a_dash_and_not_settled(tmp_path: Path) -> None:
    early = tiles_of("routing", stopped(tmp_path / "a", last=19), At(0))[0]
    assert (early.value, early.word, early.lines) == ("–", "", ("first at step 20",))


def test_looks_by_the_clock_are_dots_without_a_verdict(tmp_path: Path) -> None:
    """As the records of earlier versions hold them; tile and chart agree there too."""
    run = stopped(tmp_path / "a", every=0)
    tile = tiles_of("routing", run)[0]
    assert (tile.value, tile.word, tile.lines[1]) == ("26.6", "", "between two looks by the clock")
    entry = FIGURES["churn"]
    spec = entry.draw.spec(**entry.read(run, At(0, None, None, 100)))
    assert spec["data"][0]["mode"] == "markers"
    assert spec["data"][0]["y"][-1] == pytest.approx(100 * CHURN)
    assert "no line" in spec["layout"]["title"]["text"]


def test_a_record_that_does_not_say_over_how_many_steps_was_looked_at_by_the_clock(tmp_path: Path) -> None:
    record(tmp_path / "a")
    db = sqlite3.connect(tmp_path / "a" / "run.db")
    text, probe = db.execute("SELECT about, probe FROM run").fetchone()
    about = json.loads(text)
    del about["config"]["churn_every"]
    text = json.dumps(about)
    db.execute("UPDATE run SET about = ?, chain = ?", (text, link(START, text, probe)))
    db.commit()
    db.close()
    old = open_run(tmp_path / "a")
    assert old.config.churn_every == 0
    assert set(left_out(old)) == {"seconds", "churn", "saturation"}
    assert not {column.stat for column in compared(old)} & {"churn", "saturation"}
    feed = join((tmp_path / "a").absolute(), viewer := object())
    assert FIGURES["saturation"].read(feed, At(0, None, None, None))["steps"].tolist() == [20, 40, 60]
    leave_all(viewer)
