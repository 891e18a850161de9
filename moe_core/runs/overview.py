"""All runs as a person tells them apart: what each is called, what sets it apart from the others, how it stands.

A run that nobody trains is read once and kept until one of its files changes, so that 200 runs are listed in a blink.
"""

import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from moe_core.runs.columns import pick
from moe_core.runs.database import StoreError, is_alive, is_plain
from moe_core.runs.listing import QUERY_LIMIT, changed_at, is_run, quiet_text, run_folders, runs_folder
from moe_core.runs.notes import Notes, read_notes
from moe_core.runs.ranks import last_ranks
from moe_core.runs.remove import going_text, what_goes
from moe_core.runs.room import size_of
from moe_core.runs.rows import KnobChange, Parent
from moe_core.runs.statistics import measured_by
from moe_core.runs.store import Run
from moe_core.runs.turns import knobs_after
from moe_core.schema import AUTOBALANCE, BALANCE_STEPS, Description, change_text, first_few, looks_ahead, value_text

WATCHED_FILES = ("run.db", "run.db-wal", "run.tip", "trainer.log")
FILES = ("text", "data")  # settings that name a person's own files
SAID_ELSEWHERE = ("task", "steps", "threads", *FILES)  # settings that have a column, or change nothing that is measured
MISSING = {
    "refuse": "missing values refused",
    "mean": "missing values as the mean",
    "drop": "rows with missing values dropped",
}
NAMED = 4  # settings or turns that set a run apart, before "and 3 more"


class Facts(NamedTuple):
    """What the record of a run says. left: seconds to its goal at its present pace, None where that is not known.

    balance: the mean of the run's own measure of balance over its last steps and all layers; held_out: the headline of its
    last evaluation; both NaN where there is none. ahead: that number does not compare with others'. ranks: how many trained it last.
    """

    state: str
    step: int
    description: Description | None
    created: float
    problem: str = ""
    reason: str = ""
    goal: int = 0
    start: Mapping[str, Any] = {}
    turns: tuple[tuple[str, float | str, float | str], ...] = ()
    parent: Parent | None = None
    balance: float = math.nan
    held_out: float = math.nan
    ahead: bool = False
    left: float | None = None
    ranks: int = 1


class Entry(NamedTuple):
    """A run in the overview. apart: what sets it apart from the other runs, in words; sweep, lesson: whose run it is."""

    id: str
    notes: Notes
    facts: Facts
    bytes: int
    apart: str
    sweep: str
    lesson: int

    @property
    def name(self) -> str:
        return self.notes.name or self.id


_kept: dict[Path, tuple[Any, Facts]] = {}
_guard = Lock()


def overview(runs: str | Path | None = None) -> list[Entry]:
    """Every run, the newest first, a fork anywhere. One damaged run never hides the others."""
    folder = runs_folder(runs).absolute()
    paths = run_folders(folder)
    found = {path.name: facts_of(path) for path in paths}
    with _guard:
        for path in [path for path in _kept if path.parent == folder and path.name not in found]:
            del _kept[path]
    apart = what_sets_apart(found)
    entries = [
        Entry(path.name, read_notes(path), found[path.name], size_of(path), apart[path.name], *belonging(path))
        for path in paths
    ]
    return sorted(entries, key=lambda entry: -entry.facts.created)


def deletion(folder: Path, entries: Sequence[Entry]) -> str:
    """What deleting a run takes, in words. entries: the overview of the runs beside it. StoreError if there is no run."""
    if not is_run(folder):
        raise StoreError(f"there is no run {folder.name} in {folder.parent}")
    forks = [entry.name for entry in entries if entry.facts.parent and entry.facts.parent.run == folder.name]
    return going_text(what_goes(folder), forks, belonging(folder)[0])


def belonging(path: Path) -> tuple[str, int]:
    """The sweep and the lesson that a run was trained for; "" and 0 for none. Their runs' ids begin accordingly."""
    cell = re.fullmatch(r"(.+)-c\d{2,}-s\d+", path.name)
    sweep = cell[1] if cell and is_plain(path.with_name(cell[1]) / "sweep.json") else ""
    lesson = re.match(r"lesson-(\d)-", path.name)
    return sweep, int(lesson[1]) if lesson else 0


def facts_of(path: Path) -> Facts:
    """What a run's record says: as it was read before, if nobody trains the run and its files are the same."""
    mark = None if is_alive(path) else tuple(map(_stamp, (path / name for name in WATCHED_FILES)))
    with _guard:
        kept = _kept.get(path)
    if mark and kept and kept[0] == mark:
        return kept[1]
    facts = _read(path)
    if mark:
        # Reading may have sealed the file of a run that had just ended.
        with _guard:
            _kept[path] = tuple(map(_stamp, (path / name for name in WATCHED_FILES))), facts
    return facts


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        about = os.lstat(path)
    except OSError:
        return None
    return about.st_mtime_ns, about.st_size, about.st_ino


def _read(path: Path) -> Facts:
    try:
        run = Run(path, QUERY_LIMIT)
        try:
            return _facts(run)
        finally:
            run.close()
    except ValueError as error:
        return Facts("damaged", 0, None, changed_at(path), str(error))


