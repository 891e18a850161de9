"""Records that a stranger wrote: an invalid one is refused in a sentence, and an odd value hides nothing else of the run."""

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_core.__main__ import main
from moe_core.dashboard.feed import Feed
from moe_core.dashboard.messages import Deed, parsed
from moe_core.dashboard.panel import act
from moe_core.dashboard.viewer import Viewer
from moe_core.diagnosis import diagnose
from moe_core.export import export
from moe_core.export.report import parts_of
from moe_core.export.sources import Still
from moe_core.figures.catalog import FIGURES, on_page
from moe_core.runs import Batch, Run, RunWriter, StoreError, ending, list_runs, open_run
from moe_core.runs.ablation import Ablation, write_ablation
from moe_core.runs.begin import create_record, make_file
from moe_core.runs.turns import insert_turns
from moe_core.schema import Config, Description, Knob, Knobs, Layer, Loss, as_dict, columns_of, describe, to_json
from moe_core.schema.stats import STATS, Metric

MEASURES = ("loss", "task_loss", "seconds", "importance", "load", "counts", "dead_experts", "confidence")
EVERY = tuple(stat.name for stat in STATS if stat.stored)
SMALL = ("loss", "task_loss", "seconds")
ENTRY = {"start": 0.5, "low": 0.0, "high": 1.0}
E = (8, 8)


def base(experts: tuple[int, ...] = E, measures: tuple[str, ...] = MEASURES, **more: Any) -> Description:
    declared: dict[str, Any] = {
        "knobs": {"lr": Knob(0.1, 0.0, 1.0)}, "metrics": (Metric("eval_loss", "held", "nats", True),),
        "loss": Loss("nats", 1.0, "eval_loss"), "probe": "none", "obeys": ("pause",), "settings": {},
    }  # fmt: skip
    layers = tuple(Layer(f"l.{i}", many, min(2, many)) for i, many in enumerate(experts))
    return Description(origin="watched", task="T", layers=layers, measures=measures, **{**declared, **more})


def begin(
    folder: Path,
    description: Description | None = None,
    change: Callable[[dict[str, Any]], Any] = lambda described: None,
    layout: list[list[Any]] | None = None,
    **more: Any,
) -> RunWriter:
    """A record of 60 steps, written without the checks of create_record(). change: of its description's JSON."""
    description = description or base()
    described = to_json(description)
    change(described)
    columns = [list(c) for c in columns_of(description.experts, description.measures)] if layout is None else layout
    facts = more.pop("facts", {"versions": {"moescope": "9"}})
    about = {"description": described, "layout": columns, "labels": {}, "facts": facts, **more.pop("own", {})}
    evals, snapshots = more.pop("evals", []), more.pop("snapshots", [])
    writer = RunWriter(folder, make_file(folder, about, more.pop("probe", {})))
    assert not more
    rows = np.random.default_rng(0).uniform(0.5, 1.5, (60, sum(c[3] for c in columns))).astype(np.float32)
    writer.commit(Batch(1, rows, evals=evals, snapshots=snapshots, state="training"))
    return writer


def ended(folder: Path, *words: Any, **more: Any) -> Run:
    begin(folder, *words, **more).finish("finished")
    return open_run(folder)


def frame(run: Run, page: str, layer: int = 0, size: tuple[int, int] = (600, 300)) -> dict[str, Any]:
    viewer = Viewer()
    viewer.feed = Feed(run)
    sizes = {name: list(size) for name, entry in FIGURES.items() if entry.page == page}
    viewer.hear(json.dumps({"theme": "light", "page": page, "layer": layer, "sizes": sizes, "span": None}))
    data = viewer.frame()
    assert data
    return json.loads(data[4 : 4 + struct.unpack("<I", data[:4])[0]])


def whole(header: dict[str, Any]) -> None:
    """Nothing of the page is missing."""
    assert header["problem"] == ""
    assert [one["problem"] for one in header.get("figures", {}).values() if "problem" in one] == []


def knob(name: str, **declared: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda described: described["knobs"].update({name: declared})


# Names of knobs that are attributes in Python


@pytest.mark.parametrize("name", ["items", "keys", "get", "values", "__class__", "_values", "__dict__"])
def test_a_knob_named_like_an_attribute_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="a knob's name must be a word"):
        ended(tmp_path / "a", change=knob(name, **ENTRY))


