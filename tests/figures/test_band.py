"""Many experts in one chart: balanced ones are a band with its median and named extremes, the others lines."""

from typing import Any

import numpy as np
import pytest

from moe_core.figures import timeline

COLLAPSED = 100  # rows; the rest is balanced


def shares(E: int = 16, n: int = 200) -> np.ndarray:
    """Expert 3 has nearly all, then all are nearly even: expert 5 has the most, expert 2 the fewest."""
    share_nE = np.full((n, E), 1 / E)
    share_nE[:COLLAPSED] = 0.1 / (E - 1)
    share_nE[:COLLAPSED, 2] = 0.9
    share_nE[COLLAPSED:, 4] += 0.01
    share_nE[COLLAPSED:, 1] -= 0.01
    return share_nE


def drawn(share_nE: np.ndarray, width: int = 780) -> dict[str, Any]:
    return timeline.selection_share.spec(np.arange(1, len(share_nE) + 1), share_nE, size=(width, 335))


def band_of(spec: dict[str, Any]) -> dict[str, Any]:
    return [trace for trace in spec["data"] if trace.get("fill")][-1]


@pytest.mark.parametrize("width", [780, 390])
def test_balanced_experts_are_a_band_with_a_median_and_named_extremes(width: int) -> None:
    spec = drawn(shares(), width)
    band, median = band_of(spec), next(trace for trace in spec["data"] if trace["name"] == "median")
    began = int(band["x"].min())
    assert COLLAPSED < began < COLLAPSED + 10
    assert (band["y"].min(), band["y"].max()) == pytest.approx((5.25, 7.25))
    assert np.isnan(median["y"][: began - 1]).all()
    assert median["y"][began:] == pytest.approx(6.25)
    assert median["customdata"][-1] == pytest.approx([5, 7.25, 2, 5.25])
    lines = [trace for trace in spec["data"] if trace["name"].startswith("expert")]
    assert len(lines) == (16 if width > 500 else 3)
    assert all(np.isfinite(line["y"][:began]).all() and np.isnan(line["y"][began:]).all() for line in lines)
    (ends,) = [note["text"] for note in spec["layout"]["annotations"] if "all 16" in note["text"]]
    assert [row.split("</span> ")[-1] for row in ends.split("<br>")] == ["expert 5", "all 16:", "5.2–7.2 %", "expert 2"]
    assert "while balanced, with the median" in spec["layout"]["title"]["text"]


def test_the_range_at_the_end_says_that_it_is_of_means_where_it_is() -> None:
    """The band ends with the last step's range, which is wider."""
    said = "; right: mean of 50 steps</span>"
    means = lambda share_nE: timeline.selection_share.spec(
        np.arange(1, 201), share_nE, now_E=share_nE[-50:].mean(axis=0)
    )
    assert means(shares())["layout"]["title"]["text"].endswith(said)
    assert said not in drawn(shares())["layout"]["title"]["text"]  # the last step's
    assert said not in means(shares()[::-1])["layout"]["title"]["text"]  # names, no numbers


def test_unbalanced_experts_and_few_of_them_are_lines() -> None:
    for spec in (drawn(shares()[:COLLAPSED]), drawn(shares(E=15)), drawn(shares()[:1])):
        assert not any(trace.get("fill") or trace["name"] == "median" for trace in spec["data"])
        assert "band" not in spec["layout"]["title"]["text"]


def test_one_uneven_batch_does_not_break_the_band() -> None:
    share_nE = shares()
    share_nE[150] = share_nE[0]
    band = band_of(drawn(share_nE))
    assert band["x"].max() == 200
    assert band["y"].max() == pytest.approx(90)  # it is in the band, as the highest


def test_a_line_begins_where_the_band_ends() -> None:
    spec = drawn(shares()[::-1])
    ends = int(band_of(spec)["x"].max())
    line = next(trace for trace in spec["data"] if trace["name"] == "expert 3")
    assert np.isfinite(line["y"][ends - 1 :]).all()
    assert np.isnan(line["y"][: ends - 1]).all()
