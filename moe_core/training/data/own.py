"""A person's own rows or images with a class, as the digits task learns them.

Shapes: N rows, F features.
"""

from pathlib import Path

import numpy as np
import torch

from moe_core.schema import PROBE_TOKENS, Config
from moe_core.training.data.batch import HELD_OUT, generator_for
from moe_core.training.data.columns import Rows, rows_of, rows_of_arrays
from moe_core.training.data.images import image_shape, small_greys, square_of_pixels
from moe_core.training.data.points import Points, points_of
from moe_core.training.data.tables import Table, read

Shape = tuple[int, int, int, bool]


def own(config: Config) -> Points:
    """config.data, each feature scaled by the mean and spread of the rows that are trained on."""
    path = Path(config.data)
    given = f"--data {str(path)!r}"
    rows, shape, note = _read(given, path, config)
    order = torch.randperm(len(rows.x_NF), generator=generator_for(config.seed, "split")).numpy()
    held, train = np.split(order, [max(1, int(2 * HELD_OUT * len(order)))])
    too_large = f"{given} has values too large for float32; scale them first"
    if (np.abs(rows.x_NF) > np.finfo(np.float32).max).any():
        raise ValueError(too_large)
    scaled_NF = scaled(rows.x_NF, train, together=shape is not None)
    if not np.isfinite(scaled_NF).all():
        raise ValueError(too_large)
    probe_NF = rows.x_NF[held[:PROBE_TOKENS]]
    shown = {"images": small_greys(probe_NF, *shape)} if shape else {"features": probe_NF.astype(np.float32)}
    names = [] if shape else rows.names_F
    taken = [f"{path.name}: {rows.taken[0]}", *rows.taken[1:], *[note] * bool(note)]
    return points_of(config, rows.classes, scaled_NF, rows.class_N, train, held, shown, names, taken)


def _read(given: str, path: Path, config: Config) -> tuple[Rows, Shape | None, str]:
    """What the file holds, the shape of its images if it holds any, and a sentence on how they are shown."""
    content = read(path)
    if isinstance(content, Table):
        rows = rows_of(given, content, config.label, config.drop, config.missing)
        shape = None
    else:
        if config.label or config.drop:
            raise ValueError(
                f"--label and --drop name columns of a CSV or .npy; {given} has its classes in y, leave them out"
            )
        shape = image_shape(given, content.x.shape[1:])
        rows = rows_of_arrays(given, content, config.missing)
    if shape:
        height, width, channels, _ = shape
        return rows, shape, f"shown as images of {height} x {width}" + (", in grey" if channels > 1 else "")
    if side := square_of_pixels(rows.x_NF, rows.names_F):
        return rows, (side, side, 1, False), f"shown as images of {side} x {side}: the features look like their pixels"
    return rows, None, ""


def scaled(x_NF: np.ndarray, train_n: np.ndarray, together: bool) -> np.ndarray:
    """(N, F) float32: mean 0 and spread 1 over the rows that are trained on; a missing value becomes the mean.

    together: one spread for all features, as pixels have one unit. Scaled by itself, a pixel at the edge that is dark
    in all images but one would get the largest values of all. A feature that never changes in training says nothing and is
    0 everywhere.
    """
    known_NF = np.isfinite(x_NF[train_n])
    count_F = known_NF.sum(axis=0)
    mean_F = np.where(known_NF, x_NF[train_n], 0).sum(axis=0) / np.maximum(count_F, 1)
    away_NF = np.where(np.isfinite(x_NF), x_NF - mean_F, 0)
    var_F = (away_NF[train_n] ** 2).sum(axis=0) / np.maximum(count_F, 1)
    std_F = np.sqrt(np.full_like(var_F, var_F.mean()) if together else var_F)
    still_F = std_F <= 1e-12 * np.abs(mean_F)  # what rounding leaves of a spread of 0
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(np.where(still_F, 0, away_NF / np.where(still_F, 1, std_F)).astype(np.float32))
