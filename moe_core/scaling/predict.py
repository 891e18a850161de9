"""How long a step would take on several devices, by one device's time and a stated network.

What a device computes is the run's own time, shared out by its sizes (runs/estimate.py): its own tokens, the rows of its experts,
what is decided for the whole batch, its parameters. What it sends is the formula of sent.py; each message takes the network's
latency, each byte its bandwidth. Between two exchanges the slowest device keeps all others waiting.

Shapes: G groups, L layers, M devices in a group, N experts on all devices of a group.
"""

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from moe_core.runs.estimate import SCORES, SECONDS, chosen, parameters, terms
from moe_core.runs.ranks import rows_of
from moe_core.scaling.loads import Rows, drawn, max_over_mean, of_devices
from moe_core.scaling.measured import OneDevice
from moe_core.scaling.sent import Step, collectives
from moe_core.schema import STRATEGIES, Config

DRAWS = 20  # steps that are simulated; figures are their means
MOST = 65_536  # devices
LARGEST = 20_000_000  # experts of all layers and groups: 160 MB for the rows of each
STATE = 16  # bytes of a parameter: itself, its gradient, and Adam's two moments, in float32


class Network(NamedTuple):
    """bandwidth: bytes a second that each device sends while it receives as many; latency: seconds of each message."""

    bandwidth: float
    latency: float


class Plan(NamedTuple):
    """How a training is dealt. devices: of them `expert` form a group that shares the experts. strong: the batch stays the run's and
    is dealt over the devices; else each brings one as large. grow: each device keeps as many experts as the run has; else all devices
    of a group share these. whole: each device decides for the whole batch, as our trainer does; else for its own tokens, and a
    few numbers of each expert are added up. cores: that all devices share, None if each has its own."""

    devices: int
    expert: int
    strong: bool = False
    grow: bool = False
    whole: bool = True
    cores: int | None = None


class Prediction(NamedTuple):
    """Of one number of devices; means over draws. tokens: in a batch; rows_per_expert: of an expert in its group, max_over_mean_*: of
    rows. seconds: of a step, communication: the share of it in which a device sends or waits, mean over devices. efficiency:
    tokens a second by those of as many single devices. weight_bytes, score_bytes: of a device."""

    devices: int
    expert_parallel: int
    experts: int
    tokens: int
    rows_per_expert: float
    max_over_mean_experts: float
    max_over_mean_devices: float
    seconds: float
    communication: float
    efficiency: float
    sent_bytes: float
    weight_bytes: float
    score_bytes: float


