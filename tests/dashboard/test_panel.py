"""The panel says what the store says, and what is done in it reaches the store, once a drag, or is refused."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_core.dashboard import going
from moe_core.dashboard.feed import Feed
from moe_core.dashboard.messages import parse_deed
from moe_core.dashboard.panel import act, banner, findings, matters, panel, remedy_text
from moe_core.figures.pages.live import heldout_tile, speed_tile
from moe_core.figures.reading import gestures, last_change
from moe_core.runs import Batch, RunWriter, create_run, hold_lock, open_run, ranks, resume_run, runner
from moe_core.runs.branch import branch_off
from moe_core.runs.database import connect
from moe_core.runs.ranks import ALONE, RankCounts
from moe_core.runs.source import At
from moe_core.schema import LOOKS_AHEAD, STRATEGIES, Config, Knobs, layout
from tests.figures.record import record

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


def ask(run: Any, said: dict[str, Any]) -> dict[str, Any]:
    """As a viewer does."""
    return act(run, parse_deed(said))


def knobs_of(told: dict[str, Any]) -> dict[str, Any]:
    return {knob["name"]: knob for knob in told["knobs"]}


def test_a_drag_is_one_turn_in_the_list_and_each_value_in_the_record(writer: RunWriter, feed: Feed) -> None:
    for value in (0.01, 0.02, 0.05):
        ask(feed.run, {"turn": {"w_load": value}, "gesture": "abc"})
    ask(feed.run, {"turn": {"noise": 2}, "gesture": "xyz"})
    ask(feed.run, {"turn": {"w_load": 0.1}, "gesture": "abc"})
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


def test_the_knobs_of_a_remedy_are_all_marked_as_turned(writer: RunWriter, feed: Feed) -> None:
    ask(feed.run, {"turn": {"noise": 2}, "gesture": "before"})
    writer.commit(Batch(51, NONE, applied=[(1, 20)]))
    ask(feed.run, {"turn": {"w_importance": 0.3, "w_load": 0.2}, "gesture": "remedy"})
    feed.refresh(now=True)
    for step in (None, 30):
        was = {name: told["was"] for name, told in knobs_of(panel(feed)).items() if told["was"] is not None}
        assert was == {"w_importance": 0.01, "w_load": 0.0}, step
        writer.commit(Batch(51, NONE, applied=[(2, 30), (3, 30)]))
        feed.refresh(now=True)


def test_a_run_that_trains_again_what_is_recorded_says_so(writer: RunWriter, feed: Feed) -> None:
    assert panel(feed)["word"] == "Training"
    writer.commit(Batch(51, NONE, state="starting"))
    feed.refresh(now=True)
    assert (panel(feed)["state"], panel(feed)["word"]) == ("starting", "Catching up…")


def test_turns_of_two_hands_are_two(feed: Feed) -> None:
    ask(feed.run, {"turn": {"noise": 2}, "gesture": "a"})
    ask(feed.run, {"turn": {"noise": 3}, "gesture": "b"})
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
    assert isinstance(feed.knobs_at(40).k, int)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"turn": {"noise": 99}}, "between 0 and 4"),
        ({"turn": {"nose": 1}}, "unknown knob"),
        ({"turn": {"k": 5}}, "num_experts=4"),
        ({"turn": []}, "must be an object"),
        ({"turn": {"noise": 1}, "gesture": "a b"}, "gesture must"),
        ({"command": "rm"}, "command must"),
        ({"fork": 999}, "999"),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_is_written(feed: Feed, said: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ask(feed.run, said)
    assert feed.run.knob_changes() == []
    assert feed.run.commands() == []


def test_the_knobs_of_a_run_that_ended_are_turned_no_more(tmp_path: Path) -> None:
    create_run(tmp_path / "b", CONFIG, Knobs()).finish("finished")
    run = open_run(tmp_path / "b")
    with pytest.raises(ValueError, match="has ended"):
        ask(run, {"turn": {"noise": 2}})
    feed = Feed(run)
    feed.refresh(now=True)
    assert not panel(feed)["alive"]
    told = banner(feed, 0)
    assert told
    assert re.match(r"Finished: 0 steps in \d+\u00a0s\.", told["text"])  # the machine may be busy
    run.close()


def test_a_button_asks_the_trainer(feed: Feed) -> None:
    for name in ("pause", "step", "resume"):
        ask(feed.run, {"command": name})
    assert [(c.name, c.who) for c in feed.run.commands()] == [(n, "dashboard") for n in ("pause", "step", "resume")]


def test_a_knob_says_its_range_and_one_that_does_not_matter_is_left_out(feed: Feed, tmp_path: Path) -> None:
    told = knobs_of(panel(feed))
    assert (told["k"]["low"], told["k"]["high"], told["k"]["kind"]) == (1, 4, "whole")
    assert (told["lr"]["label"], told["lr"]["scale"], told["lr"]["start"]) == ("learning rate", "log", 3e-3)
    create_run(tmp_path / "c", Config(num_experts=1), Knobs(k=1)).finish("finished")
    alone = Feed(open_run(tmp_path / "c"))
    assert "k" not in knobs_of(panel(alone))
    alone.run.close()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_how_the_chosen_are_weighed_is_asked_where_a_strategy_reads_it(strategy: str, tmp_path: Path) -> None:
    create_run(tmp_path / "w", CONFIG, Knobs(strategy=strategy)).finish("finished")
    feed = Feed(open_run(tmp_path / "w"))
    told = knobs_of(panel(feed)).get("weigh")
    assert (told is not None) == STRATEGIES[strategy].by_token
    if told:
        assert (told["kind"], told["choices"], told["value"], told["more"]) == (
            "choice",
            ["own", "kept", "all"],
            "own",
            True,
        )
    feed.run.close()


def test_what_autobalance_did_is_one_entry_and_no_mark(writer: RunWriter, feed: Feed) -> None:
    feed.run.turn(noise=2)
    for value in (0.001, 0.002, 0.004):
        feed.run.turn(who="autobalance", w_load=value, w_importance=20 * value)
    feed.run.turn(noise=1.5)
    applied = [(id, 5 + id) for id in range(1, 9)]
    writer.commit(Batch(51, NONE, applied=applied))
    feed.refresh(now=True)
    told = panel(feed)
    assert [c["text"] for c in told["changes"]] == [
        "noise 2 → 1.5",
        "autobalance: w_load 0 → 4e-3, w_importance 0.01 → 0.08",
        "noise 1 → 2",
    ]
    assert [c["step"] for c in told["changes"]] == [13, 12, 6]
    assert told["marks"] == [6, 13]
    assert last_change(feed, 12).step == 6


def test_what_a_run_that_ended_took_no_more_has_not_acted(writer: RunWriter, feed: Feed) -> None:
    """Autobalance decides after the last step too; the weights that acted last are shown, and no turn that waits."""
    feed.run.turn(who="autobalance", w_load=0.00083249)
    writer.commit(Batch(51, NONE, applied=[(1, 26)]))
    feed.run.turn(who="autobalance", w_load=0.000297)
    feed.run.turn(noise=2)
    feed.refresh(now=True)
    assert knobs_of(panel(feed))["noise"]["value"] == 2  # it trains: the next step takes it
    writer.commit(Batch(51, NONE, state="finished"))
    feed.refresh(now=True)
    told = panel(feed)
    assert [(c["text"], c["step"]) for c in told["changes"]] == [("noise 1 → 2", None), ("autobalance: w_load 0 → 8.3e-4", 26)]  # fmt: skip
    assert (knobs_of(told)["w_load"]["value"], knobs_of(told)["noise"]["value"]) == (0.00083249, 1.0)


def test_a_list_that_is_cut_says_how_many_it_leaves_out(feed: Feed) -> None:
    for at in range(11):
        feed.run.turn(who="script", noise=2 - at / 100)
        feed.refresh(now=True)
        told = panel(feed)
        assert (len(told["changes"]), told["earlier"]) == (min(at + 1, 8), max(0, at - 7))


def test_a_drag_that_ends_where_it_began_is_none_unless_it_acted_meanwhile(writer: RunWriter, feed: Feed) -> None:
    for value in (2, 1):
        ask(feed.run, {"turn": {"noise": value}, "gesture": "abc"})
    writer.commit(Batch(51, NONE, applied=[(1, 20), (2, 20)]))
    feed.refresh(now=True)
    assert (panel(feed)["changes"], panel(feed)["marks"], last_change(feed, 50)) == ([], [], None)
    for value in (2, 1):
        ask(feed.run, {"turn": {"noise": value}, "gesture": "xyz"})
    writer.commit(Batch(51, NONE, applied=[(3, 30), (4, 31)]))
    feed.refresh(now=True)
    assert panel(feed)["marks"] == [30]


def forked(folder: Path, at: int, own: int, state: str = "stopped") -> Feed:
    """A fork of a run of 60 steps at one of them, as its trainer leaves it after so many steps of its own."""
    parent = record(folder / "parent")
    lock = branch_off(parent, at, {}, folder / "fork", 200)
    writer = resume_run(folder / "fork", lock, "me", 200)
    if own:
        rows = parent.rows(1, own)
        rows[:, next(c.start for c in parent.layout if c.stat == "seconds")] = 0.01
        writer.commit(Batch(at + 1, rows, state="training"))
    if state != "starting":
        writer.finish(state)
    else:
        _open.append(writer)
    feed = Feed(open_run(folder / "fork"))
    feed.refresh(now=True)
    return feed


_open: list[RunWriter] = []  # or a trainer's lock would go with it


def test_a_fork_counts_its_own_steps_and_shows_its_own_speed(tmp_path: Path) -> None:
    feed = forked(tmp_path, 40, 10)
    told = banner(feed, 0)
    assert told
    assert re.match(r"Stopped: 50 steps, 40 of them inherited, 10 in \d+\u00a0s\. ", told["text"])
    assert speed_tile(feed, At(0, 50)).value == "100"
    assert (speed_tile(feed, At(0, 30)).value, speed_tile(feed, At(0, 30)).lines) == ("–", ("the parent's steps",))
    feed.run.close()


def test_a_fork_that_trains_again_what_is_recorded_has_no_speed_and_no_steps_of_its_own(tmp_path: Path) -> None:
    feed = forked(tmp_path, 40, 0, "starting")
    assert (panel(feed)["word"], speed_tile(feed, At(0, 40)).value) == ("Catching up…", "–")
    assert speed_tile(feed, At(0, 40)).lines == ("trains again what is recorded",)
    _open.pop().finish("stopped")
    feed.refresh(now=True)
    told = banner(feed, 0)
    assert told
    assert told["text"].startswith("Stopped: 40 steps, 40 of them inherited. ")
    feed.run.close()


def test_a_run_that_was_gone_on_with_says_what_the_last_trainer_did(tmp_path: Path) -> None:
    record(tmp_path / "a", state="stopped")
    writer = resume_run(tmp_path / "a", hold_lock(tmp_path / "a"), "me", 200)
    writer.commit(Batch(61, open_run(tmp_path / "a").rows(1, 10), state="training"))
    writer.finish("stopped")
    feed = Feed(open_run(tmp_path / "a"))
    feed.refresh(now=True)
    told = banner(feed, 0)
    assert told
    assert re.match(r"Stopped: 70 steps, the last 10 in \d+\u00a0s\. ", told["text"])
    feed.run.close()


def collapsed(n: int) -> np.ndarray:
    """Rows in which one of four experts has all."""
    rows = ROW.repeat(n, 0)
    for column in layout(2, 4):
        if column.stat in ("load", "counts", "importance") and column.layer == 1:
            rows[:, column.start : column.start + 4] = [4, 0, 0, 0]
    return rows


def test_what_is_wrong_is_said_once_a_second_with_a_remedy_that_can_be_turned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = create_run(tmp_path / "c", CONFIG, Knobs(w_load=0.0, w_importance=0.0))
    writer.commit(Batch(1, collapsed(60), state="training"))
    feed = Feed(open_run(writer.folder))
    feed.refresh(now=True)
    assert "collapse" not in {one["rule"] for one in findings(feed, 0)}
    (said,) = [one for one in findings(feed, 1) if one["rule"] == "collapse"]
    assert said["what"].startswith("The gate has collapsed onto a few experts")
    assert said["what"].endswith("Since step 1.")
    assert (said["button"], len(said["more"])) == ("Turn w_importance and w_load to 0.1", 2)
    ask(feed.run, {"turn": said["remedy"], "gesture": "r1"})
    assert (feed.run.knobs.w_importance, feed.run.knobs.w_load) == (0.1, 0.1)
    looks: list[int] = []
    monkeypatch.setattr("moe_core.dashboard.judging.diagnose", lambda source, layer, memory: looks.append(layer) or [])
    for first in (61, 62, 63):
        writer.commit(Batch(first, collapsed(1)))
        feed.refresh(now=True)
        findings(feed, 1)
    assert looks == []
    monkeypatch.setattr("moe_core.dashboard.feed.JUDGED", 0.0)
    assert (findings(feed, 1), findings(feed, 1), looks) == ([], [], [1])  # nothing new, nothing judged
    feed.run.close()
    writer.finish("stopped")


def test_what_stood_before_the_rows_in_memory_and_a_run_that_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moe_core.dashboard.histories.RECENT", 100)
    writer = create_run(tmp_path / "d", CONFIG, Knobs(w_load=0.0, w_importance=0.0))
    writer.commit(Batch(1, collapsed(200), state="training"))
    writer.commit(Batch(201, collapsed(100)))
    writer.finish("stopped")
    feed = Feed(open_run(writer.folder))
    feed.refresh(now=True)
    monkeypatch.setattr("moe_core.dashboard.judging.REACH", 0)  # as if it had begun further back than is read
    (said,) = [one for one in findings(feed, 1) if one["rule"] == "collapse"]
    assert said["what"].endswith(f"For more than {300 - feed.first_recent} steps.")
    assert feed.first_recent > 1
    assert (said["remedy"], said["button"], len(said["more"])) == (None, "", 1)
    feed.run.close()


def test_where_something_began_is_looked_for_in_few_bytes_of_which_none_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run whose rows lie in one piece all columns are read, whichever layer is judged."""
    monkeypatch.setattr("moe_core.dashboard.histories.RECENT", 30)
    monkeypatch.setattr("moe_core.dashboard.judging.REACH", 200 * ROW.nbytes)
    writer = create_run(tmp_path / "f", CONFIG, Knobs(w_load=0.0, w_importance=0.0))
    for first in range(1, 1001, 10):
        writer.commit(Batch(first, collapsed(10), state="training"))
    feed, rows_read = Feed(open_run(writer.folder)), list[int]()
    feed.refresh(now=True)
    blocks = feed.run.blocks

    def counted(*args: Any, **kwargs: Any) -> list[Any]:
        found = blocks(*args, **kwargs)
        rows_read.append(sum(len(block.rows) for block in found))
        return found

    monkeypatch.setattr(feed.run, "blocks", counted)
    (said,) = [one for one in findings(feed, 1) if one["rule"] == "collapse"]
    assert said["what"].endswith("For more than 199 steps.")
    assert 200 <= sum(rows_read) <= 200 + 120 + 20  # once four times as many steps as in memory, then all within reach
    assert feed._ranges == {}
    feed.run.close()
    writer.finish("stopped")


