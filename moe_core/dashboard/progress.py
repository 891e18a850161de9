"""How far a lesson's run is: read once a second for all who look at it, since that may be a class of thirty."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from moe_core.dashboard.kept import remember
from moe_core.lessons import LESSONS, Verdict
from moe_core.runs import Run, StoreError, is_alive, open_run, runs_folder
from moe_core.runs.rows import KnobChange
from moe_core.runs.source import Beside, Source

EACH = 0.9  # seconds for which a reading is good: each page asks once a second
KEPT = 64  # readings


class Progress(NamedTuple):
    """How far the reader is: whether the run exists, the last stage (from 0) that was begun, whether the run trains, the
    stages whose check has passed, and whether the run is being measured on devices."""

    exists: bool
    reached: int
    alive: bool
    happened: frozenset[int]
    measuring: bool = False


NOT_BEGUN = Progress(False, 0, False, frozenset())


class Reading(NamedTuple):
    """What a run says of a lesson: how far it is, the check of the stage that was begun last, the answer to the question, how far
    its measurement on devices is, from 0 to 1 and in words, if it is under way, and the run's folder."""

    progress: Progress
    verdict: Verdict
    answer: str
    measured: tuple[float, str]
    folder: Path


# The checks that have passed, by run, lesson, stage and layer; and what was pressed, by run, lesson and knob with its value, also
# where a knob had that value already. Whoever looks at a run sees the same.
Record = tuple[Path, float]  # a run's folder and when it was begun: another may be trained under the same name
_seen: dict[tuple[Record, int, int, int], Verdict] = {}
_pressed: set[tuple[Record, int, tuple[str, Any]]] = set()
# Runs, lessons and layers for which recall() was done.
_recalled: set[tuple[Record, int, int]] = set()
_readings: dict[tuple[Path, int, int], tuple[float, Reading | None]] = {}
_one = threading.Lock()


def read_run(id: str, number: int, layer: int, fresh: bool = False) -> Reading | None:
    """What a run says of lesson `number`; None if it cannot be opened yet. layer: counted from 1, the nearest if there is none
    of that number. fresh: read it even if somebody has just done so."""
    key = (runs_folder() / id).absolute(), number, min(layer, LESSONS[number - 1].config.layers)
    when, kept = _readings.get(key, (0.0, None))
    if not fresh and kept and time.monotonic() - when < EACH:
        return kept
    # While one page reads, the others show what was read before: were thirty to wait for it, they would keep it from its work.
    if not _one.acquire(blocking=fresh or kept is None):
        return kept
    try:
        with opened(id) as run:
            kept = None if run is None else read(run, number, min(layer, len(run.description.layers)) - 1)
        remember(_readings, key, (time.monotonic(), kept), KEPT)
    finally:
        _one.release()
    return kept


def record_of(run: Run) -> Record:
    return run.path, float(run.facts["created"])


def read(run: Run, number: int, layer: int) -> Reading:
    """What a run says of lesson `number`, of a layer from 0."""
    lesson, devices = LESSONS[number - 1], run.on_devices()
    measured = devices.running or bool(devices.wanted or devices.problem)
    recall(run, number, layer, measured)
    at = reached_of(run, number, measured)
    verdict = check(run, number, layer, at)
    answer = lesson.answer_on(run, layer) if run.steps()[1] else ""
    progress = Progress(True, at, is_alive(run.path), happened_in(run, number, layer), devices.running)
    return Reading(progress, verdict, answer, devices.progress, run.path)


def press(run: Run, number: int, knobs: Mapping[str, Any]) -> None:
    """Keep in mind what a stage's button has turned."""
    _pressed.update((record_of(run), number, item) for item in knobs.items())


def happened_in(run: Run, number: int, layer: int) -> frozenset[int]:
    """The stages, from 0, whose check has passed."""
    stages = range(len(LESSONS[number - 1].stages))
    return frozenset(at for at in stages if (record_of(run), number, at, layer) in _seen)


class Until(Beside):
    """A run as it stood at one of its steps, for a check: steps, knobs and turns. Measurements are as they are now."""

    def __init__(self, run: Run, step: int):
        super().__init__(run, {})
        self.step = step

    def steps(self) -> tuple[int, int]:
        return self.run.steps()[0], self.step

    @property
    def knobs(self) -> Any:
        return self.run.knobs_at(self.step)

    def knob_changes(self) -> list[KnobChange]:
        return [change for change in self.run.knob_changes() if change.step is not None and change.step <= self.step]


def recall(run: Run, number: int, layer: int, measured: bool) -> None:
    """Find in the record what had passed before this server looked at a run: each stage is checked as the run stood before the lesson's next
    turn took effect. Done once for each run, lesson and layer."""
    if (asked := (record_of(run), number, layer)) in _recalled:
        return
    _recalled.add(asked)
    for step in sorted(
        {change.step - 1 for change in turns_of(run, number) if change.step is not None and change.step > 1}
    ):
        stood = Until(run, step)
        check(run, number, layer, stage_of(number, turned_in(stood, number), measured), stood)


def reached_of(run: Run, number: int, measured: bool) -> int:
    """The stage that was begun last, from 0. The run's record says which stages were begun; where a knob already had the stage's
    value, there is no change to record, and what was pressed counts. measured: whether a measurement on devices was begun.
    """
    pressed = {item for path, lesson, item in tuple(_pressed) if (path, lesson) == (record_of(run), number)}
    return stage_of(number, turned_in(run, number) | pressed, measured)


def turned_in(run: Source, number: int) -> set[tuple[str, Any]]:
    """Each knob with its value to which the lesson's buttons turned it."""
    return {(change.name, change.value) for change in turns_of(run, number)}


def turns_of(run: Source, number: int) -> list[KnobChange]:
    """The turns that the lesson's buttons made."""
    return [change for change in run.knob_changes() if change.who == f"lesson {number}"]


def stage_of(number: int, turned: set[tuple[str, Any]], measured: bool) -> int:
    """The last stage, from 0, whose knobs were turned and, if it measures, whose measurement was begun."""
    stages = LESSONS[number - 1].stages
    done = (turned >= set(stage.knobs.items()) and (measured or not stage.measures) for stage in stages)
    return max((at for at, here in enumerate(done) if at and here), default=0)


def check(run: Run, number: int, layer: int, at: int, stood: Until | None = None) -> Verdict:
    """The check of stage `at`, of the run or as it stood. One that passed once stays passed, with the sentence of that moment."""
    source = stood or run
    verdict = LESSONS[number - 1].stages[at].check(source, layer)
    key = record_of(run), number, at, layer
    if verdict.happened:
        _seen.setdefault(key, Verdict(True, f"At step {source.steps()[1]:,}: {verdict.text}"))
        return verdict
    return _seen.get(key, verdict)


@contextmanager
def opened(wanted: str) -> Iterator[Run | None]:
    """The run, open within the `with`; None if it cannot be opened yet."""
    try:
        run = open_run(wanted, limit=0.25)
    except StoreError:
        yield None
        return
    try:
        yield run
    finally:
        run.close()
