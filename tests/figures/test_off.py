"""Experts that are off on the charts: grey and named, and left out of the ideal."""

import numpy as np
import pytest

from moe_core.figures import bars, experts, matrices, timeline, treemap
from moe_core.figures.off import ideal_of, off_words, on_nE
from moe_core.figures.theme import LIGHT

E = 8
OFF = [3, 6]


def shares(rows: int = 20, since: int = 10, off=OFF, E: int = E) -> np.ndarray:
    """Even shares, with experts that are off from row `since` on."""
    share = np.full((rows, E), 1 / E)
    share[since:] = 1 / (E - len(off))
    share[since:, off] = np.nan
    return share


def levels(spec) -> list[float]:
    return [shape["y0"] for shape in spec["layout"]["shapes"] if shape["type"] == "line" and shape["xref"] == "paper"]


def test_bars_of_experts_that_are_off_are_grey_and_named_and_the_ideal_is_of_the_others() -> None:
    share_E = shares()[-1]
    spec = bars.balance_now.spec(share_E, share_E, step=20)
    assert levels(spec) == [pytest.approx(100 / 6)]
    assert "ideal 16.7 % of 6 on" in spec["layout"]["title"]["text"]
    bands = [shape for shape in spec["layout"]["shapes"] if shape["type"] == "rect"]
    assert [(b["x0"] + b["x1"]) / 2 for b in bands] == [4, 7]
    assert {b["fillcolor"] for b in bands} == {LIGHT.rule}
    assert [n["x"] for n in spec["layout"]["annotations"] if n["text"] == "off"] == [4, 7]
    off = spec["data"][-1]
    assert (list(off["x"]), off["hovertemplate"]) == ([4, 7], "Expert %{x} is switched off at step 20<extra></extra>")


def test_with_all_on_nothing_is_added() -> None:
    even = np.full(E, 1 / E)
    for share_E in (even, np.full(E, np.nan)):
        spec = bars.balance_now.spec(share_E, share_E, step=20)
        assert len(spec["data"]) == 3
        assert levels(spec) == [100 / E]
    spec = timeline.selection_share.spec(np.arange(1, 5), np.full((4, E), 1 / E))
    assert len(spec["data"]) == E
    assert levels(spec) == [100 / E]


def test_of_many_experts_those_that_are_off_have_no_bar() -> None:
    share_E = shares(off=[3, 6, 30], E=64)[-1]
    spec = bars.balance_now.spec(share_E, share_E, step=20)
    assert sorted(spec["data"][0]["customdata"][:, 0]) == [e + 1 for e in range(64) if e not in (3, 6, 30)]
    np.testing.assert_allclose(spec["data"][0]["customdata"][:, 1], 1, rtol=1e-6)
    assert "4, 7, 31 off" in spec["layout"]["title"]["text"]


def test_lines_break_where_an_expert_is_off_and_go_on_in_grey() -> None:
    steps = np.arange(1, 21)
    spec = timeline.selection_share.spec(steps, shares())
    own, off, ideal = spec["data"][3], spec["data"][E], spec["data"][-1]
    assert np.isnan(own["y"][10:]).all()
    assert not np.isnan(own["y"][:10]).any()
    assert (off["line"]["color"], list(off["y"][10:]), off["name"]) == (LIGHT.edge, [0] * 10, "off, expert 4")
    assert np.isnan(off["y"][:10]).all()
    np.testing.assert_allclose(ideal["y"], [12.5] * 10 + [100 / 6] * 10, rtol=1e-6)
    assert levels(spec) == []
    texts = [note["text"] for note in spec["layout"]["annotations"]]
    assert texts[-1] == "4, 7 off"
    assert "1/6 = 16.7 % of the 6 on" in spec["layout"]["title"]["text"]


def test_a_heatmap_is_grey_where_an_expert_is_off() -> None:
    spec = timeline.selection_share.spec(np.arange(1, 21), shares(E=32, off=[3]))
    load, off = spec["data"]
    assert np.isnan(load["z"][3, 10:]).all()
    np.testing.assert_allclose(load["customdata"][0], 1, rtol=1e-6)
    assert off["colorscale"][0][1] == LIGHT.edge
    assert np.flatnonzero(np.isfinite(off["z"]).any(axis=1)).tolist() == [3]


def test_the_rank_ends_with_those_that_are_off() -> None:
    share_E = np.array([0.1, 0.4, np.nan, 0.3, np.nan, 0.2])
    spec = experts.expert_rank.spec(share_E, chosen=2)
    assert spec["data"][0]["customdata"].tolist() == [2, 4, 6, 1, 3, 5]
    np.testing.assert_allclose(spec["data"][0]["x"][:4], [1.6, 1.2, 0.8, 0.4], rtol=1e-6)
    assert [note["y"] for note in spec["layout"]["annotations"] if note["text"] == "off"] == [5, 6]


def test_an_expert_that_is_off_says_so_above_its_chart() -> None:
    spec = experts.expert_share.spec(np.arange(1, 21), shares(), shares(), 3)
    assert "expert 4 is switched off" in spec["layout"]["title"]["text"]
    least = next(trace for trace in spec["data"] if trace["name"] == "least selected")
    np.testing.assert_allclose(least["y"][10:], 100 / 6, rtol=1e-6)


def test_specialisation_leaves_out_who_is_off() -> None:
    on_E = np.array([True, False, True, True])
    spec = matrices.specialisation.spec(np.array([[0.2, 0.0, 0.4, 0.4]]), ["a"], on_E=on_E)
    z = np.asarray(spec["data"][0]["z"])
    np.testing.assert_allclose(z[0, [0, 2, 3]], np.log2(np.array([0.6, 1.2, 1.2])), rtol=1e-5)
    assert np.isnan(z[0, 1])
    assert "2 off" in spec["layout"]["title"]["text"]


def test_a_treemap_measures_against_those_that_are_on() -> None:
    share_E = np.array([0.25, np.nan, 0.5, 0.25])
    words = treemap.group_treemap.spec(share_E, 2)["data"][0]["hovertext"]
    assert "0.75 × its ideal" in words[0]
    assert "1.50 × its ideal" in words[2]


def test_words() -> None:
    on_E = np.ones(16, bool)
    assert off_words(on_E) == ""
    on_E[[0, 3, 9, 11]] = False
    assert off_words(on_E) == "4 experts off"
    assert ideal_of(shares())[[0, -1]].tolist() == [1 / 8, 1 / 6]
    assert on_nE(np.full((1, 4), np.nan)).all()
