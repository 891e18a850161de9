"""A class by AppTest: what the teacher's tab shows on Learn, the pages of those who only look open too, for as long as they follow."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from moe_core.dashboard import classroom, gate, shared, starting
from moe_core.dashboard.address import LOOKS, TURNS, Door
from moe_core.dashboard.viewer import Viewer
from tests.dashboard.test_gate import role  # noqa: F401 - a fixture
from tests.dashboard.test_learn import begun, html, link, page, parts, stages

Become = Callable[[str], None]


@pytest.fixture
def become(role: Become, runs: Path, monkeypatch: pytest.MonkeyPatch) -> Become:  # noqa: F811
    """Says who opens and runs pages from now on."""
    monkeypatch.setattr(classroom, "class_link", lambda door, url: f"http://192.0.2.7/learn?moe_token={door.look}")
    monkeypatch.setattr(classroom, "_shown", None)
    return role


def said(app: AppTest) -> str:
    return " ".join(str(one.value) for one in (*app.caption, *app.markdown, *app.code, *app.error))


def opened(become: Become, who: str, **words: str) -> AppTest:
    become(who)
    return page(**words)


def again(become: Become, who: str, app: AppTest) -> AppTest:
    """The page as its script draws it next, for a change of what the class is shown."""
    become(who)
    return app.run()


@pytest.fixture
def teacher(become: Become, runs: Path) -> AppTest:
    """A tab that shows the class lesson 1, with its run."""
    begun(runs, "one", 1)
    begun(runs, "six", 6)
    app = opened(become, TURNS, lesson="1", run="one")
    assert "http://192.0.2.7/learn?moe_token=glance" in said(app)
    app.button(key="class-lead").click().run()
    assert not app.exception
    return app


def turn_to(become: Become, teacher: AppTest, **words: str) -> None:
    teacher.query_params.update(words)
    again(become, TURNS, teacher)


def test_who_looks_waits_for_what_the_class_is_shown_and_follows_it(become: Become, teacher: AppTest) -> None:
    late = opened(become, LOOKS)
    assert (late.header[0].value, parts(late)["charts"]["run"]) == ("1. The layer", "one")
    assert "This page follows the class." in said(late)
    assert "For the class" not in said(late)
    assert {can for _, can in stages(late)} == {False}
    assert link(late) == {}  # so that it follows on
    turn_to(become, teacher, lesson="6", run="six")
    again(become, LOOKS, late)
    assert (late.header[0].value[:2], parts(late)["charts"]["run"], link(late)) == ("6.", "six", {"layer": "2"})
    assert "CV(load) rose to 3.87" in html(late)  # the check, on the class's run
    become(TURNS)
    teacher.button(key="class-stop").click().run()
    again(become, LOOKS, late)
    assert (late.header[0].value[:2], parts(late)["charts"]["run"]) == ("6.", "six")  # it keeps what it sees
    assert "This page follows the class; the teacher shows nothing new now." in said(late)


def test_following_is_left_by_another_lesson_and_taken_up_again(become: Become, teacher: AppTest) -> None:
    viewer = opened(become, LOOKS)
    viewer.button_group(key="lesson-row-1").set_value(3).run()
    assert (viewer.header[0].value[:2], link(viewer)) == ("3.", {"lesson": "3"})
    turn_to(become, teacher, lesson="6", run="six")
    again(become, LOOKS, viewer)
    assert viewer.header[0].value[:2] == "3."
    assert "The class is at lesson 6." in said(viewer)
    viewer.button(key="class-follow").click().run()
    assert (viewer.header[0].value[:2], link(viewer)) == ("6.", {"layer": "2"})


def test_all_lessons_are_read_without_leaving_the_class(become: Become, teacher: AppTest) -> None:
    viewer = opened(become, LOOKS)
    viewer.button(key="read-1").click().run()
    viewer.button(key="read-back").click().run()
    assert (viewer.header[0].value, link(viewer)) == ("1. The layer", {})
    assert "This page follows the class." in said(viewer)


def test_the_teacher_starts_a_lesson_for_the_class_and_sees_how_many_look(
    become: Become, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(config: Any, knobs: Any, who: str, **_: Any) -> str:
        begun(runs, "begun", 5)
        return "begun"

    monkeypatch.setattr(starting, "start_trainer", start)
    teacher = opened(become, TURNS, lesson="5")
    assert teacher.button(key="class-lead").label == "Start for the class"
    teacher.button(key="class-lead").click().run()
    teacher.run()
    assert link(teacher) == {"lesson": "5", "run": "begun"}
    assert "**0 pages look** at this run now" in said(teacher)
    viewers = [Viewer(looks=True), Viewer(looks=True), Viewer()]
    for viewer in viewers:
        shared.join((runs / "begun").absolute(), viewer)
    assert "**2 pages look** at this run now" in said(teacher.run())
    for viewer in viewers:
        shared.leave_all(viewer)
    assert parts(opened(become, LOOKS))["charts"]["run"] == "begun"


def test_a_tab_that_is_loaded_again_goes_on_teaching_and_another_does_not(become: Become, teacher: AppTest) -> None:
    other = opened(become, TURNS, lesson="6", run="six")
    assert other.button(key="class-lead").label == "Show to the class"
    loaded = opened(become, TURNS, lesson="1", run="one")
    assert "The class sees what this tab shows" in said(loaded)
    turn_to(become, loaded, lesson="6", run="six")
    assert parts(opened(become, LOOKS))["charts"]["run"] == "six"


def test_without_a_token_there_is_no_class(become: Become, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "DOOR", Door())
    app = opened(become, TURNS)
    assert not [button for button in app.button if str(button.key).startswith("class-")]
