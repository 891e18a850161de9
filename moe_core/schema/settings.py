"""What fixes a run (Config) and what may be turned while it trains (Knobs), each with its range, unit and help."""

import math
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Context
from typing import Any, NamedTuple, Self

TASKS = ("text", "digits", "plane")
PLANES = ("spirals", "rings", "checkerboard", "gaussians")
# The largest models that are known have 61 x 256; a row of 256 x 1024 takes 3 MB (docs/decisions.md).
MOST_LAYERS, MOST_EXPERTS = 256, 1024
WINDOW = 100  # steps over which co-activation and specialisation are counted
PROBE_TOKENS = 256
AUTOBALANCE = "autobalance"  # the `who` of knob changes by autobalance, and the name of its knob
BALANCED, COLLAPSED = 0.4, 1.0  # CV(load) below the first is Balanced, above the second Collapsed
LOOKS_AHEAD = "not comparable: looks ahead"  # shown beside each held-out number for which looks_ahead() is true
AHEAD = "†"  # the short mark for the same, where there is no room for the words


class Strategy(NamedTuple):
    """A way of balancing: what people are told of it, and what the rest of the program must know; moe_core/nn/strategies.py has
    its equations."""

    help: str
    about: str = ""  # what it does and when it does not, in two lines
    formula: str = ""  # in the letters of docs/strategies.md
    noisy: bool = False  # its gate draws noise while training
    by_token: bool = False  # each token chooses, so that choices can be dropped and weighed over all experts
    biased: bool = False  # a bias of each expert is added to the scores that choose
    learns: bool = True  # False: a control, whose gate nothing teaches
    losses_even: bool = False  # measured: strategy paper with both weights up evens its collapsed gate (diagnosis.py)
    causal: bool = True  # False: evaluation depends on later tokens, which flatters a language model
    whole: bool = False  # each expert takes k * tokens / num_experts tokens, which must be a whole number
    hierarchical: bool = False  # works with groups of experts too
    zero_start: bool = False  # the gate may start at zero: its noise parts the experts
    weigh: str = "kept"  # how the chosen are weighed where the knob `weigh` says own


STRATEGIES = {
    "none": Strategy(
        "the noisy top-k gate by itself",
        "Nothing evens the load: an expert that is ahead learns more and is chosen more, so the gate may collapse.",
        "top-k of x W_g + noise",
        noisy=True,
        by_token=True,
        losses_even=True,
        hierarchical=True,
        zero_start=True,
    ),
    "paper": Strategy(
        "importance and load loss (Shazeer et al. 2017)",
        "Two losses make the experts' sums of gates and their expected numbers of tokens alike. The second needs noise to act.",
        "w_importance · CV²(importance) + w_load · CV²(load)",
        noisy=True,
        by_token=True,
        losses_even=True,
        hierarchical=True,
        zero_start=True,
    ),
    "switch": Strategy(
        "one auxiliary loss: share of tokens times mean gate (Fedus et al. 2021)",
        "One loss moves gate weight away from the experts that are chosen most.",
        "w_switch · E Σᵢ fᵢ Pᵢ (fᵢ: share of the selections, Pᵢ: mean gate)",
        noisy=True,
        by_token=True,
        hierarchical=True,
        weigh="all",
    ),
    "loss-free": Strategy(
        "a bias for each expert, stepped after each update, chooses (Wang et al. 2024)",
        "No loss: after each step the bias of an expert with too few tokens rises, else it falls. It chooses and weighs nothing.",
        "top-k of sᵢ + bᵢ, then bᵢ += bias_speed · sign(mean − nᵢ)",
        by_token=True,
        biased=True,
    ),
    "quantile": Strategy(
        "a bias for each expert, set after each update to what would have evened it, chooses (Su 2026)",
        "As loss-free, but the bias is computed and not stepped: what would have evened the last batch. There is no speed to choose.",
        "top-k of sᵢ + bᵢ, then bᵢ = the k/E quantile over t of cutoffₜ − sₜᵢ",
        by_token=True,
        biased=True,
    ),
    "expert-choice": Strategy(
        "each expert takes its best tokens; it looks at later tokens, so perplexity is not comparable (Zhou et al. 2022)",
        "Exactly even. It looks at later tokens of a sequence, so its perplexity cannot be compared with the others'.",
        "expert i takes its k T/E tokens with the largest gates",
        causal=False,
        whole=True,
    ),
    "strictly-balanced": Strategy(
        "each expert keeps its best tokens of the batch, and learns a threshold for evaluation (Shazeer et al. 2017, appendix F)",
        "Exactly even in training, which looks at the whole batch. In evaluation each expert goes by a threshold that it has learnt.",
        "expert i keeps its k T/E largest gates; in evaluation those above tᵢ",
        whole=True,
    ),
    "even": Strategy(
        "tokens dealt to the experts in turn: the control, from which the gate learns nothing",
        "A control: the load is exactly even, every weight is 1/k, and the gate learns nothing.",
        "token t goes to experts t k to t k + k − 1, modulo E",
        learns=False,
    ),
}
OWN = "own"  # the value of `weigh` that leaves the weighing to the strategy
WEIGHINGS = (OWN, "kept", "all")
SCOPES = ("sequence", "micro-batch", "batch", "global")  # of balance_over
GLOBAL_BATCHES = 8  # that "global" takes together, the present one included


