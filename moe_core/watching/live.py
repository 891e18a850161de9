"""The live handle on somebody's model: it counts while they train, writes the record, and lets people turn what can be turned.

It must never be what ends a training. What goes wrong in it is said once, in the log "moescope", and watching stops. The
exceptions are mistakes that are worth stopping for: a call that cannot be right, and a model none of whose experts are ever
called.
"""

import atexit
import contextlib
import logging
import os
import re
import secrets
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from moe_core.diagnosis import Finding
from moe_core.recording.committer import WAITING, Committer, Later
from moe_core.recording.recent import Recent
from moe_core.runs import Batch, RunWriter, StoreError, checked_id, runs_folder
from moe_core.runs.begin import create_record
from moe_core.runs.rows import Pending
from moe_core.schema import AUTOBALANCE, SELECTIONS, Knob, Values, columns_of, first_line, switched_off
from moe_core.schema.stats import Metric
from moe_core.watching.balancing import COEFFICIENT, OFF, Balance
from moe_core.watching.describing import description_of, facts_of
from moe_core.watching.doctor import check
from moe_core.watching.findings import Finding as CheckFinding
from moe_core.watching.measuring import OF_STEP, Rows, Scalar, Step, counts_by_layer
from moe_core.watching.mirrors import Mirrors
from moe_core.watching.places import Reader
from moe_core.watching.probe import EVERY, Look, Probe, snapshots_of
from moe_core.watching.ranks import bare, ranks_of
from moe_core.watching.routers import find_routers
from moe_core.watching.tally import Sums
from moe_core.watching.taps import LOOKED_FOR, Taps, find_taps
from moe_core.watching.turning import turns_of, with_own

FLUSH = 0.1  # seconds between two commits
BEAT = 1.0  # seconds between two signs of life
LOOK = 0.02  # seconds between two looks at the tip, which tells whether somebody turned a knob or gave a command
READ = 0.25  # seconds between two readings of them, whatever the tip says
IDLE = 0.02  # seconds between two readings of the commands while paused
PATIENCE = 3  # steps in which some expert must have been called
LISTEN_EVERY = (
    5  # steps between two measurements of the routers' scores, which cost as much as all else; held in between
)
KEPT = 1000  # steps that wait in memory for a slow or full disk; of older ones only the number is kept
LOOKS = 8  # looks at the probe that wait so
HELD_OUT_LOSS = Metric("loss", "held-out loss", "nats", True)

log = logging.getLogger("moescope")


class StopTraining(Exception):
    """Somebody asked the run to stop: raised by live.step(), after the step was recorded. `with live:` takes it as the end."""


