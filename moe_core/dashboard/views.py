"""A run as a page shows it: the feed, the options chosen on the page, and the other runs that are compared with it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe_core.dashboard.feed import Feed
from moe_core.dashboard.shared import join
from moe_core.figures.reading import Busiest, chosen_expert, held_busiest, named_expert
from moe_core.runs import StoreError, runs_folder
from moe_core.runs.locks import is_locked
from moe_core.runs.measuring import stamp_of
from moe_core.runs.on_devices import NAME as DEVICES_FILE
from moe_core.runs.source import Beside


class FeedMeans(Beside):
    """The feed's own means, which it keeps as steps come in."""

    def __init__(self, feed: Feed, over: int) -> None:
        super().__init__(feed, {})
        self.feed, self.over = feed, over

    def history(
        self, stat: str, layer: int = 0, first: int | None = None, last: int | None = None, bins: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        return self.feed.history(stat, layer, first, last, bins, self.over)


class View(Beside):
    """A feed, the options chosen on the page, and the feeds of the runs that are compared with it."""

    def __init__(self, feed: Feed, options: Mapping[str, Any], others: Sequence[Feed] = ()) -> None:
        super().__init__(feed, options, others)
        self.feed, self.feeds = feed, others

    def means(self, over: int) -> Beside:
        """The same with lines that are means over so many steps."""
        return Beside(FeedMeans(self.feed, over), self.options, [FeedMeans(feed, over) for feed in self.feeds])

    def news(self, page: str) -> tuple[Any, ...]:
        """A value that changes when there is something new to draw that is not of the first run itself."""
        files: list[Path] = []
        if page in ("batch", "learn"):
            run = self.feed.run
            files = [run.path / DEVICES_FILE, *([run.throughput_file(self.feed.knobs)] if run.trainable else [])]
        # A killed measurement writes nothing; only its lock shows that it has ended.
        return (*(other.version for other in self.feeds), *map(stamp_of, files), *map(is_locked, files))


def hold_busiest(source: View, layer: int, step: int) -> list[int] | None:
    """If the person chose no expert, put the busiest one into the options, as it was when this layer was opened.

    The page sends it back with its next message, so that it stays the same while other experts become the busiest, and so
    that all figures of a frame show one expert. None where an expert was chosen, and before the first step.
    """
    if named_expert(source, layer) is not None or step < 1:
        return None
    held = held_busiest(source, layer)
    if held is None:
        asked = source.options.get("again", 0)
        held = Busiest(layer + 1, chosen_expert(source, layer, step) + 1, step, asked if type(asked) is int else 0)
    source.options = {**source.options, "busiest": list(held)}
    return list(held)


def view_of(feed: Feed, options: dict[str, Any], viewer: object) -> View:
    """The feed with a viewer's options and the runs to compare; one that cannot be opened, or has another task, is left out."""
    others = []
    for name in options.get("with", []):
        path = (runs_folder() / name).absolute()
        if path != feed.path and (path / "run.db").is_file():
            try:
                other = join(path, viewer)
            except StoreError:
                continue
            if other.description.task == feed.description.task:
                others.append(other)
    for other in others:
        other.refresh()
    return View(feed, options, tuple(others))
