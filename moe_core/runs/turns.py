"""Turns of knobs: checked one by one, written as links of their own chain, and added up to the knobs' values at a step."""

import math
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from moe_core.runs.codec import START, link
from moe_core.runs.rows import KnobChange
from moe_core.schema import (
    Config,
    Description,
    Knobs,
    KnobValues,
    Values,
    as_dict,
    check_knob,
    from_dict,
    is_number,
    off_by_layer,
)

Row = tuple[Any, ...]
TURN = ("id", "name", "value", "previous", "who", "when")  # the fields of TURNS, which ends with the row's link
INFINITE = (math.inf, -math.inf)
TURNS = "SELECT id, name, value, previous, who, at, chain FROM knobs"


def check_changes(config: Config, changes: Mapping[str, Any], knobs: Knobs | None) -> dict[str, Any]:
    """Knob changes of the knobs' own types, in the order given, each checked against the values after those before it;
    ValueError for an invalid one. knobs: the values before, None to check each by itself."""
    values: dict[str, Any] = {}
    for name, value in changes.items():
        values[name] = check_knob(config, name, value, knobs)
        knobs = knobs and replace(knobs, **{name: values[name]})
    return values


def as_knobs(knobs: KnobValues) -> Knobs:
    """The values as Knobs, of a run that our trainer trains."""
    assert isinstance(knobs, Knobs)
    return knobs


def check_declared(description: Description, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Knob changes of the types that a run declares for its own knobs; ValueError for an invalid one."""
    for name in changes:
        if name not in description.knobs:
            names = ", ".join(description.knobs) or "none"
            raise ValueError(f"unknown knob {name!r}; there are: {names}")
    if isinstance(off := changes.get("off"), str):
        changes = {**changes, "off": off_by_layer(description.experts, off)}
    return {name: description.knobs[name].parse(name, value) for name, value in changes.items()}


def knobs_after(started: KnobValues, changes: Sequence[KnobChange], step: int | None = None) -> KnobValues:
    """The knobs after those changes that took effect by a step; None: after all, taken effect or not."""
    done = [c for c in changes if step is None or (c.step is not None and c.step <= step)]
    values = {change.name: change.value for change in done}
    if isinstance(started, Knobs):
        return from_dict(Knobs, as_dict(started) | values) if values else started
    # The record's column gives whole numbers back as floats.
    typed: dict[str, float | str] = dict(started)
    for name, value in values.items():
        # No run accepts a turn to a value of another type, or to infinity: another program wrote it, and it is left out.
        if name in started and isinstance(value, str) == isinstance(started[name], str) and value not in INFINITE:
            typed[name] = type(started[name])(value)
    return Values(typed)


def insert_turns(db: sqlite3.Connection, started: KnobValues, values: Mapping[str, float | str], who: str) -> int:
    """Add knob changes to the chain, in a transaction of the caller's; the same value again is not a change. Returns
    the last row's id."""
    row = db.execute("SELECT id, chain FROM knobs ORDER BY id DESC LIMIT 1").fetchone()
    id, chain = row or (0, START)
    for name, value in values.items():
        last = db.execute("SELECT value FROM knobs WHERE name = ? ORDER BY id DESC LIMIT 1", (name,)).fetchone()
        previous = last[0] if last else getattr(started, name)
        if value == previous:
            continue
        id, at = id + 1, time.time()
        chain = link(chain, id, name, linked(value), linked(previous), who, at)
        db.execute("INSERT INTO knobs VALUES (?, ?, ?, ?, ?, ?, ?)", (id, name, value, previous, who, at, chain))
    return int(id)


def whole_turns(
    rows: Sequence[Row], known: Mapping[int, Row], before: Row | None = None
) -> tuple[list[Row], list[int]]:
    """Of rows (id, name, value, previous, who, at, chain) in order: those that are undamaged, and the ids of the others.

    known: rows that were checked before; before: the row before the first, which is not checked itself. A row whose link was
    changed is reported, and the next one is checked against the link that it must have had.
    """
    whole, bad = [], []
    last, links = (before[0], [before[-1]]) if before else (0, [START])
    for row in rows:
        id, kept = row[0], row[-1]
        valid = [kept] if known.get(id) == row else _links(row, links if id == last + 1 else [])
        if kept in valid:
            whole.append(row)
        else:
            bad.append(id)
        last, links = id, [kept] if kept in valid else [kept, *valid]
    return whole, bad


def _links(row: Row, befores: Sequence[bytes]) -> list[bytes]:
    id, name, value, previous, who, at, _ = row
    try:
        return [link(before, id, name, linked(value), linked(previous), who, at) for before in befores]
    except (TypeError, ValueError):  # neither a number nor a word
        return []


def linked(value: float | str) -> float | str:
    """A knob's value as the chain takes it, which is as the column of REAL gives it back: every number as a float, also one
    that was a word, such as the `off` that a run starts with ("4"); other words as they are."""
    return value if isinstance(value, str) and not is_number(value) else float(value)
