"""The numbers inside the figures, at the sizes where they change their form."""

import copy
import html
import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from moe_core.figures import bars, score, timeline
from moe_core.figures.catalog import FIGURES, tiles_of
from moe_core.figures.paper import escape, percent
from moe_core.figures.theme import DARK, LIGHT, expert_colour, letter_colour, luminance
from moe_core.runs import Batch, create_run, open_run
from moe_core.runs.series import thin
from moe_core.runs.source import At, Beside
from moe_core.schema import Config, Knobs, layout
from tests.export.made import make_run

SIZES = (1, 2, 16, 20, 21, 64)


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)
def test_every_expert_stands_out_and_its_letter_reads(theme):
    assert len(set(theme.experts)) == 16
    for colour in theme.experts:
        assert contrast(colour, theme.ground) >= 3
        assert contrast(colour, letter_colour(colour)) >= 4.5


def test_colours_repeat_from_the_seventeenth_expert():
    assert expert_colour(16, LIGHT) == expert_colour(0, LIGHT) != expert_colour(1, LIGHT)


def test_users_text_is_neither_tag_nor_template():
    assert escape("<b>%{x}\x00&") == "&lt;b&gt;%&#123;x} &amp;"
    assert percent(1 / 16) == "6.3 %"


@pytest.mark.parametrize("E", SIZES)
@pytest.mark.parametrize("rows", [0, 1, 30])
def test_selection_share_draws_what_it_is_given(E, rows):
    share = np.random.default_rng(0).dirichlet(np.ones(E), rows)
    steps = np.arange(1, rows + 1)
    kept = copy.deepcopy((steps, share))
    drawn = timeline.selection_share(steps, share, theme=DARK)
    np.testing.assert_array_equal(steps, kept[0])
    np.testing.assert_array_equal(share, kept[1])
    assert drawn.layout.meta == {"figure": "selection_share", "step": rows or None}
    if E > 20:
        assert [trace.type for trace in drawn.data] == ["heatmap"]
        np.testing.assert_allclose(drawn.data[0].customdata, (share * E).T, rtol=1e-5)
        assert np.all(np.abs(drawn.data[0].z) <= 3)
    else:
        assert len(drawn.data) == E
        for e, trace in enumerate(drawn.data):
            np.testing.assert_allclose(trace.y, share[:, e] * 100, rtol=1e-5)
            assert trace.line.color == expert_colour(e, DARK)
            assert trace.line.dash == ("dash" if e >= 16 else "solid")


@pytest.mark.parametrize("E", SIZES)
def test_balance_now_draws_what_it_is_given(E):
    load, importance = np.random.default_rng(1).dirichlet(np.ones(E), 2)
    drawn = bars.balance_now(load, importance, step=7)
    y = np.asarray(drawn.data[0].y)
    if E > 20:
        np.testing.assert_allclose(y + 1, np.sort(load * E)[::-1], rtol=1e-4, atol=1e-6)
    else:
        np.testing.assert_allclose(y, load * 100, rtol=1e-5)
        np.testing.assert_allclose(drawn.data[2].y, importance * 100, rtol=1e-5)
    assert drawn.layout.meta["step"] == 7


def test_the_name_above_the_most_loaded_of_many_experts_stands_within_the_plot():
    for first in np.linspace(1.2, 7.9, 60):
        load = np.full(64, 1.0)
        load[43] = first * 63 / (64 - first)
        spec = bars.balance_now.spec(load / load.sum(), load / load.sum(), size=(380, 240))
        (name,) = (one for one in spec["layout"]["annotations"] if one["text"] == "expert 44")
        assert name["y"] == pytest.approx(first)
        _, top = spec["layout"]["yaxis"]["range"]
        assert (top - first) / top * (240 - 52 - 38) >= 1.2 * 13  # px above the bar


def test_balance_now_ends_above_every_tick_of_importance():
    load, importance = np.array([0.5, 0.44, *[0.01] * 6]), np.array([0.52, 0.42, *[0.01] * 6])
    assert bars.balance_now.spec(load, importance)["layout"]["yaxis"]["range"] == [0.0, 60.0]
    assert bars.balance_now.spec(load, load)["layout"]["yaxis"]["range"] == [0.0, 60.0]  # half a tick would be cut
    assert bars.balance_now.spec(load, importance / 2)["layout"]["yaxis"]["range"] == [0.0, 50.0]


@pytest.mark.parametrize("E", [8, 64])
def test_balance_now_keeps_the_axis_of_the_last_steps(E):
    even = np.full(E, 1 / E)
    for load, lately in ((0.9, (0.9, 0.1)), (2.1 / E, (2.1 / E, 0.0))):
        peaked = np.array([load, *[(1 - load) / (E - 1)] * (E - 1)])
        ends = [bars.balance_now.spec(now, even, lately=lately)["layout"]["yaxis"]["range"] for now in (peaked, even)]
        assert ends[0] == ends[1] != bars.balance_now.spec(even, even)["layout"]["yaxis"]["range"]


