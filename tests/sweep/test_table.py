"""The table: means and spreads of the records, ceilings, the paper, and what does not compare."""

import math
from pathlib import Path

import numpy as np
import pytest

from moe_core.figures.catalog import tiles_of
from moe_core.figures.read_sweep import SweepResults, axes, read_pareto
from moe_core.runs.source import At
from moe_core.schema import Config, Knobs, describe
from moe_core.sweep import (
    PAPER,
    Sweep,
    ceiling_lines,
    ceilings,
    jobs,
    make_plan,
    make_sweep,
    notes,
    pairs_of,
    paper_row,
    progress,
    results,
    rows,
    state_of,
)
from tests.sweep.made import CONFIG, TEXT, record


def test_ceilings_are_what_a_collapse_onto_k_experts_reaches() -> None:
    assert {name: round(value, 2) for name, value in ceilings(256, 4).items()} == {
        "cv_importance": 15.97,
        "cv_load": 7.94,
        "max_over_mean_load": 64,
        "cv_held_out": 7.94,
        "max_over_mean_held_out": 64,
    }
    assert [round(value, 2) for value in ceilings(16, 2).values()] == [3.87, 2.65, 8, 2.65, 8]
    load = np.array([1.0, 1, 0, 0])
    assert ceilings(4, 2)["cv_load"] == load.std() / load.mean()
    assert ceilings(4, 2)["max_over_mean_load"] == load.max() / load.mean()
    gate = np.array([1.0, 0, 0, 0])
    assert ceilings(4, 2)["cv_importance"] == pytest.approx(gate.std() / gate.mean())


def cv(x: np.ndarray) -> float:
    return float(x.std() / x.mean())


