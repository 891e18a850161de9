"""A sweep's table for a terminal, and as CSV."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def as_text(plan: Any, table: Sequence[dict[str, Any]]) -> str:
    """Our means and spreads, the paper's figures in brackets, the ceilings and the notes below."""
    from moe_core.schema import exact_text
    from moe_core.sweep import beside, ceiling_lines, figure, measures, notes, paper_columns

    labels, swept, apart = measures(plan), plan.swept, paper_columns(table)
    # The first two columns together name a row, or a ceiling: the cell and its runs.
    cells = columns(
        [[*swept, "runs"]]
        + [[*(exact_text(row[name]) for name in swept), f"{row['finished']} of {row['runs']}"] for row in table]
    )
    highest = ceiling_lines(plan, table)
    figures = [[figure(of[name]) if name in of else "" for name in [*labels, *apart]] for _, of in highest]
    measured = [
        [*(beside_paper(row, name) for name in labels), *(beside(row, name) for name in apart)] for row in table
    ]
    named = [[name] for name in [*cells, *(words for words, _ in highest)]]
    head, *lines = columns(
        [
            name + line
            for name, line in zip(named, [[*labels.values(), *apart.values()], *measured, *figures], strict=True)
        ]
    )
    rule = "-" * max(len(line) for line in [head, *lines])
    body = [head, rule, *lines[: len(table)], rule, *lines[len(table) :]]
    return "\n".join([*body, *notes(plan, table, "[ ]")])


def columns(lines: Sequence[Sequence[str]]) -> list[str]:
    """Rows of words, each column as wide as its widest."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]


def beside_paper(row: dict[str, Any], name: str) -> str:
    from moe_core.sweep import beside, measured

    paper = beside(row, name)
    return measured(row, name) + (f" [{paper}]" if paper else "")


def write_csv(path: Path, table: Sequence[dict[str, Any]]) -> None:
    """Write the rows, one column a field; a cell without a value is empty."""
    from moe_core.export import table as csv_text
    from moe_core.export import write

    names = dict.fromkeys(name for row in table for name in row)
    write(path, csv_text({name: [csv_value(row.get(name)) for row in table] for name in names}))


def csv_value(value: Any) -> Any:
    if isinstance(value, list):
        return " ".join(value)
    if isinstance(value, bool):
        return json.dumps(value)
    return math.nan if value is None else value
