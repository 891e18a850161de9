"""How the charts of a training by several ranks are read from a run."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from moe_core.figures.paper import Array
from moe_core.figures.ranks import Counted
from moe_core.figures.reading import common, experts_of, over_time, step_of
from moe_core.runs.source import At, Source
from moe_core.runs.statistics import Deal, deal_at
from moe_core.schema import WINDOW

MOST = 256  # ranks


def rows_of(array: Any, layers: int) -> Array | None:
    """(L, R, R) the rows between ranks as a snapshot has them; None of a file of somebody else's that has something else there, or of more
    ranks than a chart has room for."""
    rows_LRR = np.asarray(array)
    whole = rows_LRR.dtype.kind in "iu" and rows_LRR.ndim == 3
    fits = whole and len(rows_LRR) == layers and 0 < rows_LRR.shape[1] == rows_LRR.shape[2] <= MOST
    return rows_LRR if fits and (rows_LRR >= 0).all() and float(rows_LRR.sum(dtype=np.float64)) < 2**53 else None


def read_rows(source: Source, at: At) -> dict[str, Any]:
    """The rows of the last full snapshot at or before the step that is shown; no ranks where it has none."""
    snapshot, shown = source.snapshot(step=at.step, kind="full"), step_of(source, at)
    missing = alone_text(source.deals, shown) or "not counted yet"
    none = {"rows_to_RR": np.zeros((0, 0), np.int64), "counted": None, "missing": missing, "step": None}
    if snapshot is None or "rows_between_ranks" not in snapshot[1]:
        return none
    step, rows_LRR = int(snapshot[0]), rows_of(snapshot[1]["rows_between_ranks"], len(source.description.layers))
    if rows_LRR is None:
        return none
    deal, first = deal_at(source.deals, step), max(1, step - WINDOW + 1)
    # How the ranks share the experts is known from the deal; a record that does not say it has only the numbers.
    known = deal.ranks == rows_LRR.shape[1]
    dealt = deal.first if known and deal.first > first else 0
    return {
        "rows_to_RR": rows_LRR[at.layer],
        "group": deal.expert if known else rows_LRR.shape[1],
        "counted": Counted(first, step, dealt),
        "step": step,
    }


def alone_text(deals: Sequence[Deal], step: int) -> str:
    """Which steps near this one ranks trained, in a sentence, if one process trained this; else ""."""
    if not step or deal_at(deals, step).ranks > 1:
        return ""
    ends = [later.first - 1 for deal, later in pairwise(deals) if deal.ranks > 1 and later.first <= step]
    begins = [deal.first for deal in deals if deal.ranks > 1 and deal.first > step]
    near = f"ranks up to step {ends[-1]:,}" if ends else f"ranks from step {begins[0]:,} on" if begins else ""
    return "; ".join(filter(None, ("one process at this step", near)))


def read_load(source: Source, at: At) -> dict[str, Any]:
    rows, E = read_rows(source, at), experts_of(source, at.layer)
    deal = deal_at(source.deals, rows["step"] or 0)
    known = deal.ranks == len(rows["rows_to_RR"]) and E % deal.expert == 0
    return rows | {"experts": E if known else 0}


def read_device_balance(source: Source, at: At) -> dict[str, Any]:
    steps, devices = over_time(source, "max_over_mean_devices", at)
    # Thinning picks rows by their steps alone, so both have the same x.
    _, of_experts = over_time(source, "max_vio", at)
    shown = deal_at(source.deals, step_of(source, at))
    return {
        "steps": steps, "devices": devices, "of_experts": of_experts + 1,
        "group": shown.expert, "groups": shown.data, "drops": drops(source),
    } | common(source, at)  # fmt: skip


def drops(source: Source) -> bool:
    """Whether the run ever had a capacity, beyond which selections are dropped."""
    turned = [change.value for change in source.knob_changes() if change.name == "capacity_factor" and change.step]
    return any(bool(value) for value in (getattr(source.started_knobs, "capacity_factor", 0), *turned))
