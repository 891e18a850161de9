"""What every task gives to the training: batches, drawn from a stream of their own for each step.

Shapes: B sequences, S bytes each, N points or images, F features.
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

HELD_OUT = 0.1  # of a text, its end; of points and images, a seeded choice of twice that
EVAL_TOKENS = 4096


class Batch(NamedTuple):
    """inputs (B, S) bytes or (N, F) floats; targets (B, S) or (N,); labels: name -> one number a token, flat."""

    inputs: Tensor
    targets: Tensor
    labels: dict[str, Tensor]

    def to(self, device: torch.device) -> "Batch":
        labels = {name: moved(x, device) for name, x in self.labels.items()}
        return Batch(moved(self.inputs, device), moved(self.targets, device), labels)


def moved(x: Tensor, device: torch.device) -> Tensor:
    """x on the device. From pinned memory, or the host would wait until the GPU has copied it."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def generator_for(seed: int, purpose: str, step: int = 0) -> torch.Generator:
    """A stream of its own for each seed, purpose and step. Hashed: near seeds must not give near streams."""
    digest = hashlib.blake2b(f"{seed}:{purpose}:{step}".encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest))


def sklearn_data() -> Path:
    """Where scikit-learn keeps its data. Located without importing scikit-learn, which costs a second."""
    spec = find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("the built-in text and digits are scikit-learn's data: pip install 'moescope[train]'")
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data"
