"""The numbers inside the Experts page's figures."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from moe_core.dashboard.feed import Feed
from moe_core.dashboard.views import View
from moe_core.export.replay import probe_of
from moe_core.figures import experts, favourites, flow, matrices, read_experts
from moe_core.figures.catalog import tiles_of
from moe_core.figures.reading import chosen_expert, recent_share
from moe_core.figures.theme import DARK, LIGHT, expert_colour
from moe_core.runs import Batch, create_run, open_run
from moe_core.runs.source import At
from moe_core.schema import Config, Knobs, describe, layout
from tests.figures.record import record


def test_rank_puts_the_most_loaded_on_top_and_offers_each_for_a_click():
    spec = experts.expert_rank.spec(np.array([0.1, 0.6, 0.3]), chosen=2)
    bars = spec["data"][0]
    np.testing.assert_allclose(bars["x"], [1.8, 0.9, 0.3], rtol=1e-6)
    assert bars["customdata"].tolist() == [2, 3, 1]
    assert bars["marker"]["color"] == [expert_colour(e, LIGHT) for e in (1, 2, 0)]
    assert spec["layout"]["meta"]["pick"] == "expert"
    assert spec["layout"]["yaxis"]["title"]["text"] == "experts, by selections"
    assert bars["hovertemplate"].endswith("its ideal share, place %{y} of 3<extra></extra>")
    assert "►" in spec["layout"]["yaxis"]["ticktext"][1]
    assert sum("►" in text for text in spec["layout"]["yaxis"]["ticktext"]) == 1


def test_above_twenty_rank_is_coloured_by_deviation_and_the_chosen_one_is_always_named():
    share = np.arange(64, 0, -1) / 2080
    for chosen in range(64):
        spec = experts.expert_rank.spec(share, chosen=chosen, theme=DARK, size=(176, 640))
        assert any(f"► {chosen + 1}<" in text for text in spec["layout"]["yaxis"]["ticktext"])
    assert set(spec["data"][0]["marker"]["color"]) == {DARK.over, DARK.under}


def test_share_over_time_is_the_chosen_experts_between_least_and_most():
    rng = np.random.default_rng(0)
    share, importance = rng.dirichlet(np.ones(5), (2, 30))
    share[3] = np.nan
    spec = experts.expert_share.spec(np.arange(1, 31), share, importance, 2)
    lines = {trace["name"]: trace for trace in spec["data"]}
    np.testing.assert_allclose(lines["selections"]["y"], share[:, 2] * 100, rtol=1e-5)
    np.testing.assert_allclose(lines["importance"]["y"], importance[:, 2] * 100, rtol=1e-5)
    np.testing.assert_allclose(lines["most selected"]["y"], share.max(1) * 100, rtol=1e-5)
    np.testing.assert_allclose(lines["least selected"]["y"], share.min(1) * 100, rtol=1e-5)
    assert np.isnan(lines["most selected"]["y"][3])
    assert lines["selections"]["line"]["color"] == expert_colour(2, LIGHT)
    assert spec["layout"]["yaxis"]["range"][1] >= 100 * np.nanmax(share)


def test_specialisation_is_log2_over_ideal_and_what_was_not_seen_is_a_gap():
    share = np.array([[0.5, 0.25, 0.25, 0], [0, 0, 0, 0], [0.01, 0.01, 0.01, 0.97]])
    spec = matrices.specialisation.spec(share, ["<i>", "b", "c"], chosen=3)
    trace = spec["data"][0]
    np.testing.assert_allclose(trace["z"][0], [1, 0, 0, -3])
    assert np.isnan(trace["z"][1]).all()
    assert trace["z"][2, 0] == -3
    np.testing.assert_allclose(trace["customdata"][2], [1, 1, 1, 97], rtol=1e-5)
    assert trace["text"][0] == ["&lt;i&gt;"] * 4
    assert (trace["zmin"], trace["zmax"]) == (-3, 3)
    assert (spec["layout"]["shapes"][0]["x0"], spec["layout"]["shapes"][0]["x1"]) == (3.5, 4.5)


def test_coactivation_leaves_out_the_diagonal_and_experts_without_tokens():
    share = np.array([[1, 0.4, 0.6], [0.9, 1, 0.1], [0, 0, 0]], np.float32)
    trace = matrices.coactivation.spec(share, k=2)["data"][0]
    np.testing.assert_allclose(trace["z"], [[np.nan, 0.4, 0.6], [0.9, np.nan, 0.1], [np.nan] * 3])
    assert trace["zmax"] >= 0.9
    assert share[0, 0] == 1  # inputs stay
    assert "k = 1" in matrices.coactivation.spec(np.eye(3), k=1)["layout"]["title"]["text"]


def test_similarity_is_the_cosine_of_the_gates_columns():
    w = np.array([[1, 0, 1, 0], [0, 2, 1, 0], [0, 0, 0, 0]], np.float32)
    cosine = matrices.cosines(w)
    np.testing.assert_allclose(
        cosine[:3, :3], [[1, 0, 0.5**0.5], [0, 1, 0.5**0.5], [0.5**0.5, 0.5**0.5, 1]], atol=1e-12
    )
    assert np.isnan(cosine[3]).all()
    assert np.isnan(cosine[:, 3]).all()
    trace = matrices.similarity.spec(cosine)["data"][0]
    assert np.isnan(np.diagonal(trace["z"])).all()
    assert trace["z"][0, 2] == pytest.approx(0.5**0.5)


def test_saturation_is_the_share_of_todays_experts_that_were_there_before(tmp_path: Path):
    config = Config(num_experts=4, layers=1, churn_every=10)
    writer = create_run(tmp_path / "a", config, Knobs(), probe={})
    rows = np.ones((30, sum(c.width for c in layout(1, 4))), np.float32)

    def probe(experts):
        return {"experts": np.array([experts], np.uint8), "gates": np.ones((1, 2, 2), np.float16)}

    taken = [
        (10, "choices", probe([[2, 3], [2, 3]])),
        (17, "probe", probe([[1, 3], [1, 3]])),  # a look by the clock
        (20, "choices", probe([[0, 3], [1, 0]])),
        (30, "choices", probe([[0, 1], [0, 1]])),
    ]
    writer.commit(Batch(1, rows, snapshots=taken))
    for value in (0.5, 0.6):
        open_run(tmp_path / "a").turn(who="dashboard/drag", noise=value)
    open_run(tmp_path / "a").turn(who="autobalance", w_load=0.2)
    writer.finish("finished")
    read = read_experts.read_saturation(open_run(tmp_path / "a"), At(0, None, None, None))
    assert [(c.name, c.value) for c in read["changes"]] == [("noise", 0.6)]  # a drag is one, as on every other chart
    assert read["steps"].tolist() == [10, 20, 30]
    assert read["kept_n"].tolist() == [0, 0.75, 1]
    assert (read["against"], read["chance"]) == (30, 0.5)
    earlier = read_experts.read_saturation(open_run(tmp_path / "a"), At(0, 20, None, None))
    assert earlier["kept_n"].tolist() == [0.25, 1]  # of (0, 3) and (1, 0), only 3 was there
    trace = experts.saturation.spec(**read)["data"][0]
    np.testing.assert_allclose(trace["y"], [0, 75, 100])
    assert trace["mode"] == "lines+markers"
    assert experts.saturation.spec(**read | {"every": 0})["data"][0]["mode"] == "markers"  # looks by the clock


def test_a_damaged_snapshot_is_left_out_of_saturation_and_of_the_replay(tmp_path: Path):
    def kept(*damaged: int):
        folder = tmp_path / f"r{len(damaged)}"
        writer = create_run(folder, Config(num_experts=4, layers=1, churn_every=10), Knobs(), probe={"x": np.zeros(2)})
        shot = {"experts": np.array([[[0, 1], [2, 3]]], np.uint8), "gates": np.full((1, 2, 2), 0.5, np.float16)}
        shots = [(step, kind, shot) for step in (10, 20, 30) for kind in ("choices", "probe")]
        writer.commit(Batch(1, np.ones((30, sum(c.width for c in layout(1, 4))), np.float32), snapshots=shots))
        writer.finish("finished")
        db = sqlite3.connect(folder / "run.db")
        db.executemany("UPDATE snapshots SET data = x'00' WHERE step = ?", [(step,) for step in damaged])
        db.commit()
        db.close()
        run, feed = open_run(folder), Feed(open_run(folder))
        feed.refresh()
        replayed = probe_of(run)["steps"]
        assert replayed == [step for step in (10, 20, 30) if step not in damaged]
        read = [read_experts.read_saturation(source, At(0, None, None, None)) for source in (run, feed)]
        assert read[0]["against"] == read[1]["against"]
        assert [one["steps"].tolist() for one in read] == [replayed, replayed]
        experts.saturation.spec(**read[0])
        return read[0]["against"]

    assert [kept(), kept(10), kept(20, 30), kept(10, 20, 30)] == [30, 30, 10, None]


@pytest.mark.parametrize(("every", "kind"), [(0, "probe"), (3, "choices")])
def test_many_snapshots_are_read_on_a_grid_that_stands(every: int, kind: str):
    class Source:
        description = describe(Config(num_experts=4, layers=1, churn_every=every), Knobs())

        def __init__(self, last):
            self.last, self.asked = last, []

        def snapshots(self, asked):
            assert asked == kind
            return np.arange(3, self.last + 1, 3)

        def experts_at(self, step, asked):
            assert asked == kind
            self.asked.append(step)
            return np.zeros((1, 2, 2), np.uint8)

        def knob_changes(self):
            return []

    now, later = Source(3000), Source(3030)
    for source in (now, later):
        assert len(read_experts.read_saturation(source, At(0, None, None, None))["steps"]) <= 2 * read_experts.SNAPSHOTS
    assert set(now.asked[:-1]) <= set(later.asked)
    assert now.asked[-1] == 3000


def test_favourites_are_those_with_most_weight_in_their_context():
    tokens = np.frombuffer(b"the quick brown fox", np.uint8)
    gate = np.zeros(19)
    gate[[4, 10, 16]] = [0.2, 0.9, 0.5]
    bars, words = favourites.favourite_bytes.spec(tokens, gate, 1, sequence_N=np.repeat([0, 1], [16, 3]))["data"]
    np.testing.assert_allclose(bars["x"], [0.9, 0.5, 0.2])
    assert bars["customdata"].tolist() == [10, 16, 4]
    assert words["text"][0].endswith("<b>b</b>rown·\u00a0")  # the next text begins behind it
    assert words["text"][1] == "\u00a0" * 12 + "<b>f</b>ox" + "\u00a0" * 4
    assert favourites.favourite_bytes.spec(tokens, np.zeros(19), 1)["data"] == []


def test_favourite_images_stand_in_order_and_points_carry_their_gate():
    images = np.arange(3)[:, None] * np.ones((3, 64), int)
    gate = np.array([0.1, 0.0, 0.7])
    mosaic, marks = favourites.favourite_images.spec(images, gate, 0, labels_N=np.array([7, 8, 9]))["data"]
    assert mosaic["z"][0, 0] == 2
    assert marks["hovertext"] == [
        "Image 2, of class 9, gives expert 1 a gate of 0.70",
        "Image 0, of class 7, gives expert 1 a gate of 0.10",
    ]
    (points,) = favourites.favourite_points.spec(np.eye(3, 2), gate, 0, np.array([-1, 1, -1, 1]))["data"]
    np.testing.assert_allclose(points["marker"]["color"], gate, rtol=1e-6)


@pytest.mark.parametrize("E", [1, 5, 40])
def test_the_flow_carries_every_token_from_layer_to_layer(E):
    rng = np.random.default_rng(1)
    chosen = rng.integers(0, E + 1, (3, 50, 1)).astype(np.uint8)  # E: no expert
    counts = flow.flows(chosen, E)
    assert counts.shape == (2, E + 1, E + 1)
    assert counts.sum(axis=(1, 2)).tolist() == [50, 50]
    for at in (0, 1):
        for i in range(E + 1):
            np.testing.assert_array_equal(
                counts[at, i], np.bincount(chosen[at + 1, chosen[at, :, 0] == i, 0], minlength=E + 1)
            )
    spec = flow.expert_flow.spec(chosen, E, layer=1, chosen=0)
    nodes = next(t for t in spec["data"] if t["name"] == "experts")
    for layer in range(3):
        inside = nodes["x"] == layer
        np.testing.assert_array_equal(
            nodes["y"][inside], np.bincount(chosen[layer, :, 0])[np.unique(chosen[layer, :, 0])]
        )
        starts, sizes = nodes["base"][inside], nodes["y"][inside]
        assert np.all(starts[1:] >= starts[:-1] + sizes[:-1] - 1e-4)  # no two overlap
    for layer in (0, 1):
        left, right = np.array([ends for t in spec["data"] if t.get("fill") for ends in bands_of(t) if ends[0] == layer])[:, 1:].T.reshape(2, 2, -1)  # fmt: skip
        for (top, bottom), at in ((left, layer), (right, layer + 1)):
            order = np.argsort(top)
            assert np.all(top[order][1:] >= bottom[order][:-1] - 1e-3)  # side by side, none over another
            assert np.sum(bottom - top) == pytest.approx(50, abs=1e-2)
            assert top.min() >= nodes["base"][nodes["x"] == at].min() - 1e-3
    words = next(t for t in spec["data"] if t["name"] == "tokens")["hovertext"]
    assert sum(int(text.split()[0]) for text in words) == 100
    assert any("no expert" in text for text in words)


def bands_of(trace):
    """(layer, top and bottom where it leaves, top and bottom where it arrives) of each band of a trace."""
    ends = np.flatnonzero(np.isnan(trace["x"]))
    for x, y in ((trace["x"][a:b], trace["y"][a:b]) for a, b in zip(np.r_[0, ends[:-1] + 1], ends, strict=True)):
        n = (len(x) - 1) // 2
        yield int(x[0]), y[0], y[2 * n - 1], y[n - 1], y[n]


def test_only_the_chosen_experts_bands_are_full():
    chosen = np.array([[[0], [1], [2]], [[0], [0], [1]]], np.uint8)
    spec = flow.expert_flow.spec(chosen, 3, layer=1, chosen=0)
    full = [t["name"] for t in spec["data"] if t.get("fill") and t["fillcolor"].endswith("0.75)")]
    assert full == ["from expert 1", "from expert 2"]
    assert flow.expert_flow.spec(chosen[:1], 3)["data"] == []


def test_the_chosen_expert_is_the_links_else_the_most_loaded(tmp_path: Path):
    run = record(tmp_path / "a")
    share = recent_share(run, 1, 60)
    assert chosen_expert(run, 1, None) == int(share.argmax())
    assert chosen_expert(View(run, {"expert": 3}), 1, None) == 2
    for wrong in (0, 5, "x", ""):
        assert chosen_expert(View(run, {"expert": wrong}), 1, None) == int(share.argmax())


def test_tiles_of_an_expert_say_since_when_it_is_dead(tmp_path: Path):
    config = Config(num_experts=4, layers=1)
    columns = layout(1, 4)
    counts = next(c for c in columns if c.stat == "counts")
    rows = np.ones((500, sum(c.width for c in columns)), np.float32)
    rows[123:, counts.start + 1] = 0  # expert 2 was selected at step 123 for the last time
    rows[:, counts.start + 2] = 0  # expert 3 never
    rows[490:, counts.start + 3] = 0
    writer = create_run(tmp_path / "a", config, Knobs(), labels={"domain": ["prose"]})
    writer.commit(Batch(1, rows))
    writer.finish("finished")
    run = open_run(tmp_path / "a")

    def last(expert):
        return next(t for t in tiles_of("experts", View(run, {"expert": expert})) if t.name == "last_used")

    assert (last(1).value, last(1).lines) == ("now", ("alive",))
    assert (last(2).value, last(2).unit, last(2).lines) == ("377", "steps ago", ("dead since step 124",))
    assert (last(3).value, last(3).lines) == ("never", ("dead from the start",))
    assert (last(4).value, last(4).lines) == ("10", ("alive",))
    hero = tiles_of("experts", View(run, {"expert": 1}))[0]
    expected = 100 * np.r_[np.full(40, 1 / 2), np.ones(10)].mean()
    assert float(hero.value) == pytest.approx(expected, abs=0.06)
