"""What a run says of itself: its layers, knobs, metrics and probe. Figures, pages, exports and the diagnosis ask this, never
which task it is, so that whoever writes such a record is shown in full: our trainer, a hook on another model, an importer.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from moe_core.schema.checks import as_dict, highest, parsed_value
from moe_core.schema.settings import MOST_EXPERTS, MOST_LAYERS, Config, Knobs, meta_of
from moe_core.schema.stats import METRICS, Metric

ORIGINS = ("trained", "watched", "opened")
OBEYS = ("pause", "step", "stop", "checkpoint", "fork", "resume", "replay")
PROBES = ("bytes", "tokens", "images", "rows", "points", "none")
MOST_KNOBS, MOST_METRICS, MOST_SETTINGS = 64, 32, 256  # of a record that somebody else wrote
LONGEST = 400  # characters of a word in it
SCALES = ("linear", "log", "log0")

# Of each of our own tasks: what its tokens are, and how its loss is read.
PROBE_OF_TASK = {"text": "bytes", "digits": "images", "plane": "points"}
# The array that shows the probe to a person -> what its tokens are.
SHOWN = {"tokens": "bytes", "images": "images", "features": "rows", "points": "points"}


class Layer(NamedTuple):
    """One MoE layer. name: for a watched model its module's path; k: experts of each token as the run began, in each chosen
    group; shared: experts that every token goes to, which no count includes; learns: whether its gate is trained."""

    name: str
    experts: int
    k: int
    groups: int = 1
    shared: int = 0
    learns: bool = True


class Knob(NamedTuple):
    """A knob as its run declares it, and where it starts. A whole number, a number, one of `choices`, or a word: by the start.

    scale: "linear", "log", or "log0", which is logarithmic with a 0 at the left end; step: the distance of two positions of a
    linear slider; under: the strategies under which it acts, None being all and () none in a run like this.
    """

    start: float | str
    low: float = -math.inf
    high: float = math.inf
    help: str = ""
    label: str = ""
    unit: str = ""
    scale: str = "linear"
    step: float | None = None
    choices: tuple[str, ...] = ()
    under: tuple[str, ...] | None = None

    def parse(self, name: str, value: Any) -> float | str:
        """A value of the knob's own type and within its range, from a number or its text. ValueError says what was wanted."""
        parsed: float | str = parsed_value(name, type(self.start), self.low, self.high, self.choices, value)
        if isinstance(parsed, str) and is_number(parsed):
            raise ValueError(f"{name} must be a word, and the record would keep {parsed!r} as a number; add a letter")
        return parsed


