"""Keeps everything that a model holds, to put it back bit for bit, so that a check may do with the model what it needs."""

import random
from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

# Objects whose class ends in one of these hold settings; any other object of the user's is left alone.
SETTINGS = ("Config", "Args", "Namespace")


class State:
    """What a model (and an optimizer) held when this was made.

    Every attribute of every module and config is kept, hooks and modes among them; of each tensor a copy, of parameters on the
    CPU. Gradients are not copied: the tensors themselves are put back, and until then nothing adds to them.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer | None = None) -> None:
        self.arrays: list[tuple[Any, Any]] = []
        self.containers: list[tuple[Any, Any]] = []
        self.tensors: list[tuple[Tensor, Tensor]] = []
        self.parameters: list[tuple[Tensor, Tensor]] = []
        self.gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
        self.random = random_state()
        self._seen: set[int] = set()
        self._keep(model)
        self._keep(optimizer)

    def _keep(self, value: Any) -> None:
        if id(value) in self._seen:
            return
        if isinstance(value, Tensor):
            self._seen.add(id(value))
            if isinstance(value, nn.Parameter):
                self.parameters.append((value, value.detach().to("cpu", copy=True)))
            else:
                self.tensors.append((value, value.detach().clone()))
        elif isinstance(value, tuple):
            for one in value:
                self._keep(one)
        elif isinstance(value, np.ndarray):
            self._seen.add(id(value))
            self.arrays.append((value, value.copy()))
        elif isinstance(value, dict | list | set | deque):
            self._seen.add(id(value))
            self.containers.append((value, value.copy()))
            inside: Iterable[Any] = value.values() if isinstance(value, dict) else value
            for one in inside:
                self._keep(one)
        elif isinstance(value, nn.Module | Optimizer) or is_settings(value):
            self._keep(vars(value))

    def rewind(self) -> None:
        """Put back everything but parameters, gradients and random numbers; forwards and backwards do not change parameters."""
        for container, kept in self.containers:
            if isinstance(container, list):
                container[:] = kept
            else:
                container.clear()
                container.extend(kept) if isinstance(container, deque) else container.update(kept)
        for array, kept in self.arrays:
            array[...] = kept
        put_back(self.tensors)

    def restore(self) -> None:
        """Put back everything."""
        self.rewind()
        put_back(self.parameters)
        for parameter, gradient in self.gradients:
            parameter.grad = gradient
        set_random_state(self.random)


def is_settings(value: Any) -> bool:
    """Whether an object is a config."""
    return type(value).__name__.endswith(SETTINGS) and hasattr(value, "__dict__")


@torch.no_grad()
def put_back(tensors: list[tuple[Tensor, Tensor]]) -> None:
    """Copy what was kept into each tensor that differs from it. A tensor with NaN differs from itself, so it is copied too."""
    for tensor, kept in tensors:
        if not torch.equal(tensor.to(kept.device), kept):
            tensor.copy_(kept)


def random_state() -> tuple[Any, ...]:
    """The states of the random number generators of torch, of each GPU, of Python and of NumPy."""
    started = torch.cuda.is_initialized()
    of_gpus = torch.cuda.get_rng_state_all() if started else None
    return torch.get_rng_state(), of_gpus, random.getstate(), np.random.get_state()


def set_random_state(state: tuple[Any, ...]) -> None:
    """The opposite of random_state()."""
    of_torch, of_gpus, of_python, of_numpy = state
    torch.set_rng_state(of_torch)
    if of_gpus is not None:
        torch.cuda.set_rng_state_all(of_gpus)
    random.setstate(of_python)
    np.random.set_state(of_numpy)
