"""Figures and numbers of a run as files: CSV for spreadsheets and scripts, HTML for a browser without a network.

The same run gives the same bytes. A file appears whole or not at all.
"""

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe_core.figures.catalog import FIGURES
from moe_core.figures.theme import THEMES
from moe_core.schema import STATS

FORMATS = ("csv", "html")
SIZE = (1000, 500)
POINTS = 2000  # points of a line in HTML; CSV has every step


def export(
    run: Any,
    out: str | os.PathLike[str],
    formats: Iterable[str] = FORMATS,
    figures: Iterable[str] | None = None,
    layer: int = 0,
    theme: str = "light",
) -> list[Path]:
    """Writes the figures (None: all of the run's task) and, with CSV, statistics.csv into a folder; gives the files' paths.

    run: anything with the read methods of a run. ValueError for a format, figure, layer or theme that there is not, and
    for a file where the folder should be.
    """
    folder = Path(out)
    formats, names = tuple(formats), chosen(run, figures)
    for asked, there_are, what in ((formats, FORMATS, "format"), ((theme,), tuple(THEMES), "theme")):
        for name in asked:
            if name not in there_are:
                raise ValueError(f"unknown {what} {name!r}; there are: {', '.join(there_are)}")
    if not 0 <= layer < run.config.layers:
        raise ValueError(f"layer must be between 0 and {run.config.layers - 1}, got {layer}")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder, or move the file away")
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    for name in names:
        entry = FIGURES[name]
        if "csv" in formats:
            numbers = columns(entry.read(run, layer, None, None, None))
            files.append(write(folder / f"{name}.csv", table(numbers)))
        if "html" in formats:
            given = entry.read(run, layer, None, None, POINTS)
            if name == "balance":
                given["label_changes"] = True  # on its page the chart above names the changes
            drawn = entry.draw(**given, theme=THEMES[theme], size=SIZE)
            page = drawn.to_html(include_plotlyjs=True, full_html=True, div_id=name, config={"displaylogo": False})
            files.append(write(folder / f"{name}.html", page))
    if "csv" in formats:
        files.append(write(folder / "statistics.csv", table(statistics(run))))
    return files


def chosen(run: Any, figures: Iterable[str] | None) -> list[str]:
    """The names asked for, or all that the run's task has; ValueError for one that it has not."""
    there_are = [name for name, entry in FIGURES.items() if run.config.task in entry.tasks]
    names = there_are if figures is None else list(figures)
    for name in names:
        if name not in there_are:
            raise ValueError(f"no figure {name!r} for the {run.config.task} task; there are: {', '.join(there_are)}")
    return names


def columns(given: dict[str, Any]) -> dict[str, Sequence[Any]]:
    """The arrays that a figure is drawn from, as columns: a matrix becomes one for each of its columns, from 1."""
    found: dict[str, Sequence[Any]] = {}
    for name, values in given.items():
        if isinstance(values, np.ndarray):
            plain = values.reshape(len(values), -1) if values.ndim > 1 and values.size else values
            word = name if values.ndim == 1 else name.rsplit("_", 1)[0]
            if plain.ndim == 1:
                found[word] = plain
            else:
                found |= {f"{word}_{i + 1}": plain[:, i] for i in range(plain.shape[1])}
    changes = [change for change in given.get("changes", ()) if change.step is not None]
    if changes:
        found["change_step"] = [change.step for change in changes]
        found["change"] = [f"{change.name} {change.previous} -> {change.value}" for change in changes]
    return found


def statistics(run: Any) -> dict[str, Sequence[Any]]:
    """Every statistic of every step, layer and expert."""
    found: dict[str, Sequence[Any]] = {}
    for stat in STATS:
        for layer in range(run.config.layers if "L" in stat.shape else 1):
            steps, values = run.history(stat.name, layer)
            found.setdefault("step", np.asarray(steps))
            name = f"{stat.name}_layer{layer + 1}" if "L" in stat.shape else stat.name
            if "E" in stat.shape:
                found |= {f"{name}_expert{e + 1}": np.asarray(values)[:, e] for e in range(run.config.num_experts)}
            else:
                found[name] = np.asarray(values)
    return found


def table(numbers: dict[str, Sequence[Any]]) -> str:
    """CSV with a heading; a shorter column ends in empty cells, and so does NaN read."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([cell(name) for name in numbers])
    for row in range(max(map(len, numbers.values()), default=0)):
        writer.writerow([cell(values[row]) if row < len(values) else "" for values in numbers.values()])
    return text.getvalue()


def cell(value: Any) -> str:
    """One cell. Text that a spreadsheet would take for a formula gets an apostrophe."""
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else f"{value:.9g}"
    text = str(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def write(path: Path, text: str) -> Path:
    """Writes beside the file and renames, so that nobody ever reads half of it."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; move it away")
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_text(text, encoding="utf-8", newline="\n")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return path
