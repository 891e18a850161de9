"""The plane task: points around a pattern, each with its class.

Shapes: N points.
"""

import numpy as np

from moe_core.schema import PROBE_TOKENS, Config
from moe_core.training.data.batch import HELD_OUT
from moe_core.training.data.points import Points, points_of

PLANE_POINTS = 5000


def plane(config: Config) -> Points:
    """config.plane with a spread of config.plane_noise around it, drawn with config.seed."""
    rng = np.random.default_rng([config.seed, 2])
    point_N2, class_N = PATTERNS[config.plane](rng, PLANE_POINTS)
    point_N2 = (point_N2 + config.plane_noise * rng.standard_normal(point_N2.shape)).astype(np.float32)
    held, train = np.split(rng.permutation(PLANE_POINTS), [int(2 * HELD_OUT * PLANE_POINTS)])
    half = float(np.ceil(10 * np.quantile(np.abs(point_N2), 0.999)) / 10)
    shown = {"points": point_N2[held[:PROBE_TOKENS]], "extent": np.array([-half, half, -half, half], np.float32)}
    names = [chr(ord("A") + i) for i in range(class_N.max() + 1)]
    return points_of(config, names, point_N2, class_N, train, held, shown)


def _spirals(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Two arms, one and a half turns each."""
    class_N, radius_N = rng.integers(0, 2, n), np.sqrt(rng.uniform(0.01, 1, n))
    angle_N = 3 * np.pi * radius_N + np.pi * class_N
    return np.stack([radius_N * np.cos(angle_N), radius_N * np.sin(angle_N)], 1), class_N


def _rings(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    class_N, angle_N = rng.integers(0, 3, n), rng.uniform(0, 2 * np.pi, n)
    radius_N = (class_N + 1) / 3
    return np.stack([radius_N * np.cos(angle_N), radius_N * np.sin(angle_N)], 1), class_N


def _checkerboard(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Four by four squares of two classes."""
    point_N2 = rng.uniform(-1, 1, (n, 2))
    return point_N2, (np.floor(2 * (point_N2 + 1)).clip(0, 3).astype(int).sum(1)) % 2


def _gaussians(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Six clouds on a circle, each a class."""
    class_N = rng.integers(0, 6, n)
    angle_N = class_N * np.pi / 3
    centre_N2 = 0.7 * np.stack([np.cos(angle_N), np.sin(angle_N)], 1)
    return centre_N2 + 0.1 * rng.standard_normal((n, 2)), class_N


PATTERNS = {"spirals": _spirals, "rings": _rings, "checkerboard": _checkerboard, "gaussians": _gaussians}