def is_number(text: str) -> bool:
    """Whether the record's column of values, which is one of numbers, would turn this text into one."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


class Loss(NamedTuple):
    """How the loss, which is recorded in nats, is read: the unit, how many nats it has, and the metric that is the held-out loss."""

    unit: str = "nats"
    nats: float = 1.0
    metric: str = "loss"


BITS_PER_BYTE = Loss("bits per byte", math.log(2), "bits_per_byte")


class Values(Mapping[str, float | str]):
    """Where the knobs of a run stand, by name, where they are not the ones of our own trainer: `values.noise`, `values["noise"]`."""

    def __init__(self, values: Mapping[str, float | str]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> float | str:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._values:
            raise AttributeError(f"no knob {name!r}; there are: {', '.join(self.__dict__.get('_values', {}))}")
        return self._values[name]


KnobValues = Knobs | Values


@dataclass(frozen=True)
class Description:
    """A run in its own words.

    task: what is learnt, in a word for people; runs of one task are compared. metrics: of the held-out split, the headline
    first. obeys: the commands that its writer obeys. settings: the rest, for people. tokens: in a batch, 0 where that is
    not fixed. churn_every: the steps over which churn is measured, 0 where that is not known. measures: the stored
    statistics that the run has.
    """

    origin: str
    task: str
    layers: tuple[Layer, ...]
    knobs: Mapping[str, Knob]
    metrics: tuple[Metric, ...]
    loss: Loss
    probe: str
    obeys: tuple[str, ...]
    settings: Mapping[str, Any]
    tokens: int = 0
    churn_every: int = 0
    measures: tuple[str, ...] = ()

    @property
    def sequence(self) -> bool:
        """Whether tokens stand in a sequence, of which a model must not see later ones."""
        return self.probe in ("bytes", "tokens")

    @property
    def balance(self) -> str:
        """The statistic by which a layer is called balanced: CV of the smooth load, or, where only selections are counted, of
        those."""
        return "cv_load" if "load" in self.measures or not self.measures else "cv_counts"

    @property
    def experts(self) -> tuple[int, ...]:
        """The number of experts of each layer."""
        return tuple(layer.experts for layer in self.layers)

    @property
    def starts(self) -> Values:
        """Where the knobs start."""
        return Values({name: knob.start for name, knob in self.knobs.items()})

    def layer(self, name: int | str) -> int:
        """The number, from 0, of a layer that is named by its number from 0 or by its name; ValueError if there is none."""
        names = [layer.name for layer in self.layers]
        if isinstance(name, str) and name in names:
            return names.index(name)
        if isinstance(name, int) and 0 <= name < len(names):
            return name
        if isinstance(name, str):
            raise ValueError(f"layer must be one of {some_of(names)}, got {name!r}")
        raise ValueError(f"layer must be between 0 and {len(names) - 1}, got {name}")

    def label_of(self, knob: str) -> str:
        """The words that a person sees for a knob."""
        return (self.knobs[knob].label if knob in self.knobs else "") or knob


def some_of(names: list[str], most: int = 8) -> str:
    """Names in a row, of many the first ones."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def describe(config: Config, started: Knobs, probe: str = "", measures: tuple[str, ...] = ()) -> Description:
    """The description of a run of our own trainer. probe: what its tokens are, where that is not what its task usually has."""
    layer = Layer("", config.num_experts, started.k, max(1, config.groups))
    return Description(
        origin="trained",
        task=config.task,
        layers=tuple(layer._replace(name=f"layer {number + 1}") for number in range(config.layers)),
        knobs={f.name: own_knob(config, started, f.name) for f in fields(Knobs)},
        metrics=METRICS[config.task],
        loss=BITS_PER_BYTE if config.task == "text" else Loss(),
        probe=probe or PROBE_OF_TASK[config.task],
        obeys=OBEYS,
        settings=as_dict(config),
        tokens=config.tokens,
        churn_every=config.churn_every,
        measures=measures,
    )


def own_knob(config: Config, started: Knobs, name: str) -> Knob:
    """A knob of our own trainer, as a run of this config has it."""
    meta = meta_of(Knobs, name)
    idle = config.task not in meta.tasks or (meta.hierarchical and config.groups < 2)
    return Knob(
        getattr(started, name), meta.low, highest(config, name), meta.help, meta.label, meta.unit, meta.scale, meta.step,
        meta.choices, () if idle else meta.strategies or None,
    )  # fmt: skip


def probe_kind(arrays: Mapping[str, Any]) -> str:
    """What a probe's tokens are, by the arrays that show them; "" if none does."""
    return next((kind for name, kind in SHOWN.items() if name in arrays), "")


# As JSON


def to_json(description: Description) -> dict[str, Any]:
    """Plain JSON types; from_json reads it back. What the run's columns say (`measures`) is left out; so are infinities."""
    told = {f.name: getattr(description, f.name) for f in fields(Description) if f.name not in ("measures", "knobs")}
    told |= {name: [one._asdict() for one in told[name]] for name in ("layers", "metrics")}
    knobs = {name: knob._asdict() for name, knob in description.knobs.items()}
    return told | {
        "loss": description.loss._asdict(),
        "obeys": list(description.obeys),
        "settings": dict(description.settings),
        "knobs": {
            name: {key: value for key, value in knob.items() if value not in (math.inf, -math.inf, None)}
            for name, knob in knobs.items()
        },
    }


