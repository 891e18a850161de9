"""Comparisons and sweeps as files: stamped with all their runs, with the numbers behind, the same bytes each time."""

import csv
import io
import json
import re
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from moe_core.__main__ import main
from moe_core.export import FORMATS, Look, chosen, export, rendered
from moe_core.export.animation import animate
from moe_core.export.numbers import cells, finished
from moe_core.export.replay import replay
from moe_core.export.sources import Named, named
from moe_core.export.stamp import caption_of, figure_facts
from moe_core.figures.catalog import FIGURES
from moe_core.figures.read_compare import aligned_by
from moe_core.figures.read_sweep import SweepResults
from moe_core.runs.source import At
from moe_core.schema import Config, Knobs, describe
from tests.export.made import make_run

COMPARED = [
    "compare_balance", "compare_loss", "compare_balance_difference", "compare_loss_difference", "compare_selections",
]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, task in (("a", "text"), ("b", "text"), ("p", "plane")):
        make_run(folder, task, steps=40, name=name, turned=name != "b").close()
    return folder


@pytest.fixture
def pair(runs):
    with Named("a", ("b",), (("align", "fork"), ("expert", "3"))).open(runs) as source:
        yield source


def result(cell, seed, ended=True, **numbers):
    job = SimpleNamespace(run_id=f"s-c{cell}-s{seed}", cell=cell, config=SimpleNamespace(seed=seed))
    numbers = {"cv_load": 0.5, "cv_importance": 0.1, "max_over_mean_load": 2.0, "dead_experts": 0.0, "comparable": True, "eval": {"accuracy": 0.9, "loss": 0.3}} | numbers  # fmt: skip
    return SimpleNamespace(job=job, ended=numbers if ended else None)


@pytest.fixture
def found():
    """Two by two cells; the last has no run that counts."""
    pairs = [(0.0, 0.5), (0.1, 0.5), (0.0, 1.0), (0.1, 1.0)]
    swept = [{"w_load": w, "noise": n} for w, n in pairs]
    results = [result(i, 0, i < 3, cv_load=0.25 * (i + 1)) for i in range(4)] + [result(0, 1, cv_load=0.75)]
    rows = [
        {**cell, "runs": 1, "finished": int(i < 3), "accuracy": 0.9 if i < 3 else None, "accuracy_spread": None,
         "cv_load": 0.25 * (i + 1) if i < 3 else None, "cv_load_spread": None, "comparable": i != 1, "ids": [f"s-c{i}-s0"]}
        for i, cell in enumerate(swept)
    ]  # fmt: skip
    return SweepResults(
        "grid", describe(Config.for_task("plane", steps=70), Knobs()), ("w_load", "noise"), swept, rows, results
    )


def table(data):
    return list(csv.DictReader(io.StringIO(data.decode())))


def test_a_comparison_is_offered_only_with_other_runs(runs, pair):
    assert [name for name in chosen(pair, None) if name.startswith("compare")] == COMPARED
    with Named("a").open(runs) as alone, pytest.raises(ValueError, match=r"compares runs: name others with --with"):
        chosen(alone, ["compare_loss"])
    assert not [name for name in chosen(pair, None) if name.startswith("sweep")]


def test_every_figure_of_a_comparison_in_every_format_says_whose_it_is(pair, tmp_path):
    made = [export(pair, tmp_path / n, FORMATS, COMPARED, Look(caption=True)) for n in "xy"]
    for one, other in zip(*made, strict=True):
        assert one.read_bytes() == other.read_bytes()
    with Image.open(tmp_path / "x" / "compare_balance.png") as image:
        assert image.text["Compared"] == "a, step 40; b, step 40"
        assert (image.text["Aligned"], image.text["Chosen"]) == ("fork", "expert 3")
        assert image.text["Changes"] == "a: step 21: noise 1 → 0.5 (script)"
    assert "a, b, step 40, MoEscope" in (tmp_path / "x" / "compare_balance.svg").read_text()
    assert json.loads((tmp_path / "x" / "export.json").read_text())["compare_selections.csv"]["Compared"].startswith(
        "a, step"
    )


