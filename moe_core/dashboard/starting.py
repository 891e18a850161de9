"""A run between the click that starts it and its first step.

Its trainer takes a second or two to load torch before there is a record. Until then the page shows the settings of the start
and empty charts, so that nothing moves when the first numbers come.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from moe_core.dashboard.gate import deed
from moe_core.runs import Measured, Parent, Status, pick, runs_folder
from moe_core.runs import start as start_trainer
from moe_core.runs.measuring import NOTHING_MEASURED
from moe_core.runs.on_devices import OnDevices, nothing_on_devices
from moe_core.runs.ranks import ALONE, RankCounts, facts_of_ranks
from moe_core.runs.source import Source
from moe_core.runs.statistics import Deal, off_spans
from moe_core.schema import Config, Knobs, KnobValues, columns_of, describe, stats_of_ranks

# An empty probe for each kind of figure that shows one. The points have an extent, which the plane's axes need.
NO_TOKENS: dict[str, dict[str, np.ndarray]] = {
    "bytes": {"tokens": np.empty(0, np.uint8)},
    "images": {"images": np.empty((0, 8, 8), np.uint8)},
    "points": {"points": np.empty((0, 2), np.float32), "extent": np.array([-1.1, 1.1, -1.1, 1.1])},
}

_settings: dict[str, tuple[Config, Knobs, RankCounts]] = {}


@deed
def start(config: Config, knobs: Knobs, who: str, ranks: RankCounts = ALONE) -> str:
    """Start a trainer, or ranks, and return the run's id. Its settings are remembered, so that the page can show them at once."""
    run = start_trainer(config, knobs, who=who, ranks=ranks)
    _settings[run] = config, knobs, ranks
    return run


def is_starting(run: str) -> bool:
    """Whether a run's folder exists and its record does not yet."""
    folder = runs_folder() / run
    return folder.is_dir() and not (folder / "run.db").exists()


def unstarted(run: str) -> "Unstarted | None":
    """A stand-in for the feed of a run that is starting; None if this dashboard did not start it."""
    return Unstarted(run, *_settings[run]) if run in _settings and is_starting(run) else None


class Unstarted:
    """The read methods of a Feed, for a run that has recorded nothing yet."""

    version, last, behind, problem, waiting = -1, 0, 0.0, "", False
    labels: Mapping[str, Sequence[str]] = {}
    options: Mapping[str, Any] = {}
    others: Sequence[Source] = ()
    parent: Parent | None = None
    sessions: Sequence[dict[str, Any]] = ()

    def __init__(self, run: str, config: Config, knobs: Knobs, ranks: RankCounts = ALONE) -> None:
        self.id = self.name = run
        self.description = describe(config, knobs, measures=stats_of_ranks(ranks.size))
        self.knobs: KnobValues = knobs
        self.started_knobs: KnobValues = knobs
        self.path: Path = (runs_folder() / run).absolute()
        self.run = SimpleNamespace(
            path=self.path, facts=facts_of_ranks(ranks), trainable=False
        )  # nothing is measured of it yet
        self.deals = () if ranks == ALONE else (Deal(1, ranks.size // ranks.expert, ranks.expert),)

    def refresh(self, now: bool = False) -> None: ...

    def status(self) -> Status:
        return Status("starting", 0, "", 0.0, 0)

    def quiet(self) -> int:
        return 0

    def steps(self) -> tuple[int, int]:
        return 0, 0

    def history(self, stat: str, layer: int = 0, *_: Any, **__: Any) -> tuple[np.ndarray, np.ndarray]:
        columns = columns_of(self.description.experts, self.description.measures)
        none = np.empty((0, columns[-1].start + columns[-1].width), np.float32)
        return np.empty(0, np.int64), pick(columns, none, stat, layer)

    def evals(self, after: int = 0) -> list[Any]:
        return []

    def off_spans(self) -> tuple[Any, ...]:
        return off_spans(self.description.experts, self.knobs, (), lambda *_: np.empty(0))

    def knob_changes(self) -> list[Any]:
        return []

    def knobs_at(self, step: int) -> KnobValues:
        return self.knobs

    def findings(self, layer: int) -> list[Any]:
        return []

    def ablation(self) -> None: ...

    def probe(self) -> dict[str, np.ndarray]:
        """No token."""
        return NO_TOKENS[self.description.probe]

    def snapshot(self, step: int | None = None, kind: str = "probe") -> None: ...

    def experts_at(self, step: int, kind: str) -> None: ...

    def snapshots(self, kind: str = "probe") -> np.ndarray:
        return np.empty(0, np.int64)

    def throughput(self) -> Measured:
        return NOTHING_MEASURED

    def on_devices(self) -> OnDevices:
        return nothing_on_devices(len(self.description.layers))
