"""A run's description of itself: its layers, knobs, metrics and probe. Figures, pages, exports and the diagnosis read this,
never the task's name, so that every writer of such a record is shown in full: our trainer, a hook on another model, an
importer.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from moe_core.schema.checks import as_dict, highest, parsed_value, switched_off
from moe_core.schema.numbers import REAL
from moe_core.schema.settings import MOST_EXPERTS, MOST_LAYERS, Config, Knobs, meta_of
from moe_core.schema.stats import METRICS, SELECTIONS, Metric
from moe_core.schema.values import count_of, one_of, whole_of, word

ORIGINS = ("trained", "watched", "opened")
OBEYS = ("pause", "step", "stop", "checkpoint", "fork", "resume", "replay")
PROBES = ("bytes", "tokens", "images", "rows", "points", "none")
# The most in a record, which somebody else may have written.
MOST_KNOBS, MOST_CHOICES, MOST_METRICS, MOST_SETTINGS = 64, 256, 32, 256
MOST_TEXT = 64 << 10  # characters of all settings together, as JSON
LARGEST = 2**53  # whole numbers up to it are exact in the record and in a browser
KNOB_NAME = r"[A-Za-z][A-Za-z0-9_]{0,63}"
SCALES = ("linear", "log", "log0")

# Of each of our own tasks: what its tokens are, and how its loss is read.
PROBE_OF_TASK = {"text": "bytes", "digits": "images", "plane": "points"}
# The name of the array that shows the probe to a person -> what the probe's tokens are.
SHOWN = {"tokens": "bytes", "images": "images", "features": "rows", "points": "points"}


class Layer(NamedTuple):
    """One MoE layer. name: for a watched model its module's path; k: how many experts each token goes to at the start, or,
    with groups, how many in each chosen group; shared: experts that every token goes to, which no count includes; learns:
    whether its gate is trained."""

    name: str
    experts: int
    k: int
    groups: int = 1
    shared: int = 0
    learns: bool = True


class Knob(NamedTuple):
    """A knob as its run declares it. Its type, a whole number, a number or a word (one of `choices`, if there are any), is
    that of `start`, its value at the start.

    scale: "linear", "log", or "log0", which is logarithmic with a 0 at the left end; step: the distance of two positions of a
    linear slider; under: the strategies under which it has an effect, None being all and () none in this run; paces: it sets how
    fast the run trains and changes none of its numbers, so that charts mark no turn of it.
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
    paces: bool = False

    def parse(self, name: str, value: Any) -> float | str:
        """A value of the knob's own type and within its range, from a number or its text. ValueError says what was wanted."""
        parsed: float | str = parsed_value(name, type(self.start), self.low, self.high, self.choices, value)
        if isinstance(parsed, str):
            check_word(name, parsed)
        elif isinstance(parsed, int) and abs(parsed) > LARGEST:
            raise ValueError(f"{name} must be between -2^53 and 2^53, got {value}")
        return parsed


def is_number(text: str) -> bool:
    """Whether the record would store this text as a number: its column of values is a REAL, and SQLite converts text that
    reads as a number, even one that is too large."""
    return bool(REAL.fullmatch(text.strip()))


def check_word(name: str, text: str) -> None:
    """ValueError for a word that the record would not give back as it was."""
    if is_number(text):
        raise ValueError(f"{name} must be a word, and the record would keep {text!r} as a number; add a letter")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} must be text in UTF-8, got {text!r}") from None


class Loss(NamedTuple):
    """How the loss, which is recorded in nats, is shown: its unit, the nats in one unit, and the metric that is the
    held-out loss."""

    unit: str = "nats"
    nats: float = 1.0
    metric: str = "loss"


BITS_PER_BYTE = Loss("bits per byte", math.log(2), "bits_per_byte")


