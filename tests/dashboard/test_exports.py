"""The Export page in its states, and its long work: it ends, it fails in words, it can be cancelled."""

import threading
import time
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from moe_core.dashboard.exports import Stopped, Work, folder_of, kilobytes
from moe_core.export import Look
from moe_core.runs import create_run
from moe_core.schema import Config, Knobs
from tests.export.made import make_run

MAIN = str(Path(__file__).parents[2] / "moe_core" / "dashboard" / "main.py")
pytestmark = pytest.mark.filterwarnings("ignore")  # streamlit's own, under AppTest


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("MOE_RUNS", str(tmp_path))
    return tmp_path


def page(**query):
    app = AppTest.from_file(MAIN, default_timeout=60)
    for name, value in query.items():
        app.query_params[name] = value
    app.run()
    app.switch_page(str(Path(__file__).parents[2] / "pages" / "export.py"))
    return app.run()


def words(app):
    return " ".join([c.value for c in app.caption] + [str(h.proto.body) for h in app.get("html")])


def test_a_figure_is_previewed_with_its_size_and_can_be_downloaded(runs):
    make_run(runs, "text").close()
    app = page(run="text")
    assert not app.exception
    assert "Load share by expert: 480 × 300 px, 960 × 600 pixels" in words(app)
    assert "data:image/png;base64," in words(app)
    assert [b.proto.label for b in app.get("download_button")] == ["Export"]
    app.number_input(key="export-font").set_value(18).run()
    app.selectbox(key="export-size").set_value("Slide, 960 × 540").run()
    app.button_group(key="export-format").set_value("svg").run()
    assert not app.exception
    assert "Load share by expert: 960 × 540 px," in words(app)
    assert "KB as svg" in words(app)


def test_the_link_names_figures_and_step(runs):
    make_run(runs, "text").close()
    app = page(run="text", figures="loss,nonsense,churn", step="50")
    assert app.multiselect[0].value == ["loss", "churn"]
    assert "As it stood at step 50." in words(app)
    assert "Export 2 figures" in {b.label for b in app.button}


def test_without_steps_there_is_nothing_to_export_and_without_a_run_the_cards(runs):
    assert [b.label for b in page().button][-3:] == ["Text", "Digits", "Plane"]
    create_run(runs / "r", Config(), Knobs()).finish("failed")
    app = page(run="r")
    assert not app.exception
    assert "no recorded step" in app.info[0].value


def test_a_report_is_made_beside_the_page_and_offered(runs):
    make_run(runs, "plane", steps=20).close()
    app = page(run="plane")
    next(b for b in app.button if b.label == "Make replay").click().run()
    assert not app.exception
    (work,) = (app.session_state[k] for k in ("work-replay-plane",))
    work.thread.join(60)
    app.run()
    labels = [b.proto.label for b in app.get("download_button")]
    assert any(label.startswith("Download, ") for label in labels)
    assert work.file.name == "plane-replay.html"


def test_work_can_be_cancelled_and_keeps_nothing(runs):
    run = make_run(runs, "plane", steps=20)
    entered = threading.Event()

    def forever(run, folder, progress):
        entered.set()
        while True:
            progress(1, 3)
            time.sleep(0.005)

    work = Work("long", run.path, forever)
    assert entered.wait(10)
    assert work.busy
    work.stop.set()
    work.thread.join(10)
    assert not work.busy
    assert work.file is None
    assert work.error == "Cancelled. Nothing was kept."
    with pytest.raises(Stopped):
        work.progress(1, 2)


def test_what_goes_wrong_is_said_in_one_line(runs):
    run = make_run(runs, "plane", steps=20)

    def bad(run, folder, progress):
        raise ValueError("wanted this, got that")

    work = Work("bad", run.path, bad)
    work.thread.join(10)
    assert (work.error, work.file) == ("wanted this, got that", None)


def test_many_figures_are_one_zip_with_the_same_bytes_each_time(runs, tmp_path):
    import zipfile

    run = make_run(runs, "plane", steps=20)
    made = [
        folder_of(["loss", "churn"], "csv", Look())(run, folder, lambda done, of: None)
        for folder in (tmp_path / "a", tmp_path / "b")
        if folder.mkdir() is None
    ]
    assert zipfile.ZipFile(made[0]).namelist() == [
        "loss.csv",
        "churn.csv",
        "statistics.csv",
        "export.json",
        "script.txt",
    ]
    assert made[0].read_bytes() == made[1].read_bytes()


def test_sizes_are_read_by_people():
    assert [kilobytes(n) for n in (900, 84_400, 5_200_000)] == ["1 KB", "84 KB", "5.2 MB"]
