"""How the charts of the gate's choices read their numbers, and in which runs there is something to show.

Shapes: n steps.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from moe_core.figures.paper import Array
from moe_core.figures.reading import Span, common, on_at, over_time
from moe_core.schema import STRATEGIES, experts_per_token, measured_in


def read_margin(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    steps, margin = over_time(source, "router_margin", layer, span, bins)
    # Thinning picks rows by their steps alone, so both have the same x.
    _, margin_p10 = over_time(source, "router_margin_p10", layer, span, bins)
    return {"steps": steps, "margin": margin, "margin_p10": margin_p10} | common(source, step, span)


def read_confidence(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    steps, confidence = over_time(source, "confidence", layer, span, bins)
    even = chosen_in(source, steps) / on_at(source, layer, steps).sum(axis=1)
    return {"steps": steps, "confidence": confidence, "even": even} | common(source, step, span)


def read_bias_effect(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    steps, overlap = over_time(source, "bias_effect", layer, span, bins)
    return {"steps": steps, "overlap": overlap} | common(source, step, span)


def chosen_in(source: Any, steps: Array | Sequence[int]) -> Array:
    """(n,) the experts that each token was sent to in these steps, as the knobs stood in each."""
    knobs, turns = source.started_knobs, []
    counts = [experts_per_token(source.config, knobs)]
    for change in source.knob_changes():
        if change.step is not None and change.name in ("k", "k_primary"):
            knobs = replace(knobs, **{change.name: change.value})
            turns.append(change.step)
            counts.append(experts_per_token(source.config, knobs))
    return np.array(counts, np.float64)[np.searchsorted(turns, steps, side="right")]


def measures(source: Any, stat: str) -> bool:
    """Whether a run's record has a statistic: one of an earlier version has fewer."""
    return stat in measured_in(source.layout)


def ever(source: Any, flag: str) -> bool:
    """Whether any strategy that the run was trained with has this flag of schema.Strategy."""
    turned = [c.value for c in source.knob_changes() if c.name == "strategy" and c.step is not None]
    names = [source.started_knobs.strategy, *turned]
    return any(getattr(STRATEGIES[name], flag) for name in names if name in STRATEGIES)
