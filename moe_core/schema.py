"""The vocabulary: what fixes a run (Config), what may be turned while it trains (Knobs), what is measured (STATS).

Each setting and each statistic is declared once, here. Sliders, command-line flags, validation, the stored layout, axis
labels and the documentation follow from these declarations. Standard library only.
"""

import math
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields, replace
from typing import Any, NamedTuple, Self, TypeVar

TASKS = ("text", "digits", "plane")
PLANES = ("spirals", "rings", "checkerboard", "gaussians")
DEAD_AFTER = 100  # an expert is dead when nothing selected it for this many steps
WINDOW = 100  # steps over which co-activation and specialisation are counted
PROBE_TOKENS = 256
AUTOBALANCE = "autobalance"  # who made a knob change that the knob of this name made
BALANCED, COLLAPSED = 0.4, 1.0  # CV(load) below the first is Balanced, above the second Collapsed
BALANCE = ("cv_importance", "cv_load", "max_over_mean_load", "dead_experts")  # what a run's balance is judged by
BALANCE_STEPS = 50  # last steps over which an ended run's balance is averaged
LOOKS_AHEAD = "not comparable: looks ahead"  # said beside each held-out number for which looks_ahead() is true
AHEAD = "†"  # marks one where there is no room to say it


class Strategy(NamedTuple):
    """A way of balancing, as a person must know it; moe_core/nn/strategies.py has what it computes."""

    help: str
    causal: bool = (
        True  # False: what a token gets depends on later tokens, so a language model's perplexity flatters it
    )
    whole: bool = False  # each expert takes k * tokens / num_experts tokens, which must be a whole number
    hierarchical: bool = False  # works with groups of experts too
    zero_start: bool = False  # the gate may start at zero: its noise parts the experts


STRATEGIES = {
    "none": Strategy("the noisy top-k gate by itself", hierarchical=True, zero_start=True),
    "paper": Strategy("importance and load loss (Shazeer et al. 2017)", hierarchical=True, zero_start=True),
    "switch": Strategy("one auxiliary loss: share of tokens times mean gate (Fedus et al. 2021)", hierarchical=True),
    "loss-free": Strategy("a bias for each expert, stepped after each update, chooses (Wang et al. 2024)"),
    "expert-choice": Strategy(
        "each expert takes its best tokens; it looks at later tokens, so perplexity is not comparable (Zhou et al. 2022)",
        causal=False,
        whole=True,
    ),
    "strictly-balanced": Strategy(
        "each expert keeps its best tokens of the batch, and learns a threshold for evaluation (Shazeer et al. 2017, appendix F)",
        whole=True,
    ),
    "even": Strategy("tokens dealt to the experts in turn: the control, from which the gate learns nothing"),
}
NOISY = ("none", "paper", "switch")  # the strategies that draw noise
BY_TOKEN = (*NOISY, "loss-free")  # those in which each token chooses, so that choices can be dropped


class Meta(NamedTuple):
    """What a field knows about itself beside its type and default."""

    help: str
    label: str = ""
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()
    scale: str = "linear"  # "linear", "log", or "log0": logarithmic with a 0 at the left end
    step: float | None = None  # distance between two positions of a linear slider
    unit: str = ""
    tasks: tuple[str, ...] = TASKS  # the tasks that read this setting
    strategies: tuple[str, ...] = ()  # the strategies that read this knob; () = all
    hierarchical: bool = False  # only a run with groups of experts reads this knob


def setting(default: Any, help: str, **meta: Any) -> Any:
    """A field of Config or Knobs whose range, unit and help stand beside its default."""
    return field(default=default, metadata={"meta": Meta(help, **meta)})


def meta_of(settings: "type[Config] | type[Knobs]", name: str) -> Meta:
    """The declaration of one field; KeyError if there is none of that name."""
    meta: Meta = settings.__dataclass_fields__[name].metadata["meta"]
    return meta


