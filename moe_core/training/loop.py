"""The loop: it reads knobs and commands, trains a step, and hands what it measured to a thread that commits.

Steps are counted from 1. A knob that is read at the top of step s takes effect in step s. Whatever happens by the clock
(flushes, snapshots) draws no random number, so that the same Config, Knobs and thread count give the same losses.
"""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from moe_core.nn.gating import Routing
from moe_core.nn.models import build, routing_options
from moe_core.recording.committer import NO_ROWS, Committer, Later
from moe_core.recording.recent import Recent
from moe_core.runs import Batch as Commit
from moe_core.runs import RunWriter, StoreError
from moe_core.runs.room import disk_error
from moe_core.schema import AUTOBALANCE, Column, Config, Knobs, check_knob, describe
from moe_core.training import checkpoint
from moe_core.training.autobalance import Autobalance, follows_from
from moe_core.training.data import Data
from moe_core.training.evaluation import evaluation_of, write_sample
from moe_core.training.graph import updater
from moe_core.training.pace import Flushes, Looks, Readings, falls_on
from moe_core.training.step import left_out, optimizer_of
from moe_core.training.telemetry import Probe, Telemetry
from moe_core.training.window import Window

IDLE = 0.02  # seconds between two readings of the commands while paused
SAMPLE_EVERY = 4  # evaluations between two texts: one costs as much as several training steps
Notify = Callable[[dict[str, Any]], None]


