"""A gate that the task teaches nothing is never called balanced, wherever its balance is put into a word."""

import base64
import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moe_core.dashboard.compare import sections
from moe_core.dashboard.feed import Feed
from moe_core.dashboard.panel import banner
from moe_core.dashboard.views import View
from moe_core.export.replay import data_of
from moe_core.export.report import parts_of
from moe_core.figures.catalog import tiles_of
from moe_core.figures.pages.routing import gate_entropy
from moe_core.figures.pages.words import balance_words, held_out_line
from moe_core.figures.reading import HeldOut
from moe_core.runs import Batch, Run, create_run, ending, open_run
from moe_core.runs.overview import facts_of
from moe_core.runs.source import At
from moe_core.schema import Config, Knobs, layout

CONFIG = Config.for_task("plane", num_experts=4, layers=2, tokens=16)
UNEVEN, COLLAPSED = [1.0, 1, 1, 3], [16.0, 0, 0, 0]
EVEN_SHOT = {"experts": np.zeros((2, 8, 2), np.uint8), "gates": np.full((2, 8, 2), 0.25, np.float16)}


def run_of(
    folder: Path, load_E: list[float], gradient: float, knobs: Knobs, shot: dict[str, np.ndarray] = EVEN_SHOT
) -> Run:
    """60 steps with this load in both layers; the task's gradient on the gate of the second one is `gradient`."""
    writer = create_run(folder, CONFIG, knobs)
    rows = np.ones((60, sum(c.width for c in layout(2, 4))), np.float32)
    for column in layout(2, 4):
        if column.stat == "load":
            rows[:, column.start : column.start + 4] = load_E
        if column.stat == "task_gradient" and column.layer == 1:
            rows[:, column.start] = gradient
    writer.commit(Batch(1, rows, snapshots=[(60, "probe", shot)], state="training"))
    writer.finish("stopped")
    return open_run(folder)


@pytest.mark.parametrize(
    ("load_E", "gradient", "word"),
    [
        ([4.0] * 4, 0.05, "Balanced"),
        ([4.0] * 4, 0.0, "Not learning"),
        ([4.0] * 4, 4e-10, "Not learning"),
        (UNEVEN, 0.0, "Uneven"),
        (COLLAPSED, 0.0, "Collapsed"),
    ],
)
@pytest.mark.parametrize("knobs", [Knobs(k=1), Knobs(strategy="even")], ids=["k 1", "even"])
def test_the_word_is_the_same_wherever_it_is_said(
    load_E: list[float], gradient: float, word: str, knobs: Knobs, tmp_path: Path
) -> None:
    run = run_of(tmp_path / "a", load_E, gradient, knobs)
    tile = tiles_of("live", run, At(1))[0]
    said = word if word == "Not learning" else f"{word} in training"  # this run has no evaluation
    assert tile.word == said
    assert ("learns nothing" in tile.more) == (word == "Not learning")  # why, for who rests a pointer on it
    assert tiles_of("live", run, At(1, step=30))[0].word == said
    assert tiles_of("compare", run, At(1))[0].word == said
    feed = Feed(run)
    feed.refresh(now=True)
    assert banner(feed, 1)["text"].endswith(f" (mean of the last 50 steps of layer 2), {said[0].lower()}{said[1:]}.")
    even = word in ("Balanced", "Not learning")
    assert tiles_of("live", run, At(0))[0].word == (
        "Balanced in training" if even else said
    )  # the other layer's gate learns
    data = data_of(run, 1, lambda done, of: None)
    nothing = [np.frombuffer(base64.b64decode(rows["untaught"]), "<f4") for rows in data["rows"]]
    assert [set(flags.tolist()) for flags in nothing] == [{0.0}, {float(gradient < 1e-6)}]
    assert data["words"][2] == "Not learning"
    json.dumps(data["words"])
    run.close()


def test_a_gate_with_one_expert_to_choose_is_called_one_expert_wherever_it_is_said(tmp_path: Path) -> None:
    run = run_of(tmp_path / "a", [4.0, 0, 0, 0], 0.0, Knobs(k=1, off="2,3,4"))
    said = "One expert"
    assert [tiles_of(page, run, At(1))[0].word for page in ("live", "compare")] == [said, said]
    feed = Feed(run)
    feed.refresh(now=True)
    assert banner(feed, 1)["text"].endswith(", one expert.")
    assert data_of(run, 1, lambda done, of: None)["words"][3] == said
    assert balance_words(said, HeldOut(50, 0.0, 1.0, "without noise", True, False)) == said
    assert held_out_line(HeldOut(50, 0.0, 1.0, "without noise", True, False), said) == "without noise 0.00"
    run.close()


