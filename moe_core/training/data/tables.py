"""A person's own file of rows, a CSV, .npz or .npy, recognised by its content and read into a Table.

Shapes: N rows, C columns.
"""

import csv
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np

from moe_core.runs.cells import NPY, ZIP, is_missing, names_columns, names_in, not_read
from moe_core.runs.limits import CSV, NPZ
from moe_core.training.data.archive import check_arrays
from moe_core.training.data.opening import content_of

WANTED = "give a CSV, an .npz with x and y, or an .npy"


class Table(NamedTuple):
    """Columns by name. values_NC: NaN where a cell is no number; texts: column -> row -> the words there, if it is not empty.

    named: whether the first line names the columns, else the names are the columns' numbers from 1.
    """

    names: list[str]
    values_NC: np.ndarray
    texts: dict[int, dict[int, str]]
    named: bool


class Arrays(NamedTuple):
    """x (N, …) numbers and y (N,) numbers or words, as an .npz has them."""

    x: np.ndarray
    y: np.ndarray


def read(path: Path) -> Table | Arrays:
    """What a file holds. ValueError, one line, for a file that cannot be read as one of them."""
    most = NPZ if path.suffix.lower() in (".npz", ".npy") else CSV
    content, given = content_of(path, "--data", most), f"--data {str(path)!r}"
    if not content:
        raise ValueError(f"{given} has 0 bytes; {WANTED}")
    if content.startswith(ZIP):
        return _npz(given, content)
    if content.startswith(NPY):
        return _npy(given, content)
    if what := not_read(content):
        raise ValueError(f"{given} is {what}, which is not read; convert it, and {WANTED}")
    if path.suffix.lower() in (".npz", ".npy"):
        raise ValueError(f"{given} is not a readable {path.suffix.lower()}; save it again with numpy.save or savez")
    return _csv(given, content)


def _npz(given: str, content: bytes) -> Arrays:
    arrays = _loaded(given, content)
    words = {name.lower(): name for name in arrays}
    if not {"x", "y"} <= words.keys():
        raise ValueError(f"{given} must hold arrays x and y, got {', '.join(arrays)[:200] or 'none'}")
    x, y = arrays[words["x"]], arrays[words["y"]]
    if x.dtype.kind not in "fiub" or y.dtype.kind not in "fiubUS":
        raise ValueError(f"{given}: x must be numbers and y numbers or text, got {x.dtype} and {y.dtype}")
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if x.ndim < 2 or y.ndim != 1 or len(x) != len(y) or 0 in x.shape[1:]:
        raise ValueError(f"{given}: x must be (n, features) and y (n,), got x {x.shape} and y {y.shape}")
    return Arrays(x, y.astype(str) if y.dtype.kind in "US" else y.astype(np.float64))


def _loaded(given: str, content: bytes) -> dict[str, np.ndarray]:
    """The arrays of an .npz, x and y only where there are others; of an .npy the one, named ""."""
    try:
        check_arrays(io.BytesIO(content))
    except ValueError as error:
        raise ValueError(f"{given}: {error}") from None
    try:
        arrays = np.load(io.BytesIO(content), allow_pickle=False)
        if isinstance(arrays, np.ndarray):
            return {"": arrays}
        with arrays:
            wanted = [name for name in arrays.files if name.lower() in ("x", "y")]
            some = wanted if len(wanted) > 1 else []
            return dict.fromkeys(arrays.files, np.empty(0)) | {name: arrays[name] for name in some}
    except ValueError:
        # numpy says "Object arrays cannot be loaded when allow_pickle=False", and of a bad file that it may be a pickle.
        raise ValueError(
            f"{given} holds pickled objects, which are never read; save plain number arrays x and y with numpy.savez"
        ) from None
    except Exception as error:  # zipfile, zlib and numpy each raise their own for a damaged file
        raise ValueError(
            f"{given} is not a readable .npz or .npy ({type(error).__name__}); save it again with numpy.savez"
        ) from None


def _npy(given: str, content: bytes) -> Table:
    """A matrix, one of whose columns is the class."""
    array = _loaded(given, content)[""]
    if array.ndim != 2 or array.dtype.kind not in "fiub" or array.shape[1] < 2:
        raise ValueError(
            f"{given} must be a matrix of numbers of which a column is the class, got {array.dtype} {array.shape}; "
            "save images and their classes as x and y with numpy.savez"
        )
    return Table([str(i + 1) for i in range(array.shape[1])], array.astype(np.float64), {}, named=False)


def _csv(given: str, content: bytes) -> Table:
    try:
        rows = [row for row in csv.reader(io.StringIO(content.decode("utf-8-sig"))) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{given} is not a CSV in UTF-8 ({error}); {WANTED}") from None
    widths = sorted({len(row) for row in rows})
    if len(widths) != 1 or widths == [1]:
        raise ValueError(
            f"{given}: every row must have the same two or more columns, with commas between them, got {widths[:4]}"
        )
    above, width = rows[0], widths[0]
    values_NC, texts = _cells(rows[1:], width)
    numbers = np.isfinite(values_NC).sum(axis=0)
    if len(values_NC) and names_columns(above, lambda c: bool(numbers[c] > len(texts.get(c, ())))):
        return Table(names_in(above), values_NC, texts, named=True)
    first, words = _cells(rows[:1], width)
    moved = {c: {row + 1: word for row, word in of.items()} for c, of in texts.items()}
    texts = {c: words.get(c, {}) | moved.get(c, {}) for c in sorted(words.keys() | moved.keys())}
    return Table([str(i + 1) for i in range(width)], np.concatenate([first, values_NC]), texts, named=False)


def _cells(rows: list[list[str]], width: int) -> tuple[np.ndarray, dict[int, dict[int, str]]]:
    """The numbers of all cells, and the words of those that hold neither a number nor nothing."""
    values_NC, texts = np.full((len(rows), width), np.nan), dict[int, dict[int, str]]()
    for n, row in enumerate(rows):
        try:
            values_NC[n] = [float(cell) for cell in row]
            continue
        except ValueError:
            pass
        for c, cell in enumerate(row):
            try:
                values_NC[n, c] = float(cell)
            except ValueError:
                if not is_missing(cell):
                    texts.setdefault(c, {})[n] = cell.strip()
    return values_NC, texts
