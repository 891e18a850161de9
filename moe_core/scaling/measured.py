"""One device, measured: what a recorded run says of it, or a person.

Shapes: S steps, L layers, E experts.
"""

import math
from typing import NamedTuple

import numpy as np

from moe_core.runs import Run
from moe_core.runs.estimate import WARM, chosen, shape_of
from moe_core.runs.statistics import deal_at
from moe_core.runs.turns import as_knobs
from moe_core.scaling.loads import Rows, by_chance
from moe_core.schema import Config, Knobs, reads, value_text

RECENT = 200  # last steps, of which the time's median and the choices are taken
LEAST = 20
# Knobs whose turn changes how long a step takes or how tokens choose. The weights of losses do so slowly.
MATTERS = ("k", "k_primary", "strategy", "speed_limit", "off", "noise", "noise_primary", "capacity_factor", "weigh")


class OneDevice(NamedTuple):
    """seconds: of a step. shape: widths of a row and of the answer. rows_SLE: the rows of each expert in single steps. recorded: steps
    that were recorded, 0 if the choices are by chance. as_rank: whether a rank of torchrun took that time, which packs what it would send.
    device: its kind. about: where the figures come from, in words."""

    config: Config
    knobs: Knobs
    shape: tuple[int, int]
    seconds: float
    rows_SLE: Rows
    recorded: int
    as_rank: bool
    device: str
    about: str


def measured_run(run: Run) -> OneDevice:
    """What a run of one process or rank says. StoreError or ValueError for a run that says nothing of one device's time."""
    config, (_, last) = run.config, run.steps()
    deal = deal_at(run.deals, last)
    if deal.ranks > 1:
        raise ValueError(
            f"run {run.id} was trained by {deal.ranks} ranks; name one that a single process or rank trained"
        )
    knobs = as_knobs(run.knobs_at(last))
    if knobs.speed_limit:
        raise ValueError(
            f"run {run.id} is held to {value_text(knobs.speed_limit)} steps/s, so that its steps say nothing of its device; "
            "set speed_limit=0 and train on"
        )
    turned = max((c.step or 0 for c in run.knob_changes() if c.name in MATTERS), default=0)
    # The step of a turn may have waited for the speed limit that it lifts.
    first = max(last - RECENT + 1, WARM + 1, turned + 1, deal.first)
    if last - first + 1 < LEAST:
        raise ValueError(
            f"run {run.id} must have {LEAST} steps after its first {WARM} and after the last turn of a knob that changes a step's "
            f"time, it has {max(0, last - first + 1)}; train on"
        )
    seconds = float(np.median(run.history("seconds", first=first)[1]))
    counts_LSE = [run.history("counts", layer, first=first)[1] for layer in range(config.layers)]
    kind = str(run.facts.get("device", "cpu")).split(":")[0]
    rows_SLE = np.stack(counts_LSE, 1).astype(np.float64)
    features, classes = shape_of(config)
    if not (0 < seconds < math.inf and (rows_SLE >= 0).all() and (rows_SLE <= config.tokens).all()):
        raise ValueError(f"run {run.id} says of its steps what cannot be: their seconds or counts; name another run")
    sessions = run.sessions()
    as_rank = "ranks" in (sessions[-1] if sessions else run.facts)
    return OneDevice(
        config,
        knobs,
        (len(run.labels.get("feature", ())) or features, len(run.labels.get("class", ())) or classes),
        seconds,
        np.minimum(rows_SLE, capacity(config, knobs)),
        len(rows_SLE),
        as_rank,
        kind,
        f"run {run.id}, median of its last {len(rows_SLE)} steps on one device ({kind}){', as one rank' if as_rank else ''}",
    )


def measured_by_hand(config: Config, knobs: Knobs, seconds: float) -> OneDevice:
    """What a person says of one device. Tokens choose by chance. Both settings must have been checked."""
    rows_SLE = by_chance(config.tokens, config.num_experts, config.layers, chosen(config, knobs))
    return OneDevice(
        config,
        knobs,
        shape_of(config),
        seconds,
        rows_SLE,
        0,
        False,
        "cpu",
        "of the text task on one device",
    )


def capacity(config: Config, knobs: Knobs) -> float:
    """Most rows that an expert takes of a batch; the counts of a record are those before any drop."""
    if not knobs.capacity_factor or not reads(config, knobs.strategy, "capacity_factor"):
        return math.inf
    fair = chosen(config, knobs) * config.tokens / config.num_experts
    return min(config.tokens, math.ceil(round(knobs.capacity_factor * fair, 9)))
