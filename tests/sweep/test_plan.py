"""What a sweep trains, as it is asked for: grids, names, and what cannot be trained."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from moe_core.runs import create_run, open_run
from moe_core.schema import STRATEGIES, Config, Knobs, check, meta_of, reads
from moe_core.sweep import (
    PAPER,
    Plan,
    StoreError,
    Sweep,
    grid,
    jobs,
    make_plan,
    make_sweep,
    open_sweep,
    pairs_of,
    sweep_ids,
    unread_text,
    values_of,
)
from tests.sweep.made import CONFIG, TEXT, WEIGHTS

SMALL = ["--task", "plane", "--d-model", "8", "--d-hidden", "8", "--tokens", "64", "--num-experts", "4"]


def test_a_list_is_every_value_in_the_knobs_own_type() -> None:
    assert values_of("w_load", "0, 0.01 ,1") == [0.0, 0.01, 1.0]
    assert values_of("k", "1,2") == [1, 2]
    assert all(isinstance(value, int) for value in values_of("k", "1,2"))
    with pytest.raises(ValueError, match="w_load must be between 0 and 1, got 7"):
        values_of("w_load", "0,7")
    with pytest.raises(ValueError, match="w_load must be a number, got ''"):
        values_of("w_load", "0,,1")


def test_pairs_are_written_with_a_slash_and_table6_is_the_papers_six() -> None:
    assert pairs_of(["0/0", "0.2/0"]) == [{"w_importance": 0.0, "w_load": 0.0}, {"w_importance": 0.2, "w_load": 0.0}]
    assert pairs_of(["0/0 0.2/0"]) == pairs_of(["0/0,0.2/0"]) == pairs_of(["0/0", "0.2/0"])
    assert [tuple(cell.values()) for cell in pairs_of(["table6"])] == list(PAPER)
    assert len(PAPER) == 6
    with pytest.raises(ValueError, match="or table6; got '0\\.1'"):
        pairs_of(["0.1"])
    with pytest.raises(ValueError, match="w_load must be between 0 and 1, got 3"):
        pairs_of(["0/3"])


def test_a_grid_is_every_combination_once_the_last_quickest() -> None:
    every = [{"k": 1, "noise": 0.0}, {"k": 1, "noise": 1.0}, {"k": 2, "noise": 0.0}, {"k": 2, "noise": 1.0}]
    assert grid([[{"k": 1}, {"k": 2}], [{"noise": 0.0}, {"noise": 1.0}]]) == every
    assert grid([]) == [{}]
    twice = make_plan(CONFIG, Knobs(), {"k": [1, 2], "noise": [0.0, 1.0, 0.0]})
    assert list(twice.cells) == [{"noise": cell["noise"], "k": cell["k"]} for cell in every]


def test_what_a_strategy_does_not_read_is_left_out_and_the_same_cell_is_one() -> None:
    """The engineer's grid: each strategy with its own knobs, once each."""
    lists = {"w_load": [0.0, 0.1], "strategy": ["paper", "switch", "loss-free"], "w_switch": [0.01, 0.1]}
    plan = make_plan(CONFIG, Knobs(), lists, seeds=2)
    assert list(plan.cells) == [
        {"strategy": "paper", "w_load": 0.0},
        {"strategy": "paper", "w_load": 0.1},
        {"strategy": "switch", "w_switch": 0.01},
        {"strategy": "switch", "w_switch": 0.1},
        {"strategy": "loss-free"},
    ]
    assert plan.swept == ("strategy", "w_load", "w_switch")
    assert plan.unread == {"paper": ["w_switch"], "switch": ["w_load"], "loss-free": ["w_load", "w_switch"]}
    assert unread_text(plan.unread) == (
        "What would train the same is trained once. Not read: w_switch by paper; w_load by switch; w_load and w_switch by loss-free."
    )
    found = jobs(Sweep("s", Path(), plan))
    assert len(found) == 10
    assert len({(job.knobs, job.config.seed) for job in found}) == 10
    assert make_plan(CONFIG, Knobs(), WEIGHTS).unread == {}


