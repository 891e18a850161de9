"""Eight lessons in the order of the paper: an idea, its formula, an experiment on a live run, and a check that reads it.

A lesson never shows a canned picture: each stage starts a run or turns its knobs, and its check tells from the run's own
statistics whether what the lesson is about has happened. `source` is anything with the read methods of a run (config,
knobs, knob_changes, steps, history). Formulas and figures are those of Shazeer et al. 2017 (arXiv 1701.06538) unless
another source is named. To add a lesson: one entry in LESSONS and a test.
"""

import csv
import io
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from moe_core.schema import BALANCED, COLLAPSED

LAST = 20  # steps over which a check takes its means, so that one batch's noise decides nothing


class Verdict(NamedTuple):
    """What a check found: whether it happened, and the sentence that says what was measured."""

    happened: bool
    text: str


class Stage(NamedTuple):
    """One thing to do: start a run (task is not ""), or turn knobs of the run that the lesson already has."""

    button: str
    watch: str
    check: Callable[[Any, int], Verdict]
    knobs: Mapping[str, Any]
    task: str = ""
    config: Mapping[str, Any] = {}


class Lesson(NamedTuple):
    """idea: at most 90 words. shown: the knobs that matter by now. figures: the live charts, by their names in the catalog.

    answer is the answer in general; answer_on(source, layer) says it with the numbers of the reader's own run.
    layer: the one (from 1) that a new run is looked at in, where the others take longer to show what the lesson is about.
    """

    title: str
    idea: str
    formula: str
    shown: tuple[str, ...]
    figures: tuple[str, ...]
    stages: tuple[Stage, ...]
    question: str
    answer: str
    answer_on: Callable[[Any, int], str]
    layer: int = 1


# What checks and answers read


def recent(source: Any, stat: str, layer: int, count: int = LAST) -> float:
    """Mean of a statistic over the last steps; NaN before the first."""
    last = source.steps()[1]
    if not last:
        return math.nan
    _, values = source.history(stat, layer, first=max(1, last - count + 1), last=last)
    return float(np.mean(values)) if len(values) else math.nan


def by_expert(source: Any, stat: str, layer: int, count: int = LAST) -> np.ndarray:
    """Means (E,) over the last steps; empty before the first."""
    last = source.steps()[1]
    if not last:
        return np.zeros(0)
    _, values = source.history(stat, layer, first=max(1, last - count + 1), last=last)
    return np.asarray(values, np.float64).mean(axis=0)


def per_token(source: Any, layer: int) -> float:
    """Experts that a token went to, from the counts of the last steps."""
    counts_E = by_expert(source, "counts", layer)
    return float(counts_E.sum() / source.config.tokens) if len(counts_E) else math.nan


def busy(source: Any, layer: int) -> int:
    """Experts that together take nine tenths of the selections."""
    counts_E = np.sort(by_expert(source, "counts", layer))[::-1]
    return int(np.searchsorted(np.cumsum(counts_E), 0.9 * counts_E.sum()) + 1) if len(counts_E) else 0


def at_start(source: Any, stat: str, layer: int) -> float:
    """A statistic in the first step; NaN before it."""
    _, values = source.history(stat, layer, first=1, last=1)
    return float(values[0]) if len(values) else math.nan


def waiting(source: Any, wanted: int = LAST) -> Verdict | None:
    """Too early to tell: fewer steps than a mean needs, since the start or since the last turn of a knob."""
    last = source.steps()[1]
    since = max([change.step for change in source.knob_changes() if change.step is not None], default=1)
    seen = last - since + 1 if last else 0
    return None if seen >= wanted else Verdict(False, f"{max(seen, 0)} of {wanted} steps seen with these knobs.")


# The checks, in the order of the lessons


def sparse(source: Any, layer: int) -> Verdict:
    E, k = source.config.num_experts, per_token(source, layer)
    return waiting(source) or Verdict(
        k < E, f"Each token went to {k:.0f} of {E} experts: {100 * k / E:.0f} % of the expert weights did the work."
    )


def more_experts(source: Any, layer: int) -> Verdict:
    k = per_token(source, layer)
    return waiting(source) or Verdict(
        k >= 4, f"Each token now goes to {k:.0f} experts; it was {source.started_knobs.k}."
    )


