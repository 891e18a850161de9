"""A part of a frame that raises is said at its place and once in the log; the others go on."""

import json
import logging
import struct
from pathlib import Path
from typing import Any

import pytest

from moe_core.dashboard import viewer as of_viewer
from moe_core.dashboard.feed import Feed
from moe_core.dashboard.viewer import Viewer
from moe_core.figures.catalog import FIGURES
from moe_core.runs import open_run
from tests.figures.record import record

SIZES = {"balance": [600, 300], "loss": [400, 300], "balance_now": [400, 300]}


@pytest.fixture
def viewer(tmp_path: Path) -> Viewer:
    record(tmp_path / "undrawn", "digits")
    viewer = Viewer()
    viewer.feed = Feed(open_run("undrawn", tmp_path))
    of_viewer._logged.clear()
    return viewer


def header(viewer: Viewer, theme: str = "light") -> dict[str, Any]:
    viewer.hear(json.dumps({"theme": theme, "page": "live", "layer": 0, "sizes": SIZES, "span": None}))
    frame = viewer.frame()
    assert frame
    return json.loads(frame[4 : 4 + struct.unpack("<I", frame[:4])[0]])


def test_a_figure_that_raises_is_said_at_its_chart_and_once_in_the_log(
    viewer: Viewer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("images")

    monkeypatch.setitem(FIGURES, "loss", FIGURES["loss"]._replace(read=broken))
    with caplog.at_level(logging.ERROR, "moescope"):
        first, second = header(viewer), header(viewer, "dark")
    for frame in (first, second):
        assert frame["figures"]["loss"] == {"problem": "Loss cannot be drawn: KeyError 'images'; the server's log says where."}  # fmt: skip
        assert {"data", "layout"} <= frame["figures"]["balance"].keys() & frame["figures"]["balance_now"].keys()
        assert frame["tiles"]
        assert frame["panel"]["knobs"]
        assert frame["problem"] == ""
    (said,) = caplog.records
    assert said.getMessage() == "Loss of run undrawn cannot be drawn"
    assert said.exc_info[0] is KeyError


@pytest.mark.parametrize("part", ["tiles_of", "panel", "banner"])
def test_numbers_and_panel_that_raise_do_not_take_the_charts_with_them(
    viewer: Viewer, part: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("of nothing")

    monkeypatch.setattr(of_viewer, part, broken)
    frame = header(viewer)
    assert frame["figures"].keys() == SIZES.keys()
    assert "cannot be drawn: ZeroDivisionError of nothing" in frame["problem"]
    assert ("panel" in frame) == (part != "panel")
    assert len(caplog.records) == 1
