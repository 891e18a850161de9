"""The numbers inside the Batch page's figures, and the treemap's rectangles."""

import json
from pathlib import Path

import numpy as np
import pytest

from moe_core.dashboard.views import View
from moe_core.export.drawing import draw
from moe_core.export.marks import Text
from moe_core.figures import batch, devices, read_batch, treemap
from moe_core.figures.catalog import offered, shows, tiles_of
from moe_core.figures.pages.tile import plain_count
from moe_core.figures.reading import batch_sizes, tokens_per_expert
from moe_core.figures.theme import DARK, LIGHT
from moe_core.runs import KnobChange
from moe_core.runs.on_devices import NAME
from moe_core.runs.source import At
from moe_core.schema import Config, Knobs, describe
from tests.figures.record import record


def trace(spec, name):
    return next(t for t in spec["data"] if t["name"] == name)


def test_an_expert_sees_k_t_d_over_e_tokens():
    assert tokens_per_expert(1024, 2, 16) == 128
    assert tokens_per_expert(1024, 2, 16, 16) == 2048
    assert tokens_per_expert(1, 1, 1024) == pytest.approx(1 / 1024)


def test_the_formula_falls_with_experts_and_rises_with_devices():
    spec = batch.batch_formula.spec(1024, 2, 16, 8)
    one, many = trace(spec, "1 device"), trace(spec, "8 devices")
    np.testing.assert_allclose(one["y"], 2048 / one["x"])
    np.testing.assert_allclose(many["y"], 8 * one["y"])
    assert one["x"][0] == 2  # with one expert k = 2 is no layer
    assert (trace(spec, "chosen")["x"][0], trace(spec, "chosen")["y"][0]) == (16, 1024)
    assert spec["layout"]["shapes"][0]["y0"] == 1024
    low, high = (10**v for v in spec["layout"]["yaxis"]["range"])
    assert low <= one["y"].min()
    assert high >= many["y"].max()
    assert len(batch.batch_formula.spec(1024, 2, 16, 1)["data"]) == 2


def test_the_runs_counts_stand_beside_the_formula():
    spec = batch.batch_formula.spec(64, 1, 4, 1, measured_E=np.array([2.0, 8, 16, 38]), run_experts=4)
    np.testing.assert_allclose(trace(spec, "measured")["y"], [2, 16, 38])
    assert set(trace(spec, "measured")["x"].tolist()) == {4}
    empty = batch.batch_formula.spec(64, 1, 4, 1, measured_E=np.full(4, np.nan))
    assert all(t["name"] != "measured" for t in empty["data"])
    collapsed = batch.batch_formula.spec(64, 1, 4, 1, measured_E=np.array([0.0, 0, 0, 64]))
    assert trace(collapsed, "measured")["y"][0] > 0  # a log axis has no 0
    assert "saw 0 tokens" in trace(collapsed, "measured")["hovertext"][0]


def test_throughput_is_drawn_as_measured():
    spec = batch.batch_throughput.spec(
        np.array([64, 128]), np.array([1e3, 3e3]), k=2, experts=16, chosen=128, machine="<m>"
    )
    np.testing.assert_allclose(spec["data"][0]["y"], [1e3, 3e3])
    np.testing.assert_allclose(spec["data"][0]["customdata"], [8, 16])
    assert spec["layout"]["shapes"][0]["x0"] == 128
    assert "&lt;m&gt;" in spec["layout"]["title"]["text"]
    empty = batch.batch_throughput.spec(np.zeros(0, int), np.zeros(0))
    assert empty["data"] == []
    assert "not measured yet" in empty["layout"]["title"]["text"]


def test_what_devices_measured_stands_on_the_formulas_lines():
    own, all_ = np.array([[4.0, 16, 30], [5, 16, 29]]), np.array([[4.0, 16, 30], [26, 64, 104]])
    spec = devices.batch_devices.spec(
        512, 2, 64, devices_m=[1, 4], own_m3=own, all_m3=all_, per_second_m=[4.6e5, np.nan], machine="<m>"
    )
    np.testing.assert_allclose(trace(spec, "k·T·D/E")["y"], [16, 32, 64])
    np.testing.assert_allclose(trace(spec, "k·T/E")["y"], [16, 16, 16])
    for name, rows in (("from one batch", own), ("from all batches", all_)):
        drawn = trace(spec, name)
        np.testing.assert_allclose(drawn["y"].reshape(2, 4)[:, :3], rows)
        assert np.isnan(drawn["y"].reshape(2, 4)[:, 3]).all()  # a gap between two bars
        assert drawn["x"].tolist() == [1] * 4 + [4] * 4
    hover = trace(spec, "from all batches")["hovertext"]
    assert hover[6] == "Measured on 4 devices, from the batches of all: the most that one expert got, 104 tokens a step"
    assert "on 1 device, " in hover[0]
    assert [note["text"] for note in spec["layout"]["annotations"] if "rows/s" in note["text"]] == [
        "460 k rows/s"
    ]  # the other is not timed yet
    assert spec["layout"]["yaxis"]["range"][1] > 104
    assert "&lt;m&gt;" in spec["layout"]["title"]["text"]
    texts = [
        "".join(run.text for run in one.runs) for one in draw(spec).marks if isinstance(one, Text)
    ]  # as an export draws it
    assert "460 k rows/s" in texts


