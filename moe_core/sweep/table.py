"""The table that a sweep ends in: a row a cell, mean and spread over its seeds, beside what no figure can exceed."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from moe_core.schema import BALANCE, METRICS, STAT
from moe_core.sweep.paper import paper_row
from moe_core.sweep.plan import Sweep
from moe_core.sweep.standing import Result


def measures(task: str) -> dict[str, str]:
    """What a row says about its cell, held-out metrics first: name and label."""
    held_out = {name: f"{label}, {unit}" if unit else label for name, label, unit, _ in METRICS[task]}
    return held_out | {name: STAT[name].label for name in BALANCE}


def ceilings(num_experts: int, k: int) -> dict[str, float]:
    """The highest that each balance figure can be: k experts have all the load, and one of them all the gate weight."""
    return {
        "cv_importance": math.sqrt(num_experts - 1),
        "cv_load": math.sqrt(num_experts / k - 1),
        "max_over_mean_load": num_experts / k,
    }


def rows(sweep: Sweep, found: Sequence[Result]) -> list[dict[str, Any]]:
    """One row a cell: its knobs; the mean over its finished runs of each measure and, under NAME_spread, their sample
    standard deviation (None of one run); ceilings under NAME_ceiling; the paper's Table 6 under paper_NAME where the
    weights are its; how many runs there are and count; their ids.
    """
    table = []
    for i, cell in enumerate(sweep.plan.cells):
        own = [result for result in found if result.job.cell == i]
        counted = [result.ended for result in own if result.ended]
        knobs = own[0].job.knobs
        row: dict[str, Any] = {**cell, "runs": len(own), "finished": len(counted)}
        for name in measures(sweep.plan.config.task):
            values = [ended["eval"].get(name) if name not in BALANCE else ended.get(name) for ended in counted]
            values = [float(value) for value in values if value is not None]
            row[name] = statistics.fmean(values) if values else None
            row[f"{name}_spread"] = statistics.stdev(values) if len(values) > 1 else None
        row |= {f"{name}_ceiling": value for name, value in ceilings(sweep.plan.config.num_experts, knobs.k).items()}
        row |= {f"paper_{name}": value for name, value in (paper_row(knobs) or {}).items()}
        table.append({**row, "ids": [result.job.run_id for result in own]})
    return table


def figure(value: float) -> str:
    """A measure in a table: three decimals below 10, two above."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}"
