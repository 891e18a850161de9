"""Figures and numbers of a run as files, without a browser: PNG, SVG, PDF, HTML, CSV and Parquet.

The same run, figure and version give the same bytes. Each file says which run, step and changes it shows.
"""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from moe_core.export.files import folder_for, write
from moe_core.export.look import Look, check, laid_out, spec_of, undrawable
from moe_core.export.numbers import Table, cell, cells, columns, finished, parquet, statistics, table
from moe_core.export.panels import encoded, panels
from moe_core.export.stamp import Facts, caption_of, facts_of, figure_facts, smoothed_facts, sweep_facts
from moe_core.export.web import page
from moe_core.figures.catalog import FIGURES, shows
from moe_core.figures.read_sweep import SweepResults
from moe_core.runs import script_of
from moe_core.runs.source import At, Record, Source
from moe_core.schema import RENAMED

PICTURES = ("png", "svg", "pdf", "html")
NUMBERS = ("csv", "parquet")
FORMATS = (*PICTURES, *NUMBERS)
USUAL = ("csv", "html")
Progress = Callable[[int, int], None]  # called with how many files are done, and of how many; may raise to stop

__all__ = ["FORMATS", "Look", "cell", "chosen", "export", "rendered", "statistics", "table"]


def export(
    run: Record | SweepResults,
    out: str | os.PathLike[str],
    formats: Iterable[str] = USUAL,
    figures: Iterable[str] | None = None,
    look: Look = Look(),  # noqa: B008 - frozen
    progress: Progress = lambda done, of: None,
    columns: int = 0,
) -> list[Path]:
    """Write figures (None: all that the run can show) into a folder, and return the paths of the files.

    run: a run, or what sources.py opens: a run with others to compare, or a sweep. Formats of numbers also write all statistics,
    export.json, which says where each table is from, and for a run script.txt, its knob changes as `train --script` takes them.
    columns: 0 for a picture each, else one file of all figures as panels, so many beside each other.
    ValueError for an unknown format, figure or theme, a layer or size out of range, a file where the folder should be, and,
    after all else was written, a figure that cannot be drawn.
    """
    formats, names = tuple(dict.fromkeys(formats)), chosen(run, figures)
    for name in formats:
        if name not in FORMATS:
            raise ValueError(f"unknown format {name!r}; there are: {', '.join(FORMATS)}")
    check(run, look)
    tables = [f for f in formats if f in NUMBERS]
    whole = [(f"panels.{f}", panels(run, names, f, look, columns)) for f in formats if columns and f in PICTURES]
    each = tables if columns else formats
    folder = folder_for(out)
    of = len(names) * len(each) + len(tables) + len(whole)
    files: list[Path] = [write(folder / name, content) for name, content in whole]
    stamps: dict[str, Facts] = {}
    undrawn: dict[str, str] = {}
    for name in names:
        for format in each:
            progress(len(files), of)
            try:
                drawn = rendered(run, name, format, look)
            except Exception as error:  # whatever a record may hold, the other figures are written
                undrawn.setdefault(name, undrawable(name, error))
                continue
            files.append(write(folder / f"{name}.{format}", drawn))
            if format in NUMBERS:
                stamps[files[-1].name] = figure_facts(run, name, look)
    if tables:
        numbers = cells(run) if isinstance(run, SweepResults) else statistics(run)
        facts = sweep_facts(run, "Statistics") if isinstance(run, SweepResults) else facts_of(run, "Statistics")
        for format in tables:
            content = table(numbers) if format == "csv" else parquet(numbers, facts)
            files.append(write(folder / f"statistics.{format}", content))
            stamps[files[-1].name] = facts
        files.append(write(folder / "export.json", json.dumps(stamps, indent=1, ensure_ascii=False) + "\n"))
        if not isinstance(run, SweepResults) and run.trainable:
            files.append(write(folder / "script.txt", script_of(run)))
    progress(of, of)
    if undrawn:
        raise ValueError(f"{'; '.join(undrawn.values())}. All else was written to {folder}")
    return files


def rendered(run: Source | SweepResults, name: str, format: str, look: Look) -> bytes:
    """One figure in one format."""
    facts = figure_facts(run, name, look)
    if format in NUMBERS:
        numbers = numbers_of(run, name, look)
        return table(numbers).encode() if format == "csv" else parquet(numbers, facts)
    spec, zoom = spec_of(run, name, look)
    if "smooth" in spec["layout"]["meta"]:
        facts |= smoothed_facts(look.smooth)
    if format == "html":
        return page(name, spec, facts, zoom, caption_of(facts) if look.caption else "").encode()
    return encoded(laid_out(spec, zoom, name, look, caption_of(facts)), format, facts, look.scale, zoom)


def numbers_of(run: Source | SweepResults, name: str, look: Look) -> Table:
    """The numbers behind a figure."""
    if isinstance(run, SweepResults):
        measure = "cv_load" if name == "sweep_balance" else run.description.metrics[0].name
        return finished(run) if name == "sweep_pareto" else cells(run, measure)
    entry = FIGURES[name]
    return columns(entry.read(run, At(look.layer, look.step)))


def chosen(run: Source | SweepResults, figures: Iterable[str] | None) -> list[str]:
    """The names of the figures asked for (earlier names replaced), or of all that the run, comparison or sweep can show. ValueError
    for one that it cannot show."""
    there_are = [name for name in FIGURES if shows(run, name)]
    names = there_are if figures is None else list(dict.fromkeys(RENAMED.get(name, name) for name in figures))
    for name in names:
        if name not in there_are:
            compares = name in FIGURES and FIGURES[name].page == "compare"
            hint = ", which compares runs: name others with --with" if compares else ""
            raise ValueError(f"no figure {name!r} of {run.id}{hint}; there are: {', '.join(there_are)}")
    return names
