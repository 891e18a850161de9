"""The mean that a page draws is that of every recorded step, however the record came in and however few points are drawn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_core.dashboard.feed import Feed
from moe_core.dashboard.frames import packed
from moe_core.dashboard.kept import Means
from moe_core.dashboard.views import View
from moe_core.figures.catalog import FIGURES
from moe_core.figures.smooth import SMOOTH, centred
from moe_core.runs import Batch, create_run, open_run, thin
from moe_core.runs.source import At
from moe_core.schema import Config, Knobs, layout
from tests.dashboard.test_live import unpack, viewer_of
from tests.export.made import make_run


def plain_means(y: np.ndarray, over: int, cuts: list[int], low: int = 1, high: int | None = None) -> np.ndarray:
    """Step by step, in float64, of the steps from low to high; y[0] is of step 1."""
    x = np.arange(1, len(y) + 1)
    side = np.searchsorted(cuts, x, "right")
    found = np.full(y.shape, np.nan)
    for at in range(len(y))[low - 1 : high]:
        near = (x >= x[at] - (over - 1) // 2) & (x <= x[at] + over // 2) & (side == side[at])
        values = np.asarray(y[near], np.float64)
        known = np.isfinite(values)
        with np.errstate(invalid="ignore"):
            found[at] = np.where(np.isfinite(y[at]), np.where(known, values, 0).sum(0) / known.sum(0), np.nan)
    return found[low - 1 : high]


@pytest.mark.parametrize("over", SMOOTH)
@pytest.mark.parametrize("pieces", [1, 7, 200])
def test_means_of_a_history_that_grows_are_those_of_the_whole(over: int, pieces: int) -> None:
    rng = np.random.default_rng(over)
    y = rng.lognormal(size=(600, 3)).astype(np.float32)
    y[rng.random(y.shape) < 0.05] = np.nan
    cuts = [1, 40, 300, 303]
    kept = Means(over, np.empty(0, np.int64), np.empty((0, 3), np.float32))
    for first in range(0, 600, pieces):
        part = y[first : first + pieces]
        kept.add(
            np.arange(first + 1, first + 1 + len(part)), part, first, [cut for cut in cuts if cut <= first + pieces]
        )
        done = first + len(part)
        if done in (pieces, 294, 600) or done > 590:  # not after every piece: the plain way is slow
            np.testing.assert_array_equal(kept.steps, np.arange(1, done + 1))
            np.testing.assert_allclose(kept.values, plain_means(y[:done], over, cuts), rtol=2e-6)
    assert len(kept.recorded[0]) <= over


def test_a_feed_draws_them_at_any_length_and_zoom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_core.dashboard.histories.RECENT", 100)
    monkeypatch.setattr("moe_core.dashboard.kept.KEPT", 64)
    writer = create_run(tmp_path / "run", Config(num_experts=4, layers=1), Knobs())
    rng = np.random.default_rng(3)
    feed = Feed(open_run(tmp_path / "run", limit=0.25))
    width = sum(column.width for column in layout(1, 4))

    def go_on(first: int, count: int, applied: Any = ()) -> None:
        writer.commit(Batch(first, rng.uniform(0.5, 2, (count, width)).astype(np.float32), (), (), applied))
        feed.refresh(now=True)
        while feed.behind:
            feed.catch_up()

    go_on(1, 60)
    compare(feed, None, [])  # all in memory
    go_on(61, 340)
    compare(feed, None, [])  # the kept history begins
    feed.run.turn(who="test", noise=0.5)
    go_on(401, 300, ((writer.pending().knobs[0].id, 401),))
    for first in range(701, 6001, 1100):
        go_on(first, 1100)
    for span in (None, (380, 420), (2000, 2600), (feed.last - 60, feed.last - 20), (feed.last - 95, feed.last), (1, 3)):
        compare(feed, span, [401])
    feed.run.close()
    writer.finish("finished")


def test_means_that_nobody_asks_for_are_let_go_and_numbers_are_no_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moe_core.dashboard.histories.RECENT", 100)
    writer = create_run(tmp_path / "run", Config(num_experts=4, layers=1), Knobs())
    feed, width = Feed(open_run(tmp_path / "run")), sum(column.width for column in layout(1, 4))

    def go_on(first: int) -> None:
        rows = np.random.default_rng(first).uniform(0.5, 2, (150, width)).astype(np.float32)
        writer.commit(Batch(first, rows))
        feed.refresh(now=True)

    go_on(1)
    for over in (1, 5, 25):
        feed.history("loss", bins=50, over=over)
    go_on(151)
    monkeypatch.setattr("moe_core.dashboard.kept.FORGOTTEN", 0.0)
    feed.history("loss", bins=50, over=25)
    go_on(301)  # that of 25 steps was asked for since the last block
    assert sorted(over for _, _, over in feed.series) == [1, 25]
    go_on(451)
    assert [over for _, _, over in feed.series] == [1]
    for first in (1, 560):  # in the store, and in memory
        for ours, plain in zip(
            feed.history("loss", first=first, over=25), feed.history("loss", first=first), strict=True
        ):
            np.testing.assert_array_equal(ours, plain)
    feed.run.close()
    writer.finish("finished")


def test_a_page_draws_the_mean_over_the_steps_that_its_link_names_with_the_line_pale_behind(tmp_path: Path) -> None:
    for name in "ab":
        make_run(tmp_path, "text", steps=300, name=name).close()  # noise is turned at step 151
    feed, other = (Feed(open_run(tmp_path / name)) for name in "ab")
    other.refresh()
    sizes = {"selection_share": [640, 300], "balance": [600, 900], "loss": [300, 200], "balance_now": [300, 300]}

    def drawn(**options: Any) -> dict[str, Any]:
        return dict(unpack(viewer_of(feed, sizes=sizes, options=options).frame() or b"")["figures"])

    plain, smooth = drawn(), drawn(smooth=25)
    assert packed(plain) == packed(drawn(smooth=7))  # none of those that can be chosen
    assert packed(plain["balance_now"]) == packed(smooth["balance_now"])
    for name in ("selection_share", "balance", "loss"):
        title = smooth[name]["layout"]["title"]["text"]
        assert "; mean of 25 steps, pale: each step</span>" in title
        assert smooth[name]["layout"] | {"title": 0, "meta": 0} == plain[name]["layout"] | {"title": 0, "meta": 0}
        assert (plain[name]["layout"]["meta"]["smooth"], smooth[name]["layout"]["meta"]["smooth"]) == (1, 25)
        pale = [trace for trace in smooth[name]["data"] if "opacity" in trace]
        lines = [trace for trace in plain[name]["data"] if trace["name"] in {one["name"] for one in pale}]
        assert pale
        for one, line in zip(pale, lines, strict=True):
            np.testing.assert_array_equal(one["y"], line["y"])
    steps, cv = feed.run.history("cv_load")
    (line,) = [trace for trace in smooth["balance"]["data"] if trace["name"] == "CV(load)" and "opacity" not in trace]
    some, mean = thin(steps, centred(steps, cv, 25, [151]), 200)
    np.testing.assert_array_equal(line["x"], some)
    np.testing.assert_allclose(line["y"], mean, rtol=1e-6)
    read = View(feed, {}, (other,)).means(25)
    curves = FIGURES["compare_balance"].read(read, At(0, None, None, 200))["curves"]
    np.testing.assert_allclose(curves[1].values, mean, rtol=1e-6)
    for one in (feed, other):
        one.run.close()


def compare(feed: Feed, span: tuple[int, int] | None, cuts: list[int]) -> None:
    low, high = span or (1, feed.last)
    for stat in ("loss", "selection_share"):
        steps, values = feed.run.history(stat)
        whole = centred(steps, values, 25, cuts)
        if span:
            np.testing.assert_allclose(whole[low - 1 : high], plain_means(values, 25, cuts, low, high))
        for bins in (20, 100_000):
            if bins > 20 and not span and feed.last > 4 * 64:
                continue  # what is finer than the kept history is drawn of a zoom
            plain = feed.history(stat, first=low, last=high, bins=bins)
            np.testing.assert_array_equal(plain[1], thin(steps[low - 1 : high], values[low - 1 : high], bins)[1])
            drawn = feed.history(stat, first=low, last=high, bins=bins, over=25)
            wanted = thin(steps[low - 1 : high], whole[low - 1 : high], bins)
            np.testing.assert_array_equal(drawn[0], wanted[0])
            np.testing.assert_allclose(drawn[1], wanted[1], rtol=2e-6)
