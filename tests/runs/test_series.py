"""Thinning loses no extreme, and the statistics that are computed when read agree with their definitions."""

import itertools

import numpy as np
import pytest

from moe_core.runs.series import thin
from moe_core.runs.statistics import DERIVED, derive
from moe_core.schema import STATS


@pytest.mark.parametrize("at", [0, 1, 4097, 500_000, 999_998, 999_999])
def test_a_spike_of_one_step_survives_a_million(at: int) -> None:
    values = np.zeros(1_000_000)
    values[at] = 7.0
    steps, thinned = thin(np.arange(1, 1_000_001), values, 300)
    assert len(steps) <= 600
    assert thinned.max() == 7.0
    assert abs(int(steps[thinned.argmax()]) - (at + 1)) <= 4096


def test_both_extremes_of_every_column_survive_in_their_order() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5000, 3))
    _, thinned = thin(np.arange(1, 5001), values, 50)
    np.testing.assert_array_equal(thinned.max(0), values.max(0))
    np.testing.assert_array_equal(thinned.min(0), values.min(0))
    rising = np.arange(4096.0)
    assert (np.diff(thin(np.arange(4096), rising, 10)[1]) > 0).all()
    assert (np.diff(thin(np.arange(4096), -rising, 10)[1]) < 0).all()


def test_thinning_what_was_thinned_is_the_same() -> None:
    values = np.random.default_rng(1).normal(size=8192)
    steps = np.arange(8192)
    once = thin(steps, values, 64)
    twice = thin(*thin(steps, values, 700), 64)
    np.testing.assert_array_equal(once[0], twice[0])
    np.testing.assert_array_equal(once[1], twice[1])


def test_full_bins_stay_as_they_are_while_a_run_grows() -> None:
    values = np.random.default_rng(2).normal(size=6000)
    short, long = thin(np.arange(5500), values[:5500], 200), thin(np.arange(6000), values, 200)
    full = 5500 // 128 * 128
    np.testing.assert_array_equal(short[1][short[0] < full], long[1][long[0] < full])


@pytest.mark.parametrize("bins", [16, 64, 200])
def test_every_step_of_a_growing_run_is_the_last_of_its_thinned_history(bins: int) -> None:
    """Or a chart would end a few steps before the tile beside it, and not move when one step is trained."""
    values = np.random.default_rng(4).normal(size=(5000, 2))
    for last in range(900, 5000, 7):
        steps, thinned = thin(np.arange(1, last + 1), values[:last], bins)
        assert steps[-1] == last
        np.testing.assert_array_equal(thinned[-1], values[last - 1])
        assert len(steps) <= 2 * bins + 40
    kept = thin(np.arange(1, 4001), values[:4000], 700)  # and when what was thinned grows
    grown = np.r_[kept[0], np.arange(4001, 5001)], np.r_[kept[1], values[4000:]]
    for once, twice in zip(thin(np.arange(1, 5001), values, bins), thin(*grown, bins), strict=True):
        np.testing.assert_array_equal(once, twice)


def test_a_growing_history_is_thinned_further_once_and_stays_so() -> None:
    """Or all of a chart's lines would change from one frame to the next, and back."""
    steps = np.arange(1, 6001)
    sizes = [len(thin(steps[:n], np.zeros(n), 100)[0]) for n in range(150, 6000, 5)]
    halvings = sum(after < 0.75 * before for before, after in itertools.pairwise(sizes))
    assert halvings == 5  # at 200, 400, … 3,200 steps


def test_a_short_history_is_left_alone_and_a_gap_is_no_zero() -> None:
    steps, values = np.arange(1, 20), np.full(19, np.nan)
    values[7] = 3.0
    same = thin(steps, values, 300)
    assert same[0] is steps
    _, few = thin(np.arange(64), np.r_[np.full(60, np.nan), 3.0, np.full(3, np.nan)], 4)
    assert np.nanmax(few) == 3.0
    assert not (few == 0).any()
    with pytest.raises(ValueError, match="bins must be 1 or more"):
        thin(steps, values, 0)


def by_definition(stat: str, x: np.ndarray) -> np.ndarray:
    """One row at a time, in plain Python."""
    out = []
    for row in x.astype(float):
        mean, total, E = row.sum() / len(row), row.sum(), len(row)
        cv2 = sum((v - mean) ** 2 for v in row) / E / (mean**2 + 1e-10)
        entropy = -sum(v / total * np.log(v / total) for v in row if v > 0) if total else 0.0
        out.append(
            {
                "importance_loss": cv2,
                "load_loss": cv2,
                "cv_importance": cv2**0.5,
                "cv_load": cv2**0.5,
                "cv_counts": cv2**0.5,
                "max_over_mean_load": max(row) / mean,
                "max_over_mean_devices": max(row) / mean,  # each expert on a device of its own
                "max_vio": (max(row) - mean) / mean,
                "min_vio": (min(row) - mean) / mean,
                "effective_experts": np.exp(entropy),
                "entropy": entropy / np.log(E) if E > 1 else 1.0,
                "utilisation": row / mean,
                "selection_share": row / total,
                "importance_share": row / total,
            }[stat]
        )
    return np.array(out)


@pytest.mark.parametrize("stat", list(DERIVED))
@pytest.mark.parametrize("experts", [1, 2, 16])
def test_derived_statistics_agree_with_their_definitions(stat: str, experts: int) -> None:
    x = np.random.default_rng(3).integers(0, 50, (20, experts)).astype(np.float32)
    x[:, 0] += 1
    x[0] = 0
    x[0, -1] = 9  # one has it all
    np.testing.assert_allclose(derive(stat, {DERIVED[stat][0]: x}), by_definition(stat, x), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("stat", list(DERIVED))
def test_nothing_to_share_is_finite(stat: str) -> None:
    assert np.isfinite(derive(stat, {DERIVED[stat][0]: np.zeros((3, 4))})).all()


def test_every_statistic_that_is_not_stored_is_derived() -> None:
    assert set(DERIVED) == {stat.name for stat in STATS if not stat.stored}
