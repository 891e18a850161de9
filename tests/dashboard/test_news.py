"""What a page asks at every tick beside the run's steps is told by a file's stamp, or kept: nothing is read again that did not change."""

import fcntl
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_core.dashboard.feed import Feed
from moe_core.dashboard.shared import join, leave
from moe_core.dashboard.views import View
from moe_core.figures.needs import communication
from moe_core.runs import Batch, create_run, measuring, open_run, remove_run
from moe_core.runs.on_devices import NAME
from moe_core.runs.writer import RunWriter
from moe_core.schema import Config, Knobs, layout
from tests.figures.ranked import record_ranks
from tests.figures.record import record


def add(path: Path, event: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(event) + "\n")


def count(monkeypatch: pytest.MonkeyPatch, where: object, name: str) -> list[Any]:
    """The arguments of each call from now on."""
    calls, plain = list[Any](), getattr(where, name)

    def counted(*given: Any, **named: Any) -> Any:
        calls.append(given)
        return plain(*given, **named)

    monkeypatch.setattr(where, name, counted)
    return calls


@pytest.mark.parametrize("page", ["batch", "learn"])
def test_a_measurement_is_noticed_without_being_read(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = record(tmp_path / "a", E=4, steps=2)
    feed = Feed(run)
    feed.refresh()
    read, asked = count(monkeypatch, measuring, "read_side"), count(monkeypatch, run, "knob_changes")
    view = View(feed, {})
    news = [view.news(page)]
    for path in (run.path / NAME, run.throughput_file()):
        for event in ({"event": "start", "pid": 1, "devices": [1, 2], "sizes": [64]}, {"event": "end"}):
            add(path, event)
            assert view.news(page) not in news
            news.append(view.news(page))
    with (run.path / NAME).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert view.news(page) not in news
    assert view.news(page) == news[-1]  # it ended without a word
    (run.path / NAME).unlink()
    assert view.news(page) not in news
    assert not view.news("live")
    del asked[:1]  # throughput_file() above
    assert read == asked == []
    assert feed.throughput().pid == 1
    assert asked == []  # the feed knows the knobs


def test_an_unchanged_file_is_not_parsed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = record(tmp_path / "a", E=4, steps=2)
    read = count(monkeypatch, measuring, "read_side")
    start = {"event": "start", "pid": 1, "devices": [1, 2]}
    looks: dict[Path, Callable[[], Any]] = {run.path / NAME: run.on_devices, run.throughput_file(): run.throughput}
    for path, look in looks.items():
        assert look().pid == 0
        add(path, start | {"sizes": [64]})
        assert [look().pid for _ in range(3)] == [1, 1, 1]
        assert len(read) == 1
        add(path, {"event": "end"})
        assert [look().problem for _ in range(3)] == ["", "", ""]
        assert len(read) == 2
        path.unlink()
        assert look().pid == 0
        path.mkdir()
        assert look().problem
        read.clear()


def test_the_first_step_of_a_long_run_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says whether the time in communication was measured."""
    feed = Feed(record_ranks(tmp_path / "a", (60, 1, 2)))
    feed.most = 5  # rows in memory
    feed.refresh()
    assert feed.first_recent > 1
    read = count(monkeypatch, feed.run, "blocks")
    assert all(communication(feed) for _ in range(5))
    assert len(read) == 1


@pytest.mark.parametrize(
    "seen", [False, True]
)  # whether the page has seen the end of the first run, and let go of its file
def test_another_run_of_the_same_name_is_not_taken_for_the_one_that_is_watched(seen: bool, tmp_path: Path) -> None:
    def begin(seed: int, steps: int) -> RunWriter:
        config = Config(num_experts=4, layers=1, seed=seed)
        writer, width = create_run(tmp_path / "a", config, Knobs()), sum(column.width for column in layout(1, 4))
        writer.commit(Batch(1, np.full((steps, width), seed, np.float32)))
        return writer

    first = begin(1, 20)
    old, early = join(tmp_path / "a", "early"), object()
    old.refresh(now=True)
    first.finish("stopped")
    if seen:
        old.refresh(now=True)
        assert old.done
    remove_run(tmp_path / "a") if seen else shutil.rmtree(tmp_path / "a")
    second = begin(2, 7)
    old.refresh(now=True)
    assert old.problem == "another run has taken the place of a since; reload the page to see it"
    assert old.last == 20  # nothing of the second is mixed with it
    new = join(tmp_path / "a", early)
    new.refresh(now=True)
    assert (new.last, new.problem) == (7, "")
    leave(tmp_path / "a", "early")
    leave(tmp_path / "a", early)
    second.finish("stopped")
    old.run.close()


def test_a_turn_that_takes_effect_after_a_later_one_is_seen(tmp_path: Path) -> None:
    writer = create_run(tmp_path / "a", Config(num_experts=4, layers=1), Knobs())
    width = sum(column.width for column in layout(1, 4))
    feed = Feed(open_run(tmp_path / "a"))
    one, two = feed.run.turn(noise=0.5), feed.run.turn(noise=0.7)
    for step, turn in ((1, two), (2, one)):
        writer.commit(Batch(step, np.ones((1, width), np.float32), (), (), ((turn, step),)))
        feed.refresh(now=True)
    assert [change.step for change in feed.knob_changes()] == [2, 1]
    writer.finish("stopped")
    feed.run.close()
