"""Which rows are images, and how they are reduced to be shown: small, in 16 greys.

Shapes: N images, H rows, W columns of pixels, F = H * W features.
"""

import math

import numpy as np

SIDE = 32  # pixels along the longer side of an image as it is kept for being shown
GREYS = 16


def image_shape(given: str, shape: tuple[int, ...]) -> tuple[int, int, int, bool] | None:
    """(H, W, channels, channels first) of x's shape without its rows; None for a row of features. ValueError for others."""
    if len(shape) == 1:
        return None
    if len(shape) == 2:
        return shape[0], shape[1], 1, False
    if len(shape) == 3 and shape[2] in (1, 3):
        return *shape, False  # type: ignore[return-value]
    if len(shape) == 3 and shape[0] in (1, 3):
        return shape[1], shape[2], shape[0], True
    raise ValueError(
        f"{given}: x of shape (n, {', '.join(map(str, shape))}) is neither rows nor images; give (n, features), "
        "(n, height, width), or (n, height, width, 3) for colours"
    )


def square_of_pixels(x_NF: np.ndarray, names_F: list[str]) -> int | None:
    """The side of the square images that rows of features are, or None.

    They are recognised by their names (pixel1, pixel2, …), else by their values: the least is 0, the most at most 255, and
    pixels above each other are more alike than any two pixels, which holds only for the right side.
    """
    side = math.isqrt(x_NF.shape[1])
    if side * side != x_NF.shape[1] or side < 8:
        return None
    if all(name.lower().startswith(("pixel", "px")) for name in names_F):
        return side
    if not (np.nanmin(x_NF) == 0 and np.nanmax(x_NF) <= 255):
        return None
    some = np.nan_to_num(x_NF[:: max(1, len(x_NF) // 200)])
    below = np.abs(some[:, side:] - some[:, :-side]).mean()
    other = np.abs(some[:, np.random.default_rng(0).permutation(x_NF.shape[1])] - some).mean()
    return side if below < 0.8 * other else None


def small_greys(x_NF: np.ndarray, height: int, width: int, channels: int = 1, first: bool = False) -> np.ndarray:
    """(N, h, w) uint8 from 0 to 16, at most SIDE along the longer side: the mean of the pixels that fall together."""
    x = np.nan_to_num(x_NF.reshape(len(x_NF), *((channels, height, width) if first else (height, width, channels))))
    x_NHW = x.mean(axis=1 if first else 3)
    by = -(-max(height, width) // SIDE)
    down, across = min(by, height), min(by, width)
    h, w = height // down, width // across
    x_NHW = x_NHW[:, : h * down, : w * across].reshape(len(x), h, down, w, across).mean(axis=(2, 4))
    low, high = float(x_NHW.min()), float(x_NHW.max())
    return np.asarray(np.round((x_NHW - low) / ((high - low) or 1.0) * GREYS).astype(np.uint8))
