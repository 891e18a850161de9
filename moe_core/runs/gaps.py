"""The blocks of a damaged record: what can be read, and rows of NaN for the steps that cannot, so that steps still follow one another.

A block is what was written if it follows from the stored link of the block before it. So one that is damaged takes no other with it,
unless its own link is. The steps that are lost lie between two blocks that are whole. What is damaged up to the end of the record is
left out: how many steps it had is not known, and charts end with what there is.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

from moe_core.runs.apart import Layout
from moe_core.runs.checked import CheckedRows
from moe_core.runs.codec import LARGEST
from moe_core.runs.database import StoreError
from moe_core.runs.rows import Block

AT_ONCE = 256  # ids


class Read(NamedTuple):
    """A block that is what was written. lost: the layers whose parts are not; -1 is what is measured once a step."""

    block: Block
    lost: list[int]


class Stored(Protocol):
    """The blocks as they are stored, each by itself."""

    layout: Layout
    rows: CheckedRows

    def ids(self, after: int) -> list[int]:
        """The next ids beyond `after`, at most AT_ONCE."""

    def ids_before(self, end: int) -> list[int]:
        """The ids below `end`, the highest first, at most AT_ONCE."""

    def read_one(self, id: int, part: int | None) -> Read | None:
        """A block by itself; None if it is not what was written."""


def read_around(
    stored: Stored, after: int, first: int | None, last: int | None, most: int, begin: int, part: int | None
) -> list[Block]:
    """As Run.blocks with gaps. begin: the block before the one that has step `first`, if the headers are right."""
    start = anchor(stored, begin, first, part)
    # bad: the ids since the last whole block; taken: how many ids beyond `after`
    read, bad, taken = list[Block](), list[int](), 0
    good, next_step = max(0, start - 1), 1  # the last whole block, and the step with which the next one must begin
    newest = next(iter(stored.ids_before(2**62)), 0)  # or a fast trainer's blocks would never end
    for id in following(stored, good, newest):
        if not bad and ((last is not None and next_step > last) or 0 <= most <= taken):
            break
        taken += id > after
        found = stored.read_one(id, part)
        if found and id == start:
            next_step = found.block.first
        # A whole block may begin later than it must only where bad ones before it had the steps between.
        if not found or found.block.first < next_step or (found.block.first > next_step and not bad):
            bad.append(id)
            continue
        block = found.block
        if bad:
            read += missing(stored, good + 1, bad, next_step, block, part)
        note_parts(stored.rows, found)
        read.append(block)
        bad, next_step, good = [], block.first + len(block.rows), id
    if bad:
        state = stored.rows.state()
        ended = state and state.held.get("blocks") == bad[-1] and state.step >= next_step
        steps = steps_text(next_step, state.step) if state and ended else f"from step {next_step:,}"
        stored.rows.note_lost((good + 1, 0), f"{numbered(good + 1, bad[-1])} ({steps})")
    return [b for b in read if b.id > after and (first is None or b.first + len(b.rows) > first)]


def anchor(stored: Stored, begin: int, first: int | None, part: int | None) -> int:
    """The last block up to `begin` that is whole and begins no later than `first`; 0 if there is none."""
    before = begin + 1
    while ids := stored.ids_before(before):
        for id in ids:
            found = stored.read_one(id, part)
            if found and (first is None or found.block.first <= first):
                return id
        before = ids[-1]
    return 0


def following(stored: Stored, after: int, last: int) -> Iterator[int]:
    """The ids beyond `after`, AT_ONCE of them at a time, until `last` was among them; some beyond it may come too."""
    while after < last and (ids := stored.ids(after)):
        yield from ids
        after = ids[-1]


def missing(stored: Stored, begin: int, bad: list[int], first: int, then: Block, part: int | None) -> list[Block]:
    """Blocks of NaN from step `first` up to the block `then`. The first of the damaged ids has all of these steps, the others none, since
    it is not known how many each had. begin: the first id that is lost, which may be no longer in the table."""
    steps, width = then.first - first, stored.layout.width_of(part)
    if 4 * steps * width > LARGEST * len(bad):
        raise StoreError(
            f"run {stored.rows.folder.name} is damaged: {numbered(begin, bad[-1])} cannot have held {steps:,} steps"
        )
    stored.rows.note_lost((begin, 0), f"{numbered(begin, then.id - 1)} ({steps_text(first, then.first - 1)})")
    nan = np.broadcast_to(np.float32(np.nan), (steps, width))  # takes no memory by itself
    return [Block(bad[0], first, nan), *(Block(id, then.first, nan[:0]) for id in bad[1:])]


def note_parts(rows: CheckedRows, found: Read) -> None:
    """Note the layers of a block whose parts are lost."""
    block = found.block
    for layer in found.lost:
        what = f"layer {layer + 1}" if layer >= 0 else "what is measured once a step"
        steps = steps_text(block.first, block.first + len(block.rows) - 1)
        rows.note_lost((block.id, layer + 2), f"{what} in block {block.id} ({steps})")


def steps_text(first: int, last: int) -> str:
    return f"steps {first:,} to {last:,}" if last > first else f"step {first:,}"


def numbered(first: int, last: int) -> str:
    return f"blocks {first} to {last}" if last > first else f"block {first}"
