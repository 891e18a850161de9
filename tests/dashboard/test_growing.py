"""A line that grows with the run: only what is new is read and thinned, and it is the same as the whole line thinned anew."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_core.dashboard import histories
from moe_core.dashboard.feed import Feed
from moe_core.runs import Batch, RunWriter, create_run, open_run
from moe_core.schema import Config, Knobs, layout
from tests.dashboard.test_live import unpack, viewer_of

CONFIG = Config(num_experts=4, layers=2)
WIDTH = sum(column.width for column in layout(2, 4))
LINES = (("selection_share", 1, 20), ("cv_load", 0, 20), ("loss", 0, 33), ("load", 1, 700))


@pytest.fixture
def writer(tmp_path: Path) -> RunWriter:
    return create_run(tmp_path / "run", CONFIG, Knobs())


def grow(writer: RunWriter, feed: Feed, first: int, count: int, applied: Any = ()) -> int:
    rows = np.random.default_rng(first).uniform(0.5, 2, (count, WIDTH)).astype(np.float32)
    rows[:, ::7] = np.where(rows[:, ::7] < 0.6, np.nan, rows[:, ::7])
    writer.commit(Batch(first, rows, (), (), applied))
    feed.refresh(now=True)
    return first + count


def compare(feed: Feed) -> None:
    for stat, layer, bins in LINES:
        for first in (None, 37, max(1, feed.last - 50)):
            ours, whole = (run.history(stat, layer, first=first, bins=bins) for run in (feed, feed.run))
            np.testing.assert_array_equal(ours[0], whole[0])
            np.testing.assert_array_equal(ours[1], whole[1].astype(ours[1].dtype))


@pytest.mark.parametrize("recent", [64, 1024])  # beyond which rows leave memory, and lines go on without them
def test_it_is_the_whole_line_at_every_step(recent: int, writer: RunWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histories, "RECENT", recent)
    feed, sizes = Feed(open_run(writer.folder)), np.random.default_rng(0)
    at = 1
    while at < 900:
        at = grow(writer, feed, at, int(sizes.choice([1, 1, 2, 5, 40])))
        compare(feed)
    at = grow(writer, feed, at, 300)  # more than is in memory, at once
    compare(feed)
    turn = feed.run.turn(who="test", off="2:1")  # whose steps are of another statistic
    at = grow(writer, feed, at, 3, ((turn, at + 1),))
    compare(feed)
    assert (feed.history("selection_share", 1, bins=20)[1][-1] == 0).any()
    grow(writer, feed, at, 20)
    compare(feed)
    feed.run.close()


def test_what_was_thinned_is_not_thinned_again(writer: RunWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    feed, taken = Feed(open_run(writer.folder)), list[int]()
    at = grow(writer, feed, 1, 1000)
    feed.history("load", bins=20)
    plain = histories.thin
    monkeypatch.setattr(histories, "thin", lambda steps, *rest: (taken.append(len(steps)), plain(steps, *rest))[1])
    for _ in range(30):
        at = grow(writer, feed, at, 2)
        line = feed.history("load", bins=20)
        assert feed.history("load", bins=20) == line  # nothing new: the very same arrays
    assert len(taken) == 30
    assert max(taken) < 2 * 20 + 40
    feed.run.close()


def test_it_stays_whole_while_another_history_is_read(writer: RunWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histories, "RECENT", 64)
    feed, at = Feed(open_run(writer.folder)), 1
    for _ in range(20):
        at = grow(writer, feed, at, 30)
        feed.history("load", bins=20)
    monkeypatch.setattr(histories, "BUDGET", 0.0)
    monkeypatch.setattr(histories, "PIECE", 1)
    assert feed.history("loss", bins=20)[0][-1] < feed.last  # another viewer's
    assert feed.behind
    for ours, whole in zip(feed.history("load", bins=20), feed.run.history("load", bins=20), strict=True):
        np.testing.assert_array_equal(ours, whole)
    assert feed.history("load", bins=40)[0][0] == 1  # its history was kept for another width, when that cost nothing
    assert len(feed.history("load", bins=40)[0]) > 60
    feed.run.close()


def test_lines_take_a_bounded_room(writer: RunWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    feed = Feed(open_run(writer.folder))
    grow(writer, feed, 1, 900)
    size = sum(part.nbytes for part in feed.history("load", bins=20))
    monkeypatch.setattr(histories, "LINES", 3 * size)
    for bins in (21, 22, 23, 24, 25):
        feed.history("load", bins=bins)
    assert 2 <= len(feed._growing) <= 3
    assert sum(part.nbytes for line in feed._growing.values() for part in line) <= 3 * size
    feed.run.close()


def test_a_further_turn_needs_no_layout_of_a_chart_that_had_one(writer: RunWriter) -> None:
    """Its mark and name are drawn on the canvas (redraw.js); a layout of three charts kept a turn from its chart for a tenth of a second."""
    feed = Feed(open_run(writer.folder))
    rows = np.full((100, WIDTH), 0.5, np.float32)
    sizes = dict.fromkeys(("selection_share", "balance", "balance_now", "loss"), (640, 300))
    viewer, laid = viewer_of(feed, sizes=sizes), []
    writer.commit(Batch(1, rows))
    for nth, noise in enumerate((0.5, 0.25)):
        feed.run.turn(who="test", noise=noise)
        first = 101 + 10 * nth
        writer.commit(Batch(first, rows[:10], (), (), ((writer.pending().knobs[0].id, first),)))
        writer.knob_seen = writer.pending().knobs[0].id
        feed.refresh(now=True)
        laid.append(dict(unpack(viewer.frame() or b"")["figures"]))
        feed.refresh(now=True)
    assert set(laid[0]) == set(laid[1]) == set(sizes)
    for before, after in zip(*(figures.values() for figures in laid), strict=True):
        named, marks = (len(after["layout"][kind]) - len(before["layout"][kind]) for kind in ("annotations", "shapes"))
        assert (named + marks > 0) == ("step" in str(before["layout"]["xaxis"].get("title")))
        assert same_but_for_marks(before) == same_but_for_marks(after)
    feed.run.close()
    writer.finish("finished")


def same_but_for_marks(spec: dict[str, Any]) -> dict[str, Any]:
    """As redraw.js compares two layouts."""
    layout = {name: value for name, value in spec["layout"].items() if name not in ("annotations", "shapes")}
    return layout | {"meta": layout["meta"] | {"step": 0}}