@dataclass(frozen=True)
class Config:
    """A run's identity: fixed from its first step to its last."""

    task: str = setting("text", "what the model learns", choices=TASKS)
    num_experts: int = setting(16, "experts in each MoE layer", low=1, high=256)
    groups: int = setting(
        0, "groups of experts, each with a gate below a primary gate; 0 or 1 is one flat gate", low=0, high=256
    )
    d_model: int = setting(64, "width of a token", low=1, high=4096)
    d_hidden: int = setting(128, "width of an expert's hidden layer", low=1, high=16384)
    layers: int = setting(2, "MoE layers", low=1, high=4)
    tokens: int = setting(1024, "tokens in a training batch", low=1, high=65536)
    context: int = setting(
        128, "bytes that the language model sees at once", low=2, high=1024, unit="bytes", tasks=("text",)
    )
    text: tuple[str, ...] = setting((), "your own files or folders, one domain each", tasks=("text",))
    data: str = setting("", "your own .npz (x, y) or CSV (last column is y)", tasks=("digits",))
    plane: str = setting("spirals", "the pattern of the points", choices=PLANES, tasks=("plane",))
    plane_noise: float = setting(0.05, "spread of the points around the pattern", low=0.0, high=1.0, tasks=("plane",))
    seed: int = setting(0, "seed of weights, batches and noise", low=0, high=2**31 - 1)
    steps: int = setting(0, "steps to train; 0 trains until stopped", low=0, high=10**9)
    eval_every: int = setting(50, "steps between two evaluations of the held-out split", low=1, high=10**9)
    device: str = setting("auto", "auto, cpu, cuda, cuda:1 or mps")
    precision: str = setting(
        "float32", "autocast precision of the model; statistics stay float32", choices=("float32", "bfloat16")
    )
    threads: int = setting(0, "torch's CPU threads; 0 chooses by measuring", low=0, high=1024)
    checkpoint_every: float = setting(
        60.0,
        "seconds between two checkpoints; 0 writes them only when asked and at the end",
        low=0.0,
        high=1e6,
        unit="s",
    )

    @classmethod
    def for_task(cls, task: str, **given: Any) -> Self:
        """The defaults of a task, with what is given in their place."""
        return cls(**{"task": task} | PRESETS.get(task, {}) | given)


# Where a task departs from the defaults above, which are the text task's.
PRESETS: dict[str, dict[str, Any]] = {
    "digits": {"num_experts": 8, "layers": 1, "tokens": 256, "d_hidden": 64},
    "plane": {"num_experts": 8, "layers": 1, "tokens": 512, "d_model": 32, "d_hidden": 32},
}


@dataclass(frozen=True)
class Knobs:
    """What a person turns while the run trains. A change takes effect at the top of the next step."""

    noise: float = setting(
        1.0, "scale of the noise on the gate's logits while training", low=0.0, high=4.0, step=0.05, strategies=NOISY
    )
    k: int = setting(2, "experts selected for each token", label="k, experts per token", low=1, high=256, step=1)
    w_importance: float = setting(
        0.1, "weight of the importance loss", low=0.0, high=1.0, scale="log0", strategies=("paper", "strictly-balanced")
    )
    w_load: float = setting(
        0.1, "weight of the load loss; needs noise to act", low=0.0, high=1.0, scale="log0", strategies=("paper",)
    )
    strategy: str = setting("paper", "how the experts are kept in balance", choices=tuple(STRATEGIES))
    w_switch: float = setting(
        0.01, "weight of Switch's auxiliary loss", low=0.0, high=1.0, scale="log0", strategies=("switch",)
    )
    bias_speed: float = setting(
        1e-3, "how far an expert's bias moves at each step", low=0.0, high=0.1, scale="log0", strategies=("loss-free",)
    )
    w_sequence: float = setting(
        0.0, "weight of the balance within each sequence", low=0.0, high=1.0, scale="log0", strategies=("loss-free",)
    )
    w_threshold: float = setting(
        1e-3,
        "weight of the loss that teaches the thresholds",
        low=0.0,
        high=1.0,
        scale="log0",
        strategies=("strictly-balanced",),
    )
    w_z: float = setting(
        0.0,
        "weight of the router z-loss, which keeps logits small",
        low=0.0,
        high=1.0,
        scale="log0",
        strategies=tuple(name for name in STRATEGIES if name != "even"),
    )
    capacity_factor: float = setting(
        0.0, "most tokens of an expert, in fair shares; 0 drops none", low=0.0, high=8.0, step=0.05, strategies=BY_TOKEN
    )
    off: str = setting("", "experts switched off, counted from 1: 4,11 in every layer, 2:4 for layer 2's expert 4")
    k_primary: int = setting(2, "groups selected for each token", low=1, high=256, step=1, hierarchical=True)
    noise_primary: float = setting(
        1.0,
        "scale of the noise on the primary gate's logits while training",
        low=0.0,
        high=4.0,
        step=0.05,
        strategies=NOISY,
        hierarchical=True,
    )
    w_importance_primary: float = setting(
        0.1,
        "weight of the importance loss over groups",
        low=0.0,
        high=1.0,
        scale="log0",
        strategies=("paper",),
        hierarchical=True,
    )
    w_load_primary: float = setting(
        0.1,
        "weight of the load loss over groups; needs noise_primary to act",
        low=0.0,
        high=1.0,
        scale="log0",
        strategies=("paper",),
        hierarchical=True,
    )
    autobalance: float = setting(
        0.0,
        "CV(load) to hold by steering the loss weights; 0 leaves them to you",
        low=0.0,
        high=1.0,
        scale="log0",
        strategies=("paper", "switch"),
    )
    lr: float = setting(3e-3, "Adam's step size", label="learning rate", low=1e-5, high=1e-1, scale="log")
    speed_limit: float = setting(
        0.0,
        "most steps a second; 0 is as fast as it goes",
        label="speed limit",
        low=0.0,
        high=1000.0,
        scale="log0",
        unit="steps/s",
    )


