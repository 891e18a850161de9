"""A look that is kept in a file is that of the flags, which come before it; anything else is refused in one line."""

import json

import pytest
from PIL import Image

from moe_core.__main__ import main
from moe_core.export.style import LARGEST, read_style
from tests.export.made import make_run


def test_a_style_is_as_its_flags_would_be_and_a_flag_comes_before_it(tmp_path, capsys):
    make_run(tmp_path, "text", steps=40).close()
    style = {"size": "3.25in", "font": "7pt", "theme": "grey", "scale": 1, "smooth": 5, "caption": True, "title": ""}
    (tmp_path / "paper.json").write_text(json.dumps(style))
    words = ["export", "text", "--runs", str(tmp_path), "--format", "png", "--figure", "loss"]
    flags = [
        "--size",
        "3.25in",
        "--font",
        "7pt",
        "--theme",
        "grey",
        "--scale",
        "1",
        "--smooth",
        "5",
        "--caption",
        "--title",
        "",
    ]
    assert main([*words, "--out", str(tmp_path / "a"), "--style", str(tmp_path / "paper.json")]) == 0
    assert main([*words, "--out", str(tmp_path / "b"), *flags]) == 0
    assert (tmp_path / "a" / "loss.png").read_bytes() == (tmp_path / "b" / "loss.png").read_bytes()
    assert (
        main([*words, "--out", str(tmp_path / "c"), "--style", str(tmp_path / "paper.json"), "--size", "400x300"]) == 0
    )
    with Image.open(tmp_path / "c" / "loss.png") as image:
        assert image.size == (400, 300)
    assert main([*words, "--out", str(tmp_path / "d"), "--style", str(tmp_path / "nowhere.json")]) == 2
    assert "there is no file" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read as a style"),
        (b"\xff\xfe\xff", "cannot be read as a style"),
        (b"[" * 60_000, "cannot be read as a style"),
        (b" " * (LARGEST + 1), "at most 65,536 bytes"),
        (b"[1]", "one JSON object"),
        (b'{"colour": "red"}', "'colour', which no style has; a style has some of: size, font"),
        (b'{"size": 3}', r"size in f.json must be text, got 3"),
        (b'{"smooth": 2.5}', "smooth in f.json must be a whole number"),
        (b'{"title": "a\\ud800"}', r'title in f.json has half a character, "a\\ud800"; write it whole'),
        (b'{"\\ud800": 1}', "which no style has"),
        (b'{"scale": 1%s}' % (b"0" * 399), "a number in f.json has at most 15 digits, got 400"),
        (b'{"smooth": 1%s}' % (b"0" * 399), "a number in f.json has at most 15 digits, got 400"),
        (b'{"smooth": 1%s}' % (b"0" * 4999), "a number in f.json has at most 15 digits, got 5,000"),
        (b'{"scale": true}', "scale in f.json must be a whole number or a number, got true"),
    ],
)
def test_what_is_no_style_is_refused_in_one_line(tmp_path, content, said):
    (tmp_path / "f.json").write_bytes(content)
    with pytest.raises(ValueError, match=said) as caught:
        read_style(tmp_path / "f.json")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_style_of_100_mb_is_not_read(tmp_path):
    with open(tmp_path / "f.json", "wb") as file:
        file.truncate(100_000_000)
    with pytest.raises(ValueError, match="at most 65,536 bytes"):
        read_style(tmp_path / "f.json")
