"""Rows of features with a class, of which a seeded fifth is held out.

Shapes: N rows, F features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from moe_core.schema import PROBE_TOKENS, Config
from moe_core.training.data.batch import EVAL_TOKENS, Batch, generator_for


@dataclass(frozen=True)
class Points:
    """Rows of features with a class: the digits, a person's own table, or points of the plane."""

    config: Config
    names: list[str]
    train_NF: Tensor
    train_N: Tensor
    held_NF: Tensor
    held_N: Tensor
    shown: dict[str, np.ndarray]  # the probe as a person sees it, beside its class
    features_named: tuple[str, ...] = ()  # the names of a table's columns
    taken: tuple[str, ...] = ()  # how a person's own file was read, in sentences

    @property
    def task(self) -> str:
        return self.config.task

    @property
    def features(self) -> int:
        return self.train_NF.shape[1]

    @property
    def classes(self) -> int:
        return len(self.names)

    @property
    def labels(self) -> dict[str, list[str]]:
        return {"class": self.names}

    def batch(self, step: int) -> Batch:
        """config.tokens rows, drawn with replacement."""
        generator = generator_for(self.config.seed, "batch", step)
        chosen = torch.randint(len(self.train_N), (self.config.tokens,), generator=generator)
        return _rows(self.train_NF[chosen], self.train_N[chosen])

    def held_out(self) -> list[Batch]:
        size = EVAL_TOKENS
        return [_rows(self.held_NF[i : i + size], self.held_N[i : i + size]) for i in range(0, len(self.held_N), size)]

    def probe(self) -> tuple[Batch, dict[str, np.ndarray]]:
        batch = _rows(self.held_NF[:PROBE_TOKENS], self.held_N[:PROBE_TOKENS])
        return batch, {**self.shown, "class": batch.targets.numpy().astype(np.uint8)}


def _rows(x_NF: Tensor, y_N: Tensor) -> Batch:
    return Batch(x_NF, y_N, {"class": y_N})


def points_of(
    config: Config,
    names: list[str],
    x_NF: np.ndarray,
    y_N: np.ndarray,
    train_n: np.ndarray,
    held_n: np.ndarray,
    shown: dict[str, np.ndarray],
    features_named: Sequence[str] = (),
    taken: Sequence[str] = (),
) -> Points:
    """Points of these rows, whose classes are places in `names`. train_n, held_n: the rows of each split."""
    x, y = torch.from_numpy(np.ascontiguousarray(x_NF, np.float32)), torch.from_numpy(np.asarray(y_N, np.int64))
    train, held = torch.from_numpy(train_n), torch.from_numpy(held_n)
    return Points(config, names, x[train], y[train], x[held], y[held], shown, tuple(features_named), tuple(taken))
