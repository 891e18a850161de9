"""A sweep: one training with some knobs or settings at several values and several seeds, as ordinary runs, and the table it ends in.

A sweep is a folder in the runs folder with sweep.json, its plan, written once (plan.py). Its runs lie beside it and have
its name; how far it got is read from their records (standing.py). running.py trains what is left, table.py sums it up.
"""

from moe_core.runs import StoreError
from moe_core.sweep.cost import Cost, cost, cost_here, left_of
from moe_core.sweep.paper import PAPER, PAPER_EXPERTS, PAPER_K, paper_row
from moe_core.sweep.plan import (
    SHARED,
    Cell,
    Job,
    Plan,
    Sweep,
    grid,
    jobs,
    make_plan,
    make_sweep,
    open_sweep,
    owner,
    pairs_of,
    sweep_ids,
    values_of,
)
from moe_core.sweep.running import cancel, detach, end_paused, held, run_sweep
from moe_core.sweep.standing import FAILED, TRAINS, Result, progress, result_of, results, state_of
from moe_core.sweep.table import (
    beside,
    ceiling_lines,
    ceilings,
    figure,
    has_paper,
    measured,
    measures,
    notes,
    paper_columns,
    rows,
    unread_text,
)

__all__ = [
    "FAILED",
    "PAPER",
    "PAPER_EXPERTS",
    "PAPER_K",
    "SHARED",
    "TRAINS",
    "Cell",
    "Cost",
    "Job",
    "Plan",
    "Result",
    "StoreError",
    "Sweep",
    "beside",
    "cancel",
    "ceiling_lines",
    "ceilings",
    "cost",
    "cost_here",
    "detach",
    "end_paused",
    "figure",
    "grid",
    "has_paper",
    "held",
    "jobs",
    "left_of",
    "make_plan",
    "make_sweep",
    "measured",
    "measures",
    "notes",
    "open_sweep",
    "owner",
    "pairs_of",
    "paper_columns",
    "paper_row",
    "progress",
    "result_of",
    "results",
    "rows",
    "run_sweep",
    "state_of",
    "sweep_ids",
    "unread_text",
    "values_of",
]