@pytest.mark.parametrize(
    ("width", "texts"), [(358, ["1.36 M<br>rows/s", "1.54 M rows/s", "1.69 M rows/s"]), (780, None)]
)
def test_a_speed_that_would_run_through_the_next_bar_takes_two_lines_or_is_left_out(width, texts):
    own = np.array([[45.0, 64, 85]] * 3)
    all_ = np.array([[45.0, 64, 85], [100, 128, 160], [200, 256, 310]])
    drawn = lambda size, all_m3=all_: [
        note["text"] for note in devices.batch_devices.spec(
            512, 8, 64, devices_m=[1, 2, 4], own_m3=own, all_m3=all_m3, per_second_m=[1.36e6, 1.54e6, 1.69e6], size=size
        )["layout"]["annotations"] if "rows/s" in note["text"]
    ]  # fmt: skip
    assert drawn((width, 320)) == (texts or ["1.36 M rows/s", "1.54 M rows/s", "1.69 M rows/s"])
    assert drawn((200, 320))[-1] == "1.69 M rows/s"
    assert len(drawn((200, 320))) < 3


def test_before_devices_are_measured_the_formula_stands_there_alone():
    spec = devices.batch_devices.spec(100, 1, 3)
    assert [t["name"] for t in spec["data"]] == ["k·T·D/E", "k·T/E"]
    np.testing.assert_allclose(trace(spec, "k·T·D/E")["y"], np.array([1, 2, 4]) * 100 / 3, rtol=1e-6)
    assert "not measured yet" in spec["layout"]["title"]["text"]


def test_devices_are_read_of_the_layer_with_what_they_were_measured_at(tmp_path: Path):
    run = record(tmp_path / "a", E=4, tokens=128, L=2)
    assert read_batch.read_devices(run, At()) == {"tokens": 128, "k": 2, "experts": 4}
    rows = {"own": [[1, 2, 3], [4, 5, 6]], "all": [[2, 4, 6], [8, 10, 12]]}
    events = [
        {"event": "start", "pid": 1, "devices": [1, 2, 4]},
        {"event": "model", "step": 9, "tokens": 64, "k": [3, 1], "experts": [4, 2], "machine": "m"},
        {"event": "rows", "devices": 2} | rows,
    ]
    (run.path / NAME).write_text("".join(json.dumps(event) + "\n" for event in events))
    found = read_batch.read_devices(run, At(1))
    assert {name: found[name] for name in ("tokens", "k", "experts", "step", "machine")} == {
        "tokens": 64, "k": 1, "experts": 2, "step": 9, "machine": "m",
    }  # fmt: skip
    assert (found["own_m3"].tolist(), found["all_m3"].tolist()) == ([[4, 5, 6]], [[8, 10, 12]])
    assert np.isnan(found["per_second_m"]).all()


@pytest.mark.parametrize(("E", "offers"), [(1, False), (3, False), (4, True), (6, True)])
def test_devices_are_offered_where_the_experts_can_be_dealt(tmp_path: Path, E: int, offers: bool):
    run = record(tmp_path / "a", E=E, steps=1)
    assert offered(run, "batch_devices") == offers
    assert not shows(run, "batch_devices")  # an export would be empty


def test_most_and_least_are_of_each_step_and_the_middle_is_the_formula():
    counts = np.array([[1, 3, 8], [4, 4, 4], [np.nan] * 3])
    spec = batch.batch_measured.spec(np.arange(1, 4), counts, np.full(3, 4.0))
    np.testing.assert_array_equal(trace(spec, "most")["y"], [8, 4, np.nan])
    np.testing.assert_array_equal(trace(spec, "least")["y"], [1, 4, np.nan])
    np.testing.assert_array_equal(trace(spec, "k·T/E")["y"], [4, 4, 4])