class Trainer:
    """The state of a training: model and optimizer, the knobs in force, and what waits to be committed.

    columns: those of a resumed run's record, which an earlier version may have chosen.
    """

    def __init__(
        self,
        config: Config,
        knobs: Knobs,
        data: Data,
        device: torch.device,
        writer: RunWriter,
        notify: Notify,
        script: Sequence[tuple[int, str, float | str]] = (),
        columns: Sequence[Column] | None = None,
    ):
        self.config, self.knobs, self.data, self.device = config, knobs, data, device
        self.writer, self.notify = writer, notify
        torch.manual_seed(config.seed)
        self.model = build(config, data.features, data.classes, knobs.k, knobs.noise, knobs.strategy).to(device)
        self.optimizer = optimizer_of(self.model, config, knobs.lr, device)
        self.update = updater(self.model, self.optimizer, config, device)
        self.late = device.type == "cuda" and config.launch != "waiting"  # it learns at a flush what was left out
        self.telemetry = Telemetry(config, device, columns)
        self.window = Window(config, {name: len(values) for name, values in data.labels.items()})
        self.probe = Probe(config, data, device)
        self.autobalance = Autobalance(config)
        self.held_out = [batch.to(device) for batch in data.held_out()]
        self.script: dict[int, dict[str, float | str]] = {}  # the script's knob changes, by step of effect
        for step, name, value in script:
            self.script.setdefault(step, {})[name] = value
        self.step = 0
        self.replaying = False  # recorded steps are trained again: no snapshot, no write, and no pause of its own
        self.paused = self.stopping = False
        recent = Recent(describe(config, knobs), knobs, self.telemetry.columns)
        self.committer = Committer(writer, notify, recent, lambda: self.stopping, self.read)
        self.reason = ""  # why the run is paused, for people
        self.steps_asked = 0  # single steps that were asked for while paused
        self.changes: list[Any] = []  # knob changes that wait for the next step
        self.turned = False  # whether a knob change takes effect in the coming step
        self.evaluated = self.snapped = self.compared = -1  # the step of the last evaluation, snapshot and comparison
        self.flushed = -math.inf  # when the last flush was; minus infinity: the next is due at once
        self.next_beat = 0.0
        self.looks, self.flushes, self.readings = Looks(), Flushes(), Readings()
        self.checkpointed = 0  # the step of the last checkpoint
        self.next_checkpoint = time.perf_counter() + config.checkpoint_every
        self.last_began, self.lasted = -math.inf, 0.0  # of the last step: when it was due, and how many seconds it took
        self.collected = empty_batch()
        self.measured: list[Any] = []  # loss and norm of the gradient of the last step

    def record_to(self, writer: RunWriter) -> None:
        """Write to this writer from now on. A trainer that resumes a run is built and restored before it may write."""
        self.writer = self.committer.writer = writer

    def restore(self, state: dict[str, Any]) -> None:
        checkpoint.restore(self, state)

    @property
    def folder(self) -> Path:
        """The run's folder, at its present path."""
        return self.writer.folder

    def run(self) -> str:
        """The loop. Returns the state in which the run ended."""
        if self.step == 0:
            self.snapshot(full=True)  # the gate before anything was learnt
        self.flush("paused" if self.paused else "training")
        while True:
            self.read()
            if self.stopping or (self.config.steps and self.step >= self.config.steps):
                break
            if self.committer.full or (self.paused and not self.steps_asked):
                self.idle()
                continue
            if due := self.script.pop(self.step + 1, None):
                self.write_turn(lambda due=due: self.writer.turn("script", **due))
                continue  # the turns are then read like a person's
            began = time.perf_counter()
            if self.knobs.speed_limit and not self.steps_asked:
                self.wait_for_speed_limit()
                if self.stopping or self.paused:
                    continue
            self.turn()
            self.steps_asked = max(0, self.steps_asked - 1)
            self.train_step(began)
            self.after_step()
        state = "stopped" if self.stopping else "finished"
        if self.evaluated != self.step and self.step:
            self.evaluate(text=True)
        self.snapshot(full=True)
        self.flush()
        return state

    # Knobs and commands

    def read(self) -> bool:
        """Obey new commands and keep new knob changes until a step is trained. True if there was any.

        They are marked as seen at once: the commit that answers them in the record comes later, and this is called again
        while a checkpoint waits for the disk.
        """
        if not self.readings.is_due(self.folder, self.writer.asked):
            return False
        pending = self.writer.pending()
        for change in pending.knobs:
            self.writer.knob_seen = change.id
        self.changes += pending.knobs
        for command in pending.commands:
            if command.id > self.writer.command_seen:
                self.obey(command)
        return bool(pending.commands or pending.knobs)

    def turn(self) -> None:
        """Let knob changes take effect in the coming step. One that this run cannot take is acknowledged and ignored."""
        if not self.changes:
            return
        changes, self.changes = self.changes, []
        for change in changes:
            self.take(change)
            self.collected["applied"].append((change.id, self.step + 1))
            self.writer.knob_seen = change.id
        self.committer.recent.note_turns(self.step + 1, self.knobs)
        self.flushed = -math.inf  # the person waits to see the effect
        if any(change.who not in (AUTOBALANCE, "script") for change in changes):
            self.looks.soon()

    def write_turn(self, write: Callable[[], object]) -> None:
        """Let write() turn knobs as a person does; the next read() reads them. ValueError if it is refused.

        All steps so far are put on the disk first, or a killed run would have the turn too early.
        """
        refused: list[ValueError] = []

        def write_or_refuse() -> None:
            try:
                write()
            except ValueError as error:
                if disk_error(error):
                    raise
                refused.append(error)

        self.flush()
        self.committer.put(write_or_refuse)
        self.committer.settle()
        if self.committer.error:
            raise RuntimeError(self.committer.error)
        self.readings.soon()
        if refused:
            raise refused[0]

    def take(self, change: Any) -> None:
        """Set a knob to a change's value, if this run can take it."""
        self.turned = True
        with contextlib.suppress(ValueError):  # Run.turn() checked it; another program that writes turns may not have
            value = check_knob(self.config, change.name, change.value, self.knobs)
            self.knobs = replace(self.knobs, **{change.name: value})

    def obey(self, command: Any) -> None:
        """Carry out one command and note its result."""
        self.writer.command_seen = command.id
        result = "done"
        if command.name == "pause":
            self.pause("")
        elif command.name == "resume":
            self.paused, self.reason, self.steps_asked = False, "", 0
            self.collected["state"] = "training"
        elif command.name == "step":
            if self.paused:
                self.steps_asked += 1
            else:
                self.pause("")
                result = "paused; the next step trains one"
        elif command.name == "stop":
            self.stopping = True
        elif command.name == "checkpoint":
            if not (reason := self.no_checkpoint_now()):
                self.write_checkpoint(command.id)  # which answers when it is written
                return
            result = f"not written: {reason}"
        else:
            result = f"unknown command {command.name!r}"
        self.collected["acks"].append((command.id, self.step, result))
        self.flushed = -math.inf

    def no_checkpoint_now(self) -> str:
        """Why a checkpoint that is asked for cannot be written; "" if it can."""
        if self.committer.full or self.committer.waiting:
            return self.committer.full or "the disk is behind the training; ask again"
        return "the run is still being brought back to its last step" if self.replaying else ""

    def pause(self, reason: str) -> None:
        if reason and self.replaying:
            return  # the record has later steps, so a person resumed it
        self.paused, self.reason = True, reason
        self.collected["state"], self.collected["reason"] = "paused", reason
        if reason:
            self.notify({"event": "paused", "step": self.step, "reason": reason})

    def idle(self) -> None:
        if self.committer.error:
            raise RuntimeError(self.committer.error)
        if not self.committer.full:
            self.snapshot(full=False)
            self.beat()
            self.maybe_checkpoint()
        if not self.committer.queue.full():
            self.flush()
        time.sleep(IDLE)

    def wait_for_speed_limit(self) -> None:
        """Sleep until the next step is due, waking for knobs: a turn from slow to fast must not wait for the slow step."""
        due = self.last_began + 1 / self.knobs.speed_limit
        while (left := due - time.perf_counter()) > 0 and not self.stopping:
            if self.read():
                break  # trained now, so that the turn shows
            self.maybe_flush()
            time.sleep(min(left, IDLE))
        self.last_began = time.perf_counter()

    # One step

    def train_step(self, began: float) -> None:
        """Train one step and record it. A step whose loss or gradient is not finite is recorded, changes no weight, and
        pauses: at once, or on a GPU with the flush that learns of it."""
        self.compare_if_due()  # at step 0 too: the first churn is measured against it
        self.step += 1
        batch = self.data.batch(self.step).to(self.device)
        measure = falls_on(self.step, self.config.task_gradient_every)
        done = self.update(batch, self.knobs, measure)
        if not self.late and not done.finite:
            what = "gradient" if math.isfinite(done.loss.item()) else "loss"
            self.pause(left_out(self.step, what, self.knobs.lr))
        self.measured = [done.loss.detach(), done.grad_norm]
        self.window.add(done.routings, batch.labels)
        self.autobalance.add(self.step, done.routings)
        routings = self.compare_if_due()
        if not self.replaying:
            self.looks.look_if_due(self.folder, lambda full: self.snapshot(full, routings), routings is not None)
        seconds = self.lasted = time.perf_counter() - began
        losses = done.loss, done.task_loss, done.grad_norm
        score = self.turned or falls_on(self.step, self.config.scores_every)
        self.telemetry.record(
            self.step, *losses, seconds, done.routings, done.task_gradient_L, score, done.between_ranks
        )
        self.turned = False

    def after_step(self) -> None:
        self.steer()
        if self.step % self.config.eval_every == 0:
            last = self.step == self.config.steps
            self.evaluate(text=last or self.step % (SAMPLE_EVERY * self.config.eval_every) == 0)
        self.maybe_flush()
        self.beat()
        self.maybe_checkpoint()

    def steer(self) -> None:
        """Write what autobalance decides after a step: turns like a person's, read at the top of the next step.

        Dropped if one of the knobs that it was decided from has been turned meanwhile, by a person or by the script in the coming
        step: that turn counts, and autobalance decides again 25 steps later.
        """
        if not self.autobalance.is_due(self.step, self.knobs):
            return
        given = follows_from(self.knobs)
        coming = {*self.script.get(self.step + 1, ()), *(change.name for change in self.changes)}
        if given & coming or not (wanted := self.autobalance.decide(self.step, self.knobs)):
            return
        seen = self.writer.knob_seen  # more turns may come while this waits for the disk
        with contextlib.suppress(StoreError):  # a turn that cannot be written has no effect either
            self.write_turn(lambda: self.writer.decide(AUTOBALANCE, seen, given, wanted))

    def evaluate(self, text: bool) -> None:
        """Measure the held-out split without noise; text: let the model write a short text too."""
        options = routing_options(self.config, self.knobs)
        metrics = evaluation_of(self.model, self.held_out, self.config, options)
        sample = write_sample(self.model, self.held_out, self.config, options, self.step) if text else None
        self.collected["evals"].append((self.step, metrics, sample))
        self.evaluated = self.step
        self.model.train()

    # Snapshots and commits

    def compare_if_due(self) -> list[Routing] | None:
        """Router churn and saturation at every multiple of churn_every, from 0 on, also in steps that are trained again. Returns
        how the probe is routed now, None where it was not looked at."""
        every = self.config.churn_every
        if not every or self.step % every or self.compared == self.step:
            return None
        routings = self.probe.look(self.model, routing_options(self.config, self.knobs))
        choices = self.probe.compare(routings, self.telemetry)
        self.compared = self.step
        if not self.replaying:
            self.collected["looks"].append((self.step, choices))
        return routings

    def snapshot(self, full: bool, routings: list[Routing] | None = None) -> None:
        """routings: of the probe, if it was looked at in this step already."""
        if self.snapped == self.step and not full:
            return
        options = routing_options(self.config, self.knobs)
        look = self.probe.snapshot(self.model, options, full, self.window, routings)
        self.collected["looks"].append((self.step, look))
        self.snapped = self.step

    def maybe_flush(self) -> None:
        due = self.flushed + self.flushes.wait(self.folder, behind=not self.committer.queue.empty())
        # Rather early than a step late: of steps of 26 ms, only every second one would be committed and seen.
        if self.telemetry.is_full or time.perf_counter() + self.lasted >= due:
            self.flush()

    def flush(self, state: str | None = None) -> None:
        """Hand everything since the last flush to the committing thread. Waits only if the disk is far behind."""
        self.flushed = time.perf_counter()
        if state:
            self.collected["state"] = state
        first, rows_nC = (0, NO_ROWS) if self.replaying else self.telemetry.take()
        if len(rows_nC) and self.late:
            for step, what in self.telemetry.left_out[:1]:
                self.pause(left_out(step, what, self.knobs.lr))
        if not len(rows_nC) and not any(self.collected.values()):
            return
        collected, self.collected = self.collected, empty_batch()
        looks = collected.pop("looks")

        def make() -> Commit:
            snapshots = [(step, kind, arrays) for step, pack in looks for kind, arrays in pack().items()]
            return Commit(first, rows_nC, snapshots=snapshots, **collected)

        self.committer.put(Later(make))

    def beat(self) -> None:
        now = time.perf_counter()
        if now >= self.next_beat:
            self.next_beat = now + 1.0
            self.committer.beat()

    # Checkpoints

    def maybe_checkpoint(self) -> None:
        """Write one every checkpoint_every seconds. That does not change the training: writing draws no random number."""
        every, now = self.config.checkpoint_every, time.perf_counter()
        if every and now >= self.next_checkpoint and self.checkpointed != self.step:
            self.next_checkpoint = now + every
            self.write_checkpoint()

    def write_checkpoint(self, command: int | None = None) -> None:
        """The state of the training, written by the committing thread once all steps before are in the record.

        command: the id of the command that asked for it, which is then answered.
        """
        if command is None and self.checkpointed == self.step:
            return
        self.checkpointed = self.step
        write = checkpoint.writing(self, command)
        self.flush()
        self.committer.put(write)


def empty_batch() -> dict[str, Any]:
    return {"evals": [], "looks": [], "applied": [], "acks": [], "state": None, "reason": ""}
