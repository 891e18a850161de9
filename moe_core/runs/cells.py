"""What the first line of a table says of its columns, and which cells hold no value: for whoever reads a person's CSV whole, and
for the page that offers its columns."""

import math
import re
from collections.abc import Callable, Sequence

# Cells that hold no value, as spreadsheets, pandas and R write them.
MISSING = {"", "nan", "na", "n/a", "<na>", "null", "?"}
LONGEST = 80  # letters of a column's name
# How files that are no CSV begin: an .npz and an .npy, which are read, and others, which are not. JSON only as no first cell of a CSV begins;
# JSON lines begin so too. A safetensors file begins with the length of its header, in 8 bytes, and the header is JSON.
ZIP, NPY = (b"PK\x03\x04", b"PK\x05\x06"), b"\x93NUMPY"
NOT_READ = {
    "a Parquet file": re.compile(rb"PAR1"),
    "a safetensors file": re.compile(rb".{5}\0{3}\{", re.DOTALL),
    "JSON": re.compile(rb"(\xef\xbb\xbf)?\s*(\{\s*[\"}]|\[\s*[\[{])"),
}


def not_read(content: bytes) -> str:
    """What a file holds that is no CSV, .npz or .npy, by its beginning; "" if it may be one of these."""
    return next((what for what, begins in NOT_READ.items() if begins.match(content)), "")


def is_missing(cell: str) -> bool:
    """Whether a cell holds no value."""
    return cell.strip().lower() in MISSING


def number_in(cell: str) -> float | None:
    """The number that a cell holds; None for a word, or nothing."""
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def names_columns(above: Sequence[str], mostly_numbers: Callable[[int], bool]) -> bool:
    """Whether a table's first line names its columns: a word stands above numbers, or it counts them from 0 as pandas does.

    mostly_numbers: whether the cells below column c hold more numbers than words.
    """
    numbers = [number_in(cell) for cell in above]
    words = (c for c, cell in enumerate(above) if is_word(cell))
    counted = [number for number in numbers if number is not None]
    return any(map(mostly_numbers, words)) or (len(counted) > 2 and counted == list(range(len(counted))))


def is_word(cell: str) -> bool:
    """Whether a cell holds neither a number nor nothing."""
    try:
        float(cell)
    except ValueError:
        return not is_missing(cell)
    return False


def names_in(above: Sequence[str]) -> list[str]:
    """The names of the columns, each once: a later one of the same name gets its column's number."""
    unique: list[str] = []
    seen: set[str] = set()  # or a table of 50,000 columns took a minute
    for number, cell in enumerate(above, 1):
        name = cell.replace("\0", "").strip()[:LONGEST]  # a NUL byte is in no word of a command line
        unique.append(f"{name}_{number}" if name in seen else name)
        seen.add(unique[-1])
    return unique
