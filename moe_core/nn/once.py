"""For functions whose gradient is written out by hand: their gradients cannot be differentiated again, and say so."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch


def only_once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward that refuses create_graph=True: NotImplementedError, which is a RuntimeError as torch's own are.

    torch's once_differentiable lets a second derivative pass as if it were 0, so that a sum with other terms is silently partial:
    where the gradient that comes in is a constant (y.sum()), and where the graph leads to an input on another way too, since torch
    then never calls what raises its error.
    """

    @wraps(backward)
    def refusing(ctx: Any, *gradients: Any) -> Any:
        if torch.is_grad_enabled():  # within a backward, only under create_graph=True
            raise NotImplementedError(
                "the gate's and the experts' gradients cannot be differentiated again; leave out create_graph=True, or compute "
                "the experts by moe_core.nn.experts.reference_mixture"
            )
        return backward(ctx, *gradients)

    return refusing
