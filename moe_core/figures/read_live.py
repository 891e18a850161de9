"""How the charts of the Live page read their numbers. Shapes: n steps, E experts."""

from typing import Any

import numpy as np

from moe_core.figures import bars
from moe_core.figures.reading import (
    RECENT,
    common,
    comparable_at,
    experts_of,
    of_those_on,
    over_time,
    recent_share,
    rows_until,
    share_at_end,
    step_of,
)
from moe_core.runs.source import At, Source


def read_selection_share(source: Source, at: At) -> dict[str, Any]:
    steps, share_nE = over_time(source, "selection_share", at)
    shares = {"steps": steps, "share_nE": of_those_on(source, at.layer, steps, share_nE)}
    return shares | {"now_E": share_at_end(source, at.layer, at.span).tolist()} | common(source, at)


def read_balance(source: Source, at: At) -> dict[str, Any]:
    stat = source.description.balance
    steps, cv_load = over_time(source, stat, at)
    # Thinning picks rows by their steps alone, so both have the same x.
    _, cv_importance = over_time(source, "cv_importance", at)
    lines = {"steps": steps, "cv_load": cv_load, "cv_importance": cv_importance} | common(source, at)
    return lines if stat == "cv_load" else lines | {"counted": "selections"}


def read_balance_now(source: Source, at: At) -> dict[str, Any]:
    last, counts_only = step_of(source, at), source.description.balance == "cv_counts"
    none = np.full((1, experts_of(source, at.layer)), np.nan)

    def shares_of(stat: str) -> tuple[np.ndarray, np.ndarray]:
        steps, values_nE = rows_until(source, stat, at.layer, last, RECENT)
        return steps, of_those_on(source, at.layer, steps, bars.shares(values_nE)) if len(steps) else none

    steps, load_nE = shares_of("counts" if counts_only else "load")
    _, importance_nE = shares_of("importance")
    return {
        "load_E": load_nE[-1],
        "importance_E": importance_nE[-1],
        "lately": (bars.highest(load_nE), bars.highest(importance_nE)),
        "step": int(steps[-1]) if len(steps) else None,
    } | ({"counted": "selections"} if counts_only else {})


def read_loss(source: Source, at: At) -> dict[str, Any]:
    """Training and held-out in the run's own unit, such as bits per byte."""
    loss = source.description.loss
    steps, train = over_time(source, source.description.training_loss, at)
    evals = [(e.step, e.metrics[loss.metric]) for e in source.evals() if loss.metric in e.metrics]
    return {
        "steps": steps,
        "train": np.asarray(train) / loss.nats,
        "heldout_steps": np.array([step for step, _ in evals], np.int64),
        "heldout": np.array([value for _, value in evals], np.float64),
        "unit": loss.unit,
        "comparable": comparable_at(source, [step for step, _ in evals]),
    } | common(source, at)


def read_groups(source: Source, at: At) -> dict[str, Any]:
    last = step_of(source, at)
    share_E = of_those_on(source, at.layer, [last], recent_share(source, at.layer, last)[None])[0]
    return {"share_E": share_E, "groups": source.description.layers[at.layer].groups, "step": last or None}
