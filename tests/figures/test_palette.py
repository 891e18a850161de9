"""Which experts have a colour in the views of the probe, where there are more of them than colours."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from moe_core.export.look import wrapped
from moe_core.figures import bars, batch, compare, routing, score, treemap
from moe_core.figures.catalog import FIGURES
from moe_core.figures.palette import palette_of
from moe_core.figures.reading import pinned
from moe_core.figures.theme import DARK, LIGHT, letter_colour, paper_colours
from moe_core.runs.source import At, Beside
from tests.figures.record import probe_of_tokens, record

GREY = "rgba(82,91,104,0.35)"


def test_up_to_sixteen_experts_each_have_their_own_colour() -> None:
    palette = palette_of(np.arange(16), 16, LIGHT, [3])
    assert (tuple(palette.cells), palette.words) == (LIGHT.experts, "")


def test_of_more_the_eight_that_most_tokens_go_to_first_have_one() -> None:
    first = np.repeat([*range(20, 30), 64], [9, 8, 7, 6, 5, 4, 3, 2, 1, 1, 90])  # 64 is no expert
    palette = palette_of(first, 64, LIGHT)
    coloured = [e for e in range(64) if palette.cells[e] != GREY]
    assert coloured == list(range(20, 28))
    assert {palette.cells[e] for e in coloured} == {*LIGHT.experts[:8]}
    assert palette.words.startswith("; in colour the busiest ")
    assert palette.words.endswith("\u00a028, the rest grey")


def test_a_coloured_expert_keeps_its_own_colour_where_that_is_free() -> None:
    palette = palette_of(np.zeros(0, np.int64), 20, LIGHT, [11, 2, 18])
    assert [palette.cells[e] for e in (2, 11, 18)] == [LIGHT.experts[e] for e in (2, 11, 3)]
    assert "the pinned" in palette.words


def test_before_the_first_token_nothing_is_coloured() -> None:
    assert palette_of(np.zeros(0, np.int64), 20, LIGHT).words == ""


@pytest.mark.parametrize("view", ["bytes", "regions", "bars"])
def test_each_view_says_which_experts_have_a_colour_and_pins_by_a_click(view: str) -> None:
    given = probe_of_tokens(30, 64)
    only_first = {"experts_NK": given["experts_NK"], "num_experts": 64}
    points = np.zeros((30, 2), np.float32)
    spec: Any = {
        "bytes": lambda: score.probe_text.spec(np.full(30, 65, np.uint8), **given, pinned=[40, 3]),
        "regions": lambda: routing.regions.spec(np.zeros((2, 2)), [1.0], points, **only_first, pinned=[40, 3]),
        "bars": lambda: bars.tokens_by_expert.spec(**only_first, pinned=[40, 3]),
    }[view]()
    assert spec["layout"]["meta"]["pick"] == "pinned"
    if view == "bars":
        colours = spec["data"][0]["marker"]["color"]
        assert [e for e, colour in enumerate(colours) if colour != GREY] == [3, 40]
        return
    assert "in colour the pinned" in spec["layout"]["title"]["text"]
    cells = spec["data"][0]
    assert cells["colorscale"][2 * 40][1] == LIGHT.experts[40 % 8]
    assert cells["colorscale"][2 * 39][1] == GREY


def test_pins_reach_every_view_of_the_probe(tmp_path: Path) -> None:
    run = record(tmp_path / "a", "plane", E=32)
    asked = Beside(run, {"pinned": "5,31,99"})
    assert pinned(asked, 0) == [4, 30]
    for name in ("regions", "tokens_by_expert"):
        assert FIGURES[name].read(asked, At(0, None))["pinned"] == [4, 30]
    assert pinned(SimpleNamespace(options={}, description=run.description), 0) == []  # type: ignore[arg-type]


def test_a_subtitle_is_broken_between_its_words_and_within_no_tag() -> None:
    words = palette_of(np.arange(64), 64, LIGHT).words
    lines = wrapped(words, {"family": "sans-serif", "size": 13, "color": "#000000"}, 60)
    assert " ".join(lines) == words.replace("\u00a0", " ")
    assert len(lines) > 5
    assert all(line.count("<") == line.count(">") for line in lines)


def test_on_a_narrow_page_bytes_and_powers_of_two_have_room() -> None:
    text, given = np.full(60, 65, np.uint8), probe_of_tokens(60)
    for width, row in ((940, 64), (342, 32)):
        axis = score.probe_text.spec(text, **given, size=(width, 387))["layout"]["xaxis"]
        assert (axis["range"], axis["title"]["text"]) == ([0, row], f"probe byte, {row} a line")
    ticks = [batch.batch_formula.spec(1024, 2, 16, 1, size=(width, 320))["layout"]["xaxis"] for width in (520, 342)]
    assert [len(axis["ticktext"]) for axis in ticks] == [11, 6]
    assert ticks[1]["ticktext"][:3] == ["1", "4", "16"]


def test_each_colour_of_the_dark_look_has_one_on_paper() -> None:
    paper = paper_colours(DARK)
    assert (paper[DARK.ground], paper[DARK.experts[15]]) == (LIGHT.ground, LIGHT.experts[15])
    assert paper[DARK.diverging[0]] == LIGHT.diverging[0]
    assert (paper[DARK.depth], paper["dark is fair"]) == (LIGHT.depth, "pale is fair")
    assert paper_colours(LIGHT) == {}


def test_on_paper_letters_read_on_the_light_looks_cells() -> None:
    """Expert 3 is bright in the dark look and dark in the light one."""
    for E, given in ((8, {}), (40, {"pinned": [2]})):
        first = [2, 5, E]  # the last is of no expert
        for theme in (DARK, LIGHT):
            palette = palette_of(np.array(first[:2]), E, theme, **given)
            trace = palette.inked({"textfont": {"size": 9}}, first, theme)
            assert trace["textfont"]["color"][0] == letter_colour(theme.experts[2])
            printed = trace.get("meta", {"printed": trace["textfont"]["color"]})["printed"]
            assert (
                printed
                == palette_of(np.array(first[:2]), E, LIGHT, **given).inked(trace, first, LIGHT)["textfont"]["color"]
            )
        assert "meta" not in trace
    given = probe_of_tokens(30)
    (printed,) = [
        one["meta"]["printed"]
        for one in score.probe_text.spec(np.full(30, 65, np.uint8), **given, theme=DARK)["data"]
        if "meta" in one
    ]
    assert printed == [letter_colour(LIGHT.experts[e]) for e in given["experts_NK"][:, 0]]


def test_a_treemap_is_printed_in_the_light_looks_colours() -> None:
    share_E = np.array([0.0, 0.05, 0.1, 0.15, 0.2, 0.5])
    dark, light = (treemap.group_treemap.spec(share_E, 2, theme=theme) for theme in (DARK, LIGHT))
    fills, pale = (
        [shape["fillcolor"] for shape in one["layout"]["shapes"] if "fillcolor" in shape] for one in (dark, light)
    )
    assert [dark["layout"]["meta"]["paper"][fill] for fill in fills] == pale
    assert dark["data"][0]["meta"]["printed"] == light["data"][0]["textfont"]["color"]
    assert "paper" not in light["layout"]["meta"]


def test_a_dark_comparison_is_printed_in_the_runs_light_colours() -> None:
    meta = [compare.compare_balance.spec([], theme=theme)["layout"]["meta"] for theme in (DARK, LIGHT)]
    assert [meta[0]["paper"][colour] for colour in DARK.runs] == list(LIGHT.runs)
    assert "paper" not in meta[1]
