"""A link is read word by word; what cannot be meant is taken out of it and said, on every page."""

from pathlib import Path
from urllib.parse import parse_qs, urlencode

import pytest
from streamlit.testing.v1 import AppTest

from moe_core.dashboard.links import OWN, SIZES, UNREAD, WORDS, chosen, literal, readable
from tests.figures.record import record

ROOT = Path(__file__).parents[2]

GOOD = {
    "run": "text-1124-0931-k7f2", "sweep": "new", "layer": "2", "step": "40", "lesson": "8", "figures": "loss,nothing", "format": "svg",
    "size": "px", "theme": "dark", "width": "640", "height": "400", "font": "13.5", "wide": "3.25", "high": "2", "type": "8", "smooth": "50", "panels": "2", "scale": "0.5", "title": "Größe, <b> & 50 %",
    "bare": "true", "caption": "false", "read": "true", "with": "a,b", "align": "fork", "expert": "3", "pinned": "3,17", "tokens": "4096", "k": "2", "experts": "64", "devices": "1",
}  # fmt: skip
LONG = [
    "9" * 400,
    "9" * 5000,
    "x" * 400,
    "é" * 150,
    "-1",
    "1e310",
    "inf",
    "nan",
    "٣",
    "\0",
    "a\nb",
    "/etc",
    "../x",
    "a/b",
    ".",
    "",
    " 1",
]
# Of these, what a word may nevertheless be.
TAKEN = {
    "title": {"-1", "1e310", "inf", "nan", "٣", "/etc", "../x", "a/b", ".", "", " 1", "é" * 150},
    "figures": set(LONG),
    "with": {""},
}
TAKEN |= {key: {"1e310", "inf", "nan", "٣"} for key in ("run", "sweep", "with")}
TAKEN["with"] = TAKEN["with"] | {""}


@pytest.mark.parametrize("name", WORDS)
def test_a_word_is_of_its_type_or_refused_in_one_line(name: str) -> None:
    chosen(name, GOOD[name])
    for text in LONG:
        if text in TAKEN.get(name, set()):
            chosen(name, text)
            continue
        with pytest.raises(ValueError, match=f"^{name} must be ") as caught:
            chosen(name, text)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 250


SIZES_BEFORE = {  # in links that were made before a size had a word of its own in them: the page's label of then
    "one column, 3.25 in (ICML)": "3.25in", "one column, 3.5 in (IEEE)": "3.5in", "one column, 89 mm (Nature)": "89mm",
    "whole page, 5.5 in (NeurIPS, ICLR)": "5.5in", "both columns, 6.75 in (ICML)": "6.75in", "both columns, 7.16 in (IEEE)": "7.16in",
    "both columns, 183 mm (Nature)": "183mm", "slide": "16:9", "screen, 480 × 300 px": "480x300", "screen, 900 × 500 px": "900x500",
    "own size": "px", "own inches": "in", "own mm": "mm",
}  # fmt: skip


def test_a_size_is_read_by_its_word_and_by_the_label_of_earlier_links() -> None:
    """Whoever gives a size another label keeps the earlier one readable."""
    assert {label: chosen("size", label) for label in SIZES_BEFORE} == SIZES_BEFORE
    assert [chosen("size", word) for word in (*SIZES, *OWN)] == [*SIZES, *OWN]


def test_every_word_of_the_table_has_a_good_value_here() -> None:
    assert set(GOOD) == set(WORDS)


def test_a_link_is_readable_without_its_wrong_words_which_are_named() -> None:
    good = urlencode(GOOD) + "&other=" + "9" * 5000
    assert readable(good) == good
    for bad in LONG:
        query = urlencode([*GOOD.items(), *dict.fromkeys(WORDS, bad).items()])
        found = parse_qs(readable(query), keep_blank_values=True)
        named = set(found.pop(UNREAD, ()))
        assert named == {name for name in WORDS if bad not in TAKEN.get(name, set())}
        assert set(found) == set(WORDS) - named
    assert readable("&".join(["run=a"] * 101)) == ""
    assert parse_qs(readable("run=a&run=/etc")) == {UNREAD: ["run"]}


def test_the_page_says_which_words_were_left_out_and_no_words_of_a_stranger_s(runs: Path) -> None:
    app = AppTest.from_file(str(ROOT / "moe_core" / "dashboard" / "main.py"), default_timeout=60)
    app.query_params[UNREAD] = ["font", "<b>", "run"]
    app = app.run()
    said = [toast.value.replace("\\", "") for toast in app.toast]
    assert [text.partition(" ")[0] for text in said] == ["font", "run"]
    assert "a number from 6 to 48" in said[0]
    assert UNREAD not in app.query_params


def test_a_link_cannot_open_a_folder_that_is_not_a_run_s(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    record(elsewhere / "secret", E=4, L=1)
    record(runs / "a", E=4, L=1)
    for named in (str(elsewhere / "secret"), f"../{elsewhere.name}/secret"):
        app = AppTest.from_file(str(ROOT / "moe_core" / "dashboard" / "main.py"), default_timeout=60)
        app.query_params["run"] = named
        app = app.run()
        assert '"run": "a"' in "".join(one.proto.json for one in app.get("bidi_component"))
        assert "secret" not in "".join(one.proto.json for one in app.get("bidi_component"))


def test_words_of_a_link_are_text_in_what_is_said() -> None:
    assert literal("[a](http://b) *c* `d` $e$ <f>") == r"\[a\]\(http\:\/\/b\) \*c\* \`d\` \$e\$ \<f\>"


def test_text_of_a_person_is_left_as_it_is_by_markdown() -> None:
    assert literal("_a_ *b* $c$ :d: [e](f) <g>") == r"\_a\_ \*b\* \$c\$ \:d\: \[e\]\(f\) \<g\>"
    assert literal("🧪 موازنة é–") == "🧪 موازنة é–"  # before these a backslash would be shown
