"""The charts of the gate's choices: their numbers, their gaps, and in which runs they are offered."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_core.__main__ import main
from moe_core.dashboard.feed import Feed
from moe_core.dashboard.views import View
from moe_core.export.numbers import statistics
from moe_core.figures.catalog import FIGURES, shows
from moe_core.runs import Batch, Run, create_run, open_run
from moe_core.runs.begin import create_record
from moe_core.runs.source import At
from moe_core.schema import Config, Knobs, describe, layout, to_json

CHOICE = ("router_margin", "confidence", "bias_effect")
FACTOR = {"router_margin": 1.0, "router_margin_p10": 0.1, "confidence": 0.5, "bias_effect": 0.8}
FIXTURES = Path(__file__).parents[1] / "fixtures" / "v0.1"


def recorded(folder: Path, turns: tuple[tuple[str, Any, int], ...] = (), **knobs: Any) -> Run:
    """20 steps whose statistics are the step over 20 by a factor of their own, NaN in the first five; knobs turned at steps."""
    config = Config.for_task("plane", num_experts=4, layers=1, tokens=64)
    writer = create_run(folder, config, Knobs(**knobs))
    rows = np.ones((20, sum(c.width for c in layout(1, 4))), np.float32)
    for column in layout(1, 4):
        if column.stat in FACTOR:
            rows[:, column.start] = np.where(np.arange(1, 21) > 5, FACTOR[column.stat] * np.arange(1, 21) / 20, np.nan)
    run = open_run(folder)
    applied = [(run.turn("test", {name: value}), step) for name, value, step in turns]
    writer.commit(Batch(1, rows, applied=applied))
    writer.finish("stopped")
    return open_run(folder)


def spec_of(run: Run, name: str) -> dict[str, Any]:
    entry = FIGURES[name]
    return entry.draw.spec(**entry.read(run, At(0, None, None, None)))


def test_lines_are_the_records_and_what_was_not_measured_is_a_gap(tmp_path: Path) -> None:
    run = recorded(tmp_path / "a", strategy="loss-free")
    shown = {
        "router_margin": {"mean": 1.0, "10th percentile": 0.1}, "confidence": {"confidence": 50.0}, "bias_effect": {"overlap": 0.8},
    }  # fmt: skip
    for name, lines in shown.items():
        traces = {trace["name"]: trace for trace in spec_of(run, name)["data"]}
        for line, factor in lines.items():
            y = np.asarray(traces[line]["y"])
            assert np.isnan(y[:5]).all()
            assert y[5:] == pytest.approx(factor * np.arange(6, 21) / 20)


def test_a_margin_without_its_percentile_is_one_line(tmp_path: Path) -> None:
    description = describe(Config(num_experts=4, layers=1), Knobs(), measures=("loss", "router_margin"))
    writer = create_record(
        tmp_path / "a", description, own={"description": to_json(description) | {"origin": "watched"}}
    )
    writer.commit(Batch(1, np.array([[2.0, 0.25], [2.0, 0.5]], np.float32)))
    writer.finish("stopped")
    run = open_run(tmp_path / "a")
    assert shows(run, "router_margin")
    (trace,) = spec_of(run, "router_margin")["data"]
    assert (trace["name"], trace["y"].tolist()) == ("mean", [0.25, 0.5])


def test_the_yardstick_of_confidence_is_k_of_those_on_as_the_knobs_stood(tmp_path: Path) -> None:
    run = recorded(tmp_path / "a", (("k", 1, 8), ("off", "2", 12)))
    even = np.asarray(spec_of(run, "confidence")["data"][1]["y"])
    assert even.tolist() == pytest.approx([50] * 7 + [25] * 4 + [100 / 3] * 9)


@pytest.mark.parametrize(
    ("strategy", "turned", "offered"),
    [
        ("paper", "", ["router_margin", "confidence"]),
        ("loss-free", "", ["router_margin", "confidence", "bias_effect"]),
        ("none", "loss-free", ["router_margin", "confidence", "bias_effect"]),
        ("expert-choice", "", ["confidence"]),
        ("even", "none", ["router_margin", "confidence"]),
    ],
)
def test_a_chart_is_offered_where_its_statistic_has_a_meaning(
    tmp_path: Path, strategy: str, turned: str, offered: list[str]
) -> None:
    run = recorded(tmp_path / "a", (("strategy", turned, 10),) if turned else (), strategy=strategy)
    feed = Feed(run)
    feed.refresh()
    for source in (run, feed, View(feed, {}, ())):
        assert [name for name in CHOICE if shows(source, name)] == offered


@pytest.mark.parametrize("name", ["text", "digits", "plane", "fork"])
def test_a_run_of_an_earlier_version_is_not_offered_them(tmp_path: Path, name: str, capsys: Any) -> None:
    runs = Path(shutil.copytree(FIXTURES, tmp_path / "runs"))
    run = open_run(name, runs)
    assert not any(shows(run, figure) for figure in CHOICE)
    assert shows(run, "tokens_by_expert")
    table = statistics(run)
    assert not any(word in column for word in CHOICE for column in table)
    assert main(["export", name, "--runs", str(runs), "--out", str(tmp_path / "o"), "--figure", "confidence"]) != 0
    assert "confidence" in capsys.readouterr().err
    run.close()
