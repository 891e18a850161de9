"""What a sweep trains: the grid of cells, and the plan that is written down.

A cell is one choice of what is swept, knobs and settings of Config; it has a run for each seed.
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from moe_core.runs import StoreError, runs_folder, whole_paths
from moe_core.runs.codec import with_sum, without_sum
from moe_core.runs.limits import SIDE, read_json, read_side
from moe_core.schema import Config, Knobs, as_dict, check, first_few, from_dict, meta_of, parse_setting, reads, weighing
from moe_core.sweep.paper import PAPER

# Settings that have one value in a sweep: its measures are the task's, and files and columns are free texts.
SHARED = ("task", "text", "data", "label", "drop", "device")
PLANNED = ("config", "knobs", "cells", "seeds")  # what sweep.json holds, beside when it was created
MOST = 1000  # runs of one sweep: more is a slip in a list
Value = float | str
S = TypeVar("S", Config, Knobs)
Cell = dict[str, Any]  # a Value by the name of its knob or setting


@dataclass(frozen=True)
class Plan:
    """What a sweep trains: config and knobs that all runs share, what the cells set of both, and the seeds."""

    config: Config
    knobs: Knobs
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]

    @property
    def swept(self) -> tuple[str, ...]:
        """What cells set. A cell leaves out the knobs that its strategy does not read."""
        return tuple(dict.fromkeys(name for cell in self.cells for name in cell))

    @property
    def unread(self) -> dict[str, list[str]]:
        """For each strategy that reads only some of the swept knobs: the others, which its cells leave out."""
        read: dict[str, set[str]] = {}
        for cell in self.cells:
            read.setdefault(self.knobs_of(cell).strategy, set()).update(cell)
        missing = {strategy: [n for n in self.swept if n not in names] for strategy, names in read.items()}
        return {strategy: names for strategy, names in missing.items() if names}

    @cached_property
    def trained(self) -> tuple[int, ...]:
        """For each cell, the one whose runs it shows: its own, or those of an earlier cell that another strategy trains the same."""
        shown: list[int] = []
        seen: dict[Any, dict[str, int]] = {}
        for i, cell in enumerate(self.cells):
            knobs = self.knobs_of(cell)
            alike = seen.setdefault(training_of(self.config_of(cell), knobs), {})
            shown.append(next((at for strategy, at in alike.items() if strategy != knobs.strategy), i))
            alike.setdefault(knobs.strategy, shown[i])
        return tuple(shown)

    def knobs_of(self, cell: Cell) -> Knobs:
        """What the runs of a cell start with."""
        return with_cell(self.knobs, cell)

    def config_of(self, cell: Cell) -> Config:
        """The settings of a cell's runs, but for the seed."""
        return with_cell(self.config, cell)


class Sweep(NamedTuple):
    """A plan with a name and a place. runs is the folder that its runs lie in."""

    id: str
    runs: Path
    plan: Plan

    @property
    def folder(self) -> Path:
        return self.runs / self.id


class Job(NamedTuple):
    """One run of a sweep; cell counts from 0."""

    run_id: str
    cell: int
    config: Config
    knobs: Knobs


def with_cell(settings: S, cell: Cell) -> S:
    """The settings with what a cell sets of them."""
    return replace(settings, **{name: value for name, value in cell.items() if name in settings.__dataclass_fields__})


def owner(name: str) -> type[Config] | type[Knobs]:
    """Where a name is declared. ValueError for one that nothing has, or that has one value in a sweep."""
    if name in Knobs.__dataclass_fields__:
        return Knobs
    axes = [f.name for f in fields(Config) if f.name not in SHARED]
    if name in axes:
        return Config
    raise ValueError(f"a sweep cannot vary {name!r}; there are: {', '.join([*Knobs.__dataclass_fields__, *axes])}")


def values_of(name: str, text: str) -> list[Value]:
    """The values of a knob or a setting from a list with commas; ValueError for one out of range. A free text is one value."""
    settings = owner(name)
    free = isinstance(getattr(settings(), name), str) and not meta_of(settings, name).choices
    words = [text] if free else [word.strip() for word in text.split(",")]
    return [parse_setting(settings, name, word) for word in words]


def pairs_of(words: Sequence[str]) -> list[Cell]:
    """Cells from W_IMPORTANCE/W_LOAD, each; the word table6 is the paper's six. ValueError for a word that is neither."""
    cells: list[Cell] = []
    for word in " ".join(words).replace(",", " ").split():
        importance, slash, load = word.partition("/")
        if word == "table6":
            cells += [{"w_importance": importance, "w_load": load} for importance, load in PAPER]
        elif slash:
            weights = {"w_importance": importance, "w_load": load}
            cells.append({name: parse_setting(Knobs, name, value) for name, value in weights.items()})
        else:
            raise ValueError(f"a pair is written W_IMPORTANCE/W_LOAD, such as 0.1/0.1, or table6; got {word!r}")
    return cells


def grid(axes: Sequence[Sequence[Cell]]) -> list[Cell]:
    """Every combination of one choice from each axis, the last axis quickest."""
    return [
        {name: value for choice in choices for name, value in choice.items()} for choices in itertools.product(*axes)
    ]


