"""The numbers inside the Compare page's figures: one axis for all, paired differences, colours that are runs."""

import re
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from moe_core.dashboard.views import View
from moe_core.figures import compare, read_compare
from moe_core.figures.called import called, column_names, cut_apart, run_colour
from moe_core.figures.catalog import tiles_of
from moe_core.figures.comparing import Curve
from moe_core.figures.pages.tile import number
from moe_core.figures.paper import inner
from moe_core.figures.smooth import over_steps
from moe_core.figures.theme import DARK, LIGHT
from moe_core.runs import KnobChange, change_notes, open_run
from moe_core.runs.source import At
from tests.export.made import make_run
from tests.figures.record import record


def curve(name, first, values):
    return Curve(name, np.arange(first, first + len(values)), np.asarray(values, float))


def test_a_colour_is_a_run_and_the_first_is_ink():
    curves = [curve(name, 1, np.full(10, 0.5)) for name in "abcd"]
    spec = compare.compare_balance.spec(curves, theme=DARK)
    drawn = {trace["name"]: trace["line"]["color"] for trace in spec["data"]}
    assert drawn == {
        "A a": DARK.ink,
        "B b": DARK.runs[1],
        "C c": DARK.runs[2],
        "D d": DARK.runs[3],
    }
    assert DARK.hand not in drawn.values()
    assert len(spec["layout"]["annotations"]) == 4


def test_what_lies_below_the_axis_is_drawn_on_it_and_told_as_it_is():
    trace = compare.compare_balance.spec([curve("a", 1, [0.001, 2, np.nan])])["data"][0]
    np.testing.assert_allclose(trace["y"], [0.02, 2, np.nan])
    np.testing.assert_allclose(trace["customdata"], [0.001, 2, np.nan], rtol=1e-6)


def test_differences_are_taken_at_the_same_step_only():
    gaps, width = compare.differences(
        [curve("a", 1, [1, 2, 3, 4, 5]), curve("b", 3, [10, 10, np.nan, 9]), curve("c", 50, [1])]
    ).values()
    assert width == 1
    assert gaps[0].steps.tolist() == [3, 4, 5]
    np.testing.assert_allclose(gaps[0].values, [7, 6, np.nan])
    assert len(gaps[1].steps) == 0


