"""A run kept in memory for all who watch it: the store is read once for each new block, not once for each viewer.

A Feed has the read methods of a Run, so the figures do not know the difference. Its steps are kept as histories.py says.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from moe_core.dashboard.histories import Histories
from moe_core.dashboard.kept import ANSWERS, Recent, remember
from moe_core.diagnosis import Finding, diagnose
from moe_core.runs import (
    ENDED,
    Ablation,
    Eval,
    Measured,
    Run,
    Status,
    StoreError,
    is_alive,
    knobs_after,
)
from moe_core.runs.seen import READ, Log, look
from moe_core.runs.source import Snapshot
from moe_core.runs.statistics import Off
from moe_core.schema import KnobValues

FRESH = 0.02  # seconds for which a look at the store is good for all viewers
ANYWAY = 0.5  # seconds after which the store is looked at even if nobody wrote to it
PAST = 256  # past snapshots of the probe in memory
JUDGED = 1.0  # seconds between two diagnoses of a layer


class Feed(Histories):
    """A shared, thread-safe, caching reader of one run. `version` counts what changed, for viewers that wait for news."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.id, self.on_devices, self.labels = run.id, run.on_devices, run.labels
        self.options, self.others, self.path, self.parent = run.options, run.others, run.path, run.parent
        self.started_knobs, self.sessions = run.started_knobs, run.sessions()  # sessions: each time that it was resumed
        self.looked, self.version, self.log = 0.0, 0, Log()
        self.free, self.stamp = False, 0  # free: the run has ended and no trainer holds it; stamp: its file's time then
        self._news: tuple[Any, ...] = ()
        self._evals: list[Eval] = []
        self._knobs: list[KnobChange] = []
        self._cuts: tuple[list[KnobChange], list[int]] = [], []  # cuts_of these changes
        self.sessions, self.deals = run.sessions(), run.deals  # sessions: each time that the run was resumed
        self._command = 0  # the last one, a session maybe, whose deals were read
        self._off: Sequence[Off] = ()
        self._findings: dict[int, tuple[int, float, list[Finding]]] = {}
        self._status = run.status()
        self.heard = time.time() - self._status.heartbeat_age  # seconds since 1970 when the trainer last gave a sign
        self._probe = run.probe()
        self._snapshots: dict[Any, Any] = {}
        self._taken: dict[tuple[int, str], np.ndarray | None] = {}

    @property
    def problem(self) -> str:
        """What is wrong with the record, in a line; all else is shown."""
        lines = self.run.damage
        more = f" And {len(lines) - 1} more; `verify {self.id}` names them." if len(lines) > 1 else ""
        return self.error or (lines[0] + more if lines else "")

    @property
    def name(self) -> str:
        return self.run.name

    def refresh(self, now: bool = False) -> None:
        """Read what is new. A run that ended is let go of, so that its trainer can seal the file. now: also if somebody looked just
        before; for whoever waits for the effect of a turn."""
        with self.lock:
            age = time.monotonic() - self.looked
            if not now and (age < FRESH or (age < ANYWAY and not self.log.was_written(self.path) and not self.behind)):
                return
            if not self.done or self._resumed():
                self._look()
            if self.behind:
                self.catch_up()
            news = (
                self._status[:3], self.quiet(), len(self._evals), self._knobs, self.problem,
                *(series.block for series in self.series.values()),
            )  # fmt: skip
            if news != self._news:
                self.version, self._news = self.version + 1, news

    def _look(self) -> None:
        if not self._stamp():
            self.error = f"the folder of run {self.id} is not there any more: it was renamed or deleted"
            return
        try:
            # First: once it says that the run has ended, all that is read after it is complete.
            status, self.error = self.run.status(), ""
            self._read_evals()
            if status.state == "training":
                look(self.path, READ)
            for asked in [key for key in self._snapshots if key[0] is None]:
                del self._snapshots[asked]
            if not self._take():
                self._read_knobs()
            if self.done or status.state != self._status.state:
                self.sessions, self.deals = self.run.sessions(), self.run.deals
            self._status = status
        except StoreError as error:
            self.error = str(error)
        self.looked = time.monotonic()
        self.heard = time.time() - self._status.heartbeat_age
        if self._status.state in (*ENDED, "interrupted"):
            # A trainer that has just ended still has its file.
            self.free = (self.free and self.done) or not is_alive(self.run.path)
            self.run.close()
        self.done, self.stamp = self._status.state in ENDED, self._stamp()

    def _read_evals(self) -> None:
        """New evaluations. One that cannot be read is said, and hides none of the steps."""
        after = self._evals[-1].id if self._evals else 0
        try:
            if self.run.checked.newest()[0] != after:
                self._evals += self.run.evals(after)
        except StoreError as error:
            self.error = str(error)

    def _resumed(self) -> bool:
        """Whether a trainer has resumed the run since it ended. The file is not opened while its trainer seals it."""
        alive = is_alive(self.run.path)
        self.free = self.free or not alive
        return self.free and (alive or self._stamp() != self.stamp)

    def _stamp(self) -> int:
        """When the record's file was last changed; 0 if it is not there."""
        try:
            return (self.run.path / "run.db").stat().st_mtime_ns
        except OSError:
            return 0

    def quiet(self) -> int:
        """Whole seconds for which the trainer has not answered; 0 if it does."""
        return self._status.quiet

    def _take(self) -> bool:
        """New rows into `recent` and each history that is up to date, of a run not seen before the last ones. Whether there were any."""
        most = self.piece()
        if not self.seen:
            blocks = self.run.blocks(first=max(1, self.run.steps()[1] - self.most + 1))
        else:
            blocks = self.run.blocks(after=self.seen, most=most)
        if some := bool(blocks):
            self._forget()
        while blocks:
            # After the blocks: a turn is in the record before the step that it acts in.
            self._knobs = self.run.knob_changes()
            self._off = self.run.off_spans(self._knobs)
            if self.deals and (new := self.run.commands(after=self._command)):  # a session is there before its steps
                self.deals, self._command = self.run.deals, new[-1].id
            steps, rows, before = *joined(blocks), self.seen
            self.recent = np.concatenate([self.recent, rows])[-self.most :]
            self.seen, self.last = blocks[-1].id, int(steps[-1])
            self._add(steps, rows, before, self.seen)
            blocks = self.run.blocks(after=self.seen, most=most) if len(blocks) >= most else []
        return some

    def piece(self, part: int | None = None) -> int:
        """How many blocks to read at once, by the mean size of the run's blocks, or of one part of each."""
        block = self._bytes(part, max(1, self.last // max(1, self.seen)))
        return max(1, min(PIECE, TAKEN // max(1, block)))

    def _bytes(self, part: int | None, steps: int) -> int:
        """What the rows of so many steps take, as read from a part of the record."""
        return 4 * steps * self.run.stored.width_of(part)

    def _add(self, steps: np.ndarray, rows: np.ndarray, before: int, block: int, part: int | None = None) -> None:
        """Rows that follow block `before` into the histories that end there. part: the one that the rows are of, if not of all."""
        for (stat, layer, _), series in self.series.items():
            if series.block == before and part in (None, self.run.stored.part(stat, layer)):
                series.add(steps, self._pick(rows, stat, layer, steps, part), block, self.cuts)

    @property
    def behind(self) -> float:
        """The share of the record that is not in every history yet: 0 when all are up to date."""
        at = min((series.block for series in self.series.values()), default=self.seen)
        return 1 - at / self.seen if self.seen else 0.0

    def catch_up(self, budget: float = BUDGET) -> None:
        """Read on in the past of a long run, in pieces, for about `budget` seconds."""
        with self.lock:
            until = time.monotonic() + budget
            try:
                while self.behind and self._read_on() and time.monotonic() < until:
                    pass
            except StoreError as error:
                self.error = str(error)
            self._let_go()

    def _read_on(self) -> bool:
        """The next piece into the histories that are furthest behind, up to where the next of them is; only the parts that they
        are of are read. False where there is none."""
        at = min(series.block for series in self.series.values())
        end = min((series.block for series in self.series.values() if series.block > at), default=self.seen)
        parts = {self.run.stored.part(*key[:2]) for key, series in self.series.items() if series.block == at}
        for part in parts:
            blocks = self.run.blocks(after=at, most=min(self.piece(part), end - at), part=part)
            if not blocks:
                return False
            self._add(*joined(blocks), at, blocks[-1].id, part)
        return True

    def history(
        self,
        stat: str,
        layer: int = 0,
        first: int | None = None,
        last: int | None = None,
        bins: int | None = None,
        over: int = 1,
    ) -> tuple[np.ndarray, np.ndarray]:
        """As Run.history, up to the last step that refresh() saw. Of a long run, what catch_up() has reached.

        over: each value is the mean over so many steps about its own; not so without bins, where values are numbers, not a line.
        """
        over = 1 if bins is None else over
        with self.lock:
            low = 1 if first is None else max(1, first)
            high = self.last if last is None else min(last, self.last)
            begin, end = around(low, high, over)
            if begin >= self.first_recent:
                steps, values = self._recent(stat, layer, begin, min(end or high, self.last))
                steps, values = means(steps, values, over, self.cuts, low, high)
                return thin(steps, values, bins) if bins else (steps, values)
            if bins is None:
                return self._raw(stat, layer, low, high)
            series = self._kept(stat, layer, over)
            inside = slice(int(np.searchsorted(series.steps, low)), int(np.searchsorted(series.steps, high, "right")))
            steps, values = series.steps[inside], series.values[inside]
            few = len(steps) < min(bins, high - low + 1)
            size = self._bytes(self.run.stored.part(stat, layer), high - low + 1)
            if few and high - low < self.last // 2 and size <= WINDOW // 2:
                asked = stat, layer, low, high, bins, over
                if asked not in self._thinned:
                    steps, values = self._raw(stat, layer, begin, min(end or high, self.last))
                    steps, values = means(steps, values, over, self.cuts, low, high)
                    remember(self._thinned, asked, thin(steps, values, bins), ANSWERS)
                return self._thinned[asked]
            return thin(steps, values, bins)

    def _recent(self, stat: str, layer: int, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        """Every step of a range that is in memory."""
        start = self.last - len(self.recent) + 1
        inside = slice(low - start, max(low - start, high - start + 1))
        steps = np.arange(low, low + len(self.recent[inside]))
        return steps, self._pick(self.recent[inside], stat, layer, steps)

    def _raw(self, stat: str, layer: int, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        """Every step of a range. Rows are kept by the step at which their range begins, for the next statistic of it."""
        part = self.run.stored.part(stat, layer)
        rows = self._ranges.pop((low, part), self._none(part))
        while low + len(rows) <= high:
            blocks = self.run.blocks(first=low + len(rows), last=high, most=self.piece(part), part=part)
            if not blocks:
                break
            steps, more = joined(blocks)
            rows = np.concatenate([rows, more[low + len(rows) - int(steps[0]) :]])
        self._ranges[low, part] = rows
        while sum(kept.nbytes for kept in self._ranges.values()) > WINDOW and len(self._ranges) > 1:
            del self._ranges[next(iter(self._ranges))]
        self._let_go()
        rows = rows[: max(0, high - low + 1)]
        steps = np.arange(low, low + len(rows))
        return steps, self._pick(rows, stat, layer, steps, part)

    def _pick(self, rows: np.ndarray, stat: str, layer: int, steps: np.ndarray, part: int | None = None) -> np.ndarray:
        return pick(self.run.stored.of(part), rows, stat, layer, steps, self._off, self.deals)

    def _none(self, part: int | None = None) -> np.ndarray:
        """No rows, of all columns or of a part's."""
        return np.empty((0, self.run.stored.width_of(part)), np.float32)

    def _kept(self, stat: str, layer: int, over: int) -> Series:
        asked = stat, layer, over
        if asked not in self.series:
            none = np.empty(0, np.int64)
            empty = self._pick(self._none(), stat, layer, none)
            self._forget()
            self.series[asked] = Means(over, none, empty) if over > 1 else Series(none, empty)
            self.catch_up(BUDGET / 4)
        self._asked[asked] = time.monotonic(), self.seen
        return self.series[asked]

    def _forget(self) -> None:
        for asked in unasked(self.series, self._asked, self.seen):
            del self.series[asked], self._asked[asked]

    @property
    def cuts(self) -> list[int]:
        """The steps across which no mean is taken."""
        if self._cuts[0] is not self._knobs:
            self._cuts = self._knobs, cuts_of(self)
        return self._cuts[1]

    def _let_go(self) -> None:
        if self.done:
            self.run.close()

    def status(self) -> Status:
        return self._status

    def evals(self, after: int = 0) -> list[Eval]:
        return [e for e in self._evals if e.id > after]

    def off_spans(self) -> Sequence[Off]:
        return self._off

    @property
    def waiting(self) -> bool:
        """Whether a turn has not taken effect yet, of a run that trains."""
        return self._status.state == "training" and any(change.step is None for change in self._knobs[-8:])

    @property
    def knobs(self) -> KnobValues:
        return knobs_after(self.started_knobs, self._knobs)

    def knobs_at(self, step: int) -> KnobValues:
        return knobs_after(self.started_knobs, self._knobs, step)

    def findings(self, layer: int) -> list[Finding]:
        """What is wrong with a layer now, by the rows in memory: judged anew when there is news, once in JUDGED seconds."""
        with self.lock:
            version, when, findings = self._findings.get(layer, (-1, -JUDGED, []))
            if version != self.version and time.monotonic() - when >= JUDGED:
                findings = diagnose(Recent(self), layer)
                self._findings[layer] = self.version, time.monotonic(), findings
            return findings

    def ablation(self) -> Ablation | None:
        return self.run.ablation()

    def probe(self) -> dict[str, np.ndarray]:
        return self._probe

    def snapshot(self, step: int | None = None, kind: str = "probe") -> Snapshot | None:
        """As Run.snapshot. A trainer whose last snapshot is asked for takes them more often."""
        if self._status.state == "training" and (step is None or step >= self.last):
            look(self.path)
        with self.lock:
            if (step, kind) not in self._snapshots:
                remember(self._snapshots, (step, kind), self.run.snapshot(step, kind), ANSWERS)
                self._let_go()
            snapshot: Snapshot | None = self._snapshots[step, kind]
            return snapshot

    def throughput(self) -> Measured:
        return self.run.throughput(self.knobs)

    def snapshots(self, kind: str = "probe") -> np.ndarray:
        with self.lock:
            if (None, f"steps of {kind}") not in self._snapshots:
                self._snapshots[None, f"steps of {kind}"] = self.run.snapshots(kind)
                self._let_go()
            steps: np.ndarray = self._snapshots[None, f"steps of {kind}"]
            return steps

    def experts_at(self, step: int, kind: str) -> np.ndarray | None:
        """As Run.experts_at, read once: what was recorded never changes."""
        with self.lock:
            if (step, kind) not in self._taken:
                remember(self._taken, (step, kind), self.run.experts_at(step, kind), PAST)
                self._let_go()
            experts: np.ndarray | None = self._taken[step, kind]
            return experts