@pytest.mark.parametrize("E", SIZES)
def test_tokens_are_counted_by_their_first_expert(E):
    experts = np.random.default_rng(2).integers(0, E, (256, 2)).astype(np.uint8)
    drawn = bars.tokens_by_expert(experts, E)
    assert list(drawn.data[0].y) == [int((experts[:, 0] == e).sum()) for e in range(E)]


def test_only_changes_that_took_effect_leave_a_line():
    class Change:
        name, previous, value = "noise", 0.5, 1.0

        def __init__(self, step):
            self.step = step

    steps = np.arange(1, 101)
    spec = timeline.balance.spec(steps, steps / 50, steps / 80, changes=(Change(40), Change(None)), label_changes=True)
    assert [shape["x0"] for shape in spec["layout"]["shapes"]] == [40]
    assert [note["text"] for note in spec["layout"]["annotations"]][-1] == "noise 0.5 → 1"


def test_a_spike_of_the_loss_is_in_the_data_and_nan_stays_a_gap():
    train = np.r_[np.full(50, 2.0), 99.0, np.nan, np.full(50, 2.0)]
    spec = timeline.loss.spec(np.arange(102), train, np.array([50]), np.array([1.5]))
    np.testing.assert_array_equal(spec["data"][0]["y"], train.astype(np.float32))
    assert spec["layout"]["yaxis"]["range"][1] < 10


@pytest.mark.parametrize("E", SIZES)
def test_the_score_shows_each_byte_with_its_gates_and_marks_what_moved(E):
    rng = np.random.default_rng(3)
    K = min(2, E)
    experts = np.argsort(rng.random((100, E)), axis=1)[:, :K].astype(np.uint8)
    gates = rng.dirichlet(np.ones(K), 100).astype(np.float16)
    before = experts.copy()
    before[5, 0] = int(before[5, 0]) + 1
    spec = score.probe_text.spec(np.full(100, 60, np.uint8), experts, gates, E, before_NK=before)
    cells = [t for t in spec["data"] if t["name"].startswith("first")]
    shown = np.concatenate([t["z"][0] for t in cells])
    np.testing.assert_array_equal(shown[:100], experts[:, 0])
    assert np.isnan(shown[100:]).all()
    assert spec["data"][-2]["text"] == ["&lt;"] * 100
    assert len(spec["data"][-1]["x"]) == 1
    assert spec["data"][-1]["x"][0] == 5.5
    assert spec["data"][-1]["y"][0] == pytest.approx(cells[0]["y"][0] / 2)  # in the room above its cell
    np.testing.assert_allclose(
        spec["data"][1]["z"][:, 0], np.bincount(experts[0], gates[0].astype(float), minlength=E), rtol=1e-3
    )


def test_each_figure_says_its_name_and_titles_its_axes():
    for name, entry in FIGURES.items():
        assert entry.draw.name == name


def test_the_loss_axis_has_few_digits_at_each_tick() -> None:
    for lo, hi in ((0.0, 0.6), (1.5, 4.0), (0.01, 0.05), (3.0, 3.0)):
        low, high, tick = timeline.loss_range(np.arange(2), np.array([lo, hi]), np.array([]))
        assert low <= lo <= hi <= high
        assert f"{tick:.0e}"[0] in "125"
        assert tick == pytest.approx(float(f"{tick:.0e}"))  # one digit
    formats = [timeline.loss_axis("nats", 0.0, 5.0, tick)["tickformat"] for tick in (2.0, 1.0, 0.5, 0.1, 0.02)]
    assert formats == [".0f", ".0f", ".1f", ".1f", ".2f"]
    assert timeline.loss.spec(np.arange(3), np.ones(3), np.array([2]), np.ones(1))["data"][1]["cliponaxis"] is False


def test_the_loss_axis_holds_every_held_out_dot():
    train = np.r_[np.linspace(3, 0.3, 10), np.full(400, 0.2)]
    heldout = np.array([0.254, 0.21])
    low, high, _ = timeline.loss_range(np.arange(410), train, heldout)
    assert low <= 0.2 < 0.254 <= high < 1  # and training's first steps may leave it
    assert (
        timeline.loss_range(np.arange(410), train, np.array([np.nan]))[1]
        == timeline.loss_range(np.arange(410), train, np.zeros(0))[1]
    )


def test_a_loss_without_a_held_out_one_speaks_of_none() -> None:
    none, some = (timeline.loss.spec(np.arange(3), np.ones(3), np.arange(m), np.ones(m)) for m in (0, 1))
    assert "held-out" not in none["layout"]["title"]["text"]
    assert "dots: held-out; thin: training" in some["layout"]["title"]["text"]


@pytest.mark.parametrize("seed", [0, 2])
def test_the_loss_axis_stays_while_a_noisy_loss_goes_on(seed: int) -> None:
    """Each move of an axis costs the page a layout, and whoever watches the line loses it."""
    rng = np.random.default_rng(seed)
    steps = np.arange(1, 3001)
    train = 5 - 2.2 * (1 - np.exp(-steps / 500)) + 0.35 * rng.standard_normal(3000)
    axes = [timeline.loss_range(*thin(steps[:n], train[:n], 100), np.zeros(0)) for n in range(100, 3000, 3)]
    assert 0 < sum(one != other for one, other in itertools.pairwise(axes)) <= 8
    rising = np.r_[train, np.full(300, 9.0)]  # and follows a loss that rises, once that has lasted
    assert timeline.loss_range(np.arange(1, 3301), rising, np.zeros(0))[1] >= 9


