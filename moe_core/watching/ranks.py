"""Several processes that train one model, under torch.distributed: each watches, rank 0 alone writes the record.

The ranks meet every few steps, in the thread that trains and over a process group of their own: what they counted is added up,
and what people asked of rank 0 is handed to all, so that it acts in the same step everywhere. All ranks must do so after the
same steps, so it goes by the number of the step and not by the time. A rank whose watching failed still comes to the next
meeting, to say so: then all stop watching, and none waits for another.

Shapes: E experts of a tap, S statistics of the scores.
"""

import contextlib
import datetime
import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, distributed, nn

from moe_core.runs.rows import Pending
from moe_core.schema import SELECTIONS, first_line
from moe_core.watching.measuring import OF_STEP, Step, counts_by_layer
from moe_core.watching.recorder import Recorder
from moe_core.watching.tally import SCORES, Sums
from moe_core.watching.taps import Taps
from moe_core.watching.turning import Turn

EVERY = 5  # steps between two meetings
EAGER = 3  # steps after each of which they meet, so that the record begins at once
PATIENCE = datetime.timedelta(minutes=10)  # for which a rank waits for the others, who may be saving a model
IDLE = 0.1  # seconds between two readings of the commands while paused
WRAPPERS = ("DataParallel", "DistributedDataParallel", "OptimizedModule")

log = logging.getLogger("moescope")


def bare(model: nn.Module) -> nn.Module:
    """The model within what torch and others wrap around it to train it on several devices or compiled."""
    while type(model).__name__ in WRAPPERS:
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            break
        model = inner
    return model


def ranks_of(taps: Taps) -> "Ranks | None":
    """The ranks of this training; None if there is one process."""
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() < 2:
        return None
    return Ranks([tap.experts for tap in taps.taps])


class Trained(Protocol):
    """What the meetings know of the live handle of this process."""

    number: int
    began: float
    singles: int
    paused: bool
    stopping: bool
    problem: str
    taps: Taps
    recorder: Recorder
    turns: dict[str, Turn]

    def act(self, pending: Pending) -> None: ...

    def take(self, values: Mapping[str, float | str]) -> None: ...

    def obey(self, command: str) -> str: ...

    def say(self, problem: str) -> None: ...


