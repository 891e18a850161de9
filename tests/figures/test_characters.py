"""Characters of several bytes: which bytes belong to one, where it stands, and that none is an anonymous box."""

import numpy as np
import pytest

from moe_core.figures.favourites import favourite_bytes
from moe_core.figures.probe import byte_names, characters, name_of_byte
from moe_core.figures.score import ROW, probe_text

E = 4


def bytes_of(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


def score_of(text: str, **more) -> dict:
    tokens_N = bytes_of(text)
    experts_N1 = (np.arange(len(tokens_N)) % E)[:, None]
    return probe_text.spec(tokens_N, experts_N1, np.ones_like(experts_N1, np.float32), E, **more)


def trace(spec: dict, name: str) -> dict:
    return next(one for one in spec["data"] if one["name"] == name)


@pytest.mark.parametrize("text", ["plain", "猫は", "é🙂", "שלום", "नमस्ते", "a\U0001f9d1\u200d\U0001f33e b"])
def test_each_byte_belongs_to_one_character_and_all_together_are_the_text(text: str) -> None:
    found = characters(bytes_of(text))
    assert [one.first for one in found] == np.cumsum([0, *(one.bytes for one in found)])[:-1].tolist()
    assert [one.bytes for one in found] == [len(letter.encode()) for letter in text]
    shown = [one.text for one in found if len(one.text) == 1]
    assert shown == [{" ": "·"}.get(letter, letter) for letter in text if letter.isprintable()]


def test_bytes_of_no_character_are_shown_by_their_number() -> None:
    assert [one.text for one in characters(np.array([0xAB, 65, 0xE7, 0x8C, 0x00], np.uint8))] == [
        "0xAB",
        "A",
        "0xE7",
        "0x8C",
        "0x00",
    ]
    assert (name_of_byte(65), name_of_byte(32), name_of_byte(0xE7)) == ("A", "·", "0xE7")


def test_no_character_goes_on_into_the_next_text() -> None:
    tokens_N = bytes_of("猫a")
    assert [one.text for one in characters(tokens_N, np.array([0, 0, 1, 1]))] == ["0xE7", "0x8C", "0xAB", "a"]


def test_a_character_stands_once_over_its_bytes_and_a_line_joins_them() -> None:
    spec = score_of("a猫é")
    words, joined = trace(spec, "bytes"), trace(spec, "characters")
    assert words["text"] == ["a", "猫", "é"]
    assert words["x"].tolist() == [0.5, 2.5, 4.5], "in the middle of three bytes, in the first of two"
    assert np.nan_to_num(joined["x"], nan=-1).round(1).tolist() == pytest.approx([1.1, 3.9, -1, 4.1, 5.9, -1])
    hover = trace(spec, "first expert, from byte 0")["text"][0]
    assert [hover[n].split(" goes")[0] for n in (0, 2, 5)] == [
        "Byte 0 “a”",
        "Byte 2 (2 of 3 of “猫”)",
        "Byte 5 (2 of 2 of “é”)",
    ]
    assert "characters" not in [one["name"] for one in score_of("plain")["data"]]


def test_a_character_that_the_end_of_a_line_parts_is_joined_in_both_lines() -> None:
    spec = score_of("x" * (ROW - 1) + "猫y")
    words, joined = trace(spec, "bytes"), trace(spec, "characters")
    assert words["x"][ROW - 1] == ROW - 0.5
    x, y = joined["x"], joined["y"]
    assert x[[0, 1, 3, 4]].round(1).tolist() == pytest.approx([ROW - 0.9, ROW - 0.1, 0.1, 1.9])
    assert y[0] == y[1] < y[3] == y[4]


def test_a_favourite_byte_has_its_character_in_bold_and_the_columns_line_up() -> None:
    tokens_N = bytes_of("ab猫cd")
    gate_N = np.array([0, 0.1, 0, 0.9, 0, 0, 0.5], np.float32)
    spec = favourite_bytes.spec(tokens_N, gate_N, 1)
    bars, words = spec["data"]
    assert words["text"][0] == "\u00a0" * 10 + "ab<b>猫</b>cd" + "\u00a0" * 4
    assert words["text"][1] == "\u00a0" * 7 + "ab猫c" + "<b>d</b>" + "\u00a0" * 6
    assert bars["hovertext"] == ["(2 of 3 of “猫”)", "“d”", "“b”"]
    assert byte_names(characters(tokens_N))[3] == "(2 of 3 of “猫”)"
