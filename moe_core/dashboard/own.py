"""A person's own data on the start page: which files the page may read, what is kept of an upload, and how a file is read.

Whoever has the dashboard's address can name a path, and what is trained on is then shown, texts byte by byte. So a page reads
below one folder only: the one that the dashboard was started in, or MOE_DATA. Links are followed before that is decided, and
names that begin with a dot are left alone.
"""

import codecs
import csv
import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import threading
import zlib
from collections.abc import Sequence
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from moe_core.dashboard.gate import deed
from moe_core.folders import ABOVE
from moe_core.runs import runs_folder
from moe_core.runs.cells import NPY, ZIP, is_word, names_columns, names_in, not_read, number_in
from moe_core.runs.limits import FILES, open_plain
from moe_core.runs.room import bytes_text
from moe_core.runs.runner import words_of
from moe_core.schema import Config, first_line, shortened

FOLDER = "MOE_DATA"  # the variable that names the folder which pages may read
STARTED_IN = Path.cwd()
UPLOADS = "uploads"  # in the folder of runs
MOST = 1 << 30  # bytes of all uploads together
PATIENCE = 120.0  # seconds that reading a file may take
HEAD = 1 << 20  # bytes of a table that are read for its columns
BELOW = 50  # rows that say whether the line above them names the columns
OFFERED = 1000  # columns to choose from; others can be typed


class Recognised(NamedTuple):
    """How a person's files are read: sentences, and the widths of a row and of the answer. problem: why they cannot be used."""

    taken: tuple[str, ...] = ()
    features: int = 0
    classes: int = 0
    problem: str = ""


class Columns(NamedTuple):
    """The cells of a table's first line, and whether they name its columns, as far as its beginning tells."""

    first: tuple[str, ...] = ()
    named: bool = False

    @property
    def offered(self) -> list[str]:
        """To choose from: the names, or where there are none the numbers."""
        names = [name if self.named and name else str(at) for at, name in enumerate(self.first, 1)]
        return names[:OFFERED]

    def have(self, word: str) -> bool:
        """Whether a word may name a column, by its name or its number from 1. True where the columns are not known."""
        known = not self.first or word in self.first or [c.lower() for c in self.first].count(word.lower()) == 1
        return known or (len(word) < 10 and word.isascii() and word.isdigit() and 1 <= int(word) <= len(self.first))


def data_folder() -> Path:
    """The folder below which a page may read files."""
    return Path(os.environ.get(FOLDER) or STARTED_IN).resolve()


def inside(text: str) -> Path:
    """The file or folder that a person named, with its links followed. ValueError, the same whether it exists or not, if a
    page may not read it."""
    folder, kept = data_folder(), (runs_folder() / UPLOADS).resolve()
    try:
        path = (folder / Path(text.strip()).expanduser()).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a link to itself, a NUL byte, an unknown user
        raise ValueError(f"{shortened(text, 80)!r} is not a path: {first_line(error)}") from None
    if path.is_relative_to(kept):
        return path
    if folder.parent == folder or not allowed(path, folder):
        raise ValueError(
            f"pages read only what lies below {folder} and is not hidden, got {shortened(text, 80)!r}; upload it, or start the "
            f"dashboard with {FOLDER} naming its folder"
        )
    return path


def allowed(path: Path, folder: Path) -> bool:
    """Whether a page may read a file, or all that lies in a folder: nothing hidden, and no link that leads elsewhere."""
    if not path.is_relative_to(folder) or any(part.startswith(".") for part in path.relative_to(folder).parts):
        return False
    seen = 0
    for at, _, names in os.walk(path):
        seen += len(names)
        if seen > FILES:  # it is refused for its size when it is read
            return True
        links = (Path(at, name) for name in names if os.path.islink(os.path.join(at, name)))
        try:
            if not all(link.resolve().is_relative_to(folder) for link in links):
                return False
        except (OSError, RuntimeError):  # a link to itself
            return False
    return True


