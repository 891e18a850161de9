"""How many bytes a step sends to other ranks, and how long its rank waits for them.

Each collective is counted as the ring algorithm sends it, which torch's backends use for large tensors and no algorithm beats by
more than a factor of two. Of R ranks each sends R - 1 blocks to gather, and 2 (R - 1) / R of a tensor to add it up. An exchange is
counted as the rows that go to other ranks.
"""

import contextlib
import time
from collections.abc import Iterator

from torch import Tensor

from moe_core.parallel.alive import Alive


class Traffic:
    """Of the step so far: bytes that this rank sent, and seconds in which it waited for others or sent to them. alive: what is told of
    each exchange."""

    def __init__(self, alive: Alive | None = None) -> None:
        self.bytes = self.seconds = 0.0
        self.alive = alive

    @contextlib.contextmanager
    def waiting(self, sent: float = 0.0) -> Iterator[None]:
        """Count a collective: the bytes that it sends, and its time."""
        if self.alive:
            self.alive.come()
        began = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - began
        # Not if it failed: then this rank has to say so, which may take long, and must not count as one that hangs.
        if self.alive:
            self.alive.go_on()
        self.bytes += sent

    def take(self) -> tuple[float, float]:
        """(bytes, seconds) since the last take."""
        taken, self.bytes, self.seconds = (self.bytes, self.seconds), 0.0, 0.0
        return taken


def size_of(values: Tensor) -> int:
    """The bytes of a tensor's numbers."""
    return values.numel() * values.itemsize


def sent_to_add_up(values: Tensor, ranks: int) -> float:
    """Bytes that each of so many ranks sends to add a tensor up."""
    return 2 * (ranks - 1) / ranks * size_of(values)