@pytest.mark.parametrize(
    ("first", "last"), [(2950, 3071), (99_900, 100_350), (2940, 3071), (1, 61), (1 << 20, (1 << 20) + 200)]
)
def test_the_loss_axis_of_the_steps_that_somebody_zoomed_to_is_by_these(first: int, last: int) -> None:
    steps = np.arange(first, last + 1)
    low, high, _ = timeline.loss_range(steps, np.linspace(1, 2, len(steps)), np.zeros(0))
    assert low <= 1
    assert 1.8 < high <= 2.2


@pytest.mark.parametrize("span", [None, (1.0, 400.0)])
def test_the_numbers_at_the_ends_are_of_the_raw_rows_however_few_are_drawn(tmp_path, span):
    """On the page, where lines are thinned, in an export, where they are not, and in the tile."""
    rng = np.random.default_rng(0)
    writer = create_run(tmp_path / "a", Config(num_experts=4, layers=1), Knobs())
    rows = rng.uniform(0.8, 1.2, (3000, sum(c.width for c in layout(1, 4)))).astype(np.float32)
    writer.commit(Batch(1, rows, state="training"))
    writer.finish("stopped")
    run, last = open_run(tmp_path / "a"), 3000 if span is None else 400
    share_E = run.history("selection_share", 0, first=last - 49, last=last)[1].mean(0)
    for name, words in (
        ("selection_share", f"{100 * share_E.min():.1f}–{100 * share_E.max():.1f} %"),
        ("expert_share", f"{100 * share_E.max():.1f} %"),
    ):
        for bins in (40, 300, None):
            entry, view = FIGURES[name], Beside(run, {"expert": int(share_E.argmax()) + 1})
            notes = entry.draw.spec(**entry.read(view, At(0, None, span, bins)))["layout"]["annotations"]
            assert any(words in note["text"] for note in notes), (name, bins)
    if span is None:
        assert tiles_of("experts", view)[0].value == f"{100 * share_E.max():.1f}"


def test_the_name_of_the_least_loaded_expert_stands_clear_of_the_bars() -> None:
    """Below its bar or, where that reaches the foot, above the ideal, from which the bars hang."""
    collapsed = np.array([0.5, 0.3, *[0.2 / 30] * 29, 0.0])
    one_dead = np.array([*np.linspace(1.1, 1.05, 31), 0.0])
    for load in (collapsed, one_dead / one_dead.sum()):
        foot = max(1.0, 32 * load[-6] - 1e-6)  # of the bars below the name
        spec = bars.balance_now.spec(load, load)
        name = next(one for one in spec["layout"]["annotations"] if one["text"] == "expert 32")
        assert (name["yanchor"], name["xanchor"], name["y"] >= foot) == ("bottom", "right", True)
    uneven = np.linspace(1.5, 0.5, 32) / 32
    name = next(
        one for one in bars.balance_now.spec(uneven, uneven)["layout"]["annotations"] if one["text"] == "expert 32"
    )
    assert (name["yanchor"], name["y"]) == ("top", pytest.approx(0.5))


def test_an_expert_without_tokens_has_a_bar_to_click_and_the_colours_are_named() -> None:
    experts_NK = np.array([[0], [0], [5]])
    spec = bars.tokens_by_expert.spec(experts_NK, 32)
    seen, unseen = spec["data"]
    assert sorted([*np.flatnonzero(seen["y"]) + 1, *unseen["x"]]) == list(range(1, 33))
    assert (set(unseen["y"]), spec["layout"]["barmode"]) == ({spec["layout"]["yaxis"]["range"][1]}, "overlay")
    assert spec["layout"]["meta"]["from"] == "x"
    assert re.sub("<.*?>", "", spec["layout"]["title"]["text"]).endswith("in colour the busiest ■\u00a01 ■\u00a06")
    assert len(bars.tokens_by_expert.spec(experts_NK, 8)["data"]) == 1


def test_a_byte_that_html_escapes_is_named_by_itself(tmp_path: Path) -> None:
    run = make_run(tmp_path, "text", steps=20)
    entry = FIGURES["specialisation_byte"]
    names = [html.unescape(text) for text in entry.draw.spec(**entry.read(run, At(0)))["layout"]["yaxis"]["ticktext"]]
    assert {"&", "<", ">"} <= set(names)


@pytest.mark.parametrize("counted", ["load", "selections"])
def test_a_rank_means_a_process_only(counted):
    spec = bars.balance_now.spec(np.full(64, 1 / 64), np.full(64, 1 / 64), counted=counted)
    assert spec["layout"]["xaxis"]["title"]["text"] == f"experts, by {counted}"
