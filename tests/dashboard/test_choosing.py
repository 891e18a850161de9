"""The list of runs tells them apart, is searched, filtered and sorted, and has forks below their parents."""

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_core.dashboard.choosing import ORDERS, Wanted, choose, chooser_entry, listed
from moe_core.runs import Batch, Parent, Run, change_notes, create_run, open_run, overview
from moe_core.runs.branch import branch_off
from moe_core.schema import Config, Knobs, describe, layout
from tests.figures.record import record

SMALL = Config.for_task("plane", num_experts=4, layers=1)
ROWS = np.ones((60, sum(c.width for c in layout(1, 4))), np.float32)


def made(runs: Path, name: str, knobs: Knobs = Knobs(), steps: int = 10, turned: Any = None, **config: Any) -> Run:  # noqa: B008 - frozen
    writer = create_run(runs / name, Config.for_task("plane", **{"num_experts": 4, "layers": 1} | config), knobs)
    applied = [(open_run(writer.folder).turn(**turned), 2)] if turned else []
    writer.commit(
        Batch(
            1, ROWS[:steps], applied=applied, evals=[(steps, {"accuracy": 0.5 + steps / 100}, None)], state="training"
        )
    )
    writer.finish("stopped")
    return open_run(runs / name)


def rows(**words: str) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in listed(words)["rows"]}


def test_what_sets_a_run_apart_is_what_most_others_do_not_have(runs: Path) -> None:
    for name in ("a", "b", "c"):
        made(runs, name)
    made(runs, "d", Knobs(w_load=0.5, noise=0.25), seed=7)
    made(runs, "grid-c01-s2")
    made(runs, "lesson-3-1128-0900-abcd")
    (runs / "grid").mkdir()
    (runs / "grid" / "sweep.json").write_text("{}")
    told = {name: row["apart"] for name, row in rows().items()}
    assert told == {
        "a": "", "b": "", "c": "", "d": "seed 7, noise 0.25, w_load 0.5", "grid-c01-s2": "sweep grid",
        "lesson-3-1128-0900-abcd": "lesson 3",
    }  # fmt: skip
    record(runs / "only", "digits").close()
    assert rows()["only"]["apart"] == ""  # the only one of its task


def test_two_runs_that_differ_both_say_how_and_many_settings_are_cut(runs: Path) -> None:
    made(runs, "a", Knobs(w_load=0.0))
    made(runs, "b", Knobs(w_load=0.5))
    assert {row["apart"] for row in rows().values()} == {"w_load 0", "w_load 0.5"}
    for name in ("c", "d"):
        made(runs, name, Knobs(w_load=0.0))
    made(runs, "e", Knobs(noise=0.1, w_load=0.1, lr=0.1, w_importance=0.1), seed=2, d_model=8)
    assert re.fullmatch(r"d_model 8, seed 2, (\w+ 0.1, ){2}and 2 more|.* and 2 more", rows()["e"]["apart"])


def test_how_a_table_was_read_is_said_in_words_and_one_expert_is_one(runs: Path) -> None:
    for name, missing, drop in (
        ("a", "mean", ("Remarks", "Year")),
        ("b", "drop", ()),
        ("c", "refuse", ()),
        ("d", "refuse", ()),
    ):
        config = Config.for_task(
            "digits", num_experts=1, layers=1, data="wine.csv", label="kind", missing=missing, drop=drop
        )
        create_run(runs / name, config, Knobs(k=1)).finish("stopped")
    assert {name: row["apart"] for name, row in rows().items()} == {
        "a": "wine.csv, drop Remarks and Year, missing values as the mean",
        "b": "wine.csv, rows with missing values dropped",
        "c": "wine.csv, missing values refused",
        "d": "wine.csv, missing values refused",
    }
    assert rows()["a"]["what"] == "wine.csv · 1 expert"


def test_a_fork_stands_below_its_parent_and_says_from_where_and_what_it_changed(runs: Path) -> None:
    parent = made(runs, "parent", steps=10, turned={"noise": 0.5})
    os.close(branch_off(parent, 5, {"k": 1}, runs / "x-child"))
    os.close(branch_off(parent, 3, {}, runs / "control"))
    made(runs, "newer")
    change_notes(runs / "parent", name="even")
    parent.close()
    assert [(row["id"], row["depth"]) for row in listed({})["rows"]] == [
        ("newer", 0), ("parent", 0), ("control", 1), ("x-child", 1),
    ]  # fmt: skip
    assert rows()["parent"]["apart"] == "noise 1 → 0.5"
    assert rows()["x-child"]["apart"] == "fork of even: from 5: k 2 → 1"
    assert rows()["control"]["apart"] == "fork of even: from 3: nothing changed"
    assert [(row["id"], row["depth"]) for row in listed({"search": "child"})["rows"]] == [("x-child", 0)]


def test_runs_that_name_each_other_as_parents_are_all_listed(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        made(runs, name)
    entries = overview.overview(runs)
    looped = [e._replace(facts=e.facts._replace(parent=Parent({"a": "b", "b": "a"}[e.id], 1))) for e in entries]
    assert {entry.id for entry, _ in choose(looped, Wanted())} == {"a", "b"}


def test_forks_of_forks_without_end_are_all_listed_in_order(runs: Path) -> None:
    made(runs, "r0")
    (first,) = overview.overview(runs)
    chain = [
        first._replace(id=f"r{n}", facts=first.facts._replace(parent=Parent(f"r{n - 1}", 1))) for n in range(1, 3000)
    ]
    placed = choose([*reversed(chain), first], Wanted())
    assert [entry.id for entry, _ in placed] == [f"r{n}" for n in range(3000)]
    assert [depth for _, depth in placed][:10] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8]