# A knob of another program's run with the name of one of ours


@pytest.mark.parametrize(("name", "start"), [("off", 3), ("off", 0.5), ("off", "never"), ("k", "two"), ("noise", "loud"), ("strategy", 2)])  # fmt: skip
def test_a_knob_with_a_name_of_ours_that_is_something_else_is_refused(tmp_path: Path, name: str, start: Any) -> None:
    """Charts and rules read these names: expert 3 would be shown as switched off."""
    with pytest.raises(ValueError):
        ended(tmp_path / "a", change=knob(name, start=start))


@pytest.mark.parametrize("start", [0, -3, 10**15])
def test_a_foreign_k_is_never_shown_as_more_experts_than_a_layer_has(tmp_path: Path, start: int) -> None:
    run = ended(tmp_path / "a", change=knob("k", start=start))
    for page in ("live", "routing", "batch"):
        whole(frame(run, page))
    assert all(str(10**15) not in str(tile) for tile in frame(run, "batch")["tiles"])


def test_a_foreign_strategy_with_a_name_of_ours_needs_no_knob_noise(tmp_path: Path) -> None:
    evals = [(20, {"eval_loss": 1.0, "selections": [[5.0] * 8] * 2}, None)]
    run = ended(tmp_path / "a", change=knob("strategy", start="paper"), evals=evals)
    whole(frame(run, "live"))
    parts_of(Still(run), lambda *one: one)


# Knobs without a range, such as Knob(0.01), and values that the record cannot hold


def test_a_whole_number_that_the_record_cannot_hold_is_refused(tmp_path: Path) -> None:
    writer = begin(tmp_path / "a", base(knobs={"n": Knob(5)}))
    try:
        with pytest.raises(ValueError, match="n must be"):
            act(open_run(tmp_path / "a"), Deed(1, turn={"n": 1e300}))
        assert main(["set", "a", "n=1e300", "--runs", str(tmp_path)]) == 2
    finally:
        writer.finish("stopped")


@pytest.mark.parametrize("declared", [Knob(0.01), Knob(5), Knob(0.5, 0, 1)])
def test_a_slider_has_ends_and_a_step(tmp_path: Path, declared: Knob) -> None:
    """A knob without them is shown as a field to type in: the page cannot draw a slider with an end of null."""
    run = ended(tmp_path / "a", base(knobs={"n": declared}))
    (shown,) = (one for one in frame(run, "live")["panel"]["knobs"] if one["name"] == "n")
    slider = shown["kind"] in ("number", "whole")
    assert not slider or (shown["low"] is not None and shown["high"] is not None and shown["step"] != 0)


@pytest.mark.parametrize(
    "declared",
    [
        {**ENTRY, "step": 0}, {**ENTRY, "step": -1}, {**ENTRY, "scale": "log"}, {**ENTRY, "step": float("inf")},
        {"start": -1.0, "low": -5.0, "high": -0.5, "scale": "log"}, {"start": 1.0, "choices": ["a"]},
    ],
)  # fmt: skip
def test_a_declaration_that_no_slider_can_have_is_refused(tmp_path: Path, declared: dict[str, Any]) -> None:
    with pytest.raises(StoreError):
        ended(tmp_path / "a", change=knob("n", **declared))