def test_a_weighing_that_is_the_strategys_own_is_that_cell_once_more() -> None:
    lists = {"strategy": ["paper", "switch", "even"], "weigh": ["own", "kept", "all"]}
    assert list(make_plan(CONFIG, Knobs(), lists).cells) == [
        {"strategy": "paper", "weigh": "own"},
        {"strategy": "paper", "weigh": "all"},
        {"strategy": "switch", "weigh": "own"},
        {"strategy": "switch", "weigh": "kept"},
        {"strategy": "even"},
    ]
    shared = make_plan(
        CONFIG, Knobs(w_importance=0.0, w_load=0.0), {"strategy": ["none", "paper"], "weigh": ["kept", "all"]}
    )
    assert shared.trained == (0, 1, 0, 1)


def test_pairs_are_folded_too() -> None:
    plan = make_plan(CONFIG, Knobs(), {"strategy": ["strictly-balanced", "paper"]}, pairs_of(["0/0 0.2/0 0/0.2"]))
    assert list(plan.cells) == [
        {"strategy": "strictly-balanced", "w_importance": 0.0},
        {"strategy": "strictly-balanced", "w_importance": 0.2},
        *({"strategy": "paper", "w_importance": i, "w_load": w} for i, w in ((0.0, 0.0), (0.2, 0.0), (0.0, 0.2))),
    ]


@pytest.mark.parametrize(
    ("config", "knobs", "lists", "says"),
    [
        (CONFIG, Knobs(strategy="none"), {"w_load": [0.0, 0.1]}, "no strategy of this sweep (none) reads w_load"),
        (
            CONFIG,
            Knobs(),
            {"strategy": ["even", "loss-free"], "noise": [0.0, 1.0]},
            "(even, loss-free) reads noise, so its values would train the same; leave it out",
        ),
        (CONFIG, Knobs(), {"k_primary": [1, 2]}, "only a run with groups of experts reads k_primary; leave it out"),
    ],
)
def test_a_list_that_nothing_reads_is_refused_in_one_line(
    config: Config, knobs: Knobs, lists: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError) as refused:
        make_plan(config, knobs, lists)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_list_of_one_value_is_a_setting_of_all_whatever_reads_it() -> None:
    plan = make_plan(CONFIG, Knobs(), {"strategy": ["none"], "w_load": [0.0], "noise": [0.5, 1.0]})
    assert (plan.swept, plan.knobs) == (("noise",), Knobs(strategy="none", w_load=0.0))


def test_a_plan_of_an_earlier_version_with_every_knob_in_every_cell_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Its runs' names count its cells."""
    sweep = make_sweep(make_plan(CONFIG, Knobs(), WEIGHTS), tmp_path, "s")
    plan = sweep.folder / "sweep.json"
    told = json.loads(plan.read_text().replace('"strategy": "paper"', '"strategy": "none"'))
    plan.write_text(json.dumps({name: value for name, value in told.items() if name != "sum"}))
    found = open_sweep("s", tmp_path)
    assert (len(jobs(found)), found.plan.swept, found.plan.unread) == (4, ("w_importance", "w_load"), {})


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_knobs_that_a_strategy_does_not_read_change_nothing(strategy: str, tmp_path: Path) -> None:
    """What the folding rests on: all of them turned, and the losses are the same to the last bit."""
    from moe_core.training.session import train

    config, still = replace(CONFIG, steps=12, checkpoint_every=0.0), Knobs(strategy=strategy)
    names = [f.name for f in fields(Knobs) if not reads(config, strategy, f.name)]
    turned = replace(still, **{name: other(name) for name in names})
    losses = []
    for name, knobs in (("still", still), ("turned", turned)):
        check(config, knobs)
        folder, state = train(config, knobs, tmp_path, name)
        run = open_run(folder)
        assert (state, run.started_knobs) == ("finished", knobs)
        losses.append((run.history("loss")[1].tolist(), run.evals()[-1].metrics))
        run.close()
    assert len(names) >= 5
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("task", "groups", "shared"),
    [
        ("plane", 0, {}),
        ("plane", 0, {"noise": 0.0}),
        ("plane", 0, {"k": 4, "w_z": 0.1}),
        ("plane", 0, {"capacity_factor": 1.0, "off": "1"}),
        ("plane", 2, {"k": 1, "w_importance_primary": 0.0, "w_load_primary": 0.0}),
        ("text", 0, {}),
    ],
)
def test_none_and_paper_without_its_losses_train_the_same_weights(
    task: str, groups: int, shared: dict[str, Any], tmp_path: Path
) -> None:
    """What the sharing of runs rests on: noise and all, to the last bit."""
    import torch

    from moe_core.training import checkpoint
    from moe_core.training.session import train

    config = replace(CONFIG if task == "plane" else TEXT, groups=groups, steps=12, checkpoint_every=0.0)
    ends, records = [], []
    for strategy in ("none", "paper"):
        knobs = Knobs(strategy=strategy, **shared)
        knobs = replace(knobs, w_importance=0.0, w_load=0.0) if strategy == "paper" else knobs
        folder, state = train(config, knobs, tmp_path, strategy)
        run = open_run(folder)
        ends.append(checkpoint.read(folder / checkpoint.name_of(12))["model"])
        records.append(
            (state, run.history("loss")[1].tolist(), run.history("load")[1].tolist(), run.evals()[-1].metrics)
        )
        run.close()
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert records[0] == records[1]


