"""The pages' Streamlit half by AppTest: states, sliders as views of the store, text of users as text."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from moe_core.runs import Batch, Run, RunWriter, create_run, open_run
from moe_core.schema import Config, Knobs, layout

MAIN = str(Path(__file__).parents[2] / "moe_core" / "dashboard" / "main.py")
CONFIG = Config(num_experts=4, layers=2)

pytestmark = pytest.mark.filterwarnings("ignore")  # streamlit's own, under AppTest


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOE_RUNS", str(tmp_path))
    return tmp_path


@pytest.fixture
def writer(runs: Path) -> Iterator[RunWriter]:
    writer = create_run(runs / "text-a", CONFIG, Knobs(w_load=0.0))
    writer.commit(Batch(1, np.ones((5, sum(c.width for c in layout(2, 4))), np.float32), state="training"))
    yield writer
    writer.finish("finished")


def page(run: str | None = None) -> AppTest:
    app = AppTest.from_file(MAIN, default_timeout=30)
    if run:
        app.query_params["run"] = run
    return app.run()


def text_of(app: AppTest) -> str:
    return " ".join(str(e.proto.body) for e in app.get("html"))


def open_writer_run(writer: RunWriter) -> Run:
    return open_run(writer.folder)


def test_without_a_run_three_cards_invite(runs: Path) -> None:
    app = page()
    assert not app.exception
    assert [b.label for b in app.button] == ["Text", "Digits", "Plane"]


def test_a_training_run_has_its_knobs_by_name(writer: RunWriter) -> None:
    app = page("text-a")
    assert not app.exception
    assert [s.label for s in app.slider] == ["noise", "k, experts per token"]
    assert [s.label for s in app.select_slider] == ["w_importance", "w_load", "learning rate", "speed limit"]
    assert (app.slider[0].value, app.slider[1].max, app.select_slider[1].value) == (1.0, 4, 0.0)
    assert "Training" in text_of(app)
    assert {"Pause", "Step", "Stop"} <= {b.label for b in app.button}


def test_a_slider_writes_when_turned_and_only_then(writer: RunWriter) -> None:
    app = page("text-a")
    run = open_writer_run(writer)
    assert run.knob_changes() == []
    app.slider[0].set_value(0.5).run()
    assert [(c.name, c.value, c.who) for c in run.knob_changes()] == [("noise", 0.5, "dashboard")]
    app.run()
    assert len(run.knob_changes()) == 1
    run.close()


def test_a_slider_shows_what_another_hand_turned(writer: RunWriter) -> None:
    app = page("text-a")
    run = open_writer_run(writer)
    run.turn(who="someone", noise=2.5, w_load=0.15)
    app.run()
    assert app.slider[0].value == 2.5
    assert app.select_slider[1].value == 0.15  # also where it lies between two stops
    assert "w_load 0 → 0.15" in text_of(app)
    assert len(run.knob_changes()) == 2
    run.close()


def test_the_buttons_ask_the_trainer(writer: RunWriter) -> None:
    app = page("text-a")
    next(b for b in app.button if b.label == "Pause").click().run()
    run = open_writer_run(writer)
    assert [c.name for c in run.commands()] == ["pause"]
    writer.commit(Batch(6, np.empty((0, 1), np.float32), state="paused"))
    app.run()
    assert "Resume" in {b.label for b in app.button}
    run.close()


def test_an_ended_run_has_greyed_knobs(runs: Path) -> None:
    create_run(runs / "text-b", CONFIG, Knobs()).finish("finished")
    app = page("text-b")
    assert "Finished" in text_of(app)
    assert all(s.disabled for s in [*app.slider, *app.select_slider])
    assert "Pause" not in {b.label for b in app.button}


def test_a_run_that_is_not_there_is_said_and_others_stay(writer: RunWriter) -> None:
    app = page("nobody")
    assert "is no run" in app.error[0].value
    assert [b.label for b in app.button][-3:] == ["Text", "Digits", "Plane"]


def test_one_expert_has_no_k_to_turn(runs: Path) -> None:
    create_run(runs / "text-c", Config(num_experts=1), Knobs(k=1)).finish("finished")
    app = page("text-c")
    assert not app.exception
    assert [s.label for s in app.slider] == ["noise"]
