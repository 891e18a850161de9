"""Which snapshots of a run are kept: the older, the fewer."""

import sqlite3

from moe_core.runs.sums import snapshot_mark

# A kind, and of how many seconds of training one is kept: of the last minute, the ten before, and all earlier ones.
SPANS = (("probe", 0.0, 1.0, 10.0), ("full", 1.0, 10.0, 60.0))
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
    for kind, recent, middle, old in SPANS:
        for span, newest, oldest in ((recent, now, now - 60), (middle, now - 60, now - 600), (old, now - 600, -1.0)):
            if span:
                limits = {"kind": kind, "oldest": oldest, "newest": newest, "span": span}
                for id, step, of in db.execute(SUPERFLUOUS, limits).fetchall():
                    changed ^= snapshot_mark(id, step, of)
                    db.execute("DELETE FROM snapshots WHERE id = ?", (id,))
    return changed
