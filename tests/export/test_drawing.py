"""A spec comes out where plotly.js would draw it, and nothing is left out in silence."""

import re

import numpy as np
import pytest

from moe_core.export.axes import Axis, number, spacing, ticks
from moe_core.export.drawing import draw
from moe_core.export.fonts import face, named, spaced, width_of
from moe_core.export.marks import Path, Picture, Run, Sheet, Text, colour_of, lines_of
from moe_core.export.pdf import Document
from moe_core.figures.paper import base
from moe_core.figures.theme import LIGHT, MONO


def sheet(data, **layout):
    x, y = layout.pop("x", {"range": [0, 10]}), layout.pop("y", {"range": [0, 10]})
    made = base("f", "Title", "below", step=1, theme=LIGHT, size=(300, 200), x=x, y=y)
    return draw({"data": data, "layout": made | layout})


# Plot area of that size: from (48, 52), 244 wide and 110 high.
AREA = (48, 52, 244, 110)


def words(drawn):
    return {"".join(run.text for run in m.runs): m for m in drawn.marks if isinstance(m, Text)}


def test_a_line_lies_where_its_numbers_say_and_breaks_at_a_gap():
    line = {
        "type": "scatter",
        "mode": "lines",
        "x": [0, 5, 10, 2, 3],
        "y": [0, 5, 10, None, 1],
        "line": {"color": "#112233", "width": 3},
    }
    (path,) = [m for m in sheet([line]).marks if isinstance(m, Path) and m.width == 3]
    (first,) = path.lines  # a single point after the gap is no line
    np.testing.assert_allclose(first.points, [(48, 162), (170, 107), (292, 52)])
    assert path.stroke == (0x11, 0x22, 0x33, 1.0)
    assert path.clip == AREA


def test_the_log_axis_places_powers_evenly_and_nothing_below_zero():
    axis = Axis((-1, 1), (0, 100), True, {})
    np.testing.assert_allclose(axis.place([0.1, 1, 10]), [0, 50, 100])
    assert np.isnan(axis.place([0.0, -1.0])).all()


@pytest.mark.parametrize(
    ("length", "count", "step"), [(250, 8, 50), (10, 6, 2), (100, 5, 50), (1, 6, 0.2), (2, 6, 0.5), (0.03, 6, 0.01)]
)
def test_ticks_are_as_far_apart_as_those_of_plotly(length, count, step):
    # Measured: Plotly.newPlot with this range and nticks.
    assert spacing(length, {"nticks": count}, 500) == pytest.approx(step)


def test_ticks_speak_as_those_of_plotly():
    axis = Axis((-1, 1), (0, 100), False, {"nticks": 6})
    assert [text for _, text in ticks(axis)] == ["−1", "−0.5", "0", "0.5", "1"]
    assert number(-20_000, 10_000) == "−20k"
    fixed = Axis((3, 5), (0, 100), False, {"dtick": 0.5, "tickformat": ".1f"})
    assert [text for _, text in ticks(fixed)] == ["3.0", "3.5", "4.0", "4.5", "5.0"]
    given = Axis((0, 3), (0, 30), False, {"tickvals": [1, 2, 9], "ticktext": ["a", "b", "c"]})
    assert ticks(given) == [(10.0, "a"), (20.0, "b")]


def test_a_heatmap_has_the_colours_of_its_scale_cell_by_cell():
    trace = {
        "type": "heatmap", "x": [0, 5, 10], "y": [0, 5, 10], "z": [[0, 1], [0.5, np.nan]], "zmin": 0, "zmax": 1,
        "colorscale": [[0, "#000000"], [1, "#FFFFFF"]], "showscale": False,
    }  # fmt: skip
    (picture,) = [m for m in sheet([trace]).marks if isinstance(m, Picture)]
    assert picture.box == pytest.approx(AREA)
    rows, columns, _ = picture.pixels.shape
    assert (rows, columns) == (220, 488)
    low, high = picture.pixels[-1], picture.pixels[0]  # y runs upward
    assert low[0].tolist() == [0, 0, 0, 255]
    assert low[-1].tolist() == [255, 255, 255, 255]
    assert high[0].tolist() == [128, 128, 128, 255]
    assert high[-1][3] == 0


