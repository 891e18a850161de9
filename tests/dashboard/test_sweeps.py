"""The Sweep page by AppTest: no sweep, one that runs, one that was stopped, one that is done; text of users as text."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from moe_core.__main__ import parser
from moe_core.commands.sweep import plan_of
from moe_core.dashboard import new_sweep, sweeps
from moe_core.schema import STRATEGIES, Config, Knobs
from moe_core.sweep import Job, Sweep, held, jobs, make_plan, make_sweep, open_sweep, sweep_ids
from tests.sweep.made import record

PAGE = str(Path(__file__).parents[2] / "pages" / "sweep.py")
CONFIG = Config.for_task("plane", num_experts=4, tokens=64, steps=60, threads=1)
LISTS = {"w_importance": [0.0, 0.1], "w_load": [0.0, 0.1]}


@pytest.fixture
def sweep(runs: Path) -> Sweep:
    return make_sweep(make_plan(CONFIG, Knobs(), LISTS, seeds=2), runs, "s")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Sweep, int]]:
    """What the page would have started, in place of a process."""
    calls: list[tuple[Sweep, int]] = []
    for module in (sweeps, new_sweep):
        monkeypatch.setattr(module, "detach", lambda sweep, parallel: calls.append((sweep, parallel)))
    return calls


def finish(sweep: Sweep, job: Job, load: Sequence[float], metric: float) -> None:
    record(job, sweep.runs, load, metric).finish("finished")


@pytest.fixture
def done(sweep: Sweep) -> Sweep:
    """Cell 1 has collapsed, the others are even; the accuracy is 0.5, 0.51, … by run."""
    for i, job in enumerate(jobs(sweep)):
        finish(sweep, job, [1, 1, 0, 0] if job.cell == 0 else [1, 1, 1, 1], 0.5 + i / 100)
    return sweep


def page(**query: str) -> AppTest:
    app = AppTest.from_file(PAGE, default_timeout=30)
    for name, value in query.items():
        app.query_params[name] = value
    return app.run()


def text_of(app: AppTest) -> str:
    return " ".join(str(e.proto.body) for e in app.get("html"))


def charts(app: AppTest) -> dict[str, Any]:
    """The drawn figures by name."""
    specs = [json.loads(e.proto.spec) for e in app.get("plotly_chart")]
    return {spec["layout"]["meta"]["figure"]: spec for spec in specs}


def labels(app: AppTest) -> set[str]:
    return {button.label for button in app.button}


def test_without_a_sweep_there_is_the_form_and_the_command(runs: Path) -> None:
    app = page()
    assert not app.exception
    assert labels(app) == {"Start"}
    assert [t.label for t in app.text_input][:7] == [*new_sweep.LISTED]
    assert {t.label: t.placeholder for t in app.text_input}["num_experts"] == "16"
    assert "sweep --task text --pairs table6" in app.code[1].value
    assert sweep_ids(runs) == []


def test_the_form_starts_what_it_says(runs: Path, started: list[tuple[Sweep, int]]) -> None:
    app = page()
    app.selectbox(key="sweep-task").set_value("plane")
    app.number_input(key="sweep-steps").set_value(70)
    app.number_input(key="sweep-seeds").set_value(2)
    app.text_input(key="sweep-list-noise").set_value("0.5, 1")
    app.text_input(key="sweep-pairs").set_value("table6")
    app.text_input(key="sweep-more").set_value("lr=0.001; speed-limit=0,5")
    app.button[0].click().run()
    assert not app.exception
    ((sweep, parallel),) = started
    assert parallel >= 1
    plan = sweep.plan
    assert (plan.config.task, plan.config.steps, plan.seeds, len(plan.cells)) == ("plane", 70, (0, 1), 6 * 2 * 2)
    assert plan.cells[1] == {"w_importance": 0.0, "w_load": 0.0, "noise": 0.5, "speed_limit": 5.0}
    assert plan.knobs == Knobs(lr=0.001)
    assert open_sweep(sweep.id, runs) == sweep
    assert app.query_params["sweep"] in (sweep.id, [sweep.id])
    assert "0 of 48 runs" in app.get("progress")[0].proto.text


@pytest.mark.parametrize(
    ("field", "text", "says"),
    [
        ("sweep-list-w_load", "0,x", "w_load must be a number"),
        ("sweep-list-k", "99", "k must be between 1 and num_experts=16"),
        ("sweep-pairs", "0.1", "a pair is written"),
        ("sweep-list-num_experts", "0,4", "num_experts must be between 1 and 1024, got 0"),
        ("sweep-list-layers", "1;2", "layers must be a number"),
        ("sweep-more", "sorcery=1", "a sweep cannot vary 'sorcery'"),
        ("sweep-more", "w-load=0.3", "w_load has a field of its own above"),
        ("sweep-more", "task=text,plane", "a sweep cannot vary 'task'"),
        ("sweep-more", "plane=rings,spirals", "the text task does not read plane"),
        ("sweep-more", "tokens=100,128", "tokens must be a multiple of context=128, got 100"),
        ("sweep-more", "lr", "other knobs and settings are written name=values"),
    ],
)
def test_a_form_that_cannot_be_trained_says_why_and_writes_nothing(
    runs: Path, started: list[tuple[Sweep, int]], field: str, text: str, says: str
) -> None:
    app = page()
    app.text_input(key=field).set_value(text)
    app.button[0].click().run()
    assert not app.exception
    (fault,) = [body for body in map(str, (one.proto.body for one in app.get("html"))) if 'class="moe-fault"' in body]
    assert f">{says}" in fault
    order = [
        one
        for one in app.main
        if hasattr(one.proto, "label") or 'class="moe-fault"' in str(getattr(one.proto, "body", ""))
    ]
    at = next(i for i, one in enumerate(order) if not hasattr(one.proto, "label"))
    if "tokens" not in text and "plane" not in text:  # what several fields say together stands at the foot
        assert order[at - 1].proto.id == app.text_input(key=field).proto.id
    assert app.button[0].disabled
    assert (started, list(runs.iterdir())) == ([], [])


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("steps", 0, "steps must be between 1 and 1e+09, got 0"),
        ("steps", 1.5, "steps must be a whole number, got 1.5"),
        ("seeds", 101, "seeds must be between 1 and 100, got 101"),
        ("parallel", 257, "runs at a time must be between 1 and 256, got 257"),
    ],
)
def test_a_number_that_no_sweep_can_have_is_said_below_its_field(
    runs: Path, field: str, value: float, says: str
) -> None:
    app = page()
    app.number_input(key=f"sweep-{field}").set_value(value).run()
    assert not app.exception
    assert f'<p class="moe-fault" role="alert">{says}</p>' in text_of(app)
    assert app.button[0].disabled


def test_settings_are_varied_as_knobs_are_and_what_it_takes_is_said_before(
    runs: Path, started: list[tuple[Sweep, int]]
) -> None:
    app = page()
    app.selectbox(key="sweep-task").set_value("plane")
    app.text_input(key="sweep-list-num_experts").set_value("4, 8,16")
    app.text_input(key="sweep-list-seed").set_value("3,5")
    app.text_input(key="sweep-list-w_importance").set_value("")
    app.text_input(key="sweep-list-w_load").set_value("")
    app.multiselect(key="sweep-strategy").set_value(["paper", "loss-free"])
    app.text_input(key="sweep-more").set_value("plane=rings,spirals; d-model=8")
    app.number_input(key="sweep-parallel").set_value(2)
    app.run()
    assert not app.exception
    (said,) = [one.value for one in app.markdown if "at a time" in one.value]
    assert said.startswith("**24 runs (12 cells), 2 at a time: about ")
    assert " of disk.** An estimate." in said
    told = text_of(app)
    assert all(STRATEGIES[name].formula in told.replace("&#x27;", "'") for name in ("paper", "loss-free"))
    command = app.code[0].value
    app.button[0].click().run()
    ((sweep, parallel),) = started
    assert parallel == 2
    assert plan_of(parser().parse_args(shlex.split(command)[3:])) == sweep.plan
    assert (sweep.plan.seeds, sweep.plan.config.d_model) == ((3, 5), 8)
    assert {(job.config.num_experts, job.config.plane, job.knobs.strategy) for job in jobs(sweep)} == {
        (experts, plane, strategy) for experts in (4, 8, 16) for plane in ("rings", "spirals") for strategy in ("paper", "loss-free")
    }  # fmt: skip


def test_a_running_sweep_shows_how_far_it_is_and_can_be_cancelled(sweep: Sweep) -> None:
    finish(sweep, jobs(sweep)[0], [1, 1, 1, 1], 0.75)
    with held(sweep):
        app = page()
        assert not app.exception
        assert 'data-sweep="running"' in text_of(app)
        assert app.get("progress")[0].proto.text.startswith("1 of 8 runs, about ")
        assert app.get("progress")[0].proto.text.endswith(" left")
        assert app.get("progress")[0].proto.value == 12  # of 100: one run of eight
        assert labels(app) == {"Cancel"}
        assert 'data-measure="accuracy">0.750' in text_of(app)
        assert set(charts(app)) == {"sweep_balance", "sweep_quality", "sweep_pareto"}
        app.button[0].click().run()
        assert (sweep.folder / "cancel").exists()


def test_a_sweep_that_was_stopped_can_go_on(sweep: Sweep, started: list[tuple[Sweep, int]]) -> None:
    (sweep.folder / "sweep.log").write_text("moe: <script>device</script> is not there\n")
    app = page(sweep="s")
    assert 'data-sweep="incomplete"' in text_of(app)
    assert labels(app) == {"Go on"}
    assert "is not there" in app.caption[0].value
    app.button[0].click().run()
    assert [one.id for one, _ in started] == ["s"]


def test_a_finished_sweep_has_its_table_maps_and_front(done: Sweep) -> None:
    app = page()
    assert not app.exception
    assert labels(app) == set()
    told = text_of(app)
    assert 'data-sweep="finished"' in told
    assert told.count("<tr>") == 1 + 4 + 2  # a head, four cells, two lines of ceilings
    assert '<a href="./?run=s-c02-s1">1</a>' in told
    assert "0.520 ±0.028<" in told  # 0.5 and 0.54
    assert "<small>paper 3.01</small>" in told  # w_importance 0, w_load 0
    assert (
        told.count("<small>paper") == 2 * 3
    )  # two cells of the paper's, three balance figures: points have no perplexity
    assert "paper: the paper&#x27;s Table 6 (another task, 256 experts, k 4); compare the shape" in told
    assert "Ceiling, 4 experts, k 2" in told
    assert "64.00" in told
    drawn = charts(app)
    assert drawn["sweep_balance"]["data"][1]["text"] == ["1.00", "0.00", "0.00", "0.00"]
    assert drawn["sweep_balance"]["data"][1]["customdata"] == ["s-c01-s0", "s-c03-s0", "s-c02-s0", "s-c04-s0"]
    assert drawn["sweep_quality"]["data"][1]["text"] == ["0.520", "0.540", "0.530", "0.550"]
    front = drawn["sweep_pareto"]["data"][1]
    assert front["customdata"] == ["s-c04-s1"]  # even, and the best
    assert len(drawn["sweep_pareto"]["data"][0]["customdata"]) == 7


def test_pairs_leave_the_rest_of_the_map_empty(runs: Path) -> None:
    pairs = [
        {"w_importance": 0.0, "w_load": 0.0},
        {"w_importance": 1.0, "w_load": 1.0},
        {"w_importance": 0.2, "w_load": 0.0},
    ]
    sweep = make_sweep(make_plan(CONFIG, Knobs(), {}, pairs), runs, "p")
    for job in jobs(sweep):
        finish(sweep, job, [1, 1, 1, 1], 0.5)
    numbers = charts(page())["sweep_balance"]["data"][1]
    assert list(zip(numbers["x"], numbers["y"], numbers["customdata"], strict=True)) == [
        (0, 0, "p-c01-s0"),
        (1, 0, "p-c03-s0"),
        (2, 1, "p-c02-s0"),
    ]


def test_a_map_of_two_settings_has_their_values_and_each_row_its_own_ceiling(runs: Path) -> None:
    plan = make_plan(CONFIG, Knobs(), {"num_experts": [4, 8], "layers": [1, 2]})
    sweep = make_sweep(plan, runs, "sizes")
    for job in jobs(sweep):
        finish(sweep, job, [1] * job.config.num_experts, 0.5)
    app = page()
    assert not app.exception
    drawn = charts(app)["sweep_balance"]["data"][1]
    assert drawn["customdata"] == ["sizes-c01-s0", "sizes-c03-s0", "sizes-c02-s0", "sizes-c04-s0"]
    told = text_of(app)
    assert "Ceiling, 4 experts, k 2" in told
    assert "Ceiling, 8 experts, k 2" in told
    assert "num_experts × layers" in told
    assert open_sweep("sizes", runs).plan == plan


def test_one_knob_has_a_front_and_no_map(runs: Path) -> None:
    sweep = make_sweep(make_plan(CONFIG, Knobs(), {"noise": [0.5, 1.0]}), runs, "one")
    for job in jobs(sweep):
        finish(sweep, job, [1, 1, 1, 1], 0.5)
    assert set(charts(page())) == {"sweep_pareto"}


def test_the_link_chooses_and_what_is_not_there_is_said(done: Sweep, runs: Path) -> None:
    make_sweep(make_plan(CONFIG, Knobs(), {"noise": [0.5, 1.0]}), runs, "other")
    app = page(sweep="s")
    assert app.selectbox(key="sweep-chooser").value == "s"
    app.selectbox(key="sweep-chooser").set_value("other").run()
    assert app.query_params["sweep"] in ("other", ["other"])
    assert "0 of 2 runs" in app.get("progress")[0].proto.text
    app = page(sweep="nobody")
    assert "is not a sweep" in app.error[0].value
    assert labels(app) == {"Start"}


def test_a_run_that_does_not_count_is_said_as_text(sweep: Sweep) -> None:
    last = jobs(sweep)[-1]
    finish(sweep, last._replace(knobs=replace(last.knobs, noise=0.5)), [1, 1, 1, 1], 0.5)
    broken = sweep.runs / jobs(sweep)[0].run_id
    broken.mkdir()
    (broken / "trainer.log").write_text("moe: no such <script>alert(1)</script>\n")
    app = page()
    assert [error.value.split(":")[0] for error in app.error] == ["s-c01-s0", "s-c04-s1"]
    assert "<script>" not in text_of(app)
    assert "0 of 8 runs, 2 failed" in app.get("progress")[0].proto.text


def test_strategies_with_knobs_of_their_own_have_each_cell_once(runs: Path) -> None:
    lists = {"strategy": ["paper", "loss-free"], "w_load": [0.0, 0.1]}
    sweep = make_sweep(make_plan(CONFIG, Knobs(), lists), runs, "f")
    for job in jobs(sweep):
        finish(sweep, job, [1, 1, 1, 1], 0.5)
    app = page()
    assert not app.exception
    assert "Not read: w_load by loss-free." in text_of(app)
    assert "<td>loss-free</td><td>–</td>" in text_of(app)
    drawn = charts(app)
    assert drawn["sweep_balance"]["layout"]["yaxis"]["ticktext"] == ["0", "0.1", "–"]
    numbers = drawn["sweep_balance"]["data"][1]
    assert list(zip(numbers["x"], numbers["y"], numbers["customdata"], strict=True)) == [
        (0, 0, "f-c01-s0"), (0, 1, "f-c02-s0"), (1, 2, "f-c03-s0"),
    ]  # fmt: skip
    assert drawn["sweep_pareto"]["data"][1]["hovertext"][-1].startswith("loss-free / –: ")


def test_what_looks_ahead_is_marked_in_the_table_the_map_and_the_scatter(runs: Path) -> None:
    text = replace(CONFIG, task="text", tokens=128)
    lists = {"strategy": ["paper", "expert-choice"], "k": [1, 2]}
    sweep = make_sweep(make_plan(text, Knobs(), lists), runs, "ahead")
    for job in jobs(sweep):
        finish(sweep, job, [1, 1, 1, 1], 2.0 if job.knobs.strategy == "paper" else 1.0)
    app = page()
    assert not app.exception
    told = text_of(app)
    assert told.count('1.000 <abbr title="not comparable: looks ahead">†</abbr>') == 4  # two cells, bits and perplexity
    assert "2.000 <abbr" not in told
    assert "Compare such a number only with others that were routed the same way." in told
    drawn = charts(app)
    assert drawn["sweep_quality"]["data"][1]["text"] == ["2.00", "1.00 †", "2.00", "1.00 †"]
    assert drawn["sweep_pareto"]["data"][0]["customdata"] == ["ahead-c03-s0", "ahead-c04-s0"]
    assert "looks ahead" in drawn["sweep_pareto"]["data"][0]["hovertext"][0]