class Values(Mapping[str, float | str]):
    """Knob values by name, of a run whose knobs are not our own trainer's: `values.noise`, `values["noise"]`."""

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
    """What a run declares about itself.

    task: what is learnt, in a word for people; only runs of the same task are compared. metrics: of the held-out split, the
    headline first. obeys: the commands that the program that records it obeys. settings: the rest, for people. tokens: in a
    batch, 0 where that is not fixed. churn_every: the steps over which churn is measured, 0 where that is not known.
    measures: the stored statistics that the run has.
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
        """Whether tokens form sequences, in which a model must not see later ones."""
        return self.probe in ("bytes", "tokens")

    @property
    def balance(self) -> str:
        """The statistic by which a layer is called balanced: CV of the smooth load, or, where only selections are counted, of
        those."""
        return "cv_load" if "load" in self.measures or not self.measures else "cv_counts"

    @property
    def training_loss(self) -> str:
        """The statistic that charts show as the loss of the training batch: the task's own, or, where that is not recorded, the
        whole, with what balancing losses add."""
        return "task_loss" if "task_loss" in self.measures or not self.measures else "loss"

    @property
    def goal(self) -> int:
        """How many steps the run is to have in all; 0 for no end, or where that is not known."""
        return count_of(self.settings.get("steps"))

    @property
    def task_gradient_every(self) -> int:
        """Steps between two measurements of the task's gradient, where it is measured."""
        return count_of(self.settings.get("task_gradient_every")) or 1

    @property
    def experts(self) -> tuple[int, ...]:
        """The number of experts of each layer."""
        return tuple(layer.experts for layer in self.layers)

    @property
    def starts(self) -> Values:
        """The knobs' values at the start."""
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
    """Names with commas between them; of many the first ones, and how many more."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def describe(config: Config, started: Knobs, probe: str = "", measures: tuple[str, ...] = ()) -> Description:
    """The description of a run of our own trainer. probe: what its tokens are, where that differs from its task's usual."""
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
    """The declaration of a knob of our own trainer in a run of this config."""
    meta = meta_of(Knobs, name)
    idle = config.task not in meta.tasks or (meta.hierarchical and config.groups < 2)
    return Knob(
        getattr(started, name), meta.low, highest(config, name), meta.help, meta.label, meta.unit, meta.scale, meta.step,
        meta.choices, () if idle else meta.strategies or None, meta.paces,
    )  # fmt: skip


def probe_kind(arrays: Mapping[str, Any]) -> str:
    """What a probe's tokens are, by the names of its arrays; "" if none is known."""
    return next((kind for name, kind in SHOWN.items() if name in arrays), "")


# As JSON


def to_json(description: Description) -> dict[str, Any]:
    """The description in plain JSON types, which from_json reads back. `measures`, which follows from the columns, and
    infinities are left out."""
    record = {f.name: getattr(description, f.name) for f in fields(Description) if f.name not in ("measures", "knobs")}
    record |= {name: [one._asdict() for one in record[name]] for name in ("layers", "metrics")}
    knobs = {name: knob._asdict() for name, knob in description.knobs.items()}
    return record | {
        "loss": description.loss._asdict(),
        "obeys": list(description.obeys),
        "settings": dict(description.settings),
        "knobs": {
            name: {key: value for key, value in knob.items() if value not in (math.inf, -math.inf, None)}
            for name, knob in knobs.items()
        },
    }


def from_json(record: Any, measures: tuple[str, ...] = ()) -> Description:
    """The description in a record that anybody may have written; ValueError, one line, if it is not valid."""
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
        low = 1 if what == "layers" else 0
        if not low <= count <= most:
            raise ValueError(f"its description must have from {low} to {most} {what}, got {count}")
    if len(json.dumps(description.settings)) > MOST_TEXT:
        raise ValueError(f"its description must have settings of at most {MOST_TEXT:,} characters together")
    if isinstance(off := description.starts.get("off", ""), str):
        switched_off(description.experts, off)
    for what, named in (("layers", description.layers), ("metrics", description.metrics)):
        if len({one.name for one in named}) < len(named):
            raise ValueError(f"its description gives two {what} the same name")
    return description


