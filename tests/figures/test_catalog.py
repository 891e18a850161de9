"""Every figure that a page draws, from recorded runs of every size: title, units, hover, and what it says of nothing."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from moe_core.dashboard.views import View
from moe_core.figures.catalog import FIGURES, offered, tiles_of
from moe_core.figures.theme import DARK, LIGHT
from moe_core.runs.ablation import Ablation, write_ablation
from moe_core.runs.on_devices import NAME
from moe_core.runs.source import At
from moe_core.schema import TASKS, Knobs
from tests.figures.record import record, record_tokens

OURS = [
    name
    for name, entry in FIGURES.items()
    if entry.page in ("experts", "compare", "batch")
    or name
    in (
        "group_treemap",
        "probe_gates",
        "probe_rows",
        "probe_tokens",
        "digit_images",
        "router_margin",
        "confidence",
        "bias_effect",
    )
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    folder: Path = tmp_path_factory.mktemp("runs")
    made = {}
    for task in (*TASKS, "table"):
        for E in (1, 16, 64):
            for steps in (0, 60):
                run = record(folder / f"{task}-{E}-{steps}", task, E, steps=steps)
                other = record(folder / f"{task}-{E}-{steps}-other", task, E, steps=steps, seed=1)
                write_throughput(run)
                write_on_devices(run)
                made[task, E, steps] = View(run, {}, (other,))
    grouped = record(folder / "grouped", "digits", 16, steps=60, groups=4)
    write_ablation(grouped.path, Ablation(60, 1.0, np.full((2, 16), 0.1), np.full((2, 16), 1 / 16)))
    biased = record(folder / "biased", "plane", 16, steps=60, knobs=Knobs(strategy="loss-free"))
    made |= {("digits", 16, 61): View(grouped, {}), ("plane", 16, 61): View(biased, {})}
    for steps in (0, 60):
        tokens = record_tokens(folder / f"tokens-{steps}", [" the", "\n", "cat"], np.arange(40) % 3, steps=steps)
        made["tokens", 8, steps] = View(tokens, {})
    return made | {("text", 256, 60): record(folder / "text-256-60", "text", 256, steps=60, L=1)}


def write_throughput(run: Any) -> None:
    """As `bench batch --json` leaves it."""
    run.throughput_file().parent.mkdir(exist_ok=True)
    events = [{"event": "start", "pid": 1, "sizes": [64, 128], "machine": "made up"}]
    events += [{"event": "size", "tokens": t, "tokens_per_second": 10.0 * t} for t in (64, 128)]
    run.throughput_file().write_text("".join(json.dumps(event) + "\n" for event in [*events, {"event": "end"}]))


def write_on_devices(run: Any) -> None:
    """As `bench ranks --json` leaves it."""
    layers = len(run.description.layers)
    rows = [[10.0 * d, 20.0 * d, 30.0 * d] for d in (1, 2, 4)]
    events: list[dict[str, Any]] = [
        {"event": "start", "pid": 1, "devices": [1, 2, 4]},
        {"event": "model", "step": 5, "tokens": 128, "k": [2] * layers, "experts": [8] * layers, "machine": "made up"},
    ]
    events += [
        {"event": "rows", "devices": d, "own": [rows[0]] * layers, "all": [row] * layers}
        for d, row in zip((1, 2, 4), rows, strict=True)
    ]
    events += [{"event": "speed", "devices": d, "rows_per_second": [1e5 * d] * layers} for d in (1, 2)]
    (run.path / NAME).write_text("".join(json.dumps(event) + "\n" for event in events))


def titles(spec: dict[str, Any]) -> list[str]:
    axes = [axis for name, axis in spec["layout"].items() if re.fullmatch(r"[xy]axis\d*", name)]
    return [axis.get("title", {}).get("text", "") for axis in axes]


def all_specs(runs: dict[Any, Any], name: str) -> Any:
    for (task, E, steps), run in runs.items():
        entry = FIGURES[name]
        if entry.page == "sweep" or offered(run, name):
            for theme in (LIGHT, DARK):
                spec = entry.draw.spec(**entry.read(run, At(0, None, None, 100)), theme=theme, size=(460, 300, False))
                yield (task, E, steps), theme, spec


@pytest.mark.parametrize("name", OURS)
def test_a_figure_has_title_unit_and_titled_axes_whatever_the_run(runs: dict[Any, Any], name: str) -> None:
    for key, theme, spec in all_specs(runs, name):
        layout = spec["layout"]
        title, subtitle = layout["title"]["text"].split("<br>", 1)
        assert title, key
        assert len(re.sub("<.*?>", "", subtitle)) > 8, key
        assert all(titles(spec)), (key, titles(spec))
        assert "rank" not in " ".join(titles(spec)).lower(), (key, titles(spec))  # a rank is a process
        assert layout["meta"]["figure"] == name
        assert layout["paper_bgcolor"] == theme.ground
        assert layout["template"] is None


@pytest.mark.parametrize("name", OURS)
def test_plotly_takes_it_and_what_is_hovered_reads_as_a_sentence(runs: dict[Any, Any], name: str) -> None:
    seen = 0
    for _key, _, spec in all_specs(runs, name):
        go.Figure(data=spec["data"], layout=spec["layout"])
        for trace in spec["data"]:
            hover = trace.get("hovertemplate") or trace.get("hovertext")
            if trace.get("hoverinfo") == "skip":
                continue
            hover = trace["text"][0] if hover is None else hover  # of a heatmap's first row
            sentences = [hover] if isinstance(hover, str) else list(hover)
            for sentence in sentences[:5]:
                assert re.match(r"[A-Z0-9]", sentence), sentence
                assert len(sentence.replace("<extra></extra>", "").split()) >= 5, sentence
                assert not re.search(r"\b[Rr]ank\b", sentence), sentence
                seen += 1
    assert seen


@pytest.mark.parametrize("name", OURS)
def test_a_run_without_a_step_draws_axes_and_no_data(runs: dict[Any, Any], name: str) -> None:
    for (_task, _E, steps), _, spec in all_specs(runs, name):
        if steps == 0 and name not in ("batch_formula", "batch_throughput", "batch_devices"):  # they need no run
            drawn = [trace for trace in spec["data"] if np.isfinite(np.asarray(trace.get("y", []), np.float64)).any()]
            assert all(trace["type"] == "heatmap" and not np.isfinite(np.asarray(trace["z"], np.float64)).any() for trace in drawn), name  # fmt: skip


@pytest.mark.parametrize("page", ["experts", "compare", "batch"])
def test_tiles_are_plain_text_with_a_yardstick_each(runs: dict[Any, Any], page: str) -> None:
    for (task, _E, steps), run in runs.items():
        tiles = tiles_of(page, run)
        first = {"experts": "expert_share", "compare": "run_A", "batch": "tokens_per_expert"}[page]
        # How many tokens a step has is not known of a watched run.
        assert tiles[0].name == ("measured_least" if (task, page) == ("tokens", "batch") else first)
        for tile in tiles:
            assert isinstance(tile.value, str)
            assert tile.value
            assert tile.label != "Rank"
            assert "nan" not in " ".join([tile.value, tile.word, *tile.lines]).lower(), tile
            if steps:
                assert tile.lines, tile