def test_what_is_undecided_depends_on_what_the_weights_are_taken_over(tmp_path: Path) -> None:
    for name, knobs, words in (
        ("kept", Knobs(), "0.5 is undecided"),
        ("all", Knobs(weigh="all"), "0.25 is undecided"),
        ("switch", Knobs(strategy="switch"), "0.25 is undecided"),
    ):
        run = run_of(tmp_path / name, [4.0] * 4, 0.05, knobs)
        tiles = {tile.name: tile for tile in tiles_of("routing", run, At(0))}
        assert tiles["top1_gate"].lines == (words,)
        assert tiles["gate_entropy"].value == "1.00"  # two gates of 0.25 are even
        run.close()


@pytest.mark.parametrize(
    ("gates", "lines"),
    [
        ([[1.5, 1.0], [1.25, 1.25]], ("1.2 is undecided",)),  # DeepSeek-V3's weights sum to 2.5
        ([[0.7, 0.3], [0.5, 0.5]], ("0.5 is undecided",)),
        ([[0.7, 0.1], [0.3, 0.2]], ()),  # shares of a softmax over all experts
    ],
)
def test_what_is_undecided_in_a_watched_model_follows_from_the_sum_of_its_gates(
    gates: list[list[float]], lines: tuple[str, ...], tmp_path: Path
) -> None:
    shot = {"experts": np.array([[[0, 1], [2, 3]]] * 2, np.uint8), "gates": np.array([gates] * 2, np.float16)}
    run = run_of(tmp_path / "a", [4.0] * 4, 0.05, Knobs(), shot)
    run.description = replace(run.description, origin="watched")
    tiles = {tile.name: tile for tile in tiles_of("routing", run, At(0))}
    assert tiles["top1_gate"].lines == lines
    run.close()


def test_the_entropy_of_gates_is_of_their_shares() -> None:
    kept = np.array([[0.8, 0.2], [0.5, 0.5]])
    assert gate_entropy(0.3 * kept) == pytest.approx(gate_entropy(kept))
    assert gate_entropy(np.zeros((3, 2))) == 0.0


def test_the_end_of_a_run_is_judged_by_the_mean_that_the_list_of_runs_and_the_report_have(tmp_path: Path) -> None:
    """A last step that is uneven by chance makes no run uneven; the tile has that step's number, and says so."""
    config = Config.for_task("plane", num_experts=4, layers=1, tokens=16)
    for name in ("a", "b"):
        writer, rows = (
            create_run(tmp_path / name, config, Knobs()),
            np.ones((60, sum(c.width for c in layout(1, 4))), np.float32),
        )
        for column in layout(1, 4):
            if column.stat == "load":
                rows[:10, column.start : column.start + 4] = [16, 0, 0, 0]  # before the last 50 steps
                rows[-1, column.start : column.start + 4] = UNEVEN
        writer.commit(Batch(1, rows, state="training"))
        writer.finish("stopped")
    with closing(open_run(tmp_path / "a")) as run, closing(open_run(tmp_path / "b")) as other:
        feed = Feed(run)
        feed.refresh(now=True)
        assert "CV(load) 0.01 (mean of the last 50 steps), balanced in training." in banner(feed, 0)["text"]
        tile = tiles_of("live", run, At(0))[0]
        assert (tile.label, tile.value, tile.word) == ("CV(load), this step", "0.58", "Uneven in training")
        for compared in tiles_of("compare", View(feed, {}, (other,)), At(0)):
            assert (compared.value, "Balanced in training" in (compared.word, *compared.lines)) == ("0.01", True)
        assert dict(sections([run, other])[-1][1])["CV(load)"] == ["0.01", "0.01 (0.00)"]
        assert facts_of(run.path).balance == pytest.approx(0.577 / 50, abs=1e-3)
        assert (
            dict(parts_of(run, lambda *one: one)[0].content[0].rows)["CV(load), layer 1"]
            == "0.0115 (mean of the last 50 steps)"
        )
        assert ending(run)["cv_load"] == pytest.approx(facts_of(run.path).balance)
