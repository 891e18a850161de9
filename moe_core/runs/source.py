"""What figures, pages, exports and the diagnosis read: a run on the disk, one in memory, one that starts, or several laid
over each other. They do not know which of these it is.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from moe_core.runs.ablation import Ablation
from moe_core.runs.measuring import Measured
from moe_core.runs.on_devices import OnDevices
from moe_core.runs.rows import Eval, KnobChange, Parent, Status
from moe_core.runs.statistics import Deal, Off
from moe_core.schema import Config, Description, KnobValues

Span = tuple[float, float] | None
Snapshot = tuple[int, dict[str, NDArray[Any]]]


class At(NamedTuple):
    """Which numbers a source is asked for. layer: from 0; step: the chosen step, None being the last; span: the first and
    last step of the visible range, None being all; bins: about how many points a line may have, None being every step."""

    layer: int = 0
    step: int | None = None
    span: Span = None
    bins: int | None = None


class Source(Protocol):
    """A run as its readers see it. Steps count from 1, layers and experts from 0."""

    @property
    def id(self) -> str: ...

    @property
    def name(self) -> str:
        """What it is called: the name that somebody gave it, else its id."""

    @property
    def description(self) -> Description: ...

    @property
    def labels(self) -> Mapping[str, Sequence[str]]:
        """The names of each label's values."""

    @property
    def parent(self) -> Parent | None:
        """The run that this one is a fork of."""

    @property
    def options(self) -> Mapping[str, Any]:
        """What a person chose on the page beside run and layer: an expert, sizes."""

    @property
    def others(self) -> "Sequence[Source]":
        """The runs that are laid over this one."""

    @property
    def started_knobs(self) -> KnobValues: ...

    @property
    def knobs(self) -> KnobValues:
        """Every knob's latest value: of its last turn, whether it took effect yet or not, or of the start."""

    def knobs_at(self, step: int) -> KnobValues:
        """The knobs in force in a step; for 0, those that the run started with."""

    def knob_changes(self) -> Sequence[KnobChange]:
        """Every turn, in order."""

    def off_spans(self) -> Sequence[Off]:
        """Which experts were switched off, and when."""

    @property
    def deals(self) -> Sequence[Deal]:
        """How many ranks trained it from which step on, and over how many its experts were dealt; empty if nobody knows."""

    def status(self) -> Status: ...

    def steps(self) -> tuple[int, int]:
        """The first and last recorded step; (0, 0) when there is none."""

    def history(
        self, stat: str, layer: int = 0, first: int | None = None, last: int | None = None, bins: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """(steps (n,), values (n,) or (n, E)) of a statistic, from step `first` to `last`, both included.

        bins: thin to about that many bins of minimum and maximum. StoreError for a statistic that this run does not have.
        """

    def evals(self, after: int = 0) -> Sequence[Eval]:
        """Evaluations whose id is beyond `after`."""

    def probe(self) -> dict[str, NDArray[Any]]:
        """The fixed probe batch as a person sees it."""

    def snapshots(self, kind: str = "probe") -> NDArray[np.int64]:
        """The steps of which there is a snapshot."""

    def snapshot(self, step: int | None = None, kind: str = "probe") -> Snapshot | None:
        """The last snapshot at or before step (of all, if None), with its own step; None if there is none."""

    def experts_at(self, step: int, kind: str) -> NDArray[Any] | None:
        """The probe's experts (L, N, K) of the snapshot taken at exactly this step; None if it is damaged or not there."""

    def ablation(self) -> Ablation | None:
        """The last result of `ablate`; None if there is none."""

    def throughput(self) -> Measured:
        """Tokens a second by batch size, as far as it was measured."""

    def on_devices(self) -> OnDevices:
        """The rows of an expert on 1, 2 and 4 devices, as far as they were measured."""


class Record(Source, Protocol):
    """A source that is read from the disk, with the other contents of its file."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the numbers depend on beside the settings: device, threads, versions, the time of creation, how data were
        read."""

    @property
    def config(self) -> Config:
        """What our trainer trains the run with. StoreError for a run that it cannot train."""

    @property
    def trainable(self) -> bool:
        """Whether this version's trainer can train the run: whether it has a config."""

    @property
    def state(self) -> str: ...

    @property
    def damage(self) -> list[str]:
        """The damage in all that was read so far, a line each."""

    def look_over(self) -> list[str]:
        """Read everything that is small, so that `damage` lists what is wrong with it."""

    def check_turns(self) -> None:
        """StoreError if the knob changes are not all what was written."""


class Beside:
    """A source with the choices of a page and the runs laid over it; all else is the source's own."""

    def __init__(self, run: Source, options: Mapping[str, Any], others: Sequence[Source] = ()) -> None:
        self.run, self.options, self.others = run, options, others

    @property
    def id(self) -> str:
        return self.run.id

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def description(self) -> Description:
        return self.run.description

    @property
    def labels(self) -> Mapping[str, Sequence[str]]:
        return self.run.labels

    @property
    def parent(self) -> Parent | None:
        return self.run.parent

    @property
    def started_knobs(self) -> KnobValues:
        return self.run.started_knobs

    @property
    def knobs(self) -> KnobValues:
        return self.run.knobs

    def knobs_at(self, step: int) -> KnobValues:
        return self.run.knobs_at(step)

    def knob_changes(self) -> Sequence[KnobChange]:
        return self.run.knob_changes()

    def off_spans(self) -> Sequence[Off]:
        return self.run.off_spans()

    @property
    def deals(self) -> Sequence[Deal]:
        return self.run.deals

    def status(self) -> Status:
        return self.run.status()

    def steps(self) -> tuple[int, int]:
        return self.run.steps()

    def history(
        self, stat: str, layer: int = 0, first: int | None = None, last: int | None = None, bins: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[Any]]:
        return self.run.history(stat, layer, first, last, bins)

    def evals(self, after: int = 0) -> Sequence[Eval]:
        return self.run.evals(after)

    def probe(self) -> dict[str, NDArray[Any]]:
        return self.run.probe()

    def snapshots(self, kind: str = "probe") -> NDArray[np.int64]:
        return self.run.snapshots(kind)

    def snapshot(self, step: int | None = None, kind: str = "probe") -> Snapshot | None:
        return self.run.snapshot(step, kind)

    def experts_at(self, step: int, kind: str) -> NDArray[Any] | None:
        return self.run.experts_at(step, kind)

    def ablation(self) -> Ablation | None:
        return self.run.ablation()

    def throughput(self) -> Measured:
        return self.run.throughput()

    def on_devices(self) -> OnDevices:
        return self.run.on_devices()
