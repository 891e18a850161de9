"""Cells and columns: what a spreadsheet reads, and nothing that it would run."""

import io

import numpy as np
import pytest

from moe_core.export import numbers


def test_a_float32_is_written_as_short_as_it_reads_back_the_same():
    values = np.float32([2.6, 1 / 3, 1e-8, 16777217, -3.4e38, np.inf])
    assert numbers.cell(values[0]) == "2.6"
    assert np.array_equal(np.float32([numbers.cell(value) for value in values]), values)


def test_cells_are_safe_and_exact():
    assert numbers.table({"=x": [1, float("nan")], "y": [np.float32(0.1)]}) == "'=x,y\n1,0.1\n,\n"
    assert [numbers.cell(text) for text in ("+1", "-a", "@b", "\tc", "d")] == ["'+1", "'-a", "'@b", "'\tc", "d"]


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "i8", "u1", "?"])
def test_a_column_is_written_as_its_numbers_one_by_one(kind):
    odd = [np.nan, np.inf, -np.inf, 0.0, -0.0, 2.6, 1e-7, 123456789.0, 16777216.0] if kind[0] == "f" else [0, 1, 77]
    with np.errstate(over="ignore"):
        column = np.array([*odd, *np.random.default_rng(0).normal(size=50)]).astype(kind)
    assert numbers.in_cells(column) == [numbers.cell(value) for value in column]


def test_a_matrix_becomes_a_column_for_each_of_its_columns():
    found = numbers.columns({"steps": np.arange(3), "share_nE": np.arange(6.0).reshape(3, 2), "theme": "light"})
    assert list(found) == ["steps", "share_1", "share_2"]
    np.testing.assert_array_equal(found["share_2"], [1, 3, 5])


def test_least_mean_and_most_are_columns_by_these_names():
    found = numbers.columns({"devices_m": np.array([1, 2]), "own_m3": np.arange(6.0).reshape(2, 3)})
    assert list(found) == ["devices_m", "own_least", "own_mean", "own_most"]
    assert found["own_most"].tolist() == [2, 5]


def test_parquet_keeps_types_and_says_where_it_is_from():
    import pyarrow.parquet as pq

    data = numbers.parquet({"step": np.arange(3), "half": np.ones(2, np.float16), "word": ["=a"]}, {"Run": "r"})
    read = pq.read_table(io.BytesIO(data))
    assert read.schema.metadata[b"Run"] == b"r"
    assert read.to_pydict() == {"step": [0, 1, 2], "half": [1.0, 1.0, None], "word": ["=a", None, None]}
