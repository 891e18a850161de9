"""One training step: a batch forward, the task's loss and the balancing losses, backward, and the update.

On a CUDA GPU the host waits for nothing here: whether loss and gradient are finite, and so whether the update is left out, is
decided on the device.
"""

import time
from collections.abc import Mapping, Sequence
from inspect import unwrap
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_core.nn.gating import Routing
from moe_core.nn.models import routing_options
from moe_core.nn.strategies import Step, after_update, losses
from moe_core.schema import Config, Knobs, value_text
from moe_core.training.data import Batch


class Adam(torch.optim.Adam):
    """torch's Adam without its preparations for torch.compile, which nothing here uses: its methods import torch._dynamo,
    and that takes about as long as importing torch itself. Undressed of those wrappers they compute the same."""

    add_param_group, zero_grad = unwrap(torch.optim.Adam.add_param_group), unwrap(torch.optim.Adam.zero_grad)
    state_dict, load_state_dict = unwrap(torch.optim.Adam.state_dict), unwrap(torch.optim.Adam.load_state_dict)
    step = torch.no_grad()(unwrap(torch.optim.Adam.step))


class Live(float):
    """A number that is a float where the program compares it, and a tensor () on the device in each operation with tensors, so that a
    captured step follows its value. Arithmetic of Python's own (2 * live) gives a plain float, which follows nothing."""

    tensor: Tensor

    def __new__(cls, value: float, tensor: Tensor) -> Self:
        live = super().__new__(cls, value)
        live.tensor = tensor
        return live

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """torch's way to let other classes take part in its operations."""
        named = {name: as_tensor(value) for name, value in (kwargs or {}).items()}
        return function(*map(as_tensor, args), **named)


def as_tensor(value: Any) -> Any:
    """The tensor of a Live, anything else as it is."""
    return value.tensor if isinstance(value, Live) else value


class Update(NamedTuple):
    """What a step did: its losses (task_loss without the balancing), the Euclidean norm of all gradients, a Routing a
    layer, whether loss and gradients were finite (if not, no weight was changed), the task's gradient on each layer's
    gate (L,), None where it was not measured, and what several ranks measure beside that. Tensors are on the device: to ask
    whether `finite` is true waits for it."""

    loss: Tensor
    task_loss: Tensor
    grad_norm: Tensor
    routings: list[Routing]
    finite: Tensor
    task_gradient_L: Tensor | None = None
    between_ranks: Mapping[str, Tensor] = {}


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    config: Config,
    knobs: Knobs,
    measure: bool = False,
    ranks: Any = None,
) -> Update:
    """Train one batch, in config's precision and balanced as the knobs say.

    measure: measure the task's gradient on the gates too, by one more backward pass, which changes nothing. ranks: those
    that train this batch together (parallel/ranks.py), None if there is one; all of this is of the whole batch then too.
    """
    model.train()
    began, own, many = time.perf_counter(), batch, 1
    if ranks:
        own, many = ranks.own_part(batch), ranks.size
    with torch.autocast(batch.inputs.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        logits, routings = model(own.inputs, **routing_options(config, knobs))
    task_loss = F.cross_entropy(logits.float().flatten(0, -2), own.targets.flatten()) / many
    sequence, micro = batch.targets.shape[-1], own.targets.numel() if ranks else None
    steps = [Step(layer.gate, r, knobs, sequence, micro) for layer, r in zip(model.moe_layers, routings, strict=True)]
    balance = sum(sum(getattr(knobs, weight) * loss for weight, loss in losses(step).items()) for step in steps)
    loss = task_loss + balance
    task_gradient_L = task_gradient(model, task_loss, ranks) if measure else None
    optimizer.zero_grad()
    loss.backward()
    if ranks:
        grad_norm, task_loss, between = ranks.add_up_step(model, task_loss, began)
        loss = task_loss + balance
    else:
        grad_norm, between = norm(model), {}
    finite = torch.isfinite(loss) & torch.isfinite(grad_norm)
    if optimizer.param_groups[0]["fused"]:
        apply_on_device(optimizer, finite, knobs.lr, steps)
    elif finite:
        apply(optimizer, knobs.lr, steps)
    return Update(loss, task_loss, grad_norm, routings, finite, task_gradient_L, between)


def optimizer_of(model: nn.Module, config: Config, lr: float, device: torch.device) -> Adam:
    """Adam over the model's parameters: torch's fused one where the device decides whether to update, else its plain one."""
    fused = device.type == "cuda" and config.launch != "waiting"
    own = {"fused": True, "capturable": config.launch == "graph"} if fused else {}
    return Adam(model.parameters(), lr=lr, **own)


def apply(optimizer: torch.optim.Optimizer, lr: float, steps: Sequence[Step]) -> None:
    """Update the weights, and each strategy's own state."""
    for group in optimizer.param_groups:
        group["lr"] = as_tensor(lr)
    optimizer.step()
    for step in steps:
        after_update(step)


def left_out(step: int, what: str, lr: float) -> str:
    """Why the training pauses after a step without an update. what: what of it was not finite, its loss or its gradient."""
    return (
        f"the {what} of step {step} is not finite, so its update was left out; "
        f"turn the learning rate down (now {value_text(lr)}) and resume"
    )


@torch.no_grad()
def apply_on_device(optimizer: torch.optim.Optimizer, finite: Tensor, lr: float, steps: Sequence[Step]) -> None:
    """apply() if finite is true; if not, everything stays as it is, bit by bit. The host does not learn which it was.

    By found_inf torch.amp.GradScaler makes a fused optimizer leave out an update: weights, moments and the count of steps stay.
    """
    optimizer.found_inf = (~finite).float()
    own = [buffer for step in steps for buffer in step.gate.buffers()]
    before = [buffer.clone() for buffer in own]
    apply(optimizer, lr, steps)
    for buffer, old in zip(own, before, strict=True):
        buffer.copy_(torch.where(finite, buffer, old))


def task_gradient(model: nn.Module, task_loss: Tensor, ranks: Any = None) -> Tensor:
    """(L,) norm of the gradient of the task's loss alone on each layer's W_g; 0 where it does not reach the gate.

    Of two levels the smaller norm: a level that gets nothing learns nothing. The graph stays for the step's own backward.
    """
    levels = [[level.w_gate for level in (layer.gate, getattr(layer.gate, "primary", None)) if level] for layer in model.moe_layers]  # fmt: skip
    weights = [weight for layer in levels for weight in layer]
    gradients = torch.autograd.grad(task_loss, weights, retain_graph=True, allow_unused=True)
    reached = [g for g in gradients if g is not None]
    whole = iter(ranks.add_up_all(reached) if ranks else reached)
    norms = [task_loss.new_zeros(()) if g is None else torch.linalg.vector_norm(next(whole)) for g in gradients]
    return torch.stack(norms).view(len(levels), -1).amin(1)


def norm(model: nn.Module) -> Tensor:
    """Euclidean norm of all gradients, as one number on the device."""
    norms = torch._foreach_norm([p.grad for p in model.parameters() if p.grad is not None])
    return torch.linalg.vector_norm(torch.stack(norms))
