"""What the ranks of a training send each other in a step: the formula of docs/scaling.md.

R ranks; M of them form a group that shares the experts, so there are R / M groups. Each collective is counted as a ring: of R ranks
each sends R - 1 blocks to gather, and 2 (R - 1) / R of a tensor to add it up. moe_core/parallel/traffic.py counts the same while
a run trains; tests/parallel/test_ranks.py compares the two.
"""

import math
from typing import NamedTuple

NUMBER = 4  # bytes of a gradient, a logit or a loss
COUNT = 8  # bytes of a number of rows
SUMS = 3  # numbers of an expert that are added up where each token chooses by itself: its importance, load and count


class Step(NamedTuple):
    """What is exchanged depends on this. rows: selections of all tokens in all layers that reach an expert; leaving: those of
    them whose expert lies on another rank, None for as many as there are if the tokens of all ranks choose alike; scores:
    for each tensor that a gate makes, how many numbers it has for a token; standard, of_experts: parameters that have a gradient;
    number: bytes of a number in the experts; whole: every rank decides for the whole batch."""

    ranks: int
    expert: int
    tokens: float
    layers: int
    experts: int
    width: int
    scores: tuple[int, ...]
    standard: float
    of_experts: float
    rows: float
    leaving: float | None = None
    number: int = 4
    whole: bool = True


class Collective(NamedTuple):
    """Of all its calls in a step. sent: bytes of all ranks together; waits: messages that a rank waits for, one after the
    other."""

    sent: float
    waits: int


def collectives(step: Step) -> dict[str, Collective]:
    """What a step exchanges, by name. The sum of `sent` is what a run records as sent_bytes."""
    R, M, L, E = step.ranks, step.expert, step.layers, step.experts
    G = R // M
    leaving = step.rows * (M - 1) / M if step.leaving is None else step.leaving
    own = step.tokens / R
    logits = NUMBER * L * sum(step.scores) * own * R * (R - 1)
    sums = NUMBER * L * 2 * (R - 1) * SUMS * E
    return {
        # There and back, and the same of the gradients.
        "tokens": Collective(4 * step.number * step.width * leaving, 4 * L * (M - 1)),
        "decisions": Collective(logits, L * len(step.scores) * (R - 1))
        if step.whole
        else Collective(sums, L * 2 * (R - 1)),
        "gradients of all ranks": Collective(NUMBER * 2 * (R - 1) * step.standard, 2 * (R - 1)),
        "gradients of experts": Collective(NUMBER * 2 * (G - 1) * step.of_experts, 2 * (G - 1)),
        "numbers of rows": Collective(COUNT * L * R * (M - 1) * (E // M + 1), L * (M - 1)),
        "norm of the gradients": Collective(NUMBER * 2 * (M - 1) * G, 2 * (M - 1)),
        # What rank 0 orders, sent twice down a tree, and the loss, added up: a few hundred bytes, which no run counts either.
        "orders and loss": Collective(0.0, 2 * math.ceil(math.log2(R)) + 2 * (R - 1)),
    }


def sent_bytes(step: Step) -> float:
    """Bytes that all ranks together send in a step."""
    return sum(one.sent for one in collectives(step).values())
