"""The knobs over time: where each line steps, what it says, and which knobs have one."""

from types import SimpleNamespace

import numpy as np
import pytest

from moe_core.figures.reading import read_knobs
from moe_core.figures.theme import LIGHT
from moe_core.figures.turns import Turned, heights, knobs
from moe_core.runs.source import At
from moe_core.schema import Config, Knobs, describe


def change(id, name, value, step, who="me"):
    return SimpleNamespace(id=id, name=name, value=value, step=step, who=who)


def source(*changes):
    started = Knobs(w_load=0.0)
    return SimpleNamespace(
        started_knobs=started,
        description=describe(Config(), started),
        knob_changes=lambda: changes,
        steps=lambda: (1, 90),
    )


def test_a_line_steps_where_the_value_acted_and_ends_at_the_last_step():
    arguments = read_knobs(source(change(1, "noise", 2.0, 10), change(2, "noise", 0.5, 40)), At(0, None, None, None))
    assert arguments["turned"] == {"noise": Turned([1, 10, 40], [1.0, 2.0, 0.5], False, False)}
    spec = knobs.spec(**arguments)
    (line,) = spec["data"]
    assert line["x"].tolist() == [1, 10, 40, 90]
    assert line["customdata"] == ["1", "2", "0.5", "0.5"]
    assert line["line"]["shape"] == "hv"
    assert line["line"]["color"] == LIGHT.hand
    assert np.argsort(line["y"][:3]).tolist() == [2, 0, 1]
    assert -1 <= line["y"].min() < line["y"].max() <= 0
    assert spec["layout"]["annotations"][-1]["text"] == "noise<br>0.5"


def test_the_knobs_turned_last_stand_on_top_and_what_autobalance_turns_is_ink():
    names = ("noise", "k", "lr", "w_importance", "w_load")
    changes = [change(i, name, 1, 10 * i) for i, name in enumerate(names, 1)]
    changes += [change(9, "k", 3, 80), change(10, "w_load", 0.2, 80, "autobalance"), change(11, "noise", 3, None)]
    arguments = read_knobs(source(*changes), At(0, 30, (5, 60), None))
    assert list(arguments["turned"]) == ["w_load", "k", "w_importance", "lr"]
    assert arguments["more"] == 1  # noise
    assert [one.own for one in arguments["turned"].values()] == [True, False, False, False]
    assert [one.log for one in arguments["turned"].values()] == [True, False, True, True]
    spec = knobs.spec(**arguments)
    assert [line["line"]["color"] for line in spec["data"]] == [LIGHT.ink2, *[LIGHT.hand] * 3]
    tops = [float(line["y"].max()) for line in spec["data"]]
    assert tops == sorted(tops, reverse=True)
    assert spec["layout"]["xaxis"]["range"] == [5.0, 60.0]
    assert spec["layout"]["shapes"][-1]["x0"] == 30


def test_beside_low_rows_a_long_name_is_shortened_and_a_long_word_stands_alone():
    turned = {
        "noise": Turned([1, 9], [1.0, 0.5]),
        "w_importance_primary": Turned([1, 9], [0.0, 0.1]),
        "strategy": Turned([1, 9], ["paper", "expert-choice"]),
    }
    spec = knobs.spec(turned, 90, size=(600, 78))
    labels = [note["text"] for note in spec["layout"]["annotations"]]
    assert labels == ["noise 0.5", "w_importan… 0.1", "expert-choice"]


@pytest.mark.parametrize(("size", "between"), [((600, 78), " "), ((600, 360), "<br>")])
def test_a_row_of_its_own_says_how_many_knobs_are_left_out(size, between):
    """A strip has no title that could say it, on the page and on paper, nor has an export whose title is left out."""
    turned = {name: Turned([1, 9], [1.0, 0.5]) for name in ("noise", "k", "lr", "w_load")}
    for more, rows in ((0, 4), (3, 5)):
        spec = knobs.spec(turned, 90, more=more, size=size)
        notes = spec["layout"]["annotations"]
        assert [note["text"] for note in notes] == [f"{name}{between}0.5" for name in turned] + ["and 3 more"] * (
            more > 0
        )
        assert spec["layout"]["yaxis"]["range"] == [-rows, 0]
        assert [note["y"] for note in notes] == pytest.approx([1 - (row + 0.5) / rows for row in range(rows)])


def test_of_two_turns_in_one_step_the_last_is_drawn():
    arguments = read_knobs(source(change(2, "noise", 3.0, 10), change(1, "noise", 2.0, 10)), At(0, None, None, None))
    assert arguments["turned"]["noise"][:2] == ([1, 10], [1.0, 3.0])


@pytest.mark.parametrize(
    ("values", "log", "wanted"),
    [
        ([1, 3, 2], False, [0, 1, 0.5]),
        ([0.01, 1, 0.1], True, [0, 1, 0.5]),
        ([0, 0.1, 0.01], True, [0, 1, 1 / 3]),
        ([0.0, 0.0], True, [0.5, 0.5]),
        (["paper", "none", "paper", "even"], True, [0, 0.5, 0, 1]),
    ],
)
def test_a_height_is_a_place_between_the_least_and_the_greatest(values, log, wanted):
    np.testing.assert_allclose(heights(values, log), wanted, atol=1e-12)


def test_a_strip_has_no_titles_and_says_that_it_is_over_time():
    spec = knobs.spec({"noise": Turned([1, 5], [1.0, 2.0])}, 9, size=(600, 78))
    assert spec["layout"]["title"]["text"] == ""
    assert "title" not in spec["layout"]["xaxis"]
    assert spec["layout"]["meta"]["strip"] is True
    assert [note["text"] for note in spec["layout"]["annotations"]] == ["noise 2"]  # in one line: a strip is low
    tall = knobs.spec({}, None)["layout"]
    assert tall["title"]["text"].startswith("Knobs over time")
    assert (tall["xaxis"]["title"]["text"], tall["yaxis"]["title"]["text"]) == ("step", "knob")
