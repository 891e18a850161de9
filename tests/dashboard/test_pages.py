"""The pages' Streamlit half by AppTest: which run is looked at, and what is mounted for it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from moe_core.runs import Batch, RunWriter, StoreError, create_run
from moe_core.schema import Config, Knobs, layout
from moe_core.sweep import open_sweep

MAIN = str(Path(__file__).parents[2] / "moe_core" / "dashboard" / "main.py")
CONFIG = Config(num_experts=4, layers=2)


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


def test_without_a_run_four_cards_invite(runs: Path) -> None:
    app = page()
    assert not app.exception
    assert [b.label for b in app.button] == ["Text", "Digits", "Plane", "Watch an example"]
    (way,) = [one.proto for one in app.get("page_link")]
    assert (way.page, way.label.startswith("New to this?")) == ("learn", True)


def test_the_command_of_a_card_is_not_said_below_the_form_that_configures_another(runs: Path) -> None:
    app = page()
    assert app.caption[-1].value == "What *Text* starts, from a terminal:"
    app.session_state["configure"] = True
    app.run()
    assert [one.value for one in app.caption if "from a terminal" in one.value] == [
        "The same from a terminal:"
    ]  # the form's


def test_the_fourth_card_starts_the_example_of_a_watched_model(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spawned: list[list[str]] = []
    monkeypatch.setattr("moe_core.runs.runner.spawn", lambda name, words, log, **_: spawned.append([name, *words]))
    monkeypatch.setattr("moe_core.dashboard.cards.find_spec", lambda name: name)
    app = page()
    assert app.code[0].value.startswith("from moe_core import watch\nlive = watch(model, ")
    app.button(key="start-demo").click().run()
    assert not app.exception
    ((name, *words),) = spawned
    assert words == ["watch-demo", "--runs", str(runs), "--run-id", name]
    assert (runs / name).is_dir()
    assert parts(app)["panel"]["run"] == name
    assert parts(app)["panel"]["knobs"] == []  # which it will have is not known yet
    assert (app.query_params["run"], app.query_params["layer"]) == (name, "4")


def test_without_transformers_the_example_is_off_and_says_what_to_install(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moe_core.dashboard.cards.find_spec", lambda name: None if name == "transformers" else name)
    app = page()
    assert app.button(key="start-demo").disabled
    assert app.caption[0].value == "The example needs transformers: `pip install 'moescope[watch-demo]'`"


def parts(app: AppTest) -> dict[str, dict[str, Any]]:
    """The data of the mounted components, by part."""
    found = [json.loads(one.proto.json) for one in app.get("bidi_component")]
    return {data["part"]: data for data in found}


def test_a_run_has_its_panel_and_its_charts(writer: RunWriter) -> None:
    app = page("text-a")
    assert not app.exception
    told = parts(app)
    assert (told["panel"]["run"], told["charts"]["run"], told["charts"]["page"]) == ("text-a", "text-a", "live")
    assert told["panel"]["chosen"]["name"] == "text-a"
    assert told["charts"]["figures"] == ["selection_share", "balance_now", "balance", "loss", "knobs"]


def test_without_a_link_the_newest_run_is_shown_and_the_link_made(writer: RunWriter) -> None:
    app = page()
    assert parts(app)["panel"]["run"] == "text-a"
    assert parts(app)["panel"]["link"]["words"] == {"run": "text-a", "lesson": None}
    assert "run" not in app.query_params  # by the script it would be a step that Back undoes


def test_a_link_to_a_new_run_shows_the_cards_beside_others(writer: RunWriter) -> None:
    app = page("new")
    assert [b.label for b in app.button] == ["Text", "Digits", "Plane", "Watch an example"]
    panel = parts(app)["panel"]
    assert panel["run"] is None
    assert {knob["name"]: knob["value"] for knob in panel["knobs"]}["w_load"] == 0


def test_a_run_that_starts_is_waited_for(runs: Path) -> None:
    (runs / "text-z").mkdir()
    app = page("text-z")
    assert parts(app)["panel"]["run"] == "text-z"
    assert "Starting the trainer" in app.caption[0].value


@pytest.mark.parametrize("page", ["live", "routing", "batch"])
def test_a_card_shows_the_empty_page_of_its_run_at_once_and_says_nothing(
    runs: Path, monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    def start(config: Config, knobs: Knobs, who: str, **_: Any) -> str:
        (runs / "plane-new").mkdir()
        return "plane-new"

    monkeypatch.setattr("moe_core.dashboard.starting.start_trainer", start)
    app = AppTest.from_file(MAIN, default_timeout=30).run()
    if page != "live":
        app.switch_page(str(Path(MAIN).parents[2] / "pages" / f"{page}.py")).run()
    app.button(key="start-plane").click().run()
    assert not app.exception
    told = parts(app)
    assert (told["charts"]["run"], told["charts"]["probe"], told["charts"]["page"]) == ("plane-new", "points", page)
    assert told["panel"]["chosen"]["what"] == "plane · 8 experts"
    assert not app.caption
    create_run(runs / "plane-new", Config.for_task("plane"), Knobs()).finish("stopped")
    app.run()
    assert len(app.get("select_slider")) == (4 if page == "batch" else 0)  # what is chosen there needs the run


def test_a_run_that_is_not_there_is_said_and_others_stay(writer: RunWriter) -> None:
    app = page("nobody")
    assert "is no run" in app.error[0].value
    assert [b.label for b in app.button][-4:] == ["Text", "Digits", "Plane", "Watch an example"]


def test_of_many_runs_and_sweeps_it_is_said_how_many_are_not_named(runs: Path) -> None:
    for i in range(9):
        create_run(runs / f"text-{i}", CONFIG, Knobs()).finish("finished")
    assert page("nobody").error[0].value.endswith(f"there are: {', '.join(f'text-{i}' for i in range(8))} and 1 more")
    for i in range(11):
        (runs / f"s{i}").mkdir()
        (runs / f"s{i}" / "sweep.json").touch()
    with pytest.raises(StoreError, match=r"there are: s.* and 3 more$"):
        open_sweep("nobody", runs)