@deed
def keep(name: str, content: bytes) -> Path:
    """Write an upload below the folder of runs, where runs find it again when they are resumed; the same content once.
    ValueError, one line, if there is no room for it."""
    words = re.sub(r"[^\w. -]", "_", Path(name).name).strip(" .")[-80:] or "upload"
    path = runs_folder().absolute() / UPLOADS / hashlib.sha256(content).hexdigest()[:12] / words
    if path.exists():
        return path
    taken = sum(file.stat().st_size for file in path.parents[1].glob("*/*") if file.is_file())
    if taken + len(content) > MOST:
        raise ValueError(
            f"uploads take {bytes_text(taken)} of {bytes_text(MOST)}; remove some from {path.parents[1]}, or name a path"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{threading.get_ident()}.draft")
        draft.write_bytes(content)
        draft.replace(path)
    except OSError as error:
        raise ValueError(f"{words} cannot be kept: {error.strerror}") from None
    return path


@deed
def recognise(config: Config) -> Recognised:
    """How the files of a config are read, by `python -m moe_core data`; remembered until one of them changes."""
    settings = {name: getattr(config, name) for name in ("text", "data", "label", "drop", "missing", "context")}
    stamps = tuple(stamp(Path(path)) for path in (config.data, *config.text) if path)
    return _looked(Config.for_task(config.task, **settings), stamps)


@lru_cache(maxsize=32)
def _looked(config: Config, stamps: Sequence[tuple[int, int]]) -> Recognised:
    with _ONE:
        try:
            done = subprocess.run(
                [sys.executable, "-m", "moe_core", "data", "--json", *words_of(config)], stdin=subprocess.DEVNULL,
                capture_output=True, text=True, timeout=PATIENCE, cwd=ABOVE,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return Recognised(problem=f"it was not read within {PATIENCE:.0f} s; give a part of it")
        except (OSError, ValueError) as error:  # a word that no command line takes: a NUL byte, or too many letters
            return Recognised(problem=f"it cannot be read with these settings ({error}); change what was typed")
    if done.returncode:
        said = done.stderr.strip().splitlines()
        return Recognised(
            problem=said[-1].removeprefix("moe: ") if said else "it takes more memory than there is; give a part of it"
        )
    told = json.loads(done.stdout)
    return Recognised(tuple(told["taken"]), int(told["features"]), int(told["classes"]))


_ONE = threading.Lock()  # a file at its limit takes 5 GB to read (runs/limits.py), so one at a time


def stamp(path: Path) -> tuple[int, int]:
    """When a file was changed last, and its size; zeros if it is not there."""
    try:
        found = path.stat()
        return found.st_mtime_ns, found.st_size
    except OSError:
        return 0, 0


@deed
def header_of(path: str) -> Columns:
    """The columns of a CSV, of which only the beginning is read; none for a file that is no CSV, or cannot be read."""
    return _header(path, stamp(Path(path)))


@lru_cache(maxsize=32)
def _header(path: str, stamp: tuple[int, int]) -> Columns:
    try:
        with open_plain(Path(path), follow=True) as file:
            packed = file.peek(2).startswith(b"\x1f\x8b")
            head = gzip.GzipFile(fileobj=file).read(HEAD) if packed else file.read(HEAD)
        if head.startswith((*ZIP, NPY)) or not_read(head):
            return Columns()
        # Of a longer file the last letter may not be whole.
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head, final=len(head) < HEAD)
        if len(head) == HEAD:
            text = text[: text.rfind("\n") + 1]  # its last line is not whole
        above, *below = islice(filter(None, csv.reader(io.StringIO(text))), BELOW + 1)
    except (OSError, EOFError, zlib.error, csv.Error, ValueError):
        return Columns()
    if len(above) < 2 or any(len(row) != len(above) for row in below):
        return Columns()
    return Columns(tuple(names_in(above)), bool(below) and names_columns(above, partial(mostly_numbers, below)))


def mostly_numbers(rows: list[list[str]], column: int) -> bool:
    """Whether a column's cells hold more numbers than words."""
    cells = [row[column] for row in rows]
    return sum(number_in(cell) is not None for cell in cells) > sum(map(is_word, cells))
