"""What a viewer chose travels to the figures, and the runs beside the first are opened, shared and let go of."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_core.dashboard.shared import _feeds, join, leave_all
from moe_core.dashboard.viewer import Viewer
from moe_core.dashboard.views import view_of
from moe_core.figures.reading import held_busiest
from moe_core.runs import Batch
from moe_core.runs.source import Beside
from moe_core.schema import layout
from tests.figures.record import _open, record


def test_runs_beside_the_first_are_joined_once_and_left_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOE_RUNS", str(tmp_path))
    for name, task in (("a", "text"), ("b", "text"), ("c", "digits")):
        record(tmp_path / name, task)
    viewer = object()
    feed = join((tmp_path / "a").absolute(), viewer)
    view = view_of(feed, {"with": ["b", "a", "c", "nobody"]}, viewer)
    assert [other.id for other in view.others] == ["b"]  # not itself, not another task, not what is no run
    assert view.others[0].last == 60
    again = view_of(feed, {"with": ["b"]}, viewer)
    assert again.others[0] is view.others[0]
    leave_all(viewer)
    assert not _feeds
    assert view_of(feed, {}, viewer).others == ()


def frame_of(viewer: Viewer) -> dict[str, Any]:
    data = viewer.frame()
    assert data is not None
    length = int.from_bytes(data[:4], "little")
    return json.loads(data[4 : 4 + length])


@pytest.mark.parametrize("E", [4, 64])
def test_a_choice_changes_the_figures_and_the_tiles_of_the_next_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, E: int
) -> None:
    monkeypatch.setenv("MOE_RUNS", str(tmp_path))
    record(tmp_path / "a", E=E)
    viewer = Viewer()
    viewer.feed = join((tmp_path / "a").absolute(), viewer)
    asked: dict[str, Any] = {"theme": "light", "page": "experts", "layer": 1, "sizes": {n: [460, 300] for n in ("expert_share", "coactivation", "saturation", "expert_flow")}}  # fmt: skip

    def look(expert: int) -> dict[str, Any]:
        viewer.hear(json.dumps(asked | {"options": {"expert": expert}}))
        return frame_of(viewer)

    first, second = look(1), look(2)
    assert "Share of expert 1" in json.dumps(first["figures"]["expert_share"])
    assert "Share of expert 2" in json.dumps(second["figures"]["expert_share"])
    assert first["tiles"][0]["label"] == "Expert 1, share of selections"
    assert second["tiles"][0]["label"] == "Expert 2, share of selections"
    assert "saturation" in first["figures"]
    assert "saturation" not in second["figures"]  # it does not depend on the choice
    leave_all(viewer)


def busy(expert: int, steps: int = 60) -> np.ndarray:
    """Rows in which one of four experts has most of the load, in both layers."""
    rows = np.ones((steps, sum(c.width for c in layout(2, 4))), np.float32)
    for column in layout(2, 4):
        if column.stat in ("load", "counts", "importance"):
            rows[:, column.start + expert - 1] = 5
    return rows


NAMES = ("expert_rank", "expert_share", "favourite_bytes", "specialisation", "similarity")


def experts_in(frame: dict[str, Any]) -> set[str]:
    """The experts that the titles of a frame's charts and its first tile name."""
    titles = [spec["layout"]["title"]["text"] for spec in frame["figures"].values()] + [frame["tiles"][0]["label"]]
    return {found for title in titles for found in re.findall(r"[Ee]xpert (\d)", title)}


def test_the_busiest_is_held_until_the_person_asks_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE_RUNS", str(tmp_path))
    record(tmp_path / "a", state="training")
    writer = _open[-1]
    writer.commit(Batch(61, busy(2)))
    viewer = Viewer()
    viewer.feed = join((tmp_path / "a").absolute(), viewer)
    held: list[int] | None = None

    def look(layer: int = 0, step: int | None = None, **options: Any) -> dict[str, Any]:
        nonlocal held
        viewer.sent.clear()  # so that every chart comes
        if held:
            options["busiest"] = held
        asked = {"theme": "light", "page": "experts", "layer": layer, "step": step, "options": options}
        viewer.hear(json.dumps(asked | {"sizes": {name: [460, 300] for name in NAMES}}))
        viewer.state = (None, None)
        frame = frame_of(viewer)
        held = frame["busiest"]
        return frame

    assert experts_in(look()) == {"2"}
    assert (held, look()["tiles"][0]["lines"][1]) == ([1, 2, 120, 0], "the busiest at step 120")
    writer.commit(Batch(121, busy(3)))
    viewer.feed.refresh(now=True)
    for frame in (look(), look(), look(step=130)):
        assert (experts_in(frame), frame["busiest"]) == ({"2"}, [1, 2, 120, 0])
    assert experts_in(look(again=1)) == {"3"}
    assert held == [1, 3, 180, 1]
    writer.commit(Batch(181, busy(4)))
    viewer.feed.refresh(now=True)
    assert (experts_in(look(again=1)), held) == ({"3"}, [1, 3, 180, 1])
    assert (experts_in(look(again=1, expert=1)), held) == ({"1"}, None)
    assert experts_in(look(layer=1, again=1)) == {"4"}
    leave_all(viewer)
    _open.pop().finish("stopped")


def test_all_of_a_frame_is_of_one_expert_though_the_run_goes_on_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOE_RUNS", str(tmp_path))
    record(tmp_path / "a", state="training")
    writer = _open[-1]
    writer.commit(Batch(61, busy(2)))
    viewer = Viewer()
    viewer.feed = join((tmp_path / "a").absolute(), viewer)
    draw, first = viewer.draw, iter(range(121, 10_000, 60))

    def draw_while_it_trains(*arguments: Any) -> None:
        at = next(first)
        writer.commit(Batch(at, busy(1 + at // 60 % 4)))  # another one becomes the busiest before each chart
        viewer.feed.refresh(now=True)
        draw(*arguments)

    monkeypatch.setattr(viewer, "draw", draw_while_it_trains)
    asked = {"theme": "light", "page": "experts", "layer": 0, "sizes": {name: [460, 300] for name in NAMES}}
    viewer.hear(json.dumps(asked))
    assert experts_in(frame_of(viewer)) == {"2"}
    leave_all(viewer)
    _open.pop().finish("stopped")


@pytest.mark.parametrize("told", ["2", [1, 2], [1, 9, 5, 0], [2, 2, 5, 0], [1, "2", 5, 0], [1, 2, 0, 0], [1, 2, 5, 3]])
def test_what_is_held_is_checked(tmp_path: Path, told: Any) -> None:
    assert held_busiest(Beside(record(tmp_path / "a"), {"busiest": told}), 0) is None


def test_past_snapshots_are_read_once(tmp_path: Path) -> None:
    run = record(tmp_path / "a")
    feed = join((tmp_path / "a").absolute(), viewer := object())
    np.testing.assert_array_equal(feed.snapshots(), [20, 40, 60])
    before = feed.experts_at(20, "choices")
    np.testing.assert_array_equal(before, run.snapshot(20, "choices")[1]["experts"])
    feed.run.snapshot = None  # type: ignore[assignment,method-assign]
    assert feed.experts_at(20, "choices") is before
    leave_all(viewer)
