"""The statistics that follow from importance, load and counts: computed when read, in this one place.

An expert that a person switched off is not a failure of the gate: each statistic is over the experts that are on at its
step.

Shapes: N steps, E experts. `load_NE` is (N, E). All are finite, also for E = 1 and where one expert has everything.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moe_core.schema import BALANCED, DEAD_AFTER, STATS, Description, KnobValues, switched_off

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
FOR_EVER = 2**62  # the step at which an expert that is still off comes back
OF_RANKS = {stat.name for stat in STATS if stat.ranks}
OF_DEVICES = {name for name in OF_RANKS if name.endswith("_devices")}


def cv(x_NE: Array) -> Array:
    """Coefficient of variation over the experts, population variance. (N,) (Shazeer 2017, section 4)"""
    return np.sqrt(cv_squared(x_NE))


def cv_squared(x_NE: Array) -> Array:
    return np.asarray(x_NE.var(axis=1) / (x_NE.mean(axis=1) ** 2 + 1e-10))


def share(x_NE: Array) -> Array:
    """Each expert's part of the whole; 0 where there is nothing to share."""
    total = x_NE.sum(axis=1, keepdims=True)
    return x_NE / np.where(total > 0, total, 1.0)


def max_over_mean(x_NE: Array) -> Array:
    mean = x_NE.mean(axis=1)
    return np.asarray(x_NE.max(axis=1) / np.where(mean > 0, mean, 1.0))


def min_over_mean(x_NE: Array) -> Array:
    mean = x_NE.mean(axis=1)
    return np.asarray(x_NE.min(axis=1) / np.where(mean > 0, mean, 1.0))


def entropy(x_NE: Array) -> Array:
    """Entropy of the shares in nats. 0 log 0 is 0."""
    p_NE = share(x_NE)
    return np.asarray(-(p_NE * np.log(np.where(p_NE > 0, p_NE, 1.0))).sum(axis=1))


def normalised_entropy(x_NE: Array) -> Array:
    """1 even, 0 one expert has it all; a single expert is even."""
    experts = x_NE.shape[1]
    return entropy(x_NE) / np.log(experts) if experts > 1 else np.ones(len(x_NE))


# A statistic that is not stored: the stored one that it follows from, and how.
DERIVED: dict[str, tuple[str, Callable[[Array], Array]]] = {
    "importance_loss": ("importance", cv_squared),
    "load_loss": ("load", cv_squared),
    "cv_importance": ("importance", cv),
    "cv_load": ("load", cv),
    "cv_counts": ("counts", cv),
    "max_over_mean_load": ("load", max_over_mean),
    "max_over_mean_devices": ("counts", max_over_mean),  # of counts by device: device_statistic()
    "max_vio": ("counts", lambda x_NE: max_over_mean(x_NE) - 1),
    "min_vio": ("counts", lambda x_NE: min_over_mean(x_NE) - 1),
    "effective_experts": ("counts", lambda x_NE: np.exp(entropy(x_NE))),
    "entropy": ("counts", normalised_entropy),
    "utilisation": ("counts", lambda x_NE: share(x_NE) * x_NE.shape[1]),
    "selection_share": ("counts", share),
    "importance_share": ("importance", share),
}


def source_of(stat: str) -> str:
    """The stored statistic from which this one follows: itself, if it is stored."""
    return DERIVED[stat][0] if stat in DERIVED else stat


def measured_by(description: Description, stat: str) -> bool:
    """Whether a run's record has a statistic, or the stored one that it follows from. One of devices also needs several ranks."""
    measures = description.measures
    return source_of(stat) in measures and (stat not in OF_DEVICES or "sent_bytes" in measures)


def derive(stat: str, stored: Mapping[str, NDArray[np.floating]], on_NE: Flags | None = None) -> Array:
    """The derived statistic of one layer, (N,) or (N, E), from rows of importance, load and counts, each (N, E).

    on_NE: which experts are switched on, None being all. Only they count; the share of one that is off is 0.
    """
    source, formula = DERIVED[stat]
    x_NE = np.asarray(stored[source], np.float64)
    if on_NE is None or on_NE.all():
        return formula(x_NE)
    result = formula(x_NE)  # for its shape
    for on_E in np.unique(on_NE, axis=0):  # few: each turn of `off` makes one
        rows_N = (on_NE == on_E).all(axis=1)
        values = formula(x_NE[rows_N][:, on_E])
        if result.ndim == 1:
            result[rows_N] = values
        else:
            result[rows_N] = 0.0
            result[np.ix_(rows_N, on_E)] = values
    return result


def held_out_balance(counts_LE: NDArray[np.floating]) -> dict[str, Array]:
    """The balance of an evaluation's selections, (L,) by name, as HELD_OUT_BALANCE has it. NaN: an expert that is off."""
    counts_LE = np.asarray(counts_LE, np.float64)
    stored, on_LE = {"counts": np.nan_to_num(counts_LE)}, ~np.isnan(counts_LE)
    on_LE |= ~on_LE.any(axis=1, keepdims=True)  # where all were off, none got anything
    return {
        "cv_held_out": derive("cv_counts", stored, on_LE),
        "max_over_mean_held_out": derive("max_vio", stored, on_LE) + 1,
    }


