"""What is measured each step, where it lies in the record, and what the tasks report on their held-out splits."""

from typing import NamedTuple

DEAD_AFTER = 100  # an expert is dead when nothing selected it for this many steps
BALANCE = ("cv_importance", "cv_load", "max_over_mean_load", "dead_experts")  # what a run's balance is judged by
BALANCE_STEPS = 50  # last steps over which an ended run's balance is averaged


class Stat(NamedTuple):
    """One measured number (or vector) of each step.

    shape: "" once a step, "L" once a step and MoE layer, "LE" once a step, layer and expert.
    stored: kept in the blocks; the others are computed from the stored ones when read (runs/statistics.py).
    clock: depends on when the trainer was looked at, so the same training measures it differently the next time.
    """

    name: str
    shape: str
    label: str
    unit: str
    help: str
    stored: bool = True
    clock: bool = False


STATS = (
    Stat("loss", "", "loss", "nats", "task loss plus the weighted balancing losses"),
    Stat("task_loss", "", "task loss", "nats", "cross-entropy of the training batch, mean over tokens"),
    Stat("grad_norm", "", "gradient norm", "", "Euclidean norm of all gradients"),
    Stat("seconds", "", "step time", "s", "wall time of the step, waiting for the speed limit included", clock=True),
    Stat("importance", "LE", "importance", "", "sum of each expert's gates over the batch (Shazeer 2017, section 4)"),
    Stat("load", "LE", "load", "tokens", "smooth count of each expert's tokens (Shazeer 2017, appendix A)"),
    Stat("counts", "LE", "selections", "tokens", "hard count of the selections of each expert, before any drop"),
    Stat("noise_scale", "L", "noise scale", "logits", "mean spread of the noise as applied: noise x (softplus + eps)"),
    Stat("logit_spread", "L", "logit spread", "logits", "mean over tokens of the clean logits' standard deviation over the experts"),
    Stat("top1_gate", "L", "mean first gate", "", "mean gate weight of each token's first expert"),
    Stat("dropped", "L", "dropped", "", "share of the selections that were dropped for want of capacity"),
    Stat("unrouted", "L", "without an expert", "", "share of tokens that no expert took: the layer adds nothing to them"),
    Stat("dead_experts", "L", "dead experts", "experts", f"experts that nothing selected in the last {DEAD_AFTER} steps"),
    Stat("churn", "L", "router churn", "", "share of probe tokens whose first expert differs from the last snapshot", clock=True),
    Stat("saturation", "L", "router saturation", "", "mean share of a probe token's top-k experts that were among its top-k at the last snapshot", clock=True),
    Stat("importance_loss", "L", "importance loss", "", "CV(importance) squared, unweighted", stored=False),
    Stat("load_loss", "L", "load loss", "", "CV(load) squared, unweighted", stored=False),
    Stat("cv_importance", "L", "CV(importance)", "", "coefficient of variation of importance over the experts: 0 when all are equal", stored=False),
    Stat("cv_load", "L", "CV(load)", "", "coefficient of variation of the smooth load over the experts: 0 when all are equal", stored=False),
    Stat("cv_counts", "L", "CV(selections)", "", "coefficient of variation of the hard counts over the experts", stored=False),
    Stat("max_over_mean_load", "L", "max / mean load", "x", "largest smooth load over the mean (Shazeer 2017, Table 6)", stored=False),
    Stat("max_vio", "L", "MaxVio", "", "(max - mean) / mean of the counts (Wang et al. 2024)", stored=False),
    Stat("min_vio", "L", "MinVio", "", "(min - mean) / mean of the counts", stored=False),
    Stat("effective_experts", "L", "effective experts", "experts", "exp of the entropy of the count shares", stored=False),
    Stat("entropy", "L", "normalised entropy", "", "entropy of the count shares over ln E: 1 even, 0 collapsed", stored=False),
    Stat("utilisation", "LE", "utilisation", "x ideal", "count over the ideal count: 1 fair, 0 dead", stored=False),
    Stat("load_share", "LE", "load share", "", "each expert's share of all selections", stored=False),
    Stat("importance_share", "LE", "importance share", "", "each expert's share of all gate weight", stored=False),
)  # fmt: skip

STAT = {stat.name: stat for stat in STATS}


class Column(NamedTuple):
    """Where one stored statistic of one layer lies in a row of a block."""

    stat: str
    layer: int  # -1 for a statistic of the whole step
    start: int
    width: int


def layout(layers: int, num_experts: int) -> list[Column]:
    """The columns of a step's row, in STATS order, layer by layer within a statistic. Kept in the run, so old runs stay readable."""
    columns: list[Column] = []
    start = 0
    for stat in STATS:
        if stat.stored:
            width = num_experts if stat.shape == "LE" else 1
            for layer in [-1] if stat.shape == "" else range(layers):
                columns.append(Column(stat.name, layer, start, width))
                start += width
    return columns


# What each task reports on its held-out split: (name, label, unit, True if lower is better). The first is the headline.
METRICS = {
    "text": (("bits_per_byte", "held-out loss", "bits/byte", True), ("perplexity", "perplexity", "per byte", True)),
    "digits": (("accuracy", "held-out accuracy", "", False), ("loss", "held-out loss", "nats", True)),
    "plane": (("accuracy", "held-out accuracy", "", False), ("loss", "held-out loss", "nats", True)),
}


def with_unit(label: str, unit: str) -> str:
    """A label as the head of a column or an axis: "held-out loss, nats"."""
    return f"{label}, {unit}" if unit else label
