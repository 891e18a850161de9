"""Configure on the start page: fields that follow from the declarations, people's own files, and what a run will take."""

import gzip
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import field, fields, make_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streamlit.proto.NumberInput_pb2 import NumberInput
from streamlit.testing.v1 import AppTest

from moe_core.__main__ import parser
from moe_core.commands.train import settings_of
from moe_core.dashboard import cards, configure, own, starting
from moe_core.dashboard.faults import Faults, as_html, in_fields
from moe_core.dashboard.own import Recognised
from moe_core.runs import ranks
from moe_core.runs.estimate import parameters
from moe_core.runs.ranks import ALONE, RankCounts
from moe_core.schema import TASKS, Config, Knobs, Meta, meta_of, reads
from tests.own_data import write

MAIN = str(Path(configure.__file__).with_name("main.py"))
APART = {"task", "text", "data", "label", "drop", "missing"}


@pytest.fixture
def started(runs: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the page has started, in place of trainers: settings and knobs, and if there are several, the ranks."""
    asked: list[Any] = []

    def start(config: Config, knobs: Knobs, who: str, ranks: RankCounts) -> str:
        asked.append((config, knobs) if ranks == ALONE else (config, knobs, ranks))
        (runs / "new").mkdir()
        return "new"

    monkeypatch.setattr(starting, "start_trainer", start)
    return asked


@pytest.fixture
def readable(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that pages may read."""
    folder = tmp_path_factory.mktemp("data")
    monkeypatch.setenv(own.FOLDER, str(folder))
    return folder


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The configs whose files were to be read, in place of reading them."""
    asked: list[Config] = []

    def recognise(config: Config) -> Recognised:
        asked.append(config)
        return Recognised(("iris.csv: 150 rows in 3 classes", "<b>left out</b>"), 4, 3)

    monkeypatch.setattr(own, "recognise", recognise)
    return asked


def page(task: str = "text", **values: Any) -> AppTest:
    """The form, with values by the ends of their fields' keys."""
    app = AppTest.from_file(MAIN, default_timeout=30)
    app.session_state["configure"] = True
    app.run()
    if task != "text":
        app.radio(key="configure-task").set_value(task).run()
    for name, value in values.items():
        put(app, name, value)
    return app.run() if values else app


def put(app: AppTest, name: str, value: Any) -> None:
    app.get_by_key(f"configure-{app.radio(key='configure-task').value}-{name}").set_value(value)


def names(app: AppTest) -> list[str]:
    """The settings that have a field."""
    labels = {one.label for kind in (app.number_input, app.text_input, app.selectbox, app.multiselect) for one in kind}
    known = [f.name for settings in (configure.Config, Knobs) for f in fields(settings)]
    return [name for name in known if name in labels]


def faults(app: AppTest) -> list[str]:
    bodies = [str(one.proto.body) for one in app.get("html")]
    return [line for body in bodies for line in re.findall(r'<p class="moe-fault" role="alert">(.*?)</p>', body)]


def above_fault(app: AppTest) -> str:
    """The field that stands above the first fault."""
    order = [
        one
        for one in app.main
        if hasattr(one.proto, "label") or 'class="moe-fault"' in str(getattr(one.proto, "body", ""))
    ]
    at = next(i for i, one in enumerate(order) if not hasattr(one.proto, "label"))
    return str(order[at - 1].proto.label)


def text_of(app: AppTest) -> str:
    return " ".join(str(one.proto.body) for one in app.get("html"))


def start(app: AppTest) -> Any:
    return app.button(key="configure-start")


def test_the_form_opens_on_a_click_only(runs: Path) -> None:
    app = AppTest.from_file(MAIN, default_timeout=30).run()
    assert not app.exception
    assert names(app) == []


@pytest.mark.parametrize("task", TASKS)
def test_each_setting_that_the_task_reads_has_a_field_with_its_help_and_range(runs: Path, task: str) -> None:
    app = page(task)
    assert not app.exception
    usual = Config.for_task(task)
    settings = [f.name for f in fields(Config) if f.name not in APART and task in meta_of(Config, f.name).tasks]
    knobs = [f.name for f in fields(Knobs) if reads(usual, "paper", f.name)]
    assert names(app) == settings + knobs
    experts = app.number_input(key=f"configure-{task}-num_experts")
    assert (experts.value, experts.proto.help) == (usual.num_experts, "experts in each MoE layer. 1 to 1,024")
    assert app.selectbox(key=f"configure-{task}-precision").options == ["float32", "bfloat16"]


def test_a_setting_that_is_added_to_the_declarations_has_a_field(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    added = field(default=3, metadata={"meta": Meta("how bold it is", low=1, high=9)})
    more = make_dataclass("Config", [("boldness", int, added)], bases=(Config,), frozen=True)
    monkeypatch.setattr(configure, "Config", more)
    for module in ("schema.checks", "runs.runner"):
        monkeypatch.setattr(f"moe_core.{module}.Config", more)
    app = page()
    assert "boldness" in names(app)
    assert app.number_input(key="configure-text-boldness").proto.help == "how bold it is. 1 to 9"
    put(app, "boldness", 10)
    assert faults(app.run()) == ["boldness must be between 1 and 9, got 10"]
    put(app, "boldness", 8)
    assert "--boldness 8" in app.run().code[0].value


def test_it_starts_what_the_form_says(started: list[Any]) -> None:
    app = page("digits", num_experts=32, layers=3, seed=7, steps=500, k=3, strategy="switch")
    assert not app.exception
    put(app, "w_switch", 0.5)
    command = app.run().code[0].value
    start(app).click().run()
    config = Config.for_task("digits", num_experts=32, layers=3, seed=7, steps=500)
    knobs = Knobs(strategy="switch", k=3, w_switch=0.5)
    assert started == [(config, knobs)]
    assert (app.query_params["run"], app.query_params["layer"]) == ("new", "3")
    assert settings_of(parser().parse_args(shlex.split(command)[3:])) == (config, knobs)


def test_without_a_change_it_is_the_card(started: list[Any]) -> None:
    start(page("plane")).click().run()
    assert started == [(Config.for_task("plane"), cards.STARTING)]


@pytest.mark.parametrize(
    ("values", "name", "says"),
    [
        ({"num_experts": 0}, "num_experts", "num_experts must be between 1 and 1024, got 0"),
        ({"num_experts": 1}, "k", "k must be between 1 and num_experts=1, got 2"),
        ({"k": 17}, "k", "k must be between 1 and num_experts=16, got 17"),
        ({"tokens": 100}, "tokens", "tokens must be a multiple of context=128, got 100"),
        ({"groups": 3}, "num_experts", "num_experts=16 must be divisible by groups=3"),
        ({"off": "17"}, "off", "off must name experts 1 to 16"),
        ({"device": "<gpu>"}, "device", "device must be auto, cpu, cuda, cuda:1 or mps, got '&lt;gpu&gt;'"),
    ],
)
def test_what_cannot_be_trained_is_said_at_its_field_and_not_started(
    started: list[Any], values: dict[str, Any], name: str, says: str
) -> None:
    app = page(**values)
    assert not app.exception
    (fault,) = faults(app)
    assert fault.startswith(says)
    assert above_fault(app) == name
    assert start(app).disabled
    assert (started, list(app.code)[:-2]) == ([], [])


def test_a_whole_number_is_a_field_that_reads_an_exponent_and_refuses_a_fraction(started: list[Any]) -> None:
    """Streamlit's field for whole numbers would make 1 of 1e3 in the browser; tests/browser/test_configure.py types it."""
    app = page(steps=1000.0)
    steps = app.number_input(key="configure-text-steps")
    assert (steps.proto.data_type, steps.proto.format, steps.step) == (NumberInput.FLOAT, "%g", 1.0)
    assert "--steps 1000 " in app.code[0].value + " "
    put(app, "steps", 1.5)
    put(app, "seed", 1e300)
    assert faults(app.run()) == [
        "seed must be between 0 and 2.14748e+09, got 1e+300",
        "steps must be a whole number, got 1.5",
    ]
    assert start(app).disabled


def test_knobs_that_the_strategy_does_not_read_have_no_field(runs: Path) -> None:
    app = page(strategy="loss-free")
    assert {"bias_speed", "w_sequence"} <= set(names(app))
    assert not {"noise", "w_load", "k_primary"} & set(names(app))
    assert "k_primary" in names(page(groups=4, k=1))


def test_what_it_takes_is_said_before_the_click(runs: Path) -> None:
    app = page(steps=1000, num_experts=32)
    told = text_of(app)
    config = Config.for_task("text", steps=1000, num_experts=32)
    assert f"<b>{parameters(config, 256, 256):,}</b>parameters" in told
    for words in ("of memory", "steps a second", "for 1,000 steps", "on the disk"):
        assert words in told
    assert any(one.value.startswith("Estimates, but for the parameters.") for one in app.caption)


# Several ranks


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many cores this machine has."""
    return lambda many: monkeypatch.setattr(ranks, "cores", lambda: many)


def deal(app: AppTest, size: int, expert: int | None = None) -> AppTest:
    """The form, with so many ranks."""
    app.number_input(key="configure-ranks").set_value(size)
    app.run()
    if expert is not None:
        app.number_input(key="configure-expert_parallel").set_value(expert)
        app.run()
    assert not app.exception
    return app


@pytest.mark.parametrize("task", TASKS)
def test_it_starts_the_ranks_that_were_chosen_by_the_words_that_it_shows(
    started: list[Any], room: Callable[[int], None], task: str
) -> None:
    room(4)
    app = page(task)
    assert app.number_input(key="configure-ranks").proto.help.endswith("on a core of its own. 1 to 4")
    with pytest.raises(KeyError):
        app.number_input(key="configure-expert_parallel")  # of one process there is nothing to deal
    app = deal(app, 4, 2)
    assert "of memory, 4 ranks together" in text_of(app)
    shown = shlex.split(app.code[0].value)
    assert shown[:8] == [
        "torchrun",
        "--standalone",
        "--nproc-per-node",
        "4",
        "-m",
        "moe_core",
        "train",
        "--expert-parallel",
    ]
    assert (shown[8], settings_of(parser().parse_args(["train", *shown[9:]]))) == (
        "2",
        (Config.for_task(task), cards.STARTING),
    )
    start(app).click().run()
    assert started == [(Config.for_task(task), cards.STARTING, RankCounts(4, 2))]


def test_ranks_are_not_offered_where_there_is_one_core(started: list[Any], room: Callable[[int], None]) -> None:
    room(1)
    app = page("plane")
    with pytest.raises(KeyError):
        app.number_input(key="configure-ranks")
    assert app.code[0].value.startswith("python -m moe_core train")
    start(app).click().run()
    assert started == [(Config.for_task("plane"), cards.STARTING)]


@pytest.mark.parametrize(
    ("dealt", "values", "name", "says"),
    [
        ((1.5, None), {}, "ranks", "ranks must be a whole number, got 1.5"),
        ((5, None), {}, "ranks", "ranks must be between 1 and 4, one for each core of this machine, got 5"),
        ((0, None), {}, "ranks", "ranks must be between 1 and 4, one for each core of this machine, got 0"),
        ((4, 3), {}, "expert_parallel", "expert_parallel must divide the number of ranks (4), got 3"),
        ((4, 4), {"num_experts": 6}, "expert_parallel", "expert_parallel must divide num_experts (6), got 4"),
        ((4, 1), {"tokens": 90}, "tokens", "a batch must have a multiple of 4 rows or sequences, one part for each rank, got 90"),
    ],
)  # fmt: skip
def test_ranks_that_cannot_share_the_run_are_not_started(
    started: list[Any], room: Callable[[int], None], dealt: tuple[int, int | None], values: dict[str, int], name: str, says: str
) -> None:  # fmt: skip
    room(4)
    app = deal(page("plane", **values), *dealt)
    (fault,) = faults(app)
    assert fault.startswith(says)
    assert above_fault(app) == name
    assert start(app).disabled
    assert started == []


def test_sequences_of_text_are_dealt_and_not_its_bytes(runs: Path, room: Callable[[int], None]) -> None:
    room(16)
    assert faults(deal(page(), 8)) == []
    (fault,) = faults(deal(page(), 16))
    assert fault.startswith("a batch must have a multiple of 16 rows or sequences, one part for each rank, got 8")


# A person's own files


def own_path(app: AppTest, text: str) -> AppTest:
    task = app.radio(key="configure-task").value
    app.radio(key="configure-source").set_value("on this machine").run()
    app.get_by_key(f"configure-path-{task}").set_value(text)
    return app.run()


def test_a_table_on_this_machine_is_shown_as_it_is_read_and_then_trained(
    started: list[Any], readable: Path, looked: list[Config]
) -> None:
    (path,) = write("table", readable)
    app = page("digits")
    app.radio(key="configure-source").set_value("on this machine").run()
    assert start(app).disabled  # no file is named yet
    app = own_path(app, "iris.csv")
    assert not app.exception
    assert "<p>iris.csv: 150 rows in 3 classes</p><p>&lt;b&gt;left out&lt;/b&gt;</p>" in text_of(app)
    assert f"<b>{parameters(Config.for_task('digits'), 4, 3):,}</b>" in text_of(app)
    put(app, "label", "Species")
    put(app, "drop", ["Id", "petal width"])
    start(app.run()).click().run()
    config = Config.for_task("digits", data=path, label="Species", drop=("Id", "petal width"))
    assert looked[-1] == config
    assert started == [(config, cards.STARTING)]


def test_texts_are_a_path_a_line(started: list[Any], readable: Path, looked: list[Config]) -> None:
    paths = write("texts", readable)
    app = own_path(page(), "a/notes\n\n  b/notes \n")
    start(app).click().run()
    assert started == [(Config.for_task("text", text=tuple(paths)), cards.STARTING)]


@pytest.mark.parametrize("several", [False, True])
def test_an_upload_is_kept_with_the_runs(started: list[Any], runs: Path, looked: list[Config], several: bool) -> None:
    task = "text" if several else "digits"
    app = page(task)
    app.radio(key="configure-source").set_value("uploaded").run()
    files = [("../.ev il.csv", b"one"), ("b.txt", b"two")][: 1 + several]
    app.file_uploader(key=f"configure-upload-{task}").set_value(
        [(name, content, "text/plain") for name, content in files] if several else (*files[0], "text/plain")
    ).run()
    start(app).click().run()
    ((config, _),) = started
    kept = [Path(path) for path in (config.text if several else [config.data])]
    assert [path.read_bytes() for path in kept] == [content for _, content in files]
    assert all(path.parents[1] == runs / own.UPLOADS and not path.name.startswith(".") for path in kept)


def test_an_upload_is_called_by_its_name_and_not_by_where_it_is_kept(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "recognise", lambda config: Recognised(problem=f"--data {config.data!r} has no rows"))
    app = page("digits")
    app.radio(key="configure-source").set_value("uploaded").run()
    app.file_uploader(key="configure-upload-digits").set_value(("b.csv", b"x", "text/plain")).run()
    assert faults(app) == ["<b>data</b> 'b.csv' has no rows"]


def test_why_a_file_cannot_be_read_is_said_at_its_field(
    runs: Path, readable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (readable / "bad.csv").write_text("x")
    problem = "--data 'bad.csv': columns 'a' and 'b' could each be the class; say which with --label NAME"
    monkeypatch.setattr(own, "recognise", lambda config: Recognised(problem=problem))
    app = own_path(page("digits"), "bad.csv")
    assert faults(app) == [
        "<b>data</b> 'bad.csv': columns 'a' and 'b' could each be the class; say which with <b>label</b> NAME"
    ]
    assert above_fault(app) == "label"
    assert app.get_by_key("configure-path-digits").label.startswith("data: ")
    assert start(app).disabled
    assert len(faults(own_path(page("digits"), "/etc/passwd"))) == 1


# What a page may read


def test_each_wrong_field_says_so_at_once(started: list[Any], readable: Path, looked: list[Config]) -> None:
    """The settings, the knobs, and how a file is read, after another file was named."""
    write("table", readable)
    (readable / "other.csv").write_text("length,kind\n" + "1,a\n2,b\n" * 20)
    app = own_path(page("digits", num_experts=0, k=17, off="x", d_hidden=0), "iris.csv")
    put(app, "label", "Species")
    put(app, "drop", ["Id", "petal width"])
    app.get_by_key("configure-path-digits").set_value("other.csv")
    app.run()
    assert not app.exception
    assert sorted(faults(app)) == [
        "d_hidden must be between 1 and 16384, got 0",
        "drop must name columns of the table, got Id, petal width; there are length, kind",
        "label must name a column of the table, got Species; there are length, kind",
        "num_experts must be between 1 and 1024, got 0",
        "off must list experts counted from 1, like 4,11 or 2:4 for layer 2's expert 4, got 'x'",
    ]  # k may be right: that depends on num_experts
    assert start(app).disabled


def test_what_lies_between_two_fields_is_said_beside_faults_of_others(runs: Path) -> None:
    told = faults(page(d_hidden=0, k=17, tokens=100, off="17"))
    said = ("d_hidden must be", "tokens must be a multiple", "k must be between", "off must name experts")
    assert [fault.startswith(words) for fault, words in zip(told, said, strict=True)] == [True] * 4


def test_what_a_file_lacks_is_said_beside_other_faults_at_the_field_that_mends_it(
    readable: Path, looked: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    (readable / "a.csv").write_text("length,kind\n1,a\n2,b\n")
    (readable / "b.csv").write_text("length,sort\n1,a\n2,b\n")
    problems = iter(
        ["lacks values; fill them with --missing mean", "could be; say which with --label NAME", "is a Parquet file"]
    )
    recognise = lambda config: (looked.append(config), Recognised(problem=f"--data 'a.csv': {next(problems)}"))[1]
    monkeypatch.setattr(own, "recognise", recognise)
    app = own_path(page("digits", num_experts=0), "a.csv")
    assert len(faults(app)) == 2
    assert above_fault(app) == "missing"
    put(app, "label", "kind")
    put(app, "drop", ["length"])
    app.get_by_key("configure-path-digits").set_value("b.csv")
    assert len(faults(app.run())) == 2  # of label there is a fault already; the file is read as if none were named
    assert (looked[-1].label, looked[-1].drop) == ("", ("length",))
    put(app, "label", None)
    assert above_fault(app.run()).startswith("data: a CSV, an .npz")


def test_a_page_names_fields_where_the_command_line_has_flags_but_in_what_a_person_wrote() -> None:
    said = "--data '/my/--drop.csv' and --d-model <1; --runs is no setting, x--seed no flag, and '--lr' a person's"
    assert in_fields(said) == said.replace("--data", "data").replace("--d-model", "d_model")
    assert as_html("--d-model <1 '<i>'") == "<b>d_model</b> &lt;1 '&lt;i&gt;'"
    for settings in (Config, Knobs):
        for f in fields(settings):
            assert in_fields(f"a smaller --{f.name.replace('_', '-')}") == f"a smaller {f.name}"


def test_no_help_of_a_field_and_no_line_about_the_data_names_a_flag(
    runs: Path, readable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (readable / "a.csv").write_text("length,kind\n1,a\n2,b\n")
    taken = ("left out: column '--drop', named by --drop",)
    monkeypatch.setattr(own, "recognise", lambda config: Recognised(taken, 1, 2))
    app = own_path(page("digits"), "a.csv")
    kinds = (app.number_input, app.text_input, app.selectbox, app.multiselect)
    helps = {one.label: one.proto.help for kind in kinds for one in kind}
    assert helps["drop"] == "columns of **data** to leave out: names, or numbers from 1."
    assert not [label for label, words in helps.items() if "--" in words]
    assert "<p>left out: column '--drop', named by <b>drop</b></p>" in text_of(app)


def test_a_word_of_a_path_is_no_field() -> None:
    told = Faults()
    told.places = dict.fromkeys(["data", "tokens", "missing", "off", "k"])
    for problem, named in {
        "--data '/data/my/tokens/a.csv': lacks values; fill them with --missing mean": ["data", "missing"],
        """--data "/my/tokens' k.csv": lacks values""": ["data"],
        "off must list experts, like 2:4 for layer 2's expert 4 of k, got 'tokens'": ["off", "k"],
    }.items():
        assert told.named_in(problem) == named


def test_each_wrong_path_says_so(readable: Path, looked: list[Config]) -> None:
    (readable / "a").write_text("a")
    told = faults(own_path(page(), f"a\nnobody\n/etc/passwd\na/b\n{'a' * 300}"))
    assert [text[:50] for text in told[:3]] == ["there is no file or folder 'nobody'; correct the p", f"pages read only what lies below {readable}"[:50], "there is no file or folder 'a/b'; correct the path"]  # fmt: skip
    assert told[3].endswith("cannot be read: File name too long")
    assert len(told) == 4
    assert looked == []


def test_rows_that_cannot_be_dealt_are_said_beside_experts_that_cannot(room: Callable[[int], None], runs: Path) -> None:
    room(4)
    assert [fault[:26] for fault in faults(deal(page("plane", tokens=63), 4, 3))] == [
        "a batch must have a multip", "expert_parallel must divid"
    ]  # fmt: skip


# The columns of a table


def test_label_and_drop_offer_the_columns_of_the_file(started: list[Any], readable: Path, looked: list[Config]) -> None:
    (path,) = write("table", readable)
    app = own_path(page("digits"), "iris.csv")
    columns = ["Id", "sepal length", "sepal width", "petal length", "petal width", "Species"]
    label, drop = app.selectbox(key="configure-digits-label"), app.multiselect(key="configure-digits-drop")
    assert (label.options, drop.options) == (columns, columns)
    label.set_value("Species")
    drop.set_value(["Id"])
    start(app.run()).click().run()
    assert started == [(Config.for_task("digits", data=path, label="Species", drop=("Id",)), cards.STARTING)]


TABLES = {
    "named": ("x,y,sort\n1,2,a\n3,4,b\n", ["x", "y", "sort"]),
    "not named": ("1,2,a\n3,4,b\n5,6,a\n", ["1", "2", "3"]),
    "words only": ("a,b\nc,d\ne,f\n", ["1", "2"]),
    "counted": ("0,1,2\n7,8,9\n7,8,9\n", ["0", "1", "2"]),
    "twice": ("x,x,x\n1,2,3\n1,2,3\n", ["x", "x_2", "x_3"]),
    "quoted": ('"a, b","c\nd"\n1,2\n', ["a, b", "c\nd"]),
    "an empty name": (",x\n0,1.5\n1,2.5\n", ["1", "x"]),
    "missing": ("x,y\n,NA\n1,?\n2,5\n", ["x", "y"]),
    "above words": ("x,sort\nNA,a\n,b\n", ["1", "2"]),
    "infinite": ("x,y\ninf,a\ninf,b\n", ["1", "2"]),
    "one column": ("a;b\n1;2\n", []),
    "ragged": ("a,b\n1,2,3\n", []),
    "empty": ("", []),
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("packed", [False, True])
def test_the_columns_of_a_table_are_those_that_a_training_reads(tmp_path: Path, name: str, packed: bool) -> None:
    from moe_core.training.data.tables import read

    text, columns = TABLES[name]
    path = tmp_path / "a.csv"
    path.write_bytes(gzip.compress(text.encode("utf-8-sig")) if packed else text.encode("utf-8-sig"))
    header = own.header_of(str(path))
    assert header.offered == columns
    if columns:
        table = read(path)
        assert isinstance(table.names, list)
        assert [n or str(at) for at, n in enumerate(table.names, 1)] == columns
        assert all(header.have(word) for word in (*columns, columns[0].upper(), "1", str(len(columns))))
        assert not any(header.have(word) for word in (str(len(columns) + 1), "nobody", "9" * 5000))
    else:
        assert header.have("whatever")  # nothing is known, so nothing is refused


def test_of_a_long_table_only_the_beginning_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "HEAD", 35)  # within a row
    (tmp_path / "a.csv").write_text("length,kind\n" + "1.5,ü\n" * 1_000_000)
    assert own.header_of(str(tmp_path / "a.csv")).offered == ["length", "kind"]
    (tmp_path / "b.csv").write_text("a" * 50 + ",kind\n1,2\n")
    (tmp_path / "c.csv").write_bytes(gzip.compress(b"\0" * 10_000_000))  # it would unpack to much more than it has
    (tmp_path / "d.npz").write_bytes(b"PK\3\4,\xff\n1,2\n")
    (tmp_path / "e.csv").write_bytes(b"\x1f\x8b damaged, gzip\n")
    os.mkfifo(tmp_path / "f.csv")
    assert [own.header_of(str(tmp_path / f"{name}")).offered for name in ("b.csv", "c.csv", "d.npz", "e.csv", "f.csv", "none.csv")] == [[]] * 6  # fmt: skip


def test_a_large_file_of_numbers_is_no_table_of_words(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(2_000_000).reshape(20_000, 100) % 2.0)
    np.savez(tmp_path / "b.npz", x=np.zeros((200_000, 1)), y=np.zeros(200_000))
    (tmp_path / "c.parquet").write_bytes(b"PAR1,a\n1,2\n")
    (tmp_path / "f.jsonl").write_text('{"a": 1, "kind": "x"}\n' * 40)
    files = ("a.npy", "b.npz", "c.parquet", "f.jsonl")
    assert {own.header_of(str(tmp_path / name)) for name in files} == {own.Columns()}
    (tmp_path / "d.csv").write_bytes(b"length,kind\n" + b"1,\xff\n" * 300_000)  # not UTF-8: a training refuses it
    (tmp_path / "e.csv").write_text("PK,kind\n" + "ü,1\n" * 300_000)
    assert [own.header_of(str(tmp_path / name)).offered for name in ("d.csv", "e.csv")] == [[], ["PK", "kind"]]


def test_no_more_columns_are_offered_than_a_list_can_show(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",".join(f"pixel{i}" for i in range(50_000)) + "\n" + "1," * 49_999 + "1\n")
    header = own.header_of(str(tmp_path / "a.csv"))
    assert len(header.offered) == own.OFFERED
    assert header.have("pixel49999")


def test_only_what_lies_below_the_folder_and_is_not_hidden_may_be_read(runs: Path, readable: Path) -> None:
    inner = readable / "inner"
    (inner / "deep").mkdir(parents=True)
    (inner / "a.csv").write_text("1,2")
    (readable / ".ssh").mkdir()
    (readable / ".ssh" / "key").write_text("secret")
    sibling = readable.with_name(f"{readable.name}-other")  # its path begins as the folder's does
    sibling.mkdir()
    (sibling / "x.csv").write_text("secret")
    outside = readable.parent / "outside.csv"
    outside.write_text("secret")
    (readable / "link.csv").symlink_to(outside)
    (readable / "fine.csv").symlink_to(inner / "a.csv")
    (readable / "loop").symlink_to(readable / "loop")
    (inner / "deep" / "leads-out").symlink_to(outside)
    assert own.inside("inner/a.csv") == own.inside(f"  {inner}/a.csv ") == own.inside("fine.csv") == inner / "a.csv"
    assert own.inside("nobody.csv") == readable / "nobody.csv"  # that it is not there is said when it is read
    for text in ("../outside.csv", f"{sibling}/x.csv", str(outside), "/etc/passwd", "/etc/nobody", "link.csv", ".ssh/key", ".ssh", "~/x", "inner", "\0", "loop", "~nobody/x", "/proc/self/environ"):  # fmt: skip
        with pytest.raises(ValueError, match=r"pages read only|is not a path"):
            own.inside(text)
    said = []
    for text in ("/etc/passwd", "/etc/nobody"):  # nobody learns by it which files there are
        with pytest.raises(ValueError) as error:
            own.inside(text)
        said.append(str(error.value).replace(text, ""))
    assert said[0] == said[1]


def test_from_the_root_of_the_disk_nothing_may_be_read(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(own.FOLDER, "/")
    with pytest.raises(ValueError, match="pages read only"):
        own.inside("/etc/passwd")


def test_uploads_are_kept_once_and_have_an_end(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = own.keep("a.csv", b"12345")
    assert own.keep("a.csv", b"12345") == first
    assert own.inside(str(first)) == first  # as a run that was started with it has it
    monkeypatch.setattr(own, "MOST", 9)
    with pytest.raises(ValueError, match="uploads take"):
        own.keep("b.csv", b"54321")
    assert own.keep("/", b"1").name == "upload"
    assert len(own.keep("ü" * 500 + ".csv", b"2").name.encode()) < 255


def test_a_file_is_read_by_a_process_of_its_own_once(
    readable: Path, monkeypatch: pytest.MonkeyPatch, count: Callable[..., Any]
) -> None:
    (path,) = write("table", readable)
    calls = count(own.subprocess, "run")
    config = Config.for_task("digits", data=path, label="Species")
    found = own.recognise(config)
    assert (found.features, found.classes, found.problem) == (4, 3, "")
    assert found.taken[0] == "iris.csv: 150 rows in 3 classes: setosa 50, versicolor 50, virginica 50"
    assert own.recognise(Config.for_task("digits", data=path, label="Species", num_experts=4)) == found
    assert len(calls) == 1
    Path(path).write_text("a,b\n1,2\n")
    assert own.recognise(config).problem.startswith("--data")
    assert len(calls) == 2


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Counts the calls of a function."""

    def watch(module: Any, name: str) -> list[Any]:
        calls: list[Any] = []
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, **kwargs: (calls.append(args), real(*args, **kwargs))[1])
        return calls

    return watch


def test_words_that_no_command_line_takes_and_links_to_themselves_are_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(own.FOLDER, str(tmp_path))
    (tmp_path / "n.csv").write_bytes(b"a\0b,c,y\n1,2,x\n3,4,z\n")
    assert own.header_of(str(tmp_path / "n.csv")).offered[0] == "ab"
    for label in ("a\0b", "a" * 200_000):
        problem = own.recognise(Config.for_task("digits", data=str(tmp_path / "n.csv"), label=label)).problem
        assert problem.startswith("it cannot be read with these settings (")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ValueError, match="pages read only what lies below"):
        own.inside(".")
