"""A run between the click that starts it and its first step: its page is there at once, and empty."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moe_core.dashboard import live, starting
from moe_core.figures.catalog import on_page
from moe_core.figures.pages.tile import NONE
from moe_core.runs import create_run
from moe_core.runs.ranks import ALONE, RankCounts
from moe_core.schema import TASKS, Config, Knobs
from tests.dashboard.test_live import unpack


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of runs where a start makes what a trainer has made while it loads torch: a folder."""

    def start(config: Config, knobs: Knobs, who: str, ranks: RankCounts) -> str:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "trainer.log").touch()
        return "a"

    monkeypatch.setenv("MOE_RUNS", str(tmp_path))
    monkeypatch.setattr(starting, "start_trainer", start)
    monkeypatch.setattr(starting, "_settings", {})
    return tmp_path


def said(page: str, task: str, ranks: RankCounts = ALONE) -> str:
    """A viewer's first message: it looks at every figure of a page."""
    sizes = {name: [640, 320] for name in on_page(starting.Unstarted("a", Config.for_task(task), Knobs(), ranks), page)}
    return json.dumps({"theme": "light", "page": page, "layer": 0, "sizes": sizes})


@pytest.mark.parametrize(("task", "ranks"), [*((task, ALONE) for task in TASKS), ("digits", RankCounts(4, 2))])
@pytest.mark.parametrize("page", ["live", "routing", "experts", "compare", "batch"])
def test_every_page_of_a_starting_run_has_tiles_without_numbers_and_empty_axes_with_titles(
    runs: Path, page: str, task: str, ranks: RankCounts
) -> None:
    run = starting.start(Config.for_task(task, num_experts=24), Knobs(noise=0.5), "me", ranks=ranks)
    viewer = live.Viewer()
    viewer.feed = starting.unstarted(run)
    viewer.hear(said(page, task, ranks))
    told = unpack(viewer.frame() or b"")
    assert (told["step"], told["last"], told["banner"], told["findings"]) == (0, 0, None, [])
    assert (told["panel"]["word"], told["panel"]["alive"]) == ("Starting…", True)
    assert {knob["name"]: knob["value"] for knob in told["panel"]["knobs"]}["noise"] == 0.5
    known = {"tokens_per_expert", "one_device", "last_used"}  # the formula knows its answer before the run
    values = {tile["name"]: tile["value"] for tile in told["tiles"] if tile["name"] not in known}
    assert set(values.values()) == {NONE}
    asked = json.loads(said(page, task, ranks))["sizes"]
    assert ("rows_between_ranks" in asked) == (page == "live" and ranks != ALONE)
    assert set(told["figures"]) == set(asked)
    for name, figure in told["figures"].items():
        assert figure["layout"]["title"]["text"], name
        if name not in ("knobs", "group_treemap", "expert_flow"):
            assert figure["layout"]["xaxis"]["title"]["text"], name
            assert figure["layout"]["yaxis"]["title"]["text"], name


def test_only_a_run_that_was_started_here_and_is_not_there_yet_is_starting(runs: Path) -> None:
    assert starting.unstarted("a") is None
    (runs / "b").mkdir()
    assert starting.is_starting("b")
    assert starting.unstarted("b") is None  # somebody else's: nobody knows how it will look
    config = Config.for_task("plane", num_experts=4)
    starting.start(config, Knobs(), "me")
    assert starting.unstarted("a").description == starting.Unstarted("a", config, Knobs()).description
    (runs / "a").rename(runs / "made")
    create_run(runs / "a", config, Knobs()).finish("stopped")
    assert not starting.is_starting("a")
    assert starting.unstarted("a") is None


def test_the_route_sends_the_empty_page_before_the_run_is_made(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket of a viewer who looks while the trainer loads, and then stays away."""
    run = starting.start(Config.for_task("text"), Knobs(), "me")
    sent: list[bytes] = []

    class Socket(SimpleNamespace):
        async def accept(self) -> None: ...

        async def receive(self) -> dict[str, str]:
            return {"type": "websocket.receive", "text": said("live", "text")}

        async def send_bytes(self, frame: bytes) -> None:
            sent.append(frame)

        async def close(self, code: int, reason: str) -> None:
            self.closed = code, reason

    async def never(path: Path) -> str:
        assert sent, "nothing was sent before the wait"
        return "gone"

    monkeypatch.setattr(live, "wait_for_run", never)
    socket: Any = Socket(path_params={"run": run}, headers={"moescope-role": "turns"})
    asyncio.run(live.stream(socket))
    assert unpack(sent[0])["panel"]["state"] == "starting"
    assert socket.closed == (4404, "gone")
