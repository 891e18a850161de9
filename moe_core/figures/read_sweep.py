"""How the figures of a sweep are read: the table's means on the grid of two knobs, and every finished run for itself."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from moe_core.runs.source import At
from moe_core.schema import Description, exact_text, with_unit


class SweepResults(NamedTuple):
    """A sweep with its results so far. swept: the names of its knobs; cells: their values in each cell; rows (one per cell) and
    results (one per run) as moe_core.sweep gives them."""

    id: str
    description: Description
    swept: tuple[str, ...]
    cells: Sequence[Mapping[str, Any]]
    rows: Sequence[Mapping[str, Any]]
    results: Sequence[Any]


def read_balance(sweep: SweepResults, at: At) -> dict[str, Any]:
    ids, x, y = axes(sweep)
    return {"cv_load_YX": on_grid(sweep, "cv_load"), "ids_YX": ids, "x": x, "y": y}


def read_quality(sweep: SweepResults, at: At) -> dict[str, Any]:
    ids, x, y = axes(sweep)
    name = sweep.description.metrics[0].name
    ahead_YX = np.zeros((len(y[1]), len(x[1])), bool)
    for place, measures in zip(places(sweep, x, y), sweep.rows, strict=True):
        ahead_YX[place] = not measures["comparable"]
    return {"metric_YX": on_grid(sweep, name), "ids_YX": ids, "x": x, "y": y, "ahead_YX": ahead_YX} | words(sweep)


def read_pareto(sweep: SweepResults, at: At) -> dict[str, Any]:
    done = [result for result in sweep.results if result.ended]
    name = sweep.description.metrics[0].name
    return {
        "cv_load_N": np.array([result.ended["cv_load"] for result in done], np.float64),
        "metric_N": np.array([result.ended["eval"].get(name, np.nan) for result in done], np.float64),
        "ids_N": [result.job.run_id for result in done],
        "names_N": [name_of(sweep, result.job.run_id) for result in done],
        "ahead_N": np.array([result.ended["comparable"] is False for result in done], bool),
        "knobs": " / ".join(sweep.swept),
    } | words(sweep)


def name_of(sweep: SweepResults, run: str) -> str:
    """The values of the swept knobs in a run; of all cells if it is counted in several."""
    own = [cell for cell, measures in zip(sweep.cells, sweep.rows, strict=True) if run in measures["ids"]]
    return " and ".join(" / ".join(exact_text(cell.get(name)) for name in sweep.swept) for cell in own)


def words(sweep: SweepResults) -> dict[str, Any]:
    """What the task's metric is called, and which way it is good."""
    _, label, unit, lower = sweep.description.metrics[0]
    return {"label": with_unit(label, unit), "lower_is_better": lower}


def axes(sweep: SweepResults) -> tuple[list[list[str]], tuple[str, list[Any]], tuple[str, list[Any]]]:
    """A finished run of each cell, to open with a click, and both knobs with their values, None where a cell has none. For a
    sweep over two knobs."""
    x, y = ((name, in_order([cell.get(name) for cell in sweep.cells])) for name in sweep.swept)
    ids = [[""] * len(x[1]) for _ in y[1]]
    done = [result.job.run_id for result in sweep.results if result.ended]
    for (row, column), measures in zip(places(sweep, x, y), sweep.rows, strict=True):
        ids[row][column] = next((run for run in done if run in measures["ids"]), "")
    return ids, x, y


def places(sweep: SweepResults, x: tuple[str, list[Any]], y: tuple[str, list[Any]]) -> list[tuple[int, int]]:
    """The row and column of each cell."""
    return [(y[1].index(cell.get(y[0])), x[1].index(cell.get(x[0]))) for cell in sweep.cells]


def on_grid(sweep: SweepResults, measure: str) -> Any:
    """A measure's means (Y, X); NaN where no run has finished."""
    _, x, y = axes(sweep)
    values_YX = np.full((len(y[1]), len(x[1])), np.nan)
    for at, measures in zip(places(sweep, x, y), sweep.rows, strict=True):
        values_YX[at] = np.nan if measures[measure] is None else measures[measure]
    return values_YX


def in_order(values: Sequence[Any]) -> list[Any]:
    """Each value once: numbers from low to high, words as they were given, and last None, if a cell has no value."""
    once = [value for value in dict.fromkeys(values) if value is not None]
    known = once if any(isinstance(value, str) for value in once) else sorted(once)
    return known + [None] * (None in values)
