"""What torch.compile leaves as it is."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch


def never_compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward that runs in a compiled model as it does in any other.

    The compiler cannot trace ours: their gradients are written out by hand, and how many rows a product takes depends on what the tokens
    chose. torch.compiler.disable alone would be enough, but it imports torch._dynamo at once, which doubles the time of a start.
    """

    @wraps(forward)
    def as_it_is(*given: Any, **named: Any) -> Any:
        return (disabled if torch.compiler.is_compiling() else forward)(*given, **named)

    @torch._disable_dynamo
    def disabled(*given: Any, **named: Any) -> Any:
        return forward(*given, **named)

    return as_it_is
