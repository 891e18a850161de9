"""The Learn page by AppTest: which run is a lesson's, what its buttons do, what its check says, what the panel shows."""

import fcntl
import json
import shutil
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from moe_core.dashboard import learn, progress, starting
from moe_core.dashboard.progress import Progress, Reading
from moe_core.lessons import LESSONS, Verdict
from moe_core.runs import Batch, RunWriter, create_run, open_run
from moe_core.runs.on_devices import NAME
from moe_core.schema import Config, Knobs, layout
from tests.figures.test_catalog import write_on_devices

ROOT = Path(__file__).parents[2]


@pytest.fixture
def started(runs: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Config, Knobs, str]]:
    """What the page would have started, in place of a process: a folder without a run, as while a trainer loads torch."""
    calls: list[tuple[Config, Knobs, str]] = []

    def start(config: Config, knobs: Knobs, who: str, **_: Any) -> str:
        calls.append((config, knobs, who))
        (runs / f"started-{len(calls)}").mkdir()
        return f"started-{len(calls)}"

    monkeypatch.setattr(starting, "start_trainer", start)
    return calls


def write(writer: RunWriter, first: int, load: Any, **batch: Any) -> None:
    """50 steps in which each expert has this load and every other statistic is 1."""
    config = writer_config(writer)
    columns = layout(config.layers, config.num_experts)
    rows = np.ones((50, sum(column.width for column in columns)), np.float32)
    for column in columns:
        if column.stat == "load":
            rows[:, column.start : column.start + column.width] = load
    writer.commit(Batch(first, rows, state="training", **batch))


def writer_config(writer: RunWriter) -> Config:
    run = open_run(writer.folder)
    run.close()
    return run.config


def begun(runs: Path, name: str, number: int) -> RunWriter:
    """A run that began as the lesson begins; in those of the text model the gate has collapsed onto one expert."""
    config, knobs, _ = learn.first_of(LESSONS[number - 1])
    writer = create_run(runs / name, config, knobs)
    write(writer, 1, [1.0] + [0.0] * (config.num_experts - 1))
    return writer


def page(**link: str) -> AppTest:
    app = AppTest.from_file(str(ROOT / "moe_core" / "dashboard" / "main.py"), default_timeout=30)
    app.query_params.update(link)
    return app.run().switch_page(str(ROOT / "pages" / "learn.py")).run()


def parts(app: AppTest) -> dict[str, dict[str, Any]]:
    """The data of the mounted components, by part."""
    found = [json.loads(one.proto.json) for one in app.get("bidi_component")]
    return {data["part"]: data for data in found}


def link(app: AppTest) -> dict[str, str]:
    """The page's link, with what the panel puts into it and takes out of it in the browser."""
    found = {name: value if isinstance(value, str) else value[-1] for name, value in app.query_params.items()}
    found |= parts(app)["panel"]["link"]["words"]
    return {name: value for name, value in found.items() if value is not None}


def html(app: AppTest) -> str:
    return " ".join(str(one.proto.body) for one in app.get("html"))


def stages(app: AppTest) -> list[tuple[str, bool]]:
    """Buttons of the stages: label, and whether it can be pressed."""
    return [(button.label, not button.disabled) for button in app.button if str(button.key).startswith("stage-")]


@pytest.mark.parametrize("number", range(1, 9))
def test_without_a_run_a_lesson_invites_to_start_one_and_draws_nothing(runs: Path, number: int) -> None:
    app = page(lesson=str(number))
    assert not app.exception
    lesson = LESSONS[number - 1]
    assert app.header[0].value == f"{number}. {lesson.title}"
    assert app.latex[0].value.strip("$\n ") == lesson.formula
    assert [can for _, can in stages(app)] == [True] + [False] * (len(lesson.stages) - 1)
    assert "charts" not in parts(app)
    assert f"Press “{lesson.stages[0].button}”. A trainer" in html(app)  # on a phone the button is not at left
    panel = parts(app)["panel"]
    assert panel["run"] is None
    assert [knob["name"] for knob in panel["knobs"]] == panel["only"] == list(lesson.shown)


