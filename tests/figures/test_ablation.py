"""The numbers in the ablation's bars."""

import numpy as np
import pytest

from moe_core.figures.ablation import NOT_YET, ablation, rank_correlation
from moe_core.figures.matrices import expert_ticks
from moe_core.figures.theme import DARK, expert_colour


def test_the_busiest_expert_stands_first_in_its_own_colour() -> None:
    rise, share = np.array([0.1, 0.4, -0.2, 0.3]), np.array([0.2, 0.4, 0.1, 0.3])
    kept = rise.copy(), share.copy()
    drawn = ablation(rise, share, step=9, theme=DARK)
    np.testing.assert_array_equal((rise, share), kept)
    np.testing.assert_allclose(drawn.data[0].y, [0.4, 0.3, 0.1, -0.2], rtol=1e-6)
    assert [drawn.layout.xaxis.ticktext[i] for i in range(4)] == ["2", "4", "1", "3"]
    assert list(drawn.data[0].marker.color) == [expert_colour(e, DARK) for e in (1, 3, 0, 2)]
    assert list(drawn.data[0].customdata[0]) == [2, "40.0 %"]
    assert drawn.layout.meta == {"figure": "ablation", "step": 9}
    low, high = drawn.layout.yaxis.range
    assert low <= -0.2
    assert high >= 0.4
    assert "+1.00" in drawn.layout.title.text


@pytest.mark.parametrize("E", [1, 2, 20, 21, 256, 1024])
def test_any_number_of_experts_and_none_measured(E: int) -> None:
    none = np.full(E, np.nan)
    spec = ablation.spec(none, none)
    assert [note["text"] for note in spec["layout"]["annotations"]] == [NOT_YET]
    measured = ablation.spec(np.arange(E) / E, np.full(E, 1 / E))
    assert not measured["layout"]["annotations"]
    assert len(measured["data"][0]["y"]) == E


def test_a_small_figure_of_1024_experts_is_drawn() -> None:
    ticks = ablation.spec(np.arange(1024.0), np.full(1024, 1 / 1024), size=(120, 120))["layout"]["xaxis"]["tickvals"]
    assert ticks == [1]
    assert expert_ticks(1024, 60, 18) == [1, 1024]


def test_the_rank_correlation_is_spearmans() -> None:
    a = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    assert rank_correlation(a, a**3) == pytest.approx(1)
    assert rank_correlation(a, -a) == pytest.approx(-1)
    assert rank_correlation(a, np.array([1.0, 2.0, 2.0, 4.0, 3.0])) == pytest.approx(
        8.5 / 95**0.5
    )  # ranks 0, 1.5, 1.5, 4, 3
    assert np.isnan(rank_correlation(a, np.ones(5)))
    assert np.isnan(rank_correlation(a[:2], a[:2]))