def test_the_tables_of_a_comparison_hold_each_runs_line_and_their_difference(pair):
    rows = table(rendered(pair, "compare_balance_difference", "csv", Look()))
    a, b = (run.history("cv_load", 0)[1] for run in (pair, *pair.others))
    np.testing.assert_allclose([float(row["b_minus_a"]) for row in rows], b - a, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose([float(row["a"]) for row in rows], a, rtol=1e-6)
    assert (rows[0]["a_change_step"], rows[0]["a_change"]) == ("21", "noise 1 -> 0.5")
    assert "b_change" not in rows[0]
    loads = table(rendered(pair, "compare_selections", "csv", Look()))[-1]
    np.testing.assert_allclose(float(loads["b_8"]), pair.others[0].history("selection_share", 0)[1][-1, 7], rtol=1e-6)
    losses = table(rendered(pair, "compare_loss", "csv", Look()))
    assert [row["b_heldout_step"] for row in losses[:2]] == ["20", "40"]


def test_a_comparison_calls_runs_by_the_names_that_people_gave_them(pair, monkeypatch):
    svg = rendered(pair, "compare_balance", "svg", Look(caption=True)).decode()
    assert {"a", "b"} <= set(re.findall(r">([ab])<", svg))
    monkeypatch.setattr(type(pair.record), "name", property(lambda run: "even; wide"))
    assert list(table(rendered(pair, "compare_balance", "csv", Look()))[0])[:2] == [
        "even; wide (A)_step",
        "even; wide (A)",
    ]
    facts = figure_facts(pair, "compare_balance", Look())
    assert facts["Compared"] == "even; wide (A) (a), step 40; even; wide (B) (b), step 40"
    assert caption_of(facts).startswith("even; wide (A) (a), even; wide (B) (b), step 40, ")
    assert facts["Changes"].startswith("even; wide (A): step 21: noise")


def test_a_sweeps_figures_tables_and_stamp(found, tmp_path):
    files = export(found, tmp_path / "x", FORMATS, look=Look(caption=True))
    assert {f.name for f in files} == {f"{n}.{f}" for n in ("sweep_balance", "sweep_quality", "sweep_pareto") for f in FORMATS} | {"statistics.csv", "statistics.parquet", "export.json"}  # fmt: skip
    for one, other in zip(files, export(found, tmp_path / "y", FORMATS, look=Look(caption=True)), strict=True):
        assert one.read_bytes() == other.read_bytes()
    with Image.open(tmp_path / "x" / "sweep_pareto.png") as image:
        assert (image.text["Sweep"], image.text["Runs"], image.text["Knobs"]) == ("grid", "4 of 5", "w_load, noise")
    assert "grid, 4 of 5 runs, MoEscope" in (tmp_path / "x" / "sweep_pareto.svg").read_text()
    balance = table((tmp_path / "x" / "sweep_balance.csv").read_bytes())
    assert [row["cv_load"] for row in balance] == ["0.25", "0.5", "0.75", ""]
    assert "accuracy" not in balance[0]
    runs = table((tmp_path / "x" / "sweep_pareto.csv").read_bytes())
    assert [(row["run"], row["seed"], row["noise"], row["cv_load"]) for row in runs][-1] == ("s-c0-s1", "1", "0.5", "0.75")  # fmt: skip
    held = pyarrow.parquet.read_table(tmp_path / "x" / "statistics.parquet")
    assert held.column("accuracy").to_pylist()[:3] == [0.9] * 3
    assert held.schema.metadata[b"Sweep"] == b"grid"
    assert list(cells(found))[:4] == ["w_load", "noise", "runs", "finished"]
    assert len(finished(found)["run"]) == 4


def test_a_sweep_of_one_knob_has_no_maps_and_nothing_that_moves(found, tmp_path):
    one = found._replace(swept=("noise",), cells=[{"noise": cell["noise"]} for cell in found.cells])
    assert chosen(one, None) == ["sweep_pareto"]
    with pytest.raises(ValueError, match="does not change over steps"):
        animate(found, "sweep_pareto", tmp_path / "x.gif", Look())
    with pytest.raises(ValueError, match="grid is a sweep"):
        replay(found, tmp_path / "x.html")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--with", "p"), "runs of one task"),
        (("--with", "a"), "named twice"),
        (("--with", "b", "b"), "named twice"),
        (("--with", *"bcde"), "no run"),
        (("--choose", "expert=9"), "from 1 to 8"),
        (("--choose", "pinned=3;4"), "commas between them"),
        (("--choose", "pinned=3,99"), "pinned must be numbers from 1 to 8, got '3,99'"),
        (("--choose", "tokens=many"), "whole number"),
        (("--choose", "colour=3"), "cannot be chosen"),
    ],
)
def test_what_does_not_fit_together_is_one_line(runs, tmp_path, capsys, words, said):
    assert main(["export", "a", "--runs", str(runs), "--out", str(tmp_path / "out"), *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_command_compares_and_chooses(runs, tmp_path):
    words = ["export", "a", "--runs", str(runs), "--format", "csv", "--out", str(tmp_path)]
    assert main([*words, "--with", "b", "--align", "fork", "--figure", "compare_balance", "expert_share"]) == 0
    assert json.loads((tmp_path / "export.json").read_text())["compare_balance.csv"]["Aligned"] == "fork"
    assert main([*words, "--choose", "expert=2", "tokens=4096", "--figure", "expert_share", "batch_formula"]) == 0
    facts = json.loads((tmp_path / "export.json").read_text())
    assert facts["batch_formula.csv"]["Chosen"] == "expert 2, tokens 4096"
    with Named("a", options=(("expert", "2"),)).open(runs) as source:
        assert "expert 2" in rendered(source, "expert_share", "svg", Look()).decode()
        assert aligned_by(source) == "step"


def test_a_name_means_a_run_a_sweep_or_the_beginning_of_one(runs):
    assert named("a", runs, others=("b",)) == Named("a", ("b",))
    (runs / "grid").mkdir()
    told = {"config": {"task": "plane", "steps": 5}, "knobs": {}, "cells": [{"noise": 1.0}], "seeds": [0]}
    (runs / "grid" / "sweep.json").write_text(json.dumps(told))
    assert named("grid", runs) == named("gri", runs) == Named(sweep="grid")
    with named("grid", runs).open(runs) as source:
        assert (source.id, source.swept, [one.state for one in source.results]) == ("grid", ("noise",), ["waiting"])
    with pytest.raises(ValueError, match="no run"):
        named("nothing", runs)


def test_a_cell_that_lacks_a_knob_stands_last_under_a_dash(found):
    less = found._replace(cells=[*found.cells[:2], {"w_load": 0.0}, {"w_load": 0.1}])
    read = FIGURES["sweep_balance"].read(less, At(0, None, None, None))
    assert read["y"] == ("noise", [0.5, None])
    assert FIGURES["sweep_balance"].draw.spec(**read)["layout"]["yaxis"]["ticktext"] == ["0.5", "–"]
    np.testing.assert_array_equal(read["cv_load_YX"], [[0.25, 0.5], [0.75, np.nan]])
    assert read["ids_YX"] == [["s-c0-s0", "s-c1-s0"], ["s-c2-s0", ""]]
    quality = FIGURES["sweep_quality"].read(less, At(0, None, None, None))
    assert quality["ahead_YX"].tolist() == [[False, True], [False, False]]
    assert "0 / –" in FIGURES["sweep_pareto"].read(less, At(0, None, None, None))["names_N"]