def decided(source: Any, layer: int) -> Verdict:
    E = source.config.num_experts
    first, now = at_start(source, "top1_gate", layer), recent(source, "top1_gate", layer)
    return waiting(source) or Verdict(
        now > 1.5 / E, f"The first gate was {first:.2f} at step 1 and is {now:.2f}; undecided would be {1 / E:.3g}."
    )


def kept_two(source: Any, layer: int) -> Verdict:
    k = per_token(source, layer)
    return waiting(source) or Verdict(
        round(k) == 2,
        f"{k:.0f} gates of each token are left; the other {source.config.num_experts - round(k)} are exactly 0.",
    )


def noisy(source: Any, layer: int) -> Verdict:
    scale, gate = recent(source, "noise_scale", layer), recent(source, "top1_gate", layer)
    return waiting(source) or Verdict(
        scale > 0.5, f"The noise spreads each logit by {scale:.2f}; the mean first gate is {gate:.2f}."
    )


def quiet(source: Any, layer: int) -> Verdict:
    scale = recent(source, "noise_scale", layer)
    load_E, counts_E = by_expert(source, "load", layer), by_expert(source, "counts", layer)
    return waiting(source) or Verdict(
        scale == 0 and bool(np.allclose(load_E, counts_E)),
        "Without noise the smooth load is the hard count: nothing is left for the load loss to act on."
        if scale == 0
        else f"The noise still spreads each logit by {scale:.2f}.",
    )


def starved(source: Any, layer: int) -> Verdict:
    config = source.config
    counts_E = by_expert(source, "counts", layer)
    expected = source.knobs.k * config.tokens / config.num_experts
    return waiting(source) or Verdict(
        expected <= config.tokens / 8,
        f"k·T/E = {expected:.0f} of {config.tokens} tokens reach an expert on average; measured {counts_E.mean():.0f}, "
        f"from {counts_E.min():.0f} to {counts_E.max():.0f}.",
    )


def fed(source: Any, layer: int) -> Verdict:
    mean = float(np.mean(by_expert(source, "counts", layer))) if source.steps()[1] else math.nan
    before = source.started_knobs.k * source.config.tokens / source.config.num_experts
    return waiting(source) or Verdict(
        mean > 1.9 * before, f"An expert now sees {mean:.0f} tokens a step; it was {before:.0f}."
    )


def collapsed(source: Any, layer: int) -> Verdict:
    cv = recent(source, "cv_load", layer)
    onto = f"the gate has collapsed onto {busy(source, layer)} of {source.config.num_experts} experts"
    return waiting(source) or Verdict(
        cv > COLLAPSED,
        f"CV(load) rose to {cv:.2f}: {onto}." if cv > COLLAPSED else f"CV(load) is {cv:.2f}; collapse is above 1.",
    )


def recovered_by(stat: str, weight: str) -> Callable[[Any, int], Verdict]:
    """A check that a statistic fell below the balanced bound while this weight, and no other, was on."""
    words = {"cv_importance": "CV(importance)", "cv_load": "CV(load)"}

    def check(source: Any, layer: int) -> Verdict:
        value, other = recent(source, stat, layer), {"w_importance": "w_load", "w_load": "w_importance"}[weight]
        if not getattr(source.knobs, weight) > 0 or getattr(source.knobs, other) > 0:
            return Verdict(False, f"Wanted {weight} above 0 and {other} at 0.")
        return waiting(source) or Verdict(
            value < BALANCED,
            f"{words[stat]} is {value:.2f} with {weight} {getattr(source.knobs, weight):g}; balanced is below {BALANCED:g}.",
        )

    return check


def even_without_a_loss(source: Any, layer: int) -> Verdict:
    cv, effective = recent(source, "cv_counts", layer), recent(source, "effective_experts", layer)
    balance = recent(source, "loss", layer) - recent(source, "task_loss", layer)
    return waiting(source, 100) or Verdict(
        cv < BALANCED and abs(balance) < 1e-4,
        f"CV of the selections is {cv:.2f} ({effective:.1f} of {source.config.num_experts} experts effective), and the "
        f"balancing losses add {max(balance, 0.0):.3f} to the task loss.",
    )


