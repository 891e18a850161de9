"""What a lesson says about the reader's own run: whether its effect has happened, and the answer with the run's numbers.

Pure functions of (source, layer); source is anything with the read methods of a run (description, knobs, started_knobs,
knob_changes, steps, history).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from moe_core.runs.source import Source
from moe_core.schema import BALANCED, COLLAPSED, untaught, value_text

LAST = 20  # steps over which a check takes its means, so that one batch's noise decides nothing
MEAN = f"mean of {LAST} steps"


class Verdict(NamedTuple):
    """What a check found: whether it happened, and the sentence that says what was measured."""

    happened: bool
    text: str


# What the checks read


def recent(source: Source, stat: str, layer: int, count: int = LAST) -> float:
    """Mean of a statistic over the last steps; NaN before the first."""
    last = source.steps()[1]
    if not last:
        return math.nan
    _, values = source.history(stat, layer, first=max(1, last - count + 1), last=last)
    return float(np.mean(values)) if len(values) else math.nan


def by_expert(source: Source, stat: str, layer: int, count: int = LAST) -> np.ndarray:
    """Means (E,) over the last steps; empty before the first."""
    last = source.steps()[1]
    if not last:
        return np.zeros(0)
    _, values = source.history(stat, layer, first=max(1, last - count + 1), last=last)
    mean_E: np.ndarray = np.asarray(values, np.float64).mean(axis=0)
    return mean_E


def per_token(source: Source, layer: int) -> float:
    """Experts that a token went to, from the counts of the last steps."""
    counts_E = by_expert(source, "counts", layer)
    return float(counts_E.sum() / source.description.tokens) if len(counts_E) else math.nan


def busy(source: Source, layer: int) -> int:
    """Experts that together take nine tenths of the selections."""
    counts_E = np.sort(by_expert(source, "counts", layer))[::-1]
    return int(np.searchsorted(np.cumsum(counts_E), 0.9 * counts_E.sum()) + 1) if len(counts_E) else 0


def at_start(source: Source, stat: str, layer: int) -> float:
    """A statistic in the first step; NaN before it."""
    _, values = source.history(stat, layer, first=1, last=1)
    return float(values[0]) if len(values) else math.nan


def task_gradient(source: Source, layer: int, step: int) -> float:
    """The norm of the task's gradient on the gate as last measured at a step; NaN at step 0 or if it was not measured."""
    try:
        return float(source.history("task_gradient", layer, first=step, last=step)[1][-1]) if step else math.nan
    except ValueError:  # a run that an earlier version began
        return math.nan


def last_turn(source: Source) -> int:
    """The step of the last turn that took effect; 0 if none did."""
    return max([change.step for change in source.knob_changes() if change.step is not None], default=0)


def too_early(source: Source, wanted: int = LAST) -> Verdict | None:
    """The verdict "too early" while there are fewer steps than a mean needs, since the start or the last turn of a knob;
    else None."""
    last = source.steps()[1]
    since = last_turn(source) or 1
    seen = last - since + 1 if last else 0
    return None if seen >= wanted else Verdict(False, f"{max(seen, 0)} of {wanted} steps seen with these knobs.")


# The checks, in the order of the lessons


def sparse(source: Source, layer: int) -> Verdict:
    E, k = source.description.experts[layer], per_token(source, layer)
    return too_early(source) or Verdict(
        k < E, f"Each token went to {k:.0f} of {E} experts: {100 * k / E:.0f} % of the expert weights did the work."
    )


def more_experts(source: Source, layer: int) -> Verdict:
    k = per_token(source, layer)
    return too_early(source) or Verdict(
        k >= 4, f"Each token now goes to {k:.0f} experts; it was {source.started_knobs.k}."
    )


def decided(source: Source, layer: int) -> Verdict:
    E = source.description.experts[layer]
    first, now = at_start(source, "top1_gate", layer), recent(source, "top1_gate", layer)
    return too_early(source) or Verdict(
        now > 1.5 / E, f"The first gate was {first:.2f} at step 1 and is {now:.2f}; undecided would be {1 / E:.3g}."
    )


def kept_two(source: Source, layer: int) -> Verdict:
    k = per_token(source, layer)
    return too_early(source) or Verdict(
        round(k) == 2,
        f"{k:.0f} gates of each token are left; the other {source.description.experts[layer] - round(k)} are exactly 0.",
    )