class Ranks:
    """This process's part in the meetings. experts: how many each tap has."""

    def __init__(self, experts: Sequence[int]) -> None:
        self.experts = list(experts)
        self.group = distributed.new_group(backend="gloo", timeout=PATIENCE)
        self.first, self.size = distributed.get_rank() == 0, distributed.get_world_size()
        self.over = False  # whether there is no meeting any more
        self.steps: list[Step] = []  # of this rank, since the last meeting
        self.sums: list[Sums] = []  # of these steps
        self.held_out: list[Sums] = []  # of this rank's evaluations since then
        self.evaluated: list[tuple[int, dict[str, Any]]] = []  # step and metrics of each, on rank 0
        self.early: dict[str, float | str] = {}  # what was turned before there was a record

    # What the live handle calls

    def meet(self, live: Trained, last: bool = False) -> None:
        """After each step: if it is one after which the ranks meet, share what was counted and what was asked."""
        if self.over:
            return
        if not (last or live.paused or live.number <= EAGER or live.number % EVERY == 0):
            self._beat(live)
            return
        try:
            self._share(live)
            self._wait(live)
        except Exception as error:
            if last:
                self.over = True
                log.warning(
                    "of the steps since the last meeting of the ranks nothing is recorded: %s", first_line(error)
                )
            else:
                self._stop(live, f"the ranks did not meet after step {live.number}: {first_line(error)}")

    def add_up(self, values: Tensor) -> Tensor:
        """The sum over the ranks, which all must ask for; waits for the device."""
        whole = values.cpu()
        whole = whole.clone() if whole.data_ptr() == values.data_ptr() else whole
        distributed.all_reduce(whole, group=self.group)
        return whole.to(values.device)

    def turn(self, live: Trained, values: Mapping[str, float | str], who: str = "script") -> None:
        """Turn knobs on all ranks, after the next meeting. What is turned on another rank than the first is left to that one."""
        if self.first and live.recorder.writer is None:
            self.early |= values
        elif self.first and live.recorder.writer is not None and not live.problem:
            live.recorder.writer.turn(who, **values)

    def evaluate(self, live: Trained, row: Mapping[str, Any]) -> None:
        """An evaluation: its selections are added up over the ranks at the next meeting, its numbers are the first rank's."""
        self.held_out += live.taps.take_held_out()
        self.evaluated.append((live.number, dict(row)))

    # A meeting

    def _share(self, live: Trained) -> None:
        asked = Pending([], [])
        if self.first and live.recorder.writer is not None and not live.problem:
            if self.early:
                early, self.early = self.early, {}
                live.recorder.writer.turn("script", **early)
            asked = live.recorder.writer.pending()
        self.sums += live.taps.take()
        head = torch.tensor(
            [float(bool(live.problem)), float(bool(asked.knobs or asked.commands))], dtype=torch.float64
        )
        parts = [head, self._packed_held_out(), *(self._packed(n) for n in range(EVERY))]
        whole = torch.cat(parts)
        distributed.all_reduce(whole, group=self.group)
        failed, some, *_ = whole.tolist()[:2]
        if failed:
            self._stop(live, f"watching failed on {failed:.0f} of {distributed.get_world_size()} ranks")
            return
        _, held_out, *rows = torch.split(whole, [len(part) for part in parts])
        self._compare(rows)
        self._store(live, [self._unpacked(row, n) for n, row in enumerate(rows[: len(self.steps)])], held_out)
        if some:
            self._act(live, asked)

    def _stop(self, live: Trained, problem: str) -> None:
        """Stop watching, with what was shared so far in the record."""
        self.over = True
        with contextlib.suppress(Exception):
            if live.recorder.writer is not None and not live.problem:
                live.recorder.flush()
        live.say(problem)

    def _compare(self, rows: Sequence[Tensor]) -> None:
        """RuntimeError unless all ranks took the same steps."""
        ranks = distributed.get_world_size()
        taken = [row[:2].tolist() for row in rows]
        own = [[float(step.number * ranks), float(ranks)] for step in self.steps]
        if taken != own + [[0.0, 0.0]] * (EVERY - len(own)):
            raise RuntimeError(f"live.step must be called on each of the {ranks} ranks, once for each step")

    def _store(self, live: Trained, steps: Sequence[tuple[Step, list[Sums]]], held_out: Tensor) -> None:
        self.steps, self.sums = [], []
        if not live.recorder.layers:
            called = sorted({tap for _, sums in steps for one in sums for tap in one.taps})
            if not self.first:
                live.recorder.layers = {tap: layer for layer, tap in enumerate(called)}
        if not self.first:
            self.held_out, self.evaluated = [], []
            return
        for step, sums in steps:
            live.recorder.sums += sums
            live.recorder.store(step)
        if live.recorder.writer is not None and self.evaluated:
            parts = torch.split(held_out, self.experts)
            own = [Sums([tap], [0], torch.cat([one, one[:1]])[None].long(), None, 1) for tap, one in enumerate(parts)]
            counts = counts_by_layer(own, live.recorder.layers, live.recorder.experts)
            *others, (number, row) = self.evaluated
            some = {SELECTIONS: counts} if any(map(any, counts)) else {}
            live.recorder.collected["evals"] += [(*one, None) for one in others] + [(number, row | some, None)]
        self.held_out, self.evaluated = [], []

    def _act(self, live: Trained, asked: Pending) -> None:
        """Hand on what was asked of the first rank, and do it."""
        message: list[Any] = [([(c.name, c.value) for c in asked.knobs], [c.name for c in asked.commands])]
        distributed.broadcast_object_list(message, src=0, group=self.group)
        if self.first:
            live.act(asked)
            return
        knobs, commands = message[0]
        for name, value in knobs:
            try:
                live.take({name: live.turns[name].knob.parse(name, value)})
            except Exception as error:
                log.warning("%s was not turned to %s: %s", name, value, first_line(error))
        for command in commands:
            live.obey(command)

    def _wait(self, live: Trained) -> None:
        """While the run is paused, the first rank tells the others every moment whether it still is."""
        while live.paused and not (live.stopping or self.over):
            if live.singles:
                live.singles -= 1
                return
            asked = Pending([], [])
            if self.first and live.recorder.writer is not None:
                time.sleep(IDLE)
                live.recorder.flush()
                self._beat(live)
                asked = live.recorder.writer.pending()
            self._act(live, asked)
            live.began = time.monotonic()  # a pause is no part of a step

    def _beat(self, live: Trained) -> None:
        if live.recorder.writer is not None and not live.problem and time.monotonic() >= live.recorder.next_beat:
            live.recorder.next_beat = time.monotonic() + 1.0
            with contextlib.suppress(RuntimeError):  # which the next flush says
                live.recorder.committer.beat()

    # Numbers in a row, for all ranks alike: of a step its number, (sum, how many) of each of OF_STEP, then of each tap how often it
    # was called, its places, how often it gave weights, counts (E + 1), importance (E + 1), sums of scores (S), how many (S).

    def _packed_held_out(self) -> Tensor:
        counts = [torch.zeros(E, dtype=torch.float64) for E in self.experts]
        for sums in self.held_out:
            for tap, counts_E1 in zip(sums.taps, sums.counts_CE1.cpu().double(), strict=True):
                counts[tap] += counts_E1[:-1]
        return torch.cat(counts)

    def _packed(self, place: int) -> Tensor:
        taps = [torch.zeros(3 + 2 * (E + 1) + 2 * len(SCORES), dtype=torch.float64) for E in self.experts]
        head = torch.zeros(2 + 2 * len(OF_STEP), dtype=torch.float64)
        if place < len(self.steps):
            step = self.steps[place]
            head[:2] = torch.tensor([float(step.number), 1.0])
            for n, name in enumerate(OF_STEP):
                if (said := step.said.get(name)) is not None:
                    head[2 + 2 * n : 4 + 2 * n] = torch.tensor([float(said), 1.0], dtype=torch.float64)
            for sums in self.sums:
                self._add(sums, step.number, taps)
        return torch.cat([head, *taps])

    def _add(self, sums: Sums, number: int, taps: Sequence[Tensor]) -> None:
        if number not in sums.steps:
            return
        counts_CE1 = sums.counts_CE1.cpu().double()
        importance_CE1 = None if sums.importance_CE1 is None else sums.importance_CE1.cpu().double()
        scores_SC = None if sums.scores_SC is None else sums.scores_SC.cpu().double()
        for c, tap in enumerate(sums.taps):
            if sums.steps[c] != number:
                continue
            wide = self.experts[tap] + 1
            row = taps[tap]
            row[:3] += torch.tensor([1.0, sums.places, float(importance_CE1 is not None)], dtype=torch.float64)
            row[3 : 3 + wide] += counts_CE1[c]
            if importance_CE1 is not None:
                row[3 + wide : 3 + 2 * wide] += importance_CE1[c]
            if scores_SC is not None:
                row[3 + 2 * wide :] += torch.cat([scores_SC[:, c].nan_to_num(), (~scores_SC[:, c].isnan()).double()])

    def _unpacked(self, row: Tensor, place: int) -> tuple[Step, list[Sums]]:
        """The step that all ranks took, and what they selected in it."""
        lengths = [2 + 2 * len(OF_STEP), *(3 + 2 * (E + 1) + 2 * len(SCORES) for E in self.experts)]
        head, *taps = torch.split(row, lengths)
        own, said = self.steps[place], head.tolist()[2:]
        means = {name: said[2 * n] / said[2 * n + 1] for n, name in enumerate(OF_STEP) if said[2 * n + 1]}
        sums = [s for tap, one in enumerate(taps) if (s := sums_of(tap, own.number, one))]
        return own._replace(said=dict(means)), sums


def sums_of(tap: int, step: int, row: Tensor) -> Sums | None:
    """What all ranks selected in one layer; None if none called it."""
    calls, places, weighed = row[:3].tolist()
    if not calls:
        return None
    wide = (len(row) - 3 - 2 * len(SCORES)) // 2
    counts_E1, importance_E1, scores_2S = torch.split(row[3:], [wide, wide, 2 * len(SCORES)])
    sum_S, many_S = scores_2S.view(2, -1)
    mean_S = torch.where(many_S > 0, sum_S / many_S, math.nan)
    return Sums(
        [tap],
        [step],
        counts_E1[None].long(),
        importance_E1[None] if weighed else None,
        round(places / calls),
        mean_S[:, None] if bool(many_S.any()) else None,
    )
