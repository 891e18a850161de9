"""Several processes that train one model, under torch.distributed: each watches, rank 0 alone writes the record.

The ranks meet every few steps, in the thread that trains and over a process group of their own: what they counted is added up,
and what people asked of rank 0 is handed to all, so that it acts in the same step everywhere. All ranks must do so after the
same steps, so it goes by the number of the step and not by the time. A rank whose watching failed still comes to the next
meeting, to say so: then all stop watching, and none waits for another.

Shapes: P places for steps, T taps, E experts of the tap with the most, S statistics of the scores, C calls.
"""

import contextlib
import datetime
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn

from moe_core.parallel.group import add_up, from_first, let_go
from moe_core.runs.rows import Pending
from moe_core.schema import SELECTIONS, first_line
from moe_core.watching.measuring import OF_STEP, Step, arrays_of
from moe_core.watching.recorder import BEAT, Recorder
from moe_core.watching.tally import SCORE_STATS, Sums
from moe_core.watching.taps import Taps

EVERY = 5  # steps between two meetings
EAGER = 3  # after each of the first so many steps they meet, so that the record begins at once
PATIENCE = datetime.timedelta(minutes=10)  # how long a rank waits for the others, which may be saving a model
IDLE = 0.1  # seconds between two readings of the commands while paused
WRAPPERS = ("DataParallel", "DistributedDataParallel", "OptimizedModule")

log = logging.getLogger("moescope")


def bare(model: nn.Module) -> nn.Module:
    """The model inside the wrappers of DDP, DataParallel and torch.compile."""
    while type(model).__name__ in WRAPPERS:
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            break
        model = inner
    return model


def ranks_of(taps: Taps) -> "WatchedRanks | None":
    """The ranks of this training; None if there is one process."""
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() < 2:
        return None
    return WatchedRanks([tap.experts for tap in taps.taps])


# The numbers of a tap in a step: how often it was called, experts per token, how often it gave weights; then counts and importance
# of each expert; then for each statistic of the scores the sum, and over how many calls.
CALLS, PLACES, WEIGHED, FIXED = 0, 1, 2, 3
S = len(SCORE_STATS)
Array = NDArray[np.float64]


class Shared:
    """What the ranks add up: one array, and views into it. experts: how many each tap has."""

    def __init__(self, experts: Sequence[int]) -> None:
        T, E = len(experts), max(experts)
        self.shapes = {
            "head": (2,),  # ranks whose watching failed; whether anything was asked
            "steps": (EVERY, 2),  # number, 1
            "said": (EVERY, len(OF_STEP), 2),  # sum, how many
            "taps": (EVERY, T, FIXED + 2 * E + 2 * S),
            "held_out": (T, E),
        }
        self.whole: Array = np.zeros(sum(int(np.prod(shape)) for shape in self.shapes.values()))
        self.views: dict[str, Array] = {}
        end = 0
        for name, shape in self.shapes.items():
            begin, end = end, end + int(np.prod(shape))
            self.views[name] = self.whole[begin:end].reshape(shape)
        self.experts = np.array(experts)

    def __getitem__(self, name: str) -> Array:
        return self.views[name]

    def put(self, place: int, step: Step, all_sums: Sequence[Sums]) -> None:
        """Write a step of this rank into the array, with what it selected in that step. all_sums may hold other steps too."""
        self["steps"][place] = step.number, 1
        for n, name in enumerate(OF_STEP):
            if (said := step.said.get(name)) is not None:
                self["said"][place, n] = float(said), 1
        E = self["held_out"].shape[1]
        for sums in all_sums:
            here = np.array(sums.steps) == step.number
            if not here.any():
                continue
            arrays = {name: values[here] for name, values in arrays_of(sums).items()}
            taps = np.array(sums.taps)[here]
            counts_CE = arrays["counts"]
            row_CW = np.zeros((len(taps), FIXED + 2 * E + 2 * S))
            row_CW[:, :FIXED] = 1, sums.places, "importance" in arrays
            row_CW[:, FIXED : FIXED + counts_CE.shape[1]] = counts_CE
            if "importance" in arrays:
                row_CW[:, FIXED + E : FIXED + E + counts_CE.shape[1]] = arrays["importance"]
            if sums.scores_SC is not None:
                scores_CS = np.stack([arrays[name] for name in SCORE_STATS], 1)
                row_CW[:, -2 * S : -S], row_CW[:, -S:] = np.nan_to_num(scores_CS), ~np.isnan(scores_CS)
            np.add.at(self["taps"][place], taps, row_CW)

    def put_held_out(self, sums: Sequence[Sums]) -> None:
        for one in sums:
            counts_CE = arrays_of(one)["counts"]
            np.add.at(self["held_out"][:, : counts_CE.shape[1]], one.taps, counts_CE)

    def step(self, place: int, own: Step) -> tuple[Step, list[Sums]]:
        """A step as all ranks took it, and what they selected in it."""
        said = {name: a / n for name, (a, n) in zip(OF_STEP, self["said"][place].tolist(), strict=True) if n}
        taps_TW = self["taps"][place]
        alike: dict[Any, list[int]] = {}
        for tap in np.flatnonzero(taps_TW[:, CALLS]).tolist():
            row_W = taps_TW[tap]
            key = (
                int(self.experts[tap]),
                round(row_W[PLACES] / row_W[CALLS]),
                row_W[WEIGHED] > 0,
                bool(row_W[-S:].any()),
            )
            alike.setdefault(key, []).append(tap)
        sums = [sums_of(taps, own.number, taps_TW[taps], *key) for key, taps in alike.items()]
        return own._replace(said=dict(said)), sums