def test_cells_that_two_strategies_train_the_same_share_their_runs() -> None:
    lists = {
        "strategy": ["none", "paper", "switch"],
        "w_importance": [0.0, 0.1],
        "w_load": [0.0, 0.1],
        "w_switch": [0.0],
    }
    plan = make_plan(CONFIG, Knobs(), lists, seeds=2)
    assert [cell["strategy"] for cell in plan.cells] == ["none", *["paper"] * 4, "switch"]
    assert plan.trained == (0, 0, 2, 3, 4, 5)  # switch starts from other weights
    found = jobs(Sweep("s", Path(), plan))
    assert [job.run_id for job in found if job.config.seed == 0] == [f"s-c0{i}-s0" for i in (1, 3, 4, 5, 6)]
    assert len(found) == 10
    # Whichever comes first, and only where nothing that acts differs.
    assert make_plan(CONFIG, Knobs(w_importance=0.0, w_load=0.0), {"strategy": ["paper", "none"]}).trained == (0, 0)
    steered = Knobs(w_importance=0.0, w_load=0.0, autobalance=0.1)
    assert make_plan(CONFIG, steered, {"strategy": ["paper", "none"]}).trained == (0, 1)
    grouped = replace(CONFIG, groups=2)
    weights: dict[str, Any] = {"w_importance": 0.0, "w_load": 0.0, "k": 1}
    assert make_plan(grouped, Knobs(**weights), {"strategy": ["none", "paper"]}).trained == (0, 1)
    weights |= {"w_importance_primary": 0.0, "w_load_primary": 0.0}
    assert make_plan(grouped, Knobs(**weights), {"strategy": ["none", "paper"]}).trained == (0, 0)
    noisy = make_plan(CONFIG, Knobs(w_importance=0.0, w_load=0.0), {"strategy": ["none", "paper"], "noise": [0.5, 1.0]})
    assert noisy.trained == (0, 1, 0, 1)
    # A plan of an earlier version, in which a strategy may have the same cell twice.
    idle = Knobs(w_importance=0.0, w_load=0.0)
    twice: tuple[dict[str, Any], ...] = (
        {"strategy": "paper"},
        {"strategy": "none"},
        {"strategy": "paper", "w_switch": 0.5},
    )
    assert Plan(CONFIG, idle, twice, (0,)).trained == (0, 0, 0)


def other(name: str) -> float | str:
    """A value that is not the default."""
    others: dict[str, float | str] = {
        "k_primary": 1,
        "noise": 0.25,
        "noise_primary": 0.25,
        "weigh": "all",
        "balance_over": "global",
    }
    return others.get(name, 0.5 * meta_of(Knobs, name).high)


def test_pairs_cross_with_lists_and_jobs_take_all_cells_of_a_seed_first() -> None:
    plan = make_plan(replace(CONFIG, seed=5), Knobs(), {"k": [1, 2]}, pairs_of(["0/0 0.1/0.1"]), seeds=2)
    assert plan.swept == ("w_importance", "w_load", "k")
    assert plan.seeds == (5, 6)
    found = jobs(Sweep("s", Path(), plan))
    assert [job.run_id for job in found[:5]] == ["s-c01-s5", "s-c02-s5", "s-c03-s5", "s-c04-s5", "s-c01-s6"]
    assert [(job.knobs.w_load, job.knobs.k, job.config.seed) for job in found[1:4]] == [
        (0, 2, 5),
        (0.1, 1, 5),
        (0.1, 2, 5),
    ]


