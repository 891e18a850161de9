"""What is measured each step, where it lies in the record, and what the tasks report on their held-out splits."""

from collections.abc import Sequence
from typing import Any, NamedTuple

DEAD_AFTER = 100  # an expert is dead when nothing selected it for this many steps
HELD = ". Where it is not measured in each step, the last value stands until the next"
NO_GRADIENT = 1e-6  # share of the whole gradient's norm up to which a gate's task gradient counts as none
BALANCE = ("cv_importance", "cv_load", "max_over_mean_load", "dead_experts")  # what a run's balance is judged by
BALANCE_STEPS = 50  # the last steps, over which the balance of a run that ended, or is compared, is a mean
# Balance without noise, from the selections of an evaluation: name, label, unit.
HELD_OUT_BALANCE = (
    ("cv_held_out", "CV(selections), held-out", ""),
    ("max_over_mean_held_out", "max / mean selections, held-out", "x"),
)
SELECTIONS = "selections"  # what an evaluation's counts are called in the record, beside its metrics


class Stat(NamedTuple):
    """One measured number (or vector) of each step.

    shape: "" once a step, "L" once a step and MoE layer, "LE" once a step, layer and expert.
    stored: kept in the blocks; the others are computed from the stored ones when read (runs/statistics.py).
    clock: depends on wall time, so the same training measures it differently the next time.
    ranks: only of runs that several ranks began together.
    """

    name: str
    shape: str
    label: str
    unit: str
    help: str
    stored: bool = True
    clock: bool = False
    ranks: bool = False


STATS = (
    Stat("loss", "", "loss", "nats", "task loss plus the weighted balancing losses"),
    Stat("task_loss", "", "task loss", "nats", "cross-entropy of the training batch, mean over tokens"),
    Stat("grad_norm", "", "gradient norm", "", "Euclidean norm of all gradients"),
    Stat("seconds", "", "step time", "s", "wall time of the step, waiting for the speed limit included", clock=True),
    Stat("sent_bytes", "", "sent between ranks", "bytes", "bytes that all ranks together sent to other ranks in the step", clock=True, ranks=True),
    Stat("communication", "", "time in communication", "", "share of the step's time in which a rank waited for others or sent to them, mean over ranks; none on a GPU", clock=True, ranks=True),
    Stat("importance", "LE", "importance", "", "sum of each expert's gates over the batch (Shazeer 2017, section 4)"),
    Stat("load", "LE", "load", "tokens", "smooth count of each expert's tokens (Shazeer 2017, appendix A)"),
    Stat("counts", "LE", "selections", "tokens", "hard count of the selections of each expert, before any drop"),
    Stat("noise_scale", "L", "noise scale", "logits", "mean spread of the noise as applied: noise x (softplus + eps)"),
    Stat("logit_spread", "L", "logit spread", "logits", f"mean over tokens of the clean logits' standard deviation over the experts{HELD}"),
    Stat("task_gradient", "L", "task gradient", "", f"norm of the task loss's own gradient on the gate's W_g, without the balancing losses; of two levels the smaller one{HELD}"),
    Stat("router_margin", "L", "router margin", "", f"weakest chosen score minus the strongest unchosen one, mean over tokens: a smaller error in the scores changes no choice. Of the scores that chose, noise included: logits, or where a bias selects sigmoid affinity + bias; with groups the smaller of both levels. None where every expert is chosen or tokens do not choose{HELD}"),
    Stat("router_margin_p10", "L", "router margin, 10th percentile", "", f"the router margin that a tenth of the tokens are below{HELD}"),
    Stat("confidence", "L", "confidence", "", f"mean share of the chosen experts in the softmax of the clean logits over all experts (where a bias selects: in the sigmoid affinities without it), before any drop: 1 sure, k / E undecided{HELD}"),
    Stat("bias_effect", "L", "overlap without the bias", "", f"mean over tokens of |A and B| / |A or B|, A the experts chosen with the bias and B those without it: 1 changes nothing. None where no bias selects{HELD}"),
    Stat("unreachable", "L", "experts out of reach", "experts", f"experts that no token comes near: even the token that comes closest falls short by more than the closest and the farthest token differ. None of fewer than 16 tokens, with two levels of our own gate, or where tokens do not choose{HELD}"),
    Stat("top1_gate", "L", "mean first gate", "", "mean gate weight of each token's first expert"),
    Stat("dropped", "L", "dropped", "", "share of the selections that were dropped for want of capacity"),
    Stat("unrouted", "L", "without an expert", "", "share of tokens that no expert took: the layer adds nothing to them"),
    Stat("dead_experts", "L", "dead experts", "experts", f"experts that nothing selected in the last {DEAD_AFTER} steps"),
    Stat("churn", "L", "router churn", "", "share of probe tokens whose first expert changed within churn_every steps, as of the last multiple of churn_every"),
    Stat("saturation", "L", "router saturation", "", "mean share of a probe token's top-k experts that were among its top-k churn_every steps earlier, as of the last multiple of churn_every"),
    Stat("importance_loss", "L", "importance loss", "", "CV(importance) squared, unweighted", stored=False),
    Stat("load_loss", "L", "load loss", "", "CV(load) squared, unweighted", stored=False),
    Stat("cv_importance", "L", "CV(importance)", "", "coefficient of variation of importance over the experts: 0 when all are equal", stored=False),
    Stat("cv_load", "L", "CV(load)", "", "coefficient of variation of the smooth load over the experts: 0 when all are equal", stored=False),
    Stat("cv_counts", "L", "CV(selections)", "", "coefficient of variation of the hard counts over the experts", stored=False),
    Stat("max_over_mean_load", "L", "max / mean load", "x", "largest smooth load over the mean (Shazeer 2017, Table 6)", stored=False),
    Stat("max_over_mean_devices", "L", "max / mean load of devices", "x", "selections of the busiest device's experts over the mean, before any drop; of several groups, devices with the same experts count as one. None while each device has all experts", stored=False, ranks=True),
    Stat("max_vio", "L", "MaxVio", "", "(max - mean) / mean of the counts (Wang et al. 2024)", stored=False),
    Stat("min_vio", "L", "MinVio", "", "(min - mean) / mean of the counts", stored=False),
    Stat("effective_experts", "L", "effective experts", "experts", "exp of the entropy of the count shares", stored=False),
    Stat("entropy", "L", "normalised entropy", "", "entropy of the count shares over ln E: 1 even, 0 collapsed", stored=False),
    Stat("utilisation", "LE", "utilisation", "x ideal", "count over the ideal count: 1 fair, 0 dead", stored=False),
    Stat("selection_share", "LE", "share of selections", "", "each expert's share of all selections, by hard count", stored=False),
    Stat("importance_share", "LE", "importance share", "", "each expert's share of all gate weight", stored=False),
)  # fmt: skip

