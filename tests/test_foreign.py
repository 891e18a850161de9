"""A run that our trainer did not record: its layers, knobs, metrics and statistics are its own, and all of it is shown."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from moe_core.__main__ import main
from moe_core.dashboard.choosing import what
from moe_core.dashboard.feed import Feed
from moe_core.dashboard.messages import Deed
from moe_core.dashboard.panel import act, banner, panel
from moe_core.dashboard.starting import Unstarted
from moe_core.dashboard.views import View
from moe_core.diagnosis import diagnose
from moe_core.export import export
from moe_core.export.replay import replay
from moe_core.export.report import write_report
from moe_core.export.sources import Named, Still
from moe_core.figures.catalog import FIGURES, TILES, offered, on_page, shows, tiles_of
from moe_core.runs import Batch, Run, RunWriter, StoreError, list_runs, open_run, verify
from moe_core.runs.begin import create_record
from moe_core.runs.source import At, Beside, Source
from moe_core.schema import (
    Config,
    Description,
    Knob,
    Knobs,
    Layer,
    Loss,
    columns_of,
    describe,
    from_json,
    looks_ahead,
    switched_off,
    to_json,
)
from moe_core.schema.stats import Metric
from tests.server import ROOT

EXPERTS = (8, 16, 8, 8, 8, 8)
MEASURES = ("loss", "task_loss", "seconds", "importance", "counts", "dead_experts", "confidence")
OWN = Description(
    origin="watched",
    task="OlmoeForCausalLM",
    layers=tuple(Layer(f"model.layers.{i}.mlp.experts", E, 2, shared=1) for i, E in enumerate(EXPERTS)),
    knobs={
        "router_aux_loss_coef": Knob(0.01, 0.0, 1.0, help="weight of the balancing loss", scale="log0"),
        "top_k": Knob(2, 1, 8, label="experts per token"),
        "schedule": Knob("cosine", choices=("cosine", "constant")),
        "note": Knob(""),
    },
    metrics=(Metric("eval_loss", "held-out loss", "nats/token", True),),
    loss=Loss("nats per token", 1.0, "eval_loss"),
    probe="none",
    obeys=("pause", "stop"),
    settings={"learning_rate": 1e-4, "model": "olmoe-tiny", "layers": [1, 2]},
    measures=MEASURES,
)
WIDTH = sum(column.width for column in columns_of(EXPERTS, MEASURES))


def write(folder: Path, description: Description = OWN, steps: int = 150) -> RunWriter:
    """A record in which expert 1 of layer 3 gets nearly every token, and expert 2 none."""
    writer = create_record(folder, description, facts={"versions": {"moescope": "9.1"}})
    rng = np.random.default_rng(0)
    rows = rng.uniform(0.5, 1.5, (steps, WIDTH)).astype(np.float32)
    for column in columns_of(EXPERTS, MEASURES):
        if column.stat == "counts" and column.layer == 2:
            rows[:, column.start : column.start + column.width] = [100.0, 0, 1, 1, 1, 1, 1, 1]
        if column.stat == "dead_experts":
            rows[:, column.start] = column.layer == 2
    counts = [[5.0] * E for E in EXPERTS]
    evals = [(step, {"eval_loss": 3.0 - step / 1000, "selections": counts}, None) for step in (50, 100, 150)]
    writer.commit(Batch(1, rows, evals=evals, state="training"))
    return writer


@pytest.fixture
def run(tmp_path: Path) -> Run:
    writer = write(tmp_path / "runs" / "olmoe")
    writer.finish("finished")
    return open_run("olmoe", tmp_path / "runs")


def test_it_opens_as_it_describes_itself(run: Run) -> None:
    assert run.description == OWN
    assert dict(run.started_knobs) == {"router_aux_loss_coef": 0.01, "top_k": 2, "schedule": "cosine", "note": ""}
    assert run.knobs.schedule == "cosine"
    steps, counts = run.history("counts", "model.layers.1.mlp.experts")
    assert counts.shape == (150, 16)
    assert (steps[0], steps[-1]) == (1, 150)
    for layer in ("model.layers.9", 6, -1):
        with pytest.raises(StoreError, match="layer must be"):
            run.history("counts", layer)
    (listed,) = list_runs(run.path.parent)
    assert (listed.problem, listed.description) == ("", OWN)
    assert what(listed.description) == "watched · 8 to 16 experts, 6 layers"
    assert verify(run) == []


def test_every_figure_that_it_has_is_drawn_and_no_other_is_offered(run: Run) -> None:
    names = [name for name in FIGURES if shows(run, name)]
    assert {"balance", "loss", "confidence", "batch_measured"} <= set(names)
    assert offered(run, "knobs")
    missing = {
        "probe_text",
        "regions",
        "tokens_by_expert",
        "churn",
        "router_margin",
        "specialisation",
        "similarity",
        "knobs",  # none was turned
    }
    assert not missing & set(names)
    feed = Feed(run)
    feed.refresh()
    for source in (run, feed, View(feed, {"expert": 3}), Still(run)):
        for name in names:
            for layer in range(len(EXPERTS)):
                for at in (At(layer), At(layer, 70, (10, 90), 30)):
                    spec = FIGURES[name].draw.spec(**FIGURES[name].read(source, at))
                    assert spec["layout"]["title"]["text"], name
    balance = FIGURES["balance"].draw.spec(**FIGURES["balance"].read(run, At(2)))
    assert [trace["name"] for trace in balance["data"]] == ["CV(importance)", "CV(selections)"]
    _, cv = run.history("cv_counts", 2)
    np.testing.assert_allclose(balance["data"][1]["customdata"], cv, rtol=1e-6)
    loss = FIGURES["loss"].read(run, At())
    assert (loss["unit"], loss["heldout"].tolist()) == ("nats per token", [2.95, 2.9, 2.85])


def test_the_loss_of_the_task_is_charted_where_it_is_recorded_and_else_the_whole(tmp_path: Path) -> None:
    with_task = replace(OWN, measures=("loss", "task_loss", "counts"))
    assert (with_task.training_loss, replace(OWN, measures=("loss", "counts")).training_loss) == ("task_loss", "loss")
    write(tmp_path / "a").finish("finished")
    whole = replace(OWN, measures=tuple(name for name in MEASURES if name != "task_loss"))
    writer = create_record(tmp_path / "b", whole)
    rows = np.ones((3, sum(column.width for column in columns_of(EXPERTS, whole.measures))), np.float32)
    rows[:, 0] = [3.0, 2.0, 1.0]
    writer.commit(Batch(1, rows))
    writer.finish("finished")
    a, b = open_run("a", tmp_path), open_run("b", tmp_path)
    assert shows(b, "loss")
    assert FIGURES["loss"].read(b, At())["train"].tolist() == [3.0, 2.0, 1.0]
    pair = Beside(a, {}, (b,))
    curves = FIGURES["compare_loss"].read(pair, At())["curves"]
    assert curves[0].values.tolist() == a.history("loss")[1].tolist()  # what both have
    assert curves[1].values.tolist() == [3.0, 2.0, 1.0]


def test_runs_without_a_smooth_load_are_compared_by_their_selections(run: Run) -> None:
    pair = Beside(run, {}, (run,))
    assert shows(pair, "compare_balance")
    read = FIGURES["compare_balance"].read(pair, At(2))
    assert [curve.values.tolist() for curve in read["curves"]] == [run.history("cv_counts", 2)[1].tolist()] * 2
    spec = FIGURES["compare_balance"].draw.spec(**read)
    assert spec["layout"]["yaxis"]["title"]["text"] == "CV(selections)"
    difference = FIGURES["compare_balance_difference"]
    spec = difference.draw.spec(**difference.read(pair, At(2)))
    assert "CV(selections) minus A's" in json.dumps(spec["layout"])


def test_a_collapse_names_the_knob_of_the_models_own_balancing_loss(run: Run) -> None:
    (collapse, *_) = diagnose(run, 2)
    assert (collapse.rule, collapse.remedy) == ("collapse", None)
    assert collapse.try_this == "Turn router_aux_loss_coef up, which is 0.01: it weighs the model's own balancing loss."


def test_what_it_never_measured_has_neither_tile_nor_words(tmp_path: Path) -> None:
    writer = create_record(tmp_path / "a", OWN)
    writer.commit(Batch(1, np.ones((20, WIDTH), np.float32), state="training"))
    writer.finish("finished")
    run = open_run(tmp_path / "a")
    assert [tile.name for tile in tiles_of("live", run)] == ["cv_counts", "cv_importance", "dead_experts", "speed"]
    (only,) = tiles_of("compare", run, At(0))
    assert only.lines == ("layer 1, mean of 20 steps to 20",)
    feed = Feed(run)
    feed.refresh(now=True)
    told = banner(feed, 0)
    assert told
    assert re.fullmatch(
        r"Finished: 20 steps in \d+\u00a0s\. CV\(selections\) 0.00 \(mean of the last 20 steps of layer 1\), balanced in training\.",
        told["text"],
    )


def test_its_tiles_speak_of_what_it_measures(run: Run) -> None:
    live = {tile.name: tile for tile in tiles_of("live", run, At(2))}
    assert list(live) == ["cv_counts", "cv_importance", "dead_experts", "heldout", "speed"]
    assert live["cv_counts"].label == "CV(selections), this step"
    assert live["cv_counts"].word.startswith("Collapsed")
    assert live["heldout"].value == "2.85"
    assert live["speed"].lines == ()  # how many tokens a step has is not known
    for page in TILES:
        assert all(isinstance(tile.value, str) for tile in tiles_of(page, run, At(1)))
    assert tiles_of("routing", run) == []  # it has no probe


def test_what_is_wrong_is_said_without_our_knobs(run: Run) -> None:
    said = {finding.rule: finding.what for finding in diagnose(run, 2)}
    assert said.keys() == {"collapse", "constant_bias", "dead_experts"}
    assert "CV(selections) is" in said["collapse"]  # it measures no smooth load
    assert all(finding.remedy is None for finding in diagnose(run, 2))
    assert diagnose(run, 1) == []


def test_the_panel_has_its_knobs_and_says_what_it_obeys(tmp_path: Path) -> None:
    writer = write(tmp_path / "a")
    run = open_run(tmp_path / "a")
    feed = Feed(run)
    feed.refresh()
    shown = panel(feed)
    assert [(knob["name"], knob["kind"], knob["value"]) for knob in shown["knobs"]] == [
        ("router_aux_loss_coef", "number", 0.01),
        ("top_k", "whole", 2),
        ("schedule", "choice", "cosine"),
        ("note", "word", ""),
    ]
    assert shown["obeys"] == ["pause", "stop"]
    assert shown["layers"][3].endswith("model.layers.3.mlp.experts")
    act(run, Deed(1, turn={"top_k": 4.0, "schedule": "constant"}))
    assert (run.knobs.top_k, run.knobs.schedule) == (4, "constant")
    assert isinstance(run.knobs.top_k, int)
    for wrong, words in (
        ({"noise": 1.0}, "unknown knob 'noise'; there are: router_aux"),
        ({"top_k": 9}, "top_k must be between 1 and 8"),
        ({"note": " 5e3 "}, "note must be a word, and the record would keep"),
    ):
        with pytest.raises(ValueError, match=words):
            act(run, Deed(2, turn=wrong))
    run.command("pause")
    with pytest.raises(StoreError, match=r"does not obey checkpoint; it obeys pause, stop"):
        run.command("checkpoint")
    assert [(change.name, change.previous, change.value) for change in writer.pending().knobs] == [
        ("top_k", 2, 4),
        ("schedule", "cosine", "constant"),
    ]
    writer.finish("stopped")
    feed.refresh(now=True)
    assert "held-out loss 2.85\u00a0nats/token, CV(selections)" in banner(feed, 2)["text"].replace(
        "Held-out", "held-out"
    )


def test_any_layer_may_look_ahead() -> None:
    """A bounded capacity lets later tokens decide only where a token has several choices, here in the second layer."""
    knobs = {"strategy": Knob("paper"), "capacity_factor": Knob(1.0)}
    own = replace(OWN, layers=(Layer("a", 8, 1), Layer("b", 8, 2)), knobs=knobs, probe="tokens")
    assert looks_ahead(own, own.starts)
    assert not looks_ahead(replace(own, layers=own.layers[:1]), own.starts)


def test_an_expert_is_switched_off_by_a_knob_of_that_name(tmp_path: Path) -> None:
    own = from_json(to_json(OWN) | {"knobs": {"off": {"start": ""}}}, MEASURES)
    write(tmp_path / "a", own).finish("stopped")
    run = open_run(tmp_path / "a")
    with pytest.raises(ValueError, match="off must name experts 1 to 16 of layers 1 to 6, got '9:1'"):
        run.turn(off="9:1")
    with pytest.raises(ValueError, match="off must name experts 1 to 8 of layer 1, got '1:9'"):
        run.turn(off="1:9")
    run.turn(off="12")
    assert run.knobs.off == "12,"  # the record would keep "12" as a number
    assert switched_off(run.description.experts, run.knobs.off)[0] == ()  # the first layer has no expert 12
    run.turn(off="2:16,2:15")
    assert run.knobs.off == "2:16,2:15"
    assert run.off_spans() == ()  # it has not acted


def test_the_command_line_turns_its_knobs_and_shows_it(tmp_path: Path, capsys: Any) -> None:
    writer = write(tmp_path / "a")
    runs = ["--runs", str(tmp_path)]
    assert main(["set", "a", "router_aux_loss_coef=0.05", "note=warm up", *runs]) == 0
    assert dict(open_run(tmp_path / "a").knobs)["router_aux_loss_coef"] == 0.05
    assert main(["set", "a", "router_aux_loss_coef=2", *runs]) == 2
    assert "router_aux_loss_coef must be between 0 and 1, got 2" in capsys.readouterr().err
    assert main(["set", "a", "w_load=0.1", *runs]) == 2
    assert "unknown knob 'w_load'; there are: router_aux_loss_coef, top_k, schedule, note" in capsys.readouterr().err
    writer.finish("stopped")
    assert main(["runs", "--json", *runs]) == 0
    assert json.loads(capsys.readouterr().out)["task"] == "OlmoeForCausalLM"
    assert main(["verify", "a", *runs]) == 0


@pytest.mark.parametrize(
    "words", [["fork", "a", "--at", "10"], ["replay", "a"], ["train", "--resume", "a"], ["ablate", "a"]]
)
def test_what_only_its_own_writer_can_do_is_refused_in_one_line(tmp_path: Path, words: list[str], capsys: Any) -> None:
    write(tmp_path / "a").finish("stopped")
    assert main([*words, "--runs", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "recorded by another program (version 9.1)" in error


def test_it_is_exported_and_reported(run: Run, tmp_path: Path) -> None:
    files = {path.name for path in export(run, tmp_path / "out", ("csv", "svg"))}
    assert {"balance.svg", "statistics.csv", "export.json"} <= files
    assert "script.txt" not in files  # there is no trainer that could take it
    head = (tmp_path / "out" / "statistics.csv").read_text().split("\n", 1)[0].split(",")
    assert "counts_layer2_expert16" in head
    assert "counts_layer3_expert9" not in head
    assert not [name for name in head if name.startswith("load_layer")]
    text = write_report(Still(run), tmp_path / "report.html").read_text()
    assert "router_aux_loss_coef" in text
    assert "olmoe-tiny" in text
    with pytest.raises(ValueError, match="which olmoe does not measure; export its figures instead"):
        replay(run, tmp_path / "replay.html")


def test_runs_of_one_task_are_compared(run: Run) -> None:
    write(run.path.parent / "other").finish("stopped")
    with Named("olmoe", ("other",)).open(run.path.parent) as source:
        assert not isinstance(source, Still) or [one.id for one in source.others] == ["other"]
        assert shows(source, "compare_loss")
        FIGURES["compare_loss"].draw.spec(**FIGURES["compare_loss"].read(source, At()))
        assert tiles_of("compare", source)[0].value


# A run of our own trainer, of a later version


def later(about: dict[str, Any]) -> dict[str, Any]:
    """What a version of tomorrow would write: a strategy and a knob that this one does not know."""
    described = about["description"]
    described["knobs"]["strategy"]["choices"] = ["paper", "tomorrow"]
    described["knobs"]["strategy"]["start"] = "tomorrow"
    described["knobs"]["warmth"] = {"start": 0.5, "low": 0.0, "high": 1.0, "help": "how warm"}
    return described


def test_a_strategy_and_a_knob_that_this_version_does_not_know_are_shown_by_name(tmp_path: Path) -> None:
    own = {"description": to_json(describe(Config(num_experts=4), Knobs()))}
    described = from_json(later(own), ("loss", "task_loss", "seconds", "importance", "load", "counts"))
    own = {"config": {"task": "text", "num_experts": 4}, "knobs": {"strategy": "tomorrow", "warmth": 0.5}}
    writer = create_record(tmp_path / "a", described, own=own)
    width = sum(column.width for column in columns_of(described.experts, described.measures))
    writer.commit(Batch(1, np.ones((60, width), np.float32), state="training"))
    run = open_run(tmp_path / "a")
    assert (run.knobs.strategy, run.knobs.warmth) == ("tomorrow", 0.5)
    feed = Feed(run)
    feed.refresh()
    shown = {knob["name"]: knob["value"] for knob in panel(feed)["knobs"]}
    assert (shown["strategy"], shown["warmth"]) == ("tomorrow", 0.5)
    run.turn(warmth=0.75)
    assert run.knobs.warmth == 0.75
    for page in ("live", "batch"):
        assert tiles_of(page, feed)
        for name in on_page(feed, page):
            FIGURES[name].draw.spec(**FIGURES[name].read(feed, At()))
    with pytest.raises(StoreError, match="with knobs or settings that this version does not know"):
        _ = run.config
    writer.finish("stopped")


@pytest.mark.parametrize("unknown", ["strategy", "warmth"])
def test_one_of_them_alone_is_enough(tmp_path: Path, unknown: str) -> None:
    own = to_json(describe(Config(num_experts=4), Knobs()))
    tomorrow = later({"description": json.loads(json.dumps(own))})
    own["knobs"][unknown] = tomorrow["knobs"][unknown]
    described = from_json(own, ("loss",))
    about = {"config": {"task": "text", "num_experts": 4}, "knobs": {unknown: tomorrow["knobs"][unknown]["start"]}}
    create_record(tmp_path / "a", described, own=about).finish("stopped")
    run = open_run(tmp_path / "a")
    assert run.knobs[unknown] == tomorrow["knobs"][unknown]["start"]
    assert not run.trainable


def test_our_own_runs_say_it_too_and_get_the_knobs_of_today(tmp_path: Path) -> None:
    from moe_core.runs import create_run

    create_run(tmp_path / "a", Config.for_task("plane", num_experts=4), Knobs(noise=0.5)).finish("stopped")
    run = open_run(tmp_path / "a")
    assert run.about["description"]["knobs"]["noise"]["start"] == 0.5
    assert from_json(run.about["description"], run.description.measures) == run.description
    assert (run.description.origin, run.description.probe, run.description.task) == ("trained", "points", "plane")
    starting = Unstarted("a", run.config, Knobs(noise=0.5))
    assert [name for name in FIGURES if offered(starting, name)] == [name for name in FIGURES if offered(run, name)]


# What a stranger may write


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"origin": "stolen"}, "origin must be one of trained, watched, opened"),
        ({"layers": []}, "1 to 256 layers, got 0"),
        ({"layers": [{"name": "a", "experts": 4, "k": 2}] * 2}, "two layers the same name"),
        ({"layers": [{"name": str(i), "experts": 4, "k": 2} for i in range(257)]}, "1 to 256 layers, got 257"),
        ({"layers": [{"name": "a", "experts": 1025, "k": 2}]}, "experts must be a whole number from 1 to 1024"),
        ({"layers": [{"name": "a", "experts": 4, "k": 5}]}, "at least k experts, got 4 experts in 1 groups with k=5"),
        ({"layers": [{"name": "a", "experts": 8, "k": 3, "groups": 4}]}, "got 8 experts in 4 groups with k=3"),
        ({"layers": [{"name": "a", "experts": True, "k": 1}]}, "experts must be a whole number"),
        ({"layers": [{"name": 3, "experts": 4, "k": 1}]}, "texts in a description must have"),
        ({"knobs": {"a b": {"start": 1}}}, "must be a word"),
        ({"knobs": {"a": {"start": 5, "low": 0, "high": 1}}}, "a must be between 0 and 1"),
        ({"knobs": {"a": {"start": True}}}, "must start at a number or a word"),
        ({"knobs": {"k": {"start": "two"}}}, "knob k must start at a whole number, as our own"),
        ({"knobs": {"strategy": {"start": 1.5}}}, "knob strategy must start at a word"),
        ({"knobs": {"noise": {"start": "loud"}}}, "knob noise must start at a number"),
        ({"knobs": {"a": {"start": 1, "scale": "round"}}}, "scale must be one of"),
        ({"knobs": {f"a{i}": {"start": 1} for i in range(65)}}, "0 to 64 knobs, got 65"),
        ({"metrics": [{"name": "a"}]}, "not valid"),
        ({"metrics": [Metric("a", "", "", True)._asdict()] * 2}, "two metrics the same name"),
        ({"metrics": [Metric("selections", "", "", True)._asdict()]}, "must not be called selections"),
        ({"loss": {"unit": "x", "nats": 1e-9, "metric": "a"}}, "nats in one unit .* between 1e-6 and 1e6, got 1e-09"),
        ({"loss": {"unit": "x", "nats": float("inf"), "metric": "a"}}, "nats in one unit"),
        ({"knobs": {"a": {"start": "b", "choices": ["b"] * 257}}}, "a must have at most 256 choices, got 257"),
        ({"settings": {"a": "x" * (64 << 10)}}, "settings of at most 65,536 characters"),
        ({"probe": "cats"}, "probe must be one of"),
        ({"obeys": ["dance"]}, "obeys must be one of"),
        ({"tokens": -1}, "tokens must be a whole number"),
        ({"settings": 3}, "not valid"),
        ({"task": "x" * 500}, "at most 400 characters"),
    ],
)
def test_a_description_that_cannot_be_is_refused_in_one_line(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        from_json(to_json(OWN) | change)
    assert "\n" not in str(refused.value)


def test_what_a_later_version_says_of_a_layer_a_knob_or_a_metric_is_left_out() -> None:
    record = to_json(OWN)
    more = record | {
        "layers": [layer | {"colour": "red"} for layer in record["layers"]],
        "knobs": {name: knob | {"colour": "red"} for name, knob in record["knobs"].items()},
        "metrics": [metric | {"colour": "red"} for metric in record["metrics"]],
        "colour": "red",
    }
    assert from_json(more, MEASURES) == OWN


def test_a_record_whose_columns_are_not_those_of_its_layers_is_refused(tmp_path: Path) -> None:
    other = from_json(to_json(OWN) | {"layers": [{"name": "a", "experts": 4, "k": 2}]}, MEASURES)
    with pytest.raises(ValueError, match="are not those of layers of 8, 16"):
        create_record(tmp_path / "a", other, own={"description": to_json(OWN)})


def test_a_description_survives_its_json() -> None:
    assert from_json(json.loads(json.dumps(to_json(OWN))), MEASURES) == OWN


def test_every_source_is_one() -> None:
    """What the readers are written against; mypy checks the methods, this that none was added to the Protocol alone."""
    names = {name for name in dir(Source) if not name.startswith("_")}
    given = {
        "id",
        "name",
        "description",
        "labels",
        "parent",
        "options",
        "others",
        "started_knobs",
        "knobs",
        "deals",
        "on_devices",
    }
    for kind in (Run, Feed, View, Still, Unstarted):
        lacking = {name for name in names if not hasattr(kind, name)}
        assert lacking <= given, kind


def test_a_figure_is_exported_of_a_layer_by_its_name_and_says_so(run: Run, capsys: Any) -> None:
    words = [
        "export",
        run.id,
        "--runs",
        str(run.path.parent),
        "--figure",
        "balance",
        "--format",
        "svg,csv",
        "--caption",
    ]
    name, out = "model.layers.1.mlp.experts", run.path.parent.parent / "out"
    assert main([*words, "--out", str(out), "--layer", name]) == 0
    assert main([*words, "--out", str(out / "2"), "--layer", "2"]) == 0
    assert (out / "balance.svg").read_bytes() == (out / "2" / "balance.svg").read_bytes()
    assert f"{run.id}, layer 2 {name}, step 150, MoEscope" in (out / "balance.svg").read_text()
    facts = json.loads((out / "export.json").read_text())["balance.csv"]
    assert (facts["Layer"], facts["Layer name"]) == ("2", name)
    capsys.readouterr()
    assert main([*words, "--out", str(out), "--layer", "model.layers.9"]) != 0
    assert (
        "a layer is named by a whole number from 1 to 6, or by its name, got 'model.layers.9'"
        in capsys.readouterr().err
    )


def test_the_lessons_and_the_formula_of_the_batch_are_not_offered(
    run: Run, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setenv("MOE_RUNS", str(run.path.parent))
    for page, pages_own in (("learn", "info"), ("batch", "select_slider")):
        app = AppTest.from_file(str(ROOT / "moe_core" / "dashboard" / "main.py"), default_timeout=30)
        app.query_params["run"] = "olmoe"
        app.run().switch_page(str(ROOT / "pages" / f"{page}.py")).run()
        assert not app.exception
        assert len(app.get(pages_own)) == (page == "learn")
        if page == "learn":
            assert app.info[0].value == "Lessons train a small model of their own. olmoe is on the other pages."
    assert main(["set", "olmoe", "top_k=1"]) == 2
    assert capfd.readouterr().err.endswith(
        "moe: olmoe is finished: the program that trained it has ended, and nothing would act on this\n"
    )