def test_other_runs_are_not_taken_for_the_lessons(runs: Path) -> None:
    begun(runs, "a", 6).finish("finished")
    assert "charts" not in parts(page(lesson="1"))
    app = page(lesson="1", run="a")
    assert "a did not begin as this lesson does" in app.info[0].value
    assert "charts" not in parts(app)
    assert link(app) == {"lesson": "1"}
    assert "is no run" in page(lesson="1", run="nobody").error[0].value


def test_the_first_stage_starts_its_run_and_puts_it_into_the_link(started: list[tuple[Config, Knobs, str]]) -> None:
    app = page(lesson="5")
    app.button(key="stage-5-0").click().run()
    ((config, knobs, who),) = started
    assert (config.task, config.num_experts, knobs.k, who) == ("plane", 64, 2, "lesson 5")
    assert link(app) == {"lesson": "5", "run": "started-1"}
    assert (parts(app)["charts"]["run"], parts(app)["charts"]["probe"]) == ("started-1", "points")
    assert "Starting the trainer" in html(app)
    assert [can for _, can in stages(app)] == [True, False, False]


@pytest.mark.parametrize("number", range(1, 9))
def test_a_lesson_on_text_begins_in_the_layer_that_collapses_first(
    started: list[tuple[Config, Knobs, str]], number: int
) -> None:
    app = page(lesson=str(number))
    app.button(key=f"stage-{number}-0").click().run()
    assert link(app).get("layer") == ("2" if started[0][0].task == "text" else None)


def test_a_lesson_from_collapse_to_recovery(runs: Path) -> None:
    writer = begun(runs, "a", 7)
    app = page(lesson="7", run="a")
    assert parts(app)["charts"]["figures"] == list(LESSONS[6].figures)
    assert parts(app)["panel"]["only"] == list(LESSONS[6].shown)
    assert 'data-check="yes"' in html(app)
    assert "CV(load) rose to 3.87, mean of 20 steps: the gate" in html(app)
    assert [can for _, can in stages(app)] == [True, True, False]
    assert [app.button(key=f"stage-7-{at}").proto.icon for at in range(3)] == [":material/check:", "", ""]

    app.button(key="stage-7-1").click().run()
    (change,) = open_run("a").knob_changes()
    assert (change.name, change.value, change.who) == ("w_load", 0.1, "lesson 7")
    assert 'data-check="wait"' in html(app)
    write(writer, 51, 1.0, applied=[(change.id, 51)])
    app.run()
    assert "CV(load) is 0.00 with w_load 0.1, mean of 20 steps" in html(app)
    assert [app.button(key=f"stage-7-{at}").proto.icon for at in range(3)] == [":material/check:"] * 2 + [""]
    assert [can for _, can in stages(app)] == [True, True, True]
    assert "In your run, over the last 20 steps, CV(load) is 0.00" in " ".join(text.value for text in app.markdown)

    write(writer, 101, [1.0] + [0.0] * 15)
    assert "At step 100: CV(load) is 0.00" in html(app.run())  # it did happen, whatever comes later
    writer.finish("stopped")
    assert [can for _, can in stages(app.run())] == [True, False, False]
    assert not [one.label for one in app.button if one.label.startswith("Next")]  # its last stage is still to come


def test_what_passed_before_this_server_began_is_read_from_the_record(runs: Path) -> None:
    """A stage is checked as the run stood when the next one took effect: with the knobs and the steps of then."""
    writer, run = begun(runs, "a", 7), open_run("a")
    for first, load, knobs in ((51, 1.0, {"w_load": 0.1}), (101, [1.0] + [0.0] * 15, {"noise": 0.0})):
        run.turn(who="lesson 7", **knobs)
        write(writer, first, load, applied=[(run.knob_changes()[-1].id, first)])
    run.turn(who="dashboard", w_load=0.0)
    assert progress.read_run("a", 7, 1, fresh=True).progress.happened == {0, 1}
    app = page(lesson="7", run="a")
    assert [app.button(key=f"stage-7-{at}").proto.icon for at in range(3)] == [":material/check:"] * 2 + [""]
    other = begun(runs, "b", 7)  # in this one the second stage did not come to pass
    for first, knobs in ((51, {"w_load": 0.1}), (101, {"noise": 0.0})):
        open_run("b").turn(who="lesson 7", **knobs)
        write(other, first, [1.0] + [0.0] * 15, applied=[(open_run("b").knob_changes()[-1].id, first)])
    assert progress.read_run("b", 7, 1, fresh=True).progress.happened == {0}
    for one in (writer, other):
        one.finish("stopped")


