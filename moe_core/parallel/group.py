"""What any ranks do together, whoever trains them: watch (watching/ranks.py) and our own trainer."""

from typing import Any

import torch
from torch import Tensor, distributed


def add_up(values: Tensor, group: distributed.ProcessGroup | None = None) -> Tensor:
    """The sum over the ranks of a group, which all must ask for: a tensor of its own."""
    whole = values.detach().clone()
    distributed.all_reduce(whole, group=group)
    return whole


def let_go(group: distributed.ProcessGroup | None = None) -> None:
    """End a process group, or all of them, once nothing is exchanged any more, and wait for its threads. Whoever has references to it drops them
    too: if a thread still had the last exchange as Python ends, torch would abort the process (pytorch issue 190489)."""
    distributed.destroy_process_group(group)


def from_first(value: Any, group: distributed.ProcessGroup | None = None) -> Any:
    """What rank 0 hands on to all; the value of the others counts for nothing."""
    message = [value]
    distributed.broadcast_object_list(message, src=0, group=group, device=torch.device("cpu"))
    return message[0]