def test_search_and_filters_find_what_a_person_would_look_for(runs: Path) -> None:
    made(runs, "a", steps=10)
    made(runs, "b", Knobs(noise=0.25), steps=20)
    record(runs / "c", state="finished").close()
    change_notes(runs / "a", name="Even من البداية", note="for the TALK", add=["paper"])
    (runs / "d").mkdir()
    (runs / "d" / "run.db").write_bytes(b"x")
    for search, ids in (
        ("even", "a"), ("البداية", "a"), ("talk PAPER", "a"), ("talk b", ""), ("noise 0.25", "b"), ("plane", "ab"),
        ("stopped", "ab"), ("damaged", "d"), ("", "abcd"), ("text · 4", "c"), ("x" * 10_000, ""),
    ):  # fmt: skip
        assert sorted(rows(search=search)) == list(ids), search
    assert sorted(rows(state="stopped")) == ["a", "b"]
    assert sorted(rows(state="alive")) == []
    assert sorted(rows(task="text")) == ["c"]
    assert sorted(rows(tag="paper")) == ["a"]
    assert sorted(rows(tag="paper", task="text")) == []
    told = listed({})
    assert (told["all"], told["training"], told["tag"]) == (4, 0, {"paper": "paper 1"})
    assert told["state"] == {"stopped": "Stopped 2", "finished": "Finished 1", "damaged": "Damaged 1"}
    assert told["task"] == {"plane": "plane 2", "text": "text 1"}
    assert rows()["d"]["problem"]
    json.dumps(told)


def test_the_orders(runs: Path) -> None:
    for name, steps in (("b", 10), ("a", 30), ("c", 20)):
        made(runs, name, steps=steps)
    create_run(runs / "none", SMALL, Knobs()).finish("stopped")
    order = {sort: "".join(id[0] for id in rows(sort=sort)) for sort in (*ORDERS, "unknown")}
    assert order["newest"] == order["unknown"] == "ncab"
    assert order["name"] == "abcn"
    assert order["steps"] == order["best held-out"] == "acbn"
    assert order["most even"][-1] == "n"


def test_a_row_has_the_numbers_of_the_run(runs: Path) -> None:
    run = record(runs / "a", state="training", steps=60)
    (row,) = rows().values()
    load = np.mean([run.history("cv_load", layer, first=11, last=60)[1].mean() for layer in range(2)])
    assert row["balance"] == f"{load:.2f}"
    assert (row["held"], row["steps"], row["word"], row["colour"]) == ("2.50\u00a0bits/byte", "60", "Training", "green")
    made(runs, "b", steps=10)
    assert rows()["b"]["held"] == "60.0\u00a0%"
    assert rows()["b"]["steps"] == "10"


def test_a_run_with_a_goal_says_how_long_it_takes(runs: Path) -> None:
    writer = create_run(runs / "a", Config.for_task("plane", num_experts=4, steps=100), Knobs())
    try:
        writer.commit(Batch(1, ROWS[:25], state="training"))  # a second a step
        (row,) = rows().values()
        assert (row["steps"], row["done"], row["left"]) == ("25 of 100", 0.25, "75 s left")
    finally:
        writer.finish("stopped")
    (row,) = rows().values()
    assert (row["steps"], row["done"], row["left"]) == ("25 of 100", None, "")


def test_runs_that_nobody_trains_are_read_once(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So 200 of them are listed in a blink (docs/decisions.md)."""
    for name in ("a", "b"):
        made(runs, name)
    read: list[str] = []
    reading = overview._read
    monkeypatch.setattr(overview, "_read", lambda path: (read.append(path.name), reading(path))[1])
    for _ in range(3):
        assert len(rows()) == 2
    assert sorted(read) == ["a", "b"]
    change_notes(runs / "a", name="new")
    assert rows()["a"]["name"] == "new"
    assert len(read) == 2
    with (runs / "b" / "run.db").open("ab") as file:
        file.write(b"\0")
    rows()
    assert read[2:] == ["b"]


def test_a_run_on_ranks_says_so_where_its_size_is_said(runs: Path) -> None:
    create_run(runs / "four", SMALL, Knobs(), facts={"ranks": {"data": 2, "expert": 2}}, ranks=4).finish("stopped")
    made(runs, "one")
    found = rows()
    assert (found["four"]["what"], found["one"]["what"]) == ("plane · 4 experts, 4 ranks", "plane · 4 experts")


def test_the_chooser_shows_the_time_of_today_and_the_day_of_earlier_runs() -> None:
    now = time.time()
    today = chooser_entry("a", describe(Config(num_experts=4, layers=2), Knobs()), now)
    assert (today["name"], today["what"]) == ("a", "text · 4 experts, 2 layers")
    assert chooser_entry("a", None, now, "even")["name"] == "even"
    for config, words in (
        (Config(task="digits", data="my/iris.csv"), "iris.csv · "),
        (Config(text=("a/notes", "b/code")), "notes, code · 16 experts"),
        (Config(text=("my/a/x.md", "my/b/x.md")), "a/x.md, b/x.md · 16 experts"),
    ):
        assert chooser_entry("a", describe(config, Knobs()), now)["what"].startswith(words)
    assert re.fullmatch(r"\d\d:\d\d", today["face"])
    assert today["when"].endswith(f" {today['face']}")
    old = chooser_entry("a", describe(SMALL, Knobs()), now - 40 * 86400)
    assert re.fullmatch(r"\d{1,2} \w{3}", old["face"])
