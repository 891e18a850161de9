"""A doctor for the training of a mixture of experts: on one batch of the user's, does its balancing work?

Each check does something to the model and looks at what that changed, and leaves the model as it was, bit for bit. Every bug that
is looked for shipped in at least one known trainer; docs/watch_check.md names them.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from moe_core.schema import first_line
from moe_core.watching.findings import CheckFinding, not_checked
from moe_core.watching.loss_checks import Micro, auxiliary, micro_batches, padding
from moe_core.watching.router_checks import biases, precision, probabilities, recomputed_forwards
from moe_core.watching.state import State
from moe_core.watching.subject import Batch, Loss, Subject


def check(
    model: nn.Module,
    batch: Batch,
    *,
    loss: Loss | None = None,
    optimizer: Optimizer | None = None,
    mask: Tensor | None = None,
    micro: Micro | None = None,
    step: Callable[[], object] | None = None,
) -> list[CheckFinding]:
    """What is wrong with how this model would train on this batch; an empty list if nothing is. It takes some 25 steps' time.

    batch: a mapping, given as model(**batch), or a tensor. loss: (model, batch) -> loss; by default the `.loss` of the output.
    mask: True for the tokens of a batch that holds no attention_mask. micro: (model, batches) -> None, the backwards of a step as
    your trainer accumulates them. step: what your trainer calls after the backward, by default optimizer.step if there is one.
    Raises what the loss raises on the batch itself. Memory: a copy of the parameters on the CPU.
    """
    state = State(model, optimizer)
    try:
        with torch.enable_grad():
            subject = Subject(model, batch, loss, state)
            findings: list[CheckFinding] = []
            for rule, look in (
                ("aux-not-applied", lambda: auxiliary(subject)),
                ("micro-batches", lambda: micro_batches(subject, micro)),
                ("recomputed", lambda: recomputed_forwards(subject)),
                ("padding", lambda: padding(subject, mask)),
                ("probabilities-for-logits", lambda: probabilities(subject)),
                ("precision", lambda: precision(subject)),
                ("bias-moves", lambda: biases(subject, step or (optimizer.step if optimizer else None))),
            ):
                findings += carried_out(rule, look)
            return findings
    finally:
        state.restore()


def carried_out(rule: str, look: Callable[[], Iterator[CheckFinding]]) -> list[CheckFinding]:
    """The findings of a check; if the check fails, one that says so. The model ran on the batch as it is, so it is not at fault."""
    try:
        return list(look())
    except Exception as error:
        return [not_checked(rule, f"{type(error).__name__}: {first_line(error)}")]
