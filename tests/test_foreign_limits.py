"""Runs of other programs that lack something, or whose layers differ: what is shown of them is right, and nothing breaks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from moe_core.dashboard import compare
from moe_core.dashboard.feed import Feed
from moe_core.dashboard.panel import banner
from moe_core.export import replay
from moe_core.export.report import parts_of
from moe_core.export.sources import Still
from moe_core.figures.catalog import FIGURES, on_page, tiles_of
from moe_core.runs import Batch, Run, open_run
from moe_core.runs.begin import create_record
from moe_core.runs.source import At, Beside
from moe_core.schema import Description, Knob, Layer, Loss, columns_of
from moe_core.schema.stats import Metric

COUNTED = ("counts", "importance", "load", "dead_experts", "loss", "task_loss", "seconds")
ROOT = Path(__file__).parents[1]


def described(experts: tuple[int, ...], measures: tuple[str, ...] = COUNTED, k: int = 1, **more: Any) -> Description:
    layers = tuple(Layer(f"block {i}", E, min(k + i, E)) for i, E in enumerate(experts))
    given: dict[str, Any] = {"knobs": {}, "metrics": (), "loss": Loss(), "probe": "none", "obeys": (), "settings": {}}
    return Description("watched", "own", layers, **given | more, measures=measures)


def recorded(folder: Path, about: Description, steps: int = 60, probe: Any = None, **batch: Any) -> Run:
    writer = create_record(folder, about, probe=probe)
    width = sum(column.width for column in columns_of(about.experts, about.measures))
    rows = np.random.default_rng(len(folder.name)).uniform(1, 2, (steps, width)).astype(np.float32)
    writer.commit(Batch(1, rows, state="training", **batch))
    writer.finish("finished")
    return open_run(folder)


def test_tokens_flow_between_layers_of_different_sizes(tmp_path: Path) -> None:
    """An expert that only one layer has is no empty place, and an empty place of a small layer is no expert of a large one."""
    # Layers of 2 and of 6 experts: 2 and 6 are empty places.
    experts = np.array([[[0], [1], [2], [2]], [[5], [4], [6], [0]]], np.uint8)
    snapshot = {"experts": experts, "gates": np.ones(experts.shape, np.float16)}
    probe = {"tokens": np.zeros(4, np.uint8)}
    run = recorded(tmp_path / "a", described((2, 6), probe="bytes"), probe=probe, snapshots=[(20, "probe", snapshot)])
    for layer in (0, 1):
        spec = FIGURES["expert_flow"].draw.spec(**FIGURES["expert_flow"].read(run, At(layer)))
        words = next(trace for trace in spec["data"] if trace["name"] == "tokens")["hovertext"]
        assert sorted(text.removeprefix("1 of 4 tokens go from ") for text in words) == [
            "expert 1 of layer 1 to expert 6 of layer 2",
            "expert 2 of layer 1 to expert 5 of layer 2",
            "no expert of layer 1 to expert 1 of layer 2",
            "no expert of layer 1 to no expert of layer 2",
        ]
    assert [tile.name for tile in tiles_of("experts", run)] == [
        "expert_share",
        "expert_importance",
        "expert_rank",
        "last_used",
    ]  # no window was recorded, so nothing is said of partners


def test_tokens_of_a_vocabulary_are_not_shown_as_bytes(tmp_path: Path) -> None:
    snapshot = {"experts": np.zeros((1, 4, 1), np.uint8), "gates": np.ones((1, 4, 1), np.float16)}
    about = described((4,), probe="tokens")
    probe = {"tokens": np.array([7, 300, 50_000, 7], np.int32)}
    run = recorded(tmp_path / "a", about, probe=probe, snapshots=[(20, "probe", snapshot)])
    assert run.description.probe == "tokens"
    assert on_page(run, "routing") == ["probe_tokens", "tokens_by_expert"]
    assert FIGURES["probe_tokens"].read(run, At())["strings_N"] == [
        "7",
        "300",
        "50000",
        "7",
    ]  # it says no text for them
    assert {tile.name: tile.lines for tile in tiles_of("routing", run)}["snapshot"] == ("probe of 4 tokens",)
    assert replay.probe_of(run) == {"steps": []}


def test_the_formula_takes_the_k_of_the_layer_that_is_shown(tmp_path: Path) -> None:
    run = recorded(tmp_path / "a", described((4, 8), tokens=64))  # k is 1 and 2
    for layer, each in ((0, "16"), (1, "16")):
        tile = {tile.name: tile for tile in tiles_of("batch", run, At(layer))}["measured_mean"]
        assert tile.lines == (f"formula {each}",)
        assert set(FIGURES["batch_measured"].read(run, At(layer))["ideal_n"]) == {float(each)}


def test_a_number_without_a_unit_is_a_share_only_from_0_to_1_where_more_is_better(tmp_path: Path) -> None:
    for name, value, lower, shown, unit in (
        ("a", 0.25, False, "25.0", "%"), ("b", 27.5, False, "27.50", ""), ("c", 0.25, True, "0.25", ""),
    ):  # fmt: skip
        about = described((4,), metrics=(Metric("score", "score", "", lower),))
        run = recorded(tmp_path / name, about, evals=[(50, {"score": value}, None)])
        tile = {tile.name: tile for tile in tiles_of("live", run)}["heldout"]
        assert (tile.value, tile.unit) == (shown, unit)


def test_runs_with_and_without_metrics_are_compared(tmp_path: Path) -> None:
    metrics = (Metric("score", "score", "points", False),)
    with_one = recorded(tmp_path / "a", described((4,), metrics=metrics), evals=[(50, {"score": 2.0}, None)])
    without = recorded(tmp_path / "b", described((4,)))
    for first, second in ((with_one, without), (without, with_one)):
        tiles = tiles_of("compare", Beside(first, {}, [second]))
        assert [tile.name for tile in tiles] == ["run_A", "run_B"]
        lines = [any("held-out" in line for line in tile.lines) for tile in tiles]
        assert lines == [first is with_one, second is with_one]
        assert compare.sections([first, second])


def test_the_table_of_a_comparison_has_the_balance_as_it_was_at_its_step(tmp_path: Path) -> None:
    """Not that of an evaluation after it, which the shorter run does not have."""
    metrics = (Metric("score", "score", "points", False),)
    even, uneven = [[5.0] * 4], [[20.0, 0.0, 0.0, 0.0]]
    about = described((4,), metrics=metrics)
    evals = [(step, {"score": 1.0, "selections": counts}, None) for step, counts in ((20, even), (60, uneven))]
    long = recorded(tmp_path / "a", about, evals=evals)
    short = recorded(tmp_path / "b", about, steps=30, evals=evals[:1])
    rows = dict(compare.sections([long, short])[-1][1])
    (held_out,) = (texts for name, texts in rows.items() if name.startswith("CV") and "out" in name)
    assert held_out == ["0.00", "0.00 (0.00)"]


def test_without_a_smooth_load_report_and_comparison_have_the_balance_of_the_selections(tmp_path: Path) -> None:
    runs = [recorded(tmp_path / name, described((4,), ("counts",))) for name in "ab"]
    (first, *_) = parts_of(Still(runs[0]), lambda *one: one)
    assert [row[0] for row in first.content[0].rows if row[0].startswith("CV")] == ["CV(selections), layer 1"]
    assert "CV(selections)" in dict(compare.sections(runs)[-1][1])


def test_the_banner_says_nothing_of_what_was_not_measured(tmp_path: Path) -> None:
    feed = Feed(recorded(tmp_path / "a", described((4,), ("loss", "task_loss"))))
    feed.refresh()
    line = banner(feed, 0)
    assert line
    assert line["text"].startswith("Finished: 60 steps in ")
    assert line["text"].endswith("\u00a0s.")


def test_a_report_has_what_is_of_all_layers_once(tmp_path: Path) -> None:
    knobs = {"lr": Knob(0.1, 0.0, 1.0)}
    run = recorded(tmp_path / "a", described((4,) * 6, knobs=knobs))
    (figures,) = (part.content for part in parts_of(Still(run), lambda *one: one) if part.title == "Figures")
    for name, many in (("layers", 1), ("layers_spread", 1), ("loss", 1), ("balance", 6)):
        assert [layer for one, layer in figures if one == name] == list(range(many)), name


@pytest.mark.parametrize("measures", [("task_loss",), ("seconds",)])
def test_the_export_page_opens_for_a_run_of_one_figure_or_none(
    tmp_path: Path, measures: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(tmp_path / "runs" / "a", described((4,), measures)).close()
    monkeypatch.setenv("MOE_RUNS", str(tmp_path / "runs"))
    app = AppTest.from_file(str(ROOT / "moe_core" / "dashboard" / "main.py"), default_timeout=60)
    app.query_params["run"] = "a"
    app.run()
    app.switch_page(str(ROOT / "pages" / "export.py"))
    app.run()
    assert not app.exception
