"""The page of all runs: what trains, what is written about a run, stopping, comparing and deleting, by AppTest."""

import os
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from moe_core.dashboard import component, managing
from moe_core.dashboard.component import Chosen
from moe_core.runs import RunWriter, change_notes, create_run, open_run, read_notes
from moe_core.runs.branch import branch_off
from moe_core.schema import Config, Knobs
from tests.dashboard.test_choosing import made
from tests.dashboard.test_pages import MAIN, parts


def page(*chosen: str, **state: Any) -> AppTest:
    app = AppTest.from_file(MAIN, default_timeout=30)
    app.switch_page(str(Path(MAIN).parents[2] / "pages" / "runs.py"))
    app.session_state[managing.CHOSEN] = Chosen(chosen)
    for name, value in state.items():
        app.session_state[name] = value
    app.run()
    assert not app.exception
    return app


def text_of(app: AppTest) -> str:
    return "\n".join(one.value for one in [*app.markdown, *app.error]).replace("\\", "")


def training(runs: Path, name: str, steps: int = 100) -> RunWriter:
    return create_run(runs / name, Config.for_task("plane", num_experts=4, steps=steps), Knobs())


def test_without_runs_it_says_so(runs: Path) -> None:
    app = page()
    assert "Nothing trains now." in text_of(app)
    assert parts(app)["runs"]["chosen"] == {"ids": [], "nth": 0}


def test_what_trains_is_listed_lessons_too_and_all_of_it_is_stopped_at_once(runs: Path) -> None:
    writers = [training(runs, "a"), training(runs, "lesson-3-1128-0900-abcd", 0)]
    made(runs, "done")
    change_notes(runs / "a", name="my *best*")
    app = page()
    assert "**2 not ended:** lesson 3 (step 0, until stopped), my *best* (0 of 100 steps)" in text_of(app)
    app.button(key="runs-stop-all").click().run()
    asked = {run: [c.name for c in open_run(runs / run).commands()] for run in ("a", "lesson-3-1128-0900-abcd", "done")}
    assert asked == {"a": ["stop"], "lesson-3-1128-0900-abcd": ["stop"], "done": []}
    for writer in writers:
        writer.finish("stopped")


def test_name_note_and_tags_are_written_as_they_are_left(runs: Path) -> None:
    made(runs, "a")
    change_notes(runs / "a", add=["old", "kept"])
    app = page("a")
    app.text_input(key="runs-name-a").set_value("even <b>").run()
    app.text_area(key="runs-note-a").set_value("two\nlines").run()
    change_notes(runs / "a", add=["by another"])
    app.multiselect(key="runs-tags-a").set_value(["kept", "new"]).run()
    notes = read_notes(runs / "a")
    assert (notes.name, notes.note) == ("even <b>", "two\nlines")
    assert set(notes.tags) >= {"kept", "new"}
    assert "old" not in notes.tags
    assert app.text_input(key="runs-name-a").value == "even <b>"


def test_several_are_tagged_and_compared(runs: Path) -> None:
    for name in "abc":
        made(runs, name)
    app = page("a", "b", "c", "gone")
    assert "3 runs are chosen." in text_of(app)
    app.text_input(key="runs-tag").set_value("paper").run()
    assert {name: read_notes(runs / name).tags for name in "abc"} == dict.fromkeys("abc", ("paper",))
    assert app.text_input(key="runs-tag").value == ""
    app.button(key="runs-compare").click().run()
    assert dict(app.query_params) == {"run": "a", "with": "b,c"}


def test_runs_of_two_tasks_are_not_compared(runs: Path) -> None:
    from tests.figures.record import record

    made(runs, "a")
    record(runs / "b").close()
    assert page("a", "b").button(key="runs-compare").disabled


def test_deleting_says_what_goes_asks_once_and_shows_another_run(runs: Path) -> None:
    parent = made(runs, "a")
    os.close(branch_off(parent, 5, {}, runs / "b"))
    parent.close()
    app = page("a", run="a")
    app.button(key="runs-doom").click().run()
    assert "Delete for ever?" in text_of(app)
    assert "its fork (b) can still be read and trained" in text_of(app)
    app.button(key="runs-no").click().run()
    assert (runs / "a").exists()
    app.button(key="runs-doom").click().run()
    app.button(key="runs-yes").click().run()
    assert not app.exception
    assert sorted(path.name for path in runs.iterdir()) == ["b"]
    assert parts(app)["panel"]["run"] == "b"
    assert [box.key for box in app.button] == []


def test_other_runs_that_are_chosen_end_the_question(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {managing.CHOSEN: Chosen(["a"]), managing.DELETE: ["a"]}
    monkeypatch.setattr(managing.st, "session_state", state)
    managing.choose(Chosen(["a", "b"], 1))
    assert state == {managing.CHOSEN: Chosen(["a", "b"], 1)}


def test_a_run_that_trains_cannot_be_deleted(runs: Path) -> None:
    writer = training(runs, "a")
    made(runs, "b")
    app = page("a", "b")
    assert app.button(key="runs-doom").disabled
    app.session_state[managing.DELETE] = ["a", "b"]  # it began to train after the question was asked
    app.run().button(key="runs-yes").click().run()
    assert "being trained by another process; stop that one first" in text_of(app)
    assert [path.name for path in runs.iterdir()] == ["a"]
    writer.finish("stopped")


def test_what_cannot_be_written_is_said_and_a_file_that_cannot_be_read_too(runs: Path) -> None:
    made(runs, "a")
    (runs / "a" / "notes.json").write_text("[]")
    app = page("a")
    assert "notes.json of run a cannot be read: it is not a JSON object; delete that file to begin anew" in text_of(app)
    app.text_input(key="runs-name-a").set_value("b").run()
    assert text_of(app).count("delete that file to begin anew") == 2
    assert (runs / "a" / "notes.json").read_text() == "[]"


def test_a_name_that_is_pressed_opens_the_run_on_live(runs: Path) -> None:
    made(runs, "a")
    app = page(**{"runs-open": "a"})
    assert dict(app.query_params) == {"run": "a"}
    assert parts(app).keys() == {"panel", "charts"}


@pytest.mark.parametrize(
    "sent",
    ["a", None, 3, ["a"], {"ids": ["a"]}, {"ids": ["a"], "nth": "1"}]
    + [{"ids": ids, "nth": 1} for ids in ("a", ["a", "../b"], [1], {"a": 1}, [["a"]])],
)
def test_only_names_of_runs_are_chosen(sent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    mounted: dict[str, Any] = {}
    monkeypatch.setattr(component, "_render", lambda **given: mounted.update(given))
    monkeypatch.setattr(component.st, "session_state", {"runs": type("Sent", (), {"chosen": sent})})
    component.runs(Chosen(), lambda run: None, kept.append)
    mounted["on_chosen_change"]()
    assert kept == []
