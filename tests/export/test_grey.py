"""The grey look: nothing but greys, and what colour tells apart is told apart by lightness, dash or words."""

from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest

from moe_core.export import Look, chosen
from moe_core.export.look import sheet_of
from moe_core.export.marks import Path, Picture, Sheet, Text
from moe_core.export.sources import Named
from moe_core.figures import routing
from moe_core.figures.band import FEW, band, highest
from moe_core.figures.theme import GREY, GREYS, LIGHT, luminance
from tests.export.made import make_run
from tests.figures.record import record

APART = 1.8  # of two luminances, with 0.05 for what paper and screen reflect


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    runs = tmp_path_factory.mktemp("runs")
    for name in ("a", "b"):
        make_run(runs, "text", steps=60, experts=16, name=name, turned=name == "a").close()
    record(runs / "plane", "plane", 8, L=2, steps=20).close()
    record(runs / "rows", "table", 24, L=1, steps=20).close()
    return runs


def colours(sheet: Sheet) -> set[tuple[int, ...]]:
    found: set[tuple[int, ...]] = set()
    for mark in sheet.marks:
        if isinstance(mark, Picture):
            found |= {tuple(one) for one in np.unique(mark.pixels.reshape(-1, 4)[:, :3], axis=0).tolist()}
        elif isinstance(mark, Text):
            found |= {run.colour[:3] for run in mark.runs}
        else:
            found |= {one[:3] for one in (mark.fill, mark.stroke) if one}
    return found


def bright(colour: Any) -> float:
    return luminance(colour if isinstance(colour, str) else "#{:02X}{:02X}{:02X}".format(*colour[:3])) + 0.05


def apart(one: Any, other: Any) -> bool:
    return max(bright(one), bright(other)) / min(bright(one), bright(other)) >= APART


def test_each_region_of_the_plane_that_has_room_is_numbered_in_grey_alone() -> None:
    cells = np.full((80, 80), 2)
    cells[:, :30] = 0  # the broadest part of expert 1 ...
    cells[60:, 40:] = 0  # ... which has another
    cells[10, 50] = 1  # a single cell has no room
    cells[:, 76:] = 9  # nobody's
    one = (cells, (-1, 1, -1, 1), np.zeros((0, 2)), np.zeros((0, 1), int), 4)
    layout = routing.regions.spec(*one, theme=GREY, size=(240, 240))["layout"]
    notes, axes = layout["annotations"], {"x": layout["xaxis"]["range"], "y": layout["yaxis"]["range"]}
    assert "grey and number: first expert" in layout["title"]["text"]
    assert [note["text"] for note in notes] == ["1", "3"]
    for note in notes:
        column, row = (int((note[at] - low) / (high - low) * 80) for at, (low, high) in axes.items())
        assert cells[row, column] == int(note["text"]) - 1
        assert column < 30 or note["text"] == "3"
    assert not routing.regions.spec(*one, theme=LIGHT)["layout"]["annotations"]


def test_no_figure_has_a_colour(folder: Any) -> None:
    for name, *others in (("a", "b"), ("plane",), ("rows",)):
        with Named(name, tuple(others)).open(folder) as source:
            for figure in chosen(source, None):
                sheet, _ = sheet_of(source, figure, Look(theme="grey"), "")
                assert all(max(one) - min(one) <= 7 for one in colours(sheet)), (
                    figure,
                    colours(sheet),
                )  # letters are nearly black


def test_any_two_of_16_experts_differ_in_lightness_or_dash_and_all_are_seen() -> None:
    looks = [(GREY.experts[e], GREY.dash_of(e)) for e in range(16)]
    assert all(a[1] != b[1] or apart(a[0], b[0]) for a, b in combinations(looks, 2))
    assert all(a[1] != b[1] and apart(a[0], b[0]) for a, b in combinations(looks[:4], 2))
    assert all(1.05 / bright(grey) >= 3 for grey in GREYS)
    runs = [(colour, GREY.dash_of(at)) for at, colour in enumerate(GREY.runs)]
    assert all(a[1] != b[1] and apart(a[0], b[0]) for a, b in combinations(runs, 2))
    assert len({(GREY.experts[e], GREY.hatch_of(e)) for e in range(8)}) == 8
    for scale in (GREY.diverging, GREY.sequential):
        assert all(bright(a) > bright(b) for a, b in pairwise(scale))


@pytest.mark.parametrize("figure", ["selection_share", "balance", "batch_measured", "compare_balance"])
def test_the_lines_of_a_chart_are_told_apart(folder: Any, figure: str) -> None:
    with Named("a", ("b",)).open(folder) as source:
        sheet, _ = sheet_of(source, figure, Look(theme="grey", size=(312, 192), font=32 / 3), "")
    lines = {
        (m.stroke, m.dash)
        for m in sheet.marks
        if isinstance(m, Path) and m.clip and m.stroke and len(m.lines[0].points) > 9
    }
    assert len(lines) >= (1 if figure == "selection_share" else 2)  # 16 balanced experts are a band with its median
    assert all(a[1] != b[1] or apart(a[0], b[0]) for a, b in combinations(lines, 2))


def test_a_small_chart_of_16_experts_has_three_lines_and_a_band() -> None:
    rng = np.random.default_rng(0)
    shares = rng.uniform(1, 10, (50, 16))
    shares[20, [3, 7, 12]] = 40, 50, 60
    few = highest(shares, (380, 240))
    assert few == [3, 7, 12]
    assert len(few) == FEW
    assert highest(shares, (620, 335)) == list(range(16))
    assert highest(shares[:, :8], (240, 240)) == list(range(8))
    everywhere = np.ones(50, bool)
    (one,) = band(np.arange(50), shares, few, LIGHT, everywhere)
    others = np.delete(shares, few, axis=1)
    np.testing.assert_allclose(one["y"][:50], others.max(axis=1), rtol=1e-6)
    np.testing.assert_allclose(one["y"][50:], others.min(axis=1)[::-1], rtol=1e-6)
    shares[:, [0, 1]] = np.nan  # switched off
    assert np.isfinite(band(np.arange(50), shares, few, LIGHT, everywhere)[0]["y"]).all()
    assert band(np.arange(50), shares, list(range(16)), LIGHT, everywhere) == []
