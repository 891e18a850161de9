"""The one feed of each run, for as long as somebody watches it."""

import threading
from pathlib import Path
from typing import Any

from moe_core.dashboard.feed import Feed
from moe_core.runs import open_run

_feeds: dict[Path, tuple[Feed, set[object]]] = {}
_guard = threading.Lock()


def join(path: Path, viewer: object) -> Feed:
    """The feed of a run, which whoever watches it shares."""
    with _guard:
        if path not in _feeds or _feeds[path][0].replaced:
            _feeds[path] = (Feed(open_run(path, limit=0.25)), set())
        feed, viewers = _feeds[path]
        viewers.add(viewer)
        return feed


def watchers(path: Path) -> list[Any]:
    """Who watches a run."""
    with _guard:
        return list(_feeds[path][1]) if path in _feeds else []


def leave(path: Path, viewer: object) -> None:
    with _guard:
        if path in _feeds:
            feed, viewers = _feeds[path]
            viewers.discard(viewer)
            if not viewers:
                feed.run.close()
                del _feeds[path]


def leave_all(viewer: object) -> None:
    """Leave every feed that a viewer looked at."""
    with _guard:
        watched = [path for path, (_, viewers) in _feeds.items() if viewer in viewers]
    for path in watched:
        leave(path, viewer)