STAT = {stat.name: stat for stat in STATS}

# Earlier names of statistics and figures. Scripts and links that have them go on working.
RENAMED = {"load_share": "selection_share", "compare_load": "compare_selections"}


def untaught(task_gradient: Any, grad_norm: Any) -> Any:
    """Whether a gate gets no gradient from the task, judged by the norm of the whole gradient. Numbers or arrays; False for
    NaN.

    A gate that learns has 1e-3 of it or more; where the gradient cancels but for rounding, the most was 4e-10
    (docs/decisions.md).
    """
    return task_gradient <= NO_GRADIENT * grad_norm


class Column(NamedTuple):
    """The place of one stored statistic of one layer in a row of a block."""

    stat: str
    layer: int  # -1 for a statistic of the whole step
    start: int
    width: int


def layout(layers: int, num_experts: int, names: Sequence[str] | None = None) -> list[Column]:
    """columns_of() for layers with the same number of experts each."""
    return columns_of([num_experts] * layers, names)


def columns_of(experts_L: Sequence[int], names: Sequence[str] | None = None) -> list[Column]:
    """The columns of a step's row, statistic by statistic, and layer by layer within one. Kept in the run, so old runs stay readable.

    experts_L: how many experts each layer has. names: stored statistics in their order; None: all that one process measures, in STATS order.
    """
    columns: list[Column] = []
    start = 0
    for name in stats_of_ranks(ranks=1) if names is None else names:
        for layer in [-1] if STAT[name].shape == "" else range(len(experts_L)):
            width = experts_L[layer] if STAT[name].shape == "LE" else 1
            columns.append(Column(name, layer, start, width))
            start += width
    return columns


def stats_of_ranks(ranks: int) -> tuple[str, ...]:
    """The stored statistics that our trainer measures on so many ranks, in STATS order."""
    return tuple(stat.name for stat in STATS if stat.stored and (ranks > 1 or not stat.ranks))


def measured_in(columns: Sequence[Column]) -> list[str]:
    """The statistics that a run's columns hold, in their order."""
    return list(dict.fromkeys(column.stat for column in columns))


class Metric(NamedTuple):
    """One number that an evaluation reports on the held-out split. lower: whether lower is better."""

    name: str
    label: str
    unit: str
    lower: bool


# What each of our own tasks reports. The first is the headline.
CLASSES = (Metric("accuracy", "held-out accuracy", "", False), Metric("loss", "held-out loss", "nats", True))
METRICS = {
    "text": (
        Metric("bits_per_byte", "held-out loss", "bits/byte", True),
        Metric("perplexity", "perplexity", "per byte", True),
    ),
    "digits": CLASSES,
    "plane": CLASSES,
}


def with_unit(label: str, unit: str) -> str:
    """A label as the head of a column or an axis: "held-out loss, nats"."""
    return f"{label}, {unit}" if unit else label