@pytest.mark.parametrize(
    ("remedy", "words"),
    [
        ({"noise": 1.0}, "Turn noise to 1"),
        ({"noise": 1.0, "w_load": 0.1, "w_importance": 0.1}, "Turn noise to 1, w_load and w_importance to 0.1"),
        ({"strategy": "paper", "noise": 1.0}, "Turn strategy to paper, noise to 1"),
    ],
)
def test_the_button_says_what_it_does(remedy: dict[str, float | str], words: str) -> None:
    assert remedy_text(remedy) == words


def test_a_number_that_looks_ahead_says_so(tmp_path: Path) -> None:
    """By the strategy under which it was measured, not the one that stands now."""
    writer = create_run(tmp_path / "e", CONFIG, Knobs(strategy="expert-choice"))
    writer.commit(
        Batch(1, ROW.repeat(20, 0), state="training", evals=[(10, {"bits_per_byte": 3.0, "loss": 2.0}, None)])
    )
    feed = Feed(open_run(writer.folder))
    change = feed.run.turn(strategy="paper")
    writer.commit(Batch(21, ROW.repeat(20, 0), applied=[(change, 21)]))
    feed.refresh(now=True)
    assert heldout_tile(feed, At(0, 40)).lines == (LOOKS_AHEAD,)
    writer.commit(Batch(41, ROW, evals=[(40, {"bits_per_byte": 2.0, "loss": 1.5}, None)]))
    feed.refresh(now=True)
    assert heldout_tile(feed, At(0, 41)).lines == ("−1.00 in 30 steps",)
    feed.run.close()
    writer.finish("stopped")