def test_bars_stand_on_their_base_and_leave_the_gap_between():
    bar = {"type": "bar", "x": [2, 5], "y": [4, -2], "base": 2.0, "marker": {"color": ["#FF0000", "#00FF00"]}}
    red, green = (
        next(m for m in sheet([bar], bargap=0.5).marks if isinstance(m, Path) and m.fill == colour)
        for colour in ((255, 0, 0, 1.0), (0, 255, 0, 1.0))
    )
    assert red.lines[0].points[:, 1].min() == pytest.approx(162 - 6 * 11)
    assert red.lines[0].points[:, 1].max() == pytest.approx(162 - 2 * 11)
    assert green.lines[0].points[:, 1].max() == pytest.approx(162)
    assert np.ptp(red.lines[0].points[:, 0]) == pytest.approx(1.5 * 24.4, abs=1)


def test_a_shape_on_the_paper_and_a_note_at_data_find_their_place():
    drawn = sheet(
        [],
        shapes=[{"type": "line", "xref": "x", "yref": "paper", "x0": 5, "x1": 5, "y0": 0, "y1": 1, "line": {"color": "#0000FF", "width": 1}}],
        annotations=[{"text": "here", "x": 5, "y": 5, "xref": "x", "yref": "y", "showarrow": False, "xanchor": "left", "yanchor": "middle", "bgcolor": "#EEEEEE"}],
    )  # fmt: skip
    (line,) = [m for m in drawn.marks if isinstance(m, Path) and m.stroke == (0, 0, 255, 1.0)]
    np.testing.assert_allclose(line.lines[0].points, [(170, 162), (170, 52)])
    note = words(drawn)["here"]
    assert note.x - note.anchor * width_of(note.runs) == pytest.approx(172)
    assert 107 < note.y < 114  # its middle, not its baseline, stands at the place


def test_titles_and_ticks_are_where_a_browser_puts_them():
    # Read from the text elements that plotly.js made in Chromium from this layout.
    found = words(sheet([], x={"title": "step", "range": [0, 10]}, y={"title": "CV", "range": [0, 10], "nticks": 3}))
    assert (found["Title"].x, found["Title"].y) == (0, 18)
    assert found["below"].y == pytest.approx(18 + 1.3 * 16)
    assert found["step"].y == pytest.approx(196)
    assert (found["CV"].angle, found["CV"].y) == (-90, 107)
    assert found["5"].y == pytest.approx({"x": 182.6, "y": 111.55}["y" if found["5"].anchor == 1 else "x"])


def test_what_cannot_be_drawn_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'violin'.*scatter, bar, heatmap"):
        sheet([{"type": "violin"}])
    with pytest.raises(ValueError, match="marker 'hash'"):
        sheet([{"type": "scatter", "mode": "markers", "x": [1], "y": [1], "marker": {"symbol": "hash"}}])
    with pytest.raises(ValueError, match="#RRGGBB"):
        colour_of("mauve")


def test_a_label_reads_its_tags_and_shows_what_was_escaped():
    font = {"family": "sans-serif", "size": 10, "color": "#000000"}
    (one, bold), (small,) = lines_of('a &lt;i&gt;<b>B</b><br><span style="color:#FF0000;font-size:7px">c</span>', font)
    assert (one.text, one.weight, bold.text, bold.weight) == ("a <i>", 400, "B", 700)
    assert (small.text, small.size, small.colour) == ("c", 7.0, (255, 0, 0, 1.0))


def test_a_letter_that_no_font_has_is_its_number_in_small_and_control_characters_are_blanks():
    (line,) = lines_of("a⏎日\x1b\u2068b", {"family": "x", "size": 10, "color": "#000000"})
    assert [(run.text, run.size) for run in named(line)] == [("a¶", 10), ("65E5 ", 4), (" b", 10)]
    (line,) = lines_of("日", {"family": MONO, "size": 10, "color": "#000000"})
    assert width_of(line) == pytest.approx(2 * 10 * face(True, 400).advance("a")), "two columns"


def test_markers_take_their_colour_from_a_scale():
    marker = {"color": [0.0, 1.0], "cmin": 0, "cmax": 2, "colorscale": [[0, "#000000"], [1, "#FFFFFF"]], "size": 8}
    drawn = sheet([{"type": "scatter", "mode": "markers", "x": [1, 2], "y": [1, 2], "marker": marker}])
    curves = [m for m in drawn.marks if isinstance(m, Path) and m.lines[0].curve]
    assert [m.fill for m in curves] == [(0, 0, 0, 1.0), (128, 128, 128, 1.0)]