def test_the_formulas_line_follows_the_turns_of_k_and_counts_the_groups(tmp_path: Path):
    run = record(tmp_path / "a", E=8, tokens=128, steps=20)
    before, after = (Knobs(k=k, k_primary=2) for k in (1, 2))
    turns = [
        KnobChange(1, "k", 2, 1, "page", 0.0, step=11),
        KnobChange(2, "k", 1, 2, "page", 0.0, step=None),
    ]

    class Turned(View):
        description = describe(Config(num_experts=8, groups=4, layers=1, tokens=128), before, measures=("counts",))
        started_knobs = before

        def knob_changes(self):
            return turns

        def knobs_at(self, step):
            return after if step >= 11 else before

    ideal_n = read_batch.read_measured(Turned(run, {}), At())["ideal_n"]
    assert ideal_n.tolist() == [2 * 128 / 8] * 10 + [4 * 128 / 8] * 10


def test_the_sizes_are_the_links_else_the_runs_own(tmp_path: Path):
    run = record(tmp_path / "a", E=4, tokens=128)
    assert batch_sizes(run) == (128, 2, 4, 1)
    assert batch_sizes(View(run, {"experts": 64, "devices": 8})) == (128, 2, 64, 8)
    tiles = {tile.name: tile for tile in tiles_of("batch", View(run, {"experts": 64, "devices": 8}))}
    assert (tiles["tokens_per_expert"].value, tiles["one_device"].value) == ("32", "4")
    _, counts = run.history("counts", 0, first=11)
    assert float(tiles["measured_most"].value) == pytest.approx(counts.mean(axis=0).max(), abs=0.01)
    assert tiles["throughput"].value == "–"
    assert [plain_count(v) for v in (128.0, 2.5, 0.125, float("nan"))] == ["128", "2.5", "0.125", "–"]


@pytest.mark.parametrize(("groups", "each"), [(1, 1), (4, 4), (2, 5), (3, 7), (16, 16)])
def test_areas_of_the_treemap_are_shares_and_fill_it(groups, each):
    share = np.random.default_rng(groups).dirichlet(np.ones(groups * each))
    share[0] = 0
    share /= max(share.sum(), 1e-9)
    if groups * each == 1:
        share = np.ones(1)
    spec = treemap.group_treemap.spec(share, groups, size=(620, 335), theme=DARK)
    shapes = spec["layout"]["shapes"]
    cells = [s for s in shapes if "fillcolor" in s]
    areas = np.array([(s["x1"] - s["x0"]) * (s["y1"] - s["y0"]) for s in cells])
    np.testing.assert_allclose(areas / areas.sum(), share, atol=1e-9)
    frames = [s for s in shapes if "fillcolor" not in s]
    assert len(frames) == groups
    for g, frame in enumerate(frames):
        for cell in cells[g * each : (g + 1) * each]:
            assert frame["x0"] - 1e-6 <= cell["x0"] <= cell["x1"] <= frame["x1"] + 1e-6
            assert frame["y0"] - 1e-6 <= cell["y0"] <= cell["y1"] <= frame["y1"] + 1e-6
    assert "Expert" in spec["data"][0]["hovertext"][0]


def test_cells_keep_their_places_when_the_load_moves():
    rng = np.random.default_rng(5)
    rows = []
    for _ in range(20):
        cells = [
            s
            for s in treemap.group_treemap.spec(rng.dirichlet(np.full(16, 0.2)), 4)["layout"]["shapes"]
            if "fillcolor" in s
        ]
        order = [
            sum(cells[i]["y0"] > other["y0"] + 1e-9 for other in cells[g * 4 : g * 4 + 4])
            for g in range(4)
            for i in range(g * 4, g * 4 + 4)
        ]
        rows.append([a >= b for a, b in zip(order[1:], order, strict=False)])
    assert all(row == rows[0] for row in rows)


def test_colour_is_the_deviation_from_ideal():
    assert treemap.deviation_colour(1, LIGHT) == LIGHT.diverging[3]
    assert treemap.deviation_colour(0, LIGHT) == treemap.deviation_colour(1 / 64, LIGHT) == LIGHT.diverging[0]
    assert treemap.deviation_colour(100, DARK) == DARK.diverging[6]
    assert treemap.group_treemap.spec(np.full(4, np.nan), 2)["data"] == []


def test_a_flat_layer_has_one_group():
    descriptions = [describe(Config(num_experts=16, groups=groups), Knobs()) for groups in (0, 4)]
    assert [one.layers[0].groups for one in descriptions] == [1, 4]


def test_the_tiles_say_that_they_are_means_and_the_chart_that_it_shows_single_steps(tmp_path: Path) -> None:
    run = record(tmp_path / "a", E=4)
    tiles = {tile.name: tile for tile in tiles_of("batch", run, At(0))}
    for name in ("measured_least", "measured_most"):
        assert tiles[name].lines == ("mean of one expert", "over the last 50 steps")
    run.close()
    spec = batch.batch_measured.spec(np.arange(1, 3), np.full((2, 4), 16.0), np.full(2, 16.0))
    assert "in one step: the most and the least" in str(spec["layout"]).replace("<br>", " ")
