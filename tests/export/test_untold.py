"""A change of a knob whose name finds no room in a figure has a number above the plot, and the subtitle says what it was."""

import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_core.export import Look
from moe_core.export.drawing import draw
from moe_core.export.fonts import width_of
from moe_core.export.look import sheet_of, spec_of, with_title
from moe_core.export.marks import Path as Drawn
from moe_core.export.marks import Sheet, Text, colour_of
from moe_core.export.panels import specs_alike
from moe_core.export.sources import Named
from moe_core.export.untold import Untold, add_numbers, subtitle_with, untold_of
from moe_core.figures.catalog import FIGURES
from moe_core.figures.changes import Name, change_names, grouped
from moe_core.figures.paper import base
from moe_core.figures.theme import LIGHT, Theme
from moe_core.runs import Batch, create_run, open_run
from moe_core.runs.source import At
from moe_core.schema import METRICS, Config, Knobs, layout
from tests.export.made import make_run

COLUMN = Look(size=(192, 192), font=32 / 3)  # 2 in, 8 pt
TURNS = ((200, "noise", 0.5), (260, "k", 1), (500, "w_load", 0.1), (560, "lr", 1e-4), (1000, "capacity_factor", 1.25))

CLOSE = ((200, "noise", 0.5), (290, "k", 1), (380, "w_load", 0.1), (470, "lr", 1e-4), (610, "capacity_factor", 1.25))


SIX = (*((200 + 8 * at, "lr", 10.0 ** (-3 - at % 2)) for at in range(6)), (800, "w_load", 0.1))


def make_turned(folder: Path, name: str, turns: Any = TURNS) -> None:
    """A run of 1,200 steps in which these knobs were turned, each at its step."""
    writer = create_run(
        folder / name, Config(num_experts=16, layers=1), Knobs(k=2), probe={"tokens": np.zeros(8, np.uint8)}
    )
    random, width = np.random.default_rng(len(name)), sum(column.width for column in layout(1, 16))
    run, at, applied = open_run(writer.folder), 1, ()
    for step, knob, value in (*turns, (1201, "", 0)):
        rows = random.uniform(0.5, 2, (step - at, width)).astype(np.float32)
        writer.commit(Batch(at, rows, [(step - 1, {one: 1.5 for one, *_ in METRICS["text"]}, "")], (), applied))
        if knob:
            run.turn(who="me", **{knob: value})
            at, applied = step, ((writer.pending().knobs[-1].id, step),)
    run.close()
    writer.finish("finished")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    make_turned(runs, "turned")
    make_turned(runs, "even", TURNS[:2])
    make_turned(runs, "close", CLOSE)
    make_turned(runs, "six", SIX)
    return runs


def subtitle(spec: dict[str, Any]) -> str:
    text = spec["layout"]["title"]["text"]
    return re.sub(r"<[^>]*>", "", text.replace("<br>", " ").replace("\u00a0", " "))


@pytest.mark.parametrize("figure", ["balance", "loss", "selection_share", "compare_balance"])
@pytest.mark.parametrize("inches", [2, 3.25, 6.75])
def test_each_change_is_named_in_the_plot_or_told_by_its_number_or_counted(
    folder: Path, figure: str, inches: float
) -> None:
    others = ("even",) if figure.startswith("compare") else ()
    with Named("turned", others).open(folder) as source:
        spec, _ = spec_of(source, figure, replace(COLUMN, size=(96 * inches, 192)))
    told = re.findall(r"(\d+): (.*?) at step ([\d,]+)", subtitle(spec))
    assert [int(number) for number, *_ in told] == list(range(1, len(told) + 1))
    assert [int(step.replace(",", "")) for *_, step in told] == sorted(int(step.replace(",", "")) for *_, step in told)
    left = re.search(r"and (\d+) more change", subtitle(spec))
    names = [note for note in spec["layout"]["annotations"] if note["font"]["color"] == LIGHT.hand]
    above = [note for note in names if note["yanchor"] == "bottom"]
    plain = [note for note in names if note["yanchor"] == "top" and "hovertext" not in note]
    in_plot = sum(len(note["text"].split("<br>")) for note in plain)
    assert in_plot + len(told) + (int(left[1]) if left else 0) == len(TURNS)
    numbered = [
        range(int(a), int(b or a) + 1)
        for a, b in (re.fullmatch(r"(\d+)(?:–(\d+))?", n["text"]).groups() for n in above)
    ]  # type: ignore[union-attr]
    assert [number for some in numbered for number in some] == list(range(1, len(told) + 1))
    assert [note["x"] for note in above] == [int(told[some[0] - 1][2].replace(",", "")) for some in numbered]
    assert told or inches > 2
    if others:  # a change that both runs have is one
        assert told[0][1] == "\u2068turned\u2069, \u2068even\u2069: noise 1 → 0.5"