class Live:
    """What watch() returns. See there; to be used by the thread that trains."""

    def __init__(
        self,
        model: nn.Module,
        folder: Path,
        taps: Taps,
        optimizer: Any,
        knobs: Mapping[str, Knob],
        metrics: Sequence[Metric],
        checkpoint: Callable[[], object] | None,
        mirrors: Mirrors,
        balance: str | None,
        probe: Probe | None = None,
    ) -> None:
        self.model, self.path, self.taps, self.optimizer = model, folder, taps, optimizer
        self.probe = probe
        self.metrics, self.checkpoint = tuple(metrics), checkpoint
        can_switch = self._switch_off if any(tap.early for tap in taps.taps) else None
        turns = turns_of(model, taps, optimizer, can_switch)
        coefficient = float(turns[COEFFICIENT].knob.start) if COEFFICIENT in turns else None
        self.ranks, self.mirrors = ranks_of(taps), mirrors
        self.balance = Balance(model, taps, balance, coefficient, self._turn_coefficient, self.ranks)
        self.turns = with_own(turns | self.balance.turns(), knobs)
        self.knobs = Values({name: turn.knob.start for name, turn in self.turns.items()})
        self.number = 0  # of the last step
        self.writer: RunWriter | None = None
        self.problem = ""  # why watching stopped, "" while it goes on
        self.paused = self.closed = self.stopping = False
        self.singles = 0  # single steps that were asked for while paused
        self.layers: dict[int, int] = {}  # the layer of each tap's number
        self.steps: list[Step | int] = []  # that wait to be committed,
        self.sums: list[Sums] = []  # and what was selected in them
        self.collected: dict[str, Any] = empty()
        self.alerts: deque[Finding] = deque()
        self.listeners: list[Callable[[Finding], object]] = []
        self.pid = os.getpid()
        self.began = time.monotonic()
        self.next_flush = self.next_beat = self.next_look = self.next_read = 0.0
        taps.failed = self._fail
        end = weakref.WeakMethod(self._at_exit)
        atexit.register(lambda: (at_exit := end()) and at_exit())

    # What the user calls

    def step(self, loss: Scalar = None, **said: Scalar) -> None:
        """A step of the optimizer is done: record it, and follow what people turned meanwhile. Waits while the run is paused.

        loss: of the step, in nats, a number or a tensor, which is not waited for. task_loss, grad_norm: if you have them.
        ValueError for a number of another name; RuntimeError in the third step if no expert was called; StopTraining if
        somebody asked the run to stop.
        """
        if unknown := sorted(said.keys() - set(OF_STEP)):
            raise ValueError(
                f"live.step takes {', '.join(OF_STEP)}, got {', '.join(unknown)}; of a held-out split say live.eval(name=number)"
            )
        if self.closed or os.getpid() != self.pid:
            return
        self.number += 1
        look = self._look()
        try:
            if self.taps.compiled or not self.balance.idle:  # it goes on where nothing can be recorded any more
                calls = self.taps.last()
                sums = self.taps.take()
                self.balance.update(self.number, sums, calls)
                if not self.problem:
                    (self.sums if self.ranks is None else self.ranks.sums).extend(sums)
            if not self.problem:
                self._record({"loss": loss, **said}, look)
            self.taps.step = self.number + 1
        except Exception as error:
            self._fail(error)
        if self.ranks is not None:
            self.ranks.meet(self)
        if not self.layers and self.number >= PATIENCE and not self.problem:
            problem = no_calls(self.model, self.number)
            self.close("failed", problem)
            raise RuntimeError(problem)
        if self.ranks is None:
            self._follow()
        while self.alerts:
            alert = self.alerts.popleft()
            for listener in self.listeners:
                listener(alert)
        if self.stopping:
            self.close("stopped")
            raise StopTraining(f"the run {self.path.name} was stopped after step {self.number}")

    def mask(self, mask: Tensor | None) -> None:
        """Which tokens of the coming forward count, as attention_mask says it: 0 is padding. It holds until the next mask or
        step; None: all count."""
        self.taps.mask(mask)

    def eval(self, **metrics: float) -> None:
        """Numbers of the held-out split, after the last step: those named in watch(metrics=...), else loss. Selections of the
        forwards in evaluation since the last eval are recorded with them."""
        if self.problem or self.closed or (self.writer is None and self.ranks is None):
            return
        names = [metric.name for metric in self.metrics]
        if unknown := sorted(metrics.keys() - set(names)):
            log.warning(
                "live.eval records %s and got %s; declare it by watch(metrics=[...])",
                ", ".join(names),
                ", ".join(unknown),
            )
        row: dict[str, Any] = {name: float(value) for name, value in metrics.items() if name in names}
        if self.ranks is not None:
            self.ranks.evaluate(self, row)
            return
        counts = counts_by_layer(self.taps.take_held_out(), self.layers, self.experts)
        self.collected["evals"].append(
            (self.number, row | ({SELECTIONS: counts} if any(map(any, counts)) else {}), None)
        )

    def turn(self, **knobs: float | str) -> None:
        """Turn knobs: in effect from the coming step on. ValueError, and nothing is turned, for a value that one cannot take."""
        if unknown := sorted(knobs.keys() - self.turns.keys()):
            raise ValueError(f"no knob {unknown[0]!r}; there are: {', '.join(self.turns)}")
        values = {name: self.turns[name].knob.parse(name, value) for name, value in knobs.items()}
        if self.ranks is not None:
            self.ranks.turn(self, values)
        elif self.writer is None:
            self._take(values)
        elif not self.problem:
            self.writer.turn("script", **values)
            self._read()

    def _turn_coefficient(self, value: float) -> None:
        """A decision of autobalance, in effect from the coming step on."""
        value = min(value, self.turns[COEFFICIENT].knob.high)
        if self.ranks is not None:
            self.ranks.turn(self, {COEFFICIENT: value}, AUTOBALANCE)
        elif self.writer is not None and not self.problem:
            self.writer.turn(AUTOBALANCE, **{COEFFICIENT: value})
            self._read()
        else:
            self._take({COEFFICIENT: value})

    def check(self, batch: Any, **options: Any) -> list[CheckFinding]:
        """What is wrong with how this model would train on one batch of yours; see doctor.check. The model is left as it was,
        bit for bit, and what the check does is not counted."""
        silent, self.taps.silent = self.taps.silent, True
        try:
            return check(self.model, batch, optimizer=options.pop("optimizer", self.optimizer), **options)
        finally:
            self.taps.silent = silent

    def on_alert(self, listener: Callable[[Finding], object]) -> None:
        """Call listener(finding) in live.step() for each thing that the diagnosis finds wrong, once."""
        self.listeners.append(listener)

    @property
    def written(self) -> int:
        """The last step that is on the disk: no crash loses it."""
        return self.committer.step if self.writer is not None else 0

    def close(self, state: str = "finished", error: str = "") -> None:
        """End the run: everything is written, and the model is as it was before watch(). A second call does nothing."""
        if self.closed or os.getpid() != self.pid:
            return
        self.closed = True
        self.taps.close()
        if self.ranks is not None and state != "failed":
            self.ranks.meet(self, last=True)
        if self.writer is not None:
            with contextlib.suppress(RuntimeError):  # of the committing thread, which says it below
                if not self.problem:
                    self._flush()
            self.stopping = True  # so that the committing thread waits for no room
            problem = self.committer.close()
            self.mirrors.close()
            problem = self.writer.finish("failed" if error or problem else state, error=error or problem) or problem
            if problem and not self.problem:
                self._say(problem)

    def __enter__(self) -> "Live":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """An error of the user's is noted in the record and goes on its way; StopTraining is an end like any other."""
        if error is None or isinstance(error, StopTraining):
            self.close()
            return error is not None
        self.close("failed", f"{type(error).__name__}: {first_line(error)}")
        return False

    # A step

    def _look(self) -> Look | None:
        """Show the model its probe, if this is a step for it. Not only where watching goes on: all ranks must call the model."""
        began = time.monotonic()
        look = self.probe.look(self.number) if self.probe is not None else None
        self.began += time.monotonic() - began  # it is no part of the user's step
        return look

    def _record(self, said: dict[str, Scalar], look: Look | None) -> None:
        now = time.monotonic()
        self.taps.mask(None)
        self.taps.listening = self.number % LISTEN_EVERY == 0
        kept: dict[str, Scalar] = {
            name: value.detach() if isinstance(value, Tensor) else value
            for name, value in said.items()
            if value is not None
        }
        step = Step(self.number, now - self.began, kept, look)
        self.began = now
        if self.ranks is not None:
            self.ranks.steps.append(step)
        else:
            self._store(step)

    def _store(self, step: Step) -> None:
        now = time.monotonic()
        self.steps.append(step)
        if self.writer is None:
            self._take_sums()
            if not self.sums:
                return
            self._open()
        if step.look is not None:
            self.collected["snapshots"] = [*self.collected["snapshots"], (step.number, step.look)][-LOOKS:]
        if len(self.steps) > KEPT:
            self._forget(len(self.steps) - KEPT)
        if now >= self.next_flush:
            self._flush()
        if now >= self.next_beat and not self.committer.full:
            self.next_beat = now + BEAT
            self.committer.beat()

    def _take_sums(self) -> None:
        """What this process counted; of several it comes from their meeting."""
        if self.ranks is None:
            self.sums += self.taps.take()

    def _forget(self, many: int) -> None:
        """Of the oldest steps that wait for the disk, keep the number alone."""
        self.steps[:many] = [number_of(step) for step in self.steps[:many]]
        self.sums = [sums for sums in self.sums if max(sums.steps) > number_of(self.steps[many - 1])]

    def _open(self) -> None:
        """Begin the record, now that it is known which layers are called, with how many experts a token."""
        step, places = self.steps[-1], dict[int, int]()
        assert isinstance(step, Step)
        for sums in self.sums:
            places |= dict.fromkeys(sums.taps, sums.places)
        self.layers = {tap: layer for layer, tap in enumerate(sorted(places))}
        if silent := [tap.name for number, tap in enumerate(self.taps.taps) if number not in places]:
            log.warning(
                "these experts were not called in step %d, and are not recorded: %s", step.number, ", ".join(silent)
            )
        probe = self.probe if self.probe and not self.probe.failed else None
        knobs = {name: turn.knob._replace(start=self.knobs[name]) for name, turn in self.turns.items()}
        description = description_of(
            self.model, self.optimizer, self.taps, {tap: places[tap] for tap in self.layers}, step, self.sums, knobs, self.metrics,
            self.checkpoint is not None, probe.every if probe else 0,
        )  # fmt: skip
        self.experts = description.experts
        labels, tokens = ({"token": probe.strings}, probe.tokens) if probe else (None, None)
        self.writer = create_record(self.path, description, labels=labels, probe=tokens, facts=facts_of(self.model))
        columns = columns_of(description.experts, description.measures)
        self.rows = Rows(columns, self.layers)
        recent = Recent(description, self.knobs, columns)
        self.committer = Committer(self.writer, self._hear, recent, lambda: self.stopping)
        self.collected["state"] = "training"
        self.mirrors.begin(self.path, description, columns)

    def _flush(self) -> None:
        """Hand what was kept to the committing thread, unless it is far behind or the disk is full."""
        assert self.writer is not None
        self.next_flush = time.monotonic() + FLUSH
        self._take_sums()
        given = self.sums
        while (self.steps or any(self.collected.values())) and self.committer.queue.qsize() < WAITING - 1:
            if self.committer.full and not self.closed:
                return
            steps, self.steps = self.steps[:KEPT], self.steps[KEPT:]
            collected, self.collected = self.collected, empty()
            first = number_of(steps[0]) if steps else 0
            self.committer.put(Later(partial(self._batch, steps, first, given, collected)))
            if not self.steps:
                self.sums = []

    def _batch(self, steps: list[Step | int], first: int, sums: list[Sums], collected: dict[str, Any]) -> Batch:
        rows = self.rows.make(steps, sums)
        self.mirrors.send(first, rows, self.committer.recent.off_spans())
        snapshots = snapshots_of(collected["snapshots"], self.layers, self.experts)
        return Batch(first, rows, **collected | {"snapshots": snapshots})

    # Knobs and commands

    def _follow(self) -> None:
        """Do what people asked for; wait while the run is paused."""
        while self.writer is not None and not self.problem:
            try:
                now = time.monotonic()
                if now >= self.next_look:
                    self.next_look = now + LOOK
                    if now >= self.next_read or self.writer.asked():
                        self.next_read = now + READ
                        self._read()
                if not self.paused or self.stopping:
                    return
                if self.singles:
                    self.singles -= 1
                    return
                if time.monotonic() >= self.next_flush:
                    self._flush()
                if time.monotonic() >= self.next_beat:
                    self.next_beat = time.monotonic() + BEAT
                    self.committer.beat()
                self.began = time.monotonic()  # a pause is no part of a step
            except Exception as error:
                self._fail(error)
            time.sleep(IDLE)

    def _read(self) -> None:
        assert self.writer is not None
        self._act(self.writer.pending())

    def _act(self, pending: Pending) -> None:
        assert self.writer is not None
        for change in pending.knobs:
            self.writer.knob_seen = change.id
            if change.name in self.turns:
                try:
                    self._take({change.name: self.turns[change.name].knob.parse(change.name, change.value)})
                except Exception as error:
                    log.warning("%s was not turned to %s: %s", change.name, change.value, first_line(error))
            self.collected["applied"].append((change.id, self.number + 1))
        for command in pending.commands:
            if command.id > self.writer.command_seen:
                self.writer.command_seen = command.id
                self.collected["acks"].append((command.id, self.number, self._obey(command.name)))
        if pending.knobs or pending.commands:
            self.committer.recent.note_turns(self.number + 1, self.knobs)
            self._flush()

    def _take(self, values: Mapping[str, float | str]) -> None:
        for name, value in values.items():
            self.turns[name].follow(value)
            if name == COEFFICIENT:
                self.balance.coefficient = float(value)
            self.knobs = Values({**self.knobs, name: value})

    def _obey(self, command: str) -> str:
        """Carry out a command; returns its result."""
        if command == "pause" or (command == "step" and not self.paused):
            self.paused, self.collected["state"] = True, "paused"
        elif command == "resume":
            self.paused, self.singles, self.collected["state"] = False, 0, "training"
        elif command == "step":
            self.singles += 1
        elif command == "stop":
            self.stopping = True
        elif command == "checkpoint" and self.checkpoint is not None:
            try:
                return str(self.checkpoint() or "done")
            except Exception as error:
                return f"not written: {first_line(error)}"
        else:
            return f"this run takes no {command}"
        return "done"

    def _switch_off(self, text: str) -> None:
        taps = sorted(self.layers, key=self.layers.__getitem__) or range(len(self.taps.taps))
        off = switched_off([self.taps.taps[tap].experts for tap in taps], text)
        self.taps.switch_off(dict(zip(taps, off, strict=True)))

    # What goes wrong

    def _hear(self, event: dict[str, Any]) -> None:
        """An event of the committing thread."""
        if event["event"] == "alert":
            self.alerts.append(Finding(**{name: event[name] for name in Finding._fields}))
        elif event["event"] in ("note", "paused", "resumed"):
            log.warning("run %s: %s", self.path.name, event.get("note") or event.get("reason"))

    def _fail(self, error: Exception) -> None:
        self._say(first_line(error))

    def _say(self, problem: str) -> None:
        """Stop watching, and say why, once. The hooks do nothing from now on."""
        if not self.problem:
            self.problem = problem
            self.taps.silent = self.taps.silent or self.balance.kind == OFF  # what it steers, it goes on to steer
            log.error(
                "MoEscope stopped watching %s after step %d: %s. The training goes on.",
                self.path.name,
                self.number,
                problem,
            )

    def _at_exit(self) -> None:
        """The program ends without a close()."""
        error = getattr(sys, "last_value", None)
        self.close("failed" if error else "finished", f"{type(error).__name__}: {first_line(error)}" if error else "")


