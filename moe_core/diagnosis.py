"""What is wrong with a gate, in words: what, since which step, why, and what to try. Numpy and the schema only.

Each rule is a pure function of one layer's statistics and the knobs (`Seen`) and gives a Finding or None. A finding does
not flicker: it begins when its condition has held for HOLD steps and ends when a stricter opposite has held as long. A
remedy is offered only where benchmarks/remedies.py measured that it works; docs/decisions.md has the table.

Shapes: n steps, E experts. `counts_nE` is (n, E).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moe_core.schema import BALANCED, COLLAPSED, DEAD_AFTER, Config, Knobs, switched_off, value_text

Array = NDArray[np.floating[Any]]
Flags = NDArray[np.bool_]

HOLD = 20  # steps that a condition holds before it is a finding, and its opposite before it is none
SOON = 100  # steps that a remedy is given; the measured ones took a tenth to a half of it
BINS = 1000  # rows of history that a diagnosis looks at, about twice over; old ones as minimum and maximum
SETTLED = 500  # steps until a fresh gate, which starts at zero logits, can be judged against its noise
DROWNED = (2.5, 1.5)  # noise over the spread of the clean logits: above the first drowned, below the second not
AT_STAKE = 0.05  # nats: where the task loss is below, or the balancing losses are, there is nothing to win
LARGE = (0.3, 0.2)  # the balancing losses' share of the loss
WORSE = (1.05, 1.02)  # task loss over what it was before the coefficient was raised
DROPPING = (0.05, 0.02)  # share of the selections that are dropped
CURE = 0.1  # both weights: evens a collapsed gate (Shazeer 2017, Table 6, and measured here)
BEFORE = 50  # steps over which the task loss before a change is averaged


class Finding(NamedTuple):
    """One thing that is wrong. layer counts from 0; since is a step; remedy gives knobs their values, or is None."""

    rule: str
    layer: int
    since: int
    what: str
    why: str
    try_this: str
    remedy: dict[str, float | str] | None


class Seen(NamedTuple):
    """What the rules look at: one layer's statistics over the same steps, the knobs in force, and how they came to be.

    changes are those that took effect, in that order. A statistic that an old run did not record is all NaN, which
    neither begins nor ends a finding.
    """

    config: Config
    knobs: Knobs
    changes: Sequence[Any]
    layer: int
    steps_n: NDArray[np.int64]
    loss_n: Array
    task_loss_n: Array
    cv_load_n: Array
    counts_nE: Array
    dead_n: Array
    noise_scale_n: Array
    logit_spread_n: Array
    dropped_n: Array


def diagnose(source: Any, layer: int = 0) -> list[Finding]:
    """Every finding of one layer as it stands at the last step, the gravest first. source: a Run or a Feed."""
    seen = look(source, layer)
    if not len(seen.steps_n):
        return []
    found = [finding for rule in RULES if (finding := rule(seen))]
    if any(finding.rule == "collapse" for finding in found):
        # A remedy that leaves a collapsed gate as it is would only look like one.
        found = [f if f.remedy is None or evens(seen.knobs, f.remedy) else f._replace(remedy=None) for f in found]
    return found


def look(source: Any, layer: int) -> Seen:
    """A source's history as the rules take it."""

    def read(stat: str) -> Array:
        try:
            return np.asarray(source.history(stat, layer, bins=BINS)[1], np.float64)
        except ValueError:  # a statistic that this run's version did not record
            return np.full(len(steps), np.nan)

    steps = np.asarray(source.history("loss", layer, bins=BINS)[0], np.int64)
    names = ("loss", "task_loss", "cv_load", "counts", "dead_experts", "noise_scale", "logit_spread", "dropped")
    values = [read(name) for name in names]
    done = sorted((c for c in source.knob_changes() if c.step is not None), key=lambda c: (c.step, c.id))
    return Seen(source.config, source.knobs, done, layer, steps, *values)


# When a condition holds


def standing(steps_n: NDArray[np.int64], on_n: Flags, off_n: Flags, hold: int = HOLD) -> int | None:
    """The step since which a finding stands, or None. It begins with `hold` steps of on, and ends with as many of off.

    Between on and off it stays as it was. Steps may be thinned: what counts is the span of steps, not of rows.
    """
    begun = [(start, True) for start in spans(steps_n, on_n, hold)]
    ended = [(start, False) for start in spans(steps_n, off_n, hold)]
    since = None
    for start, begins in sorted(begun + ended):
        since = (since or start) if begins else None
    return since


