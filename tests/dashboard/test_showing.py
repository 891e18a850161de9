"""In what order frames are made, sent and drawn."""

import asyncio
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moe_core.dashboard import live
from moe_core.dashboard.viewer import LONGEST, Viewer
from moe_core.runs.seen import Log


class Page(Viewer):
    """A viewer whose run has news whenever it is asked; it notes what happens."""

    def __init__(self, waiting: bool = False) -> None:
        super().__init__()
        self.feed = SimpleNamespace(waiting=waiting, behind=0.0, status=lambda: SimpleNamespace(state="training"))
        self.said: list[str] = []

    def timed_frame(self) -> bytes:
        self.seq += 1
        self.said.append(f"made {self.seq}")
        return b"%d" % self.seq

    def forget(self) -> None:
        super().forget()
        self.said.append("forgot")

    def draw(self) -> None:  # type: ignore[override]
        self.said.append(f"drew {self.awaited}")
        self.drawn.set()

    async def send_bytes(self, frame: bytes) -> None:
        self.said.append(f"sent {frame.decode()}")


async def shown(page: Page, *rests: float) -> None:
    """Show it the frames, each of which it draws so many seconds after it came, and, if it is to take long, after the next was made."""
    listening = asyncio.create_task(asyncio.sleep(60))
    showing = asyncio.create_task(live.show(page, page, listening))  # type: ignore[arg-type]
    for nth, rest in enumerate(rests, 1):
        while sum(words.startswith("sent") for words in page.said) < nth:
            await asyncio.sleep(0.001)
        await asyncio.sleep(rest)
        while rest and not page.feed.waiting and page.said[-1].startswith("sent"):
            await asyncio.sleep(0.001)
        page.draw()
    listening.cancel()
    await asyncio.wait([showing], timeout=5)


def in_order(page: Page, *words: str) -> bool:
    places = [page.said.index(one) for one in words]
    return places == sorted(places)


def test_a_frame_is_made_while_the_last_is_drawn_and_sent_after() -> None:
    page = Page()
    asyncio.run(shown(page, 0.1, 0.1, 0.1))
    assert in_order(page, "made 1", "sent 1", "made 2", "drew 1", "sent 2", "made 3", "drew 2", "sent 3", "drew 3")


def test_while_a_turn_is_waited_for_a_frame_is_made_after_the_last_is_drawn() -> None:
    page = Page(waiting=True)
    asyncio.run(shown(page, 0.1, 0.1))
    assert in_order(page, "sent 1", "drew 1", "made 2", "sent 2", "drew 2")


def test_a_tab_that_was_hidden_gets_no_frame_of_old() -> None:
    page = Page()
    asyncio.run(shown(page, 2 * LONGEST + 0.1, 0.0))
    assert "sent 2" not in page.said
    assert in_order(page, "made 2", "drew 1", "forgot", "made 3", "sent 3")


def test_a_frame_of_another_view_than_is_asked_for_is_made_anew() -> None:
    class Turned(Page):
        def draw(self) -> None:  # type: ignore[override]
            self.asked = {"layer": self.awaited}
            super().draw()

    page = Turned()
    asyncio.run(shown(page, 0.1, 0.0))
    assert "sent 2" not in page.said
    assert in_order(page, "made 2", "drew 1", "forgot", "made 3", "sent 3")


def test_the_viewer_s_own_time_says_when_the_next_frame_is_made() -> None:
    """Just before the last is drawn, so that it is of a step as late as can be."""
    page, made = Page(), list[float]()
    frame = page.timed_frame

    def timed() -> bytes:
        made.append(time.monotonic())
        return frame()

    page.timed_frame = timed  # type: ignore[method-assign]
    page.lag = 0.15
    asyncio.run(shown(page, 0.4))
    assert made[1] - made[0] > 0.12


def test_a_record_that_stays_behind_keeps_no_core_busy_while_nobody_draws() -> None:
    """As of one with a damaged block, in a tab that is hidden."""
    page, read = Page(), list[int]()
    page.feed.behind, page.feed.catch_up = 1.0, lambda: read.append(1)
    asyncio.run(shown(page, 0.3))
    assert 1 <= len(read) <= 3


class Waiting(Page):
    """A viewer of a run whose next step is not there yet."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.feed.path, self.feed.log, self.wal = folder, Log(), folder / "run.db-wal"
        self.wal.touch()

    def timed_frame(self) -> bytes | None:  # type: ignore[override]
        self.feed.log.was_written(self.feed.path)
        self.said.append("looked")
        return None


async def looks(page: Waiting) -> tuple[int, int]:
    """How often its run was looked at in a while, and until a second look after its log was written to, or for ten seconds."""
    listening = asyncio.create_task(asyncio.sleep(60))
    showing = asyncio.create_task(live.show(page, page, listening))  # type: ignore[arg-type]
    await asyncio.sleep(0.5)
    before = len(page.said)
    os.utime(page.wal, ns=(1, 1))
    until = time.monotonic() + 10
    while len(page.said) == before and time.monotonic() < until:
        await asyncio.sleep(0.01)
    listening.cancel()
    await asyncio.wait([showing], timeout=5)
    return before, len(page.said)


def test_a_run_is_looked_at_when_its_log_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "WORDS", 60.0)
    assert asyncio.run(looks(Waiting(tmp_path))) == (1, 2)


def test_and_when_words_are_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "WORDS", 0.05)
    assert 2 <= asyncio.run(looks(Waiting(tmp_path)))[0] <= 11


def test_what_a_viewer_says_of_another_frame_than_the_last_counts_for_nothing() -> None:
    viewer: Any = Viewer()
    viewer.awaited, viewer.sent_at = 7, time.monotonic()
    viewer.drawn.clear()
    look = '{"theme": "light", "page": "live", "layer": 0, "sizes": {}, "span": null, "took": 5, "drawn": %d}'
    viewer.hear(look % 6)
    assert not viewer.drawn.is_set()
    viewer.hear(look % 7)
    assert viewer.drawn.is_set()
    assert viewer.took == 0.005
    assert 0 < viewer.lag <= LONGEST
    viewer.sent_at -= 60  # as after an hour behind another tab
    viewer.drawn.clear()
    viewer.hear(look % 7)
    assert viewer.lag == LONGEST