def test_a_choice_that_the_record_would_keep_as_a_number_is_refused_where_it_is_declared(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        ended(tmp_path / "a", change=knob("n", start="a", choices=["a", "1e5"]))


def test_the_longest_name_of_a_knob_is_one_that_a_message_takes(tmp_path: Path) -> None:
    name = "z" * 64  # as long as a message takes
    ended(tmp_path / "a", change=knob(name, **ENTRY))
    parsed(json.dumps({"turn": {name: 0.25}}))
    with pytest.raises(ValueError, match="at most 64"):
        ended(tmp_path / "b", change=knob(name + "z", **ENTRY))


def test_half_a_character_is_refused_in_words(tmp_path: Path) -> None:
    writer = begin(tmp_path / "a", base(knobs={"s": Knob("a")}))
    try:
        run = open_run(tmp_path / "a")
        with pytest.raises(ValueError, match="s must be") as refused:
            act(run, parsed('{"turn": {"s": "\\ud800"}}'))
        assert not isinstance(refused.value, UnicodeError)
    finally:
        writer.finish("stopped")


@pytest.mark.parametrize("text", ["4", " 4", "1e999", "-.5e3", "5."])
def test_a_word_that_sqlite_would_store_as_a_number_is_refused(tmp_path: Path, text: str) -> None:
    ended(tmp_path / "a", base(knobs={"s": Knob("a")}))
    with pytest.raises(ValueError, match="s must be a word"):
        open_run(tmp_path / "a").turn(s=text)


@pytest.mark.parametrize("text", ["inf", "nan", "1_0", "0x10", "4a", ". 5"])
def test_a_word_that_only_resembles_a_number_comes_back_as_it_was(tmp_path: Path, text: str) -> None:
    run = ended(tmp_path / "a", base(knobs={"s": Knob("a")}))
    run.turn(s=text)
    assert (run.knobs.s, run.damage) == (text, [])


@pytest.mark.parametrize("name", ["register", "mro"])
def test_a_knob_may_have_the_name_of_an_attribute_that_its_values_do_not_have(tmp_path: Path, name: str) -> None:
    run = ended(tmp_path / "a", change=knob(name, **ENTRY))
    run.turn(changes={name: 0.25})
    assert getattr(run.knobs, name) == 0.25


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_a_turn_of_a_whole_number_to_infinity_is_left_out(tmp_path: Path, value: float) -> None:
    run = ended(tmp_path / "a", base(knobs={"n": Knob(5)}))
    run.write(lambda db: insert_turns(db, run.started_knobs, {"n": value}, "x"))
    assert run.knobs.n == 5


# Statistics that are absent, of one layer or of all


@pytest.mark.parametrize("measures", [SMALL, (*SMALL, "importance", "load")])
@pytest.mark.parametrize("page", ["live", "experts", "batch"])
def test_a_run_without_selections_has_every_page(tmp_path: Path, measures: tuple[str, ...], page: str) -> None:
    run = ended(tmp_path / "a", base(measures=measures))
    whole(frame(run, page))


def test_a_run_without_selections_is_exported(tmp_path: Path) -> None:
    assert export(ended(tmp_path / "a", base(measures=SMALL)), tmp_path / "out", ("csv",))


def test_a_run_without_task_loss_is_diagnosed(tmp_path: Path) -> None:
    run = ended(tmp_path / "a", base(measures=("seconds", "importance", "load", "counts")))
    diagnose(run, 0)


@pytest.mark.parametrize("measures", [("counts",), ("later", "counts")])
def test_the_first_column_may_be_any_statistic(tmp_path: Path, measures: tuple[str, ...]) -> None:
    layout, start = [], 0
    for stat, layer, width in [("later", -1, 1)] * ("later" in measures) + [("counts", 0, 8), ("counts", 1, 8)]:
        layout.append([stat, layer, start, width])
        start += width
    run = ended(tmp_path / "a", base(measures=("counts",)), layout=layout)
    assert diagnose(run, 0) == []
    assert ending(run)["loss"] is None
    whole(frame(run, "live"))


def test_a_run_that_trains_and_does_not_measure_its_seconds_is_listed(tmp_path: Path) -> None:
    writer = begin(tmp_path / "a", base(measures=("loss", "counts")))
    (listed,) = list_runs(tmp_path, room=True)
    writer.finish("stopped")
    assert (listed.state, listed.problem, listed.growth) == ("training", "", 0.0)


def test_a_record_without_a_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it has no columns"):  # by whoever writes it, already
        ended(tmp_path / "a", layout=[])
    with pytest.raises(StoreError, match="it has no columns"):  # what is there by now is refused by whoever reads it
        open_run(tmp_path / "a")


def relaid(change: Callable[[str, int, int], list[tuple[str, int, int]]]) -> list[list[Any]]:
    columns, start = [], 0
    for stat, layer, _, width in columns_of(E, MEASURES):
        for one in change(stat, layer, width):
            columns.append([one[0], one[1], start, one[2]])
            start += one[2]
    return columns


LAYOUTS = {
    "importance of another width": relaid(lambda s, n, w: [(s, n, 3 if s == "importance" else w)]),
    "load of one layer only": relaid(lambda s, n, w: [] if (s, n) == ("load", 1) else [(s, n, w)]),
    "counts of one layer only": relaid(lambda s, n, w: [] if (s, n) == ("counts", 1) else [(s, n, w)]),
    "counts twice, the first of another width": relaid(
        lambda s, n, w: [(s, n, 5), (s, n, w)] if s == "counts" else [(s, n, w)]
    ),
    "confidence once, for no layer": relaid(
        lambda s, n, w: [(s, n, w)] if s != "confidence" else [(s, -1, 1)] if not n else []
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_that_is_not_of_these_layers_is_refused_or_shown(tmp_path: Path, name: str) -> None:
    try:
        run = ended(tmp_path / "a", layout=LAYOUTS[name])
    except StoreError:
        return
    for page in ("live", "experts", "batch"):
        for layer in (0, 1):
            whole(frame(run, page, layer))
    export(run, tmp_path / "out", ("csv",))


# A record that claims to be our trainer's, and is not


CONFIG = as_dict(Config.for_task("plane", num_experts=4, steps=60))


def claimed(folder: Path, experts: tuple[int, ...] = (4,), config: Any = (), **more: Any) -> Run:
    described = to_json(describe(Config.for_task("plane", num_experts=4), Knobs(), "points"))
    own = {"config": CONFIG | dict(config), "knobs": as_dict(Knobs()), "description": described}
    return ended(folder, base(experts, EVERY), own=own, **more)


@pytest.mark.parametrize("experts", [(8,), (4, 4, 4)])
def test_columns_that_are_not_those_of_its_config_are_refused(tmp_path: Path, experts: tuple[int, ...]) -> None:
    with pytest.raises(StoreError):
        claimed(tmp_path / "a", experts)


def test_an_invalid_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        claimed(tmp_path / "a", config={"groups": 3})


@pytest.mark.parametrize("threads", ["x", {"a": 1}])
def test_batch_and_exports_work_with_facts_of_any_kind(tmp_path: Path, threads: Any) -> None:
    run = claimed(tmp_path / "a", facts={"threads": threads})
    frame(run, "batch")
    parts_of(Still(run), lambda *one: one)


@pytest.mark.parametrize("facts", [{"threads": {"a": 1}}, {"threads": "x"}, {"threads": -3}, {"versions": "x"}])
def test_a_replay_takes_facts_of_any_kind(tmp_path: Path, facts: dict[str, Any]) -> None:
    """It trains, and finds that these steps are not what its config gives."""
    claimed(tmp_path / "a", facts=facts)
    assert main(["replay", "a", "--runs", str(tmp_path)]) == 1


@pytest.mark.parametrize("command", [["fork", "a", "--at", "10"], ["train", "--resume", "a"], ["replay", "a"], ["ablate", "a"]])  # fmt: skip
@pytest.mark.parametrize("versions", ["x", 3, []])
def test_versions_of_any_kind_are_refused_in_a_line(tmp_path: Path, command: list[str], versions: Any) -> None:
    ended(tmp_path / "a", facts={"versions": versions})
    assert main([*command, "--runs", str(tmp_path)]) == 2


# What create_record() does not write, since nobody could read it


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"measures": ("loss", "mood")}, "measures must be of loss, .*, got mood"),
        ({"measures": ("loss", "cv_load")}, "got cv_load"),
        ({"measures": ("loss", "loss")}, "its columns of loss"),
        ({"settings": {"seed": 2**70}}, "beyond 64 bits"),
        ({"task": "half a character: \ud800"}, "surrogates not allowed"),
        ({"layers": ()}, "from 1 to 256 layers, got 0"),
    ],
)
def test_what_cannot_be_read_is_not_written(tmp_path: Path, more: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        create_record(tmp_path / "a", replace(base(), **more))
    assert not (tmp_path / "a").exists()


def test_another_program_may_say_that_it_trained_its_run(tmp_path: Path) -> None:
    create_record(tmp_path / "a", replace(base(), origin="trained", knobs={})).finish("stopped")
    run = open_run(tmp_path / "a")
    assert (run.trainable, run.description.origin) == (False, "trained")


# Files and rows beside the description


@pytest.mark.parametrize("bad", ["shape", "text"])
def test_a_bad_ablation_does_not_take_the_experts_page(tmp_path: Path, bad: str) -> None:
    run = ended(tmp_path / "a")
    if bad == "shape":
        write_ablation(run.path, Ablation(10, 1.0, np.zeros((3, 9)), np.zeros((3, 9))))
    else:
        (run.path / "ablation.json").write_text("{")
    frame(run, "experts")
    on_page(run, "experts")
    export(run, tmp_path / "out", ("csv",))


def test_a_turn_of_an_undeclared_knob_is_left_out(tmp_path: Path) -> None:
    writer = begin(tmp_path / "a")

    class Stand:
        zzz = 1.0

    run = open_run(tmp_path / "a")
    turned = run.write(lambda db: insert_turns(db, Stand(), {"zzz": 5.0}, "x"))  # type: ignore[arg-type]
    writer.commit(Batch(61, np.zeros((0, run.columns), np.float32), applied=[(turned, 30)]))
    writer.finish("finished")
    run = open_run(tmp_path / "a")
    whole(frame(run, "live"))
    export(run, tmp_path / "out", ("csv",))


def test_a_turn_to_a_word_of_a_knob_of_numbers_does_not_take_the_panel(tmp_path: Path) -> None:
    writer = begin(tmp_path / "a")
    run = open_run(tmp_path / "a")
    turned = run.write(lambda db: insert_turns(db, run.started_knobs, {"lr": "abc"}, "x"))
    writer.commit(Batch(61, np.zeros((0, run.columns), np.float32), applied=[(turned, 30)]))
    writer.finish("finished")
    assert frame(run, "live")["panel"]["knobs"]


@pytest.mark.parametrize("selections", [[[1.0] * 3], "ab", [[-1.0] * 8] * 2])
def test_one_bad_evaluation_does_not_hide_the_steps(tmp_path: Path, selections: Any) -> None:
    run = ended(tmp_path / "a", evals=[(20, {"eval_loss": 1.0, "selections": selections}, None)])
    seen = frame(run, "live")
    assert seen["last"] == 60
    assert "an evaluation is not valid" in seen["problem"]


def test_an_evaluation_in_which_all_experts_were_off(tmp_path: Path) -> None:
    none = [[float("nan")] * 8] * 2
    run = ended(tmp_path / "a", evals=[(20, {"eval_loss": 1.0, "selections": none}, None)])
    whole(frame(run, "live"))
    parts_of(Still(run), lambda *one: one)


@pytest.mark.parametrize("probe", ["bytes", "images", "rows", "points"])
def test_a_probe_that_is_declared_and_not_there(tmp_path: Path, probe: str) -> None:
    run = ended(tmp_path / "a", base(probe=probe))
    for page in ("routing", "experts"):
        whole(frame(run, page))
    export(run, tmp_path / "out", ("csv",))


IMAGES = {"images": np.zeros((16, 8, 8), np.uint8), "class": np.arange(16) % 2}


@pytest.mark.parametrize("experts", [np.full((2, 16, 2), 200), np.zeros((1, 16, 2), int), np.zeros(2, int), None])
def test_snapshots_that_are_not_of_these_layers_do_not_stop_an_export(tmp_path: Path, experts: Any) -> None:
    arrays = {"gates": np.ones((2, 16, 2))} | ({} if experts is None else {"experts": experts})
    snapshots = [(10, "probe", arrays), (50, "probe", arrays)]
    run = ended(tmp_path / "a", base(probe="images"), probe=IMAGES, snapshots=snapshots)
    for layer in (0, 1):
        assert "cannot be drawn" not in frame(run, "routing", layer)["problem"]
    assert main(["export", "a", "--out", str(tmp_path / "out"), "--format", "csv", "--runs", str(tmp_path)]) in (0, 2)


# 256 layers


@pytest.mark.parametrize("size", [(600, 300), (300, 60), (40, 40)])
def test_layers_by_experts_at_any_size_that_a_page_may_ask_for(tmp_path: Path, size: tuple[int, int]) -> None:
    run = ended(tmp_path / "a", base((8,) * 256))
    assert "problem" not in frame(run, "live", size=size)["figures"]["layers"]
