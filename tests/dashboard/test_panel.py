"""The panel says what the store says, and what is done in it reaches the store, once a drag, or is refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_core.dashboard.feed import Feed
from moe_core.dashboard.panel import act, banner, panel
from moe_core.figures.tiles import gestures, knobs_at, last_change
from moe_core.runs import Batch, RunWriter, create_run, open_run
from moe_core.schema import Config, Knobs, layout

CONFIG = Config(num_experts=4, layers=2)
ROW = np.ones((1, sum(c.width for c in layout(2, 4))), np.float32)
NONE = np.empty((0, 1), np.float32)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[RunWriter]:
    writer = create_run(tmp_path / "a", CONFIG, Knobs(w_load=0.0))
    writer.commit(Batch(1, ROW.repeat(50, 0), state="training"))
    yield writer
    writer.finish("finished")


@pytest.fixture
def feed(writer: RunWriter) -> Iterator[Feed]:
    feed = Feed(open_run(writer.folder))
    feed.refresh(now=True)
    yield feed
    feed.run.close()


def knobs_of(told: dict[str, Any]) -> dict[str, Any]:
    return {knob["name"]: knob for knob in told["knobs"]}


def test_a_drag_is_one_turn_in_the_list_and_each_value_in_the_record(writer: RunWriter, feed: Feed) -> None:
    for value in (0.01, 0.02, 0.05):
        act(feed.run, {"turn": {"w_load": value}, "gesture": "abc"})
    act(feed.run, {"turn": {"noise": 2}, "gesture": "xyz"})
    act(feed.run, {"turn": {"w_load": 0.1}, "gesture": "abc"})
    writer.commit(Batch(51, NONE, applied=[(1, 20), (2, 21), (3, 30), (4, 31)]))
    feed.refresh(now=True)
    assert [(c.value, c.step) for c in feed.run.knob_changes()] == [
        (0.01, 20),
        (0.02, 21),
        (0.05, 30),
        (2, 31),
        (0.1, None),
    ]
    told = panel(feed)
    assert [(c["text"], c["step"]) for c in told["changes"]] == [("noise 1 → 2", 31), ("w_load 0 → 0.1", 20)]
    assert told["marks"] == [20, 31]
    assert knobs_of(told)["noise"]["was"] == 1.0
    assert knobs_of(told)["w_load"]["was"] is None
    assert last_change(feed, 30).name == "w_load"


def test_turns_of_two_hands_are_two(feed: Feed) -> None:
    act(feed.run, {"turn": {"noise": 2}, "gesture": "a"})
    act(feed.run, {"turn": {"noise": 3}, "gesture": "b"})
    feed.run.turn(who="script", noise=1.5)
    feed.run.turn(who="script", noise=0.5)
    assert [c.value for c in gestures(feed.run.knob_changes())] == [2, 3, 1.5, 0.5]


def test_a_past_step_shows_the_knobs_as_they_were(writer: RunWriter, feed: Feed) -> None:
    for step, value in ((10, 0.5), (20, 0.6), (30, 0.7)):
        change = feed.run.turn(w_load=value)
        writer.commit(Batch(51, NONE, applied=[(change, step)]))
    feed.refresh(now=True)
    stood = {step: knobs_of(panel(feed, step))["w_load"]["value"] for step in (9, 10, 19, 20, 40)}
    assert stood == {9: 0.0, 10: 0.5, 19: 0.5, 20: 0.6, 40: 0.7}
    assert [c["step"] for c in panel(feed, 20)["changes"]] == [20, 10]
    assert isinstance(knobs_at(feed, 40).k, int)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"turn": {"noise": 99}}, "between 0 and 4"),
        ({"turn": {"nose": 1}}, "unknown knob"),
        ({"turn": {"k": 5}}, "num_experts=4"),
        ({"turn": []}, "not ours"),
        ({"turn": {"noise": 1}, "gesture": "a b"}, "not ours"),
        ({"command": "rm"}, "not ours"),
        ({"fork": 999}, "999"),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_is_written(feed: Feed, said: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        act(feed.run, said)
    assert feed.run.knob_changes() == []
    assert feed.run.commands() == []


def test_the_knobs_of_a_run_that_ended_are_turned_no_more(tmp_path: Path) -> None:
    create_run(tmp_path / "b", CONFIG, Knobs()).finish("finished")
    run = open_run(tmp_path / "b")
    with pytest.raises(ValueError, match="has ended"):
        act(run, {"turn": {"noise": 2}})
    feed = Feed(run)
    feed.refresh(now=True)
    assert not panel(feed)["alive"]
    told = banner(feed, 0)
    assert told
    assert told["text"].startswith("Finished: 0 steps in 0 s.")
    run.close()


def test_a_button_asks_the_trainer(feed: Feed) -> None:
    for name in ("pause", "step", "resume"):
        act(feed.run, {"command": name})
    assert [(c.name, c.who) for c in feed.run.commands()] == [(n, "dashboard") for n in ("pause", "step", "resume")]


def test_a_knob_says_its_range_and_one_that_does_not_matter_is_left_out(feed: Feed, tmp_path: Path) -> None:
    told = knobs_of(panel(feed))
    assert (told["k"]["low"], told["k"]["high"], told["k"]["kind"]) == (1, 4, "whole")
    assert (told["lr"]["label"], told["lr"]["scale"], told["lr"]["start"]) == ("learning rate", "log", 3e-3)
    create_run(tmp_path / "c", Config(num_experts=1), Knobs(k=1)).finish("finished")
    alone = Feed(open_run(tmp_path / "c"))
    assert "k" not in knobs_of(panel(alone))
    alone.run.close()