def looks_ahead(task: str, strategy: str) -> bool:
    """Whether a held-out number was made with later tokens in sight, which only a model of sequences should not see.

    strategy: the one in force at the evaluation, whatever the run trained with before: it alone routes the held-out split.
    """
    return task == "text" and not STRATEGIES[strategy].causal


def reads(config: Config, strategy: str, name: str) -> bool:
    """Whether a knob acts in a run of this config while it is balanced so: it trains the same whatever the others are."""
    meta = meta_of(Knobs, name)
    flat = config.groups < 2
    return (
        config.task in meta.tasks and strategy in (meta.strategies or STRATEGIES) and not (flat and meta.hierarchical)
    )


def experts_per_token(config: Config, knobs: Knobs) -> int:
    """Experts that each token is sent to: k, or k in each of k_primary groups."""
    return knobs.k * (knobs.k_primary if config.groups > 1 else 1)


S = TypeVar("S", "Config", "Knobs")


def label_of(name: str) -> str:
    """The words that a person sees for a knob."""
    return meta_of(Knobs, name).label or name


def value_text(value: float | str) -> str:
    """A knob's value as a person reads it: 0.1, 2, 3e-3, paper; a dash for no word."""
    if isinstance(value, str):
        return value or "–"
    if value and abs(value) < 0.01:
        digits, exponent = f"{value:.0e}".split("e")
        if float(f"{digits}e{exponent}") == value:
            return f"{digits}e{int(exponent)}"
    return f"{value:g}"


def parse_setting(settings: type[Config] | type[Knobs], name: str, value: Any) -> Any:
    """A value of the field's own type, within its range, from a number or its text. ValueError says what was wanted."""
    declared: Mapping[str, Field[Any]] = settings.__dataclass_fields__
    if name not in declared:
        raise ValueError(f"unknown {settings.__name__.lower().rstrip('s')} {name!r}; there are: {', '.join(declared)}")
    meta = meta_of(settings, name)
    kind: Any = type(declared[name].default)
    if kind is tuple:
        return (value,) if isinstance(value, str) else tuple(value)
    if kind is str:
        if not isinstance(value, str) or (meta.choices and value not in meta.choices):
            raise ValueError(
                f"{name} must be {'one of ' + ', '.join(meta.choices) if meta.choices else 'text'}, got {value!r}"
            )
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number, got {value!r}") from None
    if not math.isfinite(number) or not meta.low <= number <= meta.high:
        raise ValueError(f"{name} must be between {meta.low:g} and {meta.high:g}, got {value}")
    if kind is int and number != int(number):
        raise ValueError(f"{name} must be a whole number, got {value}")
    return kind(number)


def check(config: Config, knobs: Knobs) -> tuple[Config, Knobs]:
    """Both with every value of its own type and in range, or a ValueError that says what was wanted, given, and what to do."""
    config = Config(**{f.name: parse_setting(Config, f.name, getattr(config, f.name)) for f in fields(Config)})
    knobs = Knobs(**{f.name: parse_setting(Knobs, f.name, getattr(knobs, f.name)) for f in fields(Knobs)})
    if config.text and config.task != "text":
        raise ValueError(f"--text is for the text task, got task {config.task}; add --task text")
    if config.data and config.task != "digits":
        raise ValueError(f"--data is for the digits task, got task {config.task}; add --task digits")
    if config.task == "text" and config.tokens % config.context:
        raise ValueError(
            f"tokens must be a multiple of context={config.context}, got {config.tokens}; use {config.context * max(1, config.tokens // config.context)}"
        )
    if config.groups > 1 and config.num_experts % config.groups:
        raise ValueError(
            f"num_experts={config.num_experts} must be divisible by groups={config.groups}; change one of them"
        )
    for f in fields(Knobs):
        check_knob(config, f.name, getattr(knobs, f.name))
    _check_together(config, knobs)
    return config, knobs