@pytest.mark.parametrize("inches", [5, 6.75, 9])
def test_panels_of_the_same_steps_group_number_and_tell_changes_alike(folder: Path, inches: float) -> None:
    names = ["balance", "loss", "selection_share", "expert_rank"]  # the last has no steps
    looks = [replace(COLUMN, size=(96 * inches / 3, 192)) for _ in names]
    with Named("six").open(folder) as source:
        *specs, bars = specs_alike(source, names, looks)
    said = [re.findall(r"\d: .*? at step [\d,]+|and \d+ more", subtitle(spec)) for spec in specs]
    assert said[0]
    assert said[1:] == said[:1] * 2
    told = len(said[0]) - ("more" in said[0][-1])
    assert told + sum(map(int, re.findall(r"and (\d+) more", said[0][-1]))) in (
        6,
        7,
    )  # the last one may be named in all plots
    for spec in specs:
        strips = [
            s for s in spec["layout"]["shapes"] if s["type"] == "rect" and s["xref"] == "x" and s.get("fillcolor")
        ]
        assert [(strip["x0"], strip["x1"]) for strip in strips] == [(200, 240)]  # not the one of step 800
        above = [note["text"] for note in spec["layout"]["annotations"] if note["yanchor"] == "bottom"]
        numbers = [int(number) for text in above for number in text.split("–")]
        assert numbers[:1] + numbers[-1:] == [1, told] * bool(told)
    assert "more" not in subtitle(bars)


def test_changes_far_from_each_other_share_no_strip_however_narrow_the_figure() -> None:
    layout: dict[str, Any] = base("loss", "Loss", "dots", step=None, theme=LIGHT, size=(120, 120))
    layout["xaxis"]["range"] = [0, 600]
    assert grouped([10, 105, 200, 299], layout) == [[10, 105, 200, 299]]
    assert grouped([10, 105, 200, 310], layout) == [[10, 105, 200], [310]]


Box = tuple[float, float, float, float]


def boxes_and_lines(sheet: Sheet, theme: Theme) -> tuple[list[Box], list[tuple[float, float, float]]]:
    """Of each text in the hand's colour its left, right, upper and lower end; of each upright line of that colour its place, upper and
    lower end; in px of the sheet."""
    hand = colour_of(theme.hand)[:3]
    boxes, lines = [], []
    for mark in sheet.marks:
        if isinstance(mark, Text) and mark.runs and mark.runs[-1].colour[:3] == hand:
            left, size = mark.x - mark.anchor * width_of(mark.runs), mark.runs[-1].size
            boxes.append((left, left + width_of(mark.runs), mark.y - 0.7 * size, mark.y + 0.2 * size))
        if isinstance(mark, Drawn) and mark.stroke and mark.stroke[:3] == hand:
            for line in mark.lines:
                (x0, y0), (x1, y1) = line.points[0], line.points[-1]
                lines += [(x0, min(y0, y1), max(y0, y1))] if x0 == x1 and not line.closed else []
    return boxes, lines


def assert_apart(sheet: Sheet, theme: Theme = LIGHT) -> int:
    """No text of a change touches another or a line of a change; how many lines there are."""
    boxes, lines = boxes_and_lines(sheet, theme)
    for a, b in combinations(boxes, 2):
        assert a[1] < b[0] or b[1] < a[0] or a[3] < b[2] or b[3] < a[2], (a, b)
    for left, right, upper, lower in boxes:
        crossed = [x for x, y0, y1 in lines if left <= x <= right and y0 < lower and y1 > upper]
        assert not crossed, (left, right, crossed)
    return len(lines)


@pytest.mark.parametrize("figure", ["balance", "loss", "selection_share", "compare_balance"])
@pytest.mark.parametrize("inches", [2, 2.5, 3.25, 4, 5.5, 7])
def test_no_name_touches_a_line_of_another_change_or_another_name(folder: Path, figure: str, inches: float) -> None:
    others = ("even",) if figure.startswith("compare") else ()
    for run in ("turned", "close"):
        with Named(run, others).open(folder) as source:
            sheet, _ = sheet_of(source, figure, replace(COLUMN, size=(96 * inches, 220)), "")
        assert assert_apart(sheet)


@pytest.mark.parametrize("width", [358, 608, 1000])
@pytest.mark.parametrize("run", ["turned", "close"])
def test_nor_does_one_on_a_page(folder: Path, run: str, width: int) -> None:
    with Named(run, ("even",)).open(folder) as source:
        for name in ("balance", "selection_share", "compare_balance"):
            entry = FIGURES[name]
            spec = entry.draw.spec(**entry.read(source, At(0, None, bins=400)), size=(width, 335, False))
            assert_apart(draw(spec))


def test_the_numbers_stand_above_the_plot_and_below_the_title(folder: Path) -> None:
    with Named("turned").open(folder) as source:
        sheet, _ = sheet_of(source, "loss", COLUMN, "")
    words = [("".join(run.text for run in mark.runs), mark) for mark in sheet.marks if isinstance(mark, Text)]
    (number,) = [mark for text, mark in words if re.fullmatch(r"1(–\d)?", text)]
    assert max(mark.y for text, mark in words if "more changes" in text or text == "changes") < number.y
    assert all(mark.y > number.y for text, mark in words if text == "3.0")


