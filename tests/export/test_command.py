"""export and report on the command line: what they write, and one line where they cannot."""

import json

import pytest
from PIL import Image

from moe_core.__main__ import main
from tests.export.made import make_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder, "text", steps=40).close()
    return folder


def export(runs, *words):
    return main(["export", "text", "--runs", str(runs), *words])


def test_the_flags_decide_the_picture(runs, tmp_path, capsys):
    words = ("--format", "png", "--figure", "loss", "--size", "320x200", "--scale", "1.5", "--theme", "dark", "--json")
    assert export(runs, "--out", str(tmp_path), *words) == 0
    *progress, event = map(json.loads, capsys.readouterr().out.splitlines())
    assert progress == [{"event": "progress", "done": done, "of": 1} for done in (0, 1)]
    assert event == {
        "event": "file",
        "path": str(tmp_path / "loss.png"),
        "bytes": (tmp_path / "loss.png").stat().st_size,
    }
    with Image.open(tmp_path / "loss.png") as image:
        assert image.size == (480, 300)
        assert image.convert("RGB").getpixel((479, 299)) == (17, 21, 26)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--size", "wide"), "WIDTHxHEIGHT"),
        (("--size", "0in"), "width must be between 120 and 8000 px"),
        (("--font", "nan"), "px or pt"),
        (("--smooth", "0"), "smooth must be between 1 and"),
        (("--scale", "0"), "scale must be between"),
        (("--layer", "2"), "layer must be between 1 and 1, got 2"),
        (("--format", "replay"), "end in .html"),
        (("--animate", "loss"), "end in .gif or .mp4"),
        (("--format", "png,doc"), "unknown format 'doc'"),
    ],
)
def test_bad_usage_is_one_line_and_writes_nothing(runs, tmp_path, capsys, words, said):
    assert export(runs, "--out", str(tmp_path / "out"), *words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_replay_report_and_animation_are_files(runs, tmp_path):
    assert export(runs, "--format", "replay", "--out", str(tmp_path / "r.html")) == 0
    assert (
        export(runs, "--animate", "balance_now", "--size", "200x150", "--scale", "1", "--out", str(tmp_path / "a.gif"))
        == 0
    )
    assert main(["report", "text", "--runs", str(runs), "--out", str(tmp_path / "r.pdf")]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gif", "r.html", "r.pdf"]
