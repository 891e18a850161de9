"""What is wrong with a gate, in words: what, since which step, why, and what to try. Numpy and the schema only.

Each rule is a pure function of one layer's statistics and the knobs (`Evidence`) and gives a Finding or None. A finding does
not flicker: it begins when its condition has held for HOLD steps and ends when a stricter opposite has held as long. A
remedy is offered only where it was measured that it works (remedies.py).

Shapes: n steps, E experts. `counts_nE` is (n, E).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from moe_core.evidence import HOLD, Evidence, Judged, Memory, evidence_of, mean_of_last, unchanged_since
from moe_core.remedies import SOON, evens, heavy, mend, named, off_in, turns
from moe_core.schema import (
    BALANCED,
    COLLAPSED,
    DEAD_AFTER,
    STAT,
    STRATEGIES,
    Knobs,
    draws_noise,
    experts_per_token,
    untaught,
    value_text,
    weighing,
)

SETTLED = 500  # steps until a fresh gate, which starts at zero logits, can be judged against its noise
# Noise over the spread of the clean logits: above the first drowned, below the second not. Of 16 experts, a token then gets
# a fifth, and a third, of the two that its clean logits name; an eighth would be chance (independent normal draws).
DROWNED = (4.0, 2.0)
LEARNING = 0.9  # while a gate still grows out of the noise, the ratio falls to this share or less within SOON steps
AT_STAKE = 0.05  # nats: below this task loss there is nothing left to learn
DROPPING = (0.05, 0.02)  # share of the selections that are dropped
# Share of the tokens that choose one expert: above the first a constant bias, below the second not.
FAVOURED = (0.98, 0.9)
SAME = 0.999  # overlap of the choices with and without the selection bias from which on it changes nothing
CALM = 0.25  # noise at which, as measured, a load that is even is even without noise too
BY_CHANCE = "Which experts a token gets hardly depends on the token, so they have little to specialise in."


class Finding(NamedTuple):
    """One thing that is wrong. layer counts from 0; since: the step at which it began; remedy: knobs and the values to give them, or
    None; known: whether it began at `since`; if not, it may have begun before the first step that was read."""

    rule: str
    layer: int
    since: int
    what: str
    why: str
    try_this: str
    remedy: dict[str, float | str] | None
    known: bool = True


def diagnose(source: Judged, layer: int = 0, memory: Memory | None = None) -> list[Finding]:
    """The findings of one layer at the last step, the gravest first. For a run with knobs of its own only those
    that need no knowledge of its knobs.

    memory: what earlier diagnoses of this layer found, brought up to date; needed where the source has only the last steps.
    """
    evidence = evidence_of(source, layer, memory)
    if not len(evidence.steps_n):
        return []
    rules = rules_for(evidence)
    findings = [
        found._replace(known=found.known and evidence.known(found.rule)) for rule in rules if (found := rule(evidence))
    ]
    if memory is not None:
        memory.last, memory.held = int(evidence.steps_n[-1]), dict(evidence.now)
    if isinstance(source.knobs, Knobs) and any(finding.rule == "collapse" for finding in findings):
        # A remedy that leaves the gate collapsed is not offered: it would help nothing.
        findings = [
            f if f.remedy is None or evens(evidence.knobs, f.remedy) else f._replace(remedy=None) for f in findings
        ]
    return findings


# The rules


def no_gradient(evidence: Evidence) -> Finding | None:
    """A gate that the task teaches nothing, by its measured gradient. Not under `even`, which does not use the gate."""
    none_n = untaught(evidence.task_gradient_n, evidence.grad_norm_n)
    since = evidence.since("no_gradient", none_n, np.isfinite(evidence.task_gradient_n) & ~none_n)
    if since is None or not none_n[-1] or not STRATEGIES[evidence.knobs.strategy].learns:
        return None
    last, every = int(evidence.steps_n[-1]), evidence.description.task_gradient_every
    if unchanged_since(evidence, "strategy", "weigh", "k", "k_primary") > last - (last - 1) % every:
        return None  # the knobs were turned since the gradient was measured
    share = evidence.task_gradient_n[-1] / evidence.grad_norm_n[-1]
    size = f"{share:.0e} of the whole" if share > 0 else "0"
    what = f"The gate learns nothing from the task: the task's gradient on it is {size}."
    single = evidence.knobs.k == 1 or (evidence.groups > 1 and evidence.knobs.k_primary == 1)
    remedy: dict[str, float | str] | None = None
    if (
        single
        and STRATEGIES[evidence.knobs.strategy].by_token
        and weighing(evidence.knobs.strategy, evidence.knobs.weigh) == "kept"
    ):
        why = "One kept expert weighs 1 whatever its logit, so no change of the gate changes the loss; only the balancing losses move it."
        remedy = {"weigh": "all"}
        try_this = f"Turn {turns(remedy)}, as in Switch{or_more(evidence)}."
    else:
        why = "The weights of the chosen experts do not change with their logits: the softmax is saturated."
        try_this = "Turn w_z up, which keeps logits small, or the learning rate down."
    return Finding("no_gradient", evidence.layer, since, what, why, try_this, remedy)


def or_more(evidence: Evidence) -> str:
    """ ", or k to 2 or more": the knobs by which a level keeps a single choice and, in this layer, could keep more."""
    groups = evidence.groups
    most = {"k": evidence.experts // max(groups, 1), "k_primary": groups}
    raised = [name for name, choices in most.items() if getattr(evidence.knobs, name) == 1 and choices > 1]
    return f", or {' and '.join(raised)} to 2 or more" if raised else ""


def collapse(evidence: Evidence) -> Finding | None:
    """CV(load) above COLLAPSED, or above three quarters of what it can reach, for HOLD steps. Experts that are off do not count."""
    high, ceiling = marks(evidence)
    cv_n = evidence.cv_load_n
    since = evidence.since("collapse", cv_n > high, cv_n < 0.8 * high)
    if since is None or ceiling == 0:
        return None
    now = mean_of_last(evidence.steps_n, cv_n, HOLD)
    if not isinstance(evidence.knobs, Knobs):
        why = "An expert that is chosen learns, and so is chosen more often; what balances the experts is weaker than that."
    elif not STRATEGIES[evidence.knobs.strategy].losses_even:
        why = f"Strategy {evidence.knobs.strategy} is weaker than the pull of the experts that learnt first."
    elif evidence.knobs.strategy == "none" or not (evidence.knobs.w_importance or evidence.knobs.w_load):
        why = "No loss asks for balance: an expert that is chosen learns, and so is chosen more often."
    elif evidence.knobs.w_load and not noise_of(evidence):
        why = "Without noise the load loss has no gradient, and what is left is too slow to part the experts."
    else:
        why = "The balancing losses are weaker than the pull of the experts that learnt first."
    try_this, remedy = mend(evidence)
    number = f"{balance_label(evidence)} is {now:.2f} over the last {HOLD} steps (ceiling {ceiling:.2f}"
    what = f"The gate has collapsed onto a few experts: {number})."
    if now <= high:  # it ends at a stricter mark than it begins at
        what = f"The gate collapsed onto a few experts and has not recovered: {number}, recovered after {HOLD} steps below {0.8 * high:.2f})."
    return Finding("collapse", evidence.layer, since, what, why, try_this, remedy)


def marks(evidence: Evidence) -> tuple[float, float]:
    """The CV above which the layer is called collapsed, and the largest that it can have."""
    off = off_in(evidence)
    on, k = evidence.experts - len(off), experts_per_token(evidence.description, evidence.knobs, evidence.layer)
    if off and not isinstance(evidence.knobs, Knobs):
        k = 1  # in a watched model a token that chose an expert that is off gets no other in its place
    ceiling = math.sqrt(max(on / k - 1, 0.0))
    return min(COLLAPSED, 0.75 * ceiling), ceiling


def balance_label(evidence: Evidence) -> str:
    """The name of the statistic by which the layer is called balanced or collapsed."""
    return STAT[evidence.description.balance].label


def constant_bias(evidence: Evidence) -> Finding | None:
    """One expert is chosen by every token, while the load is uneven: what prefers it does not depend on the token."""
    k = experts_per_token(evidence.description, evidence.knobs, evidence.layer)
    share_nE = k * evidence.counts_nE / np.maximum(evidence.counts_nE.sum(1, keepdims=True), 1)
    uneven_n, even_n = evidence.cv_load_n > BALANCED, evidence.cv_load_n < 0.8 * BALANCED
    since = {
        e: evidence.since(
            "constant_bias",
            (share_nE[:, e] > FAVOURED[0]) & uneven_n,
            (share_nE[:, e] < FAVOURED[1]) | even_n,
            of=e,
        )
        for e in np.flatnonzero((share_nE >= FAVOURED[1]).any(0)).tolist()
    }
    expert = int(share_nE[evidence.steps_n > evidence.steps_n[-1] - HOLD].mean(0).argmax())
    if (began := since.get(expert)) is None:
        return None
    if isinstance(evidence.knobs, Knobs) and not STRATEGIES[evidence.knobs.strategy].by_token:
        return None
    share_n = share_nE[:, expert]
    share = min(1.0, mean_of_last(evidence.steps_n, share_n, HOLD))
    cv = mean_of_last(evidence.steps_n, evidence.cv_load_n, HOLD)
    what = (
        f"A constant bias outweighs the tokens: {100 * share:.0f} % of them choose expert {expert + 1}, "
        f"and {balance_label(evidence)} is {cv:.2f}, over the last {HOLD} steps."
    )
    overlap = mean_of_last(evidence.steps_n, evidence.bias_effect_n, HOLD)
    # From k / (k + 1) down, more than half of the tokens have an expert by the selection bias alone.
    if overlap < k / (k + 1):
        why = f"The selection bias is the same for every token: the choices without it overlap with these by {overlap:.2f} only."
    else:
        why = "A part of the router's own scores is the same for every token, and larger than what differs from token to token."
    known = evidence.known("constant_bias", expert)
    return Finding("constant_bias", evidence.layer, began, what, why, *mend(evidence), known)


def idle_bias(evidence: Evidence) -> Finding | None:
    """The load has collapsed, and the selection bias, which is there to even it, changes no choice."""
    high, ceiling = marks(evidence)
    idle_n, cv_n = evidence.bias_effect_n >= SAME, evidence.cv_load_n
    since = evidence.since("idle_bias", idle_n & (cv_n > high), (evidence.bias_effect_n < SAME) | (cv_n < 0.8 * high))
    if since is None or ceiling == 0:
        return None
    now = mean_of_last(evidence.steps_n, cv_n, HOLD)
    what = f"The selection bias changes no choice, while {balance_label(evidence)} is {now:.2f} over the last {HOLD} steps."
    why = "It is 0, the same for every expert, or too small beside the router's scores; either nothing moves it or it moves too slowly."
    return Finding("idle_bias", evidence.layer, since, what, why, *mend(evidence))


def noise_of(evidence: Evidence) -> float:
    """The noise that gives the load loss a gradient: with two levels, the larger one, since either's is enough."""
    return float(max(evidence.knobs.noise, evidence.knobs.noise_primary if evidence.groups > 1 else 0.0))


