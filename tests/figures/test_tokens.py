"""The probe's text in tokens of any tokenizer: what is drawn where, and that no string of a record can do harm."""

import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from moe_core.export.drawing import draw
from moe_core.export.pdf import to_pdf
from moe_core.export.svg import to_png, to_svg
from moe_core.figures import tokens
from moe_core.figures.catalog import FIGURES, on_page
from moe_core.figures.theme import DARK, LIGHT, expert_colour
from moe_core.figures.tokens import favourite_tokens, probe_tokens
from moe_core.figures.words import LONGEST, SPACE, broken, word_of
from moe_core.runs.source import At
from tests.figures.record import probe_of_tokens, record_tokens

HOSTILE = [
    "<script>alert(1)</script>", "<b>", "&lt;", "%{x}", "<a href='javascript:1'>", "x" * 5000, "\u202egnp", "a" + "\u0301" * 500,
    "\x00\x1b[31m", "", "   ", "$x$", "<br>" * 9, "\ufeff\u200b\u200d", "</text></svg>",
]  # fmt: skip
TEXT = ["Ġthe", "▁cat", " sat", "\n", "\t", "שלום", "猫は", "🙂", "é", "\xa0x"]


def trace(spec: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in spec["data"] if one["name"] == name)


def test_each_token_stands_in_the_colour_of_its_first_expert_row_by_row() -> None:
    given = probe_of_tokens(6)
    spec = probe_tokens.spec([" a", "bc", " d", "\n", " ", "e"], **given, row_N=np.array([0, 0, 0, 0, 1, 1]), step=5)
    cells, words = trace(spec, "first expert"), trace(spec, "tokens")
    assert cells["marker"]["color"] == [expert_colour(int(e), LIGHT) for e in given["experts_NK"][:, 0]]
    assert words["text"] == ["a", "bc", "d", "⏎", "e"]  # a blank token is a cell without a word
    px = tokens.COLUMN * tokens.SIZES[0]
    np.testing.assert_allclose(cells["base"], np.array([0, 2, 4, 6, 0, 1]) * px, rtol=1e-5)
    np.testing.assert_allclose(cells["x"] + 1, np.array([2, 2, 2, 1, 1, 1]) * px, rtol=1e-5)
    assert len(set(cells["y"][:4])) == 1
    assert cells["y"][4] == cells["y"][5] > cells["y"][0]
    assert words["x"][0] == pytest.approx(1.5 * px)  # the letter, after the space before it
    assert cells["hovertext"][0] == f"Token 0 “\u2068{SPACE}a\u2069” of text 1 goes to " + " and ".join(
        f"expert {e + 1} (0.50)" for e in given["experts_NK"][0]
    )
    assert spec["layout"]["yaxis"]["ticktext"] == ["<b>1</b>", "<b>2</b>"]


def test_a_mark_stands_over_each_token_whose_first_expert_changed() -> None:
    given, before = probe_of_tokens(6), probe_of_tokens(6)["experts_NK"].copy()
    before[[1, 4], 0] = (before[[1, 4], 0] + 1) % 8
    spec = probe_tokens.spec(list("abcdef"), **given, before_NK=before, before=50)
    cells, marks = trace(spec, "first expert"), trace(spec, "changed")
    px = tokens.COLUMN * tokens.SIZES[0]
    assert marks["x"].tolist() == pytest.approx([1.5 * px, 4.5 * px])
    said = [text.partition("; ")[2] for text in cells["hovertext"]]
    assert said == ["" if n not in (1, 4) else f"at step 50 to expert {before[n, 0] + 1}" for n in range(6)]
    assert "▾ changed since step 50" in spec["layout"]["title"]["text"]


