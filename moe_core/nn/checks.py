"""Checks of what a layer or a gate is called with: an impossible value is refused in a line before any work.

Numbers are compared as Python compares them: an operation on a tensor would cost more than the check, and on a GPU the host would
wait for it. The trainer's captured steps give numbers that compare so, too (training/step.py, Live).
"""

import operator
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from moe_core.schema import shortened

LOUDEST = 1e30  # of noise: beyond it a float32 logit overflows


def check_rows(x: Tensor, width: int) -> None:
    """ValueError unless x has numbers with a fraction, `width` of them in each row."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.shape[-1:] != (width,):
        given = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x must be a tensor of floating-point numbers, {width} in each row, got {given}")


def check_k(k: int, most: int, name: str = "k", of: str = "num_experts") -> int:
    """k as an int. ValueError unless it is a whole number from 1 to `most`. name, of: what the error calls k and `most`."""
    if type(k) is not int:
        k = whole_number(name, k)
    if not 1 <= k <= most:
        raise ValueError(f"{name} must be between 1 and {of}={most}, got {k}")
    return k


def check_size(name: str, size: int) -> int:
    """A width or a number of experts as an int. ValueError unless it is a whole number of at least 1."""
    if (size := whole_number(name, size)) < 1:
        raise ValueError(f"{name} must be at least 1, got {size}")
    return size


def check_noise(noise: float, name: str = "noise") -> None:
    """ValueError unless it is a number from 0 to LOUDEST."""
    if not within(noise, LOUDEST):
        raise ValueError(f"{name} must be a number from 0 to {LOUDEST:g}, got {shown(noise)}; give 0 for none")


def check_capacity(factor: float) -> None:
    """ValueError unless it is a finite number, 0 or more."""
    if not within(factor, sys.float_info.max):
        raise ValueError(
            f"capacity_factor must be a finite number, 0 or more, got {shown(factor)}; give 0 to drop nothing"
        )


def check_off(off: Sequence[int], num_experts: int) -> tuple[int, ...]:
    """The experts that are off, each once. ValueError unless they are numbers of experts."""
    if type(off) is tuple and not off:
        return off
    try:
        experts = tuple(dict.fromkeys(whole_number("an expert that is off", expert) for expert in off))
    except TypeError:
        raise ValueError(f"off must be a list of experts, counted from 0, got {shown(off)}") from None
    for expert in experts:
        if not 0 <= expert < num_experts:
            raise ValueError(f"off must name experts from 0 to {num_experts - 1}, got {expert}")
    return experts


def check_weigh(weigh: str) -> None:
    """ValueError unless it is one of the two ways to weigh that a gate knows (gating.Selection)."""
    if weigh not in ("kept", "all"):
        raise ValueError(f"weigh must be kept or all, got {shown(weigh)}")


def whole_number(name: str, value: Any) -> int:
    """The value as an int, also one of numpy's. ValueError for anything else, True included."""
    try:
        if isinstance(value, bool) or (isinstance(value, Tensor) and value.dtype == torch.bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, got {shown(value)}") from None


def within(value: float, most: float) -> bool:
    """Whether it is a number from 0 to `most`. NaN is none."""
    try:
        return bool(0 <= value <= most)
    except (TypeError, ValueError, RuntimeError):  # no number, or several in an array or a tensor
        return False


def shown(value: Any) -> str:
    """A value as an error shows it, in one line."""
    return shortened(" ".join(repr(value).split()), 60)