def test_a_figure_without_its_title_has_no_numbers(folder: Path) -> None:
    with Named("turned").open(folder) as source:
        spec, _ = spec_of(source, "loss", replace(COLUMN, title=""))
    assert not [note for note in spec["layout"]["annotations"] if note["yanchor"] == "bottom"]


def test_changes_that_share_a_label_are_told_one_by_one_and_the_earliest_are_counted() -> None:
    shared = Name(90, "11 changes", ((1200, "<span style='x'>■</span> a lr 1 → 2"), (90, "k 2 → 1")), 9)
    spec = {"layout": {"meta": {"untold": [shared, Name(3, "noise 1 → 0<br>k 1 → 2")]}}}
    untold = untold_of(spec)
    assert untold == Untold(((3, "noise 1 → 0, k 1 → 2"), (90, "k 2 → 1"), (1200, "a lr 1 → 2")), 9)
    text = subtitle_with("Loss<br><span>dots</span>", untold, 2).replace("\u00a0", " ")
    assert text.endswith("dots; 1: noise 1 → 0, k 1 → 2 at step 3; 2: k 2 → 1 at step 90; and 10 more changes</span>")
    assert untold_of({"layout": {"meta": {}}}) == Untold()


def test_where_heights_ask_for_each_other_the_title_tells_what_the_last_layout_leaves_out() -> None:
    """A plot that is lower names the change of step 90, and one that is higher again does not."""
    names = [Name(step, f"noise 1 → {step}") for step in (30, 60, 90)]

    def drawn(top: int) -> dict[str, Any]:
        tall.append(top)
        plain = base("loss", "Loss", "dots", step=None, theme=LIGHT, size=(300, 300 + top))
        plain["xaxis"]["range"], plain["margin"]["t"] = [0, 100], plain["margin"]["t"] + top
        plain["meta"]["untold"] = names[: 2 if len(tall) % 2 else 3]
        return {"data": [], "layout": plain}

    tall: list[int] = []
    spec = with_title(drawn(0), drawn, LIGHT)
    left, room = untold_of(spec).changes, tall[-1]
    told = re.findall(r"\d: (.*?) at step (\d+)", subtitle(spec))
    assert [(int(step), words) for words, step in told] == list(left[: len(told)])
    assert len(left) - len(told) == sum(map(int, re.findall(r"and (\d+) more", subtitle(spec))))
    assert spec["layout"]["annotations"][-1]["x"] == left[len(told) - 1][0]
    lines = spec["layout"]["title"]["text"].count("<br>") - 1
    assert room >= lines * 16


def test_numbers_that_would_touch_become_one_mark() -> None:
    layout: dict[str, Any] = {
        "width": 300, "height": 200, "margin": {"l": 0, "r": 0, "t": 0, "b": 0}, "font": {"size": 10},
        "xaxis": {"range": [0, 300]}, "annotations": [], "shapes": [{"x0": 10}],
    }  # fmt: skip
    add_numbers(layout, [10, 12, 14, 100, 130], LIGHT)
    assert [(note["x"], note["text"]) for note in layout["annotations"]] == [(10, "1–3"), (100, "4"), (130, "5")]
    assert [shape["x0"] for shape in layout["shapes"]] == [10, 12, 14, 100, 130]
    layout |= {"annotations": [], "shapes": []}
    add_numbers(layout, [0, 11, 15], LIGHT)
    assert [note["text"] for note in layout["annotations"]] == ["1–3"]  # 2 and 3 together would touch 1


def test_the_line_of_a_number_begins_below_a_name_that_it_would_cross() -> None:
    layout: dict[str, Any] = base("loss", "Loss", "dots", step=None, theme=LIGHT, size=(300, 300))
    layout["xaxis"]["range"] = [0, 100]
    layout["annotations"] = change_names(layout, [Name(30, "noise 1 → 0.5")], LIGHT, [30])
    layout["shapes"] = [{"x0": 30}]
    add_numbers(layout, [35, 90], LIGHT)
    first, second = layout["shapes"][1:]
    assert (first["x0"], second["x0"], second["y1"]) == (35, 90, 1)
    assert 0.85 < first["y1"] < 0.95


def test_knobs_over_time_in_so_low_an_export_that_it_is_a_strip_have_no_title_over_them(tmp_path: Path) -> None:
    """Its title would take two lines, and with one more the figure is a strip, which has none."""
    run = make_run(tmp_path, "text")
    strips = []
    for high in (1.3, 1.35, 1.4, 2.0):
        made = spec_of(run, "knobs", replace(COLUMN, size=(192, high * 96)))[0]["layout"]
        lines = made["title"]["text"].count("<br>") + 1 if made["title"]["text"] else 0
        strips.append("strip" in made["meta"])
        assert strips[-1] is (lines == 0)
        assert made["margin"]["t"] >= 17 * lines
    assert strips == [True, True, False, False]
