"""The thread that writes to the disk, so that the training step never waits for it."""

import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moe_core.diagnosis import Finding
from moe_core.recording.recent import Recent
from moe_core.runs import Batch, FolderGone, RunWriter, evaluation, pick
from moe_core.runs.database import damage_of
from moe_core.runs.room import FULL, disk_error, has_room, no_room
from moe_core.runs.statistics import Off, mean_balance, source_of
from moe_core.schema import BALANCE, Column, first_line, looks_ahead, measured_in

WAITING = 16  # commits that may wait: 16 s of our own trainer's (half a second while somebody reads along), 8 s of a watched model's
AGAIN = 2.0  # seconds between two checks for room on a full disk
NO_ROWS = np.empty((0, 0), np.float32)
TRIES = 3  # how often a write that the disk failed is tried again
RETRY = 0.1  # seconds of waiting before that, times the tries before
POLL = 0.02  # seconds between two readings of the commands while the training waits for the disk


class Later(NamedTuple):
    """A batch that the committing thread makes, so that the training waits for no copy from its device."""

    make: Callable[[], Batch]


Item = Batch | Later | Callable[[], None] | threading.Event | None


class Committer:
    """Commits what it is handed, in order, and then reports it to notify(). Nothing is dropped: a full queue makes put()
    wait.

    On a full disk it removes the ballast, writes the reason into the record, and retries what did not fit until it does;
    `full` is then the reason, and the trainer trains no further step until it is "" again.
    stopping: whether the training is to stop, so that nothing waits for room any more. meanwhile: called by the training
    thread again and again while it waits for the disk.
    """

    def __init__(
        self,
        writer: RunWriter,
        notify: Callable[[dict[str, Any]], None],
        recent: Recent,
        stopping: Callable[[], bool] = lambda: False,
        meanwhile: Callable[[], Any] = lambda: None,
    ) -> None:
        self.writer, self.notify, self.recent = writer, notify, recent
        self.stopping, self.meanwhile = stopping, meanwhile
        self.queue: queue.Queue[Item] = queue.Queue(WAITING)
        self.error = self.full = ""
        self.waiting = False  # whether the training thread waits for the disk
        # The trainer's own state and reason; on a full disk those in the record differ.
        self.state = "training", ""
        self.blind = False  # whether a diagnosis has failed
        self.full_recorded = False  # whether the record says that the disk is full
        self.step, self.reported = writer.step, 0.0  # the last committed step; the time of the last event about one
        self.thread = threading.Thread(target=self._work, name="committer", daemon=True)
        self.thread.start()

    def put(self, item: Batch | Later | Callable[[], None]) -> None:
        """Hand over a batch, or a function to be called after the batches before it. RuntimeError if an earlier one could
        not be committed."""
        self._hand_over(item)
        if self.error:
            raise RuntimeError(self.error)

    def beat(self) -> None:
        """Write a heartbeat. Not needed while commits wait, which write one too."""
        if self.error:
            raise RuntimeError(self.error)
        if self.queue.empty():
            self.queue.put(self.writer.beat)

    def settle(self) -> None:
        """Wait until what was handed over is committed."""
        done = threading.Event()
        self._hand_over(done)
        self.waiting = True
        while not done.wait(POLL):
            self.meanwhile()
        self.waiting = False

    def close(self) -> str:
        """Commit what waits and end the thread. Returns what went wrong, or ""."""
        if self.thread.is_alive():
            self.queue.put(None)
            self.thread.join()
        return self.error

    def _hand_over(self, item: Item) -> None:
        try:
            self.queue.put_nowait(item)
            return
        except queue.Full:
            self.notify({"event": "waiting", "reason": self.full or "the disk is slower than the training"})
        self.waiting = True
        while True:
            try:
                self.queue.put(item, timeout=POLL)
                break
            except queue.Full:
                self.meanwhile()
        self.waiting = False

    def _work(self) -> None:
        while (item := self._next()) is not None:
            if isinstance(item, threading.Event):
                item.set()
                continue
            if self.error:
                continue  # the queue is drained, so that nobody waits for a thread that cannot write
            folder = self.writer.folder
            try:
                if isinstance(item, Later):
                    item = item.make()
                self._carry_out(item)
                if self.writer.folder != folder:
                    self.notify(
                        {"event": "note", "note": f"the run's folder was renamed; it is {self.writer.folder} now"}
                    )
                if isinstance(item, Batch):
                    self._report(item)
                    self._diagnose(partial(self.recent.add, item))
            except FolderGone as failure:
                self.error = f"{failure}, after step {self.step}"
            except Exception as failure:
                damage = damage_of(failure, folder.name, self.step)
                self.error = str(damage or f"the run could not be written: {first_line(failure)}")
        self._diagnose(self.recent.new_findings)

    def _diagnose(self, find: Callable[[], list[Finding]]) -> None:
        """Report new findings. A diagnosis that fails is said once, and ends neither this thread nor the recording."""
        if self.blind:
            return
        try:
            self._alert(find())
        except Exception as failure:
            self.blind = True
            self.notify({"event": "note", "note": f"this run is not diagnosed any further: {first_line(failure)}"})

    def _next(self) -> Item:
        """The next item; while the disk is full, checks for room every AGAIN seconds."""
        while True:
            try:
                return self.queue.get(timeout=AGAIN if self.full and not self.error else None)
            except queue.Empty:
                self._go_on_if_there_is_room()

    def _carry_out(self, item: Batch | Callable[[], None]) -> None:
        """Write an item; on a full disk again and again, until there is room or the training is to stop. After another
        failure of the disk it is tried again a few times: a failed try leaves nothing in the record, so nothing is written
        twice."""
        tries = 0
        while True:
            try:
                self._write(item)
                return
            except Exception as failure:
                self.writer.reopen(failure)
                if not no_room(failure, self.writer.folder):
                    if not disk_error(failure) or isinstance(failure, FolderGone) or tries == TRIES:
                        raise
                    self.notify({"event": "note", "note": f"the disk failed ({failure}); trying again"})
                    time.sleep(tries * RETRY)
                    tries += 1
                    continue
                given_up = self._say_full()
                if not given_up and self.stopping():
                    raise RuntimeError(
                        f"the disk is full, and what was measured after step {self.step} did not fit"
                    ) from None
                if not given_up:
                    self._wait()

    def _write(self, item: Batch | Callable[[], None]) -> None:
        if callable(item):
            item()
        else:
            if item.state:
                self.state = item.state, item.reason
            if item.state and self.full:
                item = item._replace(state="paused", reason=self.full)
            before = self.writer.put_off
            self.writer.commit(item)
            if (put_off := self.writer.put_off) and not before:
                self.notify(
                    {
                        "event": "note",
                        "note": f"the tip and the log are left to a later commit: {put_off}",
                    }
                )
            if len(item.rows):
                self.step = item.first_step + len(item.rows) - 1

    def _say_full(self) -> bool:
        """Remove the ballast and report why the run is paused, in the record too if that fits. False without a ballast."""
        if not self.full:
            self.full = FULL
            self.notify({"event": "paused", "step": self.step, "reason": FULL})
        given_up = self.writer.drop_ballast()
        if not self.full_recorded:
            try:
                self.writer.commit(Batch(0, NO_ROWS, state="paused", reason=FULL))
                self.full_recorded = True
            except Exception as failure:
                self.writer.reopen(failure)
                if not disk_error(failure):
                    raise
        return given_up

    def _wait(self) -> None:
        until = time.monotonic() + AGAIN
        while time.monotonic() < until and not self.stopping():
            time.sleep(POLL)

    def _go_on_if_there_is_room(self) -> None:
        """If the ballast fits again, there is room: write the trainer's own state into the record. If not even that fits,
        go on waiting."""
        if not (has_room(self.writer.folder) and self.writer.make_ballast()):
            return
        self.full, self.full_recorded = "", False
        try:
            self._carry_out(Batch(0, NO_ROWS, state=self.state[0], reason=self.state[1]))
        except Exception as failure:
            self.error = f"the run could not be written: {first_line(failure)}"
        if not self.full:
            self.notify({"event": "resumed", "step": self.step, "reason": "there is room on the disk again"})

    def _alert(self, findings: list[Finding]) -> None:
        for finding in findings:
            self.notify({"event": "alert", "step": self.recent.last, **finding._asdict()})

    def _report(self, batch: Batch) -> None:
        for one in (evaluation(self.recent.experts, 0, *row) for row in batch.evals):
            event = {"event": "eval", "step": one.step, **one.metrics, **mean_balance(one.counts)}
            event |= {"text": one.text} if one.text else {}
            self.notify(
                event | {"comparable": not looks_ahead(self.recent.description, self.recent.knobs_at(one.step))}
            )
        if len(batch.rows) and time.monotonic() - self.reported >= 1.0:
            self.reported = time.monotonic()
            last = batch.first_step + len(batch.rows) - 1
            off = self.recent.off_spans()
            measured = summary(self.recent.layout, batch.rows, last, off)
            self.notify({"event": "step", "step": last, **measured})


def summary(
    columns: Sequence[Column], rows_nC: NDArray[np.float32], last: int, off: Sequence[Off] = ()
) -> dict[str, float]:
    """Losses and mean balance of the last row, step `last`, as far as it has them; speed over all rows. off: which experts were
    off, and when."""
    row_1C, measured = rows_nC[-1:], measured_in(columns)
    values = {c.stat: float(row_1C[0, c.start]) for c in columns if c.stat in ("loss", "task_loss", "grad_norm")}
    layers = max(c.layer for c in columns) + 1
    for stat in BALANCE:
        if source_of(stat) in measured:
            of_layers = [pick(columns, row_1C, stat, layer, np.array([last]), off) for layer in range(layers)]
            values[stat] = float(np.mean(of_layers))
    seconds = next(c.start for c in columns if c.stat == "seconds")
    values["steps_per_second"] = 1 / max(float(rows_nC[:, seconds].mean()), 1e-9)
    return {name: value if math.isfinite(value) else math.nan for name, value in values.items()}