def test_the_time_that_a_run_took_does_not_grow_while_its_end_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_run(tmp_path / "b", CONFIG, Knobs()).finish("finished")
    feed = Feed(open_run(tmp_path / "b"))
    feed.refresh(now=True)
    before = banner(feed, 0)
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 3600)
    feed.refresh(now=True)
    assert banner(feed, 0) == before
    feed.run.close()


def test_the_strategy_says_what_it_does_and_other_knobs_say_nothing(feed: Feed) -> None:
    knobs = knobs_of(panel(feed))
    assert knobs["strategy"]["about"] == [STRATEGIES["paper"].about, STRATEGIES["paper"].formula]
    assert all(knob["about"] == [] for name, knob in knobs.items() if name != "strategy")


def test_a_run_with_a_goal_says_how_long_it_still_trains(tmp_path: Path) -> None:
    """Its steps took a second each."""
    writer = create_run(tmp_path / "goal", CONFIG.for_task("text", num_experts=4, steps=80), Knobs())
    writer.commit(Batch(1, ROW.repeat(50, 0), state="training"))
    feed = Feed(open_run(writer.folder))
    feed.refresh(now=True)
    assert (panel(feed)["left"], panel(feed, step=20)["left"]) == ("30 s left", "")
    writer.commit(Batch(51, NONE, state="paused"))
    feed.refresh(now=True)
    assert panel(feed)["left"] == ""
    feed.run.close()
    writer.finish("stopped")