def folded(config: Config, knobs: Knobs, cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """Each cell with only what its task and strategy read, and each of those once: the rest would train the same again."""
    once: dict[tuple[Any, ...], Cell] = {}
    for whole in cells:
        named, own = with_cell(knobs, whole), with_cell(config, whole)
        cell = {name: value for name, value in whole.items() if acts(own, named.strategy, name)}
        plain = {"weigh": weighing(named.strategy, named.weigh)} if "weigh" in cell else {}
        once.setdefault(tuple((cell | plain).items()), cell)
    return tuple(once.values())


def acts(config: Config, strategy: str, name: str) -> bool:
    """Whether a knob or a setting has an effect in a run of this config under a strategy."""
    return reads(config, strategy, name) if owner(name) is Knobs else config.task in meta_of(Config, name).tasks


def training_of(config: Config, knobs: Knobs) -> tuple[Any, ...]:
    """What decides how a training goes: settings, strategy, and the knobs that it reads. paper without its losses trains as none, to
    the last bit."""
    read = {by: [f.name for f in fields(Knobs) if reads(config, by, f.name)] for by in ("none", knobs.strategy)}
    own = [name for name in read[knobs.strategy] if name not in read["none"]]
    idle = knobs.strategy == "paper" and not any(getattr(knobs, name) for name in own)
    values = asdict(knobs) | {"weigh": weighing(knobs.strategy, knobs.weigh)} | ({"strategy": "none"} if idle else {})
    return (config, *((name, values[name]) for name in read["none" if idle else knobs.strategy]))


def make_plan(
    config: Config, knobs: Knobs, lists: Mapping[str, Sequence[Value]], pairs: Sequence[Cell] = (), seeds: int = 1
) -> Plan:
    """The plan of a grid: pairs of the two weights, if any, with every combination of the lists, of knobs and of settings. seeds
    counts from config.seed; a list of `seed` names them instead.

    A list of one value is what all cells share. What a cell's strategy does not read is left out of it, and cells that are
    then the same are one. ValueError, with one line, if a cell cannot be trained, no cell reads a list, a run would not
    end, or there are too many.
    """
    if pairs and (twice := [name for name in ("w_importance", "w_load") if name in lists]):
        raise ValueError(f"pairs set both weights, and {twice[0]} is given too; leave one of them out")
    shared: Cell = {name: values[0] for name, values in lists.items() if len(values) == 1}
    config, knobs = with_cell(config, shared), with_cell(knobs, shared)
    several = {name: values for name, values in lists.items() if len(values) > 1}
    numbers = seeds_of(config, several.pop("seed", ()), seeds)
    axes = {name: [{name: value} for value in values] for name, values in several.items()}
    # The strategy first, so that its rows stand together and each reads as a sweep of its own knobs.
    by_strategy = [axes.pop("strategy")] if "strategy" in axes else []
    combined = grid([*by_strategy, *([pairs] if pairs else []), *axes.values()])
    cells = folded(config, knobs, combined)
    if unread := [name for name in combined[0] if not any(name in cell for cell in cells)]:
        raise ValueError(no_reader(config, unread[0], {with_cell(knobs, cell).strategy: None for cell in cells}))
    if len(cells) * len(numbers) > MOST:
        raise ValueError(f"{len(cells)} cells with {len(numbers)} seeds are more than {MOST} runs; shorten a list")
    config = whole_paths(config)
    for cell in cells:
        own, _ = check(with_cell(config, cell), with_cell(knobs, cell))
        if not own.steps:
            raise ValueError(
                "steps must be 1 or more in a sweep, since each run has to end, got 0; give for example --steps 1000"
            )
    return Plan(config, knobs, cells, numbers)


def seeds_of(config: Config, given: Sequence[Value], seeds: int) -> tuple[int, ...]:
    """The seeds of each cell: the given ones, else so many from config.seed on."""
    if seeds < 1:
        raise ValueError(f"seeds must be 1 or more, got {seeds}")
    if given and seeds > 1:
        raise ValueError(f"seed names the seeds, and seeds={seeds} is given too; leave one of them out")
    parse_setting(Config, "seed", config.seed + seeds - 1)
    return tuple(dict.fromkeys(int(seed) for seed in given)) or tuple(range(config.seed, config.seed + seeds))


def no_reader(config: Config, name: str, strategies: Iterable[str]) -> str:
    """Why a list of these values would train the same thing again and again."""
    if owner(name) is Config:
        return f"the {config.task} task does not read {name}, so its values would train the same; leave it out"
    if meta_of(Knobs, name).hierarchical and config.groups < 2:
        return f"only a run with groups of experts reads {name}; leave it out, or give --groups"
    named = ", ".join(strategies)
    return f"no strategy of this sweep ({named}) reads {name}, so its values would train the same; leave it out"


def make_sweep(plan: Plan, runs: str | Path | None = None, sweep_id: str | None = None) -> Sweep:
    """The sweep of this plan, written if it is new. Without a name it has one that follows from the plan, so that the same
    command finds the same sweep. StoreError if the name is taken by something else.
    """
    settings = {
        "config": as_dict(plan.config),
        "knobs": as_dict(plan.knobs),
        "cells": list(plan.cells),
        "seeds": list(plan.seeds),
    }
    code = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=4).hexdigest()
    name = f"sweep-{plan.config.task}-"
    sweep = Sweep(sweep_id or name + code, runs_folder(runs).absolute(), plan)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", sweep.id):
        raise StoreError(f"a sweep's name is letters, digits, dots and dashes, at most 64, got {sweep.id!r}")
    if (sweep.folder / "run.db").exists():
        raise StoreError(f"{sweep.id} is a run in {sweep.runs}; choose another --sweep-id")
    if (sweep.folder / "sweep.json").exists():
        if not (stored := begun_before(sweep)):
            raise StoreError(
                f"sweep {sweep.id} has other settings; choose another --sweep-id, or go on with --resume {sweep.id}"
            )
        return stored
    if not sweep_id:  # an earlier version gave the same plan another name
        for named in (sweep._replace(id=one) for one in sweep_ids(runs) if re.fullmatch(name + "[0-9a-f]{8}", one)):
            with contextlib.suppress(StoreError):
                if stored := begun_before(named):
                    return stored
    sweep.folder.mkdir(parents=True, exist_ok=True)
    draft = sweep.folder / f".sweep.json.{os.getpid()}"
    draft.write_text(json.dumps(with_sum({"created": time.time(), **settings}), indent=1))
    draft.rename(sweep.folder / "sweep.json")
    return sweep