def test_a_lesson_that_is_done_leads_to_the_next(runs: Path) -> None:
    writer = begun(runs, "a", 6)
    app = page(lesson="6", run="a")
    app.button(key="stage-6-1").click().run()
    (change,) = open_run("a").knob_changes()
    columns = layout(writer_config(writer).layers, writer_config(writer).num_experts)
    even = np.ones((50, sum(column.width for column in columns)), np.float32)
    writer.commit(Batch(51, even, state="training", applied=[(change.id, 51)]))
    following = app.run().button(key="next-6")
    assert (following.label, following.proto.type) == ("Next: 7. Load loss", "primary")
    following.click().run()
    assert app.header[0].value == "7. Load loss"
    assert "run" not in link(app)
    assert not app.info  # the run that is left behind is no matter
    writer.finish("stopped")


def test_a_run_of_another_lesson_is_none_of_this_ones(runs: Path) -> None:
    writer = begun(runs, "a", 6)
    assert parts(page(lesson="7", run="a"))["charts"]["run"] == "a"
    open_run("a").turn(who="lesson 6", w_importance=1.0)
    assert "charts" not in parts(page(lesson="7", run="a"))
    assert parts(page(lesson="6", run="a"))["charts"]["run"] == "a"
    writer.finish("stopped")


def test_the_check_reads_the_layer_of_the_link(runs: Path) -> None:
    writer = begun(runs, "a", 6)
    config = writer_config(writer)
    rows = np.ones((50, sum(column.width for column in layout(config.layers, config.num_experts))), np.float32)
    for column in layout(config.layers, config.num_experts):
        if column.stat == "load" and column.layer == 0:
            rows[:, column.start : column.start + column.width] = [1.0] + [0.0] * 15
    writer.commit(Batch(51, rows, state="training"))
    assert "CV(load) rose to 3.87" in html(page(lesson="6", run="a"))
    for named in ("2", "99"):
        assert "CV(load) is 0.00" in html(page(lesson="6", run="a", layer=named))
    assert "CV(load) rose" in html(page(lesson="6", run="a", layer="x"))
    writer.finish("stopped")


def test_the_row_leads_to_another_lesson_and_back_to_its_run(runs: Path) -> None:
    writer = begun(runs, "a", 6)
    app = page(lesson="6", run="a")
    app.button_group(key="lesson-row").set_value(2).run()
    assert app.header[0].value == "2. Softmax gating"
    assert "charts" not in parts(app)
    app.button_group(key="lesson-row").set_value(6).run()
    assert parts(app)["charts"]["run"] == "a"
    assert link(app)["run"] == "a"
    writer.finish("stopped")


def test_a_new_run_stops_the_lesson_run_before_it(runs: Path, started: list[tuple[Config, Knobs, str]]) -> None:
    writer = begun(runs, "a", 6)
    app = page(lesson="6", run="a")
    app.button_group(key="lesson-row").set_value(1).run()
    app.button(key="stage-1-0").click().run()
    assert [(command.name, command.who) for command in open_run("a").commands()] == [("stop", "lesson 1")]
    assert len(started) == 1
    writer.finish("stopped")


def test_a_wrong_lesson_in_the_link_is_the_first_and_flashcards_can_be_had(runs: Path) -> None:
    for wrong in ("0", "9", "x"):
        app = page(lesson=wrong)
        assert app.header[0].value == "1. The layer"
        assert link(app) == {"lesson": "1"}
    assert [one.proto.label for one in app.get("download_button")] == ["Flashcards"]


def test_a_third_stage_has_its_own_check(runs: Path) -> None:
    writer = begun(runs, "a", 7)
    run = open_run("a")
    for knobs in ({"w_load": 0.1}, {"noise": 0.0}):
        run.turn(who="lesson 7", **knobs)
    write(writer, 51, 1.0, applied=[(1, 51), (2, 51)])
    assert "The noise still spreads each logit by 1.00" in html(page(lesson="7", run="a"))
    writer.finish("stopped")


