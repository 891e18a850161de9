"""A place in a model where a layer's choice of experts is read."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

# (module, args, kwargs, output) of a call, to ids (N, K) and weights (N, K) or None; None where there is nothing to count.
Reader = Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any], Any], tuple[Tensor, Tensor | None] | None]


class Tap(NamedTuple):
    """Where one layer's choice is read. name: the path of the module in the model; experts: how many it has; early: whether it is
    read before the module's forward, from its arguments, and not after it."""

    name: str
    module: nn.Module
    experts: int
    read: Reader
    early: bool


def parent_of(name: str) -> str:
    """The path of the module that holds this one."""
    return name.rpartition(".")[0]
