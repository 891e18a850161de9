"""The blocks of steps of a run, each checked against its link of the chain, and all against how far the record goes."""

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_core.runs.apart import Layout
from moe_core.runs.checked import CheckedRows, State
from moe_core.runs.codec import HEADER, link
from moe_core.runs.columns import pick
from moe_core.runs.database import DamagedError, StoreError
from moe_core.runs.gaps import AT_ONCE, Read, read_around
from moe_core.runs.rows import Block
from moe_core.runs.statistics import Deal, Off

BLOCK_OF = "SELECT id FROM blocks {} WHERE first <= ? ORDER BY {} DESC LIMIT 1"
BLOCKS = "SELECT id, first, n, columns, data, chain FROM blocks"
IDS = "SELECT id FROM blocks {} WHERE id {} ? ORDER BY id {} LIMIT ?"
PARTS = "SELECT parts.id, parts.data FROM json_each(?) AS wanted JOIN parts ON parts.id = wanted.value"
KEPT = 32 << 20  # bytes of rows kept of the last ranges that were read
PIECE = 16 << 20  # bytes of rows read at once of a long range

Rows = NDArray[np.float32]
Asked = tuple[int, int, int | None, bool]  # the first and last step, the part, and whether with gaps


class Blocks:
    """Reads the blocks of one run through its `query`. rows: its other rows; their state says how
    far the blocks go."""

    def __init__(self, query: Callable[..., list[Any]], rows: CheckedRows, layout: Layout) -> None:
        self.query, self.rows, self.layout = query, rows, layout
        self._last = 0, 0  # the id of the last block when readable() was asked last, and its answer
        self.kept: dict[Asked, tuple[int, Rows]] = {}

    def read(
        self,
        after: int,
        first: int | None,
        last: int | None,
        most: int,
        part: int | None = None,
        gaps: bool = False,
    ) -> list[Block]:
        """As Run.blocks."""
        if last is not None and last < max(1, first or 1):
            return []
        state = self.rows.state()  # before the blocks, which then reach as far as it says
        begin = after
        try:
            # Steps and ids rise together, so the index on steps gives the ids and no other block is read.
            if first is not None and (block := self._block_of(first)):
                begin = max(after, block - 1)
            end = 2**62 if last is None else self._block_of(last)
            rows = self.query(f"{BLOCKS} WHERE id > ? AND id <= ? ORDER BY id LIMIT ?", (begin, end, most))
            blocks = self._follow_chain(rows, part) if rows else []
            if state and state.held and len(rows) != most:
                self._check_reach(state, blocks, begin, last)
        except StoreError:
            if not gaps:
                raise
            return read_around(self, after, first, last, most, begin, part)
        return [block for block in blocks if first is None or block.first + len(block.rows) > first]

    def statistic(
        self,
        stat: str,
        layer: int,
        first: int | None,
        last: int | None,
        off: Sequence[Off],
        deals: Sequence[Deal] = (),
        gaps: bool = False,
    ) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Steps (n,) and values (n,) or (n, E), as Run.history; only the part that has them is read."""
        part = self.layout.part(stat, layer)
        columns, none = self.layout.of(part), np.empty(0, np.int64)
        no_rows = np.empty((0, self.layout.width_of(part)), np.float32)
        found = [(none, pick(columns, no_rows, stat, layer, none, off, deals))]
        for start, rows in self.pieces(first, last, part, gaps):
            steps = np.arange(start, start + len(rows), dtype=np.int64)
            steps = steps if last is None else steps[steps <= last]
            found.append((steps, pick(columns, rows[: len(steps)], stat, layer, steps, off, deals)))
        steps, values = (np.concatenate(ones) for ones in zip(*found, strict=True))
        return steps, values

    def pieces(
        self, first: int | None, last: int | None, part: int | None = None, gaps: bool = False
    ) -> Iterator[tuple[int, Rows]]:
        """The rows (n, C) of a range of steps, in pieces of about PIECE bytes, each with its first step, so that a long record is
        never in memory as a whole. A short range is kept, since another statistic of it is often asked for right after; what was
        recorded never changes."""
        asked = None if first is None or last is None else (first, last, part, gaps)
        if asked in self.kept:
            yield self.kept[asked]
            return
        span = max(1, PIECE // (4 * self.layout.width_of(part)))  # steps
        stop = self.readable() if gaps else self.ends()[1]
        at, end = max(first or 1, 1), stop if last is None else last
        begun, final = at, False
        while not final:
            final = at + span > end
            blocks = self.read(0, at, last if final else at + span - 1, -1, part, gaps)
            if not blocks:
                return
            start, rows = blocks[0].first, np.concatenate([block.rows for block in blocks])
            rows = rows[max(0, at - start) :]
            start, at = max(at, start), start + sum(len(block.rows) for block in blocks)
            if asked and start == begun and at > asked[1] and rows.nbytes <= KEPT:
                self._keep(asked, start, rows)
            yield start, rows

    def _keep(self, asked: Asked, start: int, rows: Rows) -> None:
        while self.kept and sum(kept.nbytes for _, kept in self.kept.values()) + rows.nbytes > KEPT:
            del self.kept[next(iter(self.kept))]
        self.kept[asked] = start, rows

    def _follow_chain(self, rows: list[Any], part: int | None) -> list[Block]:
        """Consecutive rows of the table as blocks, each checked against its link of the chain."""
        before = self.query("SELECT first + n, chain FROM blocks WHERE id = ?", (rows[0][0] - 1,))
        if not before and rows[0][0] > 1:
            raise StoreError(f"run {self.rows.folder.name} is damaged: block {rows[0][0] - 1} is missing")
        next_step, chain = before[0] if before else (rows[0][1], self.query("SELECT chain FROM run")[0][0])
        blocks, parts = [], self._parts(rows, part) if self.layout.apart else {}
        for number, (id, start, n, columns, data, kept) in enumerate(rows, rows[0][0]):
            try:
                chain = link(chain, HEADER.pack(start, n, columns), data)
                if id != number or start != next_step or chain != kept or columns != self.layout.width:
                    raise ValueError("it is a different block")
                own = [parts.get(row) for row in self.layout.rows_of([id], part)]
                unpacked = self.layout.unpack(data, n, own, part)
                blocks.append(Block(id, start, unpacked, len(data) + sum(len(packed or b"") for packed in own)))
            except (ValueError, TypeError, struct.error):
                raise StoreError(
                    f"run {self.rows.folder.name} is damaged: block {number} (from step {next_step}) is not what was written"
                ) from None
            next_step = start + n
        return blocks

    def _parts(self, rows: list[Any], part: int | None) -> dict[int, bytes]:
        """The parts of some blocks, by their ids: all, or those of one layer."""
        wanted = self.layout.rows_of([row[0] for row in rows], part)
        return dict(self.query(PARTS, (json.dumps(wanted),)))

    def counts(self, layer: int, first: int, last: int) -> NDArray[Any]:
        """(n, E) the selections of each step from first to last. NaN, which counts as some, for a step that is damaged."""
        rows = np.full((last - first + 1, self.layout.width), np.nan, np.float32)
        for block in self.read(0, first, last, -1, gaps=True):
            at = max(first, block.first)
            some = block.rows[at - block.first :][: last - at + 1]
            rows[at - first :][: len(some)] = some
        return pick(self.layout.of(None), rows, "counts", layer)

    # Of a damaged record

    def ids(self, after: int) -> list[int]:
        """The next ids beyond `after`, at most AT_ONCE."""
        return self._ids(">", "", after)

    def ids_before(self, end: int) -> list[int]:
        """The ids below `end`, the highest first, at most AT_ONCE."""
        return self._ids("<", "DESC", end)

    def _ids(self, side: str, order: str, of: int) -> list[int]:
        """By the table, or, where SQLite cannot read that, by the index on steps."""
        try:
            return [row[0] for row in self.query(IDS.format("NOT INDEXED", side, order), (of, AT_ONCE))]
        except DamagedError:
            return [row[0] for row in self.query(IDS.format("INDEXED BY blocks_first", side, order), (of, AT_ONCE))]

    def read_one(self, id: int, part: int | None) -> Read | None:
        """A block by itself; None if it is not what was written, or does not follow from the link of the one before it."""
        try:
            rows = self.query(f"{BLOCKS} WHERE id = ?", (id,))
            before = self.query(
                "SELECT chain FROM run WHERE ? = 1 UNION ALL SELECT chain FROM blocks WHERE id = ? - 1", (id, id)
            )
            [(_, first, n, columns, data, kept)], [(chain,)] = rows, before
            if link(chain, HEADER.pack(first, n, columns), data) != kept or columns != self.layout.width:
                return None
            own, lost = self._own_parts(id, part), list[int]()
            return Read(Block(id, first, self.layout.unpack(data, n, own, part, lost), len(data)), lost)
        except DamagedError:
            return None
        except StoreError:  # the reading failed, which is no damage
            raise
        except (ValueError, TypeError, struct.error):
            return None

    def _own_parts(self, id: int, part: int | None) -> list[bytes | None]:
        """The parts of a block, each by itself; None in the place of one that cannot be read."""
        parts: list[bytes | None] = []
        for row in self.layout.rows_of([id], part):
            try:
                parts += [data for (data,) in self.query("SELECT data FROM parts WHERE id = ?", (row,))] or [None]
            except DamagedError:
                parts.append(None)
        return parts

    def readable(self) -> int:
        """The last step that can be read: the last one recorded, unless the blocks at the end are damaged, which is noted."""
        if not (ids := self.ids_before(2**62)):
            return 0
        if ids[0] != self._last[0]:
            found = self.read_one(ids[0], None)
            read = [found.block] if found and not found.lost else read_around(self, 0, None, None, -1, ids[0], None)
            self._last = ids[0], read[-1].first + len(read[-1].rows) - 1 if read else 0
        return self._last[1]

    def _block_of(self, step: int) -> int:
        """The id of the block that holds a step, or of the last before it; 0 if there is none. By the index on steps where
        the blocks themselves agree with it, else by a search of all blocks."""
        for way in (BLOCK_OF.format("", "first"), BLOCK_OF.format("NOT INDEXED", "id")):
            id = next((row[0] for row in self.query(way, (step,))), 0)
            around = self.query("SELECT id, first FROM blocks WHERE id IN (?, ?)", (id, id + 1))
            if all(type(first) is int and (first <= step) == (at == id) for at, first in around):
                break
        return id

    def _check_reach(self, state: State, blocks: list[Block], after: int, last: int | None) -> None:
        """Note lost steps: blocks that were asked for to the end must go as far as the state says. StoreError if steps are missing though
        the last block is there."""
        if last is not None and last < state.step:
            lost = not blocks or blocks[-1].first + len(blocks[-1].rows) <= last
        else:
            lost = (blocks[-1].id if blocks else after) < state.held["blocks"]
        if not lost:
            return
        reached = self.ends()[1]
        if reached >= state.step:
            raise StoreError(f"run {self.rows.folder.name} is damaged: not all its steps up to {state.step} are there")
        self.rows.note("blocks", f"{state.step - reached} steps are lost after step {reached}; all before can be read")

    def ends(self) -> tuple[int, int]:
        """The first and last step by the blocks' own headers; (0, 0) when there is none."""
        ends = self.query(
            """SELECT (SELECT CAST(first AS INTEGER) FROM blocks ORDER BY id LIMIT 1),
                      (SELECT CAST(first + n - 1 AS INTEGER) FROM blocks ORDER BY id DESC LIMIT 1)"""
        )
        return ends[0][0] or 0, ends[0][1] or 0
