"""A person's own table, an .npz or a CSV: read, and checked so that what is wrong is said in a line.

Shapes: N rows, F features.
"""

import csv
import io
from pathlib import Path

import numpy as np

from moe_core.runs.limits import CSV, NPZ, open_plain, read_most
from moe_core.training.data.archive import check_npz


def own_table(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """x (N, F) float64 and y (N,) of a person's .npz or CSV, checked."""
    if not path.is_file():
        raise ValueError(
            f"--data {str(path)!r} is not a file; give an .npz with x and y, or a CSV whose last column is y"
        )
    try:
        with open_plain(path, follow=True) as file:
            content = read_most(file, NPZ if path.suffix == ".npz" else CSV)
    except OSError as error:
        raise ValueError(f"--data {str(path)!r} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"--data {str(path)!r}: {error}; give a part of it") from None
    if not content:
        raise ValueError(
            f"--data {str(path)!r} has 0 bytes; give an .npz with x and y, or a CSV whose last column is y"
        )
    x, y = _from_npz(path, content) if path.suffix == ".npz" else _from_csv(path, content)
    if x.ndim < 2 or y.ndim != 1 or len(x) != len(y) or x[0].size == 0:
        raise ValueError(f"--data {str(path)!r}: x must be (n, features) and y (n,), got x {x.shape} and y {y.shape}")
    if len(x) < 10:
        raise ValueError(f"--data {str(path)!r} has {len(x)} rows; give at least 10, a fifth is held out")
    bad = np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(1))
    if len(bad) or (y.dtype.kind == "f" and not np.isfinite(y).all()):
        row = bad[0] if len(bad) else np.flatnonzero(~np.isfinite(y))[0]
        raise ValueError(f"--data {str(path)!r} has NaN or infinity (first in row {row + 1}); remove or fill such rows")
    return x.reshape(len(x), -1), y


def _from_npz(path: Path, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    try:
        check_npz(io.BytesIO(content))
    except ValueError as error:
        raise ValueError(f"--data {str(path)!r}: {error}") from None
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            if not {"x", "y"} <= set(arrays.files):
                raise ValueError(
                    f"--data {str(path)!r} must hold arrays x and y, it has {', '.join(arrays.files) or 'none'}"
                )
            x, y = arrays["x"], arrays["y"]
    except ValueError as error:
        if "--data" in str(error):
            raise
        # numpy says "Object arrays cannot be loaded when allow_pickle=False", and of a bad file that it may be a pickle.
        raise ValueError(
            f"--data {str(path)!r} holds pickled objects, which are never read; save plain number arrays x and y with numpy.savez"
        ) from None
    except Exception as error:  # zipfile, zlib and numpy each raise their own for a damaged file
        raise ValueError(
            f"--data {str(path)!r} is not a readable .npz ({type(error).__name__}); save it again with numpy.savez"
        ) from None
    if x.dtype.kind not in "fiub" or y.dtype.kind not in "fiubUS":
        raise ValueError(f"--data {str(path)!r}: x must be numbers and y numbers or text, got {x.dtype} and {y.dtype}")
    return x.astype(np.float64), y.astype(str) if y.dtype.kind in "US" else y


def _from_csv(path: Path, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    try:
        rows = [row for row in csv.reader(io.StringIO(content.decode("utf-8-sig"))) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"--data {str(path)!r} is not a CSV in UTF-8 ({error}); export it as one") from None
    if rows and not _is_number(rows[0][0]):
        rows = rows[1:]  # a line of column names
    widths = {len(row) for row in rows}
    if len(widths) != 1 or widths == {1}:
        raise ValueError(
            f"--data {str(path)!r}: every row must have the same two or more columns, with commas between them, the last one y, got {sorted(widths)[:4]}"
        )
    for number, row in enumerate(rows, 1):
        for cell in row[:-1]:
            if not _is_number(cell):
                raise ValueError(
                    f"--data {str(path)!r}: row {number} has {cell[:40]!r} where a number is wanted; only the last column may be text"
                )
    return np.array([row[:-1] for row in rows], dtype=np.float64), np.array([row[-1].strip() for row in rows])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