def two_levels(primary_TG: np.ndarray, inner_TGB: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Importance_H and Load_H, (G, B) each, of gates in float64 whose noise is gone. (appendix B, row by row)"""
    G, B = inner_TGB.shape[1:]
    importance, load = np.zeros((G, B)), np.zeros((G, B))
    for i in range(G):
        chose = primary_TG[:, i] > 0
        importance[i] = (primary_TG[:, i, None] * inner_TGB[:, i]).sum(0)
        inner_load = (inner_TGB[chose, i] > 0).sum(0).astype(np.float64)
        load[i] = chose.sum() * inner_load / max(chose.sum(), 1)
    return importance, load


def gates(rng: np.random.Generator, shape: tuple[int, ...], k: int, sharp: float) -> np.ndarray:
    """Softmax over the k largest of random logits, along the last axis; the larger `sharp`, the nearer to one winner."""
    logits = sharp * rng.normal(size=shape)
    logits[logits < np.sort(logits, -1)[..., -k, None]] = -np.inf
    return np.exp(logits - logits.max(-1, keepdims=True)) / np.exp(logits - logits.max(-1, keepdims=True)).sum(
        -1, keepdims=True
    )


@pytest.mark.parametrize(("G", "B", "P", "K"), [(4, 4, 2, 2), (2, 8, 1, 3), (8, 2, 3, 1), (4, 4, 4, 4), (3, 5, 2, 1)])
def test_two_levels_of_gates_reach_their_ceilings_and_go_no_further(G: int, B: int, P: int, K: int) -> None:
    highest = ceilings(G * B, P * K)
    T, first = 64, 1 - 1e-12
    primary, inner = np.zeros((T, G)), np.zeros((T, G, B))
    for gate, chosen in ((primary, P), (inner, K)):  # every token alike, and the first of the chosen has nearly all
        gate[..., :chosen] = (1 - first) / max(chosen - 1, 1)
        gate[..., 0] = first if chosen > 1 else 1.0
    importance, load = two_levels(primary, inner)
    assert importance.sum() == pytest.approx(T)
    assert cv(load) == pytest.approx(highest["cv_load"], abs=1e-12)
    assert load.max() / load.mean() == pytest.approx(highest["max_over_mean_load"])
    assert cv(importance) == pytest.approx(highest["cv_importance"], rel=1e-9)

    rng = np.random.default_rng(0)
    for sharp in (0.1, 1.0, 30.0):
        for tokens in (1, 3, 50):
            drawn = gates(rng, (tokens, G), P, sharp), gates(rng, (tokens, G, B), K, sharp)
            importance, load = two_levels(*drawn)
            slack = 1 + 1e-9
            assert cv(load) <= highest["cv_load"] * slack + 1e-7
            assert load.max() / load.mean() <= highest["max_over_mean_load"] * slack
            assert cv(importance) <= highest["cv_importance"] * slack


def test_the_hierarchical_gate_itself_reaches_them() -> None:
    import torch

    from moe_core.nn import HierarchicalGate

    gate = HierarchicalGate(d_model=3, num_experts=12, groups=4, k=2, k_primary=2).double()
    x_TD = torch.ones(32, 3, dtype=torch.float64)
    with (
        torch.no_grad()
    ):  # all tokens alike: groups 3 and 1, and in each its experts 2 and 1, the first of both nearly alone
        gate.primary.w_gate.copy_(torch.tensor([30.0, 0.0, 60.0, 0.0]).repeat(3, 1))
        gate.w_gate.copy_(torch.tensor([30.0, 60.0, 0.0]).repeat(4).repeat(3, 1))
        routing = gate(x_TD, noise=1e-3, noise_primary=1e-3, noisy=True)
    highest, load = ceilings(12, 4), routing.load_E.numpy()
    assert cv(load) == pytest.approx(highest["cv_load"])
    assert load.max() / load.mean() == pytest.approx(highest["max_over_mean_load"])
    assert cv(routing.importance_E.numpy()) == pytest.approx(highest["cv_importance"])
    assert ceilings(12, 2)["cv_load"] > 1.5 * highest["cv_load"]  # k alone would promise what groups cannot reach


def test_a_row_has_the_ceilings_of_its_own_k_and_the_table_says_that_they_differ(tmp_path: Path) -> None:
    config = Config.for_task("plane", num_experts=16, groups=4, tokens=64, steps=60)
    plan = make_plan(config, Knobs(), {"k": [1, 2], "k_primary": [1, 2], "noise": [0.5, 1.0]})
    table = rows(Sweep("s", tmp_path, plan), results(Sweep("s", tmp_path, plan)))
    assert [row["max_over_mean_load_ceiling"] for row in table if row["noise"] == 1.0] == [16, 8, 8, 4]
    assert [row["cv_load_ceiling"] for row in table if row["noise"] == 1.0] == [math.sqrt(n) for n in (15, 7, 7, 3)]
    assert {row["cv_importance_ceiling"] for row in table} == {math.sqrt(15)}
    assert [words for words, _ in ceiling_lines(plan, table)] == [
        f"ceiling, 16 experts in 4 groups, k_primary {primary}, k {k}" for k in (1, 2) for primary in (1, 2)
    ]
    assert "Ceilings differ with k_primary and k: a row's own are those of its k_primary and k." in notes(
        plan, table, "x"
    )
    alike = make_plan(config, Knobs(k_primary=1), {"noise": [0.5, 1.0]})
    table = rows(Sweep("s", tmp_path, alike), results(Sweep("s", tmp_path, alike)))
    assert [(words, of["max_over_mean_load"]) for words, of in ceiling_lines(alike, table)] == [
        ("ceiling, 16 experts in 4 groups, k_primary 1, k 2", 8)
    ]
    assert not any("differ" in note for note in notes(alike, table, "x"))


def test_a_held_out_number_that_looks_ahead_is_marked_wherever_it_stands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from moe_core.commands.sweep_table import as_text, write_csv

    sweep = make_sweep(make_plan(TEXT, Knobs(), {"strategy": ["paper", "expert-choice"]}), tmp_path, "s")
    for job in jobs(sweep):
        record(job, tmp_path, [1, 1, 1, 1], 2.5).finish("finished")
    table = rows(sweep, results(sweep))
    assert [row["comparable"] for row in table] == [True, False]
    text = as_text(sweep.plan, table).splitlines()
    assert (text[2].count("†"), text[3].count("†")) == (0, 2)  # both held-out metrics, and no balance figure
    assert (
        "† not comparable: looks ahead. Compare such a number only with others that were routed the same way." in text
    )
    write_csv(tmp_path / "t.csv", table)
    head, *told = (line.split(",") for line in (tmp_path / "t.csv").read_text().splitlines())
    assert [line[head.index("comparable")] for line in told] == ["true", "false"]

    plane = make_plan(CONFIG, Knobs(), {"strategy": ["paper", "expert-choice"]})
    table = rows(Sweep("p", tmp_path, plane), results(Sweep("p", tmp_path, plane)))
    assert all(row["comparable"] for row in table)  # points have no order
    assert "†" not in as_text(plane, table)


def test_a_table_for_a_terminal_stands_in_columns(recorded: Sweep) -> None:
    from moe_core.commands.sweep_table import as_text

    lines = as_text(recorded.plan, rows(recorded, results(recorded))).splitlines()
    at = lines[0].index("CV(load)")
    assert [line[at : at + 5] for line in (lines[2], lines[3], lines[5], lines[6])] == [
        "0.667",
        "0    ",
        "1.000",
        "7.937",
    ]
    assert lines[2].startswith("0             2 of 2")
    assert set(lines[1]) == set(lines[4]) == {"-"}


def test_a_row_is_mean_and_spread_over_the_seeds_that_count(recorded: Sweep) -> None:
    first, second = rows(recorded, results(recorded))
    assert (first["w_importance"], first["runs"], first["finished"]) == (0.0, 2, 2)
    assert first["accuracy"] == pytest.approx(0.6)
    assert first["accuracy_spread"] == pytest.approx(math.sqrt(0.02))
    assert first["cv_load"] == pytest.approx((1 + 1 / 3) / 2)
    assert first["max_over_mean_load"] == pytest.approx((2 + 4 / 3) / 2)
    assert first["cv_load_ceiling"] == 1.0
    assert first["paper_cv_load"] == 3.01  # weights 0 and 0 are in the paper, 0.3 and 0 are not
    assert "paper_perplexity_per_word" not in first  # points have none
    assert (second["finished"], second["accuracy"], second["accuracy_spread"]) == (1, 0.9, None)
    assert not any(name.startswith("paper_") for name in second)
    assert first["ids"] == ["s-c01-s0", "s-c01-s1"]
    assert progress(results(recorded)) == {"finished": 3, "failed": 0, "runs": 4, "step": 180, "steps": 240}
    assert state_of(recorded, results(recorded)) == "incomplete"


def test_the_paper_stands_beside_its_own_strategy_only(tmp_path: Path) -> None:
    its = Knobs(w_importance=0.2, w_load=0.0)
    assert paper_row(TEXT, its) == PAPER[0.2, 0.0]
    for config, knobs in (
        (TEXT, Knobs(w_importance=0.2, w_load=0.1)),
        (TEXT, Knobs(w_importance=0.2, w_load=0.0, strategy="none")),
        (TEXT, Knobs(w_importance=0.2, w_load=0.0, autobalance=0.1)),  # the weights do not stay so
        (Config(groups=4), its),
    ):
        assert paper_row(config, knobs) == {}
    plan = make_plan(TEXT, Knobs(), {}, pairs_of(["table6"]))
    table = rows(Sweep("s", tmp_path, plan), results(Sweep("s", tmp_path, plan)))
    assert [row["paper_perplexity_per_word"] for row in table] == [39.8, 35.6, 35.7, 35.6, 35.7, 35.7]


def test_the_paper_is_printed_as_it_prints_and_its_words_stand_in_no_column_of_bytes(tmp_path: Path) -> None:
    from moe_core.commands.sweep_table import as_text

    plan = make_plan(TEXT, Knobs(), {}, pairs_of(["table6"]))
    table = rows(Sweep("s", tmp_path, plan), results(Sweep("s", tmp_path, plan)))
    head, _, first, *_ = as_text(plan, table).splitlines()
    assert first.count("[") == 3
    for words, figure in (("CV(importance)", "[3.04]"), ("CV(load)", "[3.01]"), ("max / mean load", "[17.80]"), ("perplexity in the paper, per word", "39.8")):  # fmt: skip
        assert first[head.index(words) :].split("  ")[0].endswith(figure), words
    assert "[" not in first[head.index("perplexity, per byte") :][:20]
    of_points = make_plan(CONFIG, Knobs(), {}, pairs_of(["table6"]))
    table = rows(Sweep("p", tmp_path, of_points), results(Sweep("p", tmp_path, of_points)))
    assert "per word" not in as_text(of_points, table)


def test_the_live_page_shows_the_same_ceiling(tmp_path: Path) -> None:
    from tests.figures.record import record as record_run

    def said(run: object) -> tuple[str, ...]:
        return next(tile.lines for tile in tiles_of("live", run) if tile.name == "max_over_mean_load")

    assert said(record_run(tmp_path / "flat", "plane", E=8, L=1)) == ("ceiling 4 ×",)
    assert said(record_run(tmp_path / "groups", "plane", E=8, L=1, groups=4)) == ("ceiling 2 ×",)


def test_rows_that_train_the_same_show_the_same_runs(tmp_path: Path) -> None:
    from moe_core.commands.sweep_table import as_text

    lists = {"strategy": ["none", "paper"], "w_importance": [0.0, 0.1]}
    sweep = make_sweep(make_plan(CONFIG, Knobs(w_load=0.0), lists, seeds=2), tmp_path, "s")
    for i, job in enumerate(jobs(sweep)):
        record(job, tmp_path, [1, 1, 1, 1], 0.5 + i / 10).finish("finished")
    found = results(sweep)
    table = rows(sweep, found)
    assert [row["ids"] for row in table] == [["s-c01-s0", "s-c01-s1"]] * 2 + [["s-c03-s0", "s-c03-s1"]]
    assert [(row["runs"], row["finished"]) for row in table] == [(2, 2)] * 3
    assert [row["accuracy"] for row in table] == [pytest.approx(0.6), pytest.approx(0.6), pytest.approx(0.7)]
    assert [(row["strategy"], row["w_importance"]) for row in table] == [("none", None), ("paper", 0.0), ("paper", 0.1)]
    said = "paper trains as none where its losses weigh 0, so both rows show the same runs."
    assert said in as_text(sweep.plan, table)
    source = SweepResults(
        sweep.id, describe(sweep.plan.config, Knobs()), sweep.plan.swept, sweep.plan.cells, table, found
    )
    assert read_pareto(source, At(0, None, None, None))["names_N"] == ["none / – and paper / 0", "paper / 0.1"] * 2
    ids, (_, strategies), (_, weights) = axes(source)
    assert (strategies, weights) == (["none", "paper"], [0.0, 0.1, None])
    assert ids == [["", "s-c01-s0"], ["", "s-c03-s0"], ["s-c01-s0", ""]]
    other = make_plan(CONFIG, Knobs(), {"strategy": ["none", "paper"]})
    assert said not in as_text(other, rows(Sweep("o", tmp_path, other), results(Sweep("o", tmp_path, other))))


def test_a_row_goes_by_the_sizes_of_its_cell(tmp_path: Path) -> None:
    sweep = make_sweep(make_plan(CONFIG, Knobs(), {"num_experts": [4, 8]}), tmp_path, "s")
    small, large = rows(sweep, results(sweep))
    assert (small["max_over_mean_load_ceiling"], large["max_over_mean_load_ceiling"]) == (2, 4)
    lines = [words for words, _ in ceiling_lines(sweep.plan, [small, large])]
    assert lines[:2] == ["ceiling, 4 experts, k 2", "ceiling, 8 experts, k 2"]
    assert "Ceilings differ with num_experts" in " ".join(notes(sweep.plan, [small, large], "paper"))
