"""The rows of a run's record as named tuples, for the rest of the program."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moe_core.runs.room import FULL
from moe_core.schema import SELECTIONS, Description

COMMANDS = ("pause", "resume", "step", "stop", "checkpoint")
RESUMED = "resumed"  # the name of the commands row that records a resume
QUIET = 4.0  # seconds without a heartbeat after which pages and lists show that the trainer does not answer
SNAPSHOT_KINDS = ("probe", "choices", "full")
ENDED = ("finished", "stopped", "failed")
STATES = ("starting", "training", "paused", *ENDED)


class KnobChange(NamedTuple):
    """One turn of one knob, whose values are numbers or words. step is its step of effect, None before that."""

    id: int
    name: str
    value: float | str
    previous: float | str
    who: str
    when: float
    step: int | None


class Command(NamedTuple):
    """One request to the trainer. step and result are None until it is carried out."""

    id: int
    name: str
    who: str
    when: float
    step: int | None
    result: str | None


class Pending(NamedTuple):
    knobs: list[KnobChange]
    commands: list[Command]


class Eval(NamedTuple):
    """One evaluation of the held-out split. counts (L, E): how often each expert was selected, NaN for one that was off;
    None of a run whose version did not record it."""

    id: int
    step: int
    metrics: dict[str, float]
    text: str | None
    counts: NDArray[np.float64] | None = None


def evaluation(experts_L: Sequence[int], id: int, step: int, measured: Mapping[str, Any], text: str | None) -> Eval:
    """What was measured, metrics and selections, as an Eval; ValueError or the like if it is not valid.

    experts_L: how many experts each layer has; the row of a layer with fewer than the most is filled up with NaN.
    """
    metrics = {str(name): float(value) for name, value in measured.items() if name != SELECTIONS}
    if measured.get(SELECTIONS) is None:
        return Eval(id, int(step), metrics, text)
    layers = measured[SELECTIONS]
    counts_LE = np.full((len(experts_L), max(experts_L)), np.nan)
    if [len(counts) for counts in layers] != list(experts_L):
        raise ValueError(f"its selections are not those of {', '.join(map(str, experts_L[:8]))} experts")
    for layer, counts in enumerate(layers):
        counts_LE[layer, : len(counts)] = np.array(counts, np.float64)
    if (counts_LE < 0).any() or np.isinf(counts_LE).any():
        raise ValueError("its selections are not counts")
    return Eval(id, int(step), metrics, text, counts_LE)


def fits(kind: str, arrays: Mapping[str, NDArray[Any]], experts_L: Sequence[int]) -> bool:
    """Whether a snapshot's arrays are those of layers with so many experts: experts (L, N, K), and of the probe their gates."""
    if kind == "full":
        return True
    experts, gates = arrays.get("experts"), arrays.get("gates")
    if experts is None or experts.ndim != 3 or len(experts) != len(experts_L) or experts.dtype.kind not in "iu":
        return False
    within = (experts >= 0) & (experts <= np.reshape(experts_L, (-1, 1, 1)))  # one beyond the last is none
    return bool(within.all()) and (kind != "probe" or (gates is not None and gates.shape == experts.shape))


class Block(NamedTuple):
    """Consecutive steps from `first`; rows (n, C) float32 in the run's layout; size in bytes, as it is stored."""

    id: int
    first: int
    rows: NDArray[np.float32]
    size: int = 0


class Status(NamedTuple):
    """state as Run.state; reason says why it failed or paused by itself; heartbeat_age in seconds."""

    state: str
    step: int
    reason: str
    heartbeat_age: float
    pid: int

    @property
    def quiet(self) -> int:
        """Whole seconds for which the trainer has not answered, from QUIET on; else 0. It beats once a second, paused or not,
        but not on a full disk."""
        answers = self.state not in ("training", "paused") or self.heartbeat_age <= QUIET or self.reason == FULL
        return 0 if answers else int(self.heartbeat_age)


class Batch(NamedTuple):
    """All that one transaction commits. rows (n, C) are the steps from first_step on."""

    first_step: int
    rows: NDArray[np.float32]
    evals: Sequence[tuple[int, Mapping[str, Any], str | None]] = ()  # step, metrics and SELECTIONS, text
    snapshots: Sequence[tuple[int, str, Mapping[str, NDArray[Any]]]] = ()
    applied: Sequence[tuple[int, int]] = ()
    acks: Sequence[tuple[int, int, str]] = ()
    state: str | None = None
    reason: str = ""


class Parent(NamedTuple):
    """The run that a fork began as, and the last step that both have in common."""

    run: str
    step: int


class Listed(NamedTuple):
    """A run in the list. For a damaged run, problem says what is wrong; it hides no other run.

    reason as in Status; size in bytes and growth in bytes an hour, of a run that trains, where they were asked for.
    """

    id: str
    state: str
    step: int
    description: Description | None
    created: float
    problem: str
    reason: str = ""
    size: int = 0
    growth: float = 0.0