def from_json(record: Any, measures: tuple[str, ...] = ()) -> Description:
    """The description in a record that anybody may have written; ValueError, in a line, for one that cannot be."""
    try:
        knobs = {word(name): read_knob(word(name), dict(knob)) for name, knob in dict(record["knobs"]).items()}
        description = Description(
            origin=one_of(ORIGINS, record["origin"], "origin"),
            task=word(record["task"]),
            layers=tuple(read_layer(dict(layer)) for layer in record["layers"]),
            knobs=knobs,
            metrics=tuple(read_metric(dict(metric)) for metric in record["metrics"]),
            loss=read_loss(dict(record["loss"])),
            probe=one_of(PROBES, record["probe"], "probe"),
            obeys=tuple(one_of(OBEYS, command, "obeys") for command in record["obeys"]),
            settings={word(name): value for name, value in dict(record["settings"]).items()},
            tokens=whole_of(record.get("tokens", 0), 0, 2**40, "tokens"),
            churn_every=whole_of(record.get("churn_every", 0), 0, 10**9, "churn_every"),
            measures=measures,
        )
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"its description is not valid ({type(error).__name__} {error})") from None
    for what, count, most in (
        ("layers", len(description.layers), MOST_LAYERS),
        ("knobs", len(knobs), MOST_KNOBS),
        ("metrics", len(description.metrics), MOST_METRICS),
        ("settings", len(description.settings), MOST_SETTINGS),
    ):
        if count > most or (what == "layers" and not count):
            raise ValueError(
                f"its description has {count} {what}; at most {most} can be read, and of layers one at least"
            )
    if len({layer.name for layer in description.layers}) < len(description.layers):
        raise ValueError("its description gives two layers one name")
    return description


def read_layer(given: dict[str, Any]) -> Layer:
    """A layer of a record; ValueError for numbers that cannot be."""
    layer = Layer(
        word(given["name"]),
        whole_of(given["experts"], 1, MOST_EXPERTS, "experts"),
        whole_of(given["k"], 1, MOST_EXPERTS, "k"),
        whole_of(given.get("groups", 1), 1, MOST_EXPERTS, "groups"),
        whole_of(given.get("shared", 0), 0, MOST_EXPERTS, "shared"),
        bool(given.get("learns", True)),
    )
    if layer.k > layer.experts or layer.experts % layer.groups:
        raise ValueError(f"{layer.experts} experts in {layer.groups} groups with k={layer.k} cannot be")
    return layer


def read_knob(name: str, given: dict[str, Any]) -> Knob:
    """A knob of a record; ValueError for a declaration that cannot be, or a start that it does not allow."""
    if not name.isidentifier():
        raise ValueError(f"a knob's name must be a word, got {name!r}")
    start = given.pop("start")
    if isinstance(start, bool) or not isinstance(start, (int, float, str)):
        raise ValueError(f"knob {name} must start at a number or a word, got {start!r}")
    for key in ("choices", "under"):
        if given.get(key) is not None:
            given[key] = tuple(map(word, given[key]))
    for key in ("low", "high", "step"):
        if given.get(key) is not None:
            given[key] = float(given[key])
    for key in ("help", "label", "unit"):
        given[key] = word(given.get(key, ""))
    knob = Knob(start, **given)
    one_of(SCALES, knob.scale, "scale")
    knob.parse(name, start)
    return knob


def read_metric(given: dict[str, Any]) -> Metric:
    return Metric(word(given["name"]), word(given["label"]), word(given["unit"]), bool(given["lower"]))


def read_loss(given: dict[str, Any]) -> Loss:
    loss = Loss(word(given["unit"]), float(given["nats"]), word(given["metric"]))
    if not (math.isfinite(loss.nats) and loss.nats > 0):
        raise ValueError(f"a unit of the loss must have some nats, got {loss.nats}")
    return loss


def word(value: Any) -> str:
    if not isinstance(value, str) or len(value) > LONGEST:
        raise ValueError(f"its description wants text of at most {LONGEST} characters, got {str(value)[:40]!r}")
    return value


def whole_of(value: Any, low: int, high: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, got {str(value)[:40]}")
    return value


def one_of(choices: tuple[str, ...], value: Any, name: str) -> str:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {str(value)[:40]!r}")
    return str(value)