@pytest.mark.parametrize("name", ["s1", None])
def test_a_sweep_of_an_earlier_version_goes_on_with_what_it_began_with(tmp_path: Path, name: str | None) -> None:
    plan = make_plan(CONFIG, Knobs(), WEIGHTS)
    make_sweep(plan, tmp_path, name or "sweep-plane-01234567")
    (file,) = tmp_path.glob("*/sweep.json")
    record = json.loads(file.read_text())
    for lacking in ("scores_every", "task_gradient_every"):
        del record["config"][lacking]
    file.write_text(json.dumps({key: value for key, value in record.items() if key != "sum"}))
    again = make_sweep(plan, tmp_path, name)
    assert (again.folder, again.plan.config.scores_every) == (file.parent, 1)
    assert again.plan == replace(plan, config=replace(CONFIG, scores_every=1, task_gradient_every=25))
    for changed in (replace(CONFIG, scores_every=7), replace(CONFIG, eval_every=7)):
        other = make_plan(changed, Knobs(), WEIGHTS)
        if name:
            with pytest.raises(StoreError, match="has other settings"):
                make_sweep(other, tmp_path, name)
        else:
            assert make_sweep(other, tmp_path).id != again.id


def test_the_same_plan_is_the_same_sweep_and_a_taken_name_is_refused(tmp_path: Path) -> None:
    plan = make_plan(CONFIG, Knobs(), WEIGHTS, seeds=2)
    sweep = make_sweep(plan, tmp_path)
    before = (sweep.folder / "sweep.json").read_bytes()
    assert make_sweep(plan, tmp_path) == sweep == open_sweep(sweep.id, tmp_path) == open_sweep("sweep-p", tmp_path)
    assert (sweep.folder / "sweep.json").read_bytes() == before
    other = make_plan(CONFIG, Knobs(noise=2.0), WEIGHTS, seeds=2)
    assert make_sweep(other, tmp_path).id != sweep.id
    with pytest.raises(StoreError, match="has other settings"):
        make_sweep(other, tmp_path, sweep.id)
    for bad in ("..", "a/b", "", "x" * 65, "-a"):
        with pytest.raises(StoreError, match="a sweep's name is"):
            make_sweep(plan, tmp_path / "new", bad or " ")
    assert not (tmp_path / "new").exists()
    create_run(tmp_path / "taken", CONFIG, Knobs()).finish("finished")
    with pytest.raises(StoreError, match="taken is a run"):
        make_sweep(plan, tmp_path, "taken")
    assert set(sweep_ids(tmp_path)) == {sweep.id, make_sweep(other, tmp_path).id}


def test_a_damaged_plan_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    for text in ("", "[]", '{"cells": []}', '{"config": {}, "knobs": {}, "cells": [{"nonsense": 1}], "seeds": [0]}'):
        (tmp_path / "s" / "sweep.json").write_text(text)
        with pytest.raises(StoreError, match="sweep s cannot be read") as said:
            open_sweep("s", tmp_path)
        assert "\n" not in str(said.value)
    (tmp_path / "s" / "sweep.json").write_text('{"config": {}, "seeds": [0]}')
    with pytest.raises(StoreError, match=r"^sweep s cannot be read: its sweep.json lacks knobs, cells$"):
        open_sweep("s", tmp_path)
    with pytest.raises(StoreError, match="is not a sweep"):
        open_sweep("x", tmp_path)


