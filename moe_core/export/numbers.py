"""The numbers behind the figures as tables: CSV for spreadsheets and scripts, Parquet for data frames."""

import csv
import io
import math
from collections.abc import Iterable, Mapping
from itertools import zip_longest
from typing import Any

import numpy as np

from moe_core.figures.called import column_names
from moe_core.figures.needs import stats
from moe_core.figures.probe import class_name
from moe_core.figures.read_sweep import SweepResults
from moe_core.runs.source import Source
from moe_core.schema import BALANCE, HELD_OUT_BALANCE, STATS, exact_text

Table = dict[str, Any]
# A comparison's lines, by the names of its runs.
CURVES = {"curves": "{}", "heldout": "{}_heldout", "gaps": "{}_minus_{first}"}

# What the rows of a matrix are, by the first letter of its shape, and their first number, as in the hovers.
ROWS = {"E": ("expert", 1), "N": ("token", 0), "L": ("layer", 1), "R": ("rank", 0)}
# What the columns of a matrix are whose shape ends in 3.
THREE = ("least", "mean", "most")


def columns(given: dict[str, Any]) -> Table:
    """The arrays that a figure is drawn from, as columns: a matrix becomes one for each of its columns, by name or number.

    The first column names the rows: the classes of a matrix by class, the numbers of experts, tokens or ranks.
    """
    table: Table = {}
    runs = column_names([curve.name for curve in given.get("curves", ())])
    for name, values in given.items():
        if given.get("counted") == "selections":  # of a run that has no smooth load
            name = {"cv_load": "cv_counts", "load_E": "selections_E"}.get(name, name)
        if isinstance(values, np.ndarray) and name != "on_E":  # an expert that is off is a gap in the others
            table |= row_names(name, len(values), given)
            plain = values.reshape(len(values), -1) if values.ndim > 1 and values.size else values
            word, _, shape = (name, "", "") if values.ndim == 1 else name.rpartition("_")
            word = word or name
            if plain.ndim == 1:
                table[word] = plain
            else:
                first = 0 if shape[-1:] == "R" else 1
                numbers = THREE if shape[-1:] == "3" else range(first, first + plain.shape[1])
                names = given.get(f"names_{shape[-1:]}") or numbers
                table |= {f"{word}_{named}": plain[:, i] for i, named in enumerate(names)}
        elif name in CURVES:
            for at, curve in enumerate(values):
                run = runs[at + (name == "gaps")]
                table |= curve_columns(CURVES[name].format(run, first=runs[0]), curve, turned=name == "curves")
    if given.get("label_names") and given.get("labels_N") is not None:
        table["class"] = [class_name(given["labels_N"], n, given["label_names"]) for n in range(len(given["labels_N"]))]
    return table | change_columns("", given.get("changes", ()))


def row_names(name: str, count: int, given: dict[str, Any]) -> Table:
    """The column that names the rows of an array: classes, or numbers of experts, tokens, layers or ranks, by the suffix of its name."""
    first = name.rpartition("_")[2][:1]
    if first in "CL" and len(named := given.get(f"names_{first}", ())) == count:
        return {str(given.get("label", "layer" if first == "L" else "name")): list(named)}
    if first not in ROWS or not count:
        return {}
    word, start = ROWS[first]
    return {word: np.arange(start, start + count)}


def curve_columns(name: str, curve: Any, turned: bool) -> Table:
    """A run's line of a comparison, with the steps of the axis on which it is drawn, and, if asked for, its knob changes."""
    values = np.asarray(curve.values)
    columns = {"": values} if values.ndim == 1 else {f"_{i + 1}": values[:, i] for i in range(values.shape[1])}
    table: Table = {f"{name}_step": np.asarray(curve.steps)} | {
        f"{name}{end}": column for end, column in columns.items()
    }
    if curve.comparable is not None:
        table[f"{name}_comparable"] = np.asarray(curve.comparable)
    return table | (change_columns(f"{name}_", curve.turns) if turned else {})


