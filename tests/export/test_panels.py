"""Several figures as panels of one file: lettered, apart, of the size asked for, stamped as one."""

import json
from io import BytesIO

import pytest
from PIL import Image

from moe_core.__main__ import main
from moe_core.export import Look, export
from moe_core.export.panels import panels, together
from tests.export.made import make_run
from tests.export.test_words_apart import boxes, clashes

THREE = ("balance", "loss", "selection_share")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs"), "text", steps=40)


@pytest.mark.parametrize(
    "look", [Look(), Look(size=(648, 200), font=32 / 3, caption=True), Look(title="", theme="dark")]
)
@pytest.mark.parametrize("columns", [1, 2, 3])
def test_panels_stand_in_rows_with_a_letter_each_and_no_words_touch(run, look, columns):
    if look.size and columns < 3:
        look = Look(size=(648, 600), font=look.font, caption=True)
    sheet, zoom, _ = together(run, THREE, look, columns)
    assert not clashes(sheet)
    found = {
        words[0]: box for words, box in boxes(sheet) if words[:1] in "abc" and (len(words) == 1 or words[1] == " ")
    }
    assert list(found) == ["a", "b", "c"]
    if columns > 1:
        assert found["a"][1] == pytest.approx(found["b"][1])
        assert found["b"][0] > sheet.width / columns
    else:
        assert found["a"][0] == found["b"][0] == found["c"][0] == 0
    if look.size:
        assert (sheet.width * zoom, sheet.height * zoom) == pytest.approx(look.size)


def test_panels_are_stamped_as_smoothed_if_one_of_them_is(run):
    look = Look(smooth=5, caption=True)
    assert "Smoothed" not in together(run, ("balance_now", "churn"), look, 2)[2]
    sheet, _, facts = together(run, ("balance_now", "loss"), look, 2)
    assert facts["Smoothed"].endswith("mean of 5 steps")
    assert any("mean of 5 steps" in words for words, _ in boxes(sheet))


def test_the_command_writes_one_file_and_a_table_each(run, tmp_path, capsys):
    words = [
        "export",
        str(run.path),
        "--figure",
        *THREE,
        "--panels",
        "3",
        "--size",
        "6.75in",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([*words, "--format", "png,csv", "--scale", "1"]) == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"panels.png", "export.json", "script.txt", "statistics.csv", *(f"{n}.csv" for n in THREE)}  # fmt: skip
    with Image.open(tmp_path / "out" / "panels.png") as image:
        assert image.size == (648, 192)
        assert image.text["Title"] == "a: Balance over time; b: Loss; c: Share of selections by expert"
    assert json.loads((tmp_path / "out" / "export.json").read_text())["loss.csv"]["Run"] == "text"
    capsys.readouterr()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"columns": 9}, "between 1 and 6 panels stand beside each other, got 9"),
        ({"columns": -1}, "between 1 and 6 panels"),
        ({"formats": ["html"]}, "panels are written as png, svg, pdf"),
        ({"look": Look(title="One")}, "each panel has its figure's title"),
        ({"look": Look(size=(200, 200))}, "width must be between 120"),
    ],
)
def test_what_cannot_be_panels_is_one_line_and_writes_nothing(run, tmp_path, given, said):
    with pytest.raises(ValueError, match=said):
        export(run, tmp_path / "out", **({"formats": ["svg"], "figures": THREE, "columns": 2} | given))
    assert not (tmp_path / "out").exists()


def test_two_calls_write_the_same_bytes(run):
    one, other = (panels(run, THREE, "pdf", Look(), 2) for _ in range(2))
    assert one == other
    assert Image.open(BytesIO(panels(run, THREE[:1], "png", Look(scale=1), 2))).size == (480, 300)