def predict(one: OneDevice, plan: Plan, network: Network, seed: int = 0) -> Prediction:
    """What the plan would make of a training. ValueError for a plan by which it cannot be dealt."""
    check(one, plan)
    config, generator = dealt(one, plan), np.random.default_rng((seed, plan.devices))
    multiple = plan.expert if plan.grow else 1
    took = []
    for _ in range(DRAWS):
        rows_GLN = drawn(one.rows_SLE, plan.devices // plan.expert, plan.expert, multiple, plan.strong, generator)
        rows_GLM = of_devices(rows_GLN, plan.expert)
        seconds, busy = step_seconds(one, plan, network, config, rows_GLM)
        sent = sum(c.sent for c in collectives(exchanged(one, plan, config, float(rows_GLM.sum()))).values())
        waits = 1 - busy / seconds if seconds else 0.0
        took.append((rows_GLN.mean(), max_over_mean(rows_GLN), max_over_mean_of_all(rows_GLM), seconds, waits, sent))
    rows, experts, devices, seconds, waits, sent = (float(mean) for mean in np.mean(took, 0))
    standard, of_experts = parameter_counts(one, config)
    whole = plan.devices if plan.whole else 1
    return Prediction(
        devices=plan.devices,
        expert_parallel=plan.expert,
        experts=config.num_experts,
        tokens=config.tokens * plan.devices,
        rows_per_expert=rows,
        max_over_mean_experts=experts,
        max_over_mean_devices=devices,
        seconds=seconds,
        communication=waits,
        efficiency=one.seconds * config.tokens / one.config.tokens / seconds if seconds else 1.0,
        sent_bytes=sent,
        weight_bytes=STATE * (standard + of_experts / plan.expert),
        score_bytes=SCORES * config.layers * config.tokens * whole * config.num_experts,
    )


def check(one: OneDevice, plan: Plan) -> None:
    """ValueError for a plan by which the run cannot be dealt."""
    R, M, experts = plan.devices, plan.expert, one.config.num_experts
    if not 1 <= R <= MOST:
        raise ValueError(f"--devices must be between 1 and {MOST:,}, got {R:,}; change it")
    if M < 1 or R % M:
        raise ValueError(f"--expert-parallel must divide the number of devices, got {M} for {R:,}; change one of both")
    if not plan.grow and experts % M:
        raise ValueError(
            f"--expert-parallel must divide the {experts} experts, got {M}; change it, or add --grow-experts"
        )
    in_all = R // M * one.config.layers * experts * (M if plan.grow else 1)
    if in_all > LARGEST:
        raise ValueError(
            f"{R:,} devices would have {in_all:,} experts in all layers and groups, more than the {LARGEST:,} that can be simulated; "
            "give fewer --devices, or a larger --expert-parallel"
        )
    if plan.strong and rows_of(one.config) % R:
        pieces = "sequences" if one.config.task == "text" else "rows"
        raise ValueError(
            f"a batch of {rows_of(one.config):,} {pieces} cannot be dealt over {R:,} devices; change --devices, or leave out --strong"
        )
    if not plan.whole and STRATEGIES[one.knobs.strategy].whole:
        raise ValueError(
            f"--decide own needs a strategy by which a token chooses by itself: {one.knobs.strategy}, as the run has it, looks at the "
            "whole batch; leave --decide out"
        )
    if plan.cores is not None and plan.cores < 1:
        raise ValueError(f"--cores must be at least 1, got {plan.cores}; leave it out if each device has its own")


def dealt(one: OneDevice, plan: Plan) -> Config:
    """The settings with the tokens of one device, and the experts of all devices of a group."""
    config = one.config
    return replace(
        config,
        tokens=config.tokens // plan.devices if plan.strong else config.tokens,
        num_experts=config.num_experts * (plan.expert if plan.grow else 1),
    )


# What a device computes


def step_seconds(one: OneDevice, plan: Plan, network: Network, config: Config, rows_GLM: Rows) -> tuple[float, float]:
    """Seconds of a step, and those of them in which a device computes, mean over devices."""
    alone = Plan(1, 1, whole=plan.whole)
    fixed, row = work(one, alone, one.config)
    scale = one.seconds / (fixed + row * float(one.rows_SLE.sum((1, 2)).mean()))
    fixed, row = (scale * of for of in work(one, plan, config))
    cores = min(plan.devices, plan.cores or plan.devices)
    slowest_L, all_L = rows_GLM.max((0, 2)), rows_GLM.sum((0, 2))
    # Devices that share cores: none waits for the slowest while another has work for its core.
    experts = row * float(np.maximum(slowest_L, all_L / cores).sum())
    own = fixed * plan.devices / cores
    sends = communication_seconds(one, plan, network, config, rows_GLM)
    return own + experts + sends, own + row * float(all_L.sum()) / cores


def work(one: OneDevice, plan: Plan, config: Config) -> tuple[float, float]:
    """Of a device: seconds beside its experts' rows, and seconds of each row, both before they are scaled to the measured."""
    knobs = one.knobs
    start, layers, products, scores, experts, weights, attention, tokens = (
        a * b for a, b in zip(SECONDS, terms(config, knobs, *one.shape), strict=True)
    )
    row = SECONDS[2] * 2 * config.d_model * config.d_hidden
    products -= row * chosen(config, knobs) * config.tokens * config.layers
    # What a token costs in each layer beside products is mostly its gate: 1.8 of 2.4 us with 16 experts (docs/log.md).
    deciding = (scores + tokens) * (plan.devices if plan.whole else 1)
    standard, of_experts = parameter_counts(one, config)
    weights *= (standard + of_experts / plan.expert) / (standard + of_experts)
    return start + layers + products + deciding + experts / plan.expert + weights + attention, row


def parameter_counts(one: OneDevice, config: Config) -> tuple[int, int]:
    """(parameters of each device, those of all experts)."""
    of_experts = 2 * config.layers * config.num_experts * config.d_model * config.d_hidden
    return parameters(config, *one.shape) - of_experts, of_experts


# What it sends


def exchanged(one: OneDevice, plan: Plan, config: Config, rows: float) -> Step:
    """What a step's exchanges depend on. rows: of all experts, layers and groups."""
    strategy, knobs = STRATEGIES[one.knobs.strategy], one.knobs
    noisy = strategy.noisy and knobs.noise > 0
    levels = [(config.num_experts, noisy)]
    if config.groups > 1:
        levels += [(config.groups, strategy.noisy and knobs.noise_primary > 0)]
    standard, of_experts = parameter_counts(one, config)
    # What no loss reaches has no gradient: the spread of no noise, a gate that learns nothing, thresholds.
    for experts, draws in levels:
        standard -= config.layers * config.d_model * experts * ((not draws) + (not strategy.learns))
    if one.knobs.strategy != "strictly-balanced":
        standard -= config.layers * levels[-1][0]
    return Step(
        ranks=plan.devices,
        expert=plan.expert,
        tokens=config.tokens * plan.devices,
        layers=config.layers,
        experts=config.num_experts,
        width=config.d_model,
        scores=tuple(experts for experts, draws in levels for _ in range(1 + draws)),
        standard=standard,
        of_experts=of_experts,
        rows=rows,
        number=2 if config.precision == "bfloat16" else 4,
        whole=plan.whole,
    )


def communication_seconds(one: OneDevice, plan: Plan, network: Network, config: Config, rows_GLM: Rows) -> float:
    """Seconds of all exchanges of the busiest device: of rows it receives as many as its experts are sent, or sends its own tokens'."""
    all_L = rows_GLM.sum((0, 2))
    busiest = float(np.maximum(rows_GLM.max((0, 2)), all_L / plan.devices).sum()) / max(
        1.0, float(all_L.sum()) / plan.devices
    )
    seconds = 0.0
    for name, of in collectives(exchanged(one, plan, config, float(all_L.sum()))).items():
        share = of.sent / plan.devices * (busiest if name == "tokens" else 1)
        seconds += share / network.bandwidth + of.waits * network.latency
    return seconds


def max_over_mean_of_all(rows_GLM: Rows) -> float:
    """The most loaded device over the mean of all groups, averaged over layers."""
    return max_over_mean(rows_GLM.transpose(1, 0, 2).reshape(rows_GLM.shape[1], -1))


def shared(devices: int, experts: int) -> int:
    """Over how many devices so many experts are dealt: as many as divides both."""
    return math.gcd(devices, experts)
