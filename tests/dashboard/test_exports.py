"""The Export page in its states, and its long work: it ends, it fails in words, it can be cancelled."""

import json
import re
import signal
import time
import zipfile
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from moe_core.__main__ import main
from moe_core.dashboard.exports import progress_of, words_of
from moe_core.dashboard.jobs import Work
from moe_core.dashboard.style_file import choices_of, style_of
from moe_core.export import Look, rendered
from moe_core.export.sources import Named
from moe_core.export.style import parsed_style, read_style
from moe_core.runs import change_notes, create_run
from moe_core.schema import Config, Knobs
from moe_core.sweep import make_plan, make_sweep
from tests.export.made import make_run

MAIN = str(Path(__file__).parents[2] / "moe_core" / "dashboard" / "main.py")


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
    assert "Share of selections by expert: 312 × 192 px, 624 × 384 pixels" in words(app)
    assert "data:image/png;base64," in words(app)
    assert [b.proto.label for b in app.get("download_button")] == ["Download the look", "Export"]
    app.selectbox(key="size").set_value("16:9").run()
    assert app.query_params["size"] == "16:9"
    app.number_input(key="font").set_value(18.0).run()
    app.button_group(key="format").set_value("svg").run()
    assert not app.exception
    assert "Share of selections by expert: 960 × 540 px," in words(app)
    assert "KB as svg" in words(app)


def test_a_size_on_paper_has_its_type_in_points(runs):
    make_run(runs, "text").close()
    app = page(run="text", size="mm", wide="85", high="60")
    assert not app.exception
    assert "321 × 227 px" in words(app)
    assert "On paper 3.35 × 2.36 in, with type of 8 pt." in words(app)
    app.selectbox(key="size").set_value("3.25in").run()
    app.number_input(key="type").set_value(7.0).run()
    assert "On paper 3.25 × 2 in, with type of 7 pt." in words(app)


def test_a_field_for_a_whole_number_takes_any_and_rounds_it(runs):
    """Streamlit's own for whole numbers would take the 1 of 1e3."""
    make_run(runs, "text").close()
    app = page(run="text", figures="loss,churn", size="px")
    for key, typed, taken in (("width", 1e3, 1000), ("height", 300.4, 300), ("smooth", 2.6, 3), ("panels", 1.7, 2)):
        field = app.number_input(key=key)
        assert field.proto.data_type == field.proto.FLOAT
        field.set_value(typed).run()
        assert not app.exception
        assert app.number_input(key=key).value == taken
    assert "2 panels: 1,000 × 300 px" in words(app)
    again = page(run="text", figures="loss,churn", size="px", width="1000.0", smooth="3.0")  # as such a field writes it
    assert [again.number_input(key=key).value for key in ("width", "smooth")] == [1000, 3]


def test_several_figures_are_panels_of_one_file(runs):
    make_run(runs, "text").close()
    app = page(run="text", figures="loss,churn", size="6.75in", panels="2", smooth="20")
    assert not app.exception
    assert "2 panels: 648 × 194 px" in words(app)
    assert [b.proto.label for b in app.get("download_button")] == ["Download the look", "Export"]


def test_the_link_names_figures_and_step(runs):
    make_run(runs, "text").close()
    app = page(run="text", figures="loss,nonsense,churn", step="50")
    assert app.multiselect[0].value == ["loss", "churn"]
    assert "As it stood at step 50." in words(app)
    assert "Export 2 figures" in {b.label for b in app.button}


def test_of_several_figures_each_can_be_seen_before_they_are_exported(runs):
    make_run(runs, "text").close()
    app = page(run="text", figures="loss,churn")
    assert "Figure 1 of 2. Loss: " in words(app)
    app.selectbox(key="previewed").set_value("churn").run()
    assert not app.exception
    assert "Figure 2 of 2. Router churn over time: " in words(app)
    assert 'alt="Router churn over time"' in words(app)
    app.multiselect[0].set_value(["loss", "balance"]).run()
    assert "Figure 1 of 2. Loss: " in words(app)


