"""Whether a run is whole: what it holds against the chains, sums and the tip that were written with it."""

import hashlib
import struct

from moe_core.runs.codec import START, TIP, link, unpack_arrays
from moe_core.runs.database import StoreError, is_plain
from moe_core.runs.store import Run
from moe_core.runs.turns import linked


def verify(run: Run) -> list[str]:
    """What is wrong with a run's record and its checkpoints; empty if all is whole."""
    found = record_findings(run)
    for path in sorted(run.path.glob("**/*.pt")):
        beside = path.with_name(path.name + ".sha256")
        if not (is_plain(path) and is_plain(beside)):
            found.append(f"{path.name} has no SHA-256 beside it, or is no plain file")
            continue
        with open(path, "rb") as file:
            same = [hashlib.file_digest(file, "sha256").hexdigest()] == beside.read_text(errors="replace").split()[:1]
        if not same:
            found.append(f"{path.name} is not what was written: its SHA-256 differs")
    return found


def record_findings(run: Run) -> list[str]:
    """What is wrong with the record; empty if it is whole."""
    found = []
    try:
        blocks = run.blocks()
        last = blocks[-1].first + len(blocks[-1].rows) - 1 if blocks else 0
        if blocks and blocks[0].first != 1:
            found.append(f"the first recorded step is {blocks[0].first}, not 1")
        found += tip_findings(run, last, blocks[-1].id if blocks else 0)
    except StoreError as error:
        found.append(str(error))
    chain = START
    for id, name, value, previous, who, at, kept in run.query("SELECT * FROM knobs ORDER BY id"):
        chain = link(chain, id, name, linked(value), linked(previous), who, at)
        if chain != kept:
            found.append(f"knob change {id} is not what was written")
            chain = kept
    for kind in ("probe", "full"):
        for id, data in run.query("SELECT id, data FROM snapshots WHERE kind = ?", (kind,)):
            try:
                unpack_arrays(data)
            except ValueError as error:
                found.append(f"snapshot {id}: {error}")
    return found


def tip_findings(run: Run, last: int, blocks: int) -> list[str]:
    """A flip in a live log silently ends it there; the tip, written after each commit, says how far it went."""
    try:
        step, _blocks, _chain = TIP.unpack(
            (run.path / "run.tip").read_bytes() if is_plain(run.path / "run.tip") else b""
        )
    except (OSError, struct.error):
        return ["run.tip is missing or damaged, so steps lost from the end would not be noticed"] if blocks else []
    return [f"{step - last} steps are lost after step {last}"] if step > last else []
