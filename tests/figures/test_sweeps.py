"""The sweep's figures: the front to the last bit, and the numbers in what is drawn."""

import copy

import numpy as np
import pytest

from moe_core.figures import sweeps
from moe_core.figures.theme import DARK, LIGHT, luminance

X, Y = ("w_importance", [0.0, 0.1, 1.0]), ("strategy", ["paper", "<b>switch"])
IDS = [["a", "b", ""], ["d", "e", "f"]]
VALUES = np.array([[2.0, 0.05, np.nan], [0.4, 0.1, 0.3]])


def test_the_front_is_what_nothing_beats_to_the_last_bit() -> None:
    up = np.nextafter(0.3, 1.0)
    costs = np.array([
        [0.1, 4.5],  # best balance
        [0.3, 4.1],  # better in the metric
        [up, 4.1],  # beaten by one unit in the last place
        [0.3, 4.1],  # the same again is no worse
        [0.3, np.nextafter(4.1, 5.0)],  # beaten, by as little
        [0.1, 4.6],  # beaten in one, equal in the other
        [2.0, 4.0],  # worst balance, best metric
        [np.nan, 1.0], [0.01, np.nan],  # nothing is known
    ])  # fmt: skip
    kept = costs.copy()
    assert sweeps.pareto_front(costs).tolist() == [True, True, False, True, False, False, True, False, False]
    np.testing.assert_array_equal(costs, kept)
    assert sweeps.pareto_front(np.empty((0, 2))).tolist() == []
    assert sweeps.pareto_front(costs[:1]).tolist() == [True]


def test_the_front_agrees_with_its_definition() -> None:
    costs = np.random.default_rng(0).integers(0, 6, (60, 2)).astype(float)
    beaten = [any(all(b <= a) and any(b < a) for b in costs) for a in costs]
    assert sweeps.pareto_front(costs).tolist() == [not one for one in beaten]


def test_the_balance_map_shows_each_cell_from_even_to_collapsed() -> None:
    kept = copy.deepcopy(VALUES)
    drawn = sweeps.sweep_balance(VALUES, IDS, X, Y, theme=DARK)
    np.testing.assert_array_equal(VALUES, kept)
    cells, numbers = drawn.data
    np.testing.assert_allclose(np.array(cells.z, float), VALUES / 2)
    assert (cells.zmin, cells.zmax) == (0, 1)
    assert list(numbers.text) == ["2.00", "0.0500", "0.400", "0.100", "0.300"]
    assert list(numbers.customdata) == ["a", "b", "d", "e", "f"]
    assert list(zip(numbers.x, numbers.y, strict=True)) == [(0, 0), (1, 0), (0, 1), (1, 1), (2, 1)]
    assert drawn.layout.xaxis.ticktext == ("0", "0.1", "1")
    assert drawn.layout.yaxis.ticktext == ("paper", "&lt;b&gt;switch")
    assert (drawn.layout.xaxis.title.text, drawn.layout.yaxis.title.text) == ("w_importance", "strategy")
    assert numbers.hovertext[0].startswith("w_importance 0, strategy paper: CV(load) 2.")


def test_the_name_of_an_axis_stands_left_of_its_longest_value() -> None:
    def left(*values: object) -> int:
        return sweeps.sweep_balance(
            np.ones((len(values), 3)), [[""] * 3] * len(values), X, ("w_load", values)
        ).layout.margin.l  # type: ignore[no-any-return]

    assert left(0.0, 0.1) == 48
    assert left(0.0, 0.01) > 50
    assert left("paper", "strictly-balanced") > 140


def test_an_even_grid_is_calm_everywhere() -> None:
    cells = sweeps.sweep_balance(np.full((1, 3), 0.1), [["a", "b", "c"]], X, ("k", [2])).data[0]
    np.testing.assert_allclose(np.array(cells.z, float), 0.1)  # against collapsed, 1, and not against the worst cell


@pytest.mark.parametrize(("lower", "best", "loud"), [(True, 4.0, 5.0), (False, 5.0, 4.0)])
def test_the_quality_map_runs_from_the_best_to_the_worst(lower: bool, best: float, loud: float) -> None:
    metric = np.array([[4.0, 4.5, np.nan], [5.0, 4.25, 4.75]])
    cells, numbers = sweeps.sweep_quality(metric, IDS, X, Y, label="perplexity", lower_is_better=lower).data
    np.testing.assert_allclose(np.array(cells.z, float), (metric - best) / (loud - best))
    assert list(numbers.text) == ["4.00", "4.50", "5.00", "4.25", "4.75"]


def test_a_difference_of_less_than_a_tenth_is_not_loud() -> None:
    cells = sweeps.sweep_quality(np.array([[4.0, 4.04]]), [["a", "b"]], ("k", [1, 2]), ("noise", [1.0]), label="perplexity", lower_is_better=True).data[0]  # fmt: skip
    np.testing.assert_allclose(np.array(cells.z, float), [[0, 0.1]])


def test_a_grid_without_a_result_draws_no_numbers() -> None:
    for drawn in (
        sweeps.sweep_balance(np.full((2, 3), np.nan), IDS, X, Y),
        sweeps.sweep_quality(np.full((2, 3), np.nan), IDS, X, Y, label="x", lower_is_better=True),
        sweeps.sweep_pareto(np.empty(0), np.empty(0), [], [], label="x", lower_is_better=True),
    ):
        assert [len(trace.x) for trace in drawn.data if trace.type == "scatter"] in ([0], [0, 0])


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)
def test_the_numbers_can_be_read_on_their_cells(theme: object) -> None:
    for at in np.linspace(0, 1, 41):
        cell = sweeps.mixed(theme.diverging[3:], float(at))  # type: ignore[attr-defined]
        low, high = sorted((luminance(cell), luminance(sweeps.letter_colour(cell))))
        # Between white and near black there is a grey where neither has 4.5; 4.4 is the least that it can be.
        assert (high + 0.05) / (low + 0.05) >= 4.39
    assert sweeps.mixed(("#000000", "#FFFFFF"), 0.5) == "#808080"
    assert sweeps.mixed(("#000000", "#102030", "#FFFFFF"), 0.5) == "#102030"