def test_the_link_holds_the_look(runs):
    make_run(runs, "text").close()
    app = page(
        run="text", size="own size", width="500", height="250", theme="dark", font="18", format="pdf", caption="true"
    )
    assert not app.exception
    assert "Share of selections by expert: 500 × 250 px, " in words(app)
    assert "as pdf" in words(app)
    assert (app.selectbox(key="theme").value, app.number_input(key="font").value) == ("dark", 18)
    assert app.checkbox(key="caption").value is True
    app = page(run="text", size="huge", theme="pink", font="900", format="bmp")  # what there is not is left out
    assert not app.exception
    assert "Share of selections by expert: 312 × 192 px, 624 × 384 pixels" in words(app)


def test_another_run_keeps_the_look_and_drops_what_was_laid_over_the_first():
    def script():
        import streamlit as st

        from moe_core.dashboard import controls

        st.selectbox("Theme", ["light", "dark"], key="theme", bind="query-params")
        st.button("go", on_click=controls.go_to, args=("b",))

    app = AppTest.from_function(script)
    for name, value in {"run": "a", "with": "c", "theme": "dark"}.items():
        app.query_params[name] = value
    app.run().button[0].click().run()
    assert not app.exception
    assert {name: app.query_params[name] for name in app.query_params} == {"run": "b", "theme": "dark"}


def test_without_steps_there_is_nothing_to_export_and_without_a_run_the_cards(runs):
    assert [b.label for b in page().button][-4:] == ["Text", "Digits", "Plane", "Watch an example"]
    create_run(runs / "r", Config(), Knobs()).finish("failed")
    app = page(run="r")
    assert not app.exception
    assert "no recorded step" in app.info[0].value


def test_a_report_is_made_beside_the_page_and_offered(runs):
    make_run(runs, "plane", steps=20).close()
    app = page(run="plane")
    next(b for b in app.button if b.label == "Make replay").click().run()
    assert not app.exception
    (work,) = (app.session_state[k] for k in ("work-plane-replay.html",))
    work.thread.join(60)
    app.run()
    labels = [b.proto.label for b in app.get("download_button")]
    assert any(label.startswith("Download, ") for label in labels)
    assert work.file.name == "plane-replay.html"


def test_work_that_is_cancelled_ends_at_once_and_leaves_nothing(runs):
    run = make_run(runs, "text")
    words = ["export", str(run.path), "--animate", "selection_share", "--size", "900x900", "--scale", "1"]
    work = Work(words, "long.gif")
    until = time.monotonic() + 60
    while not work.done:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert work.busy
    work.cancel()
    assert work.process.returncode == -signal.SIGKILL  # it is gone when Cancel returns
    work.thread.join(10)
    assert not work.busy
    assert (work.error, work.file) == ("Cancelled. Nothing was kept.", None)
    assert not work.folder.exists()
    work.cancel()  # a second click is nothing


def test_what_goes_wrong_is_said_in_one_line(runs):
    run = make_run(runs, "plane", steps=20)
    work = Work(["export", str(run.path), "--format", "bmp"], "figures.zip")
    work.thread.join(60)
    assert work.error.startswith("unknown format 'bmp'")
    assert work.file is None


def test_many_figures_are_one_zip_with_the_same_bytes_each_time(runs):
    run = make_run(runs, "plane", steps=20)
    words = ["export", *words_of(Named(str(run.path)), Look()), "--format", "csv", "--figure", "loss", "churn"]
    works = [Work(words, "figures.zip") for _ in range(2)]
    for work in works:
        work.thread.join(60)
        assert work.error == ""
    files = ["churn.csv", "export.json", "loss.csv", "script.txt", "statistics.csv"]
    assert zipfile.ZipFile(works[0].file).namelist() == files
    assert works[0].file.read_bytes() == works[1].file.read_bytes()
    assert (works[0].done, works[0].of) == (3, 3)


