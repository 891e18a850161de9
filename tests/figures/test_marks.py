"""What is written into the charts over time: the names of changes and of peaks stand clear of each other and of lines."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

from moe_core.figures import timeline
from moe_core.figures.paper import inner
from moe_core.figures.reading import by_hand, marked
from moe_core.figures.smooth import cuts_of
from moe_core.runs.rows import KnobChange
from moe_core.schema import Config, Knobs, describe


class Change(NamedTuple):
    name: str
    step: int
    previous: float = 0.0
    value: float = 0.1


def shares(peaks: dict[int, int], n: int = 200, E: int = 8) -> np.ndarray:
    """Even shares (n, E), but that each of these experts has half at its own step."""
    share_nE = np.full((n, E), 1 / E)
    for expert, step in peaks.items():
        share_nE[step - 1] = 0.5 / (E - 1)
        share_nE[step - 1, expert] = 0.5
    return share_nE


def drawn(peaks: dict[int, int], changes: tuple[Change, ...]) -> dict[str, Any]:
    return timeline.selection_share.spec(np.arange(1, 201), shares(peaks), changes=changes)["layout"]


def boxes(layout: dict[str, Any]) -> dict[str, tuple[float, float, float]]:
    """Of each peak's name its left and right end and its height, in px."""
    width, height = inner(layout)
    named = [note for note in layout["annotations"] if "■" in note["text"] and note["x"] < 1]
    middles = {note["text"].split("</span> ")[1]: (note["x"] * width, note["y"] * height) for note in named}
    return {name: (x - 32, x + 32, y) for name, (x, y) in middles.items()}


@pytest.mark.parametrize("offset", [-3, 0, 3, 12])
def test_the_name_of_a_peak_crosses_no_line_of_a_change(offset: int) -> None:
    layout = drawn({2: 100}, (Change("w_load", 100 + offset),))
    ((left, right, _),) = boxes(layout).values()
    line = (100 + offset) / layout["xaxis"]["range"][1] * inner(layout)[0]
    assert not left < line < right
    assert min(abs(left - line), abs(right - line)) < 64 + 4  # and is still beside its peak


def test_names_of_peaks_are_on_ground_and_do_not_cover_each_other() -> None:
    layout = drawn({1: 100, 4: 120, 6: 190}, ())
    places = sorted(boxes(layout).values())
    assert len(places) == 3
    assert all(b[0] >= a[1] or abs(a[2] - b[2]) > 16 for a, b in pairwise(places))
    assert all(note["bgcolor"] for note in layout["annotations"] if "■" in note["text"] and note["x"] < 1)


def test_a_peak_without_room_is_not_named() -> None:
    changes = tuple(Change(f"k{step}", step) for step in range(54, 147, 23))  # too far apart to share a mark
    assert boxes(drawn({2: 100}, changes)) == {}


def test_knobs_turned_in_one_step_share_a_line_and_all_are_named() -> None:
    layout = drawn({}, (Change("noise", 10), Change("w_load", 60), Change("w_importance", 60)))
    assert sorted(shape["x0"] for shape in layout["shapes"] if shape["xref"] == "x") == [10, 60]
    texts = [note["text"] for note in layout["annotations"]]
    assert "w_load 0 → 0.1<br>w_importance 0 → 0.1" in texts
    assert "noise 0 → 0.1" in texts


def test_of_many_knobs_turned_in_one_step_the_last_three_are_named() -> None:
    layout = drawn({}, tuple(Change(f"knob{at}", 60) for at in range(5)))
    (text,) = [note["text"] for note in layout["annotations"] if "knob" in note["text"]]
    assert [line.split()[0] for line in text.split("<br>")] == ["knob2", "knob3", "knob4"]
    (hover,) = [note["hovertext"] for note in layout["annotations"] if "knob" in note["text"]]
    assert [line.split()[2] for line in hover.split("<br>")] == [f"knob{at}" for at in range(5)]
    told = [change for name in layout["meta"]["untold"] for change in name.changes]
    assert told == [(60, f"knob{at} 0 → 0.1") for at in range(5)]
    assert "untold" not in drawn({}, tuple(Change(f"knob{at}", 60) for at in range(3)))["meta"]


def test_the_name_of_a_peak_keeps_clear_of_the_name_of_a_change() -> None:
    """The peak lies right of the line, below the change's name."""
    turned = (Change("w_importance", 90), Change("w_load", 90))
    layout = drawn({2: 110}, turned)
    assert layout["yaxis"]["range"][1] == 60.0
    ((left, _, height),) = boxes(layout).values() or [(1e9, 1e9, 0)]
    name = next(note for note in layout["annotations"] if note["xref"] == "x")
    end = 90 / 200 * inner(layout)[0] + 8 + 0.52 * 13 * len("w_importance 0 → 0.1")
    assert name["xanchor"] == "left"
    assert left >= end or height + 7 <= inner(layout)[1] - 2 * 13 * 1.4


