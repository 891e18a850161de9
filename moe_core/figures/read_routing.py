"""How the charts of the Routing page read their numbers, most of them from a snapshot of the probe. Shapes: N tokens, K experts of
each, E experts, n steps."""

from typing import Any

import numpy as np

from moe_core.figures.reading import (
    bytes_of_probe,
    classes_of_probe,
    common,
    experts_of,
    on_at,
    over_time,
    pinned,
    probe_at,
    read_probe,
    rows_of_probe,
    step_of,
    tokens_of_probe,
)
from moe_core.runs.source import At, Source


def read_tokens(source: Source, at: At) -> dict[str, Any]:
    snapshot = probe_at(source, at.step)
    experts_NK = np.zeros((0, 1), np.uint8) if snapshot is None else snapshot[1]["experts"][at.layer]
    return {
        "experts_NK": experts_NK,
        "num_experts": experts_of(source, at.layer),
        "pinned": pinned(source, at.layer),
        "on_E": on_at(source, at.layer, [step_of(source, at._replace(step=None)) if snapshot is None else snapshot[0]])[
            0
        ],
        "step": None if snapshot is None else snapshot[0],
    }


def read_moved(source: Source, at: At) -> dict[str, Any]:
    """The probe's choices, and those of the snapshot before."""
    probe = read_probe(source, at.layer, at.step)
    before = probe_at(source, probe["step"] - 1) if probe["step"] else None
    before_NK = None if before is None else before[1]["experts"][at.layer]
    return {"before_NK": before_NK, "before": None if before is None else before[0]} | probe


def read_probe_text(source: Source, at: At) -> dict[str, Any]:
    return bytes_of_probe(source) | {"pinned": pinned(source, at.layer)} | read_moved(source, at)


def read_probe_tokens(source: Source, at: At) -> dict[str, Any]:
    return tokens_of_probe(source) | {"pinned": pinned(source, at.layer)} | read_moved(source, at)


def read_probe_gates(source: Source, at: At) -> dict[str, Any]:
    return classes_of_probe(source) | read_probe(source, at.layer, at.step)


def read_probe_rows(source: Source, at: At) -> dict[str, Any]:
    probe = read_probe(source, at.layer, at.step)
    shown = rows_of_probe(source, source.probe()) | classes_of_probe(source)
    return shown | {"pinned": pinned(source, at.layer)} | probe


def read_digit_images(source: Source, at: At) -> dict[str, Any]:
    probe = read_probe(source, at.layer, at.step)
    del probe["gates_NK"]
    return {"images": source.probe()["images"]} | classes_of_probe(source) | probe


def read_regions(source: Source, at: At) -> dict[str, Any]:
    inputs, probe, snapshot = source.probe(), read_probe(source, at.layer, at.step), probe_at(source, at.step)
    del probe["gates_NK"]
    any_yet = snapshot is not None
    classes = classes_of_probe(source)
    return {
        "regions_RR": snapshot[1]["regions"][at.layer] if snapshot else np.zeros((0, 0), np.uint8),
        "extent": inputs["extent"],
        "points_N2": inputs["points"] if any_yet else inputs["points"][:0],
        "pinned": pinned(source, at.layer),
        **classes | ({} if any_yet else {"labels_N": None}),
    } | probe


def read_churn(source: Source, at: At) -> dict[str, Any]:
    steps, churn_n = over_time(source, "churn", at)
    return {"steps": steps, "churn_n": churn_n, "every": source.description.churn_every} | common(source, at)
