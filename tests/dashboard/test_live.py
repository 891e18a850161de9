"""The feed says what the store says, and the frames of the route say what the figures say."""

import asyncio
import contextlib
import json
import re
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_core.dashboard import histories
from moe_core.dashboard import viewer as of_viewer
from moe_core.dashboard.feed import Feed
from moe_core.dashboard.frames import framed, packed
from moe_core.dashboard.live import do, next_step, show
from moe_core.dashboard.messages import Deed
from moe_core.dashboard.shared import join, leave
from moe_core.dashboard.viewer import LONGEST, Viewer
from moe_core.diagnosis import Finding
from moe_core.runs import Batch, RunWriter, create_run, hold_lock, open_run, resume_run
from moe_core.schema import Config, Knobs, layout

CONFIG = Config(num_experts=4, layers=2, context=64, tokens=64)
COLUMNS = sum(c.width for c in layout(2, 4))


def rows(first: int, n: int) -> np.ndarray:
    return np.random.default_rng(first).uniform(1, 2, (n, COLUMNS)).astype(np.float32)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[RunWriter]:
    writer = create_run(tmp_path / "a", CONFIG, Knobs(), probe={"tokens": np.zeros(8, np.uint8)})
    writer.commit(Batch(1, rows(1, 50), state="training"))
    yield writer
    writer.finish("finished")


def look(feed: Feed) -> None:
    feed.looked = 0.0
    feed.refresh()


@pytest.mark.parametrize("stat", ["loss", "load", "cv_load", "selection_share"])
@pytest.mark.parametrize(
    ("first", "last", "bins"), [(None, None, None), (None, None, 10), (20, 90, None), (2000, 2100, 30), (3000, None, 5)]
)
def test_a_feed_says_what_the_store_says(
    writer: RunWriter, stat: str, first: int | None, last: int | None, bins: int | None
) -> None:
    feed = Feed(open_run(writer.folder))
    look(feed)
    feed.history(stat, 1, bins=50)  # kept from here on, and extended
    for start in range(51, 4051, 500):
        writer.commit(Batch(start, rows(start, 500)))
    look(feed)
    ours, theirs = feed.history(stat, 1, first, last, bins), feed.run.history(stat, 1, first, last, bins)
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_allclose(ours[1], theirs[1])
    feed.run.close()


def test_memory_stays_bounded_and_extremes_stay(writer: RunWriter) -> None:
    feed = Feed(open_run(writer.folder))
    look(feed)
    writer.commit(Batch(51, rows(51, 2000)))
    look(feed)
    feed.history("loss", bins=50)  # longer than what is kept raw
    spike = rows(2051, 20_000)
    spike[777, 0] = 99.0
    writer.commit(Batch(2051, spike))
    look(feed)
    series = feed.series["loss", 0, 1]
    steps, values = series.steps, series.values
    assert len(steps) <= 4 * 2048
    assert values.max() == 99.0
    assert feed.history("loss", bins=200)[1].max() == 99.0
    feed.run.close()


def test_a_feed_is_shared_and_let_go_of(writer: RunWriter) -> None:
    one, two = object(), object()
    path = writer.folder
    assert join(path, one) is join(path, two)
    leave(path, one)
    feed = join(path, one)
    leave(path, one)
    leave(path, two)
    assert join(path, one) is not feed
    leave(path, one)


def test_a_feed_follows_knobs(writer: RunWriter) -> None:
    feed = Feed(open_run(writer.folder))
    feed.run.turn(noise=0.5, k=1)
    look(feed)
    assert (feed.knobs.noise, feed.knobs.k) == (0.5, 1)
    assert isinstance(feed.knobs.k, int)
    feed.run.close()


def unpack(frame: bytes) -> dict[str, Any]:
    """What the browser makes of a frame."""
    (length,) = struct.unpack_from("<I", frame)
    assert (4 + length) % 8 == 0
    kinds = {"f4": np.float32, "f8": np.float64, "u1": np.uint8}

    def revive(value: Any, begin: int) -> Any:
        if isinstance(value, list):
            return [revive(inner, begin) for inner in value]
        if isinstance(value, dict) and "$array" in value:
            kind, offset, *shape = value["$array"]
            return np.frombuffer(frame, kinds[kind], int(np.prod(shape)), begin + offset).reshape(shape)
        return {key: revive(inner, begin) for key, inner in value.items()} if isinstance(value, dict) else value

    header = json.loads(frame[4 : 4 + length])
    figures = {name: revive(spec, 4 + length + header["from"][name]) for name, spec in header["figures"].items()}
    return header | {"figures": figures}