def chance_cv(counts_E: NDArray[np.floating]) -> float:
    """The CV of so few selections by chance alone, had each gone to any expert alike: of 30 over 8 experts it is 0.48."""
    counts_E = np.asarray(counts_E, np.float64)
    on, selections = int((~np.isnan(counts_E)).sum()), float(np.nansum(counts_E))
    return math.sqrt((on - 1) / selections) if selections else math.inf


def too_few(counts_E: NDArray[np.floating]) -> bool:
    """Whether chance alone could make so few selections look uneven."""
    return chance_cv(counts_E) > BALANCED / 2


def mean_balance(counts_LE: NDArray[np.floating] | None) -> dict[str, float]:
    """held_out_balance() over all layers; nothing of an evaluation without selections."""
    if counts_LE is None:
        return {}
    return {name: float(layers.mean()) for name, layers in held_out_balance(counts_LE).items()}


# Experts that are dealt over devices


class Deal(NamedTuple):
    """How a run is trained from step `first` on: by `data` groups of `expert` ranks. A group has all experts, each of its ranks
    as many, consecutive ones; each rank has as many of the batch's tokens. (training/devices.py)"""

    first: int
    data: int = 1
    expert: int = 1

    @property
    def ranks(self) -> int:
        return self.data * self.expert


def deal_at(deals: Sequence[Deal], step: int) -> Deal:
    """The one that a step was trained under: of one rank if none is known."""
    return next((deal for deal in reversed(deals) if deal.first <= step), Deal(1))


def device_statistic(stat: str, counts_NE: Array, steps_N: NDArray[np.integer], deals: Sequence[Deal]) -> Array:
    """(N,) a statistic of OF_DEVICES, by the experts of each device; of several groups, devices with the same experts as one.

    NaN where each device has all experts, and where nothing was selected. An expert that is off counts: its device has less to do.
    """
    result, E = np.full(len(counts_NE), np.nan), counts_NE.shape[1]
    for at, deal in enumerate(deals):
        end = deals[at + 1].first if at + 1 < len(deals) else FOR_EVER
        if deal.expert > 1 and E % deal.expert == 0:
            rows_N = (deal.first <= steps_N) & (steps_N < end) & (counts_NE.sum(axis=1) > 0)
            by_device = counts_NE[rows_N].reshape(-1, deal.expert, E // deal.expert).sum(axis=2)
            result[rows_N] = DERIVED[stat][1](by_device)
    return result


# Experts that are off


class Off(NamedTuple):
    """An expert of a layer, both from 0, that a person switched off: from step `first` on, until it is on again at `end`.

    dead: the step from which the stored number of dead experts counts it; that number knows selections only.
    """

    layer: int
    expert: int
    first: int
    end: int
    dead: int


# (layer, first, last) -> counts (n, E) of the recorded steps among those
Counts = Callable[[int, int, int], NDArray[Any]]


def off_spans(experts_L: Sequence[int], started: KnobValues, changes: Sequence[Any], counts: Counts) -> tuple[Off, ...]:
    """Which experts were switched off, and when, by the knob `off`; nothing of a run without that knob.

    experts_L: how many experts each layer has; changes: as they took effect; counts: reads a layer's selections of a span
    of steps.
    """
    off = str(getattr(started, "off", ""))
    if not off and not any(change.name == "off" for change in changes):
        return ()
    turned = {0: off}
    for change in sorted((c for c in changes if c.name == "off" and c.step is not None), key=lambda c: (c.step, c.id)):
        turned[change.step] = str(change.value)
    spans, since = list[Off](), dict[tuple[int, int], int]()
    for step, text in (turned | {FOR_EVER: ""}).items():
        now = {(layer, expert) for layer, named in enumerate(switched_off(experts_L, text)) for expert in named}
        for layer, expert in sorted(since.keys() - now):
            first = since.pop((layer, expert))
            spans.append(Off(layer, expert, first, step, dead_from(expert, first, counts, layer)))
        since |= dict.fromkeys(now - since.keys(), step)
    return tuple(spans)


def dead_from(expert: int, first: int, counts: Counts, layer: int) -> int:
    """When an expert that gets nothing from step `first` on has been without a token for DEAD_AFTER steps."""
    begin = max(1, first - DEAD_AFTER)
    if first <= 1:
        return DEAD_AFTER
    taken = np.flatnonzero(counts(layer, begin, first - 1)[:, expert])
    return (begin + int(taken[-1]) if len(taken) else begin - 1) + DEAD_AFTER


def on_mask(spans: Sequence[Off], layer: int, steps_N: NDArray[np.integer], num_experts: int) -> Flags | None:
    """(N, E) which experts of a layer are on in these steps; None if all always are. In a step with all
    off, all count as on, since a gate needs one."""
    own = [off for off in spans if off.layer == layer]
    if not own:
        return None
    on_NE = np.ones((len(steps_N), num_experts), bool)
    for off in own:
        on_NE[(off.first <= steps_N) & (steps_N < off.end), off.expert] = False
    return on_NE | ~on_NE.any(axis=1, keepdims=True)


def dead_off(spans: Sequence[Off], layer: int, steps_N: NDArray[np.integer]) -> Array:
    """(N,) how many of the experts that were stored as dead are switched off."""
    own = [off for off in spans if off.layer == layer]
    return np.array([sum(max(o.first, o.dead) <= step < o.end for o in own) for step in steps_N], np.float64)
