"""What a run will take, before it starts: parameters, exactly; memory, speed and disk as estimates.

Each estimate is a sum of terms that the settings give, with factors fitted to short runs of one thread on a processor core
(docs/decisions.md says which, and how far off the others were). Speed is then corrected by the runs that this machine has
recorded. Shapes: T tokens, D model width, H expert width, E experts, L layers, G groups.
"""

import contextlib
import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from moe_core.runs.database import StoreError
from moe_core.runs.listing import QUERY_LIMIT, runs_folder
from moe_core.runs.machine import device_kind
from moe_core.runs.ranks import ALONE, RankCounts
from moe_core.runs.seen import SHARE
from moe_core.runs.statistics import deal_at
from moe_core.runs.store import Run
from moe_core.runs.thinning import AGES
from moe_core.runs.turns import as_knobs
from moe_core.schema import Config, Knobs, layout, stats_of_ranks

BUILT_IN = {"text": (256, 256), "digits": (64, 10)}  # features and classes of the tasks' own data
CLASSES = {"spirals": 2, "rings": 3, "checkerboard": 2, "gaussians": 6}
WARM = 5  # first steps of a run, which are slower than the rest
LEAST = 50  # steps that a run needs for its speed to count
SEEN = 20  # newest runs that are looked at for their speed,
NEWEST = 5  # and of those the ones that a correction is the median of

# Fitted (docs/decisions.md).
SECONDS = (0.003, 0.0004, 7.6e-11, 2.3e-08, 1.9e-05, 6.7e-09, 1e-07, 2e-06)  # of each of terms()
AROUND = 1.12  # evaluations, snapshots and commits take an eighth beside the steps
TORCH = 275e6  # bytes of a trainer without a model
TORCHRUN, RANK = 285e6, 150e6  # bytes of torchrun, with what its ranks share with it, and of a rank beside that
GATHERED, WRITTEN = 25, 13  # bytes a parameter: each rank's for a checkpoint, and the first rank's to write it
RECORD, CELL, CHECKPOINT = 130e3, 2.7, 87e3  # bytes: an empty record, a number in it, a checkpoint without a model
LOOKS = (
    0.0118 * SHARE
)  # a look takes a third of the probe's share of a step, and looks SHARE of the time (training/pace.py)
UNKNOWN = 0.05  # seconds of a step where nothing is known of its device
SCORES = 34  # bytes that a batch keeps for the backward pass of each token's score of each expert
PROBE, FULL = 975.0, 800.0  # bytes: a snapshot of a layer's probe, and of an expert's specialisation


class Estimate(NamedTuple):
    """What a run will take, in bytes and seconds. seconds: of one step, None where nothing is known of its device; step, probe, full:
    bytes that a step and each kind of snapshot add to the record; looks: snapshots a second while nobody watches; source: where the
    numbers come from, in words."""

    parameters: int
    memory: float
    seconds: float | None
    step: float
    probe: float
    full: float
    looks: float
    checkpoint: float
    source: str

    def disk(self, steps: int) -> float:
        """Bytes of a run of so many steps, with one checkpoint."""
        trained = steps * (self.seconds or UNKNOWN)
        probes = min(steps, kept(trained, self.looks, 1, 1 / 10))
        full = min(steps, kept(trained, self.looks / 10, 1 / 10, 1 / 60))
        return RECORD + steps * self.step + probes * self.probe + full * self.full + self.checkpoint


def kept(seconds: float, recent: float, middle: float, old: float) -> float:
    """How many snapshots a run of so many seconds keeps, taken at the rate `recent`, with the rates of runs/thinning.py for what is
    older than a minute and than ten."""
    total, rates = 0.0, itertools.chain((recent, middle, old), (old / 10**n for n in itertools.count(1)))
    ages = itertools.chain(AGES, (AGES[-1] * 10**n for n in itertools.count(1)))
    for rate, (since, before) in zip(rates, itertools.pairwise(ages), strict=False):
        if seconds <= since:
            return total
        total += min(rate, recent) * (min(seconds, before) - since)
    return total


def shape_of(config: Config) -> tuple[int, int]:
    """Features and classes of a task's built-in data."""
    return BUILT_IN.get(config.task) or (2, CLASSES[config.plane])