def test_a_run_without_a_goal_says_no_time(feed: Feed) -> None:
    assert panel(feed)["left"] == ""


def test_experts_are_switched_off_in_the_words_that_the_list_of_changes_says(writer: RunWriter, feed: Feed) -> None:
    for word in ("4", "none", "1:2"):
        ask(feed.run, {"turn": {"off": word}})
    writer.commit(Batch(51, NONE, applied=[(1, 20), (2, 21), (3, 22)]))
    feed.refresh(now=True)
    assert [c["text"] for c in panel(feed)["changes"]] == ["off none → 1:2", "off 4 → none", "off none → 4"]


# Going on with a run that has ended, and forking with knobs turned


def ended(folder: Path, state: str = "stopped", **config: Any) -> Feed:
    record(folder / "a", steps=20, state=state, **config).close()
    feed = Feed(open_run(folder / "a"))
    feed.refresh(now=True)
    return feed


def test_an_ended_run_goes_on_and_says_so_until_its_trainer_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = ended(tmp_path)
    assert (panel(feed)["going"], panel(feed)["word"]) == (False, "Stopped")
    started: list[Any] = []
    locks: list[int] = []
    monkeypatch.setattr(
        going, "resume", lambda run, steps, ranks: (started.append(steps), locks.append(hold_lock(run.path)))
    )
    assert ask(feed.run, {"go_on": True, "steps": 50}) == {}
    assert started == [50]
    assert (panel(feed)["going"], panel(feed)["word"]) == (True, "Starting…")
    os.close(locks.pop())  # the trainer ends before it has begun, with a reason
    (feed.path / "trainer.log").write_text("moe: the data are not those that a was trained on\n")
    assert (panel(feed)["going"], panel(feed)["word"]) == (False, "Stopped")
    told = banner(feed, 0)
    assert told
    assert told["text"].startswith("It could not go on. Stopped: ")
    assert told["error"] == "the data are not those that a was trained on"
    ask(feed.run, {"go_on": True})
    writer = resume_run(feed.path, locks.pop(), "me", 90)
    writer.commit(Batch(21, NONE, state="training"))
    feed.refresh(now=True)
    assert (started, panel(feed)["going"], panel(feed)["word"]) == ([50, 0], False, "Training")
    assert panel(feed)["goal"] == open_run(feed.path).description.goal == 90  # what Resume and Fork offer
    writer.finish("finished")
    feed.refresh(now=True)
    told = banner(feed, 0)
    assert told
    assert told["text"].startswith("Finished")
    assert panel(feed)["goal"] == 90


