"""One open page as the server knows it: what it shows, what it has drawn, and the frame that comes next."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from moe_core.dashboard import going
from moe_core.dashboard.feed import JUDGED
from moe_core.dashboard.frames import Part, framed, packed
from moe_core.dashboard.messages import Deed, Refused, parsed
from moe_core.dashboard.panel import banner, findings, panel
from moe_core.dashboard.views import View, hold_busiest, view_of
from moe_core.figures.catalog import FIGURES, offered, tiles_of
from moe_core.figures.pages.tile import unbroken
from moe_core.figures.smooth import SMOOTH, over_steps, steps_a_pixel, with_means
from moe_core.figures.theme import THEMES, paper_colours
from moe_core.runs.source import At
from moe_core.schema import STAT, first_line

SHORTEST, LONGEST = 1 / 30, 0.2  # seconds between two frames to a viewer: as few as it and the server have time for
HALF = 0.5  # of a viewer's time that frames may take
SERVED = 0.25  # of a core that the frames of all viewers may take
WORDS = 0.1  # seconds between two updates of the numbers and words beside the figures: nobody reads quicker
# What a spec says to those who export it. Left in, each turn would be another layout for Plotly: a page tells it on hover.
FOR_FILES = ("untold", "turned")
DIAGNOSED = ("live", "routing")  # the pages that show the diagnosis


class Viewer:
    """One open page: which page, layer and step it shows, how large its charts are, and which parts it has drawn. looks: it
    only looks, and turns nothing."""

    def __init__(self, looks: bool = False) -> None:
        self.looks = looks
        self.feed: Any = None  # a Feed, or an Unstarted while the run is starting
        self.asked: dict[str, Any] = {}
        self.sent: dict[str, int] = {}  # a hash of each part that the viewer has: whole ones of large models are 500 KB
        self.drawn, self.woken = asyncio.Event(), asyncio.Event()
        self.drawn.set()
        self.seq = self.awaited = 0  # of the last frame that was made, and that was sent
        # Seconds that the last frame kept the viewer busy, that it took to make, until the viewer had drawn it, and from the frame before
        # to it; and when it was sent.
        self.took = self.made = self.lag = self.gap = self.sent_at = 0.0
        # What the last frame was made from; while it is the same there is no new frame.
        self.state: tuple[Any, ...] = (None, None)
        self.last_words: dict[str, Any] = {}
        # When words were sent, and whether a frame was sent without newer ones, or without a chart that moved by less than a pixel.
        self.words_sent, self.words_owed = -WORDS, False
        # The step from which on a chart over steps has moved by a pixel since it was drawn.
        self.moves: dict[str, float] = {}
        self.turns: Any = None  # those that were drawn
        self.paper = ""  # the theme whose colours of paper were sent
        self.answer: dict[str, Any] = {}  # how the viewer's last deed ended: its number, and the error or ""

    def hear(self, text: str) -> Deed | None:
        """Take in a message. Returns a deed, for the caller to carry out; a view (page, layer, step, sizes, and the frame that
        was drawn last) is kept here. Raises Refused for a message that no page sends."""
        message = parsed(text)
        if isinstance(message, Deed):
            if not self.asked:
                raise Refused(
                    "the first message must say which page, layer and step are shown, got a deed; send a view first"
                )
            return message
        asked = {name: value for name, value in message._asdict().items() if name not in ("drawn", "took")}
        if any(asked[name] != self.asked.get(name) for name in ("theme", "page", "layer")):
            self.sent.clear()
        if asked != self.asked:
            self.asked = asked
            self.woken.set()
        if message.drawn == self.awaited and not self.drawn.is_set():
            self.took, self.lag = message.took / 1000, min(LONGEST, time.monotonic() - self.sent_at)
            self.drawn.set()
        return None

    def frame(self) -> bytes | None:
        """The next frame; None when nothing changed. It has every figure that changed by a pixel, and ten times a second (at once if the
        viewer waits for them) all that changed, and the numbers and words beside the figures."""
        feed, asked = self.feed, self.asked
        assert feed is not None
        feed.refresh(now=feed.waiting)
        source = view_of(feed, asked["options"], self)
        layer = min(max(asked["layer"], 0), len(feed.description.layers) - 1)
        step = asked["step"] if asked["step"] is not None and asked["step"] < feed.last else None
        ended, now, answer = feed.status().state, time.monotonic(), self.answer
        waits = asked, answer, ended, going.on(feed.path, ended), going.problem(feed.path, ended)
        state, since = (feed.version, waits, source.news(asked["page"])), now - self.words_sent
        due = step is not None or waits != self.state[1] or since >= WORDS
        news = state != self.state
        if not news and not (due and self.words_owed) and since < JUDGED:
            return None
        busiest = hold_busiest(source, layer, step or feed.last) if asked["page"] == "experts" else None
        words = self.words(source, layer, step) if due else self.last_words
        if due:
            self.words_sent = now
        news = news or self.words_owed
        if not news and words == self.last_words:
            return None
        figures = self.figures(source, layer, step, due) if news else {}
        if not (due or figures):
            return None  # what waits comes with the words
        self.state, self.last_words, self.words_owed = state, words, not due
        header = {"step": step or feed.last, "last": feed.last, "past": step is not None, "answer": answer}
        parts: dict[str, Part] = {}
        if due:
            problems = (run.problem for run in (feed, *source.others) if run.problem)
            header |= words | {"busiest": busiest, "problem": next(problems, words["problem"])}
            if self.paper != asked["theme"]:
                self.paper = asked["theme"]
                parts["paper"] = packed(paper_colours(THEMES[self.paper]))
            if shown := header.pop("panel"):
                self.add("panel", shown, parts)
        self.seq += 1
        header["seq"] = self.seq
        return framed(header, parts, figures)

    def figures(self, source: View, layer: int, step: int | None, whole: bool) -> dict[str, Part]:
        """The figures that changed. whole: also those over steps that moved by less than a pixel, as always when a knob was turned, while
        the run's past is still read, and where other runs are beside it."""
        turns, drawn = self.feed.knob_changes(), dict[str, Part]()
        whole = whole or turns is not self.turns or bool(self.feed.behind or source.others)
        self.turns = turns
        for name, size in self.asked["sizes"].items():
            if whole or self.feed.last >= self.moves.get(name, 0):
                self.draw(source, name, size, layer, step, drawn)
        return drawn

    def words(self, source: View, layer: int, step: int | None) -> dict[str, Any]:
        """What a frame says beside its figures. Of a part that cannot be made there is the reason instead, under `problem`."""
        feed, page = self.feed, self.asked["page"]
        undrawn: list[str] = []

        def part(name: str, make: Callable[[], Any], instead: Any) -> Any:
            try:
                return make()
            except Exception as error:
                undrawn.append(undrawable(feed.id, name, error))
                return instead

        # Findings are of the last step only: a remedy offered at a past step would act on the run as it is now.
        diagnosed = page in DIAGNOSED and step is None
        return {
            "findings": part("diagnosis", lambda: findings(feed, layer, self.looks), []) if diagnosed else [],
            "reading": round(feed.behind, 3),
            "reason": feed.status().reason,
            "banner": part("banner", lambda: banner(feed, layer, self.looks), None),
            "turned": any(change.step is not None for change in feed.knob_changes()),
            "tiles": [
                tile._asdict() | {"lines": [unbroken(line) for line in tile.lines], "help": help_of(tile.name)}
                for tile in part("numbers", lambda: tiles_of(page, source, At(layer, step)), [])
            ],
            "panel": part("panel", lambda: panel(feed, step, self.looks), None),
            "problem": " ".join(undrawn),
        }

    def timed_frame(self) -> bytes | None:
        """frame(), and how much of the server's time it took is kept."""
        began = time.thread_time()
        frame = self.frame()
        if frame is not None:
            self.made = time.thread_time() - began
        return frame

    def forget(self) -> None:
        """The last frame was not sent: the next one has all that changed since the viewer drew anything."""
        self.sent.clear()
        self.state, self.last_words, self.paper = (None, None), {}, ""

    def tick(self) -> float:
        """Seconds from one frame to the next: each viewer's frames take half of its time at most, and all viewers' a share of the server's."""
        now = time.monotonic()
        made = sum(viewer.made for viewer in viewers if now - viewer.sent_at < 1)
        return min(LONGEST, max(SHORTEST, self.took / HALF, made / SERVED))

    def draw(
        self,
        source: View,
        name: str,
        size: tuple[int, int],
        layer: int,
        step: int | None,
        figures: dict[str, Part],
    ) -> None:
        """Add a figure to the frame if it suits the run and has changed; if it cannot be drawn, add why."""
        asked, entry = self.asked, FIGURES.get(name)
        if entry is None:
            return
        width, height = size
        theme = THEMES[asked["theme"]]
        try:
            if not offered(source, name):
                return
            at = At(layer, step, asked["span"], max(100, width // 3))
            look = {"theme": theme, "size": (width, height, asked["wide"])}
            spec = entry.draw.spec(**entry.read(source, at), **look)
            for word in FOR_FILES:
                spec["layout"]["meta"].pop(word, None)
            self.moves[name] = source.steps()[1] + steps_a_pixel(spec)
            if over_steps(spec):
                spec["layout"]["meta"]["smooth"] = 1  # the page offers to draw its means
                if (over := asked["options"].get("smooth")) in SMOOTH:
                    spec = with_means(spec, entry.draw.spec(**entry.read(source.means(over), at), **look), over)
        except Exception as error:
            spec = {"problem": undrawable(source.id, entry.title, error)}
        self.add(name, spec, figures)

    def add(self, name: str, value: Any, into: dict[str, Part]) -> None:
        """Put a part into the frame, unless the viewer has this very part already."""
        part = packed(value)
        if self.sent.get(name) != (mark := hash(part)):
            self.sent[name] = mark
            into[name] = part


_logged: set[tuple[str, str, type]] = set()


def undrawable(run: str, name: str, error: Exception) -> str:
    """What the page says of a part that cannot be drawn. The log says it once for a run, with where it went wrong."""
    key = run, name, type(error)
    if key not in _logged:
        _logged.add(key)
        logging.getLogger("moescope").error("%s of run %s cannot be drawn", name, run, exc_info=error)
    reason = first_line(error)[:200]
    return f"{name} cannot be drawn: {type(error).__name__} {reason}".rstrip() + "; the server's log says where."


def help_of(stat: str) -> str:
    """The explanation shown when the pointer rests on a tile; "" for a tile that is not a statistic."""
    return STAT[stat].help if stat in STAT else ""


viewers: set[Viewer] = set()  # all that are connected