def begun_before(asked: Sweep) -> Sweep | None:
    """The sweep of this name as it was begun, if it is of the plan that is asked for. It still is where an earlier version lacked a
    setting that is now left at its default: the sweep then goes on with what its runs trained with."""
    stored, plan = open_sweep(asked.id, asked.runs), asked.plan
    if stored.plan == plan:
        return stored
    record = recorded(stored.folder)
    config = with_missing(plan.config, Config.for_task(plan.config.task), stored.plan.config, record["config"])
    knobs = with_missing(plan.knobs, Knobs(), stored.plan.knobs, record["knobs"])
    return stored if stored.plan == replace(plan, config=config, knobs=knobs) else None


def with_missing(asked: S, default: S, stored: S, record: Mapping[str, Any]) -> S:
    """What is asked for, with the stored value where the record lacks a setting that is left at its default."""
    names = [f.name for f in fields(asked) if f.name not in record]
    left = [name for name in names if getattr(asked, name) == getattr(default, name)]
    return replace(asked, **{name: getattr(stored, name) for name in left})


def recorded(folder: Path) -> Any:
    """What a sweep's file holds. ValueError if something is missing."""
    record = without_sum(read_json(read_side(folder / "sweep.json", SIDE)), ("created", *PLANNED))
    if missing := [name for name in PLANNED if name not in record]:
        raise ValueError(f"its sweep.json lacks {', '.join(missing)}")
    return record


def open_sweep(sweep_id: str, runs: str | Path | None = None) -> Sweep:
    """A sweep by its name or a unique beginning of it. StoreError says which there are."""
    folder, names = runs_folder(runs).absolute(), sweep_ids(runs)
    matches = [sweep_id] if sweep_id in names else [name for name in names if name.startswith(sweep_id)]
    if len(matches) != 1 or not sweep_id:
        problem = "is the beginning of several sweeps" if matches else "is not a sweep"
        raise StoreError(f"{sweep_id!r} {problem} in {folder}; there are: {first_few(names)}")
    try:
        record = recorded(folder / matches[0])
        cells = tuple(
            {name: parse_setting(owner(name), name, value) for name, value in cell.items()} for cell in record["cells"]
        )
        plan = Plan(
            from_dict(Config, record["config"]),
            from_dict(Knobs, record["knobs"]),
            cells,
            tuple(map(int, record["seeds"])),
        )
        if not 0 < len(cells) * len(plan.seeds) <= MOST:
            raise ValueError(f"it must have 1 to {MOST} runs, not {len(cells) * len(plan.seeds)}")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise StoreError(f"sweep {matches[0]} cannot be read: {error}") from None
    return Sweep(matches[0], folder, plan)


def sweep_ids(runs: str | Path | None = None) -> list[str]:
    """The names of all sweeps, the newest first."""
    folder = runs_folder(runs)
    dated: list[tuple[float, str]] = []
    for path in folder.glob("*/sweep.json") if folder.is_dir() else ():
        with contextlib.suppress(OSError):  # removed meanwhile
            dated.append((path.lstat().st_mtime, path.parent.name))
    return [name for _, name in sorted(dated, reverse=True)]


def jobs(sweep: Sweep) -> list[Job]:
    """All runs: every cell with the first seed before any with the second, so that the map is soon whole. What would train
    the same is one run.
    """
    plan = sweep.plan
    trained = plan.trained
    return [
        Job(f"{sweep.id}-c{i + 1:02d}-s{seed}", i, replace(plan.config_of(cell), seed=seed), plan.knobs_of(cell))
        for seed in plan.seeds
        for i, cell in enumerate(plan.cells)
        if trained[i] == i
    ]
