"""Who a run is: read from what its record says of itself, or, of one that says only its Config, made from that."""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from moe_core.schema import (
    STRATEGIES,
    Column,
    Config,
    Description,
    Knobs,
    KnobValues,
    describe,
    from_dict,
    from_json,
    measured_in,
    probe_kind,
)

KNOBS = {f.name for f in fields(Knobs)}


class Identity(NamedTuple):
    """config: of a run that this version's trainer could train, else None."""

    config: Config | None
    started: KnobValues
    description: Description


def identity_of(about: Mapping[str, Any], columns: list[Column], probe: Mapping[str, Any]) -> Identity:
    """Who a run is. ValueError or the like for settings that cannot be.

    Of a run that this version could have trained the description is made anew, so that it has every knob of today. What a later
    version or another program recorded is shown as it describes itself.
    """
    measures = tuple(measured_in(columns))
    if "description" in about and not ours(about):
        description = from_json(about["description"], measures)
        widths = {(c.stat, c.layer): c.width for c in columns}
        for layer, experts in enumerate(description.experts):
            if widths.get(("counts", layer), experts) != experts:
                raise ValueError(
                    f"its layer {layer + 1} has {experts} experts, but columns of {widths['counts', layer]}"
                )
        return Identity(None, description.starts, description)
    config, started = from_dict(Config, about["config"]), from_dict(Knobs, about["knobs"])
    return Identity(config, started, describe(config, started, probe_kind(probe), measures))


def ours(about: Mapping[str, Any]) -> bool:
    """Whether a described run is one of our trainer's, with knobs and a strategy that this version knows."""
    described = about["description"]
    knobs = described["knobs"]
    return (
        described["origin"] == "trained"
        and knobs.keys() <= KNOBS
        and set(knobs["strategy"]["choices"]) <= STRATEGIES.keys()
    )


def changed_by(session: Mapping[str, Any]) -> dict[str, Any]:
    """What a session changed of the run's settings: its steps in all, and where its data lie."""
    changed: dict[str, Any] = {"steps": int(session["steps"])}
    if "data" in session:
        changed["data"] = str(session["data"])
    if "text" in session:
        changed["text"] = tuple(str(path) for path in session["text"])
    return changed


def finite(told: Any) -> float:
    value = float(told)
    if not math.isfinite(value):
        raise ValueError(f"{value} is no time")
    return value
