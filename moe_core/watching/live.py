"""The live handle on somebody's model: it counts while they train, writes the record, and lets people turn what can be turned.

It must never end a training. If something in it fails, watching stops, and the log "moescope" says why, once. Two mistakes are worth
an error all the same: a call that cannot be right, and a model of which no expert is ever called.
"""

import atexit
import logging
import os
import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from moe_core.diagnosis import Finding
from moe_core.remedies import COEFFICIENT
from moe_core.runs.rows import Pending
from moe_core.schema import AUTOBALANCE, SELECTIONS, Description, Knob, Values, first_line, off_by_layer
from moe_core.schema.stats import Metric
from moe_core.watching.balancing import OFF, Balance
from moe_core.watching.describing import description_of
from moe_core.watching.doctor import check
from moe_core.watching.findings import CheckFinding
from moe_core.watching.measuring import OF_STEP, Scalar, Step, counts_by_layer, number_of
from moe_core.watching.mirrors import Mirrors
from moe_core.watching.probe import Look, Probe
from moe_core.watching.ranks import ranks_of
from moe_core.watching.readers import no_calls
from moe_core.watching.recorder import Recorder
from moe_core.watching.tally import Sums
from moe_core.watching.taps import Taps
from moe_core.watching.turning import Rates, off_of, turns_of, with_own

LOOK = 0.02  # seconds between two looks at the tip, which says whether somebody turned a knob or gave a command
READ = 1.0  # seconds after which turns and commands are read even if the tip names none
IDLE = 0.02  # seconds between two readings of the commands while paused
PATIENCE = 3  # steps within which some expert must be called
LISTEN_EVERY = 10  # steps between two measurements of the routers' scores, which cost as much as all else;
SLOW = 0.1  # after a step of more seconds they are measured in the next in any case

log = logging.getLogger("moescope")


class StopTraining(Exception):
    """Somebody asked the run to stop: raised by live.step(), after the step was recorded. `with live:` then ends quietly."""


