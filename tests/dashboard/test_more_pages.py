"""Experts, Compare and Batch by AppTest: without a run, while it trains, when it has ended; the choices are in the link."""

import fcntl
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from moe_core.dashboard import compare
from moe_core.dashboard.links import literal
from moe_core.dashboard.style import CSS
from moe_core.runs import change_notes, open_run, start_measuring, stop_measuring
from moe_core.runs.on_devices import NAME
from moe_core.schema import Config
from moe_core.schema.description import PROBE_OF_TASK
from moe_core.watching import watch
from tests.figures.record import record
from tests.figures.test_catalog import write_on_devices
from tests.runs.test_measuring import wait
from tests.watching.test_counting import Model, batch

ROOT = Path(__file__).parents[2]
PAGES = ("experts", "compare", "batch")


def page(name: str, **link: str) -> AppTest:
    app = AppTest.from_file(str(ROOT / "moe_core" / "dashboard" / "main.py"), default_timeout=30)
    app.query_params.update(link)
    return app.run().switch_page(str(ROOT / "pages" / f"{name}.py")).run()


def mounted(app: AppTest, part: str = "charts") -> dict[str, Any]:
    """What the live component was given, or another."""
    mounted_data = [json.loads(component.proto.json) for component in app.get("bidi_component")]
    return next(data for data in mounted_data if data["part"] == part)


def text_of(app: AppTest) -> str:
    return " ".join(str(e.proto.body) for e in app.get("html"))


@pytest.mark.parametrize("name", PAGES)
def test_without_a_run_the_cards_invite(runs: Path, name: str) -> None:
    app = page(name)
    assert not app.exception
    assert [b.label for b in app.button] == ["Text", "Digits", "Plane", "Watch an example"]


@pytest.mark.parametrize("state", ["training", "finished"])
@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("task", ["text", "digits", "plane"])
def test_a_run_has_its_figures_in_either_state(runs: Path, name: str, state: str, task: str) -> None:
    record(runs / "a", task, state=state, L=2 if task == "text" else 1)
    app = page(name, run="a")
    assert not app.exception
    given = mounted(app)
    assert (given["page"], given["run"], given["probe"]) == (name, "a", PROBE_OF_TASK[task])
    assert given["figures"]
    if name == "experts":
        assert ("expert_flow" in given["figures"]) == (task == "text")
        assert "ablation" not in given["figures"]


def test_the_expert_of_the_link_is_chosen_and_the_chooser_writes_the_link(runs: Path) -> None:
    record(runs / "a")
    app = page("experts", run="a", expert="3")
    assert mounted(app)["options"] == {"expert": 3}
    chooser = next(box for box in app.selectbox if box.label == "Expert")
    assert chooser.value == 3
    chooser.set_value(1).run()
    assert app.query_params["expert"] == "1"
    assert mounted(app)["options"] == {"expert": 1}
    for wrong in ("0", "5", "x"):
        assert mounted(page("experts", run="a", expert=wrong))["options"] == {}


def test_runs_of_the_link_are_compared_and_only_of_the_same_task(runs: Path) -> None:
    for name, task in (("a", "text"), ("b", "text"), ("c", "digits")):
        record(runs / name, task, seed=ord(name))
    app = page("compare", run="a", **{"with": "b,c,nobody", "align": "fork"})
    assert not app.exception
    assert mounted(app)["options"] == {"with": ["b"], "align": "fork"}
    assert app.multiselect[0].options == ["b"]
    # Both links to Export, this one and that in the line of a run's end, name the runs compared.
    assert {name: mounted(app, "export")[name] for name in ("run", "figures", "options")} == {
        name: mounted(app)[name] for name in ("run", "figures", "options")
    }
    assert "None of these runs is a fork" in text_of(app)
    assert "Differences" in text_of(app)
    app.multiselect[0].set_value([]).run()
    assert "with" not in app.query_params
    assert mounted(app)["options"]["with"] == []