@pytest.mark.parametrize("lower", [True, False])
def test_the_scatter_has_a_dot_a_run_and_joins_the_front_in_order(lower: bool) -> None:
    cv, metric = np.array([1.4, 0.0, 0.1, 0.2, np.nan]), np.array([4.5, 4.4, 4.1, 4.2, 4.0])
    if not lower:
        metric = 9 - metric
    drawn = sweeps.sweep_pareto(cv, metric, list("abcde"), ["0 / 0", "<i>", "2", "3", "4"], label="perplexity", lower_is_better=lower, knobs="a / b")  # fmt: skip
    rest, front = drawn.data
    assert list(front.customdata) == ["b", "c"]
    np.testing.assert_array_equal(front.x, [sweeps.LEAST_CV, 0.1])  # CV 0 stands at the left end
    np.testing.assert_array_equal(front.y, metric[[1, 2]])
    assert front.hovertext[0] == f"&lt;i&gt;: perplexity {metric[1]:.4g} at CV(load) 0. Click to open b."
    assert list(rest.customdata) == ["a", "d"]
    np.testing.assert_array_equal(rest.y, metric[[0, 3]])
    assert drawn.layout.meta["figure"] == "sweep_pareto"
    low, high = drawn.layout.xaxis.range
    assert 10**low < sweeps.LEAST_CV < 1.4 < 10**high
    assert [note.text for note in drawn.layout.annotations] == ["&lt;i&gt;", "2"]
    assert "named: a / b" in drawn.layout.title.text


def test_names_that_would_cover_another_are_left_out() -> None:
    cv = np.array([0.1, 0.1001, 1.0])
    drawn = sweeps.sweep_pareto(cv, np.array([4.001, 4.0, 3.0]), list("abc"), ["one", "two", "three"], label="x", lower_is_better=True)  # fmt: skip
    assert [note.text for note in drawn.layout.annotations] == ["one", "three"]


def test_a_cell_that_looks_ahead_is_marked_and_sets_no_scale() -> None:
    metric, ahead = np.array([[4.0, 5.0, 1.0]]), np.array([[False, False, True]])
    words = {"label": "perplexity", "lower_is_better": True}
    drawn = sweeps.sweep_quality(metric, [["a", "b", "c"]], X, ("k", [2]), **words, ahead_YX=ahead)
    cells, numbers = drawn.data
    np.testing.assert_array_equal(np.array(cells.z, float), [[0, 1, np.nan]])
    assert list(numbers.text) == ["4.00", "5.00", "1.00 †"]
    assert list(numbers.customdata) == ["a", "b", "c"]
    assert "perplexity 1, not comparable: looks ahead. Click" in numbers.hovertext[2]
    assert "looks ahead" not in numbers.hovertext[0]
    assert "† not comparable: looks ahead" in drawn.layout.title.text
    assert numbers.textfont.color[2] == LIGHT.ink
    np.testing.assert_array_equal(metric, [[4.0, 5.0, 1.0]])


def test_where_all_look_ahead_they_compare_with_each_other() -> None:
    metric, ahead = np.array([[4.0, 5.0, np.nan]]), np.array([[True, True, False]])
    words = {"label": "perplexity", "lower_is_better": True}
    drawn = sweeps.sweep_quality(metric, [["a", "b", "c"]], X, ("k", [2]), **words, ahead_YX=ahead)
    np.testing.assert_array_equal(np.array(drawn.data[0].z, float), [[0, 1, np.nan]])
    assert "looks ahead" not in drawn.layout.title.text


def test_a_run_that_looks_ahead_is_an_open_dot_that_beats_nobody() -> None:
    cv, metric = np.array([1.4, 0.01, 0.1]), np.array([4.5, 1.0, 4.1])
    names, ahead = ["paper", "choice", "switch"], np.array([False, True, False])
    drawn = sweeps.sweep_pareto(cv, metric, list("abc"), names, label="x", lower_is_better=True, ahead_N=ahead)
    apart, rest, front = drawn.data
    assert (list(apart.customdata), apart.marker.symbol) == (["b"], "circle-open")
    assert "not comparable: looks ahead" in apart.hovertext[0]
    assert (list(front.customdata), list(rest.customdata)) == (["c"], ["a"])
    low, high = drawn.layout.yaxis.range
    assert low < 1.0 < 4.5 < high  # it is in sight
    assert "open dot not comparable: looks ahead" in drawn.layout.title.text


@pytest.mark.parametrize(("lower", "sides"), [(True, ("bottom", "top")), (False, ("top", "bottom"))])
def test_a_name_stands_on_the_side_where_the_front_is_not(lower: bool, sides: tuple[str, str]) -> None:
    """The line leaves the first dot to the right, falling or rising, and comes to the last from the left."""
    metric = np.array([4.0, 3.0]) if lower else np.array([3.0, 4.0])
    drawn = sweeps.sweep_pareto(np.array([0.1, 1.0]), metric, ["a", "b"], ["one", "two"], label="x", lower_is_better=lower)  # fmt: skip
    first, last = drawn.layout.annotations
    assert ((first.xanchor, first.yanchor), (last.xanchor, last.yanchor)) == (("left", sides[0]), ("right", sides[1]))