def test_long_runs_are_compared_by_means_of_equal_stretches():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3000))
    gaps, width = compare.differences([curve("a", 1, a), curve("b", 1, b)]).values()
    assert width == 8
    steps, gap = np.arange(1, 3001), b - a
    want = [gap[steps // 8 == group].mean() for group in range(3000 // 8 + 1)]
    np.testing.assert_allclose(gaps[0].values, want)
    assert np.all(gaps[0].steps // 8 == np.arange(len(want)))


def test_the_difference_chart_has_zero_in_its_middle_and_says_its_sign():
    curves = [curve("a", 1, [2.0] * 50), curve("b", 1, [1.5] * 50)]
    spec = compare.compare_loss_difference.spec(curves, **compare.differences(curves), unit="nats")
    (trace,) = spec["data"]
    np.testing.assert_allclose(trace["y"], -0.5)
    low, high = spec["layout"]["yaxis"]["range"]
    assert low == -high
    assert high >= 0.5
    assert spec["layout"]["shapes"][0]["y0"] == 0
    assert "−0.500" in spec["layout"]["annotations"][0]["text"]
    alone = compare.compare_loss_difference.spec([curve("a", 1, [2.0])])
    assert alone["data"] == []
    assert "choose another run" in alone["layout"]["title"]["text"]


def test_every_runs_heatmap_has_the_same_scale_and_its_own_rows():
    share = np.random.default_rng(1).dirichlet(np.ones(4), 20)
    curves = [Curve("a", np.arange(1, 21), share), Curve("b", np.arange(1, 11), np.full((10, 2), 0.5))]
    spec = compare.compare_selections.spec(curves)
    first, second = spec["data"]
    np.testing.assert_allclose(first["customdata"], share.T * 4, rtol=1e-6)
    np.testing.assert_allclose(second["z"], 0, atol=1e-6)
    assert {(t["zmin"], t["zmax"]) for t in spec["data"]} == {(-3, 3)}
    assert (first["yaxis"], second["yaxis"]) == ("y", "y2")
    (a0, a1), (b0, b1) = spec["layout"]["yaxis"]["domain"], spec["layout"]["yaxis2"]["domain"]
    assert b0 < b1 < a0 < a1 <= 1
    assert spec["layout"]["yaxis2"]["range"] == [2.5, 0.5]


@pytest.mark.parametrize("height", [60, 120, 240])
@pytest.mark.parametrize("named", [0, 380])
def test_in_a_low_figure_each_run_has_a_map(height, named):
    curves = [Curve(name, np.arange(1, 21), np.full((20, 4), 0.25), (turned(9),)) for name in "abcd"]
    spec = compare.compare_selections.spec(curves, named=named, label_changes=True, size=(380, height))
    domains = [spec["layout"][axis]["domain"] for axis in ("yaxis", "yaxis2", "yaxis3", "yaxis4")]
    assert all(high - low > 0.1 for low, high in domains)
    assert all(upper[0] > lower[1] for upper, lower in pairwise(domains))
    assert domains[-1][0] >= 0


def with_parent(run, parent, step):
    run.parent = SimpleNamespace(run=parent, step=step) if parent else None
    return run


def test_aligned_by_the_fork_both_count_from_it(tmp_path: Path):
    a = with_parent(record(tmp_path / "a"), None, 0)
    b = with_parent(record(tmp_path / "b", seed=1), "a", 20)
    assert read_compare.fork_steps([a, b]) == [20, 20]
    assert read_compare.fork_steps([b, a]) == [20, 20]
    assert read_compare.fork_steps([record(tmp_path / "c"), a]) == [0, 0]
    by_step = read_compare.read_balance(View(a, {}, (b,)), At(0, None, None, None))
    assert [c.steps[[0, -1]].tolist() for c in by_step["curves"]] == [[1, 60], [1, 60]]
    by_fork = read_compare.read_balance(View(a, {"align": "fork"}, (b,)), At(0, None, None, None))
    assert [c.steps[[0, -1]].tolist() for c in by_fork["curves"]] == [[1, 40], [1, 40]]
    np.testing.assert_allclose(by_fork["curves"][1].values, b.history("cv_load", 0, first=21)[1])
    spec = compare.compare_balance.spec(**by_fork)
    assert spec["layout"]["xaxis"]["title"]["text"] == "steps since the fork"
    loss = read_compare.read_loss(View(a, {"align": "fork"}, (b,)), At(0, None, None, None))
    assert loss["heldout"][0].steps.tolist() == [20, 40]


def test_a_run_without_a_step_after_the_fork_is_named_where_its_lines_would_be(tmp_path: Path):
    a = with_parent(record(tmp_path / "a"), None, 0)
    at_end = with_parent(record(tmp_path / "b", seed=1), "a", 60)
    earlier, stranger = (
        with_parent(record(tmp_path / "c", seed=2), "a", 20),
        with_parent(record(tmp_path / "d", seed=3), None, 0),
    )

    def told(*others, align="fork", named=0, draw=compare.compare_balance_difference):
        read = read_compare.read_balance_difference(View(a, {"align": align}, others), At(0, None, None, None))
        layout = draw.spec(**read, named=named)["layout"]
        return re.sub("<.*?>|[\u2068\u2069]", "", layout["title"]["text"]), layout["xaxis"]["title"]["text"]

    title, axis = told(at_end)
    assert title == "Difference in balanceA and B have no step after the fork"
    assert axis == "steps since the fork"
    assert "a and b have no step after the fork" in told(at_end, named=620)[0]
    at_end.parent = SimpleNamespace(run="a", step=40)
    with_parent(earlier, "a", 60)
    assert (
        told(at_end, earlier)[0]
        == "Difference in balanceCV(load) minus A's, at the same step; C has no step after the fork"
    )
    assert told(at_end, stranger)[1] == "steps since the fork (C: since its start)"
    read = read_compare.read_balance(View(a, {"align": "fork"}, (at_end, stranger)), At(0, None, None, None))
    assert over_steps(compare.compare_balance.spec(**read))  # it has lines of which the page offers means
    assert told(stranger)[1] == "step"  # none is a fork of another


def test_losses_of_text_are_read_in_bits(tmp_path: Path):
    run = record(tmp_path / "a")
    read = read_compare.read_loss(run, At(0, None, None, None))
    np.testing.assert_allclose(read["curves"][0].values, run.history("task_loss")[1] / np.log(2), rtol=1e-6)
    assert read["unit"] == "bits per byte"
    assert read["heldout"][0].values.tolist() == [2.5, 2.5, 2.5]


def test_tiles_name_each_run_with_its_balance(tmp_path: Path):
    a, b = record(tmp_path / "run-a"), record(tmp_path / "run-b", seed=1, L=1)
    tiles = tiles_of("compare", View(a, {}, (b,)), At(1))
    assert [tile.label for tile in tiles] == ["A run-a, CV(load)", "B run-b"]
    assert float(tiles[1].value) == pytest.approx(float(b.history("cv_load", 0, first=11)[1].mean()), abs=0.006)
    assert tiles[0].lines[1] == "layer 2, mean of 50 steps to 60"
    assert tiles[1].more.startswith("layer 1, mean of 50 steps to 60")  # the last that it has
    assert run_colour(0, LIGHT) == LIGHT.ink


def test_names_are_not_cut_where_they_differ(tmp_path: Path):
    wine = "Weinproben mit zwei Rängen, k = 2, {} Versuch vom Samstagabend"
    names = [wine.format("erster"), wine.format("zweiter"), "odd-k1", wine.format("erster")]
    cuts = cut_apart(names, 20)
    assert cuts == ["… erster Versuch vo…", "… zweiter Versuch v…", "odd-k1", "… erster Versuch vo…"]
    assert max(map(len, cuts)) == 20
    ends = [
        "a" * 60 + end for end in ("", "x", "yy")
    ]  # no word begins near, and one name is the beginning of the others
    assert [len(set(cut_apart(ends, most))) for most in (10, 20, 24)] == [3, 3, 3]
    assert cut_apart(["a" * 30, "b" * 30], 20)[0] == "a" * 11 + " … " + "a" * 6  # the cut leaves what tells them apart
    a, b = record(tmp_path / "a"), record(tmp_path / "b", seed=1)
    for run, name in zip((a, b), names, strict=False):
        change_notes(run.path, name=name)
    tiles = tiles_of("compare", View(a, {}, (b,)), At(1))
    assert [tile.label for tile in tiles] == ["A … erster Versuch vo…, CV(load)", "B … zweiter Versuch v…"]
    assert [tile.more.split("\n")[0] for tile in tiles] == names[:2]


def turned(step, name="noise", previous=1.0, value=0.5):
    return KnobChange(1, name, value, previous, "me", 0.0, step)


def diamonds(spec):
    (trace,) = [trace for trace in spec["data"] if trace["name"] == "turned"]
    return trace


def test_a_turn_stands_on_its_runs_line_and_is_named_with_its_letter():
    a = curve("a", 1, [1.0, 0.001, 3, 4])._replace(turns=(turned(2), turned(9)))
    b = curve("b", 1, [5.0, 6, 7, 8])._replace(turns=(turned(2), turned(4), turned(4, "k", 2, 1)))
    spec = compare.compare_balance.spec([a, b])
    marks = diamonds(spec)
    assert marks["x"].tolist() == [2, 2, 4]  # the turn after the last recorded step is not made up
    np.testing.assert_allclose(marks["y"], [0.02, 6, 8], rtol=1e-6)
    assert marks["hovertext"][2] == "B b was turned at step 4: noise 1 → 0.5<br>B b was turned at step 4: k 2 → 1"
    assert marks["marker"]["color"] == LIGHT.hand
    assert marks["hovertext"][0] == "A a was turned at step 2: noise 1 → 0.5"
    names = [note for note in spec["layout"]["annotations"] if note["font"]["color"] == LIGHT.hand]
    assert [re.sub("<.*?>", "", name["text"]) for name in names] == [
        "■ B k 2 → 1, noise 1 → 0.5",
        "■ A ■ B noise",  # the whole would cross the line of step 4
    ]
    assert [name.get("hovertext", "").split("</span> ")[-1] for name in names] == ["", "B noise 1 → 0.5"]
    assert [s["x0"] for s in spec["layout"]["shapes"]] == [4, 2]
    quiet = compare.compare_balance_difference.spec([a, b], **compare.differences([a, b]))
    np.testing.assert_allclose(diamonds(quiet)["y"], [0, 6 - 0.001, 4], rtol=1e-6)
    assert not [note for note in quiet["layout"]["annotations"] if note["font"]["color"] == LIGHT.hand]
    loud = compare.compare_balance_difference.spec([a, b], **compare.differences([a, b]), label_changes=True)
    assert len([note for note in loud["layout"]["annotations"] if note["font"]["color"] == LIGHT.hand]) == 2


def test_a_run_that_is_turned_in_each_step_has_a_diamond_every_3_px():
    turns = tuple(turned(step, previous=float(step), value=step + 1.0) for step in range(1, 10_001))
    curves = [curve(name, 1, np.ones(10_000))._replace(turns=turns) for name in "ab"]
    spec = compare.compare_balance.spec(curves)
    marks, wide = diamonds(spec), inner(spec["layout"])[0]
    assert 2 * wide / 4 < len(marks["x"]) == len(marks["hovertext"]) <= 2 * (wide / 3 + 1)
    assert sum(map(len, marks["hovertext"])) < 150 * wide
    assert marks["hovertext"][-1].endswith("B b was turned at step 10,000: noise 10000 → 10001")
    (name,) = [note for note in spec["layout"]["annotations"] if "changes" in note["text"]]
    assert name["text"].endswith("10000 changes")
    assert name["hovertext"].startswith("and 9,988 earlier<br>step 9,989: ")


def test_on_the_maps_of_load_a_turn_is_a_line_on_its_own_run():
    share = np.full((4, 2), 0.5)
    a, b = Curve("a", np.arange(1, 5), share), Curve("b", np.arange(1, 5), share, (turned(3),))
    lines = compare.compare_selections.spec([a, b])["layout"]["shapes"]
    assert [(line["x0"], line["yref"], line["y0"], line["y1"]) for line in lines] == [(3, "y2", 2.5, 0.5)] * 2
    assert [line["line"]["color"] for line in lines] == [LIGHT.ground, LIGHT.hand]


def test_turns_and_the_step_looked_at_count_from_the_fork_too(tmp_path: Path):
    a, b = (open_run(make_run(tmp_path, "text", name=name).path) for name in "ab")  # noise is turned at step 101
    b.parent = SimpleNamespace(run="a", step=60)
    source = View(a, {"align": "fork"}, (b,))
    read = read_compare.read_balance(source, At(0, 80, None, None))
    assert [[change.step for change in curve.turns] for curve in read["curves"]] == [[41], [41]]
    layout = compare.compare_balance.spec(**read)["layout"]
    assert layout["meta"]["offset"] == 60
    assert [line["x0"] for line in layout["shapes"] if line["line"].get("dash")] == [20]
    before = read_compare.read_balance(source, At(0, 30, None, None))  # before the fork there is nothing to point at
    assert before["over"].cursor is None
    by_step = compare.compare_balance.spec(**read_compare.read_balance(View(a, {}, (b,)), At(0, 80, None, None)))
    assert "offset" not in by_step["layout"]["meta"]
    assert [line["x0"] for line in by_step["layout"]["shapes"] if line["line"].get("dash")] == [80]


def test_tiles_are_read_where_the_charts_mark_each_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """B left A at step 20 and C at 30; A is looked at at 35, 15 steps after the earliest fork."""
    a, b, c, d = (record(tmp_path / name, E=4, L=1, seed=seed) for seed, name in enumerate("abcd"))
    b.parent, c.parent = SimpleNamespace(run="a", step=20), SimpleNamespace(run="a", step=30)

    # Runs of random loads differ little in their means.
    monkeypatch.setattr("moe_core.figures.pages.compare.number", lambda value: number(value, 4))

    def stood(run, step: int) -> str:
        return f"{float(run.history('cv_load', 0, first=max(1, step - 49), last=step)[1].mean()):.4f}"

    def read(step: int | None, align: str) -> list[tuple[str, str]]:
        tiles = tiles_of("compare", View(a, {"align": align}, (b, c, d)), At(0, step))
        assert tiles[0].unit == ""
        return [(tile.value, tile.unit) for tile in tiles]

    assert read(35, "step") == [(stood(run, 35), "") for run in (a, b, c, d)]
    wanted = [(stood(a, 35), ""), (stood(b, 35), ""), (stood(c, 45), "step 45"), (stood(d, 15), "step 15")]
    assert read(35, "fork") == wanted
    assert len({stood(c, 35), stood(c, 45)}) == len({stood(d, 15), stood(d, 35)}) == 2
    # Where a chart has nothing to mark, the tile says so: a run that ended before, and one that had not begun.
    assert read(55, "fork")[2] == (stood(c, 60), "step 60, its last")
    assert read(15, "fork")[3] == ("–", "not begun")
    # Now is the last step that all have: 30 after the fork, where C ends.
    assert read(None, "fork") == [(stood(a, 50), ""), (stood(b, 50), ""), (stood(c, 60), "step 60"), (stood(d, 30), "step 30")]  # fmt: skip
    assert (
        tiles_of("compare", View(a, {"align": "fork"}, (b, c)))[0].lines[1]
        == "mean of 50 steps to 50, 30 after the fork, the last of all"
    )
    assert [
        tiles_of("compare", View(a, {"align": "fork"}, (b,)), At(0, step))[0].lines[1] for step in (35, 15, None)
    ] == [
        "mean of 35 steps to 35, 15 after the fork",
        "mean of 15 steps to 15, 5 before the fork",
        "mean of 50 steps to 60, 40 after the fork",
    ]
    assert tiles_of("compare", View(a, {"align": "fork"}, (d,)), At(0, 35))[0].lines[1] == "mean of 35 steps to 35"


def test_runs_of_unlike_length_are_compared_at_the_last_step_that_all_have(tmp_path: Path):
    from moe_core.dashboard.compare import sections

    a, b = record(tmp_path / "a", steps=60), record(tmp_path / "b", steps=50, seed=1)
    first, second = tiles_of("compare", View(a, {}, (b,)))
    stood = [f"{float(run.history('cv_load', 0, first=1, last=50)[1].mean()):.2f}" for run in (a, b)]
    assert [(first.value, first.unit), (second.value, second.unit)] == [(stood[0], ""), (stood[1], "")]
    assert first.lines[1] == "layer 1, mean of 50 steps to 50, the last of all"
    heading, rows = sections([a, b])[-1]
    assert heading == "At step 50, the last that all have"
    means = [np.mean([run.history("cv_load", layer, first=1, last=50)[1] for layer in (0, 1)]) for run in (a, b)]
    assert dict(rows)["steps in all"] == ["60", "50"]
    assert dict(rows)["CV(load)"][0] == f"{means[0]:.2f}"
    assert dict(rows)["CV(load)"][1].startswith(f"{means[1]:.2f} (")
    b.parent = SimpleNamespace(run="a", step=20)
    assert sections([a, b], "fork")[-1][0] == "30 steps after the fork, the last that all have"


def test_no_difference_is_taken_of_evaluations_at_unlike_steps(tmp_path: Path):
    from moe_core.dashboard.compare import end_figures

    a, b = record(tmp_path / "a"), record(tmp_path / "b")
    held_out = dict(end_figures([a, b], [60, 50]))["held-out loss, bits/byte"]
    assert held_out == ["2.500, step 60", "2.500, step 40"]
    assert dict(end_figures([a, b], [50, 50]))["held-out loss, bits/byte"] == ["2.500", "2.500 (0.000)"]


@pytest.mark.parametrize("width", [234, 380, 790])
@pytest.mark.parametrize(
    "names",
    [
        ("even", "even", "off"),
        ("a long name, number one of many", "a long name, number two of many"),
        ("均衡的专家混合模型训练一号", "均衡的专家混合模型训练二号", "توازن الحمل"),
        ("<b>bold</b> %{x}", "x"),
    ],
)
def test_beside_a_figure_that_stands_alone_runs_have_names_that_differ_and_fit(names, width):
    curves = [curve(name, 1, np.full(10, 0.5)) for name in names]
    runs = called(curves, width)
    labels = [run.label for run in runs]
    assert len(set(labels)) == len({run.name for run in runs}) == len(names)
    assert all(label.startswith("\u2068") and label.endswith("\u2069") for label in labels)
    assert max(map(len, labels)) <= max(10, min(24, width // 24)) + len(" (A)") + len("&lt;" * 4)
    spec = compare.compare_balance.spec(curves, named=width, size=(width, 240))
    ends = [note["text"] for note in spec["layout"]["annotations"]]
    assert all(any(label in end for end in ends) for label in labels)
    assert [end.endswith("0.50") for end in ends] == [width >= 300] * len(names)
    gaps = compare.compare_loss_difference.spec(curves, **compare.differences(curves), named=width, size=(width, 240))
    assert f"training loss minus that of {labels[0]}, " in gaps["layout"]["title"]["text"]
    assert "minus A" not in str(gaps)


def test_the_columns_of_a_table_are_those_of_one_run_each():
    assert column_names(["even", "off"]) == ["even", "off"]
    assert column_names(["even", "even"]) == ["even (A)", "even (B)"]
    assert column_names(["a", "a_step"]) == ["a (A)", "a_step (B)"]  # or it would have two columns of that name