def test_of_long_names_that_begin_alike_each_chip_shows_where_they_differ(runs: Path) -> None:
    names = {"b": "text-experts-16-weights-0.1-seed-1", "c": "text-experts-16-weights-0.1-seed-2", "d": "short"}
    for id in ("a", *names):
        record(runs / id)
        change_notes(runs / id, name=names.get(id, ""))
    chips = page("compare", run="a").multiselect[0].options
    assert sorted(re.split(": | · ", words)[0] for words in chips) == [
        "short",
        "text-expe … seed-1",
        "text-expe … seed-2",
    ]
    # By its whole name a run is found, and the pointer shows it.
    assert [words.count("text-experts-16-weights-0.1-seed-") for words in sorted(chips)] == [0, 1, 1]


def test_the_table_has_rows_that_differ_and_no_others(runs: Path) -> None:
    a, b = record(runs / "a", E=4), record(runs / "<b>", E=4, seed=1, d_model=32)
    for run in (a, b):
        run.close()
    one, two = open_run(runs / "a"), open_run(runs / "<b>")
    parts = dict(compare.sections([one, two]))
    assert parts["Config"] == [("d_model", ["64", "32"])]
    assert "Knobs" not in parts
    two.turn(who="someone", noise=0.5, w_load=0.2)
    two.turn(who="someone", noise=0.25)
    two.turn(who="someone", noise=0.125)
    assert dict(compare.sections([one, two]))["Knobs"] == [
        ("noise", ["1", "1 → … → 0.25 (not acted) → 0.125 (not acted)"]),
        ("w_load", ["0.01", "0.01 → 0.2 (not acted)"]),
    ]
    ends = dict(parts["At step 60, the last that all have"])
    assert ends["steps in all"] == ["60", "60"]
    assert ends["held-out loss, bits/byte"] == ["2.500", "2.500 (0.000)"]
    means = [np.mean([run.history("cv_load", layer, first=11)[1] for layer in (0, 1)]) for run in (one, two)]
    assert ends["CV(load)"][0] == f"{means[0]:.2f}"
    assert ends["CV(load)"][1].startswith(f"{means[1]:.2f} (")
    html = compare.as_html(["a", "<b>"], list(parts.items()), "")
    assert '<th scope="col"><i class="moe-run moe-run-1"></i>B &lt;b&gt;</th>' in html
    assert '<div class="moe-wide" tabindex="0"><table>' in html  # the table scrolls, and not the page
    assert ".moe-wide { overflow-x: auto; }" in CSS
    assert compare.against_first([1.0, float("nan"), 0.5], 2) == ["1.00", "–", "0.50 (−0.50)"]


def test_the_batch_sliders_start_at_the_runs_sizes_and_write_the_link(runs: Path) -> None:
    record(runs / "a", E=4, tokens=128)
    app = page("batch", run="a", devices="3")
    own = {"tokens": 128, "k": 2, "experts": 4, "devices": 3}
    assert mounted(app)["options"] == own
    slider = next(s for s in app.select_slider if s.label.startswith("E, experts"))
    slider.set_value(64).run()
    assert app.query_params["experts"] == "64"
    assert mounted(app)["options"] == own | {"experts": 64}


def test_a_measurement_is_started_shown_and_cancelled_from_the_page(runs: Path) -> None:
    run = record(runs / "a", E=2, d_model=4, d_hidden=4)
    path = run.throughput_file()
    app = page("batch", run="a")
    next(b for b in app.button if b.label == "Measure throughput").click().run()
    assert run.throughput().running
    wait(lambda: run.throughput().pid > 0)
    app.run()
    next(b for b in app.button if b.label == "Cancel").click().run()
    wait(lambda: not run.throughput().running)
    app.run()
    assert {"Measure throughput", "Measure on devices"} <= {b.label for b in app.button}
    assert any("Ended early" in c.value for c in app.caption)
    start_measuring(path, Config(num_experts=2, d_model=4, d_hidden=4), 9, "cpu", 1)
    wait(lambda: not run.throughput().running)
    stop_measuring(path)
    app.run()
    assert any("got 9" in c.value for c in app.caption)


