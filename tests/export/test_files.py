"""Every figure in every format: whole, stamped, safe, and the same bytes in another process."""

import hashlib
import json
import re
import subprocess
import sys
import xml.dom.minidom
import zlib
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from moe_core.export import FORMATS, Look, chosen, export, rendered
from moe_core.export.files import write, write_parts
from moe_core.export.fonts import width_of
from moe_core.export.look import sheet_of, spec_of
from moe_core.export.marks import Text
from moe_core.export.web import script_text
from moe_core.schema import TASKS
from tests.export.made import make_run

ROOT = Path(__file__).parents[2]
PICTURE = {"caption": True, "scale": 1}  # a pixel for each CSS pixel: four times as many take four times as long


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {task: make_run(folder, task) for task in TASKS}


@pytest.fixture(scope="module", params=[(theme, task) for theme in ("light", "dark") for task in TASKS], ids="-".join)
def exported(request, runs, tmp_path_factory):
    """Every figure of a run in every format: theme, task, folder and what was told of."""
    theme, task = request.param
    folder = tmp_path_factory.mktemp("exported")
    return theme, task, folder, export(runs[task], folder, FORMATS, look=Look(theme=theme, **PICTURE))


@pytest.mark.parametrize("given", [{"formats": ["bmp"]}, {"figures": ["regions"]}, {"look": Look(layer=2)}, {"look": Look(theme="pink")}, {"look": Look(size=(5, 300))}, {"look": Look(scale=90)}, {"look": Look(step=0)}, {"look": Look(step=10**6)}])  # fmt: skip
def test_what_there_is_not_is_refused_before_anything_is_written(runs, tmp_path, given):
    with pytest.raises(ValueError, match=r"there are|between"):
        export(runs["text"], tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_folders_place_stays(tmp_path, runs):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file"):
        export(runs["text"], tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_every_figure_is_drawn_in_every_format(runs, exported):
    theme, task, folder, files = exported
    names = chosen(runs[task], None)
    assert {f.name for f in files} == {f"{n}.{f}" for n in [*names, "statistics"] for f in FORMATS if n != "statistics" or f in ("csv", "parquet")} | {"export.json", "script.txt"}  # fmt: skip
    assert {p.name for p in folder.iterdir()} == {f.name for f in files}
    for file in files:
        if file.suffix == ".svg":
            xml.dom.minidom.parse(str(file))
        if file.suffix == ".png":
            colours = Image.open(BytesIO(file.read_bytes())).convert("RGB").getcolors(1 << 20)
            ground = (255, 255, 255) if theme == "light" else (17, 21, 26)
            assert max(colours)[1] == ground
            assert len(colours) > 3, f"{file.name} is empty"


def test_a_picture_has_exactly_the_size_asked_for(runs):
    for look in (Look(size=(400, 250)), Look(size=(400, 250), scale=1, font=20, caption=True), Look(size=(401, 251), scale=3, title="")):  # fmt: skip
        image = Image.open(BytesIO(rendered(runs["text"], "loss", "png", look)))
        assert image.size == (round(look.size[0] * look.scale), round(look.size[1] * look.scale))
    page = rendered(runs["text"], "loss", "svg", Look(size=(400, 250))).decode()
    assert 'width="300pt" height="187.5pt"' in page


def test_every_picture_says_where_it_is_from(runs):
    run = runs["text"]
    image = Image.open(BytesIO(rendered(run, "balance", "png", Look())))
    assert image.text["Run"] == "text"
    assert image.text["Step"] == "200"
    assert image.text["Changes"] == "step 101: noise 1 → 0.5 (script)"
    assert image.text["Software"].startswith("MoEscope ")
    assert "Changes: step 101: noise 1 → 0.5 (script)" in rendered(run, "balance", "svg", Look()).decode()
    assert 'name="moescope:run" content="text"' in rendered(run, "balance", "html", Look()).decode()
    assert "Changes: none".encode("utf-16-be").hex().upper() in rendered(run, "balance", "pdf", Look(step=50)).decode(
        "latin-1"
    )


def test_users_words_stay_words(runs):
    evil = "</script><script>alert(1)</script>&<b>"
    page = rendered(runs["text"], "loss", "html", Look(title=evil)).decode()
    assert "alert(1)</script>" not in page
    drawn = rendered(runs["text"], "loss", "svg", Look(title=evil)).decode()
    texts = xml.dom.minidom.parseString(drawn).getElementsByTagName("text")
    assert evil in {"".join(s.firstChild.data for s in t.getElementsByTagName("tspan") if s.firstChild) for t in texts}
    assert not xml.dom.minidom.parseString(drawn).getElementsByTagName("script")


def test_words_in_a_script_end_neither_the_script_nor_its_strings():
    text = script_text({"a": "</script><!--\u2028'\""})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"a": "</script><!--\u2028'\""}


def test_the_caption_stands_within_the_picture(runs):
    sheet, zoom = sheet_of(runs["text"], "loss", Look(size=(400, 250), caption=True), "where from")
    (line,) = [m for m in sheet.marks if isinstance(m, Text) and m.runs[0].text == "where from"]
    assert (sheet.width * zoom, sheet.height * zoom) == (400, 250)
    assert 225 < line.y < 248


def test_a_reader_of_the_old_file_reads_it_to_its_end(tmp_path):
    (tmp_path / "f").write_text("old")
    with open(tmp_path / "f") as reader:
        write(tmp_path / "f", "new")
        assert reader.read() == "old"
    assert (tmp_path / "f").read_text() == "new"


def test_a_pdf_is_sound_and_its_words_can_be_read(runs):
    data = rendered(runs["text"], "balance", "pdf", Look(caption=True))
    start = int(re.search(rb"startxref\n(\d+)\n%%EOF\n$", data).group(1))
    head, *entries = re.findall(rb"(\d{10}) \d{5} [nf] \n", data[start:])
    assert int(head) == 0
    for number, at in enumerate(entries, 1):
        assert data[int(at) :].startswith(f"{number} 0 obj\n".encode())
    letters, shown = {}, ""
    streams = [
        zlib.decompress(s) for s in re.findall(rb"FlateDecode/Length \d+>>stream\n(.*?)\nendstream", data, re.DOTALL)
    ]
    for stream in streams:
        if b"beginbfchar" in stream:
            fonts = {
                int(a, 16): bytes.fromhex(b.decode()).decode("utf-16-be")
                for a, b in re.findall(rb"<(\w{4})><(\w+)>", stream)
            }
            letters[len(letters)] = fonts
    content = next(s for s in streams if b" cm\n" in s and b" Tf " in s).decode()
    for font, moved in re.findall(r"/F(\d+) .*?\[(.*?)\] TJ", content):
        codes = "".join(re.findall(r"<(\w+)>", moved))
        shown += "".join(letters[int(font)][int(codes[i : i + 4], 16)] for i in range(0, len(codes), 4)) + "\n"
    assert "Balance over time" in shown
    assert "text, step 200, MoEscope" in shown
    assert "noise 1 → 0.5" in shown


@pytest.mark.parametrize("exported", [("light", "plane")], indirect=True, ids="-".join)
def test_two_processes_write_the_same_bytes(runs, exported, tmp_path):
    _, task, here, _ = exported
    code = (
        "import sys; from moe_core.export import export, FORMATS, Look; from moe_core.runs import open_run; "
        f"export(open_run(sys.argv[1]), sys.argv[2], FORMATS, look=Look(**{PICTURE}))"
    )
    subprocess.run([sys.executable, "-c", code, str(runs[task].path), str(tmp_path)], cwd=ROOT, check=True)
    mine, others = ({p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in f.iterdir()} for f in (here, tmp_path))
    assert mine == others


def test_a_file_that_was_not_finished_is_not_there(tmp_path):
    def parts():
        yield b"half"
        raise RuntimeError("stopped")

    (tmp_path / "old.bin").write_bytes(b"old")
    with pytest.raises(RuntimeError, match="stopped"):
        write_parts(tmp_path / "old.bin", parts())
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("old.bin", b"old")]


