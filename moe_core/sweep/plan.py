"""What a sweep trains: the grid of cells, and the plan that is written down.

A cell is one choice of the swept knobs; it has a run for each seed.
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
from typing import Any, NamedTuple

from moe_core.runs import StoreError, runs_folder, whole_paths
from moe_core.runs.codec import with_sum, without_sum
from moe_core.runs.limits import SIDE, read_json, read_side
from moe_core.schema import Config, Knobs, as_dict, check, from_dict, meta_of, parse_setting, reads, weighing
from moe_core.sweep.paper import PAPER

PLANNED = ("created", "config", "knobs", "cells", "seeds")  # what sweep.json holds
MOST = 1000  # runs of one sweep: more is a slip in a list
Value = float | str
Cell = dict[str, Any]  # a Value by the name of its knob


@dataclass(frozen=True)
class Plan:
    """What a sweep trains: config and knobs that all runs share, the cells' own knobs, and the seeds."""

    config: Config
    knobs: Knobs
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]

    @property
    def swept(self) -> tuple[str, ...]:
        """The knobs that cells set. A cell leaves out those that its strategy does not read."""
        return tuple(dict.fromkeys(name for cell in self.cells for name in cell))

    @property
    def unread(self) -> dict[str, list[str]]:
        """For each strategy that reads only some of the swept knobs: the others, which its cells leave out."""
        missing = {self.knobs_of(cell).strategy: [n for n in self.swept if n not in cell] for cell in self.cells}
        return {strategy: names for strategy, names in missing.items() if names}

    @cached_property
    def trained(self) -> tuple[int, ...]:
        """For each cell, the one whose runs it shows: its own, or those of an earlier cell that another strategy trains the same."""
        shown: list[int] = []
        seen: dict[Any, dict[str, int]] = {}
        for i, knobs in enumerate(map(self.knobs_of, self.cells)):
            alike = seen.setdefault(training_of(self.config, knobs), {})
            shown.append(next((at for strategy, at in alike.items() if strategy != knobs.strategy), i))
            alike.setdefault(knobs.strategy, shown[i])
        return tuple(shown)

    def knobs_of(self, cell: Cell) -> Knobs:
        """What the runs of a cell start with."""
        return replace(self.knobs, **cell)


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


def values_of(name: str, text: str) -> list[Value]:
    """A knob's values from a list with commas; ValueError for one out of range. A free text is one value."""
    meta = meta_of(Knobs, name)
    free = isinstance(getattr(Knobs(), name), str) and not meta.choices
    words = [text] if free else [word.strip() for word in text.split(",")]
    return [parse_setting(Knobs, name, word) for word in words]


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
    """Each cell with only the knobs that its strategy reads, and each of those once: the rest would train the same again."""
    acting = [
        {name: value for name, value in cell.items() if reads(config, replace(knobs, **cell).strategy, name)}
        for cell in cells
    ]
    once: dict[tuple[Any, ...], Cell] = {}
    for cell in acting:
        named = replace(knobs, **cell)
        plain = {"weigh": weighing(named.strategy, named.weigh)} if "weigh" in cell else {}
        once.setdefault(tuple((cell | plain).items()), cell)
    return tuple(once.values())


def training_of(config: Config, knobs: Knobs) -> tuple[Any, ...]:
    """What decides how a training goes: the strategy, and the knobs that it reads. paper without its losses trains as none, to the last bit."""
    read = {by: [f.name for f in fields(Knobs) if reads(config, by, f.name)] for by in ("none", knobs.strategy)}
    own = [name for name in read[knobs.strategy] if name not in read["none"]]
    idle = knobs.strategy == "paper" and not any(getattr(knobs, name) for name in own)
    values = asdict(knobs) | {"weigh": weighing(knobs.strategy, knobs.weigh)} | ({"strategy": "none"} if idle else {})
    return tuple((name, values[name]) for name in read["none" if idle else knobs.strategy])


