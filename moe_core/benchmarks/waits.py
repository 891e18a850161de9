"""Where the host waits for a GPU: in a training step, and in the flush after several.

On a GPU torch warns of each wait, or forbids it (torch.cuda.set_sync_debug_mode). Without a GPU two stand-ins find what would be a
wait: tensors of the device "meta", which have no values to ask for and take the same branches of the program as a GPU's in 16
bits; and a count of the calls that ask for a value.
"""

import contextlib
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode

from moe_core.nn.models import build
from moe_core.schema import Config, Knobs
from moe_core.training.data import Batch, load
from moe_core.training.step import Update, optimizer_of, update
from moe_core.training.telemetry import Telemetry
from moe_core.training.window import Window

ASKS = {"item", "tolist", "cpu", "__bool__", "__int__", "__float__", "__index__"}  # methods that give a tensor's values
HERE = __file__


class Steps:
    """Training steps of a task with all their statistics, as the loop does them."""

    def __init__(self, config: Config, knobs: Knobs, device: torch.device) -> None:
        self.config, self.knobs, self.device = config, knobs, device
        torch.manual_seed(0)
        self.data = load(config)
        self.model = build(config, self.data.features, self.data.classes, knobs.k, knobs.noise, knobs.strategy)
        self.model.to(device)
        self.optimizer = optimizer_of(self.model, config, knobs.lr, torch.device("cuda"))  # fused on a CPU too
        self.telemetry = Telemetry(config, device)
        self.window = Window(config, {name: len(values) for name, values in self.data.labels.items()})
        self.at = 0

    def batch(self) -> Batch:
        """The next batch, on the device."""
        self.at += 1
        return self.data.batch(self.at).to(self.device)

    def update(self, batch: Batch, measure: bool = True) -> Update:
        return update(self.model, self.optimizer, batch, self.config, self.knobs, measure)

    def keep(self, done: Update, batch: Batch) -> None:
        """Take the step's statistics."""
        self.window.add(done.routings, batch.labels)
        losses = done.loss, done.task_loss, done.grad_norm
        self.telemetry.record(self.at, *losses, 0.1, done.routings, done.task_gradient_L)

    def flush_after(self, steps: int) -> None:
        """Train some steps and take their rows."""
        for _ in range(steps):
            batch = self.batch()
            self.keep(self.update(batch), batch)
        self.telemetry.take()


def place(frames: traceback.StackSummary) -> str:
    """The line of the project that waits; "" if it makes a batch, which is done on the host."""
    own = [frame for frame in frames if "moe_core" in frame.filename and frame.filename != HERE]
    if not own:
        return "elsewhere"
    path = Path(own[-1].filename)
    return "" if path.parent.name == "data" else f"{path.name}:{own[-1].lineno} {own[-1].line}"


def waits_of(act: Callable[[], object], device: torch.device) -> dict[str, int]:
    """Each place that waits for the GPU, and how often; on a CPU each that asks for a value."""
    return told_by_torch(act) if device.type == "cuda" else asked_for(act)


def told_by_torch(act: Callable[[], object]) -> dict[str, int]:
    places: Counter[str] = Counter()

    def seen(message: Any, *_: Any, **__: Any) -> None:
        if "called a synchronizing" in str(message):  # and not that the mode is a prototype
            places[place(traceback.extract_stack())] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = seen
        with waits_are("warn"):
            act()
    return dict(places)


@contextlib.contextmanager
def waits_are(told: str) -> Iterator[None]:
    """Within this, torch raises an error at each wait (told = "error") or warns of it ("warn")."""
    torch.cuda.set_sync_debug_mode(told)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def asked_for(act: Callable[[], object]) -> dict[str, int]:
    """The places that ask a tensor for its values. What runs within loss.backward() is not seen: unvalued() is for that."""
    places: Counter[str] = Counter()

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if getattr(function, "__name__", "") in ASKS and (where := place(traceback.extract_stack())):
                places[where] += 1
            return function(*args, **(kwargs or {}))

    with Watch():
        act()
    return dict(places)


def unvalued(config: Config, knobs: Knobs) -> str:
    """The first line of forward, backward or update that asks a tensor for a value, "" if none does. The tensors have no values.

    In bfloat16, since a GPU calls the experts without their counts there. torch has no autocast for such tensors, so all of the model
    is in 16 bits, and no kernel of its optimizer, which is left out.
    """
    with patch.object(torch, "autocast", lambda *_, **__: contextlib.nullcontext()), patch.object(torch, "is_autocast_enabled", lambda *_: False):  # fmt: skip
        steps = Steps(config, knobs, torch.device("cpu"))
        steps.model.bfloat16().to("meta")
        steps.optimizer.step = lambda *_: None  # type: ignore[method-assign]
        steps.device = torch.device("meta")
        try:
            steps.update(steps.batch())
        except RuntimeError as error:
            return f"{place(traceback.extract_tb(error.__traceback__))}: {error}"
    return ""
