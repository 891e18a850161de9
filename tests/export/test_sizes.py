"""A figure has the size on paper that a person wrote, to the hundredth of a point, with type of a size in points."""

import io
import re

import pytest
from PIL import Image

from moe_core.export import Look, rendered
from moe_core.export.look import check, spec_of
from moe_core.export.sizes import PAPER, size_of_words, type_of_words
from tests.export.made import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs"), "text", steps=40)


@pytest.mark.parametrize(
    ("words", "size", "paper"),
    [
        ("640x400", (640, 400), False),
        ("3.25in", (312, 192), True),
        ("6.75 in x 3 in", (648, 288), True),
        ("85x60mm", (85 / 25.4 * 96, 60 / 25.4 * 96), True),
        ("8.5cm x 60mm", (85 / 25.4 * 96, 60 / 25.4 * 96), True),
        ("16:9", (960, 540), False),
        ("1000", (1000, 450), False),
    ],
)
def test_a_size_is_read_in_its_unit(words, size, paper):
    read = size_of_words(words)
    assert read.size == pytest.approx(size)
    assert read.paper is paper


@pytest.mark.parametrize(
    "words", ["wide", "", "x", "3.25 furlong", "nanin", "1e9mm", "-3in", "infx2", "3x4x5", "٣in", "9" * 400]
)
def test_what_is_no_size_is_refused_in_one_short_line(words):
    with pytest.raises(ValueError, match="a size is written WIDTHxHEIGHT") as caught:
        size_of_words(words)
    assert len(str(caught.value)) < 250
    with pytest.raises(ValueError, match="a size of type is written in px or pt"):
        type_of_words(f"{words}!")


@pytest.mark.parametrize("words", ["0in", "0x0", "999999mm", "3.25inx0mm"])
def test_a_size_that_is_none_or_too_large_is_refused_with_its_limits(run, words):
    with pytest.raises(ValueError, match=r"must be between 120 and 8000 px \(1.25 to 83.33 in\), got \d"):
        check(run, Look(size=size_of_words(words).size))


def test_a_pdf_has_the_width_of_a_column_and_type_of_8_points(run):
    look = Look(size=size_of_words("3.25in").size, font=PAPER)
    page = rendered(run, "loss", "pdf", look).decode("latin-1")
    assert "/MediaBox[0 0 234 144]" in page  # 3.25 x 72
    drawn = rendered(run, "loss", "svg", look).decode()
    assert 'width="234pt" height="144pt"' in drawn
    size, box = (
        float(re.search(pattern, drawn)[1])
        for pattern in (r'font-size="([\d.]+)"[^>]*>steps?<', r'viewBox="0 0 ([\d.]+) ')
    )
    assert size * 312 / box * 0.75 == pytest.approx(8, abs=0.02)


@pytest.mark.parametrize("words", ["3.3in", "85mm", "640x400"])
def test_svg_pdf_and_png_of_a_figure_are_of_one_size_in_any_program(run, words):
    """A side without a unit is 1/96 in to a browser, and 1/72 in to a program for print; so is a PNG that does not say its density."""
    look = Look(size=size_of_words(words).size, scale=3, font=PAPER)
    inches = [side / 96 for side in look.size]
    svg = rendered(run, "loss", "svg", look).decode()
    sides = re.search(r'<svg [^>]*width="([\d.]+)pt" height="([\d.]+)pt" viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert [float(sides[i]) / 72 for i in (1, 2)] == pytest.approx(inches, abs=1e-4)
    assert float(sides[3]) / float(sides[4]) == pytest.approx(inches[0] / inches[1], abs=1e-3)
    box = re.search(rb"/MediaBox\[0 0 ([\d.]+) ([\d.]+)\]", rendered(run, "loss", "pdf", look))
    assert [float(box[i]) / 72 for i in (1, 2)] == pytest.approx(inches, abs=1e-4)
    with Image.open(io.BytesIO(rendered(run, "loss", "png", look))) as picture:
        assert [side / dpi for side, dpi in zip(picture.size, picture.info["dpi"], strict=True)] == pytest.approx(
            inches, abs=0.004
        )


def test_a_title_of_ones_own_takes_the_whole_of_the_figures_place(run):
    spec, _ = spec_of(run, "selection_share", Look(size=(150, 150), title="X"))
    assert spec["layout"]["title"]["text"].startswith("X<br><span")
    spec, _ = spec_of(run, "selection_share", Look(size=(150, 150), title="a longer title, of one's own & more"))
    first = spec["layout"]["title"]["text"].partition("<br><span")[0]
    assert "<br>" in first
    assert first.replace("<br>", " ") == "a longer title, of one's own &amp; more"
