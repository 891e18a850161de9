"""How the figures of a sweep are read: the table's means on the grid of two knobs, and every finished run for itself."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from moe_core.runs.source import At
from moe_core.schema import Description, exact_text, with_unit


class Found(NamedTuple):
    """A sweep and how it stands. swept: its knobs; cells: their values in each; rows, one a cell, and results as
    moe_core.sweep has them."""

    id: str
    description: Description
    swept: tuple[str, ...]
    cells: Sequence[Mapping[str, Any]]
    rows: Sequence[Mapping[str, Any]]
    results: Sequence[Any]


def read_balance(found: Found, at: At) -> dict[str, Any]:
    ids, x, y = axes(found)
    return {"cv_load_YX": on_grid(found, "cv_load"), "ids_YX": ids, "x": x, "y": y}


def read_quality(found: Found, at: At) -> dict[str, Any]:
    ids, x, y = axes(found)
    name = found.description.metrics[0].name
    ahead_YX = np.zeros((len(y[1]), len(x[1])), bool)
    for place, measures in zip(places(found, x, y), found.rows, strict=True):
        ahead_YX[place] = not measures["comparable"]
    return {"metric_YX": on_grid(found, name), "ids_YX": ids, "x": x, "y": y, "ahead_YX": ahead_YX} | words(found)


def read_pareto(found: Found, at: At) -> dict[str, Any]:
    done = [result for result in found.results if result.ended]
    name = found.description.metrics[0].name
    return {
        "cv_load_N": np.array([result.ended["cv_load"] for result in done], np.float64),
        "metric_N": np.array([result.ended["eval"].get(name, np.nan) for result in done], np.float64),
        "ids_N": [result.job.run_id for result in done],
        "names_N": [name_of(found, result.job.run_id) for result in done],
        "ahead_N": np.array([result.ended["comparable"] is False for result in done], bool),
        "knobs": " / ".join(found.swept),
    } | words(found)


def name_of(found: Found, run: str) -> str:
    """The swept knobs of a run; of all cells that it stands for."""
    own = [cell for cell, measures in zip(found.cells, found.rows, strict=True) if run in measures["ids"]]
    return " and ".join(" / ".join(exact_text(cell.get(name)) for name in found.swept) for cell in own)


def words(found: Found) -> dict[str, Any]:
    """What the task's metric is called, and which way it is good."""
    _, label, unit, lower = found.description.metrics[0]
    return {"label": with_unit(label, unit), "lower_is_better": lower}


def axes(found: Found) -> tuple[list[list[str]], tuple[str, list[Any]], tuple[str, list[Any]]]:
    """The run that stands for each cell, and both knobs with their values, None where a cell has none. Two knobs are swept."""
    x, y = ((name, in_order([cell.get(name) for cell in found.cells])) for name in found.swept)
    ids = [[""] * len(x[1]) for _ in y[1]]
    done = [result.job.run_id for result in found.results if result.ended]
    for (row, column), measures in zip(places(found, x, y), found.rows, strict=True):
        ids[row][column] = next((run for run in done if run in measures["ids"]), "")
    return ids, x, y


def places(found: Found, x: tuple[str, list[Any]], y: tuple[str, list[Any]]) -> list[tuple[int, int]]:
    """The row and column of each cell."""
    return [(y[1].index(cell.get(y[0])), x[1].index(cell.get(x[0]))) for cell in found.cells]


def on_grid(found: Found, measure: str) -> Any:
    """A measure's means (Y, X); NaN where no run counts yet."""
    _, x, y = axes(found)
    values_YX = np.full((len(y[1]), len(x[1])), np.nan)
    for at, measures in zip(places(found, x, y), found.rows, strict=True):
        values_YX[at] = np.nan if measures[measure] is None else measures[measure]
    return values_YX


def in_order(values: Sequence[Any]) -> list[Any]:
    """Each value once: numbers from low to high, words as they were given, and last None, of cells that have none."""
    once = [value for value in dict.fromkeys(values) if value is not None]
    known = once if any(isinstance(value, str) for value in once) else sorted(once)
    return known + [None] * (None in values)
