"""The rows of a run's record beside its blocks of steps, each checked against what was written with it as it is read.

A damaged row is left out and noted in `damage`, a line each; the rest can be read. Everything is read in one order: first
how far the record goes (the tip, the state), then the rows, of which there may be more by then and never fewer.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from moe_core.runs.codec import unpack_arrays
from moe_core.runs.database import DamagedError, StoreError
from moe_core.runs.limits import read_json
from moe_core.runs.rows import SNAPSHOT_KINDS, KnobChange
from moe_core.runs.sums import KEYS, NOTHING_HELD, SUMMED, fields_of, row_sum, snapshot_mark
from moe_core.runs.tip import Tip, read_old_tip, read_tip
from moe_core.runs.turns import TURN, TURNS, whole_turns

Query = Callable[..., list[Any]]
WORDS = {  # of one row, and of several
    "evals": ("evaluation", "evaluations"),
    "commands": ("command", "commands"),
    "applied": ("step of effect of knob change", "steps of effect"),
    "knobs": ("knob change", "knob changes"),
}
NEWEST = """SELECT (SELECT max(id) FROM evals), (SELECT max(id) FROM knobs), (SELECT count(*) FROM applied),
            (SELECT max(id) FROM commands)"""
# No more than this is read at once of a stranger's file.
POSSIBLE = """typeof(state) = 'text' AND typeof(step) = 'integer' AND typeof(reason) = 'text' AND length(reason) < 1000000
              AND typeof(pid) = 'integer' AND typeof(heartbeat) = 'real'"""


class State(NamedTuple):
    """The state's row. held: how many rows of each table there were when it was written; {} in an earlier version's file."""

    state: str
    step: int
    reason: str
    pid: int
    heartbeat: float
    held: dict[str, int]


class CheckedRows:
    """Reads of one run through its `query`. chain: that of the run's settings, which the tip is bound to."""

    def __init__(self, folder: Path, query: Query, chain: bytes) -> None:
        self.folder, self.query, self.chain = folder, query, chain
        self.damage: dict[str, str] = {}
        self._lost: dict[tuple[int, int], str] = {}  # what of the blocks is not what was written, by block and layer
        self._linked: dict[int, tuple[Any, ...]] = {}  # turns whose link was followed already
        self._lists: dict[str, tuple[int, list[tuple[int, int]]]] = {}

    def note(self, about: str, line: str) -> None:
        """Note damage, a line under a key; an empty line clears the key."""
        if line:
            self.damage[about] = line
        else:
            self.damage.pop(about, None)

    def note_lost(self, place: tuple[int, int], what: str) -> None:
        """Note a block, or a layer of it, that is not what was written: a line for all of them."""
        if self._lost.get(place) == what:
            return
        self._lost[place] = what
        lost = [self._lost[place] for place in sorted(self._lost)]
        more = f" and {len(lost) - 3:,} more" if len(lost) > 3 else ""
        are = "is" if len(lost) == 1 and not what.startswith("blocks") else "are"
        self.note("lost", f"{', '.join(lost[:3])}{more} {are} not what was written; all else can be read")

    def version(self) -> int:
        """The file's version. Read each time, since a trainer that resumes a run upgrades its file."""
        return int(self.query("PRAGMA user_version")[0][0])

    # How far the record goes

    def tip(self) -> Tip | None:
        """How far the log has gone; to be read before what is compared with it."""
        return read_tip(self.folder, self.chain)

    def state(self) -> State | None:
        """The state's row; None, and noted, if it is not what was written."""
        names = State._fields
        if self.version() < SUMMED:
            rows = self.query(f"SELECT {', '.join(names[:-1])} FROM state WHERE {POSSIBLE}")  # noqa: S608
            return State(**dict(zip(names, rows[0], strict=False)), held={}) if rows else None
        rows = self.query(
            f"SELECT {', '.join(names)}, sum FROM state WHERE {POSSIBLE} AND length(held) < 10000"  # noqa: S608
        )
        row = dict(zip(names, rows[0][:-1], strict=True)) if rows else {}
        if not rows or rows[0][-1] != row_sum("state", row):
            self.note("state", "the state that its trainer wrote last is not what was written; all else can be read")
            return None
        self.note("state", "")
        return State(**{**row, "held": held_of(row["held"], self.folder.name)})

    def check_end(self) -> State | None:
        """The state, compared with the tip: whether all that was committed is there."""
        old = self.version() < SUMMED
        before, tip = (read_old_tip(self.folder), None) if old else (None, self.tip())
        state = self.state()
        if state is None:
            return None
        step = before[0] if before else tip.step if tip else 0
        lost = step > state.step or bool(tip and tip.commits > state.held["commits"])
        many = f"{step - state.step} steps are lost" if step > state.step else "what was committed last is lost"
        self.note("end", f"{many} after step {state.step}; all before can be read" if lost else "")
        return state

    def newest(self) -> tuple[int, int, int, int]:
        """The last evaluation, the last turn, how many turns took effect, and the last command. While they are the same there is no
        other to read."""
        evals, knobs, applied, commands = (last or 0 for last in self.query(NEWEST)[0])
        return evals, knobs, applied, commands

    # Rows, each with its own checksum

    def rows(self, table: str, after: int = 0) -> list[dict[str, Any]]:
        """The undamaged rows of a table beyond an id, in order."""
        version = self.version()
        expected = self._expected(table) if version >= SUMMED else 0
        key, names = KEYS[table], fields_of(table, version)
        columns = [*names, "sum"] if version >= SUMMED else names
        try:
            stored = self.query(f"SELECT {', '.join(columns)} FROM {table} WHERE {key} > ? ORDER BY {key}", (after,))  # noqa: S608
        except DamagedError:
            self.note(table, f"its {WORDS[table][1]} cannot be read; all else can be read")
            return []
        rows = [dict(zip(columns, row, strict=True)) for row in stored]
        if version < SUMMED:
            return rows
        whole = [row for row in rows if row.pop("sum") == row_sum(table, row)]
        kept = {id(row) for row in whole}
        lines = [f"{WORDS[table][0]} {row[key]} is not what was written" for row in rows if id(row) not in kept]
        present = len(rows) if table == "applied" else sum(row[key] <= expected for row in rows)
        if (missing := expected - after - present) > 0:
            lines.append(self._missing(table, missing))
        self._note_rows(table, lines, after)
        return whole

    def _expected(self, table: str) -> int:
        """How many rows of a table there must be by now."""
        tip, state = self.tip(), self.state()
        asked = (tip.commands if table == "commands" else tip.turns if table == "knobs" else 0) if tip else 0
        return max(asked, state.held[table] if state else 0)

    def _missing(self, table: str, many: int) -> str:
        return f"{many} of its {WORDS[table][1]} {'is' if many == 1 else 'are'} missing"

    def _note_rows(self, table: str, lines: list[str], after: int = 0) -> None:
        """Note what is wrong with a table's rows. A read of the last rows alone does not clear what a read of all rows
        noted."""
        more = f" (and {len(lines) - 3} more)" if len(lines) > 3 else ""
        if lines or not after:
            self.note(table, f"{', '.join(lines[:3])}{more}; the others can be read" if lines else "")

    # Turns, on a chain

    def turns(self) -> list[KnobChange]:
        """The undamaged knob changes, each with its step of effect."""
        version = self.version()
        expected = self._expected("knobs") if version >= SUMMED else 0
        try:
            rows = self.query(f"{TURNS} ORDER BY id")
        except DamagedError:
            self.note("knobs", "its knob changes cannot be read; all else can be read")
            return []
        # Read after the turns, so that each turn in effect has its step.
        steps = {row["knob"]: row["step"] for row in self.rows("applied")}
        whole, bad = whole_turns(rows, self._linked)
        self._linked |= {row[0]: row for row in whole}
        lines = [f"knob change {id} is not what was written" for id in bad]
        if (missing := expected - sum(row[0] <= expected for row in rows)) > 0:
            lines.append(self._missing("knobs", missing))
        self._note_rows("knobs", lines)
        return [KnobChange(**dict(zip(TURN, row, strict=False)), step=steps.get(row[0])) for row in whole]

    # Snapshots, which are thinned as they get older

    def snapshots(self, kind: str) -> list[tuple[int, int]]:
        """(step, id) of each snapshot of a kind, in the order of steps; by the index, if that lists every one."""
        state = self.state() if self.version() >= SUMMED else None
        if state and self._lists.get(kind, (None,))[0] == state.held["snapshots"]:
            return self._lists[kind][1]
        if state and not any(map(self._list, ("snapshots", "snapshots NOT INDEXED"))):
            self.note("snapshots", "the list of its snapshots is not what was written; all else can be read")
        elif state:
            self.note("snapshots", "")
            return self._lists.get(kind, (0, []))[1]
        every = "SELECT step, id FROM snapshots NOT INDEXED WHERE kind = ? AND typeof(step) = 'integer'"
        return sorted(self.query(every, (kind,)))

    def _list(self, table: str) -> bool:
        """Read the list of all snapshots, by the index or from the table itself, and keep it if it is complete: its mark
        must equal the one in the state, which the same query reads."""
        try:
            rows = self.query(f"SELECT id, step, kind FROM {table} UNION ALL SELECT 0, 0, held FROM state")  # noqa: S608
        except DamagedError:
            return False
        expected = held_of(rows.pop()[2], self.folder.name)["snapshots"]
        mark, lists = 0, dict[str, list[tuple[int, int]]]()
        for id, step, kind in rows:
            mark ^= snapshot_mark(id, step, kind)
            lists.setdefault(kind, []).append((step, id))
        if mark == expected:
            self._lists = {kind: (expected, sorted(lists.get(kind, []))) for kind in {*SNAPSHOT_KINDS, *lists}}
        return mark == expected

    def snapshot(self, id: int) -> dict[str, NDArray[Any]] | None:
        """A snapshot's arrays; None, and noted, if it is not what was written."""
        row = self.snapshot_row(id)
        try:
            return unpack_arrays(row["data"]) if row else None
        except (ValueError, TypeError):
            self._note_snapshot(id)
            return None

    def snapshot_row(self, id: int) -> dict[str, Any] | None:
        """A snapshot as it is stored; None, and noted, if it is not what was written."""
        version = self.version()
        names = fields_of("snapshots", version)
        columns = [*names, "sum"] if version >= SUMMED else names
        rows = self.query(f"SELECT {', '.join(columns)} FROM snapshots WHERE id = ?", (id,))  # noqa: S608
        row = dict(zip(columns, rows[0], strict=True)) if rows else {}
        if row and (version < SUMMED or row.pop("sum") == row_sum("snapshots", row)):
            return row
        if row or any(id == listed for kind in SNAPSHOT_KINDS for _, listed in self.snapshots(kind)):
            self._note_snapshot(id)  # else the trainer has thinned it out meanwhile
        return None

    def _note_snapshot(self, id: int) -> None:
        self.note(f"snapshot {id}", f"snapshot {id} is not what was written; the one before it is shown instead")


def held_of(text: str, run: str) -> dict[str, int]:
    """How many rows of each table a run's state says there are; 0 for one that it lacks. StoreError if it cannot be read."""
    try:
        return NOTHING_HELD | {str(name): int(number) for name, number in read_json(text).items()}
    except (ValueError, TypeError, AttributeError):
        raise StoreError(f"run {run} is damaged: its state is not one that a trainer writes") from None
