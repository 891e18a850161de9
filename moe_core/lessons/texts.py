"""Eight lessons in the order of the paper: an idea, its formula, an experiment on a live run, and a check that reads it.

A lesson never shows a canned picture: each stage starts a run or turns its knobs, and its check tells from the run's own
statistics whether the effect that the lesson is about has happened (checks.py). Formulas and figures are those of Shazeer et al.
2017 (arXiv 1701.06538) unless another source is named. To add a lesson: one entry in LESSONS and a test.
"""

import csv
import io
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from moe_core.lessons.checks import (
    Verdict,
    answer_after,
    answer_balance,
    answer_batch,
    answer_layer,
    answer_noise,
    answer_softmax,
    answer_top_k,
    at_once,
    collapsed,
    decided,
    even_without_a_loss,
    fed,
    fed_by_devices,
    gate_alone,
    kept_two,
    more_experts,
    nothing_taught,
    parted_in_noise,
    quiet,
    recovered_by,
    sparse,
    starved,
)
from moe_core.schema import Config


class Stage(NamedTuple):
    """One thing to do: start a run (task is not ""), or turn knobs of the run that the lesson already has, and if it measures, then
    measure that run on devices."""

    button: str
    watch: str
    check: Callable[[Any, int], Verdict]
    knobs: Mapping[str, Any]
    task: str = ""
    config: Mapping[str, Any] = {}
    measures: bool = False