@pytest.mark.parametrize(
    ("state", "said", "words"),
    [
        ("stopped", {"go_on": True, "steps": 19}, "it has 20 steps; give more than that"),
        ("finished", {"go_on": True, "steps": 20}, "it has 20 steps; give more than that"),
        ("training", {"go_on": True, "steps": 90}, "being trained by another process"),
        ("stopped", {"fork": 20, "turn": {"k": 99}}, "k must be"),
        ("stopped", {"fork": 20, "turn": {"nose": 1}}, "unknown knob"),
        ("stopped", {"fork": 20, "turn": {"k": 1}, "steps": 20}, "trains to a step beyond it, got 20"),
    ],
)
def test_what_cannot_go_on_is_refused_before_anything_is_started(
    tmp_path: Path, state: str, said: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "spawn", lambda *args: pytest.fail("a trainer was started"))
    feed = ended(tmp_path, state)
    with pytest.raises(ValueError, match=words):
        ask(feed.run, said)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_fork_begins_with_the_knobs_that_were_turned_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spawned: list[Any] = []
    monkeypatch.setattr(
        "moe_core.runs.runner._spawn_resume", lambda folder, lock, *rest: spawned.append((folder, lock))
    )
    feed = ended(tmp_path)
    name = ask(feed.run, {"fork": 10, "turn": {"k": 1, "noise": 0.5}, "steps": 90})["go"]
    os.close(spawned[0][1])
    fork = open_run(name, tmp_path)
    assert (fork.parent, fork.config.steps) == (("a", 10), 90)
    assert {change.name: change.value for change in fork.knob_changes()} == {"k": 1, "noise": 0.5}


