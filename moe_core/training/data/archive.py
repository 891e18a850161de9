"""The headers of an .npz or .npy, checked before a byte of it is unpacked: 3.8 MB of zip may hold 2.5 GB of zeros."""

import math
import zipfile
from typing import IO

import numpy as np

from moe_core.runs import limits
from moe_core.runs.room import bytes_text

NAMES = ("x.npy", "y.npy", "x", "y")  # numpy takes a part without the ending for the array too
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def check_arrays(file: IO[bytes]) -> None:
    """ValueError, before anything is unpacked, if it is no readable .npz or .npy, or has more numbers than fit in memory."""
    magic = file.read(6)
    file.seek(0)
    if magic == b"\x93NUMPY":
        check_npy(file)
    else:
        check_npz(file)


def check_npy(file: IO[bytes]) -> None:
    """ValueError if it is not a readable .npy, or has more values than fit in memory, by its header."""
    try:
        count = count_of(file)
    except Exception as error:  # numpy raises its own for a damaged header
        raise ValueError(f"it is not a readable .npy ({type(error).__name__}); save it again with numpy.save") from None
    if count > limits.VALUES:
        raise ValueError(f"it has {count:,} values; up to {limits.VALUES:,} fit in memory, give a part")


def check_npz(file: IO[bytes]) -> None:
    """ValueError, before anything is unpacked, if it is not a readable .npz, or its x or y has more numbers than fit in
    memory."""
    try:
        sizes = [(part, values(file, part)) for part in limits.zip_parts(file) if part.filename.lower() in NAMES]
    except Exception as error:  # zipfile, zlib and numpy each raise their own for a damaged file
        raise ValueError(
            f"it is not a readable .npz ({type(error).__name__}); save it again with numpy.savez"
        ) from None
    largest = 8 * limits.VALUES + 20_000  # bytes: float64, or as much text, and a header of at most 10,000
    for part, count in sizes:
        name = part.filename.removesuffix(".npy")
        if count > limits.VALUES or part.file_size > largest:
            raise ValueError(
                f"{name} has {count:,} values in {bytes_text(part.file_size)}; up to {limits.VALUES:,} fit in memory, give a part"
            )


def values(file: IO[bytes], part: zipfile.ZipInfo) -> int:
    """How many values an array in an .npz has. Only its header is read, of at most 10,000 bytes."""
    with zipfile.ZipFile(file) as archive, archive.open(part) as array:
        return count_of(array)


def count_of(array: IO[bytes]) -> int:
    """How many values an .npy has, by its header. Only that is read."""
    shape, _, _ = HEADERS[np.lib.format.read_magic(array)](array)
    return math.prod(shape)