def viewer_of(feed: Feed, **said: Any) -> Viewer:
    viewer = Viewer()
    viewer.feed = feed
    viewer.hear(
        json.dumps(
            {"theme": "light", "page": "live", "layer": 0, "sizes": {"selection_share": [640, 300], "loss": [300, 200]}}
            | said
        )
    )
    return viewer


def test_a_frame_holds_the_figures_and_only_what_changed(writer: RunWriter) -> None:
    feed = Feed(open_run(writer.folder))
    viewer = viewer_of(feed)
    frame = viewer.frame()
    assert frame
    told = unpack(frame)
    assert told["step"] == 50
    assert set(told["figures"]) == {"selection_share", "loss"}
    assert told["figures"]["selection_share"]["layout"]["meta"]["step"] == 50
    lines = [t for t in told["figures"]["selection_share"]["data"] if len(t.get("x", [])) == 50]
    steps, share = feed.run.history("selection_share", 0)
    np.testing.assert_array_equal(lines[0]["x"], steps)
    assert len(lines) == 4
    assert any(
        np.allclose(lines[0]["y"], 100 * share[:, e], rtol=1e-5) or np.allclose(lines[0]["y"], share[:, e], rtol=1e-5)
        for e in range(4)
    )
    assert [tile["name"] for tile in told["tiles"]][:2] == ["cv_load", "cv_importance"]
    assert viewer.frame() is None
    writer.commit(Batch(51, rows(51, 1)))
    feed.looked = 0.0
    again = viewer.frame()
    assert again
    assert unpack(again)["step"] == 51
    feed.run.close()


def test_a_shared_array_travels_once_and_numbers_that_json_lacks_as_null() -> None:
    x = np.arange(100, dtype=np.float32)
    part = packed(
        {
            "a": x,
            "b": [x, float("nan"), np.float32(2), np.float64("inf"), np.int64(3)],
            "c": np.array([1, 2**40]),
            "d": np.zeros((2, 3), np.uint8),
            "e": np.array([]),
            "f": np.array([None, float("nan"), "g"], object),
        }
    )
    assert len(part.arrays) == 400 + 16 + 8
    told = unpack(framed({"seq": 1}, {}, {"one": part, "two": packed({"y": x[:3]})}))
    one = told["figures"]["one"]
    np.testing.assert_array_equal(one["a"], x)
    np.testing.assert_array_equal(one["b"][0], x)
    assert one["b"][1:] == [None, 2.0, None, 3]
    np.testing.assert_array_equal(one["c"], [1, 2**40])
    assert one["d"].shape == (2, 3)
    assert (one["e"], one["f"]) == ([], [None, None, "g"])
    np.testing.assert_array_equal(told["figures"]["two"]["y"], [0, 1, 2])
    assert told["seq"] == 1


def test_parts_differ_by_each_number() -> None:
    spec = {"data": [{"y": np.zeros(5)}], "layout": {"title": "a"}}
    other = {"data": [{"y": np.array([0, 0, 0, 0, 1e-9])}], "layout": {"title": "a"}}
    assert packed(spec) == packed({"data": [{"y": np.zeros(5)}], "layout": {"title": "a"}})
    assert len({packed(one) for one in (spec, other, spec | {"layout": {"title": "b"}})}) == 3


@pytest.mark.parametrize(
    "said", [{"theme": "pink"}, {"page": "../x"}, {"layer": "one"}, {"sizes": [1]}, {"spans": "x" * 70_000}]
)
def test_a_message_that_is_not_ours_is_refused(writer: RunWriter, said: dict[str, Any]) -> None:
    feed = Feed(open_run(writer.folder))
    with pytest.raises(ValueError):
        viewer_of(feed, **said)
    feed.run.close()


def test_an_ended_run_is_let_go_of_so_that_it_can_be_sealed(tmp_path: Path) -> None:
    writer = create_run(tmp_path / "b", CONFIG, Knobs())
    writer.commit(Batch(1, rows(1, 3)))
    feed = Feed(open_run(writer.folder))
    look(feed)
    writer.transact(state="finished")
    look(feed)
    assert feed.done
    writer.finish("finished")
    assert not (tmp_path / "b" / "run.db-wal").exists()
    assert len(feed.history("loss")[0]) == 3


