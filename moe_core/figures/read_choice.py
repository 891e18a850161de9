"""How the charts of the gate's choices read their numbers. Shapes: n steps."""

from typing import Any

from moe_core.figures.reading import chosen_in, common, on_at, over_time
from moe_core.runs.source import At, Source
from moe_core.runs.statistics import measured_by


def read_margin(source: Source, at: At) -> dict[str, Any]:
    steps, margin = over_time(source, "router_margin", at)
    shown = {"steps": steps, "margin": margin} | common(source, at)
    if not measured_by(source.description, "router_margin_p10"):
        return shown
    # Thinning picks rows by their steps alone, so both have the same x.
    return shown | {"margin_p10": over_time(source, "router_margin_p10", at)[1]}


def read_confidence(source: Source, at: At) -> dict[str, Any]:
    steps, confidence = over_time(source, "confidence", at)
    even = chosen_in(source, at.layer, steps) / on_at(source, at.layer, steps).sum(axis=1)
    return {"steps": steps, "confidence": confidence, "even": even} | common(source, at)
