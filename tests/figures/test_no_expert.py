"""Places that no expert took (they hold E): ground with an edge, never the last expert's colour, never counted as its own."""

import numpy as np
import pytest

from moe_core.figures import bars, probe, routing, score
from moe_core.figures.probe import kept
from moe_core.figures.theme import DARK, LIGHT

E = 4
# Token 0 has both places, 1 lost its first, 2 both, 3 is expert 4's alone.
EXPERTS = np.array([[0, 1], [E, 2], [E, E], [3, E]], np.uint8)
GATES = np.array([[0.7, 0.3], [0, 0.4], [0, 0], [1, 0]], np.float16)


def trace(spec, name):
    return next(t for t in spec["data"] if t["name"].startswith(name))


def test_the_first_expert_is_that_of_the_first_place_that_is_not_empty():
    assert probe.first_experts(EXPERTS, E).tolist() == [0, 2, E, 3]
    assert probe.first_experts(np.zeros((0, 1), np.uint8), E).tolist() == []
    np.testing.assert_allclose(probe.dense(EXPERTS, GATES, E).sum(axis=1), [1, 0.4, 0, 1], rtol=1e-3)


def test_the_score_leaves_the_cell_of_such_a_byte_to_the_ground():
    spec = score.probe_text.spec(np.full(4, 65, np.uint8), EXPERTS, GATES, E, before_NK=EXPERTS[::-1], theme=DARK)
    np.testing.assert_array_equal(trace(spec, "first expert")["z"][0][:4], [0, 2, np.nan, 3])
    nobody = trace(spec, "no expert")
    assert nobody["x"].tolist() == [2.5]
    assert nobody["marker"]["color"] == DARK.ground
    assert nobody["marker"]["line"]["color"] == DARK.edge
    assert nobody["hovertext"] == ["Byte 2 “A” went nowhere: no expert took it"]
    assert trace(spec, "first expert")["text"][0][1] == "Byte 1 “A” goes to expert 3 (0.40)"
    assert "25.0 % of them no expert took" in spec["layout"]["title"]["text"]


def test_bars_count_them_apart():
    spec = bars.tokens_by_expert.spec(EXPERTS, E)
    assert spec["data"][0]["y"].tolist() == [1, 0, 1, 1]
    assert "25.0 % of them no expert took" in spec["layout"]["title"]["text"]
    full = bars.tokens_by_expert.spec(EXPERTS[:2], E)
    assert "no expert" not in full["layout"]["title"]["text"]


def test_gates_mark_the_token_in_its_place_by_class():
    spec = routing.probe_gates.spec(EXPERTS, GATES, E, labels_N=np.array([1, 1, 0, 1]))
    assert trace(spec, "no expert")["x"].tolist() == [0.5]
    assert "Token 2 went nowhere" in trace(spec, "no expert")["hovertext"][0]
    assert all(t["name"] != "no expert" for t in routing.probe_gates.spec(EXPERTS[:2], GATES[:2], E)["data"])


def test_regions_and_points_of_nobody_are_ground():
    cells = np.array([[0, E], [1, 2]], np.uint8)
    spec = routing.regions.spec(cells, (-1, 1, -1, 1), np.zeros((4, 2)), EXPERTS, E, theme=LIGHT)
    np.testing.assert_array_equal(trace(spec, "regions")["z"], [[0, np.nan], [1, 2]])
    marker = trace(spec, "probe")["marker"]
    assert marker["color"][2] == LIGHT.ground
    assert marker["line"]["color"][2] == LIGHT.ink2
    assert "no expert took it" in trace(spec, "probe")["hovertemplate"][2]
    assert "goes to expert" in trace(spec, "probe")["hovertemplate"][0]


def test_images_of_nobody_stand_in_no_row():
    spec = routing.digit_images.spec(np.ones((4, 64), np.uint8), EXPERTS, E)
    assert len(spec["data"][1]["hovertext"]) == 3
    assert "no expert took" in spec["layout"]["title"]["text"]


def test_what_is_kept_counts_experts_and_not_empty_places():
    assert kept(EXPERTS, EXPERTS, E) == 1
    before = np.array([[0, 2], [2, E], [0, E], [E, 1]], np.uint8)
    assert kept(EXPERTS, before, E) == pytest.approx((0.5 + 1 + 0) / 3)
    assert np.isnan(kept(EXPERTS[2:3], before[2:3], E))
