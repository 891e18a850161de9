"""A training step that is captured once and replayed: at small sizes a GPU waits for the host's few thousand calls a step.

A capture fixes everything but the values in its tensors. So the batch is copied into kept tensors, and noise, the loss weights, the
learning rate and the like are read from one vector on the device (step.Live). What shapes the work (k, the strategy, experts
that are off, whether a weight is 0) captures anew. On a CPU nothing can be captured: there the same function runs again with the
same kept tensors, so that tests see what a value that was fixed by mistake would do.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from moe_core.schema import STRATEGIES, Config, Knobs
from moe_core.training.data import Batch
from moe_core.training.data.batch import moved
from moe_core.training.step import Live, Update, update

T = TypeVar("T")
# Knobs whose value a captured step reads from the device. Whether one is 0 decides what is computed at all.
LIVE = tuple(
    field.name
    for field in fields(Knobs)
    if field.name in ("noise", "noise_primary", "lr", "bias_speed") or field.name.startswith("w_")
)
UNREAD = {"speed_limit": 0.0, "autobalance": 0.0}  # knobs that no step reads
WARM_UP = 3  # steps before a capture: they allocate what is kept, as torch's notes on CUDA graphs ask
Run = Callable[[], Update]


class Backend(NamedTuple):
    """How a step is run before it is captured, and captured. capture() trains nothing; it returns what replays the step."""

    warm_up: Callable[[Run], Update]
    capture: Callable[[Run], Run]


class Graphed:
    """update() of one model, captured. Called with the batch, the knobs and `measure` of update(); returns a copy, which later steps
    leave alone.

    The optimizer must be fused, and on a GPU capturable. The first WARM_UP steps of each capture run eagerly, and so does each step
    that would wait for the device: they train like all others.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, config: Config, backend: Backend | None = None
    ) -> None:
        self.model, self.optimizer, self.config = model, optimizer, config
        device = next(model.parameters()).device
        self.backend = backend or (ON_CUDA if device.type == "cuda" else AGAIN)
        self.scalars_N = torch.zeros(len(LIVE), device=device)
        self.filled: tuple[float, ...] = ()  # the values in scalars_N
        self.structure: Any = None
        self.steps: dict[Any, Captured] = {}  # of this structure: with and without the task's gradient

    def __call__(self, batch: Batch, knobs: Knobs, measure: bool = False) -> Update:
        if not may_be_captured(self.config, knobs, batch.inputs.device):
            return update(self.model, self.optimizer, batch, self.config, knobs, measure)
        structure = structure_of(knobs), batch.inputs.shape, batch.targets.shape
        if structure != self.structure:
            self.structure, self.steps = structure, {}
        self.fill(knobs)
        if measure not in self.steps:
            self.steps[measure] = self.prepare(batch, knobs, measure)
        return self.steps[measure](batch)

    def fill(self, knobs: Knobs) -> None:
        """Put the knobs' values on the device, if one has changed."""
        values = tuple(float(getattr(knobs, name)) for name in LIVE)
        if values != self.filled:
            self.scalars_N.copy_(moved(torch.tensor(values), self.scalars_N.device))
            self.filled = values

    def prepare(self, batch: Batch, knobs: Knobs, measure: bool) -> "Captured":
        """A step of this structure, not captured yet."""
        live = {name: Live(getattr(knobs, name), self.scalars_N[at]) for at, name in enumerate(LIVE)}
        kept, read = Batch(batch.inputs.clone(), batch.targets.clone(), {}), replace(knobs, **live)
        return Captured(
            kept, lambda: update(self.model, self.optimizer, kept, self.config, read, measure), self.backend
        )


def updater(
    model: nn.Module, optimizer: torch.optim.Optimizer, config: Config, device: torch.device
) -> Callable[[Batch, Knobs, bool], Update]:
    """What trains a batch as config.launch says: (batch, knobs, measure) as update() has them."""
    if config.launch == "graph" and device.type == "cuda":
        return Graphed(model, optimizer, config)
    return lambda batch, knobs, measure: update(model, optimizer, batch, config, knobs, measure)


class Captured:
    """One step over kept tensors: run a few times, then captured, then replayed."""

    def __init__(self, kept: Batch, run: Run, backend: Backend) -> None:
        self.kept, self.run, self.backend = kept, run, backend
        self.left, self.replay = WARM_UP, None

    def __call__(self, batch: Batch) -> Update:
        self.kept.inputs.copy_(batch.inputs, non_blocking=True)
        self.kept.targets.copy_(batch.targets, non_blocking=True)
        if self.left:
            self.left -= 1
            return copied(self.backend.warm_up(self.run))
        self.replay = self.replay or self.backend.capture(self.run)
        return copied(self.replay())


def structure_of(knobs: Knobs) -> Knobs:
    """The knobs' values that a capture fixes; of those that it reads from the device, only whether they are 0."""
    return replace(knobs, **{name: float(bool(getattr(knobs, name))) for name in LIVE}, **UNREAD)


def may_be_captured(config: Config, knobs: Knobs, device: torch.device) -> bool:
    """Whether a step waits for the device nowhere, as a capture must not. On a GPU, experts in 32 bits are called one by one
    with their counts (nn/experts.py), and where tokens have different numbers of experts the host asks for the most."""
    in_16_bits = config.precision == "bfloat16" and config.d_model % 8 == config.d_hidden % 8 == 0
    return device.type != "cuda" or (in_16_bits and not STRATEGIES[knobs.strategy].whole)


def copied(of: T) -> T:
    """The same with copies of its tensors, which have no gradient."""
    if isinstance(of, Tensor):
        return of.detach().clone()
    if isinstance(of, list):
        return [copied(one) for one in of]
    return type(of)(*map(copied, of)) if isinstance(of, tuple) else of


def on_a_side_stream(run: Run) -> Update:
    """As a capture will run it: on a stream of its own."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        done = run()
    torch.cuda.current_stream().wait_stream(stream)
    return done


def cuda_graph(run: Run) -> Run:
    """Capture into a CUDA graph. Not tried on a GPU yet.

    Noise: torch's generator of the device takes part in each capture. A replay takes its seed and offset from the generator as
    it is then and moves the offset on by as much as the step draws, so that each replay has new noise and the state that a
    checkpoint keeps goes on. Whether that is the noise, bit by bit, which an eager step would draw is to be measured.
    Autocast begins and ends within the step, so none of its cached casts outlives a capture.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        done = run()

    def replay() -> Update:
        graph.replay()
        return done

    return replay


ON_CUDA = Backend(on_a_side_stream, cuda_graph)
AGAIN = Backend(lambda run: run(), lambda run: run)