def test_a_shifted_name_stays_on_its_peaks_side_of_a_change() -> None:
    ((left, right, _),) = boxes(drawn({2: 97}, (Change("w_load", 100),))).values()
    assert right <= 100 / 200 * inner(drawn({}, ()))[0]
    assert left > 0


def test_a_peak_with_a_change_close_by_and_no_room_on_its_side_is_not_named() -> None:
    assert boxes(drawn({2: 5}, (Change("w_load", 6),))) == {}
    assert len(boxes(drawn({2: 5}, ()))) == 1


def test_names_that_stand_below_each_other_take_the_room_of_the_longest() -> None:
    """Two knobs of step 20 and one of step 100: beside each other they fit, the two behind one another would not."""
    layout = drawn({}, (Change("w_importance", 20), Change("w_load", 20), Change("noise", 100)))
    named = [note["text"] for note in layout["annotations"] if "→" in note["text"]]
    assert [text.count("→") for text in named] == [1, 2]


def test_three_close_changes_share_a_strip_and_a_label_that_lists_them() -> None:
    layout = drawn({}, (Change("noise", 20), Change("k", 92, 2, 3), Change("w_load", 100), Change("noise", 110)))
    named = {note["text"]: note for note in layout["annotations"] if note["xref"] == "x"}
    assert named.keys() == {"noise 0 → 0.1", "3 changes"}
    listed = "step 92: k 2 → 3<br>step 100: w_load 0 → 0.1<br>step 110: noise 0 → 0.1"
    assert (named["3 changes"]["hovertext"], named["3 changes"]["captureevents"]) == (listed, True)
    marks = [shape for shape in layout["shapes"] if shape["xref"] == "x"]
    assert [(s["x0"], s["x1"]) for s in marks if s["type"] == "rect"] == [(92, 110)]
    assert [s["x0"] for s in marks if s["type"] == "line" and s["y1"] == 1] == [20, 92, 110]
    assert [s["x0"] for s in marks if s["y1"] < 0.1] == [100]


def test_a_run_of_many_turns_has_two_lines_and_lists_the_last_ones() -> None:
    layout = drawn({}, tuple(Change("noise", step, step, step + 1) for step in range(20, 180)))
    assert [s["x0"] for s in layout["shapes"] if s["xref"] == "x" and s["y1"] == 1 and s["type"] == "line"] == [20, 179]
    assert sum(s["y1"] < 0.1 for s in layout["shapes"]) < 160  # one every 3 px
    (name,) = [note for note in layout["annotations"] if note["xref"] == "x"]
    assert (name["text"], name["hovertext"].split("<br>")[0]) == ("160 changes", "and 148 earlier")
    assert name["hovertext"].count("<br>") == 12
    assert name["hovertext"].endswith("step 179: noise 179 → 180")


def test_two_close_changes_are_both_named_each_on_its_own_side() -> None:
    layout = drawn({}, (Change("noise", 60), Change("w_load", 70), Change("w_importance", 70)))
    (late, early) = [note for note in layout["annotations"] if note["xref"] == "x"]
    assert (late["text"].count("<br>"), early["text"]) == (1, "noise 0 → 0.1")
    assert (late["x"], late["xanchor"], early["x"], early["xanchor"]) == (70, "left", 60, "right")


def test_of_a_change_between_two_close_ones_the_knob_is_named_and_the_values_are_on_hover() -> None:
    layout = drawn({}, (Change("noise", 50), Change("w_load", 80), Change("w_importance", 110)))
    named = {note["text"]: note for note in layout["annotations"] if note["xref"] == "x"}
    assert list(named) == ["w_importance 0 → 0.1", "w_load", "noise 0 → 0.1"]
    assert named["w_load"]["hovertext"] == "step 80: w_load 0 → 0.1"
    assert [name.text for name in layout["meta"]["untold"]] == ["w_load 0 → 0.1"]  # an export tells it by a number


def test_a_heatmap_gets_no_strip_over_it() -> None:
    changes = [Change("noise", step) for step in (92, 100, 110)]
    layout = timeline.selection_share.spec(np.arange(1, 201), shares({}, E=24), changes=changes)["layout"]
    assert {shape["type"] for shape in layout["shapes"]} == {"line"}


def test_a_turn_of_the_speed_limit_is_marked_on_the_scrubber_only() -> None:
    turned = [KnobChange(1, "speed_limit", 5.0, 0.0, "me", 0.0, 7), KnobChange(2, "noise", 0.5, 1.0, "me", 0.0, 9)]
    source: Any = SimpleNamespace(description=describe(Config(), Knobs()), knob_changes=lambda: turned)
    assert [change.name for change in by_hand(source)] == ["speed_limit", "noise"]
    assert [change.name for change in marked(source)] == ["noise"]
    assert cuts_of(source) == [9]  # a mean has no gap where no mark stands
