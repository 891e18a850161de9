"""How the rows of a block are stored: in one piece, or, in a run of many columns, each layer's columns apart, so that one layer can
be read without the others.

Stored apart, the parts are rows of a table of their own, and the block holds a digest of each, which its link of the chain
covers. Part 0 has what is measured once a step (layer -1), part i + 1 has layer i. A run's settings say how its blocks are stored.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moe_core.runs.codec import LARGEST, START, link, pack_rows, unpack_rows
from moe_core.schema import STAT, Column

APART = 4096  # columns of a new run from which its layers are stored apart (docs/decisions.md has the measurement)
PAGE = 8192  # bytes of a page of such a run's file: a part of one step has 1 KB, and pages of 4096 would be a quarter empty
DIGEST = 16  # bytes
Rows = NDArray[np.float32]


class Packed(NamedTuple):
    """A block as it is stored: its own data, and its parts, none if the rows lie in one piece."""

    data: bytes
    parts: Sequence[bytes]


class Layout:
    """A run's columns, and how its blocks are stored. apart: each layer by itself."""

    def __init__(self, columns: Sequence[Column], apart: bool) -> None:
        self.apart, self.width = apart, columns[-1].start + columns[-1].width
        own: dict[int, list[Column]] = {}
        for column in columns if apart else ():
            own.setdefault(column.layer, []).append(column)
        self.layers = sorted(own)
        self.places = [
            np.concatenate([np.arange(c.start, c.start + c.width) for c in own[layer]]) for layer in self.layers
        ]
        # Where each column is found when all parts lie one behind the other.
        self.order = np.argsort(np.concatenate(self.places)) if apart else None
        self.parts: dict[int | None, list[Column]] = {None: list(columns)}
        for layer, held in own.items():
            ends = np.cumsum([column.width for column in held]).tolist()
            self.parts[layer] = [c._replace(start=end - c.width) for c, end in zip(held, ends, strict=True)]

    def part(self, stat: str, layer: int) -> int | None:
        """The layer whose part holds a statistic, -1 for one of the whole step; None where the rows lie in one piece."""
        layer = -1 if STAT[stat].shape == "" else layer
        return layer if layer in self.parts else None

    def of(self, part: int | None) -> list[Column]:
        """The columns of a part's rows, one behind the other; for None all columns."""
        return self.parts[part]

    def width_of(self, part: int | None) -> int:
        """How many numbers a row of a part has, or, for None, a whole row."""
        return self.parts[part][-1].start + self.parts[part][-1].width

    def pack(self, rows: Rows) -> Packed:
        """(n, C) rows as they are stored. In a part the steps of each column lie side by side, which packs a few per cent
        better."""
        if not self.apart:
            return Packed(pack_rows(rows), ())
        parts = [pack_rows(rows[:, places].T) for places in self.places]
        return Packed(b"".join(map(digest, parts)), parts)

    def unpack(
        self, data: bytes, n: int, parts: Sequence[bytes | None], part: int | None, lost: list[int] | None = None
    ) -> Rows:
        """The rows of a block: (n, C), or (n, width) of one part. data: its own, which its link covers; parts: those that were
        asked for. ValueError for one that is missing, or not what was written; with a list `lost` its layer is added to that
        instead, and its columns are NaN."""
        if not self.apart:
            return unpack_rows(data, n, self.width)
        if not 0 <= 4 * n * self.width <= LARGEST:
            raise ValueError(f"no block has {n} rows")
        rows = []
        for number, packed in zip(self.numbers(part), parts, strict=True):
            width = len(self.places[number])
            if packed is not None and digest(packed) == data[DIGEST * number :][:DIGEST]:
                rows.append(unpack_rows(packed, width, n))
            elif lost is None:
                raise ValueError("a part is not what was written")
            else:
                lost.append(self.layers[number])
                rows.append(np.full((width, n), np.nan, np.float32))
        columns = np.concatenate(rows)
        return (columns if part is not None else columns[self.order]).T

    def numbers(self, part: int | None) -> Sequence[int]:
        """Which parts are asked for, counted from 0."""
        return range(len(self.layers)) if part is None else [self.layers.index(part)]

    def rows_of(self, blocks: Iterable[int], part: int | None) -> list[int]:
        """The ids of the rows of parts that hold these blocks, or one part of them, block by block."""
        many, numbers = len(self.layers), self.numbers(part) if self.apart else ()
        return [(block - 1) * many + number + 1 for block in blocks for number in numbers]


def surplus(query: Any, layout: Layout) -> int:
    """How many rows of parts belong to no block. A run may train meanwhile: the parts are counted up to a row that is read before
    the last block is."""
    last = query("SELECT max(id) FROM parts")[0][0] or 0
    blocks = query("SELECT max(id) FROM blocks")[0][0] or 0
    most = blocks * len(layout.layers)
    return int(query("SELECT count(*) FROM parts WHERE id < 1 OR (id > ? AND id <= ?)", (most, last))[0][0])


def digest(packed: bytes) -> bytes:
    return link(START, packed)


def insert_block(db: Any, layout: Layout, id: int, first: int, n: int, packed: Packed, chain: bytes) -> None:
    """Add a block, in a transaction of the caller's. Rows of parts that no block had are replaced: verify names them."""
    db.execute("INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?)", (id, first, n, layout.width, packed.data, chain))
    if packed.parts:
        db.executemany(
            "INSERT OR REPLACE INTO parts VALUES (?, ?)", zip(layout.rows_of([id], None), packed.parts, strict=True)
        )
