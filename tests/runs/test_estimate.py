"""What a run will take: parameters exactly, speed by the machine's own runs, and the command that trains the same."""

import contextlib
import os
import random
import shlex
import shutil
import sqlite3
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from moe_core.__main__ import parser
from moe_core.commands.train import settings_of
from moe_core.nn.models import build
from moe_core.runs import command_of, create_run, estimate, open_run
from moe_core.runs.branch import branch_off
from moe_core.runs.estimate import Speed
from moe_core.runs.ranks import ALONE, RankCounts, facts_of_ranks
from moe_core.runs.rows import Batch
from moe_core.runs.seen import SHARE
from moe_core.runs.sums import snapshot_mark
from moe_core.runs.thinning import thin_snapshots
from moe_core.schema import PLANES, Config, Knobs, columns_of
from moe_core.training.data import load
from tests.figures.ranked import record_ranks


def random_config(seed: int) -> tuple[Config, int, int]:
    """A config with its data's widths of a row and of the answer."""
    rng = random.Random(seed)
    task = rng.choice(["text", "text", "digits", "plane"])
    groups = rng.choice([0, 1, 2, 4])
    config = Config(
        task=task, groups=groups, num_experts=max(1, groups) * rng.randint(1, 6), layers=rng.randint(1, 4),
        d_model=rng.choice([1, 7, 16, 48, 64, 130]), d_hidden=rng.randint(1, 40), context=rng.choice([2, 16]),
    )  # fmt: skip
    return config, rng.randint(1, 50), rng.randint(2, 20)


@pytest.mark.parametrize("seed", range(12))
def test_the_parameters_are_those_of_the_model(seed: int) -> None:
    config, features, classes = random_config(seed)
    model = build(config, features, classes, k=1)
    assert estimate.parameters(config, features, classes) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("plane", PLANES)
def test_the_widths_of_the_built_in_points_are_known(plane: str) -> None:
    config = Config.for_task("plane", plane=plane)
    data = load(config)
    assert estimate.shape_of(config) == (data.features, data.classes)


def test_the_widths_of_the_built_in_digits_are_known() -> None:
    data = load(Config.for_task("digits"))
    assert estimate.shape_of(Config.for_task("digits")) == (data.features, data.classes)


SMALL, STARTED = Config.for_task("plane", device="cpu"), Knobs()


def record(
    runs: Path,
    name: str,
    config: Config,
    seconds: float,
    knobs: Knobs = STARTED,
    steps: int = 60,
    ranks: RankCounts = ALONE,
) -> None:
    """A run of so many steps, each as long, after slow first ones."""
    columns = columns_of([config.num_experts] * config.layers)
    rows = np.ones((steps, columns[-1].start + columns[-1].width), np.float32)
    at = next(column.start for column in columns if column.stat == "seconds")
    rows[:, at] = seconds
    rows[: estimate.WARM - 1, at] = 10 * seconds
    writer = create_run(runs / name, config, knobs, facts={"device": "cpu", **facts_of_ranks(ranks)})
    writer.commit(Batch(1, rows, state="training"))
    writer.finish("finished")


def seconds_of(config: Config, runs: Path, knobs: Knobs = STARTED) -> float | None:
    found = estimate.estimate(config, knobs, *estimate.shape_of(config), estimate.speeds(runs)).seconds
    return found and found / estimate.AROUND


def test_a_run_of_the_same_sizes_says_how_fast_it_will_be(tmp_path: Path) -> None:
    record(tmp_path, "a", SMALL, 0.5)
    assert seconds_of(replace(SMALL, seed=3, steps=9), tmp_path) == pytest.approx(0.5)
    told = estimate.estimate(SMALL, Knobs(), 2, 2, estimate.speeds(tmp_path)).source
    assert "your last run of these sizes" in told


def test_other_sizes_are_corrected_by_what_this_machine_took(tmp_path: Path) -> None:
    for width, factor in ((33, 2.0), (34, 3.0), (36, 50.0)):
        config = replace(SMALL, d_model=width)
        record(tmp_path, str(width), config, factor * estimate.model_seconds(config, Knobs(), 2, 2))
    larger = replace(SMALL, num_experts=32, layers=3)
    bare = estimate.model_seconds(larger, Knobs(), 2, 2)
    assert seconds_of(larger, tmp_path) == pytest.approx(3 * bare, rel=1e-3)
    assert seconds_of(larger, tmp_path / "none") == pytest.approx(bare)


def test_what_says_nothing_of_the_speed_is_left_out(tmp_path: Path) -> None:
    record(tmp_path, "limited", SMALL, 0.5, Knobs(speed_limit=2.0))
    record(tmp_path, "short", SMALL, 0.5, steps=estimate.LEAST - 1)
    record(tmp_path, "turned", SMALL, 0.5)
    open_run(tmp_path / "turned").turn(who="me", speed_limit=2.0)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.db").write_text("no database")
    assert estimate.speeds(tmp_path) == []


