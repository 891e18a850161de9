"""What the figures' readers share: histories within the visible range, the probe's snapshots, what the viewer chose.

A source is anything with the methods of a run. It may carry `options`, what a person chose on the page beside run and
layer (an expert, sizes), and `others`, the runs to compare with; a plain run carries neither.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from moe_core.figures.tiles import by_hand, last_step, probe_at
from moe_core.figures.turns import Turned
from moe_core.schema import AUTOBALANCE, Knobs, meta_of

Span = tuple[float, float] | None
ROWS = 4  # knobs drawn over time, those turned last
Read = Callable[[Any, int, int | None, Span, int | None], dict[str, Any]]


def over_time(source: Any, stat: str, layer: int, span: Span, bins: int | None) -> tuple[Any, Any]:
    """A history within the visible range, with a step to either side so that lines reach the edges."""
    first = None if span is None else max(1, math.floor(span[0]) - 1)
    last = None if span is None else math.ceil(span[1]) + 1
    steps, values = source.history(stat, layer, first=first, last=last, bins=bins)
    return steps, values


def common(source: Any, step: int | None, span: Span) -> dict[str, Any]:
    """What every chart over time takes beside its values. A line marks a hand's change."""
    return {"span": span, "cursor": step, "changes": tuple(by_hand(source))}


def read_knobs(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    """The knobs turned last, the latest first, each value with the step from which it acted; autobalance's own too."""
    found: dict[str, dict[int, Any]] = {}
    own: set[str] = set()
    done = [change for change in source.knob_changes() if change.step is not None]
    for change in sorted(done, key=lambda change: (change.step, change.id)):
        acted = found.pop(change.name, {1: getattr(source.started_knobs, change.name)})
        acted[change.step] = change.value  # of two turns in one step the last acted
        found[change.name] = acted
        own |= {change.name} if change.who == AUTOBALANCE else set()
    turned = {
        name: Turned(list(acted), list(acted.values()), meta_of(Knobs, name).scale != "linear", name in own)
        for name, acted in list(found.items())[: -ROWS - 1 : -1]
    }
    return {"turned": turned, "last": last_step(source) or None, "span": span, "cursor": step}


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
