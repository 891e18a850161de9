"""How devices would be loaded, beside counts made by hand."""

import numpy as np
import pytest

from moe_core.scaling import loads

GENERATOR = np.random.default_rng(0)
# Two steps of one layer with four experts.
ROWS_SLE = np.array([[[6.0, 2, 0, 0]], [[0.0, 0, 4, 4]]])


def test_experts_are_dealt_in_their_order() -> None:
    rows_GLN = np.array([[[1.0, 2, 3, 4], [5, 6, 7, 8]], [[0, 0, 0, 9], [1, 1, 1, 1]]])
    assert loads.of_devices(rows_GLN, 2).tolist() == [[[3, 7], [11, 15]], [[0, 9], [2, 2]]]
    assert loads.of_devices(rows_GLN, 4).tolist() == rows_GLN.tolist()
    assert loads.of_devices(rows_GLN, 1).tolist() == [[[10], [26]], [[9], [4]]]


def test_the_most_loaded_over_the_mean() -> None:
    assert loads.max_over_mean(np.array([[1.0, 3], [2, 2]])) == pytest.approx((1.5 + 1) / 2)
    assert loads.max_over_mean(np.zeros((2, 3))) == 1


def test_one_device_has_a_recorded_step() -> None:
    for strong in (True, False):
        found = {tuple(loads.drawn(ROWS_SLE, 1, 1, 1, strong, GENERATOR)[0, 0]) for _ in range(30)}
        assert found == {(6, 2, 0, 0), (0, 0, 4, 4)}


def test_each_device_brings_a_recorded_step() -> None:
    """Of a group of two: both the first, both the second, or one of each, as often as two coins fall."""
    found = [tuple(loads.drawn(ROWS_SLE, 1, 2, 1, False, GENERATOR)[0, 0]) for _ in range(400)]
    times = {rows: found.count(rows) / 400 for rows in found}
    assert times.keys() == {(12, 4, 0, 0), (0, 0, 8, 8), (6, 2, 4, 4)}
    assert times[6, 2, 4, 4] == pytest.approx(0.5, abs=0.1)


def test_groups_of_strong_scaling_share_one_step_evenly() -> None:
    rows_GLN = loads.drawn(ROWS_SLE[:1], 2, 2, 1, True, GENERATOR)
    assert rows_GLN.sum(2).tolist() == [[4], [4]]
    assert (rows_GLN.sum(0) == ROWS_SLE[0]).all()
    assert (loads.drawn(ROWS_SLE[:1], 1, 4, 1, True, GENERATOR) == ROWS_SLE[0]).all()
    mean_E = np.mean([loads.drawn(ROWS_SLE[:1], 2, 2, 1, True, GENERATOR)[0, 0] for _ in range(400)], 0)
    np.testing.assert_allclose(mean_E, [3, 1, 0, 0], atol=0.15)


def test_all_groups_together_have_the_step_that_they_share() -> None:
    """To the row, also where the rows cannot be dealt evenly, or there are none."""
    whole_SLE = np.array([[[6.0, 2, 0, 3], [0, 0, 0, 0], [1, 0, 0, 0]]])
    for groups in (1, 2, 3, 8, 16):
        rows_GLN = loads.drawn(whole_SLE, groups, 1, 1, True, GENERATOR)
        assert rows_GLN.shape == (groups, 3, 4)
        assert (rows_GLN.sum(0) == whole_SLE[0]).all()
        assert (np.ptp(rows_GLN.sum(2), 0) <= 1).all()


def test_more_experts_are_as_popular_as_the_recorded_and_share_the_same_rows() -> None:
    rows_SLE = np.array([[[900.0, 100, 0, 0]]])
    rows_GLN = loads.drawn(rows_SLE, 1, 64, 64, False, GENERATOR)
    assert rows_GLN.shape == (1, 1, 256)
    assert rows_GLN.sum() == 64 * 1000
    share = np.sort(rows_GLN[0, 0])[::-1]
    assert (share == 0).mean() == pytest.approx(0.5, abs=0.12)
    assert share[0] / np.median(share[share > 0][-40:]) == pytest.approx(9, rel=0.5)
    small = [loads.drawn(np.array([[[8.0, 0]]]), 1, 2, 2, False, GENERATOR) for _ in range(40)]
    assert {rows.sum() for rows in small} == {16.0}  # where only unpopular experts were drawn too


@pytest.mark.parametrize("k", [1, 2, 8, 15, 16])
def test_a_batch_of_chance_is_even_but_for_chance(k: int) -> None:
    """A token chooses an expert with chance k / 16, and never twice: so an expert's rows are binomial."""
    rows_SLE = loads.by_chance(1024, 16, 2, k)
    assert (rows_SLE.sum(2) == 1024 * k).all()
    assert rows_SLE.max() <= 1024
    np.testing.assert_allclose(rows_SLE.mean((0, 1)), 64 * k, rtol=0.03)
    assert rows_SLE.std(0).mean() == pytest.approx(np.sqrt(1024 * k / 16 * (1 - k / 16)), rel=0.03)


def test_tokens_of_chance_choose_their_experts_as_drawn_one_by_one() -> None:
    """Two rows of different experts go together as those of distinct choices do."""
    rows_SLE = loads.by_chance(1, 4, 2000, 2)
    pairs, times = np.unique(rows_SLE.reshape(-1, 4), axis=0, return_counts=True)
    assert pairs.sum(1).tolist() == [2] * 6
    np.testing.assert_allclose(times / times.sum(), 1 / 6, rtol=0.02)


def test_more_devices_even_out_what_is_chance_and_not_what_all_share() -> None:
    chance = loads.by_chance(256, 16, 1, 2)
    groups = [loads.max_over_mean(loads.drawn(chance, 16, M, 1, False, GENERATOR)) for M in (1, 4, 16)]
    assert groups[0] > groups[1] > groups[2] > 1
    uneven = chance * np.where(np.arange(16) == 0, 3, 1)
    assert loads.max_over_mean(loads.drawn(uneven, 16, 16, 1, False, GENERATOR)) > 2.4