def nothing_taught(source: Source, layer: int) -> Verdict:
    now, whole = task_gradient(source, layer, source.steps()[1]), recent(source, "grad_norm", layer, 1)
    before = task_gradient(source, layer, max(0, last_turn(source) - 1))
    if math.isnan(now):
        return too_early(source, source.description.task_gradient_every) or Verdict(
            False, "This run did not measure the task's gradient."
        )
    was = "" if math.isnan(before) else f"; before the last turn it was {before:.2g}"
    return too_early(source, source.description.task_gradient_every) or Verdict(
        bool(untaught(now, whole)),
        f"The task's gradient on the gate is {now:.2g}{was}. The whole gradient is {whole:.2g}.",
    )


def parted_in_noise(source: Source, layer: int) -> Verdict:
    scale, first, now = recent(source, "noise_scale", layer), at_start(source, "cv_load", layer), recent(source, "cv_load", layer)  # fmt: skip
    return too_early(source) or Verdict(
        scale > 0.5 and first < BALANCED < now,
        f"The noise spreads each logit by {scale:.2f}. CV(load) was {first:.2f} at step 1 and is {now:.2f}, {MEAN}"
        + (": noise alone does not hold it." if now > BALANCED else f"; apart is above {BALANCED:g}."),
    )


def gate_alone(source: Source, layer: int) -> Verdict:
    scale, now = recent(source, "noise_scale", layer), recent(source, "cv_load", layer)
    return too_early(source) or Verdict(
        scale == 0,
        f"No noise is left: each token goes where its clean logits say. CV(load) is {now:.2f}, {MEAN}."
        if scale == 0
        else f"The noise still spreads each logit by {scale:.2f}.",
    )


def quiet(source: Source, layer: int) -> Verdict:
    scale = recent(source, "noise_scale", layer)
    load_E, counts_E = by_expert(source, "load", layer), by_expert(source, "counts", layer)
    return too_early(source) or Verdict(
        scale == 0 and bool(np.allclose(load_E, counts_E)),
        "Without noise the smooth load is the hard count: nothing is left for the load loss to act on."
        if scale == 0
        else f"The noise still spreads each logit by {scale:.2f}.",
    )


def starved(source: Source, layer: int) -> Verdict:
    tokens, E = source.description.tokens, source.description.experts[layer]
    counts_E = by_expert(source, "counts", layer)
    expected = source.knobs.k * tokens / E
    return too_early(source) or Verdict(
        expected <= tokens / 8,
        f"By the formula an expert gets k·T/E = {expected:.0f} of {tokens} tokens. Over the last {LAST} steps the mean was "
        f"{counts_E.mean():.0f}, the least {counts_E.min():.0f} and the most {counts_E.max():.0f}.",
    )


def fed_by_devices(source: Source, layer: int) -> Verdict:
    found = source.on_devices()
    if found.running or not found.done:
        why = found.problem.removeprefix("moe: ") or "nothing is measured yet"
        return Verdict(
            False, f"{found.progress[1]}." if found.running else f"{why[:1].upper()}{why[1:]}; press the button again."
        )
    devices, alone, fed = (x[-1] for x in (found.devices_m, found.own_mL3[:, layer], found.all_mL3[:, layer]))
    faster = found.per_second_mL[-1, layer] / found.per_second_mL[0, layer]
    return Verdict(
        bool(fed[1] > 0.9 * devices * alone[1] and devices > 2),
        f"From one batch an expert got {alone[1]:.0f} tokens a step, and from the batches of {devices} devices {fed[1]:.0f} (at least "
        f"{fed[0]:.0f}, at most {fed[2]:.0f}). So fed, the experts of one device worked through {faster:.1f} times as many tokens a second.",
    )


def fed(source: Source, layer: int) -> Verdict:
    mean = float(np.mean(by_expert(source, "counts", layer))) if source.steps()[1] else math.nan
    before = source.started_knobs.k * source.description.tokens / source.description.experts[layer]
    found = source.on_devices()
    measured = (
        f" From the batches of {found.devices_m[-1]} devices it got {found.all_mL3[-1, layer, 1]:.0f}."
        if found.done and found.k_L[layer] == source.knobs.k
        else ""
    )
    return too_early(source) or Verdict(
        mean > 1.9 * before, f"An expert now sees {mean:.0f} tokens a step; it was {before:.0f}.{measured}"
    )


def collapsed(source: Source, layer: int) -> Verdict:
    cv = recent(source, "cv_load", layer)
    onto = f"the gate has collapsed onto {busy(source, layer)} of {source.description.experts[layer]} experts"
    return too_early(source) or Verdict(
        cv > COLLAPSED,
        f"CV(load) rose to {cv:.2f}, {MEAN}: {onto}."
        if cv > COLLAPSED
        else f"CV(load) is {cv:.2f}, {MEAN}; collapse is above 1.",
    )