def test_a_run_of_ranks_goes_on_with_them_if_this_machine_has_the_cores_and_the_panel_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = create_run(tmp_path / "a", Config.for_task("plane"), Knobs(), facts={"ranks": {"data": 1, "expert": 2}})
    writer.commit(Batch(1, np.ones((3, open_run(tmp_path / "a").columns), np.float32)))
    writer.finish("stopped")
    spawned: list[Any] = []
    monkeypatch.setattr(
        "moe_core.runs.runner._spawn_resume", lambda folder, lock, *rest: spawned.append((lock, rest[-1]))
    )
    for cores, many in ((2, RankCounts(2, 2)), (1, ALONE)):
        monkeypatch.setattr(ranks, "cores", lambda cores=cores: cores)
        feed = Feed(open_run(tmp_path / "a"))
        one = "In one process: 2 ranks trained it, and this machine has 1 core."
        assert panel(feed)["ranks"] == ("On 2 ranks again." if cores == 2 else one)
        ask(feed.run, {"go_on": True})
        child = ask(feed.run, {"fork": 2, "turn": {}})["go"]
        for lock, _ in spawned:
            os.close(lock)
        assert [found for _, found in spawned] == [many, many]
        assert ranks.first_ranks(open_run(tmp_path / child).facts) == many
        spawned.clear()


