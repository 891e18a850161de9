"""No two words of any figure overlap, and none is cut, at the widths of papers: 2, 3.25 and 6.75 inches."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

from moe_core.export import Look, chosen
from moe_core.export.fonts import width_of
from moe_core.export.look import sheet_of
from moe_core.export.marks import Sheet, Text
from moe_core.export.sources import Named
from moe_core.figures.catalog import FIGURES
from moe_core.figures.read_sweep import SweepResults
from moe_core.runs.ablation import Ablation, write_ablation
from moe_core.schema import Config, Knobs, describe
from tests.export.made import make_run
from tests.export.test_sources import result
from tests.export.test_untold import make_turned
from tests.figures.many_layers import record_layers
from tests.figures.ranked import record_ranks
from tests.figures.record import record, record_tokens
from tests.figures.test_catalog import write_on_devices, write_throughput

INCHES = (2, 3.25, 6.75)
HIGH, LOW = 0.72, 0.2  # how far letters reach above and below their baseline, in the size of their type
SOURCES = {
    "balance": ("made", "other"), "digits": ("digits", "digits-other"), "table": ("table",),
    "many": ("text", "text-other"), "groups": ("groups",), "bias": ("bias",), "tokens": ("tokens",), "layers": ("layers",),
    "turned": ("turned", "with a long name, and turned too"), "ranks": ("ranks",), "groups of ranks": ("groups of ranks",),
}  # fmt: skip


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("runs")
    made = make_run(folder, "text", name="made", steps=1200, experts=16)
    write_throughput(made)
    write_on_devices(made)
    make_run(folder, "text", name="other", steps=900, experts=16)
    for name, task, E in (("digits", "digits", 16), ("digits-other", "digits", 16), ("table", "table", 8)):
        record(folder / name, task, E, steps=40, seed=len(name))
    for name in ("text", "text-other"):
        record(folder / name, "text", 64, L=1, steps=40, seed=len(name))
    grouped = record(folder / "groups", "digits", 16, steps=40, groups=4)
    write_ablation(grouped.path, Ablation(40, 1.0, np.full((2, 16), 0.1), np.full((2, 16), 1 / 16)))
    record(folder / "bias", "plane", 16, steps=40, knobs=Knobs(strategy="loss-free"))
    record_tokens(folder / "tokens", [" the", "\n", "cat"], np.arange(40) % 3)
    record_layers(folder / "layers", [64] * 24)
    record_ranks(folder / "ranks", (40, 1, 8), knobs=Knobs(capacity_factor=1.0))
    record_ranks(folder / "groups of ranks", (40, 1, 4), (60, 4, 2))
    for name in SOURCES["turned"]:
        make_turned(folder, name)
    return folder


def sweep() -> SweepResults:
    """Five by four cells, as the Sweep page draws them."""
    swept = [{"w_load": w, "noise": n} for n in (0.25, 0.5, 1.0, 2.0) for w in (0.0, 0.001, 0.01, 0.1, 1.0)]
    results = [result(i, 0, cv_load=0.05 * (i + 1)) for i in range(len(swept))]
    rows = [
        {**cell, "runs": 1, "finished": 1, "accuracy": 0.9, "accuracy_spread": None, "cv_load": 0.05 * (i + 1),
         "cv_load_spread": 0.01, "comparable": True, "ids": [f"s-c{i}-s0"]}
        for i, cell in enumerate(swept)
    ]  # fmt: skip
    about = describe(Config.for_task("plane", steps=70), Knobs())
    return SweepResults("grid", about, ("w_load", "noise"), swept, rows, results)


def boxes(sheet: Sheet) -> list[tuple[str, tuple[float, float, float, float]]]:
    """Each line of text with its left, top, right and bottom, as far as it is seen."""
    found = []
    for mark in sheet.marks:
        if not isinstance(mark, Text) or not (words := "".join(run.text for run in mark.runs)).strip():
            continue
        wide, size = width_of(mark.runs), max(run.size for run in mark.runs)
        start, end, top, bottom = -mark.anchor * wide, (1 - mark.anchor) * wide, -HIGH * size, LOW * size
        box = {0: (start, top, end, bottom), -90: (top, -end, bottom, -start), 90: (-bottom, start, -top, end)}[
            int(mark.angle)
        ]
        left, upper, right, lower = box[0] + mark.x, box[1] + mark.y, box[2] + mark.x, box[3] + mark.y
        if mark.clip:
            x, y, width, height = mark.clip
            left, upper, right, lower = max(left, x), max(upper, y), min(right, x + width), min(lower, y + height)
        if left < right and upper < lower:
            found.append((words, (left, upper, right, lower)))
    return found


def clashes(sheet: Sheet) -> list[tuple[str, str]]:
    """The pairs of words that overlap by more than half a pixel, and the words that are cut at an edge of the sheet."""
    found = boxes(sheet)
    at = np.array([box for _, box in found] or np.zeros((0, 4)))
    across = np.minimum(at[:, None, 2], at[None, :, 2]) - np.maximum(at[:, None, 0], at[None, :, 0])
    down = np.minimum(at[:, None, 3], at[None, :, 3]) - np.maximum(at[:, None, 1], at[None, :, 1])
    pairs = np.argwhere(np.triu((across > 0.5) & (down > 0.5), 1)).tolist()
    low, high = at[:, :2].min(axis=1), at[:, 2:] - (sheet.width, sheet.height)
    cut = np.flatnonzero((low < -1) | (high.max(axis=1) > 1)).tolist()
    return [(found[i][0], found[j][0]) for i, j in pairs] + [(found[i][0], "the edge") for i in cut]


@pytest.mark.parametrize("inches", INCHES)
def test_no_two_words_overlap_and_none_is_cut(sources: Any, inches: float) -> None:
    seen = set()
    look = Look(size=(round(96 * inches), round(96 * max(2, min(3.5, 0.6 * inches)))), font=32 / 3)  # 8 pt
    for first, *others in [*SOURCES.values(), ("",)]:
        with Named(first, tuple(others)).open(sources) if first else nullcontext(sweep()) as source:
            for name in chosen(source, None):
                sheet, _ = sheet_of(source, name, look, "")
                assert not clashes(sheet), (name, first, clashes(sheet))
                seen.add(name)
    assert seen == set(FIGURES)
