"""How the figures of a sweep are read: the table's means on the grid of two knobs, and every finished run for itself."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from moe_core.figures.reading import Span
from moe_core.schema import METRICS, value_text


class Found(NamedTuple):
    """A sweep and how it stands. cells: the swept knobs of each by name; rows and results as moe_core.sweep has them."""

    id: str
    config: Any
    cells: Sequence[Mapping[str, Any]]
    rows: Sequence[Mapping[str, Any]]
    results: Sequence[Any]

    @property
    def swept(self) -> tuple[str, ...]:
        return tuple(self.cells[0])


def read_balance(found: Found, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    ids, x, y = axes(found)
    return {"cv_load_YX": on_grid(found, "cv_load"), "ids_YX": ids, "x": x, "y": y}


def read_quality(found: Found, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    ids, x, y = axes(found)
    name = METRICS[found.config.task][0][0]
    return {"metric_YX": on_grid(found, name), "ids_YX": ids, "x": x, "y": y} | words(found)


def read_pareto(found: Found, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    done = [result for result in found.results if result.ended]
    name = METRICS[found.config.task][0][0]
    return {
        "cv_load_N": np.array([result.ended["cv_load"] for result in done], np.float64),
        "metric_N": np.array([result.ended["eval"].get(name, np.nan) for result in done], np.float64),
        "ids_N": [result.job.run_id for result in done],
        "names_N": [" / ".join(map(value_text, found.cells[result.job.cell].values())) for result in done],
        "knobs": " / ".join(found.swept),
    } | words(found)


def words(found: Found) -> dict[str, Any]:
    """What the task's metric is called, and which way it is good."""
    _, label, unit, lower = METRICS[found.config.task][0]
    return {"label": f"{label}, {unit}" if unit else label, "lower_is_better": lower}


def axes(found: Found) -> tuple[list[list[str]], tuple[str, list[Any]], tuple[str, list[Any]]]:
    """The run that stands for each cell, and both knobs with their values. Two knobs are swept."""
    x, y = ((name, in_order([cell[name] for cell in found.cells])) for name in found.swept)
    ids = [[""] * len(x[1]) for _ in y[1]]
    done = [result.job.run_id for result in found.results if result.ended]
    for row in found.rows:
        first = next((run for run in done if run in row["ids"]), "")
        ids[y[1].index(row[y[0]])][x[1].index(row[x[0]])] = first
    return ids, x, y


def on_grid(found: Found, measure: str) -> Any:
    """A measure's means (Y, X); NaN where no run counts yet."""
    _, x, y = axes(found)
    values_YX = np.full((len(y[1]), len(x[1])), np.nan)
    for row in found.rows:
        if row[measure] is not None:
            values_YX[y[1].index(row[y[0]]), x[1].index(row[x[0]])] = row[measure]
    return values_YX


def in_order(values: Sequence[Any]) -> list[Any]:
    """Each value once: numbers from low to high, words as they were given."""
    once = list(dict.fromkeys(values))
    return once if any(isinstance(value, str) for value in once) else sorted(once)