def check_knob(config: Config, name: str, value: Any, knobs: Knobs | None = None) -> Any:
    """One knob's new value for a run of this config, or a ValueError.

    knobs: how the others stand, which the new value must go with. Without them, it is checked by itself only.
    """
    value = parse_setting(Knobs, name, value)
    if name in ("k", "k_primary") and value > highest(config, name):
        most = {"k": "num_experts / groups" if config.groups > 1 else "num_experts", "k_primary": "groups"}[name]
        raise ValueError(f"{name} must be between 1 and {most}={highest(config, name):g}, got {value}")
    if name == "off":
        switched_off(config, value)
        if value.strip().isdecimal():  # the record's column would take a word like "4" for a number: say it by layer
            value = ",".join(f"{layer + 1}:{int(value)}" for layer in range(config.layers))
    if name == "strategy" and config.groups > 1 and not STRATEGIES[value].hierarchical:
        able = ", ".join(n for n, strategy in STRATEGIES.items() if strategy.hierarchical)
        raise ValueError(
            f"with groups={config.groups} strategy must be one of {able}, got {value}; use one or groups=0"
        )
    if knobs is not None:
        _check_together(config, replace(knobs, **{name: value}))
    return value


def highest(config: Config, name: str) -> float:
    """The highest value that a knob may take in a run of this config."""
    high = meta_of(Knobs, name).high
    groups = config.groups if config.groups > 1 else 1
    if name == "k":
        return min(high, config.num_experts // groups)
    return min(high, groups) if name == "k_primary" and groups > 1 else high


def switched_off(config: Config, text: str) -> tuple[tuple[int, ...], ...]:
    """The experts that the knob `off` names, counted from 0, for each layer. ValueError for what is not in this run."""
    off: list[set[int]] = [set() for _ in range(config.layers)]
    for word in filter(None, (part.strip() for part in text.split(","))):
        layer, colon, expert = word.rpartition(":")
        if not (expert.isdecimal() and (layer.isdecimal() or not colon)):
            raise ValueError(
                f"off must list experts counted from 1, like 4,11 or 2:4 for layer 2's expert 4, got {word!r}"
            )
        if not 1 <= int(expert) <= config.num_experts or (colon and not 1 <= int(layer) <= config.layers):
            raise ValueError(
                f"off must name experts 1 to {config.num_experts} of layers 1 to {config.layers}, got {word!r}"
            )
        for one in [int(layer) - 1] if colon else range(config.layers):
            off[one].add(int(expert) - 1)
    return tuple(tuple(sorted(one)) for one in off)


TOGETHER = {"strategy", "k", "k_primary", "off"}  # the knobs that must go with each other


def _check_together(config: Config, knobs: Knobs) -> None:
    """ValueError if knobs that are each in range cannot go together."""
    E, k, groups = config.num_experts, knobs.k, max(1, config.groups)
    if STRATEGIES[knobs.strategy].whole and k * config.tokens % E:
        raise ValueError(
            f"{knobs.strategy} gives each expert k * tokens / num_experts tokens, which must be a whole number, "
            f"got {k} * {config.tokens} / {E}; change k or tokens"
        )
    for layer, off in enumerate(switched_off(config, knobs.off)):
        left = [E // groups - sum(e // (E // groups) == group for e in off) for group in range(groups)]
        if groups == 1 and left[0] < k:
            raise ValueError(
                f"at least k={k} experts must stay on in each layer, got {left[0]} in layer {layer + 1} with off={knobs.off}"
            )
        if groups > 1 and (any(0 < n < k for n in left) or sum(n > 0 for n in left) < knobs.k_primary):
            raise ValueError(
                f"with off={knobs.off} each group must keep k={k} experts or none, and k_primary={knobs.k_primary} groups "
                f"some; got {', '.join(map(str, left))} on in the groups of layer {layer + 1}"
            )


def as_dict(settings: Config | Knobs) -> dict[str, Any]:
    """Plain JSON types; from_dict reads it back."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(settings).items()}


def from_dict(settings: type[S], values: Mapping[str, Any]) -> S:
    """The settings of a stored run. Fields that a later version added take their default; unknown ones are dropped."""
    known = {f.name for f in fields(settings)}
    return settings(**{name: parse_setting(settings, name, value) for name, value in values.items() if name in known})


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
    Stat("cv_importance", "L", "CV(importance)", "", "coefficient of variation of importance over the experts", stored=False),
    Stat("cv_load", "L", "CV(load)", "", "coefficient of variation of the smooth load over the experts", stored=False),
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
