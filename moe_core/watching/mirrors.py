"""The main scalars of a watched run, shown in TensorBoard, Weights & Biases or Trackio too.

A thread of its own sends them, which neither the training nor the record waits for: a service that is slow gets fewer points, and
one that fails is logged once and dropped.
"""

import contextlib
import importlib
import logging
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from moe_core.nn.checks import shown
from moe_core.runs import pick
from moe_core.runs.statistics import Off, measured_by
from moe_core.schema import Column, Description, first_line

STATS = ("cv_counts", "max_vio", "dead_experts", "router_margin", "confidence")
OURS = "moescope"  # what all names begin with, and the project of a run that is begun for it
WAITING = 100  # points that may wait for a slow service
LAST = 10.0  # seconds for which the end of a run waits for the last points

log = logging.getLogger("moescope")


class Mirror(Protocol):
    """A service that takes scalars. Made, called and closed by the mirrors' own thread."""

    def __init__(self, module: Any, folder: Path, description: Description) -> None: ...

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Writes event files in the run's own folder, so TensorBoard shows all runs of the folder that they are in."""

    def __init__(self, module: Any, folder: Path, description: Description) -> None:
        self.writer = module.SummaryWriter(str(folder / "tensorboard"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """Logs into the run that the training has begun, else into one of its own. A run of the training counts its steps itself: our
    values wait for the row that the training logs next, so that we add no step to it."""

    def __init__(self, module: Any, folder: Path, description: Description) -> None:
        self.own = module.run is None
        self.run = module.run
        if self.own:
            self.run = module.init(project=OURS, name=folder.name, config=dict(description.settings))
        self.run.define_metric(f"{OURS}/step")
        self.run.define_metric(f"{OURS}/*", step_metric=f"{OURS}/step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log({**values, f"{OURS}/step": step}, commit=self.own)

    def close(self) -> None:
        if self.own:
            self.run.finish()


class Trackio:
    """Logs into a run of its own."""

    def __init__(self, module: Any, folder: Path, description: Description) -> None:
        self.run = module.init(project=OURS, name=folder.name, config=dict(description.settings), embed=False)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(metrics=dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


# By the name for also=: the module that it needs, and the class.
MIRRORS: dict[str, tuple[str, type[Mirror]]] = {
    "tensorboard": ("torch.utils.tensorboard", TensorBoard),
    "wandb": ("wandb", Wandb),
    "trackio": ("trackio", Trackio),
}


class Mirrors:
    """also: one of MIRRORS, or several. ValueError for another name; ImportError, which says what to install, for one whose
    package is not there."""

    def __init__(self, also: str | Sequence[str]) -> None:
        if not isinstance(also, Sequence):
            raise ValueError(f"also takes {', '.join(MIRRORS)}, or a list of them, got {shown(also)}")
        self.modules: dict[str, Any] = {}
        for name in [also] if isinstance(also, str) else also:
            if name not in MIRRORS:
                raise ValueError(f"also takes {', '.join(MIRRORS)}, got {name!r}")
            try:
                self.modules[name] = importlib.import_module(MIRRORS[name][0])
            except ImportError:
                raise ImportError(f"also={name!r} needs {name}: pip install {name}", name=name) from None
        self.queue: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(WAITING)
        self.thread: threading.Thread | None = None
        self.sending = True  # until a point could not be made

    def begin(self, folder: Path, description: Description, columns: Sequence[Column]) -> None:
        """The run begins."""
        self.description, self.columns = description, columns
        self.thread = threading.Thread(target=self._work, args=(folder,), name="mirrors", daemon=True)
        self.thread.start()

    def send(self, first: int, rows_nC: NDArray[np.float32], off: Sequence[Off]) -> None:
        """Send the last of these rows, of which the first is step `first`. Nothing in here may stop the thread that calls it, which
        writes the record."""
        if self.thread is None or not self.sending or not len(rows_nC):
            return
        step = first + len(rows_nC) - 1
        try:
            self.queue.put_nowait((step, scalars_of(self.description, self.columns, rows_nC[-1:], step, off)))
        except queue.Full:
            pass  # this point is left out
        except Exception as error:
            self.sending = False
            log.warning("%s get nothing more of this run: %s", ", ".join(self.modules), first_line(error))

    def close(self) -> None:
        """Send what waits, for LAST seconds at most."""
        if self.thread is not None:
            until = time.monotonic() + LAST
            with contextlib.suppress(queue.Full):
                self.queue.put(None, timeout=LAST)
            self.thread.join(max(0.0, until - time.monotonic()))

    def _work(self, folder: Path) -> None:
        mirrors: dict[str, Mirror] = {}
        for name, module in self.modules.items():
            with self._dropped_if_it_fails(name, mirrors):
                mirrors[name] = MIRRORS[name][1](module, folder, self.description)
        while (point := self.queue.get()) is not None:
            for name, mirror in list(mirrors.items()):
                with self._dropped_if_it_fails(name, mirrors):
                    mirror.log(*point)
        for name, mirror in list(mirrors.items()):
            with self._dropped_if_it_fails(name, mirrors):
                mirror.close()

    @contextlib.contextmanager
    def _dropped_if_it_fails(self, name: str, mirrors: dict[str, Mirror]) -> Any:
        """If what is done in here fails, log it and drop the mirror."""
        try:
            yield
        except Exception as error:
            mirrors.pop(name, None)
            log.warning("%s gets nothing more of this run: %s", name, first_line(error))


def scalars_of(
    description: Description, columns: Sequence[Column], row_1C: NDArray[np.float32], step: int, off: Sequence[Off]
) -> dict[str, float]:
    """The measured scalars of one step, by name: the loss, and of each of STATS the value of each layer and the mean over them."""
    values = {f"{OURS}/loss": float(pick(columns, row_1C, "loss", 0)[0])} if "loss" in description.measures else {}
    for stat in STATS:
        if not measured_by(description, stat):
            continue
        of_layers = {
            layer.name: float(pick(columns, row_1C, stat, number, np.array([step]), off)[0])
            for number, layer in enumerate(description.layers)
        }
        values |= {f"{OURS}/{stat}/{name}": value for name, value in of_layers.items()}
        values[f"{OURS}/{stat}"] = float(np.mean(list(of_layers.values())))
    return {name: value for name, value in values.items() if np.isfinite(value)}