def recovered_by(stat: str, weight: str) -> Callable[[Any, int], Verdict]:
    """A check that a statistic fell below the balanced bound while this weight, and no other, was on."""
    words = {"cv_importance": "CV(importance)", "cv_load": "CV(load)"}

    def check(source: Source, layer: int) -> Verdict:
        value, other = recent(source, stat, layer), {"w_importance": "w_load", "w_load": "w_importance"}[weight]
        if not getattr(source.knobs, weight) > 0 or getattr(source.knobs, other) > 0:
            return Verdict(False, f"Wanted {weight} above 0 and {other} at 0.")
        return too_early(source) or Verdict(
            value < BALANCED,
            f"{words[stat]} is {value:.2f} with {weight} {value_text(getattr(source.knobs, weight))}, {MEAN}; balanced is below {BALANCED:g}.",
        )

    return check


def even_without_a_loss(source: Source, layer: int) -> Verdict:
    cv, effective = recent(source, "cv_counts", layer), recent(source, "effective_experts", layer)
    balance = recent(source, "loss", layer) - recent(source, "task_loss", layer)
    return too_early(source, 100) or Verdict(
        cv < BALANCED and abs(balance) < 1e-4,
        f"CV of the selections is {cv:.2f}, {MEAN} ({effective:.1f} of {source.description.experts[layer]} experts effective), and the "
        f"balancing losses add {max(balance, 0.0):.3f} to the task loss.",
    )


def at_once(even: bool) -> Callable[[Source, int], Verdict]:
    """The check that a turn made the selections even, or uneven, within a step: it reads the LAST steps from the second on."""

    def check(source: Source, layer: int) -> Verdict:
        if early := too_early(source, LAST + 1):
            return early
        turn = last_turn(source)
        spans = (max(1, turn - LAST), max(1, turn - 1)), (turn + 1, turn + LAST)
        before, after = (float(np.mean(source.history("cv_counts", layer, first, last)[1])) for first, last in spans)
        return Verdict(
            (after < BALANCED) == even,
            f"CV of the selections was {before:.2f} before the switch; from its second step on, over {LAST} steps, it is {after:.2f}.",
        )

    return check


# The answers on the reader's own run


def answer_layer(source: Source, layer: int) -> str:
    k, E = per_token(source, layer), source.description.experts[layer]
    return f"In your run each token went to {k:.0f} of {E} experts, so {E / k:.1f} times more weights are stored than used for it."


def answer_softmax(source: Source, layer: int) -> str:
    return f"In your run {per_token(source, layer):.0f} of {source.description.experts[layer]} experts were evaluated for each token."


def answer_top_k(source: Source, layer: int) -> str:
    gate, k = recent(source, "top1_gate", layer), per_token(source, layer)
    gradient = task_gradient(source, layer, source.steps()[1])
    first = "the only gate" if round(k) == 1 else f"the first of {k:.0f} gates"
    measured = "" if math.isnan(gradient) else f", and the task's gradient on the gate's weights is {gradient:.2g}"
    return f"In your run {first} weighs {gate:.2f}{measured}."


def answer_noise(source: Source, layer: int) -> str:
    return (
        f"In your run the spread as applied is {recent(source, 'noise_scale', layer):.2f} logits with the noise knob at "
        f"{value_text(source.knobs.noise)}; at the start it was {at_start(source, 'noise_scale', layer):.2f}."
    )


def answer_batch(source: Source, layer: int) -> str:
    k, tokens, E = source.knobs.k, source.description.tokens, source.description.experts[layer]
    found = source.on_devices()
    measured = [
        f"{rows:.0f} tokens on {devices} device{'s' if devices > 1 else ''}"
        for devices, rows in zip(found.devices_m.tolist(), found.all_mL3[:, layer, 1], strict=True)
    ]
    return (
        f"In your run: {k} · {tokens} / {E} = {k * tokens / E:.0f} tokens for each expert; with 8 devices it would be {8 * k * tokens / E:.0f}."
        + (f" Measured with k = {found.k_L[layer]}: {', '.join(measured)}." if measured else "")
    )


def answer_balance(source: Source, layer: int) -> str:
    E, k = source.description.experts[layer], source.knobs.k
    return (
        f"In your run, over the last {min(LAST, source.steps()[1])} steps, CV(load) is {recent(source, 'cv_load', layer):.2f}, of at most √(E/k − 1) = {math.sqrt(E / k - 1):.2f}, and "
        f"CV(importance) {recent(source, 'cv_importance', layer):.2f}, of at most √(E − 1) = {math.sqrt(E - 1):.2f}."
    )


def answer_after(source: Source, layer: int) -> str:
    return (
        f"In your run the strategy is {source.knobs.strategy}, and the losses beside the task's add "
        f"{max(recent(source, 'loss', layer) - recent(source, 'task_loss', layer), 0.0):.3f}."
    )