def test_a_run_that_is_resumed_is_followed_again(tmp_path: Path) -> None:
    writer = create_run(tmp_path / "a", CONFIG, Knobs())
    feed = Feed(open_run(tmp_path / "a"))
    for first, steps in ((1, 50), (51, 90)):
        writer.commit(Batch(first, rows(first, steps), state="training"))
        look(feed)
        assert (feed.last, feed.status().state) == (first + steps - 1, "training")
        writer.finish("finished")
        look(feed)
        assert feed.status().state == "finished"
        lock = hold_lock(tmp_path / "a")
        look(feed)  # the trainer is there, and has written nothing yet
        assert feed.status().state == "finished"
        writer = resume_run(tmp_path / "a", lock, "me", 0)
    writer.finish("stopped")
    look(feed)
    assert feed.status().state == "stopped"


def test_a_frame_of_a_past_step_shows_what_was_recorded(writer: RunWriter) -> None:
    feed = Feed(open_run(writer.folder))
    viewer = viewer_of(feed, step=20, sizes={"balance_now": [320, 300], "balance": [600, 200]})
    told = unpack(viewer.frame() or b"")
    assert (told["step"], told["last"], told["past"]) == (20, 50, True)
    _, load = feed.run.history("load", 0, first=20, last=20)
    np.testing.assert_allclose(told["figures"]["balance_now"]["data"][0]["y"], 100 * load[0] / load[0].sum(), rtol=1e-5)
    assert told["figures"]["balance_now"]["layout"]["meta"]["step"] == 20
    assert [shape["x0"] for shape in told["figures"]["balance"]["layout"]["shapes"] if shape["type"] == "line"] == [20]
    _, cv = feed.run.history("cv_load", 0, first=20, last=20)
    assert told["tiles"][0]["value"] == f"{cv[0]:.2f}"
    (largest,) = [tile for tile in told["tiles"] if tile["name"] == "max_over_mean_load"]
    assert re.fullmatch(r"ceiling \d\u00a0×", largest["lines"][0])  # no line ends before the unit
    assert unpack(look_again(viewer, step=None))["past"] is False
    feed.run.close()


def look_again(viewer: Viewer, **said: Any) -> bytes:
    viewer.hear(json.dumps({"theme": "light", "page": "live", "layer": 0, "sizes": {"loss": [300, 200]}} | said))
    return viewer.frame() or b""


def test_a_zoomed_frame_has_the_detail_of_what_is_seen(writer: RunWriter) -> None:
    for start in range(51, 20_051, 1000):
        writer.commit(Batch(start, rows(start, 1000)))
    feed = Feed(open_run(writer.folder))
    viewer = viewer_of(feed, sizes={"loss": [300, 200]})
    far = unpack(viewer.frame() or b"")["figures"]["loss"]["data"][0]["x"]
    near = unpack(look_again(viewer, span=[5000.5, 5020.2]))["figures"]["loss"]
    assert len(far[(far > 5000) & (far < 5021)]) < 10
    np.testing.assert_array_equal(near["data"][0]["x"], np.arange(4999, 5023))
    assert near["layout"]["xaxis"]["range"] == [5000.5, 5020.2]
    feed.run.close()


@pytest.mark.parametrize("said", [{"step": 0}, {"step": 1.5}, {"step": "9"}, {"span": [3, 2]}, {"span": [1, "inf"]}])
def test_a_step_or_a_span_that_is_none_is_refused(writer: RunWriter, said: dict[str, Any]) -> None:
    feed = Feed(open_run(writer.folder))
    with pytest.raises(ValueError):
        viewer_of(feed, **said)
    feed.run.close()