def parameters(config: Config, features: int, classes: int) -> int:
    """The parameters of the model that `build` in moe_core/nn/models.py makes; a test compares them."""
    D, E, G, L = config.d_model, config.num_experts, config.groups, config.layers
    flat = 2 * D * E + E
    gate = 2 * D * E + 2 * D * G + G if G > 1 else flat
    layer = gate + 2 * E * D * config.d_hidden
    if config.task == "text":
        heads = next(h for h in (8, 4, 2, 1) if h == 1 or (D % h == 0 and D // h >= 16))
        return 2 * 256 * D + 2 * D + L * (layer + 4 * D * D + 2 * (D // heads) + 4 * D)
    embed = (features + 1) * D + 2 * (D + 1) * D
    return embed + L * (layer + 2 * D) + 2 * D + (D + 1) * classes


def terms(config: Config, knobs: Knobs, features: int, classes: int) -> tuple[float, ...]:
    """What the time of a step grows with, in the order of SECONDS: the step itself, layers, products of matrices, scores of
    experts, experts, parameters, what attention does beside its products, and layers by tokens."""
    T, D, H, E, L = config.tokens, config.d_model, config.d_hidden, config.num_experts, config.layers
    k = chosen(config, knobs)
    text = config.task == "text"
    ends = 256 * D if text else features * D + 2 * D * D + D * classes
    layer = 2 * k * D * H + 2 * D * E + (4 * D * D + config.context * D if text else 0)
    products = T * (L * layer + ends)
    return 1.0, L, products, L * T * E, L * E, parameters(config, features, classes), L * T * D * text, L * T


def chosen(config: Config, knobs: Knobs) -> int:
    """Experts of a token."""
    return knobs.k * (knobs.k_primary if config.groups > 1 else 1)


def memory(config: Config, knobs: Knobs, features: int, classes: int) -> float:
    """Bytes that the trainer takes at its peak: torch itself, each parameter with its gradient, Adam's moments and a copy for the
    checkpoint, and what the backward pass needs of a batch."""
    T, D, H, E, L = config.tokens, config.d_model, config.d_hidden, config.num_experts, config.layers
    logits = T * 256 if config.task == "text" else 0
    batch = SCORES * L * T * E + 9.4 * L * T * chosen(config, knobs) * (D + H) + 91 * L * T * D + 22 * logits
    return TORCH + 27 * parameters(config, features, classes) + batch


def memory_of_ranks(config: Config, knobs: Knobs, features: int, classes: int, ranks: RankCounts) -> float:
    """The same of several ranks, all together, with torchrun. Each has its part of the experts and of the batch's rows, but all else
    and the scores of all rows; for a checkpoint it has all experts for a moment, and the first rank what it writes too."""
    E, L, count = config.num_experts, config.layers, parameters(config, features, classes)
    scores = SCORES * L * config.tokens * E
    rows = memory(config, knobs, features, classes) - TORCH - 27 * count - scores
    own = count - 2 * L * E * config.d_model * config.d_hidden * (1 - 1 / ranks.expert)
    return TORCHRUN + ranks.size * (RANK + 16 * own + GATHERED * count + scores) + rows + WRITTEN * count


# Where it trains, and what was measured there


class Speed(NamedTuple):
    """A recorded run: where it trained, its settings and widths, the median of its steps' seconds, and on how many ranks."""

    device: str
    config: Config
    knobs: Knobs
    shape: tuple[int, int]
    seconds: float
    ranks: RankCounts = ALONE


def speeds(runs: str | Path | None = None) -> list[Speed]:
    """What the newest runs of a folder say of this machine's speed."""
    folder = runs_folder(runs)
    dated = []
    for path in folder.glob("*/run.db"):
        with contextlib.suppress(OSError):  # removed meanwhile
            dated.append((path.lstat().st_mtime, path.parent))
    found = (speed_of(path) for _, path in sorted(dated, reverse=True)[:SEEN])
    return [speed for speed in found if speed]


def speed_of(path: Path) -> Speed | None:
    """None for a run that says nothing of it: of another program, too short, with a speed limit, or measured on one number of ranks
    and then on another."""
    try:
        run = Run(path, QUERY_LIMIT)
    except StoreError:
        return None
    try:
        limited = run.started_knobs.speed_limit or any(c.name == "speed_limit" for c in run.knob_changes())
        (_, last), deals = run.steps(), run.deals
        moved = any(WARM < deal.first <= last for deal in deals) or "commands" in run.checked.damage  # which say it
        if not run.trainable or limited or moved or last < LEAST:
            return None
        seconds = float(np.median(run.history("seconds", first=WARM)[1]))
        built_in = shape_of(run.config)
        shape = len(run.labels.get("feature", ())) or built_in[0], len(run.labels.get("class", ())) or built_in[1]
        kind = str(run.facts.get("device", "cpu")).split(":")[0]
        knobs, deal = as_knobs(run.started_knobs), deal_at(deals, last)
        return (
            Speed(kind, run.config, knobs, shape, seconds, RankCounts(deal.ranks, deal.expert)) if seconds > 0 else None
        )
    except (StoreError, AttributeError):
        return None
    finally:
        run.close()


def sizes(config: Config, knobs: Knobs, shape: tuple[int, int]) -> tuple[object, ...]:
    """All that the speed of a step depends on, on one machine."""
    grouped = (config.groups, knobs.k_primary) if config.groups > 1 else ()
    width = config.context if config.task == "text" else shape
    own = config.num_experts, config.d_model, config.d_hidden, config.layers, config.tokens, config.precision
    return (*own, grouped, width, knobs.k, knobs.strategy)


def model_seconds(config: Config, knobs: Knobs, features: int, classes: int) -> float:
    """Seconds of a step by the sizes alone."""
    return sum(a * b for a, b in zip(SECONDS, terms(config, knobs, features, classes), strict=True))


def speed(
    config: Config, knobs: Knobs, shape: tuple[int, int], recorded: Sequence[Speed], ranks: RankCounts = ALONE
) -> tuple[float | None, str]:
    """Seconds of a step, None if that cannot be told, and where the number comes from."""
    device = device_kind(config)
    where = device, config.precision, ranks
    here = [one for one in recorded if (one.device, one.config.precision, one.ranks) == where]
    own = sizes(config, knobs, shape)
    same = [one for one in here if sizes(one.config, one.knobs, one.shape) == own]
    if same:
        return same[0].seconds, "Speed as of your last run of these sizes."
    if ranks != ALONE:  # how long ranks wait for each other, the sizes do not say
        return None, f"Speed on {ranks.size} ranks is not known before a run of these sizes has trained on them."
    if device != "cpu":
        return None, f"Speed on {device} is not known before a run of these sizes has trained there."
    seconds = model_seconds(config, knobs, *shape)
    ratios = [one.seconds / model_seconds(one.config, one.knobs, *one.shape) for one in here[:NEWEST]]
    if not ratios:
        return seconds, "Speed by the sizes, as on a core of an x86-64 server: no run has trained here yet."
    many = f"{len(ratios)} runs" if len(ratios) > 1 else "run"
    return seconds * statistics.median(ratios), f"Speed by the sizes and your last {many} on this machine."


def estimate(
    config: Config,
    knobs: Knobs,
    features: int,
    classes: int,
    recorded: Sequence[Speed] = (),
    ranks: RankCounts = ALONE,
) -> Estimate:
    """What a run of these settings will take, all ranks together. features, classes: widths of a row and of the answer; recorded: as
    speeds(). What several ranks record of each other is too little to count."""
    given = config, knobs, features, classes
    seconds, source = speed(config, knobs, (features, classes), recorded, ranks)
    last = layout(config.layers, config.num_experts, stats_of_ranks(ranks.size))[-1]
    count = parameters(config, features, classes)
    return Estimate(
        parameters=count,
        memory=memory(*given) if ranks == ALONE else memory_of_ranks(*given, ranks),
        seconds=seconds and seconds * AROUND,
        step=CELL * (last.start + last.width),
        probe=PROBE * config.layers,
        full=FULL * config.layers * config.num_experts,
        looks=min(10.0, LOOKS * config.tokens / (seconds or UNKNOWN)),
        checkpoint=CHECKPOINT + 12 * count + 86 * config.layers * config.tokens * chosen(config, knobs),
        source=f"Estimates, but for the parameters. {source}",
    )