def test_an_export_can_be_stopped_between_two_files(runs, tmp_path):
    class Stop(Exception):
        pass

    def progress(done, of):
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        export(runs["text"], tmp_path, ("svg",), progress=progress)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_past_step_shows_no_later_change(runs):
    early = rendered(runs["text"], "balance", "svg", Look(step=50)).decode()
    assert "<desc>Step: 50</desc><desc>Changes: none</desc>" in early


def test_a_second_line_that_would_be_cut_is_broken_and_nothing_runs_over_the_edges(runs):
    for name in chosen(runs["text"], None):
        sheet, _ = sheet_of(runs["text"], name, Look(size=(320, 240)), "")
        assert (sheet.width, sheet.height) == (320, 240)
        lines = [m for m in sheet.marks if isinstance(m, Text) and m.x == 0]
        assert all(width_of(line.runs) <= 320 for line in lines[1:]), name
    wide, narrow = (
        [m for m in sheet_of(runs["text"], "probe_text", Look(size=(width, 400)), "")[0].marks if isinstance(m, Text) and m.x == 0]
        for width in (1400, 480)
    )  # fmt: skip
    said = [" ".join("".join(run.text for run in line.runs) for line in lines[1:]) for lines in (wide, narrow)]
    assert said[0] == said[1]
    assert len(narrow) == len(wide) + 1 == 3
    spec, _ = spec_of(runs["text"], "probe_text", Look(size=(480, 400)))
    assert spec["layout"]["height"] == 400  # what the words take comes off the plot, and leaves no gap below
    bare, _ = sheet_of(runs["text"], "probe_text", Look(size=(480, 400), title=""), "")
    assert not [m for m in bare.marks if isinstance(m, Text) and m.x == 0]