def test_nothing_is_computed_while_nothing_changes(writer: RunWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    feed = Feed(open_run(writer.folder))
    viewer = viewer_of(feed)
    assert viewer.frame()
    look(feed)
    monkeypatch.setattr(viewer, "draw", None)
    assert viewer.frame() is None
    feed.run.close()


def test_a_long_run_opens_at_once_and_is_read_on_by_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """100,000 steps; a collapse of three of them stays visible, before and after a zoom."""
    monkeypatch.setattr("moe_core.dashboard.histories.BUDGET", 0.0)
    config = Config(num_experts=4, layers=1)
    width = sum(c.width for c in layout(1, 4))
    writer = create_run(tmp_path / "long", config, Knobs())
    writer.db.execute("PRAGMA synchronous = OFF")
    load = next(c for c in layout(1, 4) if c.stat == "load")
    for first in range(1, 100_001, 200):
        values = np.ones((200, width), np.float32)
        if first <= 50_007 < first + 200:
            values[50_007 - first : 50_010 - first, load.start : load.start + 4] = [4, 0, 0, 0]
        writer.commit(Batch(first, values))
    feed = Feed(open_run(tmp_path / "long", limit=0.25))
    feed.refresh(now=True)
    assert feed.last == 100_000
    assert len(feed.recent) == 1024
    feed.history("cv_load", bins=300)
    assert 0 < feed.behind < 1
    feed.history("loss", bins=300)  # asked later, so it lies behind the other
    while feed.behind:
        feed.catch_up(0.0)
    steps, cv = feed.history("cv_load", bins=300)
    assert len(steps) <= 600
    assert cv.max() > 1.7
    assert abs(int(steps[cv.argmax()]) - 50_007) < 400
    theirs = feed.run.history("cv_load", bins=300)
    np.testing.assert_array_equal(steps, theirs[0])
    np.testing.assert_allclose(cv, theirs[1])
    np.testing.assert_array_equal(feed.history("loss", bins=300)[0], steps)
    near, cv = feed.history("cv_load", first=49_000, last=51_000, bins=100_000)
    np.testing.assert_array_equal(near[cv > 1], [50_007, 50_008, 50_009])
    assert len(feed.series["cv_load", 0, 1].steps) <= 4 * 2048
    feed.run.close()
    writer.finish("finished")


def test_rows_of_zoomed_ranges_are_read_once_and_bounded(writer: RunWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    for start in range(51, 20_051, 1000):
        writer.commit(Batch(start, rows(start, 1000)))
    feed = Feed(open_run(writer.folder))
    look(feed)
    monkeypatch.setattr("moe_core.dashboard.histories.WINDOW", 8 * 2000 * COLUMNS)
    for first in range(1000, 18_000, 1000):
        feed.history("loss", first=first, last=first + 900)
    assert sum(kept.nbytes for kept in feed._ranges.values()) <= 8 * 2000 * COLUMNS
    reads = []
    blocks = feed.run.blocks
    monkeypatch.setattr(feed.run, "blocks", lambda **given: (reads.append(given), blocks(**given))[1])
    for stat in ("loss", "load", "cv_load"):
        feed.history(stat, first=17_000, last=18_900)
    assert len(reads) == 1
    feed.run.close()


def test_findings_are_of_now_and_of_the_pages_that_show_them(
    writer: RunWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = Finding("collapse", 1, 7, "What.", "Why.", "Try.", {"noise": 1.0})
    monkeypatch.setattr("moe_core.dashboard.judging.diagnose", lambda source, layer, memory: [said] if layer else [])
    feed = Feed(open_run(writer.folder))
    told = unpack(viewer_of(feed, layer=1).frame() or b"")
    assert told["findings"] == [
        {"rule": "collapse", "what": "What. Since step 7.", "more": ["Why.", "Try."], "remedy": {"noise": 1.0}}
        | {"button": "Turn noise to 1"}
    ]
    assert told["turned"] is False
    for others in ({"layer": 0}, {"layer": 1, "page": "batch"}, {"layer": 1, "step": 20}):
        assert unpack(viewer_of(feed, **others).frame() or b"")["findings"] == []
    change = feed.run.turn(noise=2)
    writer.commit(Batch(51, rows(51, 1), applied=[(change, 51)]))
    look(feed)
    assert unpack(viewer_of(feed).frame() or b"")["turned"] is True
    feed.run.close()


def test_frames_take_half_of_a_viewer_s_time_and_all_of_them_a_share_of_the_server(monkeypatch) -> None:
    one, other = Viewer(), Viewer()
    monkeypatch.setattr(of_viewer, "viewers", {one, other})
    assert one.tick() == pytest.approx(1 / 30)
    one.took = 0.04
    assert (one.tick(), other.tick()) == pytest.approx((0.08, 1 / 30))
    one.took = 3.0
    assert one.tick() == 0.2  # a slow machine falls back to five
    one.took = 0.0
    one.made, one.sent_at = 0.02, time.monotonic()
    assert (one.tick(), other.tick()) == pytest.approx((0.08, 0.08))
    one.sent_at -= 2  # it gets no frames any more
    assert other.tick() == pytest.approx(1 / 30)


def test_numbers_and_words_come_with_some_of_the_frames_and_always_in_the_end(writer: RunWriter, monkeypatch) -> None:
    feed = Feed(open_run(writer.folder))
    viewer = viewer_of(feed)
    assert "tiles" in unpack(viewer.frame())
    monkeypatch.setattr(of_viewer, "WORDS", 60.0)
    writer.commit(Batch(51, rows(51, 1)))
    feed.looked = 0.0
    told = unpack(viewer.frame())
    assert told["last"] == 51
    assert "loss" in told["figures"]
    assert not told.keys() & {"tiles", "panel", "banner"}
    assert viewer.frame() is None
    monkeypatch.setattr(of_viewer, "WORDS", 0.0)
    told = unpack(viewer.frame())
    assert told["tiles"]
    assert not told["figures"]
    monkeypatch.setattr(of_viewer, "WORDS", 60.0)
    viewer.answer = {"nth": 1, "error": ""}  # somebody waits for it
    assert unpack(viewer.frame())["tiles"]
    feed.run.close()


@pytest.mark.parametrize("where", [of_viewer, Viewer])
def test_the_frame_that_answers_a_turn_shows_it(where: Any, writer: RunWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the turn comes while a frame is made: when that has looked at the store, or when its words are written."""
    feed = Feed(open_run(writer.folder))
    viewer = viewer_of(feed)
    viewer.frame()
    writer.commit(Batch(51, rows(51, 1)))
    name = "view_of" if where is of_viewer else "words"
    before, turns = getattr(where, name), [Deed(nth=3, turn={"noise": 0.5})]

    def then_turn(*given: Any) -> Any:
        made = before(*given)
        while turns:
            asyncio.run(do(viewer, turns.pop()))
        return made

    monkeypatch.setattr(where, name, then_turn)
    answers = {1.0: {}, 0.5: {"nth": 3, "error": ""}}
    noise = 1.0
    while noise == 1.0:
        viewer.words_sent = feed.looked = 0.0
        told = unpack(viewer.frame())
        noise = next(
            (knob["value"] for knob in told.get("panel", {}).get("knobs", ()) if knob["name"] == "noise"), noise
        )
        assert told["answer"] == answers[noise]
    feed.run.close()


def test_a_chart_that_moved_by_less_than_a_pixel_waits_for_the_words_but_not_for_a_turn(
    writer: RunWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = Feed(open_run(writer.folder))
    sizes = {"loss": (640, 300), "balance_now": (640, 300)}
    writer.commit(Batch(51, rows(51, 3950)))  # an axis of 4,000 steps: some 7 a pixel
    look(feed)
    viewer = viewer_of(feed, sizes=sizes)
    assert set(unpack(viewer.frame())["figures"]) == set(sizes)
    monkeypatch.setattr(of_viewer, "WORDS", 60.0)

    def frame_after(steps: int, applied: Any = ()) -> set[str] | None:
        writer.commit(Batch(feed.last + 1, rows(feed.last, steps), applied=applied))
        feed.looked = 0.0
        frame = viewer.frame()
        return set(unpack(frame)["figures"]) if frame else None

    assert frame_after(1) == {"balance_now"}
    assert frame_after(8) == set(sizes)
    assert frame_after(1) == {"balance_now"}
    monkeypatch.setattr(of_viewer, "WORDS", 0.0)
    assert set(unpack(viewer.frame())["figures"]) == {"loss"}  # though nothing came since
    monkeypatch.setattr(of_viewer, "WORDS", 60.0)
    assert viewer.frame() is None
    feed.run.turn(who="test", noise=0.5)
    assert frame_after(1, ((writer.pending().knobs[0].id, feed.last + 1),)) == set(sizes)
    viewer.asked = viewer.asked | {"sizes": {"loss": sizes["loss"]}}  # the page has changed
    viewer.frame()
    assert frame_after(1) is None  # no frame for nothing,
    monkeypatch.setattr(of_viewer, "WORDS", 0.0)
    assert set(unpack(viewer.frame())["figures"]) == {"loss"}  # and nothing is lost
    feed.run.close()


def test_the_colours_of_paper_come_once_for_a_theme(writer: RunWriter, monkeypatch) -> None:
    monkeypatch.setattr(of_viewer, "WORDS", 0.0)
    feed = Feed(open_run(writer.folder))
    viewer = viewer_of(feed)
    light = unpack(viewer.frame())["paper"]
    for step, theme, comes in ((51, "light", False), (52, "dark", True), (53, "dark", False)):
        writer.commit(Batch(step, rows(step, 1)))
        feed.looked = 0.0
        viewer.hear(json.dumps(viewer.asked | {"theme": theme}))
        told = unpack(viewer.frame())
        assert ("paper" in told) == comes
        assert not comes or told["paper"] != light
    viewer.forget()  # that frame was not sent
    assert "paper" in unpack(viewer.frame())
    feed.run.close()


async def over_in(seconds: float, work: Any) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(work, seconds)


async def sleeper() -> "asyncio.Task[None]":
    """What listens to a viewer that says nothing."""
    return asyncio.create_task(asyncio.sleep(9))


def test_a_part_is_sent_again_if_only_its_numbers_are_others() -> None:
    viewer, sent = Viewer(), list[dict[str, Any]]()
    for y in ([1, 2], [1, 3], [1, 3]):
        sent.append({})
        viewer.add("loss", {"y": np.array(y, np.float32)}, sent[-1])
    assert [list(parts) for parts in sent] == [["loss"], ["loss"], []]


def test_how_long_frames_are_apart_is_known(writer: RunWriter) -> None:
    feed, sent = Feed(open_run(writer.folder)), list[bytes]()
    viewer = viewer_of(feed)

    class Socket:
        async def send_bytes(self, frame: bytes) -> None:
            sent.append(frame)
            viewer.drawn.set()

    viewer.timed_frame = lambda: b"frame" if len(sent) < 3 else None  # type: ignore[method-assign]

    async def watch() -> None:
        await over_in(2.0, show(Socket(), viewer, await sleeper()))  # type: ignore[arg-type]

    asyncio.run(watch())
    assert len(sent) == 3
    assert 0.02 < viewer.gap <= LONGEST
    feed.run.close()


def test_a_run_that_does_not_train_is_looked_at_ten_times_a_second(writer: RunWriter) -> None:
    writer.commit(Batch(51, rows(51, 1), state="paused"))
    feed = Feed(open_run(writer.folder))
    viewer, frames = viewer_of(feed), list[None]()
    viewer.timed_frame = lambda: frames.append(None)  # type: ignore[method-assign, func-returns-value]

    async def watch() -> None:
        await over_in(0.5, show(None, viewer, await sleeper()))  # type: ignore[arg-type]

    asyncio.run(watch())
    assert 0 < len(frames) <= 8  # each 33 ms there would be 15
    feed.run.close()


@pytest.mark.parametrize("gap", [0.2, 0.04])
def test_the_log_is_looked_at_eight_times_between_two_frames(
    writer: RunWriter, monkeypatch: pytest.MonkeyPatch, gap: float
) -> None:
    feed = Feed(open_run(writer.folder))
    viewer, pauses, news = viewer_of(feed), list[float](), [True, False]
    viewer.woken.clear()
    viewer.gap = gap
    feed.log.has_news = lambda folder: news.pop()  # type: ignore[method-assign]

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    async def watch() -> None:
        listening = await sleeper()
        monkeypatch.setattr(asyncio, "sleep", pause)
        await next_step(viewer, listening)

    asyncio.run(watch())
    assert pauses == [gap / 8] * 2
    feed.run.close()


def test_new_rows_are_written_behind_the_others_and_move_none_that_somebody_reads(
    writer: RunWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(histories, "RECENT", 100)
    feed = Feed(open_run(writer.folder))
    look(feed)
    all_rows, handed_out = rows(1, 50), [(feed.recent, rows(1, 50))]
    rooms = {id(feed._room): feed._room}
    for n in [1] * 80 + [7, 99, 100, 101, 250, 1]:
        first = len(all_rows) + 1
        writer.commit(Batch(first, more := rows(first, n)))
        all_rows = np.concatenate([all_rows, more])
        look(feed)
        np.testing.assert_array_equal(feed.recent, all_rows[-100:])
        handed_out.append((feed.recent, all_rows[-100:]))
        rooms[id(feed._room)] = feed._room
    for then, wanted in handed_out:
        np.testing.assert_array_equal(then, wanted)
    assert len(rooms) < 10
    feed.run.close()