def watch(
    model: nn.Module,
    run: str | None = None,
    *,
    optimizer: Any = None,
    knobs: Mapping[str, Knob] | None = None,
    metrics: Sequence[Metric | str] = (HELD_OUT_LOSS,),
    routers: Mapping[str, Reader] | None = None,
    experts: Mapping[str, int] | None = None,
    checkpoint: Callable[[], object] | None = None,
    balance: str | None = None,
    probe: Any = None,
    tokenizer: Any = None,
    probe_every: int = EVERY,
    also: str | Sequence[str] = (),
    runs: str | Path | None = None,
) -> Live:
    """Watch a model's routers while you train it: call live.step(loss=...) after each step of the optimizer.

    The record begins with the first step; the dashboard shows it beside all other runs.
    run: its name; None: one is made of the model's class and the time. optimizer: its learning rate and weight decay become
    knobs. knobs: your own, which live.knobs.NAME gives you. metrics: what you will report by live.eval(), names or Metrics.
    routers: for layers that are not found by themselves, by the path of a module what reads ids (N, K), and weights (N, K) or
    None, from (module, args, kwargs, output) of its forward; experts: how many experts each of these has. checkpoint: what the
    command checkpoint calls. balance: "loss-free" or "quantile" steers the selection bias of a model whose routers carry one,
    after each step; a knob turns it. probe: texts, or a batch with input_ids and perhaps attention_mask, which the model is shown
    every probe_every steps, so that the pages show where each of its tokens goes; tokenizer: the model's, for texts, and so that
    tokens are shown as text. also: "tensorboard", "wandb" or "trackio", or a list of them, which get the main scalars too. runs:
    the folder of the runs; None: that of the dashboard.
    ValueError for a model without experts that can be watched; StoreError for a name that is taken.
    """
    model = bare(model)
    found = find_taps(model, routers, experts)
    folder = runs_folder(runs) / (checked_id(run) if run else new_name(model, runs_folder(runs)))
    if folder.exists():
        raise StoreError(f"run {folder.name} exists already in {folder.parent}; choose another name")
    declared = [Metric(one, one, "", True) if isinstance(one, str) else one for one in metrics]
    taps = Taps(model, found, find_routers(model, found))
    shown = None if probe is None else Probe(model, taps, probe, tokenizer, probe_every)
    return Live(model, folder, taps, optimizer, knobs or {}, declared, checkpoint, Mirrors(also), balance, shown)


def new_name(model: nn.Module, runs: Path) -> str:
    """A name that no run has: class, date, time and four random letters."""
    while True:
        word = re.sub(r"[^A-Za-z0-9]", "", type(model).__name__) or "model"
        name = f"{word}-{time.strftime('%m%d-%H%M')}-{secrets.token_hex(2)}"
        if not (runs / name).exists():
            return name


def no_calls(model: nn.Module, steps: int) -> str:
    """Why nothing was counted."""
    return (
        f"no expert of {type(model).__name__} was called in {steps} steps; looked for {LOOKED_FOR}. If the model was compiled and "
        f"called before watch(), watch it first; if its experts run in a kernel of their own, name its routers by routers={{path: reader}}"
    )


def number_of(step: Step | int) -> int:
    return step.number if isinstance(step, Step) else step


def empty() -> dict[str, Any]:
    return {"evals": [], "snapshots": [], "applied": [], "acks": [], "state": None, "reason": ""}
