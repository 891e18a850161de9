"""The charts of a training by several ranks, from a record of which every choice is known."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_core.export.numbers import columns, statistics
from moe_core.figures.catalog import FIGURES, on_page, shows, tiles_of
from moe_core.figures.pages.tile import short as in_short
from moe_core.figures.ranks import Counted
from moe_core.figures.read_ranks import MOST, alone_text, rows_of
from moe_core.figures.theme import DARK, LIGHT
from moe_core.runs import Batch, Run, create_run, open_run
from moe_core.runs.source import At
from moe_core.runs.statistics import Deal
from moe_core.schema import Config, Knobs
from tests.figures.ranked import E, K, T, choices, record_ranks
from tests.figures.record import record, record_tokens

OWN = ["device_balance", "device_load", "communication", "rows_between_ranks", "sent_bytes"]
WORDS = re.compile("<.*?>")


def spec_of(run: Any, name: str, at: At = At(), size: Any = (320, 460), **more: Any) -> dict[str, Any]:  # noqa: B008 - frozen
    entry = FIGURES[name]
    return entry.draw.spec(**entry.read(run, at), size=size, **more)


def subtitle(spec: dict[str, Any]) -> str:
    return WORDS.sub("", spec["layout"]["title"]["text"].split("<br>", 1)[1])


def trace(spec: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in spec["data"] if one["name"] == name)


def sent_by_hand(first: int, last: int, layer: int, data: int, expert: int) -> list[list[int]]:
    """[from][to], counted token by token."""
    ranks = data * expert
    rows = [[0] * ranks for _ in range(ranks)]
    for step in range(first, last + 1):
        for token in range(T):
            sender = token * ranks // T
            for chosen in choices(step, layer)[token].tolist():
                owner = chosen // (E // expert)
                rows[sender][(sender // expert) * expert + owner] += 1
    return rows


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder: Path = tmp_path_factory.mktemp("runs")
    return {
        "groups": record_ranks(folder / "groups", (130, 2, 2)),
        "moved": record_ranks(folder / "moved", (50, 1, 4), (80, 1, 2), (95, 1, 1), (120, 2, 1)),
        "data": record_ranks(folder / "data", (20, 2, 1)),
        "gpu": record_ranks(folder / "gpu", (20, 1, 2), gpu=True),
        "later": record_ranks(folder / "later", (20, 1, 1), (40, 1, 4)),
        "drops": record_ranks(folder / "drops", (20, 1, 2), drop=True, knobs=Knobs(capacity_factor=1.0)),
        "one": record_ranks(folder / "one", (20, 1, 2), layers=1),
        "many": record_ranks(folder / "many", (20, 1, 8), layers=8),
    }


@pytest.mark.parametrize("layer", [0, 1])
def test_the_matrix_has_the_rows_that_each_rank_sent_to_each(runs: dict[str, Run], layer: int) -> None:
    rows = sent_by_hand(31, 130, layer, 2, 2)
    spec = spec_of(runs["groups"], "rows_between_ranks", At(layer))
    sent, stayed = trace(spec, "sent"), trace(spec, "stayed")
    assert sent["customdata"].tolist() == stayed["customdata"].tolist() == rows
    own, total = sum(rows[rank][rank] for rank in range(4)), sum(map(sum, rows))
    assert total == 100 * T * K
    even = total / (4 * 2)
    most = f"most {max(map(max, rows)) / even:.2f} × even"
    assert subtitle(spec) == f"{total:,} rows, {100 * (total - own) / total:.1f} % crossed; {most}; steps 31–130"
    for one in range(4):
        for other in range(4):
            z = math.log2(rows[one][other] / even) if one // 2 == other // 2 else math.nan
            here, elsewhere = (stayed, sent) if one == other else (sent, stayed)
            np.testing.assert_allclose(here["z"][one, other], z, rtol=1e-5)
            assert math.isnan(elsewhere["z"][one, other])


def test_what_stayed_is_framed_and_each_group_too(runs: dict[str, Run]) -> None:
    boxes = [
        (s["x0"], s["x1"], s["y0"], s["y1"]) for s in spec_of(runs["groups"], "rows_between_ranks")["layout"]["shapes"]
    ]
    assert len(boxes) == 6
    for rank in range(4):
        np.testing.assert_allclose(boxes[rank], (rank - 0.47, rank + 0.47, rank - 0.47, rank + 0.47))
    assert boxes[4:] == [(-0.5, 1.5, -0.5, 1.5), (1.5, 3.5, 1.5, 3.5)]
    assert len(spec_of(runs["one"], "rows_between_ranks")["layout"]["shapes"]) == 2  # one group: no frame of its own


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_numbers_stand_where_rows_can_go_and_find_room(runs: dict[str, Run], theme: Any) -> None:
    rows = sent_by_hand(31, 130, 0, 2, 2)
    spec = spec_of(runs["groups"], "rows_between_ranks", theme=theme)
    numbers = trace(spec, "numbers")
    found = {(i, j): text for i, j, text in zip(numbers["y"], numbers["x"], numbers["text"], strict=True)}
    assert found == {(i, j): f"{rows[i][j]:,}" for i in range(4) for j in range(4) if i // 2 == j // 2}
    assert set(numbers["textfont"]["color"]) <= {"#FFFFFF", "#0B0E12"}
    assert ("meta" in numbers) <= (theme is DARK)
    assert all(
        one["name"] != "numbers" for one in spec_of(runs["groups"], "rows_between_ranks", size=(190, 150))["data"]
    )
    large = {"rows_to_RR": np.array([[1_234_567, 0], [10, 999_600]]), "group": 2, "counted": Counted(1, 9)}
    short = FIGURES["rows_between_ranks"].draw.spec(**large, size=(220, 200))
    assert trace(short, "numbers")["text"] == ["1.23M", "0", "10", "1M"]
    numbers = (0, 999, 999.4, 999.5, 1000, 25_664, 999_600, 2_000_000_000, 1.5e12)
    assert [in_short(n) for n in numbers] == ["0", "999", "999", "1 k", "1 k", "25.7 k", "1 M", "2 G", "1500 G"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [([[100, 100], [100, 100]], "all even to 1 %"), ([[97, 103], [100, 100]], "all even to 3 %"),
     ([[90, 110], [100, 100]], "all even to 10 %"), ([[89, 111], [100, 100]], "most 1.11 × even")],
)  # fmt: skip
def test_pale_cells_are_said_to_be_even(rows: list[list[int]], words: str) -> None:
    spec = FIGURES["rows_between_ranks"].draw.spec(np.array(rows), group=2, counted=Counted(1, 9))
    assert f"; {words}; steps 1–9" in subtitle(spec)


def test_load_is_what_came_to_each_device_beside_an_even_one(runs: dict[str, Run]) -> None:
    rows = sent_by_hand(31, 130, 1, 2, 2)
    spec = spec_of(runs["groups"], "device_load", At(1))
    own, others = trace(spec, "own tokens"), trace(spec, "tokens of others")
    assert own["y"].tolist() == [rows[rank][rank] for rank in range(4)]
    assert others["base"].tolist() == own["y"].tolist()
    load = [sum(rows[one][rank] for one in range(4)) for rank in range(4)]
    assert (own["y"] + others["y"]).tolist() == load
    (even,) = spec["layout"]["shapes"]
    assert even["y0"] == even["y1"] == sum(load) / 4 == 100 * T * K / 4
    assert subtitle(spec) == f"busiest {max(load) / (sum(load) / 4):.2f} × mean; ■ own ■ others' tokens; steps 31–130"
    assert spec["layout"]["yaxis"]["range"][1] >= max(load)
    sent = sum(rows[3]) - rows[3][3]
    assert others["hovertext"][3] == own["hovertext"][3] == (
        f"Rank 3 (experts 5 to 8) worked through {load[3]:,} rows in steps 31 to 130, {load[3] / (sum(load) / 4):.2f} × the mean;<br>"
        f"{load[3] - rows[3][3]:,} came from other ranks, and it sent {sent:,} to them"
    )  # fmt: skip
    assert "(experts 1 to 4)" in own["hovertext"][2]


def test_a_past_step_shows_the_ranks_of_its_time(runs: dict[str, Run]) -> None:
    run = runs["moved"]
    for step, last, expert in ((45, 40, 4), (50, 50, 4), (79, 60, 2), (90, 80, 2)):
        spec = spec_of(run, "rows_between_ranks", At(0, step))
        assert trace(spec, "sent")["customdata"].tolist() == sent_by_hand(1, last, 0, 1, expert)
        assert spec["layout"]["meta"]["step"] == last
        # After the move the choices of all 100 steps are counted as if they had been dealt so.
        assert subtitle(spec).endswith(
            f"steps 1–{last}" + (", counted with the ranks of step 51 on" if last > 50 else "")
        )
        load = spec_of(run, "device_load", At(0, step))
        assert len(trace(load, "own tokens")["y"]) == expert
    for name in ("rows_between_ranks", "device_load"):
        alone = spec_of(run, name, At(0, 95))
        assert alone["data"] == []
        assert subtitle(alone) == "one process at this step; ranks up to step 80"
        before = spec_of(run, name, At(0, 10))
        assert before["data"] == []
        assert subtitle(before).startswith("not counted yet")


def test_a_chart_without_ranks_says_which_steps_had_some(runs: dict[str, Run], tmp_path: Path) -> None:
    """One process went on with the run, or began it."""
    gone_on = record_ranks(tmp_path / "a", (20, 1, 2), (1040, 1, 1))
    for run, at, near in (
        (gone_on, None, "ranks up to step 20"),
        (runs["later"], 10, "ranks from step 21 on"),
    ):
        spec = spec_of(run, "rows_between_ranks", At(0, at))
        assert subtitle(spec) == f"one process at this step; {near}"
        assert spec["data"] == []
    assert alone_text((Deal(1, 1, 1), Deal(31, 1, 2), Deal(51), Deal(61, 2, 2), Deal(1001)), 1001).endswith(
        "to step 1,000"
    )
    assert alone_text((Deal(1, 1, 1), Deal(31, 1, 2), Deal(51), Deal(61, 2, 2)), 55).endswith("up to step 50")
    assert alone_text((), 9) == "one process at this step"
    assert alone_text((Deal(1, 1, 2),), 9) == alone_text((), 0) == ""


def test_where_each_rank_has_all_experts_nothing_crosses(runs: dict[str, Run]) -> None:
    spec = spec_of(runs["moved"], "rows_between_ranks")
    assert "0.0 % crossed; all even to 1 %" in subtitle(spec)
    assert np.isnan(trace(spec, "sent")["z"]).all()
    assert len(trace(spec, "numbers")["text"]) == 2


def test_the_load_is_after_drops_and_the_balance_over_time_before_them(runs: dict[str, Run]) -> None:
    load = spec_of(runs["drops"], "device_load")
    assert sum((trace(load, "own tokens")["y"] + trace(load, "tokens of others")["y"]).tolist()) == 20 * (T * K - 1)
    assert "before any drop" in subtitle(spec_of(runs["drops"], "device_balance"))
    assert "before any drop" not in subtitle(spec_of(runs["one"], "device_balance"))


def test_the_balance_of_devices_and_of_experts_over_time(runs: dict[str, Run]) -> None:
    spec = spec_of(runs["moved"], "device_balance", size=(620, 224))
    devices, experts = trace(spec, "devices"), trace(spec, "experts")
    assert devices["x"].tolist() == experts["x"].tolist() == list(range(1, 121))
    for step in (1, 50, 51, 80):
        counts = np.bincount(choices(step, 0).ravel(), minlength=E)
        halves = counts.reshape(4 if step <= 50 else 2, -1).sum(axis=1)
        np.testing.assert_allclose(devices["y"][step - 1], halves.max() / halves.mean(), rtol=1e-6)
        np.testing.assert_allclose(experts["y"][step - 1], counts.max() / counts.mean(), rtol=1e-6)
    assert np.isnan(devices["y"][80:]).all()
    assert subtitle(spec).endswith("each device has all experts")
    assert {note["text"] for note in spec["layout"]["annotations"]} == {f"experts {experts['y'][-1]:.2f} ×", "devices"}
    now = spec_of(runs["groups"], "device_balance", size=(620, 224))
    assert subtitle(now).endswith("2 devices, mean over 2 groups")
    assert now["layout"]["yaxis"]["range"][0] == 1
    assert now["layout"]["yaxis"]["range"][1] >= np.nanmax(trace(now, "experts")["y"])
    assert subtitle(spec_of(runs["moved"], "device_balance", At(0, 60))).endswith("; 2 devices")


def test_communication_and_bytes_are_drawn_as_recorded(runs: dict[str, Run]) -> None:
    run = runs["groups"]
    (share,), (sent,) = (spec_of(run, name, size=(620, 224))["data"] for name in ("communication", "sent_bytes"))
    np.testing.assert_allclose(share["y"], 100 * run.history("communication")[1], rtol=1e-6)
    np.testing.assert_allclose(sent["y"], np.arange(1, 131) / 1000, rtol=1e-6)
    assert spec_of(run, "communication")["layout"]["yaxis"]["range"] == [0, 100]
    assert [note["text"] for note in spec_of(run, "sent_bytes")["layout"]["annotations"]] == ["0.13 MB"]
    assert "mean over ranks" in subtitle(spec_of(run, "communication"))
    assert "all ranks" in subtitle(spec_of(run, "sent_bytes"))


def test_each_run_is_offered_what_it_measured(runs: dict[str, Run], tmp_path: Path) -> None:
    def own(run: Any) -> list[str]:
        return [name for name in on_page(run, "live") if name in OWN]

    assert own(runs["groups"]) == own(runs["moved"]) == own(runs["many"]) == OWN
    assert own(runs["data"]) == ["communication", "sent_bytes"]
    assert own(runs["gpu"]) == [name for name in OWN if name != "communication"]
    assert own(runs["later"]) == ["device_load", "rows_between_ranks"]
    for run in (record(tmp_path / "a", "plane"), record_tokens(tmp_path / "b", None, np.arange(40))):
        assert own(run) == []
    # One process trained its last steps, but not those before.
    gone_on = record_ranks(tmp_path / "d", (20, 1, 2), (40, 1, 1))
    assert [name for name in OWN if shows(gone_on, name)] == OWN
    # Before the first step there is nothing to export of the snapshots.
    config = Config.for_task("plane", num_experts=E, layers=2, tokens=T)
    writer = create_run(tmp_path / "c", config, Knobs(), facts={"ranks": {"data": 1, "expert": 2}}, ranks=2)
    begun = open_run(tmp_path / "c")
    assert own(begun) == OWN
    assert [name for name in OWN if shows(begun, name)] == ["device_balance", "communication", "sent_bytes"]
    for name in OWN:
        assert not any(len(one["y"]) for one in spec_of(begun, name)["data"])
    begun.close()
    writer.finish("stopped")


def test_a_record_of_somebody_elses_is_shown_as_far_as_it_is_whole(tmp_path: Path) -> None:
    good = np.ones((2, 3, 3), np.int64)
    assert rows_of(good, 2) is not None
    assert rows_of(np.zeros((2, MOST, MOST), np.int64), 2) is not None
    for many in (np.zeros((2, MOST + 1, MOST + 1), np.int64), np.full((2, 64, 64), 2**52)):
        assert rows_of(many, 2) is None
    for bad in (good[0], good[:1], good[:, :2], good.astype(float), -good, good[:, :0, :0], good * 2**60):
        assert rows_of(bad, 2) is None
    config = Config.for_task("plane", num_experts=E, layers=2, tokens=T)
    facts = {"ranks": {"data": 1, "expert": 3}}  # three ranks cannot have 8 experts, and the snapshot is of two
    writer = create_run(tmp_path / "a", config, Knobs(), facts=facts, ranks=3)
    width = writer.layout.width
    taken = [
        (step, "full", {"rows_between_ranks": np.ones(shape, np.int64)})
        for step, shape in ((1, (2, 2, 2)), (2, (2, 3, 4)))
    ]
    writer.commit(Batch(1, np.ones((3, width), np.float32), snapshots=taken))
    writer.finish("stopped")
    run = open_run(tmp_path / "a")
    load = spec_of(run, "device_load", At(0, 1))
    assert "experts" not in load["data"][0]["hovertext"][0]
    assert len(trace(spec_of(run, "rows_between_ranks", At(0, 1)), "numbers")["text"]) == 4
    assert spec_of(run, "rows_between_ranks", At(0, 2))["data"] == []
    assert np.isnan(spec_of(run, "device_balance")["data"][1]["y"]).all()


def test_the_tiles_say_it_in_a_line_and_of_one_process_nothing(runs: dict[str, Run], tmp_path: Path) -> None:
    def lines(run: Any, step: int | None = None) -> dict[str, tuple[str, ...]]:
        return {tile.name: (*tile.lines, tile.more) for tile in tiles_of("live", run, At(0, step))}

    run = runs["moved"]
    counts = np.bincount(choices(80, 0).ravel(), minlength=E).reshape(2, -1).sum(axis=1)
    at_80 = lines(run, 80)
    assert f"devices {counts.max() / counts.mean():.2f} ×" in at_80["max_over_mean_load"]
    share = 100 * float(np.mean(run.history("communication", first=51, last=80)[1]))
    assert f"communication {share:.0f} %" in at_80["speed"]
    assert "All ranks together sent 65.5 kB a step, mean of 30 steps." in at_80["speed"][-1]
    for alone in (lines(run, 95), lines(record(tmp_path / "a", "plane"))):
        assert not [line for of in alone.values() for line in of if "exchange" in line or "devices" in line]
    assert "10.5 kB a step" in lines(runs["gpu"])["speed"]


def test_the_numbers_are_exported_by_rank_from_0(runs: dict[str, Run]) -> None:
    table = columns(FIGURES["rows_between_ranks"].read(runs["groups"], At(1)))
    rows = sent_by_hand(31, 130, 1, 2, 2)
    assert table["rank"].tolist() == [0, 1, 2, 3]
    for rank in range(4):
        assert table[f"rows_to_{rank}"].tolist() == [row[rank] for row in rows]
    assert "max_over_mean_devices_layer2" in statistics(runs["groups"])
    assert "max_over_mean_devices_layer2" not in statistics(runs["later"])
