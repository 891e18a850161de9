"""The report and the animation: everything in them, in one whole file each, and nothing that a user wrote as code."""

import itertools
import random
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from moe_core.export import Look
from moe_core.export.animation import animate, hold_axes, steps_of
from moe_core.export.fonts import shown, width_of
from moe_core.export.look import spec_of
from moe_core.export.marks import Run
from moe_core.export.pages import WIDE, Rows, column_widths, wrapped
from moe_core.export.report import parts_of, write_report
from moe_core.figures.catalog import FIGURES, shows
from tests.export.made import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs"), "text")


class Reader(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.text, self.tags = "", []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data + "\n"


def test_the_report_has_settings_changes_evaluations_figures_and_text(run, tmp_path):
    page = write_report(run, tmp_path / "report.html").read_text()
    read = Reader(page)
    for words in (
        "Configuration",
        "num_experts",
        "What was turned",
        "101",
        "w_importance",
        "perplexity",
        "<script>sample</script>",
    ):
        assert words in read.text
    assert "script" not in {tag for tag, _ in read.tags}
    images = [attributes for tag, attributes in read.tags if tag == "img"]
    figures = [name for name in FIGURES if shows(run, name)]
    assert len(images) == 2 * len(figures)  # light and dark
    assert {a["alt"] for a in images} == {FIGURES[name].title for name in figures}
    outside = [a.get("src", a.get("href", "")) for _, a in read.tags if a.get("src") or a.get("href")]
    assert all(one.startswith("data:") for one in outside)
    assert not re.search(r"https?://(?!www\.w3\.org/)", page)


def test_the_report_is_the_same_twice_and_prints_as_pdf(run, tmp_path):
    one, two = (write_report(run, tmp_path / f"{name}.pdf").read_bytes() for name in "ab")
    assert one == two
    pages = int(re.search(rb"/Type/Pages/Count (\d+)", one).group(1))
    assert len(re.findall(rb"/Type/Page/", one)) == pages > 2


@pytest.mark.parametrize("name", ["report.txt", "report", "nowhere/report.html"])
def test_a_report_by_another_name_is_refused(run, tmp_path, name):
    with pytest.raises(ValueError, match=r"end in \.html or \.pdf|no folder"):
        write_report(run, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_run_without_steps_has_a_report_too(tmp_path):
    from moe_core.runs import create_run, open_run
    from moe_core.schema import Config, Knobs

    create_run(tmp_path / "r", Config(), Knobs(), probe={"tokens": np.zeros(4, np.uint8)}).finish("failed", "no data")
    parts = {part.title: part for part in parts_of(open_run(tmp_path / "r"), lambda *one: one)}
    assert ("state", "failed: no data") in parts["How it stands"].content[0].rows
    assert parts["What was turned"].content == [Rows(("step", "knob", "from", "to", "by"), [])]
    assert write_report(open_run(tmp_path / "r"), tmp_path / "r.html").stat().st_size > 1000


def test_a_drag_is_one_line_of_what_was_turned(tmp_path):
    from moe_core.runs import create_run, open_run
    from moe_core.schema import Config, Knobs

    create_run(tmp_path / "r", Config(), Knobs(), probe={"tokens": np.zeros(4, np.uint8)}).finish("stopped")
    run = open_run(tmp_path / "r")
    for value in (0.9, 0.8, 0.7):
        run.turn(who="dashboard/abc", noise=value)
    run.turn(who="script", k=1)
    (turned,) = [part.content[0].rows for part in parts_of(run, lambda *one: one) if part.title == "What was turned"]
    assert turned == [("not acted", "noise", "1", "0.7", "dashboard"), ("not acted", "k", "2", "1", "script")]


def test_words_are_broken_where_the_line_ends_and_none_is_lost():
    text = "a path of " + "x" * 300 + " and more"
    lines = wrapped(text, 12, 200)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(width_of((Run(line, (0, 0, 0, 1.0), 12, 400, False),)) <= 200 for line in lines)
    widths = column_widths([("a", "word " * 60, "more " * 60)], 12)
    assert sum(widths) == pytest.approx(WIDE)
    assert min(widths) > 10


def test_an_animation_shows_recorded_steps_in_order(run, tmp_path):
    path = animate(run, "tokens_by_expert", tmp_path / "a.gif", Look(size=(300, 200), scale=1), seconds=2)
    image = Image.open(BytesIO(path.read_bytes()))
    assert image.n_frames == len(run.snapshots()) == len(steps_of(run, "tokens_by_expert"))
    assert image.size == (300, 200)
    assert b"Run: text" in image.info["comment"]
    frames = set()
    for i in range(image.n_frames):
        image.seek(i)
        frames.add(image.convert("RGB").crop((0, 0, 300, 170)).tobytes())  # the caption below differs anyway
    assert len(frames) == image.n_frames
    again = animate(run, "tokens_by_expert", tmp_path / "b.gif", Look(size=(300, 200), scale=1), seconds=2)
    assert again.read_bytes() == path.read_bytes()
    shown = steps_of(run, "balance_now")
    assert len(shown) == 120
    assert (shown[0], shown[-1]) == (1, 200)


def test_every_frame_of_an_animation_has_the_same_axes(tmp_path):
    """A bar that grows must not look like one that shrinks: of all figures whose axes follow what they show."""
    for task in ("text", "digits"):
        run = make_run(tmp_path, task, steps=300)
        moved = set()
        for name in ("balance_now", "expert_rank", "tokens_by_expert", "saturation", "batch_formula", "loss"):
            specs = [spec_of(run, name, Look(step=step))[0]["layout"] for step in (1, 40, 150, 299)]
            before = [[list(spec[axis]["range"]) for spec in specs] for axis in ("xaxis", "yaxis")]
            moved |= {name for ranges in before if any(one != ranges[0] for one in ranges)}
            hold_axes(specs)
            for axis, ranges in zip(("xaxis", "yaxis"), before, strict=True):
                (held,) = {tuple(spec[axis]["range"]) for spec in specs}
                assert min(held) == min(map(min, ranges))
                assert max(held) == max(map(max, ranges))
                assert (held[0] < held[1]) == (ranges[0][0] < ranges[0][1])
                assert len({str(spec[axis].get("tickvals")) for spec in specs}) == 1
        assert "saturation" in moved
        run.close()


def test_an_animation_by_another_name_or_without_ffmpeg_is_refused_in_one_line(run, tmp_path, monkeypatch):
    import shutil
    import sys

    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for name, words in (("a.mp4", "pip install imageio-ffmpeg"), ("a.avi", r"\.gif or \.mp4")):
        with pytest.raises(ValueError, match=words):
            animate(run, "balance_now", tmp_path / name, Look())
    assert not list(tmp_path.iterdir())


def test_what_is_not_shown_in_full_says_so(tmp_path):
    from moe_core.runs import Batch, create_run, open_run
    from moe_core.schema import Config, Knobs

    for name, many in (("few", 5), ("many", 60)):
        writer = create_run(tmp_path / name, Config(), Knobs(), probe={"tokens": np.zeros(4, np.uint8)})
        metrics = {"bits_per_byte": 2.0, "perplexity": 4.0}
        writer.commit(Batch(0, np.empty((0, 0)), evals=[(50 * i, metrics, "text") for i in range(1, many + 1)]))
        writer.finish("stopped")
        parts = {part.title: part.content for part in parts_of(open_run(tmp_path / name), lambda *one: one)}
        if name == "few":
            assert {"Evaluations", "Samples"} <= set(parts)
        else:
            assert len(parts["Evaluations: 25 of 60"][0].rows) == 25
            assert len(parts["Samples: the last 5 of 60"]) == 5


def test_the_knobs_at_the_end_are_those_that_acted_last(tmp_path):
    from moe_core.runs import Batch, create_run, open_run
    from moe_core.schema import Config, Knobs, layout

    config = Config(num_experts=4, layers=1)
    writer = create_run(tmp_path / "r", config, Knobs(), probe={"tokens": np.zeros(4, np.uint8)})
    run = open_run(tmp_path / "r")
    rows = np.ones((30, sum(c.width for c in layout(1, 4))), np.float32)
    run.turn(who="autobalance", w_load=0.00083249)
    writer.commit(Batch(1, rows, applied=[(1, 26)], state="training"))
    run.turn(who="autobalance", w_load=0.000297)  # decided after the last step
    run.close()
    writer.finish("finished")
    parts = {
        part.title: part.content[0].rows
        for part in parts_of(open_run(tmp_path / "r"), lambda *one: one)
        if part.title != "Figures"
    }
    assert ("w_load", "0.01", "8.3e-4") in parts["Knobs"]
    assert parts["What was turned"] == [("26", "w_load", "0.01", "8.3e-4", "autobalance")]


def test_a_word_of_any_length_is_broken_with_each_letter_measured_once(monkeypatch):
    letters = []

    def counting(run):
        letters.append(len(run.text))
        return shown(run)

    monkeypatch.setattr("moe_core.export.fonts.shown", counting)
    word = "AVo" * 20_000
    lines = wrapped(f"a {word} b", 12, 200)
    assert "".join(lines).replace(" ", "") == f"a{word}b"
    assert max(map(len, lines)) < 50
    assert sum(letters) < 3 * len(word)


@pytest.mark.parametrize("width", [3, 20, 60, 150, 400])
def test_the_pieces_of_a_word_are_as_long_as_fits(width):
    draw = random.Random(width)
    wide = lambda words: width_of((Run(words, (0, 0, 0, 1.0), 12, 400, False),))
    for _ in range(20):
        word = "".join(draw.choice("AVToWil.,fjx√é漢") for _ in range(100))
        lines = wrapped(word, 12, width)
        assert "".join(lines) == word
        assert all(wide(line) <= width or len(line) == 1 for line in lines)
        assert all(wide(line + after[0]) > width for line, after in itertools.pairwise(lines))


def test_a_text_of_one_word_is_reported_as_pdf(run, tmp_path, monkeypatch):
    texts = [e._replace(text="x" * 50_000) for e in run.evals()[-1:]]
    monkeypatch.setattr(type(run), "evals", lambda self: texts)
    assert write_report(run, tmp_path / "long.pdf").read_bytes().startswith(b"%PDF")
