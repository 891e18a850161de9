"""The blocks of steps of a run, each checked against its link of the chain, and all against how far the record goes."""

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_core.runs.checked import CheckedRows, State
from moe_core.runs.codec import HEADER, link, unpack_rows
from moe_core.runs.database import StoreError
from moe_core.runs.rows import Block

BLOCK_OF = "SELECT id FROM blocks {} WHERE first <= ? ORDER BY {} DESC LIMIT 1"
KEPT = 32 << 20  # bytes of rows kept of the last range that was read


class Blocks:
    """Reads the blocks of one run through its `query`. rows: its other rows; their state says how
    far the blocks go."""

    def __init__(self, query: Callable[..., list[Any]], rows: CheckedRows, columns: int) -> None:
        self.query, self.rows, self.columns = query, rows, columns
        self.kept: tuple[tuple[int, int], int, NDArray[np.float32]] | None = None

    def read(self, after: int, first: int | None, last: int | None, most: int) -> list[Block]:
        """As Run.blocks."""
        state = self.rows.state()  # before the blocks, which then reach as far as it says
        # Steps and ids rise together, so the index on steps gives the ids and no other block is read.
        if first is not None and (block := self._block_of(first)):
            after = max(after, block - 1)
        end = 2**62 if last is None else self._block_of(last)
        rows = self.query(
            """SELECT id, first, n, columns, data, chain FROM blocks
               WHERE id > ? AND id <= ? ORDER BY id LIMIT ?""",
            (after, end, most),
        )
        blocks = self._follow_chain(rows) if rows else []
        if state and state.held and len(rows) != most:
            self._check_reach(state, blocks, after, last)
        return [block for block in blocks if first is None or block.first + len(block.rows) > first]

    def together(self, first: int | None, last: int | None) -> tuple[int, NDArray[np.float32]]:
        """The blocks that touch a range as one: their first step, and rows (n, C). A short range is kept, as its next statistic
        or layer is often asked for right after; what was recorded never changes."""
        if (kept := self.kept) and kept[0] == (first, last):
            return kept[1:]
        blocks = self.read(0, first, last, -1)
        rows = np.concatenate([b.rows for b in blocks]) if blocks else np.empty((0, self.columns), np.float32)
        start = blocks[0].first if blocks else 0
        if first is not None and last is not None and start + len(rows) > last and rows.nbytes <= KEPT:
            self.kept = (first, last), start, rows
        return start, rows

    def _follow_chain(self, rows: list[Any]) -> list[Block]:
        """Consecutive rows of the table as blocks, each checked against its link of the chain."""
        before = self.query("SELECT first + n, chain FROM blocks WHERE id = ?", (rows[0][0] - 1,))
        if not before and rows[0][0] > 1:
            raise StoreError(f"run {self.rows.folder.name} is damaged: block {rows[0][0] - 1} is missing")
        next_step, chain = before[0] if before else (rows[0][1], self.query("SELECT chain FROM run")[0][0])
        blocks = []
        for number, (id, start, n, columns, data, kept) in enumerate(rows, rows[0][0]):
            try:
                chain = link(chain, HEADER.pack(start, n, columns), data)
                if id != number or start != next_step or chain != kept or columns != self.columns:
                    raise ValueError("it is a different block")
                blocks.append(Block(id, start, unpack_rows(data, n, columns), len(data)))
            except (ValueError, TypeError, struct.error):
                raise StoreError(
                    f"run {self.rows.folder.name} is damaged: block {number} (from step {next_step}) is not what was written"
                ) from None
            next_step = start + n
        return blocks

    def _block_of(self, step: int) -> int:
        """The id of the block that holds a step, or of the last before it; 0 if there is none. By the index on steps where
        the blocks themselves agree with it, else by a search of all blocks."""
        for way in (BLOCK_OF.format("", "first"), BLOCK_OF.format("NOT INDEXED", "id")):
            id = next((row[0] for row in self.query(way, (step,))), 0)
            around = self.query("SELECT id, first FROM blocks WHERE id IN (?, ?)", (id, id + 1))
            if all(first <= step if at == id else first > step for at, first in around):
                break
        return id

    def _check_reach(self, state: State, blocks: list[Block], after: int, last: int | None) -> None:
        """Note lost steps: blocks that were asked for to the end must go as far as the state says."""
        if last is not None and last < state.step:
            lost = not blocks or blocks[-1].first + len(blocks[-1].rows) <= last
        else:
            lost = (blocks[-1].id if blocks else after) < state.held["blocks"]
        if lost:
            reached = self.ends()[1]
            self.rows.note(
                "blocks", f"{max(1, state.step - reached)} steps are lost after step {reached}; all before can be read"
            )

    def ends(self) -> tuple[int, int]:
        """The first and last step by the blocks' own headers; (0, 0) when there is none."""
        ends = self.query(
            """SELECT (SELECT CAST(first AS INTEGER) FROM blocks ORDER BY id LIMIT 1),
                      (SELECT CAST(first + n - 1 AS INTEGER) FROM blocks ORDER BY id DESC LIMIT 1)"""
        )
        return ends[0][0] or 0, ends[0][1] or 0