def sums_of(taps: list[int], step: int, rows_CW: Array, experts: int, places: int, weighed: bool, heard: bool) -> Sums:
    """What all ranks selected in one step, in taps that are alike."""
    E = (rows_CW.shape[1] - FIXED - 2 * S) // 2
    nowhere_C1 = np.zeros((len(taps), 1))  # places without an expert, which no record has
    counts_CE1 = np.concatenate([rows_CW[:, FIXED : FIXED + experts], nowhere_C1], 1)
    importance_CE1 = np.concatenate([rows_CW[:, FIXED + E : FIXED + E + experts], nowhere_C1], 1)
    sum_CS, many_CS = rows_CW[:, -2 * S : -S], rows_CW[:, -S:]
    mean_CS = np.where(many_CS > 0, sum_CS / np.maximum(many_CS, 1), np.nan)
    return Sums(
        taps,
        [step] * len(taps),
        torch.from_numpy(counts_CE1).long(),
        torch.from_numpy(importance_CE1) if weighed else None,
        places,
        torch.from_numpy(mean_CS.T.copy()) if heard else None,
    )


class Trained(Protocol):
    """What the meetings use of this process's live handle."""

    number: int
    began: float
    singles: int
    paused: bool
    stopping: bool
    problem: str
    taps: Taps
    recorder: Recorder

    def act(self, pending: Pending) -> None: ...

    def turn_to(self, name: str, value: float | str) -> bool: ...

    def obey(self, command: str) -> str: ...

    def fail(self, error: Exception) -> None: ...

    def say(self, problem: str) -> None: ...


