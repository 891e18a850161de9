"""What a viewer chose travels to the figures, and the runs beside the first are opened, shared and let go of."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_core.dashboard.feed import _feeds, join, leave_all
from moe_core.dashboard.live import Viewer
from moe_core.dashboard.views import checked, look_at
from tests.figures.record import record


def test_options_are_a_few_plain_values() -> None:
    good = {"expert": 3, "with": ["a", "b"], "align": "fork", "noise": 0.5}
    assert checked(good) == good
    for bad in ([], "x", {"a": {}}, {"a": [[1]]}, {"a": None}, {str(i): 1 for i in range(17)}, {"a": list(range(17))}):
        with pytest.raises(ValueError, match="not ours"):
            checked(bad)


def test_runs_beside_the_first_are_joined_once_and_left_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOE_RUNS", str(tmp_path))
    for name, task in (("a", "text"), ("b", "text"), ("c", "digits")):
        record(tmp_path / name, task)
    viewer = object()
    feed = join((tmp_path / "a").absolute(), viewer)
    view = look_at(feed, {"with": ["b", "a", "c", "nobody", "../a"]}, viewer)
    assert [other.id for other in view.others] == ["b"]  # not itself, not another task, not what is no run
    assert view.others[0].last == 60
    again = look_at(feed, {"with": ["b"]}, viewer)
    assert again.others[0] is view.others[0]
    leave_all(viewer)
    assert not _feeds
    assert look_at(feed, {}, viewer).others == ()


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
    assert first["tiles"][0]["label"] == "Expert 1, load share"
    assert second["tiles"][0]["label"] == "Expert 2, load share"
    assert "saturation" in first["figures"]
    assert "saturation" not in second["figures"]  # it does not depend on the choice
    leave_all(viewer)


def test_past_snapshots_are_read_once(tmp_path: Path) -> None:
    run = record(tmp_path / "a")
    feed = join((tmp_path / "a").absolute(), viewer := object())
    np.testing.assert_array_equal(feed.snapshots(), [20, 40, 60])
    before = feed.past_experts(20, "choices")
    np.testing.assert_array_equal(before, run.snapshot(20, "choices")[1]["experts"])
    feed.run.snapshot = None  # type: ignore[assignment,method-assign]
    assert feed.past_experts(20, "choices") is before
    leave_all(viewer)
