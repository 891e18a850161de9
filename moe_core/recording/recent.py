"""Diagnoses a run while it trains, and reports each new finding once."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_core.diagnosis import Finding, diagnose
from moe_core.evidence import BINS, Memory
from moe_core.runs import Batch, Eval, KnobChange, Run, evaluation, pick
from moe_core.runs.statistics import Off, off_spans
from moe_core.schema import Column, Description, Knobs, KnobValues, Values, as_dict, columns_of, measured_in

KEPT = 2 * BINS  # steps in memory: those that a diagnosis reads
ROOM = 64 << 20  # bytes that they may take: of very many experts fewer steps are kept,
FEWEST = 200  # but never fewer than this, whatever they take
EVALS = 100  # evaluations in memory
EVERY = 1.0  # seconds between two diagnoses
REST = 9  # or this many times as long as the last one took, if that is more: for many layers a diagnosis is slow


class Recent:
    """The last steps as they are committed: a source for diagnose(). Used by the thread that commits.

    columns: those of the record; None: of every statistic that is stored. Shapes: n steps, C columns.
    """

    def __init__(self, description: Description, knobs: KnobValues, columns: Sequence[Column] | None = None) -> None:
        self.layout = list(columns or columns_of(description.experts))
        self.description = replace(description, measures=tuple(measured_in(self.layout)))
        self.experts = description.experts
        self.knobs: KnobValues = knobs
        width = self.layout[-1].start + self.layout[-1].width
        self.last, self.parts = 0, [np.empty((0, width), np.float32)]  # the last step that was committed; rows up to it
        self.kept = min(KEPT, max(FEWEST, ROOM // (np.dtype(np.float32).itemsize * width)))
        self.changes: list[KnobChange] = []
        self.evaluated: list[Eval] = []
        self.off: tuple[int, tuple[Off, ...]] = 0, ()  # how many changes it follows from, and the spans
        self.memory = [Memory() for _ in self.experts]
        self.current: set[tuple[str, int]] = set()
        self.next_diagnosis = 0.0

    def recall(self, run: Run, knobs: KnobValues) -> None:
        """Read the knob changes and evaluations so far of a run that is resumed."""
        self.changes, self.knobs = [change for change in run.knob_changes() if change.step is not None], knobs
        self.evaluated, self.off = run.evals()[-EVALS:], (len(self.changes), run.off_spans())

    def note_turns(self, step: int, knobs: KnobValues) -> None:
        """Note the knobs in force in the coming step. Called by the training thread, which only adds and replaces."""
        if knobs is self.knobs:
            return
        before = values_of(self.knobs)
        for name, value in values_of(knobs).items():
            if value != before[name]:
                self.changes.append(KnobChange(len(self.changes) + 1, name, value, before[name], "", 0.0, step))
        self.knobs = knobs

    def knobs_at(self, step: int) -> KnobValues:
        """The knobs in force at a step; the training thread may have turned them since."""
        knobs = self.knobs  # read before the changes: one that comes in between is then undone below
        before: dict[str, Any] = {
            c.name: c.previous for c in reversed(list(self.changes)) if c.step is not None and c.step > step
        }
        return replace(knobs, **before) if isinstance(knobs, Knobs) else Values({**knobs, **before})

    def add(self, batch: Batch) -> list[Finding]:
        """Add a committed batch; returns, about once a second, the new findings."""
        self.evaluated += [evaluation(self.experts, 0, *row) for row in batch.evals]
        del self.evaluated[:-EVALS]
        if len(batch.rows):
            self.parts.append(batch.rows)
            self.last = batch.first_step + len(batch.rows) - 1
        return self.new_findings() if time.monotonic() >= self.next_diagnosis else []

    def new_findings(self) -> list[Finding]:
        """The findings that were not there at the last diagnosis. One that ended and comes again is new again."""
        began = time.monotonic()
        findings = [found for layer, memory in enumerate(self.memory) for found in diagnose(self, layer, memory)]
        new = [finding for finding in findings if (finding.rule, finding.layer) not in self.current]
        self.current = {(finding.rule, finding.layer) for finding in findings}
        now = time.monotonic()
        self.next_diagnosis = now + max(EVERY, REST * (now - began))
        return new

    # What a diagnosis reads

    @property
    def rows_nC(self) -> NDArray[np.float32]:
        """The rows in memory, put together when somebody reads them."""
        if len(self.parts) > 1:
            self.parts = [np.concatenate(self.parts)[-self.kept :]]
        return self.parts[0]

    @property
    def first(self) -> int:
        """The first step in memory."""
        return self.last - len(self.rows_nC) + 1

    def history(self, stat: str, layer: int = 0, bins: int | None = None) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """The steps in memory, none thinned: they are no more than a diagnosis reads."""
        steps = np.arange(self.first, self.first + len(self.rows_nC))
        return steps, pick(self.layout, self.rows_nC, stat, layer, steps, self.off_spans())

    def evals(self) -> list[Eval]:
        """The last evaluations."""
        return self.evaluated

    def off_spans(self) -> tuple[Off, ...]:
        """Which experts were switched off, and when, as far as the steps in memory show."""
        changes = list(self.changes)
        if self.off[0] != len(changes):
            self.off = len(changes), off_spans(self.experts, self.knobs_at(0), changes, self.counts)
        return self.off[1]

    def counts(self, layer: int, first: int, last: int) -> NDArray[Any]:
        """The selections of those steps that are in memory; before them there are none."""
        inside = slice(max(first - self.first, 0), max(last - self.first + 1, 0))
        counts_nE = pick(self.layout, self.rows_nC[inside], "counts", layer)
        return np.concatenate([np.zeros((last - first + 1 - len(counts_nE), counts_nE.shape[1])), counts_nE])

    def knob_changes(self) -> list[KnobChange]:
        return list(self.changes)


def values_of(knobs: KnobValues) -> dict[str, Any]:
    """The knobs' values by name."""
    return as_dict(knobs) if isinstance(knobs, Knobs) else dict(knobs)
