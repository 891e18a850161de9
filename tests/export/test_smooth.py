"""A smoothed line is the centred mean of every recorded step, and the figure says so."""

import numpy as np
import pytest

from moe_core.export import Look, rendered
from moe_core.export.look import POINTS, check, spec_of
from moe_core.export.sources import Still
from moe_core.figures.smooth import Smoothed, centred
from moe_core.runs import thin
from tests.export.made import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs"), "text", steps=4200)  # more than a line has points


@pytest.mark.parametrize("over", [1, 2, 5, 8])
def test_each_point_is_the_mean_of_the_steps_about_it_on_its_side_of_a_change(over):
    rng = np.random.default_rng(0)
    x, y = np.arange(10, 70), rng.normal(size=60)
    y[[3, 40]] = np.nan
    mean = centred(x, y, over, (30, 31))
    for at, step in enumerate(x):
        near = (x >= step - (over - 1) // 2) & (x <= step + over // 2)
        same = np.searchsorted((30, 31), x, "right") == np.searchsorted((30, 31), step, "right")
        expected = np.nan if np.isnan(y[at]) else np.nanmean(y[near & same])
        assert mean[at] == pytest.approx(expected, nan_ok=True)


def test_a_line_is_the_mean_of_every_step_and_the_line_itself_is_pale_behind(run):
    spec, _ = spec_of(run, "balance", Look(smooth=40))
    raw, mean = ([trace for trace in spec["data"] if ("opacity" in trace) is pale] for pale in (True, False))
    assert len(raw) == len(mean) == 2
    steps, values = run.history("cv_load", 0)
    some, whole = thin(steps, centred(steps, values, 40, (2101,)), POINTS)
    (drawn,) = [trace for trace in mean if trace["name"] == "CV(load)"]
    np.testing.assert_array_equal(drawn["x"], some)
    np.testing.assert_allclose(drawn["y"], whole, rtol=1e-6)
    assert len(some) < 4200 == some[-1]
    assert "mean of 40 steps, pale: each step" in spec["layout"]["title"]["text"].replace("<br>", " ")
    (behind,) = [trace for trace in raw if trace["name"] == "CV(load)"]
    assert behind["y"].max() == pytest.approx(values.max())  # no peak is lost by thinning


def test_a_range_has_the_means_of_the_whole_and_so_have_the_runs_beside(run, tmp_path):
    other = make_run(tmp_path, "text", steps=300)
    whole = centred(*run.history("loss"), 25, (2101,))
    for first, last in ((1, 20), (2080, 2120), (4190, None)):
        steps, values = Smoothed(run, 25).history("loss", first=first, last=last, bins=1000)
        assert steps[0] == first
        np.testing.assert_allclose(values, whole[first - 1 : last], rtol=1e-6)
    beside = Smoothed(Still(run, {}, [Still(other)]), 25).others[0]
    np.testing.assert_allclose(
        beside.history("loss", bins=1000)[1], centred(*other.history("loss"), 25, (151,)), rtol=1e-6
    )
    np.testing.assert_array_equal(
        beside.history("loss")[1], other.history("loss")[1]
    )  # numbers stay those of their steps


def test_what_is_no_line_over_steps_stays_and_nothing_says_that_it_was_averaged(run):
    for name in ("balance_now", "churn", "tokens_by_expert"):
        assert rendered(run, name, "svg", Look(smooth=40)) == rendered(run, name, "svg", Look())
    told = rendered(run, "loss", "svg", Look(smooth=40, title="", caption=True)).decode()
    assert "Smoothed: each line is a centred mean of 40 steps" in told
    assert "step 4,200, mean of 40 steps, MoEscope" in told
    assert rendered(run, "loss", "csv", Look(smooth=40)) == rendered(run, "loss", "csv", Look())


@pytest.mark.parametrize("over", [0, -3, 10**9])
def test_no_steps_and_too_many_are_refused(run, over):
    with pytest.raises(ValueError, match="smooth must be between 1 and 1000000 steps, got"):
        check(run, Look(smooth=over))


def test_one_large_value_spoils_only_the_means_that_it_belongs_to() -> None:
    """As a loss that blew up once, and was turned down."""
    y = np.full((5_000, 2), 0.1)
    y[100, 0] = 1e30
    mean = centred(np.arange(1, 5_001), y, 25)
    near = np.abs(np.arange(5_000) - 100) <= 12
    assert (mean[near, 0] > 1e28).all()
    np.testing.assert_allclose(mean[~near, 0], 0.1, rtol=1e-12)
    np.testing.assert_allclose(mean[:, 1], 0.1, rtol=1e-12)