def spans(steps_n: NDArray[np.int64], flag_n: Flags, hold: int) -> list[int]:
    """The first step of each stretch of true flags that is at least `hold` steps long."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flag_n, [False]]).astype(np.int8)))
    first, last = steps_n[edges[::2]], steps_n[edges[1::2] - 1]
    return [int(step) for step in first[last - first + 1 >= hold]]


def mean_of_last(steps_n: NDArray[np.int64], values_n: Array, count: int) -> float:
    """Mean over the last `count` steps; NaN of nothing."""
    recent = values_n[steps_n > steps_n[-1] - count]
    return float(recent.mean()) if len(recent) else math.nan


def since_knobs(seen: Seen, *names: str) -> int:
    """The step since which the knobs of these names stand as they do."""
    return max((change.step for change in seen.changes if change.name in names), default=1)


# What to do


def even_again(knobs: Knobs) -> dict[str, float | str]:
    """The knobs that even a collapsed gate: both losses at 0.1 or more, and noise, without which the load loss does nothing.

    What stands already is left out, so nothing is offered to a gate that is being mended, nor where it was not measured:
    under the strategies that balance by other means.
    """
    if knobs.strategy not in ("none", "paper"):
        return {}
    wanted: dict[str, float | str] = {} if knobs.strategy == "paper" else {"strategy": "paper"}
    if knobs.noise < 1:
        wanted["noise"] = 1.0
    for name in ("w_importance", "w_load"):
        if getattr(knobs, name) < CURE:
            wanted[name] = CURE
    return wanted


def evens(knobs: Knobs, remedy: dict[str, float | str]) -> bool:
    """Whether a remedy leaves nothing to be done for a collapsed gate."""
    return all(remedy.get(name, getattr(knobs, name)) == value for name, value in even_again(knobs).items())


def turns(remedy: dict[str, float | str] | None) -> str:
    """A remedy in words: "noise to 1 and w_load to 0.1"."""
    parts = [f"{name} to {value_text(value)}" for name, value in (remedy or {}).items()]
    return " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part) if parts else ""


def mend(seen: Seen) -> tuple[str, dict[str, float | str] | None]:
    """(what to try, the remedy) for load that must be evened."""
    remedy = even_again(seen.knobs) if seen.config.groups <= 1 else {}
    if remedy:
        return f"Turn {turns(remedy)}: within {SOON} steps the load should be even.", remedy
    changed = since_knobs(seen, "strategy", "noise", "w_importance", "w_load")
    if changed > 1 and seen.steps_n[-1] < changed + SOON:
        return f"The knobs were turned at step {changed}; give them until step {changed + SOON}.", None
    if seen.config.groups > 1:
        return "Turn the loss weights of both levels up to 0.1, with noise at 1.", None
    if seen.knobs.strategy != "paper":
        return f"{seen.knobs.strategy} does not hold it; turn its own weight or speed up, or strategy to paper.", None
    return "The losses are on and do not help: turn the learning rate down, or w_importance up to 1.", None


def named(experts: Sequence[int]) -> str:
    """Expert numbers, counted from 1: "4, 9 and 11"; of many the first few."""
    numbers = [str(e + 1) for e in experts[:8]]
    more = [f"{len(experts) - 8} more"] if len(experts) > 8 else []
    *first, last = numbers + more
    return f"{', '.join(first)} and {last}" if first else last


# The rules


def collapse(seen: Seen) -> Finding | None:
    """CV(load) above COLLAPSED, or above three quarters of what it can reach, for HOLD steps."""
    ceiling = math.sqrt(max(seen.config.num_experts / seen.knobs.k - 1, 0.0))
    high = min(COLLAPSED, 0.75 * ceiling)
    since = standing(seen.steps_n, seen.cv_load_n > high, seen.cv_load_n < 0.8 * high)
    if since is None or ceiling == 0:
        return None
    now = mean_of_last(seen.steps_n, seen.cv_load_n, HOLD)
    if seen.knobs.strategy not in ("none", "paper"):
        why = f"Strategy {seen.knobs.strategy} is weaker than the pull of the experts that learnt first."
    elif seen.knobs.strategy == "none" or not (seen.knobs.w_importance or seen.knobs.w_load):
        why = "No loss asks for balance: an expert that is chosen learns, and is chosen the more."
    elif not seen.knobs.noise and seen.knobs.w_load:
        why = "Without noise the load loss has no gradient, and the importance loss alone is slow."
    else:
        why = "The balancing losses are weaker than the pull of the experts that learnt first."
    try_this, remedy = mend(seen)
    what = f"The gate has collapsed onto a few experts: CV(load) is {now:.2f} (ceiling {ceiling:.2f})."
    return Finding("collapse", seen.layer, since, what, why, try_this, remedy)


def dead_experts(seen: Seen) -> Finding | None:
    """Experts that nothing selected for DEAD_AFTER steps, for HOLD steps more."""
    off = switched_off(seen.config, seen.knobs.off)[seen.layer]
    since = standing(seen.steps_n, seen.dead_n > len(off), seen.dead_n <= len(off))
    recent_nE = seen.counts_nE[seen.steps_n > seen.steps_n[-1] - DEAD_AFTER]
    dead = [e for e in np.flatnonzero(recent_nE.sum(0) == 0).tolist() if e not in off]
    if since is None or not dead:
        return None
    experts = f"expert {named(dead)}" if len(dead) == 1 else f"experts {named(dead)}"
    what = f"No token went to {experts} of {seen.config.num_experts} in the last {DEAD_AFTER} steps."
    why = "An expert that is not chosen gets no gradient, so it does not become worth choosing."
    # It was called dead when it had been without a token for DEAD_AFTER steps already.
    return Finding("dead_experts", seen.layer, max(1, since - DEAD_AFTER), what, why, *mend(seen))


def noise_drowns(seen: Seen) -> Finding | None:
    """Noise several times as wide as the clean logits: whom the gate would choose hardly matters."""
    ready_n = seen.steps_n > SETTLED
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio_n = np.where(seen.noise_scale_n > 0, seen.noise_scale_n / seen.logit_spread_n, 0.0)
    learning_n = ~(seen.task_loss_n < AT_STAKE)
    since = standing(seen.steps_n, ready_n & learning_n & (ratio_n > DROWNED[0]), (ratio_n < DROWNED[1]) | ~learning_n)
    if since is None:
        return None
    ratio = mean_of_last(seen.steps_n, ratio_n, HOLD)
    what = f"Noise drowns the gate: it is {ratio:.1f} times as wide as the differences between the experts' logits."
    why = (
        f"With noise at {value_text(seen.knobs.noise)} the experts are drawn nearly by chance, so none can specialise."
    )
    # Large loss weights flatten the logits until any noise drowns them.
    heavy = {name: CURE for name in ("w_importance", "w_load") if getattr(seen.knobs, name) > CURE}
    remedy: dict[str, float | str] = {"noise": 1.0} if seen.knobs.noise > 1 else dict(heavy)
    try_this = f"Turn {turns(remedy)}." if remedy else "Turn noise down, or let the gate learn for longer."
    return Finding("noise_drowns", seen.layer, since, what, why, try_this, remedy or None)


def idle_load_loss(seen: Seen) -> Finding | None:
    """w_load above 0 with noise at 0."""
    if not (seen.knobs.strategy == "paper" and seen.knobs.w_load > 0 and seen.knobs.noise == 0):
        return None
    what = f"The load loss does nothing: w_load is {value_text(seen.knobs.w_load)} and noise is 0."
    why = "Its gradient is the chance that other noise would choose another expert; without noise the load is a count."
    remedy: dict[str, float | str] = {"noise": 1.0}
    try_this = f"Turn {turns(remedy)}, or w_load to 0 and w_importance up."
    return Finding(
        "idle_load_loss", seen.layer, since_knobs(seen, "strategy", "w_load", "noise"), what, why, try_this, remedy
    )


def large_coefficient(seen: Seen) -> Finding | None:
    """The balancing losses are a large share of the loss for long, or the task got worse when a weight was raised."""
    since, what = balance_share(seen) or worse_than_before(seen) or (None, "")
    if since is None or seen.knobs.strategy != "paper":
        return None
    floor = 0.0 if mean_of_last(seen.steps_n, seen.cv_load_n, HOLD) < BALANCED else CURE
    weights = {name: getattr(seen.knobs, name) for name in ("w_importance", "w_load")}
    lower = {name: max(floor, round(w / 10, 6)) for name, w in weights.items()}
    remedy: dict[str, float | str] = {name: w for name, w in lower.items() if w < weights[name]}
    why = "The gate serves the balance at the cost of what the model has to learn."
    try_this = f"Turn {turns(remedy)}; a gate that is even stays so." if remedy else "Even the load first."
    return Finding("large_coefficient", seen.layer, since, what, why, try_this, remedy or None)


def balance_share(seen: Seen) -> tuple[int, str] | None:
    """(since, what) if the balancing losses have been a large share of the loss for SOON steps."""
    with np.errstate(divide="ignore", invalid="ignore"):
        balance_n = seen.loss_n - seen.task_loss_n
        share_n = balance_n / seen.loss_n
    large_n = (share_n > LARGE[0]) & (balance_n > AT_STAKE)
    since = standing(seen.steps_n, large_n, (share_n < LARGE[1]) | (balance_n < AT_STAKE), SOON)
    if since is None:
        return None
    share = mean_of_last(seen.steps_n, share_n, HOLD)
    return (
        since,
        f"The loss weights are too large for the task: the balancing losses are {100 * share:.0f} % of the loss.",
    )


def worse_than_before(seen: Seen) -> tuple[int, str] | None:
    """(since, what) if the task loss, since the last rise of a loss weight, has stayed above what it was before."""
    raised = [c for c in seen.changes if c.name in ("w_importance", "w_load") and c.value > c.previous]
    if not raised or any(c.name in ("w_importance", "w_load") and c.step > raised[-1].step for c in seen.changes):
        return None
    change = raised[-1]
    before_n = seen.task_loss_n[(seen.steps_n < change.step) & (seen.steps_n >= change.step - BEFORE)]
    after_n = seen.steps_n >= change.step + SOON
    if not len(before_n) or not after_n.any():
        return None
    smooth_n = trailing_mean(seen.task_loss_n, HOLD)[after_n] / float(before_n.mean())
    since = standing(seen.steps_n[after_n], smooth_n > WORSE[0], smooth_n < WORSE[1])
    if since is None:
        return None
    rise = f"{100 * (smooth_n[-1] - 1):.0f} %"
    return (
        change.step,
        f"The task loss is {rise} above what it was before {change.name} went up to {value_text(change.value)}.",
    )


def trailing_mean(values_n: Array, count: int) -> Array:
    """Mean of each row and up to count - 1 rows before it; a loss that is not finite is left out."""
    finite_n = np.isfinite(values_n)
    total_n = np.cumsum(np.where(finite_n, values_n, 0.0))
    number_n = np.cumsum(finite_n)
    lagged = lambda sums: np.concatenate([np.zeros(min(count, len(sums)), sums.dtype), sums[:-count]])
    with np.errstate(invalid="ignore"):
        return np.asarray((total_n - lagged(total_n)) / (number_n - lagged(number_n)))


def dropped_tokens(seen: Seen) -> Finding | None:
    """Selections dropped for want of capacity."""
    since = standing(seen.steps_n, seen.dropped_n > DROPPING[0], seen.dropped_n < DROPPING[1])
    if since is None:
        return None
    share = mean_of_last(seen.steps_n, seen.dropped_n, HOLD)
    counts_E = seen.counts_nE[seen.steps_n > seen.steps_n[-1] - HOLD].mean(0)
    need = float(counts_E.max() / max(counts_E.mean(), 1e-9))
    what = f"{100 * share:.0f} % of the selections are dropped: their experts are full."
    why = f"The busiest expert is chosen {need:.1f} times as often as its fair share, and its capacity ends before."
    remedy: dict[str, float | str] = {"capacity_factor": 0.0}
    return Finding(
        "dropped_tokens", seen.layer, since, what, why, f"Turn {turns(remedy)} (dropless), or even the load.", remedy
    )


RULES: tuple[Callable[[Seen], Finding | None], ...] = (
    collapse,
    dead_experts,
    idle_load_loss,
    noise_drowns,
    large_coefficient,
    dropped_tokens,
)