def strategies_with(flag: str) -> tuple[str, ...]:
    """The names of the strategies that have a flag of Strategy."""
    return tuple(name for name, strategy in STRATEGIES.items() if getattr(strategy, flag))


class Meta(NamedTuple):
    """The declaration of a field, beside its type and default."""

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
    paces: bool = False  # a knob that sets how fast the run trains and changes no number: no chart marks its turns
    before: Any = None  # the value for runs that were recorded before this field existed; None: its default


def setting(default: Any, help: str, **meta: Any) -> Any:
    """A field of Config or Knobs with its range, unit and help beside its default."""
    return field(default=default, metadata={"meta": Meta(help, **meta)})


def meta_of(settings: "type[Config] | type[Knobs]", name: str) -> Meta:
    """The declaration of one field; KeyError if there is none of that name."""
    meta: Meta = settings.__dataclass_fields__[name].metadata["meta"]
    return meta


def range_text(meta: Meta) -> str:
    """The values that a number may take: "1 to 1,024", "0 to 1,000 steps/s"; "" for what is not a number."""
    if not (math.isfinite(meta.low) and math.isfinite(meta.high)):
        return ""
    return f"{number_text(meta.low)} to {number_text(meta.high)} {meta.unit}".strip()


def number_text(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


@dataclass(frozen=True)
class Config:
    """A run's identity: fixed from its first step to its last."""

    task: str = setting("text", "what the model learns", choices=TASKS)
    num_experts: int = setting(16, "experts in each MoE layer", low=1, high=MOST_EXPERTS)
    groups: int = setting(
        0, "groups of experts, each with a gate below a primary gate; 0 or 1 is one flat gate", low=0, high=MOST_EXPERTS
    )
    d_model: int = setting(64, "width of a token", low=1, high=4096)
    d_hidden: int = setting(32, "width of an expert's hidden layer", low=1, high=16384)
    layers: int = setting(2, "MoE layers", low=1, high=MOST_LAYERS)
    tokens: int = setting(1024, "tokens in a training batch", low=1, high=65536)
    context: int = setting(
        128, "bytes that the language model sees at once", low=2, high=1024, unit="bytes", tasks=("text",)
    )
    text: tuple[str, ...] = setting((), "your own files or folders, one domain each", tasks=("text",))
    data: str = setting(
        "", "your own CSV, .npy or .npz (x and y: rows or images, and their classes), gzip or not", tasks=("digits",)
    )
    label: str = setting(
        "", "the column of --data that is the class: its name, or its number from 1", tasks=("digits",)
    )
    drop: tuple[str, ...] = setting((), "columns of --data to leave out: names, or numbers from 1", tasks=("digits",))
    missing: str = setting(
        "refuse", "what to do where --data lacks a value: refuse it, fill in the column's mean, or drop the row",
        choices=("refuse", "mean", "drop"), tasks=("digits",),
    )  # fmt: skip
    plane: str = setting("spirals", "the pattern of the points", choices=PLANES, tasks=("plane",))
    plane_noise: float = setting(0.05, "spread of the points around the pattern", low=0.0, high=1.0, tasks=("plane",))
    seed: int = setting(0, "seed of weights, batches and noise", low=0, high=2**31 - 1)
    steps: int = setting(0, "steps to train; 0 trains until stopped", low=0, high=10**9)
    eval_every: int = setting(50, "steps between two evaluations of the held-out split", low=1, high=10**9)
    churn_every: int = setting(
        50, "steps over which router churn and saturation are measured; 0 measures neither", low=0, high=10**9, before=0
    )
    # fmt: off
    scores_every: int = setting(10, "steps between two measurements of what the scores say: router margin, confidence and more", low=1, high=10**9, before=1)
    task_gradient_every: int = setting(100, "steps between two measurements of the task's gradient on the gates", low=1, high=10**9, before=25)
    launch: str = setting("eager", "how a CUDA GPU gets its steps: eager, call by call; graph, captured once and replayed (bfloat16 only, not yet tried on a GPU); waiting, with a wait in each, as runs before this setting", choices=("eager", "graph", "waiting"), before="waiting")
    # fmt: on
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
        1.0,
        "scale of the noise on the gate's logits while training",
        low=0.0,
        high=4.0,
        step=0.05,
        strategies=strategies_with("noisy"),
    )
    k: int = setting(
        2, "experts selected for each token", label="k, experts per token", low=1, high=MOST_EXPERTS, step=1
    )
    w_importance: float = setting(
        0.01,
        "weight of the importance loss",
        low=0.0,
        high=1.0,
        scale="log0",
        strategies=("paper", "strictly-balanced"),
    )
    w_load: float = setting(
        0.01, "weight of the load loss; needs noise to act", low=0.0, high=1.0, scale="log0", strategies=("paper",)
    )
    strategy: str = setting("paper", "how the experts are kept in balance", choices=tuple(STRATEGIES))
    weigh: str = setting(
        OWN,
        "over which experts a token's weights are taken: the kept ones, so that they sum to 1, or all; own: as the strategy says (switch all, others kept)",
        choices=WEIGHINGS,
        strategies=strategies_with("by_token"),
        before="kept",
    )
    w_switch: float = setting(
        0.01, "weight of Switch's auxiliary loss", low=0.0, high=1.0, scale="log0", strategies=("switch",)
    )
    balance_over: str = setting(
        "batch",
        "over which tokens Switch's loss counts each expert's share: each sequence by itself, the micro-batch of each rank, the batch, or global: this batch and up to 7 before it; digits and points form no sequences: there sequence is the batch, and with one process micro-batch is too",
        choices=SCOPES,
        strategies=("switch",),
    )
    bias_speed: float = setting(
        1e-3, "how far an expert's bias moves at each step", low=0.0, high=0.1, scale="log0", strategies=("loss-free",)
    )
    w_sequence: float = setting(
        0.0,
        "weight of the balance within each sequence",
        low=0.0,
        high=1.0,
        scale="log0",
        strategies=strategies_with("biased"),
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
        strategies=strategies_with("learns"),
    )
    capacity_factor: float = setting(
        0.0,
        "most tokens of an expert, in fair shares; 0 drops none",
        low=0.0,
        high=8.0,
        step=0.05,
        strategies=strategies_with("by_token"),
    )
    off: str = setting(
        "", "experts switched off, counted from 1: 4,11 in every layer, 2:4 for layer 2's expert 4, or none"
    )
    k_primary: int = setting(2, "groups selected for each token", low=1, high=MOST_EXPERTS, step=1, hierarchical=True)
    noise_primary: float = setting(
        1.0,
        "scale of the noise on the primary gate's logits while training",
        low=0.0,
        high=4.0,
        step=0.05,
        strategies=strategies_with("noisy"),
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
        "CV(load) to hold by steering w_importance and w_load, or w_switch; 0 leaves them to you",
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
        paces=True,
    )