def early(app: AppTest) -> list[str]:
    """Why measurements ended early, as it is seen: a backslash before a sign keeps Markdown from reading it."""
    return [re.sub(r"\\(.)", r"\1", one.value) for one in app.caption if one.value.startswith("Ended early")]


def test_a_place_that_cannot_be_written_to_is_said_until_another_try(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = record(runs / "a", E=2, d_model=4, d_hidden=4)
    (run.path / NAME).symlink_to(runs / "elsewhere")
    app = page("batch", run="a")
    next(b for b in app.button if b.label == "Measure on devices").click().run()
    for _ in range(2):  # the buttons are drawn again each second
        assert [one.value for one in app.error] == [
            literal(f"It cannot be measured: {run.path / NAME}: Too many levels of symbolic links.")
        ]
        app.run()
    (run.path / NAME).unlink()
    run.throughput_file().parent.mkdir()
    run.throughput_file().mkdir()
    next(b for b in app.button if b.label == "Measure throughput").click().run()
    assert ["Is a directory" in one.value for one in app.error] == [True]
    run.throughput_file().rmdir()
    monkeypatch.setattr("moe_core.dashboard.batch.start_measuring", lambda *_: True)
    next(b for b in app.button if b.label == "Measure throughput").click().run()
    assert not app.error


def test_devices_are_measured_or_refused_with_the_reason(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = list[Path]()
    monkeypatch.setattr("moe_core.dashboard.batch.start_on_devices", began.append)
    for E in (3, 4):
        record(runs / f"of-{E}", E=E, d_model=4, d_hidden=4).close()
    button = next(b for b in page("batch", run="of-3").button if b.label == "Measure on devices")
    assert button.disabled
    assert "must be even, got 3" in button.help
    app = page("batch", run="of-4")
    next(b for b in app.button if b.label == "Measure on devices").click().run()
    assert began == [runs / "of-4"]
    (runs / "of-4" / NAME).write_text(
        '{"event": "start", "pid": 1, "devices": [1, 2, 4]}\nmoe: rank 1 failed: no more memory'
    )
    app.run()
    assert early(app) == ["Ended early: rank 1 failed: no more memory."]  # before it measured anything
    (runs / "of-4" / NAME).write_text("**bold** [click](https://evil.example)")  # a record may come from anybody
    app.run()
    assert r"\*\*bold\*\* \[click\]\(https\:" in next(c.value for c in app.caption if "bold" in c.value)
    write_on_devices(open_run("of-4", runs))
    app.run()
    assert early(app) == ["Ended early: stopped before it was done. What it measured is kept."]
    (runs / "of-4" / NAME).rename(runs / "of-4" / "devices.earlier")
    with (runs / "of-4" / "devices.earlier").open("a") as file:
        file.write('{"event": "end"}\n')
    (runs / "of-4" / NAME).write_text('{"event": "start", "pid": 1, "devices": [1, 2, 4]}\n')
    app.run()
    assert early(app) == ["Ended early: stopped before it was done. The previous result is shown."]
    with open(runs / "of-4" / NAME) as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # another tab measures
        app.run()
        assert {"Measure on devices", "Measure throughput"}.isdisjoint({b.label for b in app.button})
        assert "Cancel" in {b.label for b in app.button}


def test_a_watched_run_without_a_probe_says_what_shows_where_tokens_go(runs: Path) -> None:
    record(runs / "own").close()
    with watch(model := Model(), "watched", runs=runs) as live:
        model(batch())
        live.step(loss=2.0)
    said = {
        (name, run): any(text.value.startswith("No probe: give") for text in page(name, run=run).caption)
        for name in ("routing", "experts", "batch")
        for run in ("own", "watched")
    }
    assert [where for where, shown in said.items() if shown] == [("routing", "watched"), ("experts", "watched")]