@pytest.mark.parametrize(
    ("string", "text", "columns"),
    [
        ("Ġthe", "the", 4), ("▁▁x", "x", 3), ("Ċ", "⏎", 1), ("\r\n\t", "␍⏎⇥", 3), ("猫は", "猫は", 4), ("🙂", "🙂", 2), ("é", "é", 1), ("e\u0301", "e\u0301", 1),
        ("\u202eab", "□ab", 3), ("\xa0", "", 1), ("", "", 1), ("a b", "a b", 3), ("x" * 99, "x" * (LONGEST - 1) + "…", LONGEST),
        ("猫" * 99, "猫" * 11 + "…", LONGEST - 1), ("a" + "\u0301" * 99, "a\u0301\u0301", 1),
    ],
)  # fmt: skip
def test_how_a_token_is_written(string: str, text: str, columns: int) -> None:
    word = word_of(string)
    assert (word.text, word.columns) == (text, columns)


def test_words_are_set_in_lines_and_each_text_begins_one() -> None:
    lines, starts = broken([4, 4, 4, 9, 1, 2], [0, 0, 0, 0, 0, 1], 9)
    assert (lines.tolist(), starts.tolist()) == ([0, 0, 1, 2, 3, 4], [0, 4, 0, 0, 0, 0])


@pytest.mark.parametrize("size", [(940, 387), (342, 320), (1600, 700), (40, 40)])
@pytest.mark.parametrize("E", [8, 64])
@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_nothing_leaves_the_plot_and_strings_are_words_only(size: Any, E: int, theme: Any) -> None:
    strings = (HOSTILE + TEXT) * 20
    rows = np.repeat(np.arange(20), len(HOSTILE + TEXT))
    given = probe_of_tokens(len(strings), E)
    for spec in (
        probe_tokens.spec(strings, **given, row_N=rows, theme=theme, size=size),
        favourite_tokens.spec(strings, given["gates_NK"][:, 0], 3, row_N=rows, theme=theme, size=size),
    ):
        go.Figure(data=spec["data"], layout=spec["layout"])
        drawn = [word for one in spec["data"] for key in ("text", "hovertext") for word in one.get(key, [])]
        assert drawn
        for word in drawn:
            assert not re.search(r"<(?!/?b>)|%\{|[\x00-\x1f\u202a-\u202e\u200b-\u200f]", word), word
            assert len(word) < 400
        assert max(len(word) for one in spec["data"] for word in one.get("text", [""])) < 8 * LONGEST
    spec = probe_tokens.spec(strings, **given, row_N=rows, theme=theme, size=size)
    width, height = spec["layout"]["xaxis"]["range"][1], spec["layout"]["yaxis"]["range"][0]
    if (cells := next((one for one in spec["data"] if one["name"] == "first expert"), None)) and size[0] > 40:
        assert (cells["base"] + cells["x"]).max() <= width
        assert (cells["y"] + cells["width"] / 2).max() <= height
        shown = len(cells["base"])
        assert ("the first" in spec["layout"]["title"]["text"]) == (shown < len(strings))


def test_with_many_experts_each_token_has_its_number_and_the_pinned_ones_a_colour() -> None:
    given = probe_of_tokens(30, 64)
    spec = probe_tokens.spec(["word"] * 30, **given, pinned=[int(given["experts_NK"][3, 0])])
    first = given["experts_NK"][:, 0]
    assert trace(spec, "experts")["text"] == [str(e + 1) for e in first]
    colours = np.array(trace(spec, "first expert")["marker"]["color"])
    assert len({*colours[first == first[3]]}) == 1
    assert len({*colours}) == 2
    assert f"■</span>\u00a0{first[3] + 1}, the rest grey" in spec["layout"]["title"]["text"]


def test_a_token_that_no_expert_took_is_hollow() -> None:
    given = probe_of_tokens(3)
    given["experts_NK"][1] = 8
    spec = probe_tokens.spec(list("abc"), **given)
    assert trace(spec, "first expert")["marker"]["line"]["width"] == [0, 1, 0]
    assert "went nowhere" in trace(spec, "first expert")["hovertext"][1]
    assert "33.3 % of them no expert took" in spec["layout"]["title"]["text"]


