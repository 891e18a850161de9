"""The thread that writes to the disk, so that the training step never waits for it."""

import math
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from moe_core.diagnosis import Finding
from moe_core.runs import Batch, RunWriter
from moe_core.runs.statistics import derive
from moe_core.schema import BALANCE, STAT, Config, layout
from moe_core.training.watch import Watch

WAITING = 16  # commits that may wait; more than a second and a half of them


class Committer:
    """Commits what it is handed, in order, and then tells of it. Nothing is dropped: a full queue makes put() wait."""

    def __init__(self, writer: RunWriter, config: Config, notify: Callable[[dict[str, Any]], None], watch: Watch):
        self.writer, self.config, self.notify, self.watch = writer, config, notify, watch
        self.queue: queue.Queue[Batch | int | Callable[[], None] | None] = queue.Queue(WAITING)
        self.error = ""
        self.told = 0.0
        self.thread = threading.Thread(target=self._work, name="committer", daemon=True)
        self.thread.start()

    def put(self, batch: Batch | Callable[[], None]) -> None:
        """Hand over a batch, or what is to be done after the ones before it. RuntimeError if an earlier one could not be committed."""
        try:
            self.queue.put_nowait(batch)
        except queue.Full:
            self.notify({"event": "waiting", "reason": "the disk is slower than the training"})
            while not self.error:
                try:
                    self.queue.put(batch, timeout=0.5)
                    break
                except queue.Full:
                    continue
        if self.error:
            raise RuntimeError(self.error)

    def beat(self, step: int) -> None:
        """Say that the trainer lives. Left out when commits wait: they say it too."""
        if self.queue.empty():
            self.queue.put(step)

    def settle(self) -> None:
        """Wait until what was handed over is committed."""
        done = threading.Event()
        self.queue.put(done)
        done.wait()

    def close(self) -> str:
        """Commit what waits and end the thread. Returns what went wrong, or ""."""
        if self.thread.is_alive():
            self.queue.put(None)
            self.thread.join()
        return self.error

    def _work(self) -> None:
        while (item := self.queue.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
                continue
            if self.error:
                continue  # drained, so that nobody waits for a thread that cannot write
            try:
                if isinstance(item, int):
                    self.writer.beat(item)
                elif callable(item):
                    item()
                else:
                    self.writer.commit(item)
                    self._tell(item)
                    self._alert(self.watch.see(item))
            except Exception as failure:
                self.error = f"the run could not be written: {failure}".splitlines()[0]
        self._alert(self.watch.look())

    def _alert(self, findings: list[Finding]) -> None:
        for finding in findings:
            self.notify({"event": "alert", "step": self.watch.last, **finding._asdict()})

    def _tell(self, batch: Batch) -> None:
        for step, metrics, text in batch.evals:
            self.notify({"event": "eval", "step": step, **metrics, **({"text": text} if text else {})})
        if len(batch.rows) and time.monotonic() - self.told >= 1.0:
            self.told = time.monotonic()
            last = batch.first_step + len(batch.rows) - 1
            self.notify({"event": "step", "step": last, **summary(self.config, batch.rows)})


def summary(config: Config, rows_nC: np.ndarray) -> dict[str, float]:
    """Losses and balance of the last row; speed over all of them."""
    columns = layout(config.layers, config.num_experts)
    row_1C = rows_nC[-1:]
    told = {c.stat: float(row_1C[0, c.start]) for c in columns if c.stat in ("loss", "task_loss", "grad_norm")}
    by_layer: dict[int, dict[str, np.ndarray]] = {}
    for column in columns:
        if column.layer >= 0:
            values = row_1C[:, column.start : column.start + column.width]
            by_layer.setdefault(column.layer, {})[column.stat] = (
                values if STAT[column.stat].shape == "LE" else values[:, 0]
            )
    for stat in BALANCE:
        per_layer = [stored[stat] if STAT[stat].stored else derive(stat, stored) for stored in by_layer.values()]
        told[stat] = float(np.mean(per_layer))
    seconds = next(c.start for c in columns if c.stat == "seconds")
    told["steps_per_second"] = 1 / max(float(rows_nC[:, seconds].mean()), 1e-9)
    return {name: value if math.isfinite(value) else math.nan for name, value in told.items()}
