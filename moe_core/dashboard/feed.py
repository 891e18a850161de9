"""A run kept in memory for all who watch it: the store is read once for each new block, not once for each viewer.

A Feed has the read methods of a Run, so the figures do not know the difference. Its steps are kept as histories.py says.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from moe_core.dashboard.histories import Histories
from moe_core.dashboard.judging import Judge
from moe_core.dashboard.kept import ANSWERS, remember
from moe_core.diagnosis import Finding
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
        self.number, self.replaced = (run.path / "run.db").stat().st_ino, False
        self.free, self.stamp = False, 0  # free: the run has ended and no trainer holds it; stamp: its file's time then
        self._news: tuple[Any, ...] = ()
        self._evals: list[Eval] = []
        self._judges: dict[int, Judge] = {}  # by layer
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
        self.looked = time.monotonic()
        if not self._stamp():
            self.error = f"the folder of run {self.id} is not there any more: it was renamed or deleted"
            return
        if self._was_replaced():
            self.replaced = True
            self.error = f"another run has taken the place of {self.id} since; reload the page to see it"
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
                self._read_asked()
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

    def _was_replaced(self) -> bool:
        """Whether the folder holds another run's record by now. As long as the file is open its number is given to no other; then the
        settings' link tells."""
        try:
            number = (self.path / "run.db").stat().st_ino
            return number != self.number or self.run.query("SELECT chain FROM run")[0][0] != self.run.chain
        except (OSError, StoreError, LookupError):
            return False  # what is wrong is said by those who read on

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
        """What is wrong with a layer now, as Judge says: judged anew when there is news, once in JUDGED seconds."""
        with self.lock:
            judge = self._judges.setdefault(layer, Judge())
            if judge.version != self.version and time.monotonic() - judge.when >= JUDGED:
                ranges = dict(self._ranges)
                try:
                    judge.judge(self, layer)
                finally:
                    self._ranges = ranges  # nobody zoomed to what was read for this
            return judge.findings

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