def test_a_gpu_on_which_nothing_was_measured_has_no_speed(tmp_path: Path) -> None:
    record(tmp_path, "a", SMALL, 0.5)
    elsewhere = replace(SMALL, device="cuda:1")
    assert seconds_of(elsewhere, tmp_path) is None
    found = estimate.estimate(elsewhere, Knobs(), 2, 2, estimate.speeds(tmp_path))
    assert "Speed on cuda is not known" in found.source
    own = [Speed("cuda", elsewhere, Knobs(), (2, 2), 0.25)]
    assert estimate.estimate(elsewhere, Knobs(), 2, 2, own).seconds == pytest.approx(0.25 * estimate.AROUND)


def test_ranks_are_as_fast_as_a_run_on_as_many_ranks_was_and_say_nothing_of_one_process() -> None:
    def told(ranks: RankCounts, *recorded: Speed) -> tuple[float | None, str]:
        found = estimate.estimate(SMALL, Knobs(), 2, 2, recorded, ranks)
        return found.seconds and found.seconds / estimate.AROUND, found.source

    on_two = Speed("cpu", SMALL, Knobs(), (2, 2), 0.5, RankCounts(2, 2))
    assert told(RankCounts(2, 2), on_two)[0] == pytest.approx(0.5)
    for other in (RankCounts(4, 2), RankCounts(2, 1)):
        seconds, source = told(other, on_two, Speed("cpu", SMALL, Knobs(), (2, 2), 0.5))
        assert seconds is None
        assert f"Speed on {other.size} ranks is not known before a run of these sizes has trained on them." in source
    assert told(ALONE, on_two) == told(ALONE)


def test_a_run_on_ranks_is_recorded_as_one(tmp_path: Path) -> None:
    record(tmp_path, "a", SMALL, 0.5, ranks=RankCounts(4, 2))
    assert [speed.ranks for speed in estimate.speeds(tmp_path)] == [RankCounts(4, 2)]


@pytest.mark.parametrize("fork", [False, True])
def test_a_run_counts_for_the_ranks_of_its_measured_steps(tmp_path: Path, fork: bool) -> None:
    """Whatever it began with; on one number of ranks and then on another it says nothing of either."""
    last = estimate.LEAST

    def found(*sessions: tuple[int, int, int]) -> list[RankCounts]:
        name = "-".join(str(step) for session in sessions for step in session)
        run = record_ranks(tmp_path / name / "a", *sessions)
        if fork:
            os.close(branch_off(run, run.steps()[1], {}, tmp_path / name / "b", 900))
            shutil.rmtree(tmp_path / name / "a")
        return [speed.ranks for speed in estimate.speeds(tmp_path / name)]

    assert found((last, 2, 2)) == [RankCounts(4, 2)]
    assert found((estimate.WARM - 1, 1, 1), (last, 1, 2)) == [RankCounts(2, 2)]
    assert found((estimate.WARM, 1, 1), (last, 1, 2)) == []
    assert found((last - 1, 1, 2), (last, 1, 1)) == []
    assert found((last - 1, 1, 2), (last, 1, 2)) == [RankCounts(2, 2)]


def test_a_run_whose_ranks_are_not_known_for_damage_says_nothing(tmp_path: Path) -> None:
    record_ranks(tmp_path / "a", (estimate.LEAST, 1, 2), (estimate.LEAST + 1, 1, 2)).close()
    assert len(estimate.speeds(tmp_path)) == 1
    with contextlib.closing(sqlite3.connect(tmp_path / "a" / "run.db")) as db, db:
        db.execute("UPDATE commands SET who = 'another'")
    assert estimate.speeds(tmp_path) == []


def test_ranks_share_the_experts_and_each_has_all_else() -> None:
    def takes(ranks: RankCounts, **changes: int) -> float:
        return estimate.estimate(Config.for_task("plane", **changes), Knobs(), 2, 2, (), ranks).memory

    assert (
        takes(ALONE)
        < takes(RankCounts(2, 2))
        < takes(RankCounts(2, 1))
        < takes(RankCounts(4, 2))
        < takes(RankCounts(4, 1))
    )
    wide = {"d_model": 256, "d_hidden": 4096}
    experts = 2 * 8 * 256 * 4096
    dealt, whole = (takes(ranks, **wide) for ranks in (RankCounts(2, 2), RankCounts(2, 1)))
    assert whole - dealt == pytest.approx(16 * experts)  # each of both has half of them less
    assert takes(RankCounts(4, 2)) - takes(RankCounts(2, 2)) > 2 * estimate.RANK