class Live:
    """What watch() returns, to be used by the thread that trains."""

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
        routers = [router.module for router in taps.routers.values()]
        self.rates = Rates(optimizer, routers) if optimizer is not None else None
        try:
            turns = turns_of(model, taps, self.rates, can_switch)
            coefficient = float(turns[COEFFICIENT].knob.start) if COEFFICIENT in turns else None
            self.ranks = ranks_of(taps)
            self.balance = Balance(model, taps, balance, coefficient, self._turn_coefficient, self.ranks)
            self.turns = with_own(turns | self.balance.turns(), knobs)
        except BaseException:
            if self.rates is not None:
                self.rates.close()
            raise
        self.knobs = Values({name: turn.knob.start for name, turn in self.turns.items()})
        self.number = 0  # of the last step
        self.problem = ""  # why watching stopped, "" while it goes on
        self.paused = self.closed = self.stopping = False
        self.singles = 0  # single steps that were asked for while paused
        self.listeners: list[Callable[[Finding], object]] = []
        self.pid = os.getpid()
        self.began = time.monotonic()
        self.next_look = self.next_read = 0.0
        self.recorder = Recorder(folder, model, taps, probe, mirrors, self._describe, self.ranks is None)
        taps.failed = self.fail
        end = weakref.WeakMethod(self._at_exit)
        self.at_exit = atexit.register(lambda: (at_exit := end()) and at_exit())

    # What the user calls

    def step(self, loss: Scalar = None, **others: Scalar) -> None:
        """A step of the optimizer is done: record it, and follow what people turned meanwhile. Waits while the run is paused.

        loss: of the step, in nats, a number or a tensor, which is not waited for. task_loss, grad_norm: if you have them.
        ValueError for a number of another name, or what is no number; RuntimeError in the third step if no expert was called;
        StopTraining if somebody asked the run to stop.
        """
        said = {"loss": loss, **others}
        if unknown := [name for name in said if name not in OF_STEP]:
            raise ValueError(
                f"live.step takes {', '.join(OF_STEP)}, got {', '.join(unknown)}; of a held-out split say live.eval(name=number)"
            )
        if self.closed or os.getpid() != self.pid:
            return
        kept = {name: number_of(name, value) for name, value in said.items() if value is not None}
        self.number += 1
        if self.rates is not None:
            self.rates.count_step()
        look = self._look() if self.probe is not None else None
        try:
            if self.taps.compiled or not self.balance.idle:  # balancing goes on after watching stopped
                calls = self.taps.last()
                sums = self.taps.take()
                self.balance.update(self.number, sums, calls)
                if not self.problem:
                    (self.recorder.sums if self.ranks is None else self.ranks.sums).extend(sums)
            if not self.problem:
                self._record(kept, look)
            self.taps.step = self.number + 1
        except Exception as error:
            self.fail(error)
        if self.ranks is not None:
            self.ranks.meet(self)
        if not self.recorder.layers and self.number >= PATIENCE and not self.problem:
            problem = no_calls(self.model, self.number, bool(self.taps.held_out or self.taps.held_out_sums))
            self.close("failed", problem)
            raise RuntimeError(problem)
        if self.ranks is None:
            self._follow()
        while self.recorder.alerts:
            alert = self.recorder.alerts.popleft()
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
        if self.problem or self.closed:
            return
        if self.number == 0:  # there is no record yet
            log.warning("live.eval before the first live.step is not recorded")
            self.taps.take_held_out()
            return
        if self.recorder.writer is None and self.ranks is None:
            return
        names = [metric.name for metric in self.metrics]
        if unknown := sorted(metrics.keys() - set(names)):
            log.warning(
                "live.eval records %s and got %s; declare it by watch(metrics=[...])",
                ", ".join(names),
                ", ".join(unknown),
            )
        row: dict[str, Any] = {name: float(number_of(name, value)) for name, value in metrics.items() if name in names}
        if self.ranks is not None:
            self.ranks.evaluate(self, row)
            return
        counts = counts_by_layer(self.taps.take_held_out(), self.recorder.layers, self.recorder.experts)
        self.recorder.collected["evals"].append(
            (self.number, row | ({SELECTIONS: counts} if any(map(any, counts)) else {}), None)
        )

    def turn(self, **knobs: float | str) -> None:
        """Turn knobs: in effect from the coming step on. ValueError, and nothing is turned, for a value that one cannot take."""
        if self.closed:
            log.warning("run %s is closed: no knob was turned", self.path.name)
            return
        if unknown := sorted(knobs.keys() - self.turns.keys()):
            raise ValueError(f"no knob {unknown[0]!r}; there are: {', '.join(self.turns)}")
        if isinstance(off := knobs.get("off"), str):  # the record holds no word that is a number, such as 4
            self._off_by_tap(off)
            knobs["off"] = off_by_layer([self.taps.taps[tap].experts for tap in self._in_order()], off)
        values = {name: self.turns[name].knob.parse(name, value) for name, value in knobs.items()}
        if self.ranks is not None:
            self.ranks.turn(self, values)
        elif self.recorder.writer is None:
            self.take(values)
        elif not self.problem:
            self.recorder.writer.turn("script", **values)
            self._read()

    def _turn_coefficient(self, value: float) -> None:
        """A decision of autobalance, in effect from the coming step on."""
        value = min(value, self.turns[COEFFICIENT].knob.high)
        if self.ranks is not None:
            self.ranks.turn(self, {COEFFICIENT: value}, AUTOBALANCE)
        elif self.recorder.writer is not None and not self.problem:
            self.recorder.writer.turn(AUTOBALANCE, **{COEFFICIENT: value})
            self._read()
        else:
            self.take({COEFFICIENT: value})

    def check(self, batch: Any, **options: Any) -> list[CheckFinding]:
        """What is wrong in how this model trains, as one batch of yours shows it; see doctor.check. The model is left as it was, bit
        for bit, and the forwards of the check are not counted."""
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
        return self.recorder.written

    def close(self, state: str = "finished", error: str = "") -> None:
        """End the run: everything is written, and the hooks are taken off. What was turned or balanced stays as it is: k, the
        coefficients, the selection biases. A second call does nothing."""
        if self.closed or os.getpid() != self.pid:
            return
        self.closed = True
        atexit.unregister(self.at_exit)
        self.taps.close()
        if self.rates is not None:
            self.rates.close()
        if self.ranks is not None and state != "failed":
            self.ranks.end(self)
        if self.problem and not error:  # so that nobody takes the last step that was recorded for the end
            error = f"watching stopped, and the training went on: {self.problem}"
        problem = self.recorder.finish(state, error)
        if problem and not self.problem:
            self.say(problem)

    def __enter__(self) -> "Live":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """An error of the user's is noted in the record and goes on its way; StopTraining is an end like any other."""
        if error is None or isinstance(error, StopTraining) or (isinstance(error, SystemExit) and not error.code):
            self.close()
            return isinstance(error, StopTraining)
        self.close("failed", f"{type(error).__name__}: {first_line(error)}")
        return False

    # A step

    def _look(self) -> Look | None:
        """Show the model its probe, if this is a step for it; also after watching stopped, since all ranks must call the model."""
        assert self.probe is not None
        began = time.monotonic()
        look = self.probe.look(self.number)
        self.began += time.monotonic() - began  # it is no part of the user's step
        return look

    def _record(self, said: Mapping[str, float | Tensor], look: Look | None) -> None:
        now = time.monotonic()
        seconds, self.began = now - self.began, now
        self.taps.mask(None)
        self.taps.listening = self.number % LISTEN_EVERY == 0 or seconds > SLOW
        if self.recorder.writer is not None and not said.keys() <= self.recorder.said:
            self.recorder.say_late(said.keys())
        step = Step(self.number, seconds, said, look)
        if self.ranks is not None:
            self.ranks.steps.append(step)
        else:
            self.recorder.store(step)

    def _describe(self, k_of_tap: Mapping[int, int], step: Step, sums: Sequence[Sums]) -> Description:
        """What the run says of itself, when its record begins."""
        probe = self.probe if self.probe and not self.probe.failed else None
        knobs = {name: turn.knob._replace(start=self.knobs[name]) for name, turn in self.turns.items()}
        return description_of(
            self.model, self.optimizer, self.taps, k_of_tap, step, sums, knobs, self.metrics, self.checkpoint is not None,
            probe.every if probe else 0,
        )  # fmt: skip

    # Knobs and commands

    def _follow(self) -> None:
        """Do what people asked for; wait while the run is paused."""
        while self.recorder.writer is not None and not self.problem:
            try:
                now = time.monotonic()
                if now >= self.next_look:
                    self.next_look = now + LOOK
                    if now >= self.next_read or self.recorder.writer.asked():
                        self.next_read = now + READ
                        self._read()
                if not self.paused or self.stopping:
                    return
                if self.singles:
                    self.singles -= 1
                    return
                self.recorder.keep_up()
                self.began = time.monotonic()  # a pause is no part of a step
            except Exception as error:
                self.fail(error)
            time.sleep(IDLE)

    def _read(self) -> None:
        assert self.recorder.writer is not None
        self.act(self.recorder.writer.pending())

    def act(self, pending: Pending) -> None:
        assert self.recorder.writer is not None
        for change in pending.knobs:
            self.recorder.writer.knob_seen = change.id
            if change.name not in self.turns or self.turn_to(change.name, change.value):
                self.recorder.collected["applied"].append((change.id, self.number + 1))
        for command in pending.commands:
            if command.id > self.recorder.writer.command_seen:
                self.recorder.writer.command_seen = command.id
                self.recorder.collected["acks"].append((command.id, self.number, self.obey(command.name)))
        if pending.knobs or pending.commands:
            self.recorder.committer.recent.note_turns(self.number + 1, self.knobs)
            self.recorder.flush()

    def turn_to(self, name: str, value: float | str) -> bool:
        """Turn a knob as somebody asked for it; where it cannot be, say so. Whether it was."""
        try:
            self.take({name: self.turns[name].knob.parse(name, value)})
        except Exception as error:
            log.warning("%s was not turned to %s: %s", name, value, first_line(error))
            return False
        return True

    def take(self, values: Mapping[str, float | str]) -> None:
        for name, value in values.items():
            self.turns[name].follow(value)
            if name == COEFFICIENT:
                self.balance.coefficient = float(value)
            self.knobs = Values({**self.knobs, name: value})

    def obey(self, command: str) -> str:
        """Carry out a command; returns its result."""
        if command == "pause" or (command == "step" and not self.paused):
            self.paused, self.recorder.collected["state"] = True, "paused"
            return "paused; the next step trains one" if command == "step" else "done"
        if command == "resume":
            self.paused, self.singles, self.recorder.collected["state"] = False, 0, "training"
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

    def _in_order(self) -> Sequence[int]:
        """The taps' numbers in the order of the record's layers; of all, before it begins."""
        return sorted(self.recorder.layers, key=self.recorder.layers.__getitem__) or range(len(self.taps.taps))

    def _off_by_tap(self, text: str) -> dict[int, Sequence[int]]:
        """The experts that are to be off, by the tap's number. ValueError if a layer can switch none off."""
        order = self._in_order()
        return dict(zip(order, off_of([self.taps.taps[tap] for tap in order], text), strict=True))

    def _switch_off(self, text: str) -> None:
        self.taps.switch_off(self._off_by_tap(text))

    # What goes wrong

    def fail(self, error: Exception) -> None:
        self.say(first_line(error))

    def say(self, problem: str) -> None:
        """Stop watching, and say why, once. The hooks do nothing from now on."""
        if not self.problem:
            self.problem = problem
            self.taps.silent = self.taps.silent or self.balance.kind == OFF  # a bias that is steered is steered further
            log.error(
                "MoEscope stopped watching %s after step %d: %s. The training goes on.",
                self.path.name,
                self.number,
                problem,
            )

    def _at_exit(self) -> None:
        """The program ends without a close(). Of sys.exit("...") outside of `with` nothing is left to be seen here."""
        error = getattr(sys, "last_value", None)
        self.close("failed" if error else "finished", f"{type(error).__name__}: {first_line(error)}" if error else "")
