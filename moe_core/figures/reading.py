"""What the figures' readers share: histories within the visible range, the probe's snapshots, what the viewer chose.

A source is anything with the methods of a run. It may carry `options`, what a person chose on the page beside run and
layer (an expert, sizes), and `others`, the runs to compare with; a plain run carries neither.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from moe_core.figures.tiles import gestures, probe_at
from moe_core.schema import AUTOBALANCE

Span = tuple[float, float] | None
Read = Callable[[Any, int, int | None, Span, int | None], dict[str, Any]]


def over_time(source: Any, stat: str, layer: int, span: Span, bins: int | None) -> tuple[Any, Any]:
    """A history within the visible range, with a step to either side so that lines reach the edges."""
    first = None if span is None else max(1, math.floor(span[0]) - 1)
    last = None if span is None else math.ceil(span[1]) + 1
    steps, values = source.history(stat, layer, first=first, last=last, bins=bins)
    return steps, values


def common(source: Any, step: int | None, span: Span) -> dict[str, Any]:
    """What every chart over time takes beside its values. A line marks a hand's change: autobalance's own would cover all."""
    changes = tuple(change for change in gestures(source.knob_changes()) if change.who != AUTOBALANCE)
    return {"span": span, "cursor": step, "changes": changes}


def read_probe(source: Any, layer: int, step: int | None) -> dict[str, Any]:
    """A layer's experts and gates of the last probe snapshot; of none, zero tokens."""
    found = probe_at(source, step)
    when, arrays = (None, {}) if found is None else found
    none = np.zeros((0, 1), np.uint8)
    return {
        "experts_NK": arrays["experts"][layer] if found else none,
        "gates_NK": arrays["gates"][layer] if found else none.astype(np.float16),
        "num_experts": source.config.num_experts,
        "step": when,
    }


def label_of_probe(probe: dict[str, Any]) -> Any:
    """The class (or the domain) of each probe token, or None."""
    return next((probe[name] for name in ("class", "domain") if name in probe), None)