class Lesson(NamedTuple):
    """idea: at most 90 words. shown: the knobs that matter by now. figures: the live charts, by their names in the catalog.

    answer is the answer in general; answer_on(source, layer) says it with the numbers of the reader's own run.
    layer: the one (from 1) that is shown of a new run, since the others take longer to show what the lesson is about.
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

    @property
    def config(self) -> Config:
        """The settings of its run."""
        start = self.stages[0]
        return Config.for_task(start.task, **start.config)


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
        ("regions", "selection_share"),
        (
            Stage(
                "Train on the plane",
                "The plane is divided among the experts within seconds, and the borders keep moving while the model learns. A "
                "balancing loss, which lesson 6 explains, keeps all of them in use.",
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
                "The mean first gate starts near 1/8 and rises as the gate makes up its mind, within about 100 steps. No balancing "
                "loss acts.",
                decided,
                {"k": 8, "noise": 0.0} | NO_LOSSES,
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
        "weights of the kept experts have one. With k = 1 the only gate is 1 whatever its logit: the task's gradient on the gate is 0. "
        "That is why the paper takes k > 1 (section 2.1).",
        r"\begin{aligned} G(x) &= \mathrm{Softmax}(\mathrm{KeepTopK}(H(x), k)) \\"
        r" \mathrm{KeepTopK}(v, k)_i &= \begin{cases} v_i & v_i \text{ in the top } k \\ -\infty & \text{otherwise} \end{cases} \end{aligned}",
        ("k",),
        ("probe_gates", "regions"),
        (
            Stage(
                "Train with all 8 experts",
                "Every column of the gate picture is full: eight gates a token. No balancing loss acts.",
                decided,
                {"k": 8, "noise": 0.0} | NO_LOSSES,
                task="plane",
                config={"task_gradient_every": 25},
            ),
            Stage("Keep 2", "Six of eight gates vanish from every column at once.", kept_two, {"k": 2}),
            Stage(
                "Keep 1",
                "Each token's one gate is 1. The task's gradient on the gate, measured every 25 steps, falls to 0: from now on the "
                "gate does not learn which expert a token needs.",
                nothing_taught,
                {"k": 1},
            ),
        ),
        "Why does the paper keep more than one expert?",
        "The softmax of a single kept logit is 1 whatever the logit, so the task's loss has no gradient on the gate, which then does not "
        "learn. With k > 1 the kept gates depend on their logits.",
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
        ("selection_share", "regions"),
        (
            Stage(
                "Train with noise 4 and no losses",
                "The first steps are even: noise alone routes. Within about 50 steps the lines part all the same. Noise gives every expert "
                "a try; it does not hold the balance.",
                parted_in_noise,
                {"noise": 4.0} | NO_LOSSES,
                task="plane",
            ),
            Stage("Turn the noise off", "Now the gate alone decides, and the lines part further.", gate_alone, {"noise": 0.0}),
        ),
        "Why does the gate start with all weights at zero?",
        "All logits tie, so the first batches are routed by noise alone, which is about balanced: no expert starts ahead.",
        answer_noise,
    ),
    Lesson(
        "The shrinking batch",
        "In a batch of T tokens k·T choices are made, and E experts share them: each sees k·T/E tokens. With many experts that is "
        "few, and small matrix products are slow. The paper's way out is to use D devices. Each has its own batch, a copy of the gate and "
        "the ordinary layers, and a part of the experts. An expert then gets tokens from all batches: k·T·D/E. With twice the experts on "
        "twice the devices it sees as many as before. Here processes stand for the devices.",
        r"\text{tokens per expert} = \frac{k \, T \, D}{E}",
        ("k",),
        ("balance_now", "batch_devices"),
        (
            Stage(
                "Train with 64 experts",
                "Each of 512 tokens goes to 2 of 64 experts, so an expert gets 16 tokens if all get the same: that is the dashed line. An orange "
                "bar is an expert that gets more, a blue bar one that gets less. A balancing loss, which lesson 6 explains, brings them near the line.",
                starved,
                {"k": 2},
                task="plane",
                config={"num_experts": 64},
            ),
            Stage(
                "Measure on 1, 2 and 4 devices",
                "The experts of your run are dealt over 1, then 2, then 4 processes, which send each other their tokens. This takes about 20 seconds. "
                "A dot is the number of tokens that an expert got: the dots rise as the formula says. The numbers above them, rows/s, say how many "
                "tokens the experts of one device work through in a second: they rise too.",
                fed_by_devices,
                {},
                measures=True,
            ),
            Stage(
                "Give each token 8 experts",
                "This feeds the experts without more devices: each gets four times as many tokens. But the work is four times as much too. Then the "
                "devices are measured again, and the chart shows the new k.",
                fed,
                {"k": 8},
                measures=True,
            ),
        ),
        "With E = 64, k = 2 and T = 512, how many tokens does an expert see on average? How many with 8 devices?",
        "k·T/E = 2·512/64 = 16; with 8 devices k·T·D/E = 128.",
        answer_batch,
    ),
    Lesson(
        "Importance loss",
        "Left alone, a gate favours the experts that are already good; they get more tokens, learn faster, and are favoured more. "
        "Soon a few take everything: the gate has collapsed. The importance of an expert is the sum of its gates over a batch. The "
        "importance loss is the squared coefficient of variation of these sums, times a weight: 0 when all are equal, E − 1 when one "
        "expert has everything.",
        r"L_{importance}(X) = w_{importance} \cdot CV\Big(\sum_{x \in X} G(x)\Big)^2",
        ("noise", "k", "w_importance"),
        ("selection_share", "balance"),
        (
            Stage("Train without losses", "A few lines climb and the others sink: CV(load) passes 1 in layer 2 within about 50 steps, in layer 1 within about 150.", collapsed, NO_LOSSES, task="text"),
            Stage("Turn w_importance to 1", "The lines come together again: CV(importance) is below 0.4 within about 20 steps.", recovered_by("cv_importance", "w_importance"), {"w_importance": 1.0}),
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
        ("selection_share", "balance"),
        (
            Stage("Train without losses", "The gate of layer 2 collapses within about 50 steps, as in the lesson before.", collapsed, NO_LOSSES, task="text"),
            Stage("Turn w_load to 0.1", "CV(load) falls below 0.4 within about 30 steps.", recovered_by("cv_load", "w_load"), {"w_load": 0.1}),
            Stage("Turn the noise off", "The load loss stops acting, and CV(load) creeps up: from about 0.2 to about 0.4 within 100 steps.", quiet, {"noise": 0.0}),
        ),
        "Why does the load loss do nothing when the noise knob is at 0?",
        "Without noise the chance of a selection is 0 or 1; its gradient is 0 everywhere, so there is nothing to follow.",
        answer_balance,
        layer=2,
    ),
    Lesson(
        "What came after",
        "Later work balances in other ways. The Switch loss multiplies each expert's share of the tokens by its mean gate. Expert "
        "choice lets experts pick tokens, but in a language model it looks at later ones. Loss-free balancing adds to each score a bias "
        "that is used for the choice only. After each step it moves up for experts that got too little and down for the others: no loss, "
        "so no pull away from the task. Quantile balancing sets it at once to what would have evened the batch.",
        r"\begin{gathered} \text{top-}k \text{ of } s + b, \quad s = \sigma(x W_g) \\ b_i \leftarrow b_i + \gamma \, \mathrm{sign}\big(\overline{c} - c_i\big)"
        r" \quad \text{or} \quad b_i \leftarrow Q_{k/E}\big(\tau_t - s_{ti}\big) \\ \tau_t: \text{ the } (k+1)\text{-th largest of } s_t + b \end{gathered}",
        ("strategy", "bias_speed", "k"),
        ("selection_share", "balance"),
        (
            Stage("Train without losses", "The gate of layer 2 collapses once more, within about 50 steps.", collapsed, NO_LOSSES, task="text"),
            Stage(
                "Switch to loss-free",
                "Within about 100 steps the load is even, while the loss is the task's alone.",
                even_without_a_loss,
                {"strategy": "loss-free", "bias_speed": 0.01},
            ),
            Stage(
                "Switch to none",
                "Without the biases the selections are uneven again from the first step on: the gate itself has not changed.",
                at_once(even=False),
                {"strategy": "none"},
            ),
            Stage(
                "Switch to quantile",
                "One update later the selections are even: one batch says how large each bias must be.",
                at_once(even=True),
                {"strategy": "quantile"},
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