def test_a_marker_that_is_not_clipped_is_whole_at_the_edge_and_absent_beyond():
    trace = {"type": "scatter", "mode": "lines+markers", "x": [1, 10, 5, 11], "y": [1, 10, 12, 5], "cliponaxis": False}
    curves = [m for m in sheet([trace]).marks if isinstance(m, Path) and m.lines[0].curve]
    middles = [m.lines[0].points.mean(axis=0) for m in curves]
    assert [m.clip for m in curves] == [None, None]
    np.testing.assert_allclose(middles, [(48 + 24.4, 162 - 11), (292, 52)], atol=0.5)


def test_on_a_log_axis_a_note_stands_at_a_power_and_a_shape_at_a_value():
    note = {"text": "ten", "x": 5, "y": 1, "xref": "x", "yref": "y", "showarrow": False, "yanchor": "middle"}
    line = {
        "type": "line",
        "xref": "paper",
        "yref": "y",
        "x0": 0,
        "x1": 1,
        "y0": 10,
        "y1": 10,
        "line": {"color": "#0000FF"},
    }
    drawn = sheet([], y={"type": "log", "range": [0, 2], "tickvals": []}, annotations=[note], shapes=[line])
    (path,) = [m for m in drawn.marks if isinstance(m, Path) and m.stroke == (0, 0, 255, 1.0)]
    assert path.lines[0].points[0][1] == pytest.approx(107)
    assert words(drawn)["ten"].y == pytest.approx(107 + 4.5, abs=1)


def test_a_note_on_a_log_axis_across_stands_at_a_power_too():
    note = {"text": "ten", "x": 1, "y": 5, "xref": "x", "yref": "y", "showarrow": False, "xanchor": "left"}
    drawn = sheet([], x={"type": "log", "range": [0, 2], "tickvals": []}, annotations=[note])
    found = words(drawn)["ten"]
    assert found.x - found.anchor * width_of(found.runs) == pytest.approx(170 + 2)


def test_plots_that_share_an_x_axis_have_its_words_once_below_the_lowest():
    font = {"family": "sans-serif", "size": 13, "color": "#000000"}
    y = {"range": [0, 1], "anchor": "x", "tickfont": font, "tickvals": [0.5]}
    x = {"title": "step", "range": [0, 10], "anchor": "y2", "tickvals": [5]}
    drawn = sheet([], x=x, yaxis=y | {"domain": [0.6, 1]}, yaxis2=y | {"domain": [0, 0.4]})
    said = [("".join(run.text for run in m.runs), m.y) for m in drawn.marks if isinstance(m, Text)]
    assert [text for text, _ in said].count("step") == 1
    assert [y > 162 for text, y in said if text == "5"] == [True]


def test_letters_are_kerned_as_the_font_says_at_its_weight():
    # From the font's own tables, in thousandths: P. is -112 at 400 and -132 at 700.
    assert [round(1000 * face(False, weight).kern("P", ".")) for weight in (400, 700)] == [-112, -132]
    assert face(False, 400).kern("1", "1") == 0
    run = Run("P.P", (0, 0, 0, 1.0), 100, 400, False)
    assert [letter for letter, _ in spaced(run)] == list("P.P")
    apart = sum(100 * face(False, 400).advance(letter) for letter in "P.P")
    assert width_of((run,)) == pytest.approx(apart - 11.2 + 100 * face(False, 400).kern(".", "P"), abs=0.1)
    mono = run._replace(mono=True)
    assert width_of((mono,)) == pytest.approx(3 * 100 * face(True, 400).advance("P"))


def test_a_pdf_moves_its_letters_as_the_png_does():
    run = Run("P.P", (0, 0, 0, 1.0), 100, 400, False)
    page = Sheet(300, 150, (Text((run,), 0, 100),))
    content = Document([page], {}, 1.0).content(page)
    (moved,) = re.findall(r"\[(.*)\] TJ", content)
    assert float(re.findall(r">([-\d.]+)<", moved)[0]) == pytest.approx(112.2, abs=0.1)


def test_the_words_of_a_tick_at_the_end_are_moved_in_rather_than_cut():
    found = words(sheet([], x={"range": [0, 4000], "tickvals": [0, 4000], "title": "step"}))["4000"]
    assert found.x + (1 - found.anchor) * width_of(found.runs) == pytest.approx(300)