def test_the_flags_lists_are_a_grid_and_seeds_count_from_the_given_one() -> None:
    from moe_core.__main__ import parser
    from moe_core.commands.sweep import plan_of

    words = ["--w-importance", "0,0.1", "--w-load", "0,0.1", "--k", "1", "--seeds", "2", "--seed", "3", "--steps", "5"]
    plan = plan_of(parser().parse_args(["sweep", *SMALL, *words]))
    assert [(cell["w_importance"], cell["w_load"]) for cell in plan.cells] == [(0, 0), (0, 0.1), (0.1, 0), (0.1, 0.1)]
    assert (plan.seeds, plan.knobs.k, plan.config.steps, plan.config.threads) == ((3, 4), 1, 5, 1)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--w-load", "0,7", "--steps", "5"], "w_load must be between 0 and 1"),
        (["--w-load", "0,,1", "--steps", "5"], "w_load must be a number"),
        (["--w-load", "0,1"], "steps must be 1 or more"),
        (["--k", "2,5", "--steps", "5"], "k must be between 1 and num_experts=4"),
        (["--pairs", "0.1", "--steps", "5"], "a pair is written"),
        (["--pairs", "0/0", "--w-load", "0", "--steps", "5"], "pairs set both weights, and w_load is given too"),
        (["--strategy", "none", "--w-load", "0,0.1", "--steps", "5"], "no strategy of this sweep (none) reads w_load"),
        (["--seeds", "0", "--steps", "5"], "seeds must be a whole number from 1"),
        (["--seeds", "two", "--steps", "5"], "seeds must be a whole number"),
        (["--parallel", "0", "--steps", "5"], "parallel must be a whole number from 1"),
        (["--seeds", "9999", "--steps", "5"], "more than 1000 runs"),
        (["--steps", "5", "--csv", "nowhere/x.csv"], "has no folder"),
        (["--steps", "5", "--sweep-id", "../x"], "a sweep's name is"),
        (["--device", "cuda:77", "--steps", "5"], "is not on this machine"),
        (["--resume", "nobody"], "is not a sweep"),
    ],
)
def test_bad_input_is_one_line_status_2_and_nothing_written(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from moe_core.__main__ import main

    settings = [] if "--resume" in words else SMALL
    assert main(["sweep", "--runs", str(tmp_path / "runs"), *settings, *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("moe: ")
    assert err.count("\n") == 1
    assert says in err
    assert not (tmp_path / "runs").exists()


def test_resume_takes_no_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from moe_core.__main__ import main

    assert main(["sweep", "--runs", str(tmp_path), "--resume", "x", "--noise", "1"]) == 2
    assert "got --noise too" in capsys.readouterr().err


def test_a_setting_is_an_axis_and_seeds_may_be_named() -> None:
    plan = make_plan(CONFIG, Knobs(), {"num_experts": [2, 4], "seed": [7, 3, 7], "d_model": [16]})
    assert plan.cells == ({"num_experts": 2}, {"num_experts": 4})
    assert (plan.seeds, plan.config.d_model) == ((7, 3), 16)
    assert [(job.config.num_experts, job.config.seed) for job in jobs(Sweep("s", Path(), plan))] == [(2, 7), (4, 7), (2, 3), (4, 3)]  # fmt: skip
    assert make_plan(CONFIG, Knobs(), {"seed": [5]}, seeds=2).seeds == (5, 6)
    with pytest.raises(ValueError, match="seed names the seeds, and seeds=2 is given too"):
        make_plan(CONFIG, Knobs(), {"seed": [1, 2]}, seeds=2)
    with pytest.raises(ValueError, match="k must be between 1 and num_experts=1, got 2"):
        make_plan(CONFIG, Knobs(), {"num_experts": [4, 1]})
    with pytest.raises(ValueError, match="steps must be 1 or more in a sweep"):
        make_plan(CONFIG, Knobs(), {"steps": [0, 50]})


def test_what_a_task_does_not_read_and_what_a_sweep_cannot_vary_is_refused() -> None:
    with pytest.raises(ValueError, match="the plane task does not read context"):
        make_plan(CONFIG, Knobs(), {"context": [64, 128]})
    for name in ("task", "text", "data", "device", "sorcery"):
        with pytest.raises(ValueError, match=f"a sweep cannot vary '{name}'; there are: noise, k"):
            values_of(name, "1,2")


def test_a_knob_that_only_some_cells_read_is_swept_in_those() -> None:
    plan = make_plan(replace(CONFIG, num_experts=4), Knobs(k=1), {"groups": [0, 2], "k_primary": [1, 2]})
    assert plan.cells == ({"groups": 0}, {"groups": 2, "k_primary": 1}, {"groups": 2, "k_primary": 2})
    assert plan.unread == {}


def test_a_sweep_of_settings_is_read_back(tmp_path: Path) -> None:
    plan = make_plan(CONFIG, Knobs(), {"num_experts": [2, 4], "plane_noise": [0.0, 0.5], "w_load": [0.0, 0.1]})
    sweep = make_sweep(plan, tmp_path)
    assert open_sweep(sweep.id, tmp_path) == sweep
    assert make_sweep(plan, tmp_path) == sweep


def test_cells_of_other_sizes_share_no_runs() -> None:
    idle = Knobs(w_importance=0.0, w_load=0.0)
    plan = make_plan(CONFIG, idle, {"strategy": ["none", "paper"], "num_experts": [2, 4]})
    assert plan.trained == (0, 1, 0, 1)
