"""A run kept in memory for all who watch it: the store is read once for each new block, not once for each viewer.

A Feed has the read methods of a Run, so the figures do not know the difference. Each history that was asked for is kept
and thinned to a few thousand rows; what is finer than that is read from the store.
"""

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from moe_core.runs import ENDED, Run, StoreError, is_alive, open_run, pick, thin

KEPT = 2048  # bins of a history in memory
RECENT = 1024  # raw rows in memory, for numbers that look back a few steps
FRESH = 0.04  # seconds for which a look at the store is good for all viewers


class Feed:
    """A shared, thread-safe, caching reader of one run."""

    def __init__(self, run: Run) -> None:
        self.run, self.config, self.id = run, run.config, run.id
        self.lock = threading.RLock()
        self.series: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}
        self.recent = np.empty((0, run.columns), np.float32)
        self.seen, self.last, self.looked, self.done = 0, 0, 0.0, False
        self.free, self.stamp = False, 0  # free of its trainer, since it ended
        self._evals: list[Any] = []
        self._knobs: list[Any] = []
        self._status = run.status()
        self._probe = run.probe()
        self._snapshots: dict[tuple[int | None, str], Any] = {}
        self.problem = ""

    def refresh(self) -> None:
        """Read what is new. A run that ended is let go of, so that its trainer can seal the file."""
        with self.lock:
            if time.monotonic() - self.looked < FRESH or (self.done and not self._resumed()):
                return
            try:
                status = self.run.status()  # before the blocks: what it says has ended, they hold in full
                self._take(self.run.blocks(after=self.seen))
                self._evals += self.run.evals(after=self._evals[-1].id if self._evals else 0)
                self._knobs = self.run.knob_changes()
                self._snapshots.clear()
                self._status, self.problem = status, ""
            except StoreError as error:
                self.problem = str(error)
            self.looked = time.monotonic()
            if self._status.state in (*ENDED, "interrupted"):
                self.free = (self.free and self.done) or not is_alive(
                    self.run.path
                )  # a trainer that has just ended still has its file
                self.run.close()
            self.done, self.stamp = self._status.state in ENDED, self._stamp()

    def _resumed(self) -> bool:
        """Whether a trainer has gone on with the run since it ended. The file is not opened while its trainer seals it."""
        alive = is_alive(self.run.path)
        self.free = self.free or not alive
        return self.free and (alive or self._stamp() != self.stamp)

    def _stamp(self) -> int:
        return (self.run.path / "run.db").stat().st_mtime_ns

    def _take(self, blocks: list[Any]) -> None:
        if not blocks:
            return
        rows = np.concatenate([block.rows for block in blocks])
        steps = np.arange(blocks[0].first, blocks[0].first + len(rows))
        for (stat, layer), (old_steps, old) in self.series.items():
            values = np.concatenate([old, pick(self.run.layout, rows, stat, layer)])
            joined = np.concatenate([old_steps, steps])
            self.series[stat, layer] = thin(joined, values, KEPT) if len(joined) > 4 * KEPT else (joined, values)
        self.recent = np.concatenate([self.recent, rows])[-RECENT:]
        self.seen, self.last = blocks[-1].id, int(steps[-1])

    def history(
        self, stat: str, layer: int = 0, first: int | None = None, last: int | None = None, bins: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As Run.history, up to the last step that refresh() saw."""
        with self.lock:
            low = 1 if first is None else max(1, first)
            high = self.last if last is None else min(last, self.last)
            if low > self.last - len(self.recent):
                start = self.last - len(self.recent) + 1
                inside = slice(low - start, max(low - start, high - start + 1))
                values = pick(self.run.layout, self.recent[inside], stat, layer)
                steps = np.arange(low, low + len(values))
            else:
                steps, values = self._kept(stat, layer)
                inside = slice(int(np.searchsorted(steps, low)), int(np.searchsorted(steps, high, "right")))
                finer = len(steps) < self.last and high - low < self.last // 2
                steps, values = steps[inside], values[inside]
                if bins is None or (finer and len(steps) < bins):
                    steps, values = self.run.history(stat, layer, low, high)
                    self._let_go()
            return thin(steps, values, bins) if bins else (steps, values)

    def _kept(self, stat: str, layer: int) -> tuple[np.ndarray, np.ndarray]:
        if (stat, layer) not in self.series:
            self.series[stat, layer] = self.run.history(stat, layer, last=self.last, bins=KEPT)
            self._let_go()
        return self.series[stat, layer]

    def _let_go(self) -> None:
        if self.done:
            self.run.close()

    def status(self) -> Any:
        return self._status

    def steps(self) -> tuple[int, int]:
        return (1 if self.last else 0), self.last

    def evals(self, after: int = 0) -> list[Any]:
        return [e for e in self._evals if e.id > after]

    def knob_changes(self) -> list[Any]:
        return self._knobs

    @property
    def knobs(self) -> Any:
        turned = {c.name: type(getattr(self.run.started_knobs, c.name))(c.value) for c in self._knobs}
        return replace(self.run.started_knobs, **turned)

    def ablation(self) -> Any:
        return self.run.ablation()

    def probe(self) -> dict[str, np.ndarray]:
        return self._probe

    def snapshot(self, step: int | None = None, kind: str = "probe") -> Any:
        with self.lock:
            if (step, kind) not in self._snapshots:
                self._snapshots[step, kind] = self.run.snapshot(step, kind)
                self._let_go()
            return self._snapshots[step, kind]


_feeds: dict[Path, tuple[Feed, set[object]]] = {}
_guard = threading.Lock()


def join(path: Path, viewer: object) -> Feed:
    """The one feed of a run, for as long as somebody watches it."""
    with _guard:
        if path not in _feeds:
            _feeds[path] = (Feed(open_run(path, limit=0.25)), set())
        feed, viewers = _feeds[path]
        viewers.add(viewer)
        return feed


def leave(path: Path, viewer: object) -> None:
    with _guard:
        if path in _feeds:
            feed, viewers = _feeds[path]
            viewers.discard(viewer)
            if not viewers:
                feed.run.close()
                del _feeds[path]