def test_the_favourites_are_the_strings_with_most_weight_in_all() -> None:
    strings = [" the", " cat", " the", " dog", " the", " cat"]
    spec = favourite_tokens.spec(strings, np.array([0.3, 0.9, 0, 0, 0.7, 0]), 2, row_N=np.array([0, 0, 0, 1, 1, 1]))
    assert trace(spec, "gate")["x"].tolist() == pytest.approx([1.0, 0.9])
    assert trace(spec, "token")["text"] == [f"<b>{SPACE}the</b>", f"<b>{SPACE}cat</b>"]
    # Where it gives most: the second text's " the", and its neighbours there.
    assert trace(spec, "before")["text"] == [f"{SPACE}dog", f"{SPACE}the"]
    assert trace(spec, "after")["text"] == [f"{SPACE}cat", f"{SPACE}the"]
    assert "at 2 of its 3 places" in trace(spec, "gate")["hovertext"][0]
    assert "3 of 6 tokens go to it" in spec["layout"]["title"]["text"]


def test_a_run_of_tokens_has_these_figures_on_its_pages(tmp_path: Path) -> None:
    run = record_tokens(tmp_path / "a", HOSTILE + TEXT, np.arange(40) % 30)  # five ids have no text
    assert on_page(run, "routing") == ["probe_tokens", "tokens_by_expert", "churn"]
    assert on_page(run, "experts") == ["expert_rank", "favourite_tokens", "saturation", "expert_flow"]
    for name in (*on_page(run, "routing"), *on_page(run, "experts")):
        spec = FIGURES[name].draw.spec(**FIGURES[name].read(run, At(1)), theme=LIGHT, size=(460, 300))
        assert spec["data"], name
        assert "<script" not in json.dumps(spec, default=str)
    read = FIGURES["probe_tokens"].read(run, At(1))
    assert (read["step"], read["before"], read["strings_N"][25:30]) == (20, 10, ["25", "26", "27", "28", "29"])


def test_an_export_has_the_number_of_each_letter_that_its_fonts_lack() -> None:
    strings = [*TEXT, *HOSTILE]
    given = probe_of_tokens(len(strings))
    for spec in (probe_tokens.spec(strings, **given), favourite_tokens.spec(strings, given["gates_NK"][:, 0], 1)):
        sheet = draw(spec)
        svg = to_svg(sheet)
        assert not re.search("[א-ת猫は🙂]", svg)
        assert "732B" in svg
        assert "<script" not in svg
        assert to_png(sheet)[:4] == b"\x89PNG"
        assert to_pdf([sheet])[:5] == b"%PDF-"
    words = re.findall(r">([^<>]+)</tspan>", to_svg(draw(probe_tokens.spec(strings, **given))))
    assert {"the", "cat", "05E9 ", "05DC ", "05D5 ", "05DD ", "é", "¶"} <= set(words)


def test_2048_tokens_are_read_and_drawn_quickly(tmp_path: Path) -> None:
    names = [f" w{i}" for i in range(1500)]
    run = record_tokens(tmp_path / "a", names, np.random.default_rng(0).integers(0, 1500, 2048), E=128)
    for name in ("probe_tokens", "favourite_tokens"):
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            FIGURES[name].draw.spec(**FIGURES[name].read(run, At(1)), theme=LIGHT, size=(1400, 490))
            seconds.append(time.perf_counter() - began)
        assert min(seconds) < 0.3, (name, seconds)  # 30 ms on two cores


def test_short_texts_are_set_large_where_that_breaks_no_line() -> None:
    strings, given = ["cat", "dog"] * 4, probe_of_tokens(8)
    wide, narrow = (probe_tokens.spec(strings, **given, size=(width, 400)) for width in (940, 240))
    of = lambda spec: next(one for one in spec["data"] if one["name"] == "tokens")["textfont"]["size"]
    assert (of(wide), of(narrow)) == (22, 14)
