"""The digits task: scikit-learn's small images, or the person's own table of numbers with a class.

Shapes: N rows, F features.
"""

import gzip
from pathlib import Path

import numpy as np
import torch

from moe_core.schema import PROBE_TOKENS, Config
from moe_core.training.data.batch import HELD_OUT, generator_for, sklearn_data
from moe_core.training.data.points import Points, points_of
from moe_core.training.data.tables import own_table

MAX_LABELS = 256


def digits(config: Config) -> Points:
    """The digits or config.data, each feature scaled by the mean and spread of the rows that are trained on."""
    x_NF, y_N = own_table(Path(config.data)) if config.data else _sklearn_digits()
    names, y_N = np.unique(y_N, return_inverse=True)
    if not 2 <= len(names) <= min(MAX_LABELS, len(x_NF) // 2):
        raise ValueError(
            f"y must have from 2 to {min(MAX_LABELS, len(x_NF) // 2)} different values in {len(x_NF)} rows, got {len(names)}; "
            "give classes, not measurements"
        )
    order = torch.randperm(len(x_NF), generator=generator_for(config.seed, "split")).numpy()
    held, train = np.split(order, [max(1, int(2 * HELD_OUT * len(order)))])
    mean_F, std_F = x_NF[train].mean(0), x_NF[train].std(0)
    scaled_NF = ((x_NF - mean_F) / np.where(std_F > 1e-12, std_F, 1.0)).astype(np.float32)
    if not np.isfinite(scaled_NF).all():
        raise ValueError("x has values too large for float32; scale it first")
    return points_of(
        config, [str(name) for name in names], scaled_NF, y_N, train, held, _as_images(x_NF[held[:PROBE_TOKENS]])
    )


def _as_images(x_NF: np.ndarray) -> dict[str, np.ndarray]:
    """64 features are an 8 x 8 image of 16 greys; anything else is shown as the numbers it is."""
    if x_NF.shape[1] != 64:
        return {"features": x_NF.astype(np.float32)}
    low, high = x_NF.min(), x_NF.max()
    return {"images": np.round((x_NF - low) / ((high - low) or 1.0) * 16).astype(np.uint8)}


def _sklearn_digits() -> tuple[np.ndarray, np.ndarray]:
    with gzip.open(sklearn_data() / "digits.csv.gz", "rt") as file:
        table = np.array([line.split(",") for line in file], dtype=np.float64)
    return table[:, :-1], table[:, -1].astype(np.int64)