def test_a_watched_run_that_has_ended_cannot_go_on_from_here(tmp_path: Path) -> None:
    feed = ended(tmp_path)
    feed.run.description = replace(feed.run.description, origin="watched", obeys=("pause", "stop"))
    with pytest.raises(ValueError, match="to go on, start that program again"):
        ask(feed.run, {"go_on": True})


def test_a_run_whose_turns_are_damaged_does_not_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feed = ended(tmp_path)
    feed.run.turn(noise=0.5)
    with closing(connect(feed.path / "run.db", write=True)) as db:
        db.execute("UPDATE knobs SET value = 3")
    monkeypatch.setattr(going, "resume", lambda run, steps: pytest.fail("a trainer was started"))
    with pytest.raises(ValueError, match="is damaged, and cannot be resumed"):
        ask(open_run(feed.path), {"go_on": True})


def test_the_knobs_of_other_strategies_are_there_for_a_fork_that_takes_one(writer: RunWriter, feed: Feed) -> None:
    told = panel(feed)
    knobs, idle = knobs_of(told), {knob["name"]: knob for knob in told["idle"]}
    assert not knobs.keys() & idle.keys()
    assert [name for name in told["order"] if name in knobs] == list(knobs)
    assert (idle["bias_speed"]["value"], idle["bias_speed"]["under"]) == (1e-3, ["loss-free"])
    assert {"w_switch", "w_threshold"} <= idle.keys()
    assert not {"k_primary", "noise_primary"} & idle.keys()  # they act under no strategy in this run
    assert (knobs["k"]["under"], knobs["w_load"]["under"]) == (None, ["paper"])
    for strategy, about in knobs["strategy"]["abouts"].items():
        declared = feed.description.knobs
        acting = {name for name, one in declared.items() if matters(one, strategy)}
        assert acting == {n for n, one in (knobs | idle).items() if one["under"] is None or strategy in one["under"]}
        assert len(about) == 2


def test_a_collapse_that_wavers_began_where_it_did_however_far_the_run_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 140 steps 20 are above the mark at which a collapse begins, the others between it and that at which it ends."""
    monkeypatch.setattr("moe_core.dashboard.histories.RECENT", 100)
    monkeypatch.setattr("moe_core.dashboard.feed.JUDGED", 0.0)
    writer = create_run(tmp_path / "w", CONFIG, Knobs(w_load=0.0, w_importance=0.0))

    def loaded(n: int, most: float) -> np.ndarray:
        rows = collapsed(n)
        for column in layout(2, 4):
            if column.stat in ("load", "counts", "importance"):
                rows[:, column.start : column.start + 4] = [most, 1, 1, 1]
        return rows

    writer.commit(Batch(1, loaded(40, 1), state="training"))
    feed, first, said = Feed(open_run(writer.folder)), 41, []
    for n, most in [(20, 1000), (60, 5.33), (60, 5.33)] * 5:
        writer.commit(Batch(first, loaded(n, most)))
        first += n
        feed.refresh(now=True)
        said.append(begun(feed))
    later = Feed(open_run(writer.folder))
    later.refresh(now=True)
    assert later.first_recent > 500
    assert {*said, begun(later)} == {"Since step 41."}
    for one in (feed, later):
        one.run.close()
    writer.finish("stopped")


def begun(feed: Feed) -> str:
    """What is said of since when there is a collapse."""
    return next((one["what"].rpartition("). ")[2] for one in findings(feed, 1) if one["rule"] == "collapse"), "")
