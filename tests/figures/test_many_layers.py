"""Runs of many layers: the figures over all layers against numpy, what they need, their files, and what reading them takes."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_core.dashboard import histories
from moe_core.dashboard.feed import Feed
from moe_core.export import FORMATS, Look, rendered
from moe_core.figures.catalog import FIGURES, offered, on_page
from moe_core.figures.layers import cut, layers, short_names
from moe_core.figures.theme import DARK, LIGHT, Theme
from moe_core.runs import Batch, Run, open_run
from moe_core.runs.source import At
from moe_core.schema.checks import switched_off
from tests.figures.many_layers import counts_of, name_of, record_layers, rows_of, start_layers
from tests.figures.record import record

BOTH = ("layers", "layers_spread")
MIXED = [16, 8, 32, 12, 16, 4]  # experts of each layer


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder: Path = tmp_path_factory.mktemp("runs")
    return {
        "mixed": record_layers(folder / "mixed", MIXED, k=4),
        "off": record_layers(folder / "off", MIXED, k=4, off="1:3,1:5"),
        "none": record_layers(folder / "none", MIXED, steps=0),
        "large": record_layers(folder / "large", [256] * 61),
    }


def spec_of(run: Any, name: str, at: At = At(), theme: Theme = LIGHT, size: tuple[int, int] = (620, 400)) -> Any:  # noqa: B008
    entry = FIGURES[name]
    return entry.draw.spec(**entry.read(run, at), theme=theme, size=size)


def expected(experts_L: list[int], last: int, k: int) -> list[np.ndarray]:
    """(E,) of each layer: the selections of the 50 steps up to `last`, over ideal."""
    counts = [one[max(0, last - 50) : last].sum(axis=0) for one in counts_of(experts_L, 60, k, 0)]
    return [one * len(one) / one.sum() for one in counts]


@pytest.mark.parametrize("step", [None, 7])
def test_each_row_is_a_layer_sorted_from_its_most_selected_expert(runs: dict[str, Run], step: int | None) -> None:
    fig = FIGURES["layers"].draw(**FIGURES["layers"].read(runs["mixed"], At(2, step)), theme=LIGHT)
    (heatmap,) = fig.data
    z, hovered = np.asarray(heatmap.z, float), np.asarray(heatmap.customdata)
    assert fig.layout.xaxis.title.text == "experts, by selections in each layer"
    assert z.shape == (len(MIXED), max(MIXED))
    for layer, ratio in enumerate(expected(MIXED, step or 60, 4)):
        E = len(ratio)
        np.testing.assert_allclose(hovered[layer, :E, 1], np.sort(ratio)[::-1], rtol=1e-5)
        np.testing.assert_allclose(ratio[hovered[layer, :E, 0].astype(int) - 1], hovered[layer, :E, 1], rtol=1e-5)
        with np.errstate(divide="ignore"):
            np.testing.assert_allclose(z[layer, :E], np.clip(np.log2(np.sort(ratio)[::-1]), -3, 3), atol=1e-5)
        assert np.isnan(z[layer, E:]).all()
    assert (hovered[3, :12, 1] == 0).sum() == 8  # dead
    frame = fig.layout.shapes[-1]
    assert (frame.y0, frame.y1) == (2.5, 3.5)


def test_a_frame_says_where_a_layer_has_no_more_experts(runs: dict[str, Run]) -> None:
    """A fair cell is nearly as pale as the ground. Where all layers have as many experts, none is needed."""
    frames = spec_of(runs["mixed"], "layers")["layout"]["shapes"][:-1]
    assert [(one["x1"] - 0.5, one["y0"] + 0.5, one["y1"] + 0.5) for one in frames] == [
        (E, layer + 1, layer + 2) for layer, E in enumerate(MIXED)
    ]
    layout = layers.spec(np.ones((4, 8)), list("abcd"), [4, 4, 8, 8])["layout"]
    assert [(one["x1"], one["y0"], one["y1"]) for one in layout["shapes"]] == [(4.5, 0.5, 2.5), (8.5, 2.5, 4.5)]
    assert layers.spec(np.ones((4, 8)), list("abcd"), [8] * 4)["layout"]["shapes"] == []


def test_an_expert_that_is_off_is_grey_and_counts_neither_as_dead_nor_in_the_ideal(runs: dict[str, Run]) -> None:
    off, heatmap = spec_of(runs["off"], "layers")["data"]
    assert off["name"] == "off"
    named = off["customdata"][np.isfinite(off["z"])]
    np.testing.assert_array_equal(np.sort(named), [3, 5])
    counts = counts_of(MIXED, 60, 4, 0)[0][10:60].astype(float)  # the other's steps count in full
    on = np.ones_like(counts, bool)
    on[20:, [2, 4]] = False
    ideal = (counts * on).sum(1) / on.sum(1)
    ratio = (counts * on).sum(0) / (on * ideal[:, None]).sum(0)
    hovered = heatmap["customdata"][0]
    np.testing.assert_allclose(hovered[:14, 1], np.sort(np.delete(ratio, [2, 4]))[::-1], rtol=1e-5)
    assert np.isnan(heatmap["z"][0, 14:]).all()
    cv_L = FIGURES["layers_spread"].read(runs["off"], At())["cv_L"]
    rest = np.delete(ratio, [2, 4])
    assert cv_L[0] == pytest.approx(rest.std() / rest.mean())


def test_an_expert_that_is_off_in_every_layer_is_off_where_there_is_one(tmp_path: Path) -> None:
    run = record_layers(tmp_path / "all", MIXED, k=4, off="5,")
    off, _ = spec_of(run, "layers")["data"]
    np.testing.assert_array_equal(np.isfinite(off["z"]).sum(axis=1), [1, 1, 1, 1, 1, 0])
    with pytest.raises(ValueError, match="off must name experts"):
        switched_off(MIXED, "6:5")


def test_the_spread_is_percentiles_over_the_layers_with_the_ends_by_name(runs: dict[str, Run]) -> None:
    ratio = expected(MIXED, 60, 4)
    both = [r.std() / r.mean() for r in ratio], [r.max() / r.mean() - 1 for r in ratio]
    spec = spec_of(runs["mixed"], "layers_spread")
    traces = [trace for trace in spec["data"] if "each" not in trace["name"]]
    for trace, values in zip(traces, both, strict=True):
        levels = [max(values), *np.percentile(values, [95, 90, 75, 50]), min(values)]
        np.testing.assert_allclose(trace["x"], levels, rtol=1e-5)
        assert trace["customdata"] == [np.argmax(values) + 1, 0, 0, 0, 0, np.argmin(values) + 1]
        assert trace["hovertext"][0].startswith(f"The worst layer is {name_of(int(np.argmax(values)))}: ")
        assert f"at most {levels[3]:.2f}" in trace["hovertext"][3]
    each = [trace for trace in spec["data"] if "each" in trace["name"]]
    np.testing.assert_allclose(each[0]["x"], both[0], rtol=1e-5)
    notes = [note["text"] for note in spec["layout"]["annotations"]]
    assert f"layer {np.argmax(both[0])}" in notes
    assert f"layer {np.argmin(both[1])}" in notes
    assert f"{max(both[0]):.2f}" in notes


def test_a_layer_without_a_selection_is_blank_and_is_not_the_best() -> None:
    ratio = np.array([[1.2, 0.8], [np.nan, np.nan], [1.0, 1.0]])
    spec = FIGURES["layers"].draw.spec(ratio, ["a", "b", "c"], [2, 2, 2])
    assert np.isnan(spec["data"][-1]["z"][1]).all()
    spec = FIGURES["layers_spread"].draw.spec(
        np.array([0.2, np.nan, 0.1]), np.array([0.2, np.nan, 0.1]), ["a", "b", "c"]
    )
    assert spec["data"][0]["hovertext"][-1].startswith("The best layer is c")


@pytest.mark.parametrize("name", BOTH)
def test_it_is_offered_from_five_layers_on_and_where_selections_are_recorded(tmp_path: Path, name: str) -> None:
    assert not offered(record_layers(tmp_path / "four", [8] * 4), name)
    five = record_layers(tmp_path / "five", [8] * 5)
    assert offered(five, name)
    assert on_page(five, "live")[:2] == list(BOTH)  # above the charts of one layer
    assert not offered(record(tmp_path / "ours"), name)


@pytest.mark.parametrize("name", BOTH)
def test_a_run_without_a_step_draws_axes_and_no_data(runs: dict[str, Run], name: str) -> None:
    spec = spec_of(runs["none"], name)
    assert spec["data"] == []
    assert spec["layout"]["xaxis"]["title"]["text"]


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_every_format_has_61_layers_of_256_experts_at_a_papers_size(runs: dict[str, Run], name: str, theme: Theme) -> None:  # fmt: skip
    for format in FORMATS:
        assert len(rendered(runs["large"], name, format, Look(theme=theme.name))) > 500


def test_a_table_names_the_layers(runs: dict[str, Run]) -> None:
    rows = list(csv.reader(io.StringIO(rendered(runs["mixed"], "layers", "csv", Look()).decode())))
    heading, first = next((i, row) for i, row in enumerate(rows) if row[:1] == ["layer"])
    assert first[1:] == [f"over_ideal_{e}" for e in range(1, 33)]
    assert [row[0] for row in rows[heading + 1 :]] == [name_of(layer) for layer in range(6)]
    np.testing.assert_allclose([float(v) for v in rows[heading + 1][1:17]], expected(MIXED, 60, 4)[0], rtol=1e-6)
    assert rows[heading + 1][17] == ""
    text = rendered(runs["mixed"], "layers_spread", "csv", Look()).decode()
    assert "layer,cv_L,max_vio_L" in text


def test_names_of_rows_do_not_touch_and_the_chosen_one_is_there(runs: dict[str, Run]) -> None:
    for size in ((620, 400), (480, 300), (300, 180)):
        layout = spec_of(runs["large"], "layers", At(30), size=size)["layout"]
        height = size[1] - layout["margin"]["t"] - layout["margin"]["b"]
        rows = sorted(note["y"] for note in layout["annotations"])
        assert min(np.diff(rows)) * height / 61 >= 1.2 * layout["font"]["size"], size
        assert 31 in rows
        assert {note["text"] for note in layout["annotations"]} <= {str(layer) for layer in range(61)}


def test_short_names_keep_what_sets_names_apart() -> None:
    assert short_names([name_of(i) for i in (0, 31)]) == ["0", "31"]
    assert short_names(["encoder.0.moe", "encoder.1.moe", "decoder.0.moe"]) == ["encoder.0", "encoder.1", "decoder.0"]
    assert short_names(["layer 1", "layer 2"]) == ["1", "2"]
    assert short_names(["a.b", "c"]) == ["a.b", "c"]
    assert short_names(["only.one"]) == ["only.one"]
    assert cut("decoder.block.12", 8) == "…lock.12"


def test_a_name_may_hold_anything(tmp_path: Path) -> None:
    run = record_layers(tmp_path / "odd", [4] * 5, k=2, names=[f"<b>%{{y}}{i}</b>" for i in range(5)])
    for name in BOTH:
        assert "<b>%{y}" not in str(spec_of(run, name))
        assert rendered(run, name, "svg", Look())


# What reading takes


def test_a_feed_keeps_rows_by_their_bytes(runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    run = runs["large"]
    monkeypatch.setattr(histories, "ROOM", 20 * 4 * run.columns)
    monkeypatch.setattr(histories, "TAKEN", 15 * 4 * run.columns)  # of blocks of ten rows, one at a time
    feed = Feed(open_run(run.path))
    feed.refresh()
    assert feed.recent.nbytes <= histories.ROOM
    assert (feed.last, feed.first_recent, feed.piece()) == (60, 41, 1)
    for step in (None, 55):  # what is not in memory is read
        a, b = (FIGURES["layers"].read(source, At(0, step))["over_ideal_LE"] for source in (feed, run))
        np.testing.assert_array_equal(a, b)
    small = Feed(open_run(runs["mixed"].path))
    assert (small.most, small.piece()) == (histories.RECENT, histories.PIECE)


def test_all_layers_take_one_read_of_the_record(runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    run, reads = open_run(runs["mixed"].path), list[Any]()
    read = run._blocks.read
    monkeypatch.setattr(run._blocks, "read", lambda *asked: reads.append(asked) or read(*asked))
    FIGURES["layers"].read(run, At())
    FIGURES["layers_spread"].read(run, At())
    assert reads == [(0, 11, 60, -1, None, False)]
    FIGURES["layers"].read(run, At(0, 40))
    assert len(reads) == 2


def test_a_range_that_is_not_whole_yet_is_read_again(tmp_path: Path) -> None:
    writer = start_layers(tmp_path / "more", [4] * 5, 2)
    writer.commit(Batch(1, rows_of([4] * 5, 40, 2)[:20], state="training"))
    run = open_run(writer.folder)
    assert len(run.history("counts", 0, first=11, last=40)[0]) == 10
    writer.commit(Batch(21, rows_of([4] * 5, 40, 2)[20:]))
    writer.finish("stopped")
    assert len(run.history("counts", 0, first=11, last=40)[0]) == 30
