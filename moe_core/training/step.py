"""One training step: a batch forward, the task's loss and the balancing losses, backward, and the update."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_core.nn.gating import Routing
from moe_core.nn.models import asked_by
from moe_core.nn.strategies import Step, after_update, losses
from moe_core.schema import Config, Knobs
from moe_core.training.data import Batch


class Update(NamedTuple):
    """What a step did: its losses (task_loss without the balancing), the Euclidean norm of all gradients, a Routing a
    layer, and whether loss and gradients were finite, without which no weight was changed. Tensors are on the device."""

    loss: Tensor
    task_loss: Tensor
    grad_norm: Tensor
    routings: list[Routing]
    finite: bool


def update(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, config: Config, knobs: Knobs) -> Update:
    """Train one batch, in config's precision and balanced as the knobs say."""
    model.train()
    with torch.autocast(batch.inputs.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        logits, routings = model(batch.inputs, **asked_by(config, knobs))
    task_loss = F.cross_entropy(logits.float().flatten(0, -2), batch.targets.flatten())
    sequence = batch.targets.shape[-1]
    steps = [Step(layer.gate, r, knobs, sequence) for layer, r in zip(model.moe_layers, routings, strict=True)]
    balance = sum(sum(getattr(knobs, weight) * loss for weight, loss in losses(step).items()) for step in steps)
    loss = task_loss + balance
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
    return Update(loss, task_loss, grad_norm, routings, finite)


def norm(model: nn.Module) -> Tensor:
    """Euclidean norm of all gradients, as one number on the device."""
    norms = torch._foreach_norm([p.grad for p in model.parameters() if p.grad is not None])
    return torch.linalg.vector_norm(torch.stack(norms))
