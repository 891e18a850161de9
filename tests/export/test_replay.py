"""The replay: what it holds is what was recorded, whole, small enough, and safe."""

import base64
import json
import re

import numpy as np
import pytest

from moe_core.export import replay as module
from moe_core.export.replay import replay
from moe_core.runs import Batch, open_run
from moe_core.runs.begin import create_record
from moe_core.schema import Description, Layer, Loss, columns_of
from tests.export.made import make_run


def data_in(page):
    return json.loads(re.search(r"const REPLAY = (.*?);</script>", page).group(1))


def numbers(text, kind):
    return np.frombuffer(base64.b64decode(text), kind)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs"), "text", steps=300)


def test_it_holds_every_step_its_knobs_and_its_routing(run, tmp_path):
    data = data_in(replay(run, tmp_path / "r.html").read_text())
    np.testing.assert_array_equal(numbers(data["steps"], "<f8"), np.arange(1, 301))
    _, share = run.history("selection_share", 0)
    np.testing.assert_allclose(
        numbers(data["rows"][0]["selection_share"], "<u2").reshape(300, 8) / 65535, share, atol=1e-5
    )
    np.testing.assert_allclose(numbers(data["rows"][0]["cv_load"], "<f4"), run.history("cv_load", 0)[1], rtol=1e-6)
    turned = [one for one in data["knobs"] if one["step"]]
    assert turned == [{"step": 151, "name": "noise", "label": "noise", "value": "0.5", "before": "1", "hand": True}]
    assert data["probe"]["steps"] == run.snapshots().tolist()
    first = numbers(data["probe"]["first"][3], "<u2")
    np.testing.assert_array_equal(first, run.snapshot(data["probe"]["steps"][3])[1]["experts"][0, :, 0])


def test_shares_are_of_what_is_known_of_a_step():
    """Of a damaged step nothing is; of one whose numbers overflowed, perhaps some."""
    nan = np.nan
    found = module.shares(np.array([[1.0, 1, 2], [1, nan, 3], [np.inf, 1, 1], [nan, nan, nan], [0, 0, 0]]))
    parts = [[1 / 4, 1 / 4, 1 / 2], [1 / 4, 0, 3 / 4], [0, 1 / 2, 1 / 2], [0, 0, 0], [0, 0, 0]]
    np.testing.assert_allclose(found / 65535, parts, atol=1e-5)


def test_rows_left_out_are_neither_the_extremes_nor_the_changes(run, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BUDGET", 1)
    long = make_run(tmp_path, "plane", steps=5000)
    data = data_in(replay(long, tmp_path / "r.html").read_text())
    steps = numbers(data["steps"], "<f8").astype(int)
    assert 200 <= len(steps) <= 210
    _, cv = long.history("cv_load", 0)
    assert {1, 2500, 2501, 5000, int(cv.argmax()) + 1, int(cv.argmin()) + 1} <= set(steps.tolist())
    np.testing.assert_allclose(numbers(data["rows"][0]["cv_load"], "<f4"), cv[steps - 1], rtol=1e-6)


def test_sixteen_balanced_experts_are_lines_which_the_page_fills(tmp_path):
    made = make_run(tmp_path, "text", experts=16)
    spec = module.skeletons(made, "light", 0)["selection_share"]
    assert [trace["name"] for trace in spec["data"]] == [f"expert {e}" for e in range(1, 17)]
    assert "band" not in spec["layout"]["title"]["text"]
    assert not any("<br>all 16" in note["text"] for note in spec["layout"]["annotations"])  # extremes are of a band


def test_ten_thousand_steps_fit_in_ten_megabytes(tmp_path):
    for experts in (16, 64):
        run = make_run(tmp_path, "text", steps=10_000, experts=experts, name=f"r{experts}")
        assert replay(run, tmp_path / "r.html").stat().st_size < 10e6


def test_it_needs_no_network_and_runs_no_words_of_users(tmp_path):
    run = make_run(tmp_path, "text", name="r")
    page = replay(run, tmp_path / "r.html").read_text()
    ours = page.split("<script>const REPLAY")[1]
    assert "</script><script>alert" not in page
    assert "<b>&def" not in ours
    assert not re.search(r"(src|href)=[\"']?https?:", ours)


def test_a_run_without_steps_or_another_ending_is_refused(run, tmp_path):
    from moe_core.runs import create_run, open_run
    from moe_core.schema import Config, Knobs

    create_run(tmp_path / "e", Config(), Knobs()).finish("failed")
    with pytest.raises(ValueError, match="no recorded step"):
        replay(open_run(tmp_path / "e"), tmp_path / "e.html")
    with pytest.raises(ValueError, match=r"end in \.html"):
        replay(run, tmp_path / "r.gif")
    assert [p.name for p in tmp_path.iterdir()] == ["e"]


def test_layers_of_different_sizes_without_an_evaluation(tmp_path):
    """Each layer's rows are as wide as it has experts, and the page reads them so."""
    experts, rng = (4, 2, 6), np.random.default_rng(0)
    measures = ("importance", "load", "counts", "dead_experts", "task_loss")
    layers = tuple(Layer(f"layer {i}", E, 2) for i, E in enumerate(experts))
    own = Description("watched", "own", layers, {}, (), Loss(), "none", (), {}, measures=measures)
    writer = create_record(tmp_path / "own", own)
    width = sum(column.width for column in columns_of(experts, measures))
    writer.commit(Batch(1, rng.uniform(1, 2, (9, width)).astype(np.float32), state="training"))
    writer.finish("finished")
    run = open_run(tmp_path / "own")
    page = replay(run, tmp_path / "r.html", layer=2).read_text()
    data = data_in(page)
    assert (data["experts"], data["metric"]) == ([4, 2, 6], None)
    for layer, E in enumerate(experts):
        share = numbers(data["rows"][layer]["load"], "<u2").reshape(9, E) / 65535
        load = run.history("load", layer)[1]
        np.testing.assert_allclose(share, load / load.sum(axis=1, keepdims=True), atol=1e-5)
    assert "E = R.experts[state.layer]" in page