def _facts(run: Run) -> Facts:
    status, description = run.status(), run.description
    every = run.knob_changes()
    changes = [change for change in every if change.who != AUTOBALANCE]
    inherited = run.parent.step if run.parent else 0
    turned: dict[str, tuple[float | str, float | str]] = {}
    for change in changes:
        if not run.parent or change.step is None or change.step > inherited:
            turned[change.name] = turned.get(change.name, (change.previous,))[0], change.value
    facts = Facts(
        status.state,
        status.step,
        description,
        float(run.facts["created"]),
        reason=quiet_text(status.quiet) or status.reason,
        goal=description.goal,
        start={name: getattr(run.started_knobs, name) for name in description.knobs},
        turns=tuple((name, *values) for name, values in turned.items() if values[0] != values[1]),
        parent=run.parent,
    )
    try:
        return facts._replace(**_measured(run, facts, every))
    except ValueError as error:  # a damaged block: the rest of the record says what the run is
        return facts._replace(reason=facts.reason or str(error))


def _measured(run: Run, facts: Facts, changes: Sequence[KnobChange]) -> dict[str, Any]:
    """Ranks, balance, headline and the time left. changes: the run's turns, read once, since each reading checks all of them."""
    numbers: dict[str, Any] = {}
    numbers["ranks"] = last_ranks(run.deals).size
    description, last = facts.description, run.steps()[1]
    assert description is not None
    if last:
        first = max(1, last - BALANCE_STEPS + 1)
        blocks = run.blocks(first=first, last=last)
        rows = np.concatenate([block.rows for block in blocks])[first - blocks[0].first :][: last - first + 1]
        steps = np.arange(first, first + len(rows))
        if measured_by(description, stat := description.balance):
            switched = getattr(run.started_knobs, "off", "") or any(change.name == "off" for change in changes)
            spans = run.off_spans() if switched else ()
            layers = [
                pick(run.layout, rows, stat, layer, steps, spans).mean() for layer in range(len(description.layers))
            ]
            numbers["balance"] = float(np.mean(layers))
        own = rows[max(0, (run.parent.step if run.parent else 0) + 1 - first) :]
        if facts.state == "training" and facts.goal > last and len(own) and measured_by(description, "seconds"):
            pace = float(pick(run.layout, own, "seconds", 0).mean())
            numbers["left"] = pace * (facts.goal - last) if math.isfinite(pace) and pace > 0 else None
    if description.metrics and (evals := [e for e in run.evals() if description.metrics[0].name in e.metrics]):
        numbers["held_out"] = evals[-1].metrics[description.metrics[0].name]
        numbers["ahead"] = looks_ahead(description, knobs_after(run.started_knobs, changes, evals[-1].step))
    return numbers


# What sets a run apart


def what_sets_apart(found: Mapping[str, Facts]) -> dict[str, str]:
    """Of each run what sets it apart from the other runs of its task, in words: whose fork it is and what that changed; the
    settings and starting values that most others do not have; what was turned; "" if there is nothing."""
    groups: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for id, facts in found.items():
        if facts.description and not facts.parent:  # a fork has the settings of its parent
            own = {name: v for name, v in facts.description.settings.items() if name not in SAID_ELSEWHERE}
            groups[facts.description.task][id] = {**own, **facts.start}
    words = {id: fork_words(facts) + files_of(facts.description) for id, facts in found.items()}
    for group in groups.values():
        usual = usual_values(list(group.values()))
        for id, values in group.items():
            words[id] += [
                MISSING.get(v, f"{name} {_text(v)}") if name == "missing" else f"{name} {_text(v)}"
                for name, v in values.items()
                if name in usual and usual[name] != _text(v)
            ]
    for id, facts in found.items():
        words[id] += [] if facts.parent else [f"{name} {change_text(old, new)}" for name, old, new in facts.turns]
    return {id: first_few(list(dict.fromkeys(own)), NAMED, "") for id, own in words.items()}


def usual_values(group: Sequence[Mapping[str, Any]]) -> dict[str, str | None]:
    """The value of each setting that more than half of the runs have, None where no value is that common. Settings that all
    have alike are left out."""
    usual: dict[str, str | None] = {}
    for name in dict.fromkeys(name for values in group for name in values):
        counts = Counter(_text(values[name]) for values in group if name in values)
        value, many = counts.most_common(1)[0]
        if len(counts) > 1:
            usual[name] = value if 2 * many > len(group) else None
    return usual


def fork_words(facts: Facts) -> list[str]:
    """Where a fork begins and what it changed: "from 800: k 2 → 1"; [] for a run that is none."""
    if not facts.parent:
        return []
    changed = [f"{name} {change_text(old, new)}" for name, old, new in facts.turns]
    return [f"from {facts.parent.step:,}: {changed[0] if changed else 'nothing changed'}", *changed[1:]]


def files_of(description: Description | None) -> list[str]:
    """The names of the person's own files that a run learns from; with their folder where two have one name."""
    paths: list[str] = []
    for name in FILES if description else ():
        value = description.settings.get(name) if description else None
        paths += [str(path) for path in value] if isinstance(value, list) else [value] if isinstance(value, str) else []
    paths = [path for path in paths if path]
    names = [Path(path).name or path for path in paths]
    return names if len(set(names)) == len(names) else ["/".join(Path(path).parts[-2:]) for path in paths]


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " and ".join(map(str, value)) or "none"
    return value_text(value) if isinstance(value, float | str) else str(value)
