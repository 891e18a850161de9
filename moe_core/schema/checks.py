"""Values of settings from people, files and flags: each of its own type and in range, or refused in one line."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, fields, replace
from typing import Any, TypeVar

from moe_core.schema.numbers import real
from moe_core.schema.settings import STRATEGIES, Config, Knobs, meta_of

S = TypeVar("S", Config, Knobs)
NOTHING = "none"  # the word for no expert
DEVICE = r"[a-z]+(:[0-9]{1,3})?"  # whether a machine has it, is for torch to say


def parse_setting(settings: type[Config] | type[Knobs], name: str, value: Any) -> Any:
    """A value of the field's own type, within its range, from a number or its text. ValueError says what was wanted."""
    declared: Mapping[str, Field[Any]] = settings.__dataclass_fields__
    if name not in declared:
        raise ValueError(f"unknown {settings.__name__.lower().rstrip('s')} {name!r}; there are: {', '.join(declared)}")
    meta = meta_of(settings, name)
    kind: Any = type(declared[name].default)
    if kind is tuple:
        words = (value,) if isinstance(value, str) else tuple(value)
        return tuple(map(path_word, words)) if name == "text" else words
    return parsed_value(name, kind, meta.low, meta.high, meta.choices, value)


def parsed_value(name: str, kind: Any, low: float, high: float, choices: tuple[str, ...], value: Any) -> Any:
    """A value of this type (int, float or str), in range or one of the choices; ValueError says what was wanted."""
    if kind is str:
        if not isinstance(value, str) or (choices and value not in choices):
            raise ValueError(f"{name} must be {'one of ' + ', '.join(choices) if choices else 'text'}, got {value!r}")
        return value
    try:
        number = real(value)
    except ValueError:
        raise ValueError(f"{name} must be a number, got {value!r}") from None
    if not math.isfinite(number) or not low <= number <= high:
        raise ValueError(f"{name} must be between {low:g} and {high:g}, got {value}")
    if kind is int and number != int(number):
        raise ValueError(f"{name} must be a whole number, got {value}")
    return kind(number)


def path_word(word: str) -> str:
    """A path that a record can hold. An empty one is refused: Path would take it for the current folder."""
    try:
        str(word).encode()
    except UnicodeEncodeError:
        raise ValueError(f"--text wants paths in UTF-8, got {word!r}; rename it") from None
    if not word:
        raise ValueError(
            "--text wants the paths of files or folders, got an empty one; for the folder you are in give ."
        )
    return word


def check(config: Config, knobs: Knobs) -> tuple[Config, Knobs]:
    """Both with every value of its own type and in range, or a ValueError that says what was wanted, what was given, and
    what to do."""
    config = Config(**{f.name: parse_setting(Config, f.name, getattr(config, f.name)) for f in fields(Config)})
    knobs = Knobs(**{f.name: parse_setting(Knobs, f.name, getattr(knobs, f.name)) for f in fields(Knobs)})
    for problem in problems(config, knobs):
        raise ValueError(problem)
    return config, knobs


