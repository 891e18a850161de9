"""One training step: a batch forward, the task's loss and the balancing losses, backward, and the update."""

from inspect import unwrap
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_core.nn.gating import Routing
from moe_core.nn.models import routing_options
from moe_core.nn.strategies import Step, after_update, losses
from moe_core.schema import Config, Knobs
from moe_core.training.data import Batch


class Adam(torch.optim.Adam):
    """torch's Adam without its preparations for torch.compile, which nothing here uses: its methods import torch._dynamo,
    and that takes about as long as importing torch itself. Undressed of those wrappers they compute the same."""

    add_param_group, zero_grad = unwrap(torch.optim.Adam.add_param_group), unwrap(torch.optim.Adam.zero_grad)
    state_dict, load_state_dict = unwrap(torch.optim.Adam.state_dict), unwrap(torch.optim.Adam.load_state_dict)
    step = torch.no_grad()(unwrap(torch.optim.Adam.step))


class Update(NamedTuple):
    """What a step did: its losses (task_loss without the balancing), the Euclidean norm of all gradients, a Routing a
    layer, whether loss and gradients were finite (if not, no weight was changed), and the task's gradient on each
    layer's gate (L,), None where it was not measured. Tensors are on the device."""

    loss: Tensor
    task_loss: Tensor
    grad_norm: Tensor
    routings: list[Routing]
    finite: bool
    task_gradient_L: Tensor | None = None


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    config: Config,
    knobs: Knobs,
    measure: bool = False,
) -> Update:
    """Train one batch, in config's precision and balanced as the knobs say.

    measure: measure the task's gradient on the gates too, by one more backward pass, which changes nothing.
    """
    model.train()
    with torch.autocast(batch.inputs.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        logits, routings = model(batch.inputs, **routing_options(config, knobs))
    task_loss = F.cross_entropy(logits.float().flatten(0, -2), batch.targets.flatten())
    sequence = batch.targets.shape[-1]
    steps = [Step(layer.gate, r, knobs, sequence) for layer, r in zip(model.moe_layers, routings, strict=True)]
    balance = sum(sum(getattr(knobs, weight) * loss for weight, loss in losses(step).items()) for step in steps)
    loss = task_loss + balance
    task_gradient_L = task_gradient(model, task_loss) if measure else None
    optimizer.zero_grad()
    loss.backward()
    grad_norm = norm(model)
    finite = bool(torch.isfinite(loss) & torch.isfinite(grad_norm))
    if finite:
        for group in optimizer.param_groups:
            group["lr"] = knobs.lr
        optimizer.step()
        for step in steps:
            after_update(step)
    return Update(loss, task_loss, grad_norm, routings, finite, task_gradient_L)


def task_gradient(model: nn.Module, task_loss: Tensor) -> Tensor:
    """(L,) norm of the gradient of the task's loss alone on each layer's W_g; 0 where it does not reach the gate.

    Of two levels the smaller norm: a level that gets nothing learns nothing. The graph stays for the step's own backward.
    """
    levels = [[level.w_gate for level in (layer.gate, getattr(layer.gate, "primary", None)) if level] for layer in model.moe_layers]  # fmt: skip
    weights = [weight for layer in levels for weight in layer]
    gradients = torch.autograd.grad(task_loss, weights, retain_graph=True, allow_unused=True)
    norms = [task_loss.new_zeros(()) if g is None else torch.linalg.vector_norm(g) for g in gradients]
    return torch.stack(norms).view(len(levels), -1).amin(1)


def norm(model: nn.Module) -> Tensor:
    """Euclidean norm of all gradients, as one number on the device."""
    norms = torch._foreach_norm([p.grad for p in model.parameters() if p.grad is not None])
    return torch.linalg.vector_norm(torch.stack(norms))
