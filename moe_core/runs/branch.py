"""A run that begins as a copy of another's record up to a step, so that a fork can be read and sent by itself.

The fork's trainer goes on as after a kill: it restores the nearest checkpoint, trains again up to the last recorded step,
and compares. A parent that is still training only gets one more reader.
"""

import contextlib
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from moe_core.runs.apart import insert_block
from moe_core.runs.begin import make_file
from moe_core.runs.codec import HEADER, LARGEST, link
from moe_core.runs.database import StoreError, is_plain
from moe_core.runs.store import Run
from moe_core.runs.sums import insert
from moe_core.runs.turns import as_knobs, check_changes, insert_turns
from moe_core.schema import Config, as_dict, parse_setting, to_json

SPAN = 4096  # steps in a block of the copy
OF_LAUNCH = ("launch", "ranks")  # facts of the processes that began a run


def branch_off(
    parent: Run,
    at: int,
    changes: Mapping[str, Any],
    folder: Path,
    steps: int | None = None,
    who: str = "fork",
    facts: Mapping[str, Any] = {},
) -> int:
    """Make a new run in `folder`: the parent up to step `at`, with `changes` turned in the next step. Returns its lock's
    handle.

    steps: how many it is to have in all; the parent's number, or if `at` has reached that, 0 (until stopped). What the
    parent's script has for later steps stays; what people turned later does not. facts: what the record says of the ranks that
    train it, if there are several. ValueError, and nothing is written, for a step that is not recorded, an invalid change, or a
    folder in use.
    """
    values, steps = check_branch(parent, at, changes, steps)
    about = {
        **parent.about,
        "id": folder.name,
        "created": time.time(),
        "config": {**as_dict(parent.config), "steps": steps},
        "description": to_json(replace(parent.description, settings={**parent.description.settings, "steps": steps})),
        # The parent's launch has not begun this run, nor have its ranks.
        "facts": {**{name: fact for name, fact in parent.about["facts"].items() if name not in OF_LAUNCH}, **facts},
        "parent": {"run": parent.id, "step": at, **dealt_until(parent, at)},
        "script": [list(change) for change in parent.script if change[0] > at],
    }

    def fill(db: sqlite3.Connection) -> None:
        copy_blocks(db, parent, at)
        copy_rest(db, parent, at)
        if values:
            insert_turns(db, parent.started_knobs, values, who)

    lock = make_file(folder, about, parent.probe(), fill)
    link_checkpoints(parent.path, folder, at)
    return lock


def dealt_until(parent: Run, at: int) -> dict[str, Any]:
    """How the experts were dealt in the steps that a fork has of its parent, if ever several ranks trained it."""
    deals = [list(deal) for deal in parent.deals if deal.first <= at]
    return {"deals": deals} if deals else {}


def check_branch(
    parent: Run, at: int, changes: Mapping[str, Any], steps: int | None = None
) -> tuple[dict[str, Any], int]:
    """The knobs that branch_off would turn, of their own types, and the steps in all. ValueError where it would refuse
    them."""
    parent.check_layout()
    parent.check_turns()
    last = parent.steps()[1]
    if not 0 <= at <= last:
        raise StoreError(f"--at must be a recorded step, between 0 and {last} in {parent.id}, got {at}")
    values = check_changes(parent.config, changes, as_knobs(parent.knobs_at(at)))
    if steps is None:
        steps = parent.config.steps if parent.config.steps > at else 0
    steps = int(parse_setting(Config, "steps", steps))
    if steps and steps <= at:
        raise StoreError(f"--steps must be above --at {at}, or 0 to train until stopped, got {steps}")
    return values, steps


def copy_blocks(db: sqlite3.Connection, parent: Run, at: int) -> None:
    """The steps up to `at`, in larger blocks on a chain of their own."""
    chain, id = db.execute("SELECT chain FROM run").fetchone()[0], 0
    span = min(SPAN, LARGEST // (4 * parent.columns))
    for first in range(1, at + 1, span):
        rows = parent.rows(first, min(at, first + span - 1))
        packed, id = parent.stored.pack(rows), id + 1
        chain = link(chain, HEADER.pack(first, *rows.shape), packed.data)
        insert_block(db, parent.stored, id, first, len(rows), packed, chain)


def copy_rest(db: sqlite3.Connection, parent: Run, at: int) -> None:
    """Evaluations, knob changes with their steps of effect, and snapshots, as they are; damaged rows are not copied."""
    # Changes take effect in the order of their ids, so these are a beginning of the parent's chain.
    knobs = parent.query("SELECT knobs.* FROM knobs JOIN applied ON knob = id WHERE step <= ? ORDER BY id", (at,))
    db.executemany("INSERT INTO knobs VALUES (?, ?, ?, ?, ?, ?, ?)", knobs)
    for table in ("applied", "evals"):
        for row in parent.checked.rows(table):
            if row["step"] <= at:
                row.pop("id", None)
                insert(db, table, row)
    for kind in ("probe", "full"):
        for step, id in parent.checked.snapshots(kind):
            if step <= at and (shot := parent.checked.snapshot_row(id)):
                insert(db, "snapshots", shot)


def checkpoint_step(path: Path) -> int | None:
    """The step in a checkpoint's file name; None for a name that MoEscope does not give."""
    match = re.fullmatch(r"checkpoint-(\d{9,18})\.pt", path.name, re.ASCII)
    return int(match[1]) if match else None


def link_checkpoints(source: Path, folder: Path, at: int) -> None:
    """The parent's checkpoints up to step `at` under the fork's name too: a file once written never changes.

    On a disk without links the nearest is copied. A parent that thins its checkpoints meanwhile takes nothing away.
    """
    for path in sorted(source.glob("checkpoint-*.pt"), reverse=True):
        step = checkpoint_step(path)
        if step is None or step > at or not (is_plain(path) and is_plain(source / (path.name + ".sha256"))):
            continue
        with contextlib.suppress(FileNotFoundError):
            try:
                for name in (path.name + ".sha256", path.name):
                    os.link(source / name, folder / name)
            except FileNotFoundError:
                raise
            except OSError:
                for name in (path.name + ".sha256", path.name):
                    shutil.copyfile(source / name, folder / name)
                return
