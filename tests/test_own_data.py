"""People's own data from the command line to every file: trained, said, exported, reported, replayed, animated, swept."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from moe_core.commands.export import declare as declare_export
from moe_core.commands.sweep import declare as declare_sweep
from moe_core.export import PICTURES, Look, export
from moe_core.export.animation import animate
from moe_core.export.report import write_report
from moe_core.figures.catalog import FIGURES, shows
from moe_core.runs import Run, open_run
from tests.in_process import moe
from tests.own_data import KINDS, SMALL, task_of, write

OF_KIND = {
    "rows": ("probe_rows", "favourite_rows"),
    "images": ("digit_images", "favourite_images"),
    "bytes": ("probe_text", "favourite_bytes"),
}


@pytest.fixture(scope="module", params=KINDS)
def own(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Run, list[str]]:
    """A run of a few steps on data of this kind, and what was said before it trained."""
    folder = tmp_path_factory.mktemp(request.param)
    words = [
        "train",
        *task_of(request.param, write(request.param, folder)),
        *SMALL,
        "--steps",
        "12",
        "--eval-every",
        "6",
    ]
    done = moe(*words, "--runs", str(folder / "runs"), "--run-id", "own", "--json")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events[:2]] == ["data", "start"]
    return request.param, open_run("own", folder / "runs"), events[0]["taken"]


def test_what_was_taken_for_what_is_said_first_and_kept_in_the_record(own: tuple[str, Run, list[str]]) -> None:
    kind, run, taken = own
    assert run.facts["taken"] == taken
    expected = {
        "table": ("150 rows in 3 classes: setosa 50, versicolor 50, virginica 50", "left out: column 'Id'"),
        "pixels": ("300 rows in 10 classes", "class: column 'label'", "shown as images of 28 x 28"),
        "images": ("60 rows in 3 classes", "shown as images of 28 x 28"),
        "texts": ("domain a/notes: ", "domain b/notes: "),
    }[kind]
    for words in expected:
        assert words in "\n".join(taken)
    assert run.description.probe == {"table": "rows", "texts": "bytes"}.get(kind, "images")


def test_every_figure_goes_to_every_format(own: tuple[str, Run, list[str]], tmp_path: Path) -> None:
    _, run, _ = own
    figures = [name for name in FIGURES if shows(run, name)]
    wanted = OF_KIND[run.description.probe]
    assert set(wanted) <= set(figures)
    files = export(run, tmp_path / "numbers", ("csv", "parquet", "svg"))
    assert len(files) == 3 * len(figures) + 4
    pictures = export(run, tmp_path / "pictures", PICTURES, wanted, Look(theme="dark", layer=run.config.layers - 1))
    assert len(pictures) == len(PICTURES) * len(wanted)
    assert all(path.stat().st_size > 500 for path in pictures)


def test_report_replay_and_animation_show_what_the_run_learnt(own: tuple[str, Run, list[str]], tmp_path: Path) -> None:
    kind, run, taken = own
    report = write_report(run, tmp_path / "report.html").read_text()
    assert taken[0].replace("'", "&#x27;") in report
    played = moe("export", str(run.path), "--format", "replay", "--out", str(tmp_path / "replay.html"))
    assert played.returncode == 0, played.stderr
    data = (tmp_path / "replay.html").read_text()
    assert f'"kind": "{run.description.probe}"' in data or f'"kind":"{run.description.probe}"' in data
    if kind == "table":
        assert "of class setosa, " in data
    for name in OF_KIND[run.description.probe][:1]:
        path = animate(run, name, tmp_path / f"{name}.gif", Look(size=(320, 200), scale=1.0))
        assert path.stat().st_size > 1000


def test_it_trains_again_to_the_same_numbers_and_as_a_sweep(own: tuple[str, Run, list[str]], tmp_path: Path) -> None:
    kind, run, taken = own
    again = moe("replay", str(run.path))
    assert again.returncode == 0, again.stdout + again.stderr
    given = task_of(kind, list(run.config.text) or [run.config.data])
    noise = "0.5,1" if kind == "table" else "1"  # a trainer beside another is the same with any data
    words = ["sweep", *given, *SMALL, "--steps", "4", "--noise", noise, "--runs", str(tmp_path), "--parallel", "2"]
    swept = moe(*words, "--sweep-id", "s")
    assert swept.returncode == 0, swept.stderr
    assert taken[0] in swept.stderr
    assert (
        moe("export", "s", "--runs", str(tmp_path), "--out", str(tmp_path / "out"), "--format", "csv").returncode == 0
    )


def test_tables_name_their_rows(own: tuple[str, Run, list[str]], tmp_path: Path) -> None:
    kind, run, _ = own
    export(run, tmp_path, ("csv",), ("specialisation", "coactivation", "similarity", "balance_now"))

    def column(name: str) -> list[str]:
        with open(tmp_path / f"{name}.csv", newline="") as file:
            return [row[0] for row in csv.reader(file)]

    label = "domain" if kind == "texts" else "class"
    assert column("specialisation") == [label, *run.labels[label]]
    experts = [str(e + 1) for e in range(run.config.num_experts)]
    for name in ("coactivation", "similarity", "balance_now"):
        assert column(name) == ["expert", *experts]


def test_a_flag_that_is_given_twice_adds_up() -> None:
    import argparse

    from moe_core.commands.train import declare as declare_train

    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    for declare in (declare_train, declare_sweep, declare_export):
        declare(commands)
    trained = parser.parse_args(["train", "--text", "a", "b", "--text", "c", "--drop", "x", "--drop=", "--drop=-1"])
    assert (trained.text, trained.drop) == (["a", "b", "c"], ["x", "", "-1"])
    words = "export RUN --out o --figure a --figure b c --with d --with e --choose f=1 --choose g=2"
    parsed = parser.parse_args(words.split())
    assert (parsed.figure, parsed.others, parsed.choose) == (["a", "b", "c"], ["d", "e"], ["f=1", "g=2"])
    assert parser.parse_args(["export", "RUN", "--out", "o"]).others == []  # nothing is left of the last call
    assert parser.parse_args(["sweep", "--pairs", "0/0", "--pairs", "1/1"]).pairs == ["0/0", "1/1"]


def test_a_run_of_an_earlier_version_shows_its_table_without_names(tmp_path: Path) -> None:
    """It held its features, and neither their names nor what was taken for what."""
    from moe_core.figures.reading import rows_of_probe
    from moe_core.runs import create_run
    from moe_core.schema import Config, Knobs

    probe = {"features": np.ones((5, 3), np.float32), "class": np.zeros(5, np.uint8)}
    create_run(tmp_path / "old", Config.for_task("digits"), Knobs(), labels={"class": ["a", "b"]}, probe=probe).finish("stopped")  # fmt: skip
    run = open_run("old", tmp_path)
    assert run.description.probe == "rows"
    assert rows_of_probe(run, run.probe())["names_F"] == ["1", "2", "3"]
    assert shows(run, "probe_rows")
    assert not shows(run, "digit_images")