def dead_in(evidence: Evidence) -> list[int]:
    """The experts that nothing selected in the last DEAD_AFTER steps, without those that are off."""
    recent_nE = evidence.counts_nE[evidence.steps_n > evidence.steps_n[-1] - DEAD_AFTER]
    return [e for e in np.flatnonzero(recent_nE.sum(0) == 0).tolist() if e not in off_in(evidence)]


def dead_experts(evidence: Evidence) -> Finding | None:
    """Experts that nothing selected for DEAD_AFTER steps, for HOLD steps more."""
    since, dead = evidence.since("dead_experts", evidence.dead_n > 0, evidence.dead_n <= 0), dead_in(evidence)
    if since is None or not dead or out_of_reach(evidence) >= len(dead):
        return None
    experts = f"expert {named(dead)}" if len(dead) == 1 else f"experts {named(dead)}"
    off = off_in(evidence)
    of = f"the {evidence.experts - len(off)} that are on" if off else str(evidence.experts)
    what = f"No token went to {experts} of {of} in the last {DEAD_AFTER} steps."
    why = "An expert that is not chosen gets no gradient, so it does not become worth choosing."
    # An expert is called dead only after DEAD_AFTER steps without a token, so it began that much earlier.
    return Finding("dead_experts", evidence.layer, max(1, since - DEAD_AFTER), what, why, *mend(evidence))


