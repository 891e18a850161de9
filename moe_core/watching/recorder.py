"""The record of a watched run: what was kept of each step is handed to a thread that writes it.

It begins with the first step in which a layer was called, when it is known which layers there are and what they say.
"""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from moe_core.diagnosis import Finding
from moe_core.recording.committer import WAITING, Committer, Later
from moe_core.recording.recent import Recent
from moe_core.runs import Batch, RunWriter
from moe_core.runs.begin import create_record
from moe_core.schema import Description, columns_of
from moe_core.watching.describing import facts_of
from moe_core.watching.measuring import Rows, Step
from moe_core.watching.mirrors import Mirrors
from moe_core.watching.probe import Probe, snapshots_of
from moe_core.watching.tally import Sums
from moe_core.watching.taps import Taps

FLUSH = 0.5  # seconds between two commits: each costs some four thousandths of a second of a core
BEAT = 1.0  # seconds between two signs of life
KEPT = 1000  # steps that may wait in memory for a slow or full disk; of older ones only the number is kept
LOOKS = 8  # looks at the probe that may wait there

log = logging.getLogger("moescope")

Describe = Callable[[Mapping[int, int], Step, Sequence[Sums]], Description]


class Recorder:
    """Used by the thread that trains.

    describe: makes the run's description of (how many experts a token goes to, by the tap's number; the first step; what was
    selected in it). taking: whether to take what the taps counted; with several ranks, `ranks` hands in what all of them counted.
    """

    def __init__(
        self,
        path: Path,
        model: nn.Module,
        taps: Taps,
        probe: Probe | None,
        mirrors: Mirrors,
        describe: Describe,
        taking: bool,
    ) -> None:
        self.path, self.model, self.taps, self.probe, self.mirrors = path, model, taps, probe, mirrors
        self.describe, self.taking = describe, taking
        self.writer: RunWriter | None = None
        self.ending = False
        self.layers: dict[int, int] = {}  # the layer of each tap's number
        self.experts: tuple[int, ...] = ()  # of each layer
        self.told: set[str] = set()  # numbers of which it was said that they come too late
        self.said: set[str] = set()  # of OF_STEP, what the first step had: the record has columns for these
        self.steps: list[Step | int] = []  # not committed yet
        self.sums: list[Sums] = []  # what was selected in these steps
        self.collected: dict[str, Any] = empty()
        self.alerts: deque[Finding] = deque()  # of the committing thread
        self.next_flush = self.next_beat = 0.0

    def store(self, step: Step) -> None:
        """Keep a step until it is committed."""
        self.steps.append(step)
        if self.writer is None:
            self._take()
            if not self.sums:
                return
            self._open()
        if step.look is not None:
            self.collected["snapshots"] = [*self.collected["snapshots"], (step.number, step.look)][-LOOKS:]
        if len(self.steps) > KEPT:
            self._forget(len(self.steps) - KEPT)
        self.keep_up()

    def say_late(self, names: Set[str]) -> None:
        """Say once which of these numbers are not recorded: the first step did not have them."""
        if late := sorted(names - self.said - self.told):
            self.told |= set(late)
            log.warning("%s is not recorded, since the first live.step did not have it", ", ".join(late))

    def _take(self) -> None:
        if self.taking:
            self.sums += self.taps.take()

    def _forget(self, many: int) -> None:
        """Keep only the numbers of the `many` oldest steps that wait."""
        self.steps[:many] = [number_of(step) for step in self.steps[:many]]
        self.sums = [sums for sums in self.sums if max(sums.steps) > number_of(self.steps[many - 1])]

    def _open(self) -> None:
        """Begin the record, now that it is known which layers are called, with how many experts a token."""
        step, k_of_tap = self.steps[-1], dict[int, int]()
        assert isinstance(step, Step)
        for sums in self.sums:
            k_of_tap |= dict.fromkeys(sums.taps, sums.places)
        self.layers = {tap: layer for layer, tap in enumerate(sorted(k_of_tap))}
        if silent := [tap.name for number, tap in enumerate(self.taps.taps) if number not in k_of_tap]:
            log.warning(
                "these experts were not called in step %d, and are not recorded: %s", step.number, ", ".join(silent)
            )
        probe = self.probe if self.probe and not self.probe.failed else None
        description = self.describe({tap: k_of_tap[tap] for tap in self.layers}, step, self.sums)
        self.experts, self.said = description.experts, set(step.said)
        labels, tokens = ({"token": probe.strings}, probe.tokens) if probe else (None, None)
        self.writer = create_record(self.path, description, labels=labels, probe=tokens, facts=facts_of(self.model))
        columns = columns_of(description.experts, description.measures)
        self.rows = Rows(columns, self.layers)
        recent = Recent(description, description.starts, columns)
        self.committer = Committer(self.writer, self._hear, recent, lambda: self.ending)
        self.collected["state"] = "training"
        self.mirrors.begin(self.path, description, columns)

    def flush(self) -> None:
        """Hand what was kept to the committing thread, unless it is far behind or the disk is full; at the end in any case."""
        assert self.writer is not None
        self.next_flush = time.monotonic() + FLUSH
        self._take()
        given = self.sums
        while self.steps or any(self.collected.values()):
            behind = self.committer.full or self.committer.queue.qsize() >= WAITING - 1
            if behind and not self.ending:
                return
            steps, self.steps = self.steps[:KEPT], self.steps[KEPT:]
            collected, self.collected = self.collected, empty()
            first = number_of(steps[0]) if steps else 0
            self.committer.put(Later(partial(self._batch, steps, first, given, collected)))
            self.next_beat = self.next_flush - FLUSH + BEAT  # a commit is a sign of life too
            if not self.steps:
                self.sums = []

    def _batch(self, steps: list[Step | int], first: int, sums: list[Sums], collected: dict[str, Any]) -> Batch:
        rows = self.rows.make(steps, sums)
        self.mirrors.send(first, rows, self.committer.recent.off_spans())
        snapshots = snapshots_of(collected["snapshots"], self.layers, self.experts)
        return Batch(first, rows, **collected | {"snapshots": snapshots})

    def keep_up(self) -> None:
        """Commit and give a sign of life, if it is time for either."""
        if self.writer is None:
            return
        now = time.monotonic()
        if now >= self.next_flush:
            self.flush()
        if now >= self.next_beat and not self.committer.full:
            self.next_beat = now + BEAT
            self.committer.beat()

    def _hear(self, event: dict[str, Any]) -> None:
        """An event of the committing thread."""
        if event["event"] == "alert":
            self.alerts.append(Finding(**{name: event[name] for name in Finding._fields}))
        elif event["event"] in ("note", "paused", "resumed"):
            log.warning("run %s: %s", self.path.name, event.get("note") or event.get("reason"))

    @property
    def written(self) -> int:
        """The last step that is on the disk."""
        return self.committer.step if self.writer is not None else 0

    def finish(self, state: str, error: str) -> str:
        """Write all that waits, and how the run ended. Returns what went wrong, or ""."""
        self.ending = True  # so that the committing thread does not wait for room on the disk
        if self.writer is None:
            return ""
        with contextlib.suppress(Exception):  # the committing thread gives the reason below, or it was logged before
            self.flush()
        problem = self.committer.close()
        self.mirrors.close()
        return self.writer.finish("failed" if error or problem else state, error=error or problem) or problem


def number_of(step: Step | int) -> int:
    return step.number if isinstance(step, Step) else step


def empty() -> dict[str, Any]:
    return {"evals": [], "snapshots": [], "applied": [], "acks": [], "state": None, "reason": ""}
