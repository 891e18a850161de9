"""Whether a run is undamaged: its rows against the chains, the checksums and the tip that were written with them."""

import hashlib
from pathlib import Path

from moe_core.runs.apart import surplus
from moe_core.runs.database import StoreError
from moe_core.runs.limits import first_word, open_plain
from moe_core.runs.rows import SNAPSHOT_KINDS
from moe_core.runs.store import Run
from moe_core.runs.sums import SUMMED
from moe_core.runs.tip import read_old_tip

AT_ONCE = 64  # blocks in memory: a long record has more than the memory holds
NO_TIP = "run.tip is missing or damaged, so steps lost at the end would not be noticed"


def verify(run: Run) -> list[str]:
    """What is wrong with a run's record and its checkpoints; empty if all is whole."""
    checkpoints = (checkpoint_finding(path) for path in sorted(run.path.glob("**/*.pt")))
    return record_findings(run) + [finding for finding in checkpoints if finding]


def record_findings(run: Run) -> list[str]:
    """What is wrong with the record; empty if it is whole.

    A run may train meanwhile. So how far it goes is read before what there must then be: the tip, the state, the rows.
    """
    findings = []
    tip = run.checked.tip() if run.checked.version() >= SUMMED else read_old_tip(run.path)
    try:
        run.look_over()
        for kind in SNAPSHOT_KINDS:
            for _, id in run.checked.snapshots(kind):
                run.checked.snapshot(id)
    except StoreError as error:
        findings.append(str(error))
    try:
        blocks = run.blocks(most=AT_ONCE, gaps=True)  # each that is damaged is noted
        if blocks and blocks[0].first != 1:
            findings.append(f"the first recorded step is {blocks[0].first}, not 1")
        recorded = bool(blocks)
        while len(blocks) >= AT_ONCE:
            blocks = run.blocks(after=blocks[-1].id, most=AT_ONCE, gaps=True)
        if recorded and tip is None:
            findings.append(NO_TIP)
        if run.checked.version() < SUMMED and tip:
            findings += old_tip_findings(run, *tip)
        if run.stored.apart and (many := surplus(run.query, run.stored)):
            findings.append(f"{many} rows of parts belong to no block")
        structure = [row[0] for row in run.query("PRAGMA integrity_check(1)")]
        if structure != ["ok"]:
            findings.append(f"the structure of run.db is damaged: {' '.join(structure[0].split())}")
    except StoreError as error:
        findings.append(str(error))
    return [*run.checked.damage.values(), *findings]


def old_tip_findings(run: Run, step: int, blocks: int, chain: bytes) -> list[str]:
    """What is wrong by the tip of an earlier version, which was read before: its last step, number of blocks, and last
    link."""
    last = run.steps()[1]
    if step > last:
        return []  # lost steps are noted already, when the state is read
    stored = run.query("SELECT first + n - 1, chain FROM blocks WHERE id = ?", (blocks,))
    return [] if stored == [(step, chain)] or not blocks else [NO_TIP]


def checkpoint_finding(path: Path) -> str:
    """What is wrong with a checkpoint, or "". One that is replaced meanwhile is read again; one that is
    removed meanwhile is left out."""
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