def problems(config: Config, knobs: Knobs) -> Iterator[str]:
    """Each setting by itself is right. Yields a line for every pair or group that does not go together."""
    if config.text and config.task != "text":
        yield f"--text is for the text task, got task {config.task}; add --task text"
    if config.data and config.task != "digits":
        yield f"--data is for the digits task, got task {config.task}; add --task digits"
    if not config.data and (config.label or config.drop or config.missing != "refuse"):
        yield "--label, --drop and --missing say how --data is read; give --data FILE too, or leave them out"
    if not re.fullmatch(DEVICE, config.device):
        yield f"device must be auto, cpu, cuda, cuda:1 or mps, got {config.device!r}"
    if config.task == "text" and config.tokens % config.context:
        near = config.context * max(1, config.tokens // config.context)
        yield f"tokens must be a multiple of context={config.context}, got {config.tokens}; use {near}"
    if config.groups > 1 and config.num_experts % config.groups:
        yield f"num_experts={config.num_experts} must be divisible by groups={config.groups}; change one of them"
        return  # the knobs are of groups of one size
    wrong = False
    for f in fields(Knobs):
        try:
            check_knob(config, f.name, getattr(knobs, f.name))
        except ValueError as error:
            wrong = True
            yield str(error)
    if not wrong:
        try:
            _check_together(config, knobs)
        except ValueError as error:
            yield str(error)


def check_knob(config: Config, name: str, value: Any, knobs: Knobs | None = None) -> Any:
    """One knob's new value for a run of this config, or a ValueError.

    knobs: the other knobs' values, with which the new one must be compatible. Without them, it is checked by itself only.
    """
    value = parse_setting(Knobs, name, value)
    if name in ("k", "k_primary") and value > highest(config, name):
        most = {"k": "num_experts / groups" if config.groups > 1 else "num_experts", "k_primary": "groups"}[name]
        raise ValueError(f"{name} must be between 1 and {most}={highest(config, name):g}, got {value}")
    if name == "off":
        value = off_by_layer([config.num_experts] * config.layers, value)
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


def switched_off(experts_L: Sequence[int], text: str) -> tuple[tuple[int, ...], ...]:
    """The experts that the knob `off` names, counted from 0, for each layer. ValueError for a layer or an expert that this
    run does not have.

    experts_L: how many experts each layer has.
    """
    layers, most = len(experts_L), max(experts_L)
    off: list[set[int]] = [set() for _ in range(layers)]
    text = "" if text.strip().lower() == NOTHING else text
    for word in filter(None, (part.strip() for part in text.split(","))):
        layer, colon, expert = word.rpartition(":")
        if not (word.isascii() and len(word) < 20 and expert.isdecimal() and (layer.isdecimal() or not colon)):
            raise ValueError(
                f"off must list experts counted from 1, like 4,11 or 2:4 for layer 2's expert 4, got {word!r}"
            )
        if colon and 1 <= int(layer) <= layers:
            own = experts_L[int(layer) - 1]
            if not 1 <= int(expert) <= own:
                raise ValueError(f"off must name experts 1 to {own} of layer {int(layer)}, got {word!r}")
        elif colon or not 1 <= int(expert) <= most:
            raise ValueError(f"off must name experts 1 to {most} of layers 1 to {layers}, got {word!r}")
        for one in [int(layer) - 1] if colon else range(layers):
            off[one] |= {int(expert) - 1} if int(expert) <= experts_L[one] else set()
    return tuple(tuple(sorted(one)) for one in off)


def off_by_layer(experts_L: Sequence[int], text: str) -> str:
    """The knob `off` as the record can hold it: none is empty, and a single number, which SQLite would store as a number and not as
    a word, ends in a comma, which value_text() leaves out. ValueError as switched_off()."""
    switched_off(experts_L, text)
    text = text.strip()
    return "" if text.lower() == NOTHING else f"{text}," if text.isdecimal() else text


TOGETHER = {"strategy", "k", "k_primary", "off"}  # the knobs whose values must be compatible with each other


def _check_together(config: Config, knobs: Knobs) -> None:
    """ValueError if knobs, each in its range, are not compatible."""
    E, k, groups = config.num_experts, knobs.k, max(1, config.groups)
    if STRATEGIES[knobs.strategy].whole and k * config.tokens % E:
        raise ValueError(
            f"{knobs.strategy} gives each expert k * tokens / num_experts tokens, which must be a whole number, "
            f"got {k} * {config.tokens} / {E}; change k or tokens"
        )
    for layer, off in enumerate(switched_off([E] * config.layers, knobs.off)):
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
    """The settings in plain JSON types, which from_dict reads back."""
    values = {f.name: getattr(settings, f.name) for f in fields(settings)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def from_dict(settings: type[S], values: Mapping[str, Any]) -> S:
    """The settings of a stored run. Fields that a later version added get the value that the run trained with; unknown ones are dropped."""
    metas = {f.name: meta_of(settings, f.name) for f in fields(settings)}
    earlier = {name: meta.before for name, meta in metas.items() if meta.before is not None}
    known = {name: value for name, value in (earlier | dict(values)).items() if name in metas}
    return settings(**{name: parse_setting(settings, name, value) for name, value in known.items()})