def out_of_reach(evidence: Evidence) -> int:
    """How many experts no token came near in any of the last HOLD steps; 0 if it was not measured."""
    recent_n = evidence.unreachable_n[evidence.steps_n > evidence.steps_n[-1] - HOLD]
    return int(recent_n.min()) if np.isfinite(recent_n).all() else 0


def unreachable(evidence: Evidence) -> Finding | None:
    """Dead experts whose score no token brings near the chosen ones, in any step for HOLD steps."""
    near_n = (evidence.unreachable_n < 1) | (evidence.dead_n <= 0)
    since = evidence.since("unreachable", (evidence.unreachable_n >= 1) & (evidence.dead_n > 0), near_n)
    dead, many = dead_in(evidence), out_of_reach(evidence)
    if since is None or not dead or not many:
        return None
    experts = f"expert {named(dead)}" if len(dead) == 1 else f"experts {named(dead)}"
    which = f"{many} of the {experts}" if many < len(dead) else experts
    what = (
        f"No token can reach {which}: none came near in the last {HOLD} steps, and none was sent there in {DEAD_AFTER}."
    )
    why = "Even the token that comes closest falls short by more than the closest and the farthest token differ."
    return Finding("unreachable", evidence.layer, since, what, why, *mend(evidence))


def drowned(evidence: Evidence, rule: str) -> tuple[int, float] | None:
    """(since, ratio) if noise is several times as wide as the clean logits, and no less so than SOON steps before.

    In a new gate noise drowns the logits at first, and they grow out of it; so they do when noise was turned up a little.
    A gate that the task teaches nothing has no logits worth drowning.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio_n = np.where(evidence.noise_scale_n > 0, evidence.noise_scale_n / evidence.logit_spread_n, 0.0)
    at_stake_n = ~(evidence.task_loss_n < AT_STAKE) & ~untaught(evidence.task_gradient_n, evidence.grad_norm_n)
    growing_n = ratio_n < LEARNING * np.interp(evidence.steps_n - SOON, evidence.steps_n, ratio_n)
    drowned_n = (evidence.steps_n > SETTLED) & at_stake_n & (ratio_n > DROWNED[0]) & ~growing_n
    since = evidence.since(rule, drowned_n, (ratio_n < DROWNED[1]) | ~at_stake_n)
    return None if since is None else (since, mean_of_last(evidence.steps_n, ratio_n, HOLD))


def noise_drowns(evidence: Evidence) -> Finding | None:
    """Noise several times as wide as the clean logits: what the gate has learnt hardly matters."""
    if (drowning := drowned(evidence, "noise_drowns")) is None or heavy(evidence.knobs):
        return None
    since, ratio = drowning
    what = f"Noise drowns the gate: it is {ratio:.1f} times as wide as the spread of the experts' logits."
    remedy: dict[str, float | str] = {"noise": 1.0} if evidence.knobs.noise > 1 else {}
    try_this = f"Turn {turns(remedy)}." if remedy else "Turn noise down, or let the gate learn for longer."
    return Finding("noise_drowns", evidence.layer, since, what, BY_CHANCE, try_this, remedy or None)


def even_by_noise(evidence: Evidence) -> Finding | None:
    """A load that is even in training, where noise is drawn, and uneven in two evaluations in a row, where none is. The
    gate must have settled."""
    steps_m, held_m = evidence.held_out_steps_m, evidence.held_out_cv_m
    near = [evidence.cv_load_n[(evidence.steps_n <= step) & (evidence.steps_n > step - HOLD)] for step in steps_m]
    training_m = np.array([float(np.mean(cv_n)) if len(cv_n) else math.nan for cv_n in near])
    settled_m = (steps_m > SETTLED) & (training_m < BALANCED)
    since = evidence.since(
        "even_by_noise",
        settled_m & (held_m >= BALANCED),
        (training_m >= BALANCED) | (held_m < 0.8 * BALANCED),
        steps_n=steps_m,
    )
    if since is None or not draws_noise(evidence.description, evidence.knobs):
        return None
    what = (
        f"The load is even only by the noise: {balance_label(evidence)} is {training_m[-1]:.2f} in training, a mean of {HOLD} steps, and {held_m[-1]:.2f} "
        f"without noise, on the held-out split."
    )
    why = "The balancing losses see the load that the noise spreads; nothing asks the gate to spread it by itself."
    changed = unchanged_since(evidence, "noise", "w_importance", "w_load", "strategy")
    if changed > 1 and steps_m[-1] < changed + SOON:
        wait = f"The knobs were turned at step {changed}; give them until step {changed + SOON}."
        return Finding("even_by_noise", evidence.layer, since, what, why, wait, None)
    # On digits and plane; of text one seed only (docs/decisions.md).
    measured = not evidence.description.sequence and evidence.groups <= 1
    measured = measured and evidence.knobs.strategy == "paper" and evidence.knobs.noise > CALM
    remedy: dict[str, float | str] = {"noise": CALM} if measured else {}
    try_this = f"Turn {turns(remedy)}; heavier loss weights do not help." if remedy else "Turn noise down."
    return Finding("even_by_noise", evidence.layer, since, what, why, try_this, remedy or None)


def idle_load_loss(evidence: Evidence) -> Finding | None:
    """w_load above 0 with noise at 0."""
    if not (evidence.knobs.strategy == "paper" and evidence.knobs.w_load > 0 and noise_of(evidence) == 0):
        return None
    what = f"The load loss does nothing: w_load is {value_text(evidence.knobs.w_load)} and noise is 0."
    why = "Its gradient comes from the chance that other noise would choose another expert; without noise the load is a plain count."
    remedy: dict[str, float | str] = {"noise": 1.0}
    try_this = f"Turn {turns(remedy)}, or w_load to 0 and w_importance up."
    return Finding(
        "idle_load_loss",
        evidence.layer,
        unchanged_since(evidence, "strategy", "w_load", "noise", "noise_primary"),
        what,
        why,
        try_this,
        remedy,
    )


def large_coefficient(evidence: Evidence) -> Finding | None:
    """Loss weights so large that the experts' logits are lost in noise of the ordinary width."""
    drowning, remedy = drowned(evidence, "large_coefficient"), heavy(evidence.knobs)
    if not remedy or drowning is None:
        return None
    since, ratio = drowning
    weights = " and ".join(f"{name} at {value_text(getattr(evidence.knobs, name))}" for name in remedy)
    what = f"The loss weights are too large: with {weights} the noise is {ratio:.1f} times as wide as the spread of the experts' logits."
    if evidence.knobs.autobalance:
        try_this = "Turn autobalance up: it asks for more balance than the task allows."
        return Finding("large_coefficient", evidence.layer, since, what, BY_CHANCE, try_this, None)
    try_this = f"Turn {turns(remedy)}; an even gate stays even."
    return Finding("large_coefficient", evidence.layer, since, what, BY_CHANCE, try_this, remedy)