def test_a_stage_that_measures_starts_it_and_is_reached_by_what_is_in_the_file(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, began = begun(runs, "a", 5), list[Path]()
    monkeypatch.setattr(learn, "start_on_devices", began.append)
    app = page(lesson="5", run="a")
    measure, turn = (next(b for b in app.button if b.key == f"stage-5-{at}") for at in (1, 2))
    assert (measure.disabled, turn.disabled) == (False, True)
    measure.click().run()
    assert began == [runs / "a"]
    write_on_devices(open_run("a"))
    app = page(lesson="5", run="a")
    assert "From one batch an expert got" not in html(app)  # its last number of devices is not timed
    with (runs / "a" / NAME).open("a") as file:
        file.write(
            json.dumps({"event": "speed", "devices": 4, "rows_per_second": [4e5]})
            + "\n"
            + json.dumps({"event": "end"})
            + "\n"
        )
    app = page(lesson="5", run="a")
    assert (
        "from the batches of 4 devices 80 (at least 40, at most 120). So fed, the experts of one device worked through 4.0 times"
        in unescape(html(app))
    )
    assert not next(b for b in app.button if b.key == "stage-5-2").disabled
    writer.finish("stopped")


@pytest.mark.parametrize(("measuring", "type"), [(False, "primary"), (True, "secondary")])
def test_the_next_lesson_does_not_look_ready_while_this_one_measures(
    runs: Path, monkeypatch: pytest.MonkeyPatch, measuring: bool, type: str
) -> None:
    """The last check of lesson 5 passes by its run's own steps, before the devices are measured again."""
    writer = begun(runs, "a", 5)
    done = Progress(True, 2, True, frozenset({0, 1, 2}), measuring)
    found = Reading(done, Verdict(True, "fed"), "", (0.5, "2 of 3"), runs / "a")
    monkeypatch.setattr(learn, "read_run", lambda *_, **__: found)
    following = page(lesson="5", run="a").button(key="next-5")
    assert (following.proto.type, following.disabled) == (type, False)  # who does not want to wait goes on
    writer.finish("stopped")


@pytest.fixture
def measured(runs: Path) -> Iterator[Path]:
    """A run of lesson 5 that somebody measures on devices: two of the three numbers are counted."""
    writer = begun(runs, "a", 5)
    start = {"event": "start", "pid": 1, "devices": [1, 2, 4]}
    model = {"event": "model", "step": 40, "tokens": 512, "k": [2], "experts": [64], "machine": ""}
    rows = [{"event": "rows", "devices": d, "own": [[1, 2, 3]], "all": [[1, 2, 3]]} for d in (1, 2)]
    path = runs / "a" / NAME
    path.write_text("".join(json.dumps(event) + "\n" for event in (start, model, *rows)))
    with path.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield path
    writer.finish("stopped")


def test_while_it_measures_it_shows_how_far_and_the_stages_wait_and_say_so(
    measured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = page(lesson="5", run="a")
    assert not app.exception
    (bar,) = app.get("progress")
    assert (bar.proto.value, bar.proto.text) == (60, "Counting rows after step 40: 2 of 3 done")
    assert "moe-check" not in html(app).replace(learn.CSS, "")  # the bar is in its place
    assert stages(app) == [(stage.button, not at) for at, stage in enumerate(LESSONS[4].stages)]
    assert [b.help for b in app.button if str(b.key).startswith("stage-")] == ["", learn.WAITS, learn.WAITS]
    assert html(app).count("<b>Measuring this now.</b>") == html(app).count(f"<b>{learn.WAITS}</b>") == 1
    ended = list[Path]()
    monkeypatch.setattr(learn, "stop_on_devices", ended.append)
    page_of = page(lesson="5", run="a")
    next(b for b in page_of.button if b.label == "Cancel").click().run()
    assert ended == [measured.parent]
    monkeypatch.setattr(learn, "looks", lambda: True)
    assert not [b for b in page(lesson="5", run="a").button if b.label == "Cancel"]


def test_when_it_has_measured_the_stages_can_be_pressed_again(measured: Path) -> None:
    app = page(lesson="5", run="a")
    assert [can for _, can in stages(app)] == [True, False, False]
    measured.unlink()
    write_on_devices(open_run("a"))
    with measured.open("a") as file:
        file.write('{"event": "speed", "devices": 4, "rows_per_second": [4e5]}\n{"event": "end"}\n')
    app.run()
    assert [can for _, can in stages(app)] == [True, True, True]
    assert not app.get("progress")
    assert 'data-check="yes"' in html(app)


def test_the_stage_that_turns_k_measures_again_unless_somebody_measures_by_then(
    measured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = list[tuple[Path, Any]]()
    monkeypatch.setattr(learn, "start_on_devices", lambda folder: began.append((folder, open_run(folder).knobs.k)))
    monkeypatch.setattr(learn, "runs_of_lessons", lambda: {5: "a"})
    learn.act(5, 2)
    assert (began, open_run("a").knobs.k) == ([], 2)
    measured.unlink()
    learn.act(5, 2)
    assert (began, open_run("a").knobs.k) == ([(measured.parent, 8)], 8)


def test_a_new_run_of_the_lesson_ends_what_measures_the_one_before(
    measured: Path, started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = list[tuple[Path, list[str]]]()
    told = lambda: [command.name for command in open_run("a").commands()]
    monkeypatch.setattr(learn, "stop_on_devices", lambda folder: ended.append((folder, told())))
    app = page(lesson="5", run="a")
    app.button(key="stage-5-0").click().run()
    assert (ended, len(started)) == ([(measured.parent, ["stop"])], 1)  # it may take seconds, so it comes last


def test_a_measurement_that_cannot_be_written_is_told_in_a_line(runs: Path) -> None:
    writer = begun(runs, "a", 5)
    (runs / "a" / NAME).symlink_to(runs / "elsewhere")
    app = page(lesson="5", run="a")
    next(b for b in app.button if b.key == "stage-5-1").click().run()
    assert not app.exception
    assert any("It cannot be measured" in one.value for one in app.error)
    writer.finish("stopped")


def test_a_trainer_that_does_not_start_is_said_with_its_words(
    started: list[tuple[Config, Knobs, str]], runs: Path
) -> None:
    app = page(lesson="1")
    app.button(key="stage-1-0").click().run()
    (runs / "started-1" / "trainer.log").write_text("moe: error: no memory\n")
    assert "no memory" in app.run().error[0].value
    assert stages(app)[0][1]


def test_all_lessons_are_read_without_a_run(runs: Path, started: list[Any]) -> None:
    app = page(lesson="6")
    app.button(key="read-6").click().run()
    assert not app.exception
    assert app.query_params["read"] == "true"
    assert [one.value for one in app.header] == [f"{at}. {lesson.title}" for at, lesson in enumerate(LESSONS, 1)]
    assert len(app.latex) == len(LESSONS)
    text = " ".join(one.value for one in app.markdown)
    assert all(lesson.question in text and lesson.answer in text for lesson in LESSONS)
    app.button(key="read-back").click().run()
    assert (app.query_params["lesson"], "read" in app.query_params) == ("6", False)
    assert not started


def test_a_check_that_passed_is_of_that_run_and_not_of_another_of_its_name(runs: Path) -> None:
    writer = begun(runs, "one", 1)
    with progress.opened("one") as run:
        assert run
        progress._seen[progress.record_of(run), 1, 0, 0] = Verdict(True, "At step 2,000: …")
        assert progress.happened_in(run, 1, 0) == {0}
    writer.finish("stopped")
    shutil.rmtree(runs / "one")
    again = begun(runs, "one", 1)
    with progress.opened("one") as run:
        assert run
        assert progress.happened_in(run, 1, 0) == frozenset()
    again.finish("stopped")


def test_a_tick_asks_once_for_the_measurement_on_devices(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lesson that is about something else asks no more itself."""
    begun(runs, "one", 1).finish("stopped")
    asked: list[Path] = []
    with progress.opened("one") as run:
        assert run
        plain = run.on_devices
        run.on_devices = lambda: asked.append(run.path) or plain()
        progress.read(run, 1, 0)
    assert asked == [run.path]