# The answers on the reader's own run


def answer_layer(source: Any, layer: int) -> str:
    k, E = per_token(source, layer), source.config.num_experts
    return f"In your run each token went to {k:.0f} of {E} experts, so {E / k:.1f} times more weights are stored than used for it."


def answer_softmax(source: Any, layer: int) -> str:
    return f"In your run {per_token(source, layer):.0f} of {source.config.num_experts} experts were evaluated for each token."


def answer_top_k(source: Any, layer: int) -> str:
    gate = recent(source, "top1_gate", layer)
    k = per_token(source, layer)
    return f"In your run the first of {k:.0f} gates weighs {gate:.2f}, so the others share {1 - gate:.2f}."


def answer_noise(source: Any, layer: int) -> str:
    return (
        f"In your run the spread as applied is {recent(source, 'noise_scale', layer):.2f} logits with the noise knob at "
        f"{source.knobs.noise:g}; at the start it was {at_start(source, 'noise_scale', layer):.2f}."
    )


def answer_batch(source: Any, layer: int) -> str:
    c = source.config
    return (
        f"In your run: {source.knobs.k} · {c.tokens} / {c.num_experts} = {source.knobs.k * c.tokens / c.num_experts:.0f} tokens "
        f"an expert; with 8 devices it would be {8 * source.knobs.k * c.tokens / c.num_experts:.0f}."
    )


def answer_balance(source: Any, layer: int) -> str:
    E, k = source.config.num_experts, source.knobs.k
    return (
        f"In your run CV(load) is {recent(source, 'cv_load', layer):.2f}, of at most √(E/k − 1) = {math.sqrt(E / k - 1):.2f}, and "
        f"CV(importance) {recent(source, 'cv_importance', layer):.2f}, of at most √(E − 1) = {math.sqrt(E - 1):.2f}."
    )


def answer_after(source: Any, layer: int) -> str:
    return (
        f"In your run the strategy is {source.knobs.strategy}, and the losses beside the task's add "
        f"{max(recent(source, 'loss', layer) - recent(source, 'task_loss', layer), 0.0):.3f}."
    )


NO_LOSSES = {"w_importance": 0.0, "w_load": 0.0}