def dropped_tokens(evidence: Evidence) -> Finding | None:
    """Selections dropped for want of capacity."""
    since = evidence.since("dropped_tokens", evidence.dropped_n > DROPPING[0], evidence.dropped_n < DROPPING[1])
    if since is None:
        return None
    share = mean_of_last(evidence.steps_n, evidence.dropped_n, HOLD)
    counts_E = evidence.counts_nE[evidence.steps_n > evidence.steps_n[-1] - HOLD].mean(0)
    need = float(counts_E.max() / max(counts_E.mean(), 1e-9))
    what = f"{100 * share:.0f} % of the selections are dropped: their experts are full."
    factor = value_text(evidence.knobs.capacity_factor)
    why = f"An expert takes {factor} times its fair share at most, and the busiest is chosen {need:.1f} times as often as that share."
    remedy: dict[str, float | str] = {"capacity_factor": 0.0}
    try_this = f"Turn {turns(remedy)}, which drops none, or higher, or even the load."
    return Finding("dropped_tokens", evidence.layer, since, what, why, try_this, remedy)


RULES: tuple[Callable[[Evidence], Finding | None], ...] = (
    no_gradient,
    collapse,
    constant_bias,
    unreachable,
    dead_experts,
    idle_bias,
    idle_load_loss,
    noise_drowns,
    large_coefficient,
    even_by_noise,
    dropped_tokens,
)
# The rules that need no knowledge of a run's knobs.
ANYWHERE = (collapse, constant_bias, unreachable, dead_experts, idle_bias)


def rules_for(evidence: Evidence) -> tuple[Callable[[Evidence], Finding | None], ...]:
    """The rules that a layer can be judged by. Where only one expert is on, the gate has nothing to choose and nothing to learn."""
    if evidence.experts - len(off_in(evidence)) == 1:
        return (dropped_tokens,) if isinstance(evidence.knobs, Knobs) else ()
    return RULES if isinstance(evidence.knobs, Knobs) else ANYWHERE