def make_plan(
    config: Config, knobs: Knobs, lists: Mapping[str, Sequence[Value]], pairs: Sequence[Cell] = (), seeds: int = 1
) -> Plan:
    """The plan of a grid: pairs of the two weights, if any, with every combination of the lists. seeds counts from config.seed.

    A list of one value is a knob that all cells share. What a cell's strategy does not read is left out of it, and cells
    that are then the same are one. ValueError, with one line, if a cell cannot be trained, no cell reads a list, a run
    would not end, or there are too many.
    """
    if pairs and (twice := [name for name in ("w_importance", "w_load") if name in lists]):
        raise ValueError(f"pairs set both weights, and {twice[0]} is given too; leave one of them out")
    shared: Cell = {name: values[0] for name, values in lists.items() if len(values) == 1}
    knobs = replace(knobs, **shared)
    axes = {name: [{name: value} for value in values] for name, values in lists.items() if len(values) > 1}
    # The strategy first, so that its rows stand together and each reads as a sweep of its own knobs.
    by_strategy = [axes.pop("strategy")] if "strategy" in axes else []
    combined = grid([*by_strategy, *([pairs] if pairs else []), *axes.values()])
    cells = folded(config, knobs, combined)
    if unread := [name for name in combined[0] if not any(name in cell for cell in cells)]:
        raise ValueError(no_reader(config, unread[0], {replace(knobs, **cell).strategy: None for cell in cells}))
    if not config.steps:
        raise ValueError(
            "steps must be 1 or more in a sweep, since each run has to end, got 0; give for example --steps 1000"
        )
    if seeds < 1:
        raise ValueError(f"seeds must be 1 or more, got {seeds}")
    if len(cells) * seeds > MOST:
        raise ValueError(f"{len(cells)} cells with {seeds} seeds are more than {MOST} runs; shorten a list")
    config = whole_paths(config)
    for cell in cells:
        check(config, replace(knobs, **cell))
    parse_setting(Config, "seed", config.seed + seeds - 1)
    return Plan(config, knobs, cells, tuple(range(config.seed, config.seed + seeds)))


def no_reader(config: Config, name: str, strategies: Iterable[str]) -> str:
    """Why a list of this knob's values would train the same thing again and again."""
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
    sweep = Sweep(sweep_id or f"sweep-{plan.config.task}-{code}", runs_folder(runs).absolute(), plan)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", sweep.id):
        raise StoreError(f"a sweep's name is letters, digits, dots and dashes, at most 64, got {sweep.id!r}")
    if (sweep.folder / "run.db").exists():
        raise StoreError(f"{sweep.id} is a run in {sweep.runs}; choose another --sweep-id")
    if (sweep.folder / "sweep.json").exists():
        if open_sweep(sweep.id, runs).plan != plan:
            raise StoreError(
                f"sweep {sweep.id} has other settings; choose another --sweep-id, or go on with --resume {sweep.id}"
            )
        return sweep
    sweep.folder.mkdir(parents=True, exist_ok=True)
    draft = sweep.folder / f".sweep.json.{os.getpid()}"
    draft.write_text(json.dumps(with_sum({"created": time.time(), **settings}), indent=1))
    draft.rename(sweep.folder / "sweep.json")
    return sweep


def open_sweep(sweep_id: str, runs: str | Path | None = None) -> Sweep:
    """A sweep by its name or a unique beginning of it. StoreError says which there are."""
    folder, names = runs_folder(runs).absolute(), sweep_ids(runs)
    matches = [sweep_id] if sweep_id in names else [name for name in names if name.startswith(sweep_id)]
    if len(matches) != 1 or not sweep_id:
        problem = "is the beginning of several sweeps" if matches else "is not a sweep"
        raise StoreError(f"{sweep_id!r} {problem} in {folder}; there are: {', '.join(names[:8]) or 'none'}")
    try:
        record: Any = without_sum(read_json(read_side(folder / matches[0] / "sweep.json", SIDE)), PLANNED)
        cells = tuple(
            {name: parse_setting(Knobs, name, value) for name, value in cell.items()} for cell in record["cells"]
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
        Job(f"{sweep.id}-c{i + 1:02d}-s{seed}", i, replace(plan.config, seed=seed), plan.knobs_of(cell))
        for seed in plan.seeds
        for i, cell in enumerate(plan.cells)
        if trained[i] == i
    ]