def test_the_page_and_the_command_draw_the_same_picture(runs, tmp_path):
    """All that is chosen on the page goes into the command's flags."""
    for name in ("a", "b"):
        make_run(runs, "text", name=name).close()
    look = Look((640, 400), 1.5, "dark", "-- mine", 15.0, True, 0, 150)
    what = Named(str(runs / "a"), (str(runs / "b"),), (("align", "fork"), ("expert", "3")))
    words = ["export", *words_of(what, look), "--format", "png", "--figure", "compare_loss", "expert_share"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    with what.open() as source:
        for name in ("compare_loss", "expert_share"):
            assert rendered(source, name, "png", look) == (tmp_path / "out" / f"{name}.png").read_bytes()


def test_a_link_with_other_runs_or_a_sweep_offers_their_figures(runs):
    for name in ("a", "b"):
        make_run(runs, "text", name=name).close()
    make_run(runs, "plane").close()
    app = page(**{"run": "a", "with": "b,plane,gone", "align": "fork", "expert": "99"})
    assert not app.exception
    assert app.multiselect[0].value == ["compare_balance"]  # what does not fit is left out
    assert "Balance of the runs compared" in words(app)
    assert "sweep_pareto" not in app.multiselect[0].options
    assert page(sweep="nothing").error[0].value.startswith("'nothing' is not a sweep")
    make_sweep(make_plan(Config.for_task("plane", steps=5), Knobs(), {"noise": [0.5, 1.0], "k": [1, 2]}), runs, "grid")
    app = page(sweep="grid")
    assert not app.exception
    assert app.multiselect[0].value == ["sweep_balance"]
    assert "Balance over the grid: 312 × 192 px" in words(app)
    assert "Make report" not in {b.label for b in app.button}


def test_a_comparison_has_the_names_that_the_runs_have_now(runs):
    for name in ("a", "b"):
        make_run(runs, "text", name=name).close()
    app = page(**{"run": "a", "with": "b", "figures": "compare_loss", "format": "svg"})
    what = Named("a", ("b",))
    with what.open(runs) as source:
        before = progress_of(source)
    change_notes(runs / "b", name="*even*")
    with what.open(runs) as source:
        assert progress_of(source) != before  # or the page would show what it had drawn
        assert b"*even*" in rendered(source, "compare_loss", "html", Look())
    assert r"Beside a\: \*even\*\." in words(app.run())


LOOKS = {
    "column": ({"size": "3.25in", "font": "7pt", "theme": "grey", "scale": 1.0, "smooth": 25, "caption": True, "title": "A & B"}, "312 × 192 px"),
    "own mm": ({"size": "85x60mm", "font": "8pt", "theme": "light", "scale": 2.0, "smooth": 1, "caption": False, "title": ""}, "321 × 227 px"),
    "own px": ({"size": "640x400px", "font": 13.5, "theme": "dark", "scale": 0.5, "smooth": 1, "caption": False}, "640 × 400 px"),
}  # fmt: skip


@pytest.mark.parametrize("look", LOOKS)
def test_a_look_goes_into_a_file_and_comes_out_of_it(runs, tmp_path, look):
    style, size = LOOKS[look]
    make_run(runs, "text").close()
    app = page(run="text")
    app.get("file_uploader")[0].set_value(("paper.json", json.dumps(style).encode(), "application/json")).run()
    assert not app.exception
    assert not app.error
    assert size in words(app)
    assert style_of(app.session_state) == style
    again = page(**{word: value[0] if isinstance(value, list) else value for word, value in app.query_params.items()})
    assert style_of(again.session_state) == style  # the link has it all
    (runs / "paper.json").write_text(json.dumps(style))
    assert read_style(runs / "paper.json") == style


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff", "paper.json cannot be read as a style (UnicodeDecodeError); it is JSON such as"),
        (b" " * 65_537, "a style has at most 65,536 bytes, and paper.json has more; it is JSON such as"),
        (b'{"colour": "red"}', "paper.json has 'colour', which no style has; a style has some of: size, font"),
        (b'{"size": "wide"}', "paper.json: a size is written WIDTHxHEIGHT"),
        (b'{"size": "50x50px"}', "paper.json: width must be a whole number from 120 to 8,000, got '50'"),
        (b'{"theme": "sepia"}', "paper.json: theme must be one of light, dark, grey, got 'sepia'"),
        (b'{"font": "200pt"}', "paper.json: font must be a number from 6 to 48, got '266.666667'"),
        (b'{"scale": NaN}', "paper.json: scale must be a number from 0.5 to 8, got 'NaN'"),
        (b'{"title": "\\ud800"}', "title in paper.json has half a character"),
        (b'{"scale": 1%s}' % (b"0" * 399), "a number in paper.json has at most 15 digits, got 400"),
        (b'{"scale": 1e400}', "paper.json: scale must be a number from 0.5 to 8"),
        (b'{"smooth": 0}', "paper.json: smooth must be a whole number from 1 to 1,000,000, got '0'"),
    ],
)
def test_a_file_that_is_no_look_is_refused_in_one_line_and_changes_nothing(content, said):
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        choices_of(parsed_style(content, "paper.json"), "paper.json")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
