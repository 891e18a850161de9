"""Which snapshots of a run are kept: the older, the fewer."""

import itertools
import sqlite3
from collections.abc import Iterator

from moe_core.runs.sums import snapshot_mark

# A kind, and of how many seconds of training one is kept: of the last minute, of the ten before, and of ten hours. Of what is older
# than ten hours ten times as many, than a hundred hours a hundred times, and so on: so the number of snapshots of a run has a bound.
SPANS = (("probe", 0.0, 1.0, 10.0), ("full", 1.0, 10.0, 60.0))
AGES = (0.0, 60.0, 600.0, 36_000.0)
SUPERFLUOUS = """SELECT id, step, kind FROM snapshots WHERE kind = :kind AND at > :oldest AND at <= :newest
                 AND id NOT IN (SELECT min(id) FROM snapshots WHERE kind = :kind AND at > :oldest AND at <= :newest
                                GROUP BY CAST(at / :span AS INTEGER))
                 AND id <> (SELECT max(id) FROM snapshots WHERE kind = :kind)
                 AND id <> (SELECT min(id) FROM snapshots WHERE kind = :kind)"""


def thin_snapshots(db: sqlite3.Connection, now: float) -> int:
    """Delete what SPANS does not keep; the first of each span stays, and so do a kind's first and last of all.

    now: seconds of training, as the rows have them. Returns what the deleted ones change in the state's sum of snapshots.
    """
    changed = 0
    for kind, *first in SPANS:
        for span, newest, oldest in windows(first, now):
            if span:
                limits = {"kind": kind, "oldest": oldest, "newest": newest, "span": span}
                for id, step, of in db.execute(SUPERFLUOUS, limits).fetchall():
                    changed ^= snapshot_mark(id, step, of)
                    db.execute("DELETE FROM snapshots WHERE id = ?", (id,))
    return changed


def windows(spans: list[float], now: float) -> Iterator[tuple[float, float, float]]:
    """Of how many seconds one snapshot is kept, after when and up to when, the latest first. spans: those of the first three."""
    ages = itertools.chain(AGES, (AGES[-1] * 10**n for n in itertools.count(1)))
    longer = itertools.chain(spans, (spans[-1] * 10**n for n in itertools.count(1)))
    for span, (since, before) in zip(longer, itertools.pairwise(ages), strict=False):
        if since > now:
            return
        yield span, now - since, (now - before if before < now else -1.0)