LESSONS = (
    Lesson(
        "The layer",
        "A Mixture-of-Experts layer holds many small networks, the experts, and a gate. For each token the gate gives every "
        "expert a weight, and the layer's output is the weighted sum of the experts' outputs. Most weights are exactly 0, and an "
        "expert with weight 0 is not computed. So a model can hold many more weights than it uses for one token: conditional "
        "computation. Here the tokens are points in the plane, and each colour is the region that an expert answers for.",
        r"y = \sum_{i=1}^{E} G(x)_i \, \mathrm{Expert}_i(x)",
        ("k",),
        ("regions", "load_share"),
        (
            Stage(
                "Train on the plane",
                "The plane is divided among the experts within seconds, and the borders keep moving while the model learns.",
                sparse,
                {"k": 2},
                task="plane",
            ),
            Stage(
                "Give each token 4 experts",
                "The number of selections doubles; regions overlap more, and each step takes longer.",
                more_experts,
                {"k": 4},
            ),
        ),
        "A layer has 8 experts and each token goes to 2 of them. How many of the experts' weights does one token use?",
        "A quarter: 2 of 8 experts are evaluated, the other six cost memory but no arithmetic.",
        answer_layer,
    ),
    Lesson(
        "Softmax gating",
        "The simplest gate multiplies the token by a matrix and takes the softmax. Every expert gets a positive weight, so every "
        "expert must be computed: nothing is saved. But the gate is smooth, and learns by ordinary backpropagation. At the start the "
        "matrix is near zero, all weights are about 1/E, and the experts learn the same thing. As they come to differ, the gate "
        "learns to prefer the ones that help.",
        r"G_\sigma(x) = \mathrm{Softmax}(x \, W_g)",
        ("k",),
        ("probe_gates", "regions"),
        (
            Stage(
                "Train with all 8 experts and no noise",
                "The mean first gate starts near 1/8 and rises as the gate makes up its mind, within about 150 steps.",
                decided,
                {"k": 8, "noise": 0.0},
                task="plane",
            ),
        ),
        "Why does a softmax gate over all experts save no computation?",
        "A softmax is never exactly 0, so every expert's output is needed for every token.",
        answer_softmax,
    ),
    Lesson(
        "Keep the top k",
        "To save computation, keep only the k largest logits of a token and set the others to minus infinity before the softmax. "
        "Their gates are then exactly 0. The kept gates sum to 1. The choice itself has no gradient, yet the gate learns, because the "
        "weights of the kept experts have one. With k = 1 the only gate is 1 whatever its logit, so the paper takes k of 2 or more.",
        r"\begin{aligned} G(x) &= \mathrm{Softmax}(\mathrm{KeepTopK}(H(x), k)) \\"
        r" \mathrm{KeepTopK}(v, k)_i &= \begin{cases} v_i & v_i \text{ in the top } k \\ -\infty & \text{otherwise} \end{cases} \end{aligned}",
        ("k",),
        ("probe_gates", "regions"),
        (
            Stage(
                "Train with all 8 experts",
                "Every column of the gate picture is full: eight gates a token.",
                decided,
                {"k": 8, "noise": 0.0},
                task="plane",
            ),
            Stage("Keep 2", "Six of eight gates vanish from every column at once.", kept_two, {"k": 2}),
        ),
        "Which of a token's gates change when k goes from 8 to 2?",
        "Six become exactly 0, and the two that are kept grow until they sum to 1.",
        answer_top_k,
    ),
    Lesson(
        "Noise",
        "Before the top k are kept, the paper adds normal noise to each logit, with a spread that the gate learns for each token "
        "and expert. Tokens near a border then try other experts now and then, so no expert is shut out by an accident of the start. "
        "Noise also makes the chance of a selection smooth, which the load loss needs. It is drawn while training only; evaluation and "
        "the probe use the clean logits.",
        r"\begin{aligned} H(x)_i = {} & (x W_g)_i \\ & {} + \mathrm{StandardNormal}() \cdot \mathrm{Softplus}((x W_{noise})_i) \end{aligned}",
        ("noise", "k"),
        ("load_share", "regions"),
        (
            Stage("Train with noise 2", "The load of all experts stays together while the noise outweighs what was learnt.", noisy, {"noise": 2.0}, task="plane"),
            Stage("Turn the noise off", "The lines part or hold still: now the gate alone decides.", quiet, {"noise": 0.0}),
        ),
        "Why does the gate start with all weights at zero?",
        "All logits tie, so the first batches are routed by noise alone, which is about balanced: no expert starts ahead.",
        answer_noise,
    ),
    Lesson(
        "The shrinking batch",
        "Each of E experts sees only k·T/E of a batch of T tokens. With many experts that is few, and small matrix products are "
        "slow. The paper's way out is to spread the experts over D devices: the gate and the ordinary layers are copied to each, every "
        "device brings its own batch, and an expert gets its tokens from all of them: k·T·D/E. Memory and work per device then stay "
        "the same as experts and devices grow together.",
        r"\text{tokens per expert} = \frac{k \, T \, D}{E}",
        ("k",),
        ("balance_now", "load_share"),
        (
            Stage(
                "Train with 64 experts",
                "512 tokens a step are spread over 64 experts, 16 for each if all get the same; the bars show who gets more or less.",
                starved,
                {"k": 2},
                task="plane",
                config={"num_experts": 64},
            ),
            Stage("Give each token 8 experts", "Four times as many tokens reach each expert, for four times the work.", fed, {"k": 8}),
        ),
        "With E = 64, k = 2 and T = 512, how many tokens does an expert see? How many with 8 devices?",
        "k·T/E = 16; with 8 devices k·T·D/E = 128.",
        answer_batch,
    ),
    Lesson(
        "Importance loss",
        "Left alone, a gate favours the experts that are already good; they get more tokens, learn faster, and are favoured more. "
        "Soon a few take everything: the gate has collapsed. The importance of an expert is the sum of its gates over a batch. The "
        "importance loss is the squared coefficient of variation of these sums, times a weight: 0 when all are equal, E − 1 when one "
        "expert has everything. The order matters: a gate that was balanced first does not collapse when released.",
        r"L_{importance}(X) = w_{importance} \cdot CV\Big(\sum_{x \in X} G(x)\Big)^2",
        ("noise", "k", "w_importance"),
        ("load_share", "balance"),
        (
            Stage("Train without losses", "A few lines climb and the others sink: in layer 2 within about 60 steps, in layer 1 within about 300.", collapsed, NO_LOSSES, task="text"),
            Stage("Turn w_importance to 1", "The lines come together again: CV(importance) is below 0.4 within about 50 steps.", recovered_by("cv_importance", "w_importance"), {"w_importance": 1.0}),
        ),
        "What are the smallest and the largest value of CV(importance)² with 16 experts?",
        "0 when all importances are equal, and E − 1 = 15 when one expert has all of it.",
        answer_balance,
        layer=2,
    ),
    Lesson(
        "Load loss",
        "Equal importance can hide unequal load: one expert with few tokens and large gates equals another with many tokens and small "
        "ones. What fills a device's memory is the number of tokens, the load. A count has no gradient, so the paper takes the chance "
        "that each expert would be selected if its noise alone were drawn again, and sums these chances: a smooth load. The load loss is "
        "its squared coefficient of variation. Without noise the chance is 0 or 1 and the loss does nothing.",
        r"\begin{aligned} P(x, i) &= \Phi\left(\frac{(x W_g)_i - \mathrm{kth\_excluding}(H(x), k, i)}{\mathrm{Softplus}((x W_{noise})_i)}\right)"
        r" \\ L_{load}(X) &= w_{load} \cdot CV\Big(\sum_{x \in X} P(x, i)\Big)^2 \end{aligned}",
        ("noise", "k", "w_importance", "w_load"),
        ("load_share", "balance"),
        (
            Stage("Train without losses", "The gate of layer 2 collapses within about 60 steps, as in the lesson before.", collapsed, NO_LOSSES, task="text"),
            Stage("Turn w_load to 0.1", "CV(load) falls below 0.4 within about 50 steps.", recovered_by("cv_load", "w_load"), {"w_load": 0.1}),
            Stage("Turn the noise off", "The two curves of smooth load and hard count become one, and the load loss loses its hold.", quiet, {"noise": 0.0}),
        ),
        "Why does the load loss do nothing when the noise knob is at 0?",
        "Without noise the chance of a selection is 0 or 1; its gradient is 0 everywhere, so there is nothing to follow.",
        answer_balance,
        layer=2,
    ),
    Lesson(
        "What came after",
        "Later work balances in other ways. The Switch loss multiplies each expert's share of the tokens by its mean gate. Expert "
        "choice lets experts pick tokens: perfect load, but in a language model it looks at later tokens. Loss-free balancing adds to "
        "each logit a bias that is used for the choice only, and after each step moves it up for experts that got too little and down for "
        "the others: no loss, so no pull away from the task. Switch a collapsed gate to it and watch.",
        r"\begin{gathered} b_i \leftarrow b_i + \gamma \, \mathrm{sign}\big(\overline{c} - c_i\big) \\ \text{top-}k \text{ of } \sigma(x W_g) + b \end{gathered}",
        ("strategy", "bias_speed", "k"),
        ("load_share", "balance"),
        (
            Stage("Train without losses", "The gate of layer 2 collapses once more, within about 60 steps.", collapsed, NO_LOSSES, task="text"),
            Stage(
                "Switch to loss-free",
                "Within about 150 steps the load is even, while the loss is the task's alone.",
                even_without_a_loss,
                {"strategy": "loss-free", "bias_speed": 0.01},
            ),
        ),
        "Loss-free balancing moves a bias instead of adding a loss. What does that leave untouched?",
        "The gradients: they come from the task alone, since the bias is used for choosing and not for weighing.",
        answer_after,
        layer=2,
    ),
)  # fmt: skip


def flashcards() -> str:
    """The questions as CSV for Anki (front, back, tags), a card a lesson."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for number, lesson in enumerate(LESSONS, 1):
        writer.writerow([lesson.question, lesson.answer, f"moescope lesson-{number}"])
    return text.getvalue()
