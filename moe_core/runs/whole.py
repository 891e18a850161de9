"""Whether a run is whole: what it holds against the chains, sums and the tip that were written with it."""

import hashlib
from pathlib import Path

from moe_core.runs.database import StoreError
from moe_core.runs.limits import first_word, open_plain
from moe_core.runs.store import Run
from moe_core.runs.sums import SUMMED
from moe_core.runs.tip import read_old_tip

NO_TIP = "run.tip is missing or damaged, so what was lost from the end would not be noticed"


def verify(run: Run) -> list[str]:
    """What is wrong with a run's record and its checkpoints; empty if all is whole."""
    checkpoints = (checkpoint_finding(path) for path in sorted(run.path.glob("**/*.pt")))
    return record_findings(run) + [finding for finding in checkpoints if finding]


def record_findings(run: Run) -> list[str]:
    """What is wrong with the record; empty if it is whole.

    A run may train meanwhile. So how far it goes is read before what there must then be: the tip, the state, the rows.
    """
    found = []
    tip = run.checked.tip() if run.checked.version() >= SUMMED else read_old_tip(run.path)
    try:
        run.look_over()
        for kind in ("probe", "choices", "full"):
            for _, id in run.checked.snapshots(kind):
                run.checked.snapshot(id)
    except StoreError as error:
        found.append(str(error))
    try:
        blocks = run.blocks()
        if blocks and blocks[0].first != 1:
            found.append(f"the first recorded step is {blocks[0].first}, not 1")
        if blocks and tip is None:
            found.append(NO_TIP)
        if run.checked.version() < SUMMED and tip:
            found += old_tip_findings(run, *tip)
        structure = [row[0] for row in run.query("PRAGMA integrity_check(1)")]
        if structure != ["ok"]:
            found.append(f"the structure of run.db is damaged: {' '.join(structure[0].split())}")
    except StoreError as error:
        found.append(str(error))
    return [*run.checked.damage.values(), *found]


def old_tip_findings(run: Run, step: int, blocks: int, chain: bytes) -> list[str]:
    """What an earlier version's tip, read before, says of the record: its last step then, and that step's chain."""
    last = run.steps()[1]
    if step > last:
        return []  # steps are lost, as the state's reading says
    there = run.query("SELECT first + n - 1, chain FROM blocks WHERE id = ?", (blocks,))
    return [] if there == [(step, chain)] or not blocks else [NO_TIP]


def checkpoint_finding(path: Path) -> str:
    """What is wrong with a checkpoint, or "". One that is replaced meanwhile is looked at again; one that is
    thinned out meanwhile is left out."""
    beside = path.with_name(path.name + ".sha256")
    for _ in range(3):
        try:
            stamps = path.lstat(), beside.lstat()
            wanted = first_word(beside)
            with open_plain(path) as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == wanted:
                    return ""
            if (path.lstat().st_ino, beside.lstat().st_ino) == (stamps[0].st_ino, stamps[1].st_ino):
                return f"{path.name} is not what was written: its SHA-256 differs"
        except FileNotFoundError:
            if not path.is_symlink() and not path.exists():
                return ""
        except (OSError, ValueError):
            break
    return f"{path.name} has no SHA-256 beside it, or is not a plain file"
