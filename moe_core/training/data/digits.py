"""The digits task: scikit-learn's small images, or the person's own rows or images with a class (own.py).

Shapes: N rows, F features.
"""

import gzip

import numpy as np
import torch

from moe_core.schema import PROBE_TOKENS, Config
from moe_core.training.data.batch import HELD_OUT, generator_for, sklearn_data
from moe_core.training.data.images import small_greys
from moe_core.training.data.own import own
from moe_core.training.data.points import Points, points_of


def digits(config: Config) -> Points:
    """The digits, each pixel scaled by the mean and spread of the rows that are trained on; or config.data."""
    if config.data:
        return own(config)
    x_NF, y_N = _sklearn_digits()
    order = torch.randperm(len(x_NF), generator=generator_for(config.seed, "split")).numpy()
    held, train = np.split(order, [int(2 * HELD_OUT * len(order))])
    mean_F, std_F = x_NF[train].mean(0), x_NF[train].std(0)
    scaled_NF = ((x_NF - mean_F) / np.where(std_F > 1e-12, std_F, 1.0)).astype(np.float32)
    shown = {"images": small_greys(x_NF[held[:PROBE_TOKENS]], 8, 8)}
    return points_of(config, [str(i) for i in range(10)], scaled_NF, y_N, train, held, shown)


def _sklearn_digits() -> tuple[np.ndarray, np.ndarray]:
    with gzip.open(sklearn_data() / "digits.csv.gz", "rt") as file:
        table = np.array([line.split(",") for line in file], dtype=np.float64)
    return table[:, :-1], table[:, -1].astype(np.int64)