def test_every_estimate_grows_with_what_it_is_of() -> None:
    def takes(**changes: int) -> tuple[float, ...]:
        config = Config.for_task("text", **{"device": "cpu"} | changes)
        found = estimate.estimate(config, Knobs(), 256, 256)
        assert found.seconds
        return found.parameters, found.memory, found.seconds, found.disk(1000)

    for name in ("num_experts", "layers", "d_model", "d_hidden"):
        for small, large in zip(takes(), takes(**{name: 2 * getattr(Config(), name)}), strict=True):
            assert large > small or name == "d_hidden", name
    found = estimate.estimate(Config(), Knobs(), 256, 256)
    assert found.disk(2000) > found.disk(1000) > found.checkpoint


def test_snapshots_are_counted_by_the_share_that_looks_may_take() -> None:
    """A look takes a third of a step's time for each of its tokens, and the probe has 256."""
    config = Config.for_task("text", device="cpu")
    assert load(config).probe()[0].targets.numel() == pytest.approx(256, rel=0.1)
    own = [Speed("cpu", config, Knobs(), (256, 256), 0.25)]
    found = estimate.estimate(config, Knobs(), 256, 256, own)
    assert found.looks == pytest.approx(SHARE / (0.25 / 3 * 256 / config.tokens), rel=0.01)


def test_old_snapshots_are_thinned() -> None:
    assert [estimate.kept(t, 10, 1, 0.1) for t in (0, 30, 60, 70, 600, 1600)] == [0, 300, 600, 610, 1140, 1240]
    assert estimate.kept(36_000, 10, 1, 0.1) == pytest.approx(1140 + 3540)
    assert estimate.kept(360_000, 10, 1, 0.1) == pytest.approx(1140 + 3540 + 3240)
    assert estimate.kept(36_000, 0.01, 1, 0.1) == pytest.approx(360)  # no more than were taken


def test_a_run_of_any_length_keeps_a_bounded_number_of_snapshots() -> None:
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE snapshots (id INTEGER PRIMARY KEY, step INTEGER, kind TEXT, at REAL)")
    rows = ((i, i, "probe", 5.0 * i) for i in range(1, 80_001))  # five days, one in five seconds
    db.executemany("INSERT INTO snapshots VALUES (?, ?, ?, ?)", rows)
    mark = 0
    for (id,) in db.execute("SELECT id FROM snapshots").fetchall():
        mark ^= snapshot_mark(id, id, "probe")
    mark ^= thin_snapshots(db, 4e5)
    left = np.array([at for (at,) in db.execute("SELECT at FROM snapshots ORDER BY at").fetchall()])
    assert (left[0], left[-1]) == (5.0, 4e5)
    for id in (left / 5).astype(int).tolist():
        mark ^= snapshot_mark(id, id, "probe")
    assert mark == 0
    ages = 4e5 - left
    many = [int(((ages >= a) & (ages < b)).sum()) for a, b in pairwise((0, 60, 600, 36_000, 360_000, 4e5))]
    expected = (12, 108, 3540, 3240, 40)
    assert all(abs(n - of) <= 3 for n, of in zip(many, expected, strict=True)), many
    assert sum(many) == pytest.approx(estimate.kept(4e5, 0.2, 1, 0.1), rel=0.01)


# The command


ODD = [
    (Config.for_task("text"), Knobs()),
    (Config.for_task("digits", num_experts=32, layers=3, seed=7, steps=500), Knobs(w_importance=0.0, w_load=0.0, k=3)),
    (Config.for_task("plane", plane="rings", plane_noise=1e-3, groups=2), Knobs(lr=1.5e-4, k_primary=1)),
    (Config.for_task("text", text=("/a b/it's", "/$HOME"), context=64), Knobs(off="1:2", strategy="switch")),
    (Config.for_task("digits", data="/x;y.csv", label="-x", drop=("", "--steps", "a b"), missing="mean"), Knobs()),
    (Config.for_task("digits", num_experts=16, tokens=1024, d_hidden=32, layers=2), Knobs()),  # the text task's defaults
]  # fmt: skip


@pytest.mark.parametrize(("config", "knobs"), ODD)
def test_the_command_to_copy_trains_the_same(config: Config, knobs: Knobs) -> None:
    words = shlex.split(command_of(config, knobs))
    assert words[:3] == ["python", "-m", "moe_core"]
    assert settings_of(parser().parse_args(words[3:])) == (config, knobs)


def test_the_command_says_only_what_differs() -> None:
    command = command_of(Config.for_task("digits", seed=7), Knobs(noise=0.5))
    assert command == "python -m moe_core train --task digits --seed 7 --noise 0.5"
