"""The steps of a run in memory: the last rows as they were recorded, and each history that was asked for, thinned by minimum and
maximum to a few thousand rows.

A long run is taken in by pieces: the newest rows first, so that a page opens at once, then from the first step on. What is finer is
read from the store, and the last such ranges are kept too.
"""

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from moe_core.dashboard.kept import ANSWERS, Asked, Means, Series, joined, remember, unasked
from moe_core.figures.smooth import around, cuts_of, means
from moe_core.runs import KnobChange, Run, StoreError, pick, thin
from moe_core.runs.statistics import Off

RECENT = 1024  # raw rows in memory, for numbers that look back a few steps;
ROOM = 32 << 20  # and no more than so many bytes of them: a row of 61 layers of 256 experts has 188 KB
SPARE = 25  # percent more room than that, so that new rows need not move the others each time
PIECE = 256  # blocks read at once: well within the time after which a query gives up;
TAKEN = 16 << 20  # and no more than so many bytes of rows, which take a tenth of a second
BUDGET = 0.15  # seconds of one look that may go into the past of a long run
LINES = 64 << 20  # bytes of lines that grow with the run
WINDOW = 64 << 20  # bytes of raw rows kept of ranges that somebody zoomed to


class Histories:
    """A shared, thread-safe, caching reader of one run's steps."""

    def __init__(self, run: Run) -> None:
        self.run, self.description, self.lock = run, run.description, threading.RLock()
        self.series: dict[Asked, Series] = {}
        self._asked: dict[Asked, tuple[float, int]] = {}  # when each was, and at which block
        # most: rows in `recent`, which are the last of _room before its row _end.
        self.most = max(1, min(RECENT, ROOM // (4 * max(1, run.columns))))
        self._room, self._end = np.empty((0, run.columns), np.float32), 0
        self.seen, self.last, self.done, self.error = 0, 0, False, ""  # seen: the last block
        self._knobs: list[KnobChange] = []
        self._asked_for = -1, -1, -1  # the newest turn, how many took effect, and the newest command
        self._cuts: tuple[list[KnobChange], list[int]] = [], []  # cuts_of these changes
        self._off: Sequence[Off] = ()
        self.deals = run.deals
        self._ranges: dict[tuple[int, int | None], np.ndarray] = {}  # by the first step, and the part that was read
        self._thinned: dict[Any, tuple[np.ndarray, np.ndarray]] = {}
        # Lines to the last step, to which new rows are added, that asked for last at the end.
        self._growing: dict[Any, tuple[np.ndarray, np.ndarray]] = {}

    def _read_asked(self) -> None:
        """Turns, and of a run on ranks how its experts are dealt, if somebody has asked for something or a turn took effect."""
        if (asked := self.run.checked.newest()[1:]) != self._asked_for:
            self._knobs, self._asked_for = self.run.knob_changes(), asked
            self.deals = self.run.deals if self.deals else ()

    def _take(self) -> bool:
        """New rows into `recent` and each history that is up to date, of a run not seen before the last ones. Whether there were any."""
        most = self.piece()
        if not self.seen:
            blocks = self.run.blocks(first=max(1, self.run.readable() - self.most + 1), gaps=True)
        else:
            blocks = self.run.blocks(after=self.seen, most=most, gaps=True)
        if some := bool(blocks):
            self._forget()
        while blocks:
            self._read_asked()  # after the blocks: turns and sessions are in the record before the steps that they act in
            self._off = self.run.off_spans(self._knobs)
            steps, rows, before = *joined(blocks), self.seen
            self._keep(rows)
            self.seen, self.last = blocks[-1].id, int(steps[-1])
            self._add(steps, rows, before, self.seen)
            blocks = self.run.blocks(after=self.seen, most=most, gaps=True) if len(blocks) >= most else []
        return some

    @property
    def recent(self) -> np.ndarray:
        """(n, C) the last rows of the run: `most` of them, or all of a shorter run."""
        return self._room[max(0, self._end - self.most) : self._end]

    def _keep(self, rows: np.ndarray) -> None:
        """Add rows to those in memory, behind them. If there is no room behind them, the last ones are copied to a new place first: others
        may still read the old one."""
        rows = rows[-self.most :]
        if self._end + len(rows) > len(self._room):
            held = self.recent[max(0, len(self.recent) + len(rows) - self.most) :]
            size = self.most + SPARE * self.most // 100 + 1
            self._room, self._end = np.empty((size, rows.shape[1]), np.float32), len(held)
            self._room[: self._end] = held
        self._room[self._end : self._end + len(rows)] = rows
        self._end += len(rows)

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
            blocks = self.run.blocks(after=at, most=min(self.piece(part), end - at), part=part, gaps=True)
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
            if bins is None:
                recent = low >= self.first_recent
                return self._recent(stat, layer, low, high) if recent else self._raw(stat, layer, low, high)
            if over > 1 or high < self.last:
                return self._line(stat, layer, low, high, bins, over)
            if low < self.first_recent:
                self._kept(stat, layer, over)  # so that it is there for another width or range
            asked = stat, layer, low, bins, self._off, self.deals
            line = self._growing.pop(asked, None)
            if line is None or line[0][-1] + 1 < self.first_recent:
                line = self._line(stat, layer, low, high, bins, over)
                if self.behind or not len(line[0]):
                    return line
                held = sum(steps.nbytes + values.nbytes for steps, values in (line, *self._growing.values()))
                while held > LINES and self._growing:
                    steps, values = self._growing.pop(next(iter(self._growing)))  # unasked for the longest time
                    held -= steps.nbytes + values.nbytes
            elif line[0][-1] < high:
                steps, values = self._recent(stat, layer, int(line[0][-1]) + 1, high)
                line = thin(np.concatenate([line[0], steps]), np.concatenate([line[1], values]), bins)
            self._growing[asked] = line
            return line

    def _line(self, stat: str, layer: int, low: int, high: int, bins: int, over: int) -> tuple[np.ndarray, np.ndarray]:
        """A history thinned to so many bins."""
        begin, end = around(low, high, over)
        if begin >= self.first_recent:
            steps, values = self._recent(stat, layer, begin, min(end or high, self.last))
            return thin(*means(steps, values, over, self.cuts, low, high), bins)
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
            blocks = self.run.blocks(first=low + len(rows), last=high, most=self.piece(part), part=part, gaps=True)
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

    def knob_changes(self) -> list[KnobChange]:
        return self._knobs

    @property
    def cuts(self) -> list[int]:
        """The steps across which no mean is taken."""
        if self._cuts[0] is not self._knobs:
            self._cuts = self._knobs, cuts_of(self)
        return self._cuts[1]

    def _let_go(self) -> None:
        if self.done:
            self.run.close()

    def steps(self) -> tuple[int, int]:
        return (1 if self.last else 0), self.last

    @property
    def first_recent(self) -> int:
        """The first step whose row is in memory."""
        return max(1, self.last - len(self.recent) + 1)