def read_layer(given: dict[str, Any]) -> Layer:
    """A layer of a record; ValueError for numbers that are not valid."""
    layer = Layer(
        word(given["name"]),
        whole_of(given["experts"], 1, MOST_EXPERTS, "experts"),
        whole_of(given["k"], 1, MOST_EXPERTS, "k"),
        whole_of(given.get("groups", 1), 1, MOST_EXPERTS, "groups"),
        whole_of(given.get("shared", 0), 0, MOST_EXPERTS, "shared"),
        bool(given.get("learns", True)),
    )
    if layer.experts % layer.groups or layer.k > layer.experts // layer.groups:
        raise ValueError(
            f"a layer must have equal groups of at least k experts, got {layer.experts} experts in {layer.groups} groups with "
            f"k={layer.k}"
        )
    return layer


def read_knob(name: str, given: dict[str, Any]) -> Knob:
    """A knob of a record; ValueError for a declaration that is not valid, or a start that it does not allow."""
    if not re.fullmatch(KNOB_NAME, name) or name in dir(Values):
        raise ValueError(
            f"a knob's name must be a word of at most 64 letters, digits and underscores, and none of "
            f"{', '.join(word for word in dir(Values) if word[0] != '_')}; got {name[:80]!r}"
        )
    start = given.pop("start")
    if isinstance(start, bool) or not isinstance(start, (int, float, str)):
        raise ValueError(f"knob {name} must start at a number or a word, got {start!r}")
    check_meaning(name, start)
    for key in ("choices", "under"):
        if given.get(key) is not None:
            given[key] = tuple(map(word, given[key]))
    for key in ("low", "high", "step"):
        if given.get(key) is not None:
            given[key] = float(given[key])
    for key in ("help", "label", "unit"):
        given[key] = word(given.get(key, ""))
    given["paces"] = bool(given.get("paces", False))
    known = {key: value for key, value in given.items() if key in Knob._fields}  # others: a later version's
    knob = Knob(start, **known)
    one_of(SCALES, knob.scale, "scale")
    knob.parse(name, start)
    check_range(name, knob)
    return knob


def check_range(name: str, knob: Knob) -> None:
    """ValueError for a range, a step or choices that no slider and no list can have."""
    if len(knob.choices) > MOST_CHOICES:
        raise ValueError(f"knob {name} must have at most {MOST_CHOICES} choices, got {len(knob.choices)}")
    if knob.choices and not isinstance(knob.start, str):
        raise ValueError(f"knob {name} has choices, which are words, and starts at {knob.start}")
    for choice in knob.choices:
        check_word(name, choice)
    if math.isnan(knob.low) or math.isnan(knob.high):
        raise ValueError(f"knob {name} must have a range of numbers")
    if knob.step is not None and not 0 < knob.step < math.inf:
        raise ValueError(f"knob {name} must have a step above 0, got {knob.step}")
    ends = math.isfinite(knob.low) and math.isfinite(knob.high)
    if knob.scale != "linear" and not (ends and (knob.low > 0 if knob.scale == "log" else knob.low == 0)):
        begin = "above" if knob.scale == "log" else "at"
        raise ValueError(f"knob {name} of scale {knob.scale} must have a range that begins {begin} 0 and ends")


def check_meaning(name: str, start: float | str) -> None:
    """ValueError for a knob with the name of one of ours, which charts and rules read, that is of another type."""
    ours = Knobs.__dataclass_fields__.get(name)
    wanted = {int: "a whole number", float: "a number", str: "a word"}
    kind = type(ours.default) if ours else type(start)
    if not isinstance(start, (int, float) if kind is float else kind):
        raise ValueError(f"knob {name} must start at {wanted[kind]}, as our own knob of that name, got {start!r}")


def read_metric(given: dict[str, Any]) -> Metric:
    if given["name"] == SELECTIONS:
        raise ValueError(
            f"a metric must not be called {SELECTIONS}: an evaluation's counts have that name in the record"
        )
    return Metric(word(given["name"]), word(given["label"]), word(given["unit"]), bool(given["lower"]))


def read_loss(given: dict[str, Any]) -> Loss:
    loss = Loss(word(given["unit"]), float(given["nats"]), word(given["metric"]))
    if not 1e-6 <= loss.nats <= 1e6:
        raise ValueError(f"nats in one unit of the loss must be a number between 1e-6 and 1e6, got {loss.nats}")
    return loss