class WatchedRanks:
    """This process's part in the meetings. experts: how many each tap has."""

    def __init__(self, experts: Sequence[int]) -> None:
        self.experts = list(experts)
        self.group = distributed.new_group(backend="gloo", timeout=PATIENCE)
        self.first, self.size = distributed.get_rank() == 0, distributed.get_world_size()
        self.over = False  # True once the ranks meet no more
        self.steps: list[Step] = []  # of this rank, since the last meeting
        self.sums: list[Sums] = []  # of these steps
        self.held_out: list[Sums] = []  # of this rank's evaluations since then
        self.evaluated: list[tuple[int, dict[str, Any]]] = []  # step and metrics of each
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
            if not last:
                self._wait(live)
        except Exception as error:
            if last:
                self.over = True
                log.warning("the steps since the last meeting of the ranks are not recorded: %s", first_line(error))
            else:
                self._stop(live, f"the ranks did not meet after step {live.number}: {first_line(error)}")

    def end(self, live: Trained) -> None:
        """Meet for the last time and let go of the process group."""
        self.meet(live, last=True)
        self.over = True
        with contextlib.suppress(Exception):  # the program may have ended all groups before
            let_go(self.group)
        del self.group

    def add_up(self, values: Tensor) -> Tensor:
        """The sum over the ranks, which all must ask for; waits for the device."""
        return add_up(values.cpu(), self.group).to(values.device)

    def turn(self, live: Trained, values: Mapping[str, float | str], who: str = "script") -> None:
        """Turn knobs on all ranks, after the next meeting. On ranks other than the first this does nothing."""
        if self.first and live.recorder.writer is None:
            self.early |= values
        elif self.first and live.recorder.writer is not None and not live.problem:
            live.recorder.writer.turn(who, **values)

    def evaluate(self, live: Trained, row: Mapping[str, Any]) -> None:
        """An evaluation: its selections are added up over the ranks at the next meeting, its numbers are the first rank's."""
        self.held_out += live.taps.take_held_out()
        self.evaluated.append((live.number, dict(row)))

    # A meeting. What is sent goes before what can fail, so that no rank waits for one that failed.

    def _share(self, live: Trained) -> None:
        asked = self._asked(live)
        shared = Shared(self.experts)
        shared["head"][:] = bool(live.problem), bool(asked.knobs or asked.commands)
        try:
            self.sums += live.taps.take()
            for place, step in enumerate(self.steps):
                shared.put(place, step, self.sums)
            shared.put_held_out(self.held_out)
        except Exception as error:
            live.fail(error)
            shared.whole[:] = 0
            shared["head"][0] = 1
        distributed.all_reduce(torch.from_numpy(shared.whole), group=self.group)
        failed, some = shared["head"].tolist()
        if failed:
            self._stop(live, f"watching failed on {failed:.0f} of {distributed.get_world_size()} ranks")
            return
        told = self._tell(asked) if some else None
        self._compare(shared)
        self._store(live, shared)
        if told is not None:
            self._do(live, asked, told)

    def _asked(self, live: Trained) -> Pending:
        """What people asked of the first rank."""
        if not self.first or live.recorder.writer is None or live.problem:
            return Pending([], [])
        try:
            early, self.early = self.early, {}
            if early:
                live.recorder.writer.turn("script", **early)
            return live.recorder.writer.pending()
        except Exception as error:
            live.fail(error)
            return Pending([], [])

    def _stop(self, live: Trained, problem: str) -> None:
        """Stop watching. What was shared so far is still recorded."""
        self.over = True
        with contextlib.suppress(Exception):
            if live.recorder.writer is not None and not live.problem:
                live.recorder.flush()
        live.say(problem)

    def _compare(self, shared: Shared) -> None:
        """RuntimeError unless all ranks took the same steps."""
        ranks = distributed.get_world_size()
        own = np.zeros((EVERY, 2))
        own[: len(self.steps)] = [(step.number, 1) for step in self.steps] or np.zeros((0, 2))
        if not np.array_equal(shared["steps"], own * ranks):
            raise RuntimeError(f"live.step must be called on each of the {ranks} ranks, once for each step")

    def _store(self, live: Trained, shared: Shared) -> None:
        steps, self.steps = self.steps, []
        evaluated, self.evaluated, self.held_out, self.sums = self.evaluated, [], [], []
        if not self.first:
            if not live.recorder.layers:
                called = np.flatnonzero(shared["taps"][:, :, CALLS].any(0)).tolist()
                live.recorder.layers = {tap: layer for layer, tap in enumerate(called)}
            return
        for place, step in enumerate(steps):
            whole, sums = shared.step(place, step)
            live.recorder.sums += sums
            live.recorder.store(whole)
        if live.recorder.writer is not None and evaluated:
            rows = shared["held_out"]
            counts = [rows[tap, : self.experts[tap]].tolist() for tap in live.recorder.layers]
            *others, (number, row) = evaluated
            some = {SELECTIONS: counts} if any(map(any, counts)) else {}
            live.recorder.collected["evals"] += [(*one, None) for one in others] + [(number, row | some, None)]

    def _tell(self, asked: Pending, over: bool = False) -> tuple[list[tuple[str, Any]], list[str], bool]:
        """Hand on what was asked of the first rank; returns it: turns, commands, and whether watching is over."""
        told: tuple[list[tuple[str, Any]], list[str], bool] = from_first(
            ([(c.name, c.value) for c in asked.knobs], [c.name for c in asked.commands], over), self.group
        )
        return told

    def _do(self, live: Trained, asked: Pending, told: tuple[list[tuple[str, Any]], list[str], bool]) -> None:
        if self.first:
            live.act(asked)
            return
        knobs, commands, _ = told
        for name, value in knobs:
            live.turn_to(name, value)
        for command in commands:
            live.obey(command)

    def _wait(self, live: Trained) -> None:
        """While the run is paused, the first rank tells the others every IDLE seconds whether it still is."""
        while live.paused and not (live.stopping or self.over):
            if live.singles:
                live.singles -= 1
                return
            if self.first:
                time.sleep(IDLE)
                try:
                    live.recorder.flush()
                    self._beat(live)
                except Exception as error:
                    live.fail(error)
            asked = self._asked(live)
            told = self._tell(asked, over=bool(live.problem))
            if told[2]:
                self._stop(live, "watching failed on the first rank")
                return
            self._do(live, asked, told)
            live.began = time.monotonic()  # a pause is no part of a step

    def _beat(self, live: Trained) -> None:
        if live.recorder.writer is not None and not live.problem and time.monotonic() >= live.recorder.next_beat:
            live.recorder.next_beat = time.monotonic() + BEAT
            with contextlib.suppress(RuntimeError):  # the next flush raises it again
                live.recorder.committer.beat()