def change_columns(before: str, changes: Iterable[Any]) -> Table:
    done = [change for change in changes if change.step is not None]
    if not done:
        return {}
    words = [f"{c.name} {exact_text(c.previous)} -> {exact_text(c.value)}" for c in done]
    return {f"{before}change_step": [change.step for change in done], f"{before}change": words}


def cells(sweep: SweepResults, measure: str = "") -> Table:
    """A sweep's table: the knobs of each cell, its number of runs, and mean and spread of every measure, or of `measure` only."""
    names = [name for name in dict.fromkeys(name for row in sweep.rows for name in row) if name != "ids"]
    if measure:
        names = [*sweep.swept, "runs", "finished", measure, f"{measure}_spread"]
    return {name: [math.nan if row.get(name) is None else row[name] for row in sweep.rows] for name in names}


def finished(sweep: SweepResults) -> Table:
    """The finished runs of a sweep: name, seed, knobs, and measures."""
    done = [result for result in sweep.results if result.ended]
    table: Table = {"run": [result.job.run_id for result in done], "seed": [result.job.config.seed for result in done]}
    table |= {name: [sweep.cells[result.job.cell].get(name, "") for result in done] for name in sweep.swept}
    names = [name for name, *_ in sweep.description.metrics]
    table |= {name: [result.ended["eval"].get(name, math.nan) for result in done] for name in names}
    balance = [*BALANCE, *(name for name, *_ in HELD_OUT_BALANCE)]
    return table | {
        name: [math.nan if (v := result.ended.get(name)) is None else v for result in done] for name in balance
    }


def statistics(run: Source) -> Table:
    """Every statistic of every step, layer and expert."""
    table: Table = {}
    last = run.steps()[1]  # a run may train meanwhile
    for stat in STATS:
        if not stats(stat.name)(run):
            continue
        for layer in range(len(run.description.layers) if "L" in stat.shape else 1):
            steps, values = run.history(stat.name, layer, last=last)
            table.setdefault("step", np.asarray(steps))
            name = f"{stat.name}_layer{layer + 1}" if "L" in stat.shape else stat.name
            if "E" in stat.shape:
                table |= {f"{name}_expert{e + 1}": np.asarray(values)[:, e] for e in range(values.shape[1])}
            else:
                table[name] = np.asarray(values)
    return table


def table(numbers: Table) -> str:
    """CSV with a heading. NaN is an empty cell, and a shorter column ends in empty cells."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([cell(name) for name in numbers])
    writer.writerows(zip_longest(*map(in_cells, numbers.values()), fillvalue=""))
    return text.getvalue()


def in_cells(values: Any) -> list[str]:
    """The cells of a column, as cell() makes them one by one; numbers in an array all at once, since there may be millions."""
    if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype.kind not in "fiu":
        return [cell(value) for value in values]
    if values.dtype.kind != "f":
        return [str(value) for value in values.tolist()]
    plain = map(float, values.astype(str).tolist()) if values.dtype == np.float32 else values.tolist()
    return ["" if value != value else f"{value:.9g}" for value in plain]


def cell(value: Any) -> str:
    """One cell. Text that a spreadsheet would run as a formula gets an apostrophe in front."""
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating):
        if isinstance(value, np.float32):
            value = float(str(value))  # the shortest that reads back as the same float32: 2.6, not 2.5999999
        return "" if np.isnan(value) else f"{value:.9g}"
    text = str(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def parquet(numbers: Table, facts: Mapping[str, str]) -> bytes:
    """The same columns with their types, a shorter one ending in nulls; the facts are the file's key-value metadata."""
    # Here, since it takes half a second to import.
    import pyarrow as pa
    import pyarrow.parquet as pq

    longest = max(map(len, numbers.values()), default=0)
    arrays = []
    for values in numbers.values():
        plain = np.asarray(values)
        if plain.dtype == np.float16:
            plain = plain.astype(np.float32)
        array = pa.array(plain)
        if len(array) < longest:
            array = pa.concat_arrays([array, pa.nulls(longest - len(array), array.type)])
        arrays.append(array)
    whole = pa.table(dict(zip(numbers, arrays, strict=True)))
    file = io.BytesIO()
    pq.write_table(whole.replace_schema_metadata(dict(facts)), file)
    return file.getvalue()