def reads(config: Config, strategy: str, name: str) -> bool:
    """Whether a knob has an effect in a run of this config under a strategy. The values of the other knobs do not change
    that."""
    meta = meta_of(Knobs, name)
    flat = config.groups < 2
    return (
        config.task in meta.tasks and strategy in (meta.strategies or STRATEGIES) and not (flat and meta.hierarchical)
    )


def label_of(name: str) -> str:
    """The words that a person sees for a knob."""
    return meta_of(Knobs, name).label or name


def value_text(value: float | str | None) -> str:
    """A knob's value as a person reads it: 0.1, 2, 3e-3, paper; none for an empty word, and a dash for a missing value.

    Rounded, never cut: to two digits below 0.01 (one where that is exact), else to three and all before the point. The
    panel's knobs do the same (dashboard/component/numbers.js).
    """
    if value is None:
        return "–"
    if isinstance(value, str):
        return value.rstrip(",") or "none"
    if isinstance(value, int) or not math.isfinite(value):
        return str(value)
    if value and abs(value) < 0.01:
        one = f"{value:.0e}"
        digits, exponent = (one if float(one) == value else f"{value:.1e}").split("e")
        return f"{digits}e{int(exponent)}"
    digits_before = len(str(abs(int(value))))
    rounding = Context(prec=max(3, digits_before), rounding=ROUND_HALF_UP)  # as JavaScript rounds
    return f"{float(rounding.create_decimal_from_float(value)):.15g}"


def exact_text(value: float | str | None) -> str:
    """As value_text() where that reads back the same, else every digit: for values that a person chose side by side."""
    text = value_text(value)
    return text if value is None or isinstance(value, str) or float(text) == value else repr(value)


def change_text(previous: float | str | None, value: float | str | None) -> str:
    """A turn in words: "1 → 0.5"; with every digit where rounding would hide it."""
    text = value_text if value_text(previous) != value_text(value) else exact_text
    return f"{text(previous)} → {text(value)}"
