"""Each benchmark in its short form, as a process: what is never run rots. No figure is looked at, only that each is there.

benchmarks/dashboard.py and `make screens` need a browser: tests/browser/test_short_forms.py. benchmarks/gpu.py has a test of
its own.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from benchmarks import remedies
from moe_core.__main__ import main
from moe_core.benchmarks import peers
from moe_core.benchmarks.ranks import newest_checkpoint
from moe_core.benchmarks.results import check_place
from moe_core.runs import Batch, create_run, open_run
from moe_core.schema import Config, Knobs
from moe_core.training import checkpoint

ROOT = Path(__file__).parents[1]
ELSEWHERE = {"dashboard", "faults", "gpu"}
COMMANDS = {
    "batch": ["-m", "moe_core", "bench", "batch", "--quick", "--json"],
    "estimate": ["benchmarks/estimate.py", "--quick"],
    "frames": ["benchmarks/frames.py", "--quick"],
    "kills": ["benchmarks/kills.py", "--quick", "--patience", "10"],
    "layer": ["-m", "moe_core", "bench", "layer", "--quick", "--json"],
    "long_run": ["benchmarks/long_run.py", "--quick"],
    "ranks": ["-m", "moe_core", "bench", "ranks", "--quick", "--json"],
    "seeing": ["-m", "moe_core", "bench", "seeing", "--quick", "--json"],
    "remedies": ["benchmarks/remedies.py", "--quick", "--json"],
    "simulated": ["benchmarks/simulated.py", "--quick"],
    "start": ["-m", "moe_core", "bench", "start", "--quick", "--json"],
    "viewers": ["benchmarks/viewers.py", "--quick"],
    "watching": ["benchmarks/watching.py", "--quick"],
}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, env=environment)


def short(name: str, *more: str) -> list[Any]:
    """What a benchmark's short form prints, one JSON value a line."""
    done = run(*COMMANDS[name], *more)
    # remedies ends with 1 where a remedy did not help, as in its short form it need not.
    assert done.returncode == 0 or (name == "remedies" and done.returncode == 1), done.stderr
    assert "Traceback" not in done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_benchmark_has_its_short_form_here() -> None:
    own = {path.stem for folder in ("benchmarks", "moe_core/benchmarks") for path in (ROOT / folder).glob("*.py")}
    assert own - ELSEWHERE - {"__init__", "one_rank", "peers", "results", "waits"} == COMMANDS.keys()


def test_batch_measures_each_size(tmp_path) -> None:
    start, *sizes, end = short("batch", "--out", str(tmp_path / "batch.json"))
    assert [row["tokens"] for row in sizes] == start["sizes"] == [64, 128]
    assert all(row["tokens_per_second"] > 0 and row["rounds"] >= 3 for row in sizes)
    assert (start["event"], end["event"]) == ("start", "end")
    kept = json.loads((tmp_path / "batch.json").read_text())
    assert [row | {"event": "size"} for row in kept["rows"]] == sizes
    assert (kept["d_model"], kept["threads"], kept["device"]) == (start["d_model"], 1, "cpu")


def test_ranks_count_rows_on_each_number_of_devices_and_time_them(tmp_path) -> None:
    sizes = ["--num-experts", "6", "--k", "1", "--tokens", "99", "--d-model", "8", "--d-hidden", "8"]
    start, model, *found, end = short("ranks", *sizes, "--out", str(tmp_path / "ranks.json"))
    assert (start["event"], start["devices"], end["event"]) == ("start", [1, 2], "end")  # 6 cannot be dealt over 4
    assert (model["k"], model["experts"], model["tokens"], model["step"]) == ([1], [6], 99, 0)
    assert "2 ranks on" in model["machine"]
    rows = [one for one in found if one["event"] == "rows"]
    assert [(one["devices"], one["own"][0][1], one["all"][0][1]) for one in rows] == [
        (1, 16.5, 16.5),
        (2, 16.5, 33),
    ]
    assert all(least <= mean <= most for one in rows for least, mean, most in (*one["own"], *one["all"]))
    speeds = [one for one in found if one["event"] == "speed"]
    assert [one["devices"] for one in speeds] == [1, 2]
    assert all(one["rows_per_second"][0] > 0 and one["rounds"] >= 3 for one in speeds)
    kept = json.loads((tmp_path / "ranks.json").read_text())
    assert (kept["rows"], kept["ranks"], kept["tokens"]) == (found, 2, 99)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num-experts", "3"], "their number must be even, got 3"),
        (["--num-experts", "4", "--k", "5"], "k must be"),
        (["--run", "none-such"], "none-such"),
        (["--run", "none-such", "--k", "2"], "--k says what the run says; leave it out, or --run"),
        (["--run", "none-such", "--num-experts", "3"], "--num-experts says what the run says"),
        (["--num-experts", "4", "--tokens", "0"], "tokens must be between 1 and 65536, got 0"),
        (["--threads", "2"], "bench ranks does not take --threads; leave it out"),
    ],
)
def test_what_ranks_cannot_share_is_refused_before_they_start(
    words: list[str], message: str, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("moe_core.benchmarks.ranks.launch", lambda *_: pytest.fail("it starts ranks"))
    assert main(["bench", "ranks", *words]) == 2
    told = capsys.readouterr()
    assert message in told.err
    assert (told.err.count("\n"), told.out) == (1, "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        *(
            (f"{what} --seconds {given}", f"--seconds: must be a number of seconds from 0 to 3,600, got '{given}'")
            for what in ("layer", "batch", "ranks")
            for given in ("-5", "nan", "inf", "1e300", "x")
        ),
        *(
            (f"{what} --{flag} {given}", f"{flag.replace('-', '_')} must be between 1 and ")
            for what in ("batch", "ranks")
            for flag in ("d-model", "d-hidden", "num-experts", "k")
            for given in ("0", "-4", "9999999")
        ),
        ("batch --k nan", "--k: must be a whole number, got 'nan'"),
        ("batch --threads -3", "threads must be between 0 and 1024, got -3"),
        ("batch --device foo", "device must be auto, cpu, cuda, cuda:1 or mps, got 'foo'"),
        ("batch --device cuda:999", "device 'cuda:999' is not on this machine"),
        ("ranks --layers 3", "unrecognized arguments: --layers 3"),
        ("ranks --ranks 3", "unrecognized arguments: --ranks 3"),
        ("batch --tokens 64", "bench batch does not take --tokens; leave it out"),
        ("layer --num-experts 4", "bench layer does not take --num-experts; leave it out"),
        ("seeing --seconds 3", "bench seeing does not take --seconds; leave it out"),
        ("start --run x", "bench start does not take --run; leave it out"),
        ("batch --peer x", "bench batch does not take --peer; leave it out"),
    ],
)
def test_a_number_that_cannot_be_measured_is_refused_in_a_line(words: str, message: str, monkeypatch, capsys) -> None:
    for name in ("batch", "layer", "ranks", "seeing", "start"):
        monkeypatch.setattr(f"moe_core.benchmarks.{name}.main", lambda *_: pytest.fail("it begins"))
    try:
        status = main(["bench", *words.split()])
    except SystemExit as error:
        status = error.code
    told = capsys.readouterr()
    assert status == 2
    assert message in told.err
    assert (told.err.count("\n"), told.out) == (1, "")


def test_no_time_for_each_size_is_the_fewest_rounds(monkeypatch, capsys) -> None:
    took = list[float]()
    measure = lambda *given: (took.append(given[-1]), (0.1, 3))[1]
    monkeypatch.setattr("moe_core.benchmarks.batch.measure", measure)
    for more in (["--seconds", "0"], [], ["--seconds", "7"]):
        assert main(["bench", "batch", "--d-model", "4", *more]) == 0
    assert set(took) == {0.0, 1.0, 7.0}


def test_why_a_rank_failed_is_one_line(tmp_path, monkeypatch, capsys) -> None:
    """As torchrun tells it: with what the rank wrote, and its traceback."""
    wrote = {
        "message": "StoreError: the data are gone\nsince then",
        "extraInfo": {"py_callstack": "Traceback …", "timestamp": "1"},
    }
    (tmp_path / "error.json").write_text(json.dumps({"message": wrote}))

    def fail(arguments: Any) -> None:
        raise ChildFailedError("ranks", {2: ProcessFailure(2, 1, 1, str(tmp_path / "error.json"))})

    for name in ("OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME", "PYTHONPATH"):
        monkeypatch.setenv(name, "as it was")
    monkeypatch.setattr("torch.distributed.run.run", fail)
    assert main(["bench", "ranks"]) == 2
    assert capsys.readouterr().err == "moe: rank 2 failed: StoreError: the data are gone; measure again\n"


def test_a_run_that_writes_no_checkpoint_is_measured_by_its_last_and_said_to_be_late(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("moe_core.benchmarks.ranks.ANSWER", 0.3)
    writer = create_run(tmp_path / "a", Config.for_task("plane", num_experts=4, layers=1), Knobs())
    writer.commit(Batch(1, np.ones((3, writer.layout.width), np.float32), state="training"))
    old = checkpoint.write(tmp_path / "a", 2, {"step": 2})
    run = open_run(tmp_path / "a")
    assert newest_checkpoint(run) == (str(old), True)
    (asked,) = run.commands()
    monkeypatch.setattr(run, "command", lambda *_, **__: asked.id)
    monkeypatch.setattr(run, "commands", lambda: [asked._replace(step=3)])
    assert newest_checkpoint(run) == (str(old), False)
    writer.finish("stopped")
    assert newest_checkpoint(run) == (str(old), False)  # nobody is asked
    run.close()


def test_ranks_that_are_cancelled_are_said_in_one_line(monkeypatch, capsys) -> None:
    def stop(arguments: Any) -> None:
        raise SignalException("from outside", signal.SIGTERM)

    for name in ("OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME", "PYTHONPATH"):
        monkeypatch.setenv(name, "as it was")
    monkeypatch.setattr("torch.distributed.run.run", stop)
    assert main(["bench", "ranks"]) == 2
    assert capsys.readouterr().err == "moe: stopped before it was done\n"


def test_too_few_files_for_the_ranks_are_said_before_they_start(monkeypatch, capsys) -> None:
    """A store that can open no further file leaves a rank waiting for it."""
    monkeypatch.setattr("torch.distributed.run.run", lambda arguments: pytest.fail("it starts ranks"))
    monkeypatch.setattr("moe_core.benchmarks.ranks.resource.getrlimit", lambda what: (40, 40))
    monkeypatch.setattr("moe_core.benchmarks.ranks.os.listdir", lambda folder: ["0"] * 7)
    assert main(["bench", "ranks"]) == 2
    assert capsys.readouterr().err == (
        "moe: bench ranks wants to open 48 files more, and the limit of 40 open files leaves 33; raise it, as with ulimit -n 1024, and "
        "measure again\n"
    )


@pytest.mark.parametrize("late", [False, True])
def test_the_table_of_ranks_has_a_line_for_each_number_of_devices_and_layer(late: bool, monkeypatch, capsys) -> None:
    events = [
        {
            "event": "model",
            "step": 7,
            "tokens": 16,
            "k": [2, 2],
            "experts": [8, 8],
            "late": late,
            "machine": "2 ranks on 1 core",
        },
        {"event": "rows", "devices": 2, "own": [[1, 4, 9], [2, 4, 8]], "all": [[3, 8, 15], [5, 8, 12]], "batches": 2},
        {"event": "speed", "devices": 2, "rows_per_second": [1500.0, 1600.0], "rounds": 3},
    ]
    write = lambda given, *_: Path(given["rows"]).write_text("".join(json.dumps(event) + "\n" for event in events))
    monkeypatch.setattr("moe_core.benchmarks.ranks.launch", write)
    assert main(["bench", "ranks"]) == 0
    head, *told, one, two = capsys.readouterr().out.splitlines()
    assert "after step 7" in head
    assert told[:-2] == ["The run wrote no checkpoint within 10 s, so its weights after step 7 were measured."] * late
    assert one.split() == ["2", "1", "4", "8", "1", "4", "9", "3", "8", "15", "1,500"]
    assert two.split() == ["2", "2", "4", "8", "2", "4", "8", "5", "8", "12", "1,600"]


def test_frames_are_measured_with_and_without_the_figures_over_all_layers() -> None:
    (row,) = short("frames")
    assert row["2x16"]["layers_ms"] == 0 < row["6x16"]["layers_ms"]
    assert all(one["median_ms"] > 0 and one["kb"] > 0 for one in row.values())


def test_estimates_are_measured_beside_a_run() -> None:
    one, of_all = short("estimate")
    assert one["task"] == "plane"
    assert all(0.1 < one[name] < 10 for name in of_all)
    assert [*of_all] == ["step", "memory", "disk"]


def test_viewers_are_measured_at_a_real_server() -> None:
    (told,) = short("viewers")
    assert told["viewers"] == 2
    assert all(told[name] > 0 for name in ("frames_per_s", "checks_per_s", "kb_per_frame", "turn_to_frame_ms"))
    assert told["slowest_frames_per_s"] <= told["frames_per_s"]


def test_a_killed_rank_is_named_and_nothing_is_lost() -> None:
    one, of_all = short("kills")
    assert (one["named"], one["whole"]) == (True, True), one
    assert one["seconds"] < 10
    assert [of_all[name] for name in ("orphans", "lost_turns", "lost_steps")] == [0, 0, 0]
    assert of_all["one_process_ended_it"]


def test_a_prediction_is_measured_beside_two_ranks(tmp_path) -> None:
    (row,) = short("simulated", "--out", str(tmp_path / "simulated.json"))
    assert (row["ranks"], row["scaling"], row["as_rank"]) == (2, "strong", True)
    measured, predicted = row["measured"], row["predicted"]
    assert min(measured["ms"], predicted["ms"], row["alone_ms"], row["latency_us"], row["GB_per_second"]) > 0
    # These two do not depend on the clock: the bytes on which tokens happened to leave, the balance on which steps were drawn.
    assert predicted["sent_bytes"] == pytest.approx(measured["sent_bytes"], rel=0.02)
    assert predicted["balance"] == pytest.approx(measured["balance"], rel=0.05)
    kept = json.loads((tmp_path / "simulated.json").read_text())
    assert kept["rows"] == [row]
    assert kept["rounds"] == 1


PEER = """
import torch
def layer(d_model, d_hidden, num_experts, k):
    return torch.nn.Sequential(torch.nn.Linear(d_model, d_hidden), torch.nn.Linear(d_hidden, d_model))
"""
MOE = """
import torch
class MoE(torch.nn.Linear):
    def __init__(self, input_size, output_size, num_experts, hidden_size, k):
        super().__init__(input_size, output_size)
    def forward(self, x):
        return super().forward(x), self.weight.square().sum()
"""


def test_layer_measures_each_rival_and_peers_from_files(tmp_path) -> None:
    for name, source in (("layer", PEER), ("moe", MOE)):
        (tmp_path / f"{name}.py").write_text(source)
    files = [f"--peer={name}={tmp_path}/{name}.py" for name in ("layer", "moe")]
    (row,) = short("layer", *files, "--out", str(tmp_path / "layer.json"))
    assert (row["tokens"], row["num_experts"], row["k"]) == (1024, 16, 2)
    assert [*row["ms"]] == ["ours", "dense", "grouped_mm", "layer", "moe"]
    assert [*row["over_ours"]] == ["dense", "grouped_mm", "layer", "moe"]
    assert all(value > 0 for value in (*row["ms"].values(), *row["over_ours"].values()))
    assert row["rounds"] >= 5
    kept = json.loads((tmp_path / "layer.json").read_text())
    assert [one | {"allocator": kept["allocator"]} for one in kept["rows"]] == [row]
    assert kept["peers"] == {"layer": "as in its file", "moe": "as in its file"}


@pytest.mark.parametrize("name", [*peers.NOTES])
def test_installed_peers_give_a_token_its_output_and_a_balancing_loss(name: str) -> None:
    pytest.importorskip("st_moe_pytorch" if name == "st-moe" else "transformers")
    module, forward = peers.peer(name, (16, 32, 4, 2))
    x_TD = torch.randn(40, 16, requires_grad=True)
    for _ in range(2):  # what a step leaves behind must not be counted in the next
        y_TD, loss = forward(x_TD)
        (y_TD.square().sum() + loss).backward()
    assert y_TD.shape == x_TD.shape
    assert loss.ndim == 0 < loss.item() < 100
    assert all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize(
    ("peer", "message"),
    [
        ("megablocks", "a peer is one of mixtral, mixtral-loop, st-moe, or NAME=FILE.py, got 'megablocks'"),
        ("a=no.py", "there is none at no.py"),
        ("a=moe_core/folders.py", "must define layer"),
        ("dense=no.py", "needs a name of its own"),
    ],
)
def test_a_peer_that_cannot_be_measured_is_refused_in_one_line(peer: str, message: str, monkeypatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["bench", "layer", "--quick", "--peer", peer]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("what", "heading", "rows"), [("layer", "grouped_mm/ours", 1), ("batch", "tokens/s", 2)])
def test_layer_and_batch_print_tables_too(what: str, heading: str, rows: int, capsys) -> None:
    assert main(["bench", what, "--quick"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert heading in lines[1]
    assert len(lines) == 2 + rows


def test_seeing_is_measured_with_and_without_somebody_who_looks(tmp_path) -> None:
    rows = short("seeing", "--out", str(tmp_path / "seeing.json"))
    assert [(row["task"], row["watched"]) for row in rows] == [("text", False), ("text", True)]
    assert all(row["ms"] > 0 and np.isfinite(row["wall %"]) and row["CPU % quartile 1"] <= row["CPU %"] for row in rows)
    kept = json.loads((tmp_path / "seeing.json").read_text())
    assert [*tmp_path.iterdir()] == [tmp_path / "seeing.json"]
    assert [row | {"machine": rows[0]["machine"]} for row in kept["rows"]] == rows
    assert kept["command"].startswith("python -m moe_core bench seeing --quick")
    assert kept["machine"].keys() == {"processor", "cores", "load", "system", "versions"}
    assert kept["machine"]["processor"]


def test_a_long_run_is_written_and_read_with_its_collapse(tmp_path) -> None:
    (run,) = short("long_run", "--out", str(tmp_path / "long.json"))
    assert run["bytes_per_step"] > 100
    assert run["million_GB"] == pytest.approx(run["bytes_per_step"] / 1000, rel=1e-3)
    assert {"first_frame_s", "whole_s", "zoom_0.5_s", "zoom_0.001_again_s", "past_step_s", "held_MB"} <= run.keys()
    assert run["highest_cv"] == pytest.approx(15**0.5, abs=1e-2)  # all on one of 16 experts, for three of 5,000 steps
    assert run["rows_drawn"] > 100
    (wide,) = short(
        "long_run", "--steps", "100", "--layers", "48", "--experts", "128", "--out", str(tmp_path / "long.json")
    )
    assert 40_000 < wide["bytes_per_step"] < 1.5 * wide["bytes_estimated"]
    kept = json.loads((tmp_path / "long.json").read_text())["rows"]
    assert [row["layers"] for row in kept] == [2, 48]


def test_a_start_is_measured_from_the_import_to_the_first_step() -> None:
    rows = {row["what"]: row for row in short("start")}
    assert [what for what, row in rows.items() if row["wanted_s"]] == [
        "import moe_core", "dashboard, first answer", "train, first step recorded"
    ]  # fmt: skip
    assert all(0 < row["least_s"] <= row["median_s"] <= row["most_s"] for row in rows.values())
    assert rows["import moe_core"]["cpu_s"] > 0
    assert rows["train, first step recorded"]["median_s"] > rows["import moe_core"]["median_s"]


def test_remedies_has_a_row_of_each_table() -> None:
    (rows,) = short("remedies")
    of = {state: [row for row in rows if row.get("state") == state] for state in remedies.QUICK}
    assert {row["rule"] for row in of["weights 0"]} == {"collapse", "not offered"}
    assert all(0 < row["end"] < 4 for row in of["weights 0"])
    nothing, *others = of["capacity factor 0.5"]
    assert (nothing["rule"], nothing["remedy"], nothing["better"]) == ("nothing", {}, None)
    assert others
    assert all(isinstance(row["better"], bool) and len(row["outcome"]) == 5 for row in others)
    assert all(row["rule"] for row in rows if "state" not in row)  # what is said of a healthy run, if anything


def test_watching_is_measured_beside_the_same_training_unwatched() -> None:
    (row,) = short("watching")
    assert row["step_ms"] > 0
    assert row["low"] <= row["cost_percent"] <= row["high"]
    assert row["fastest_percent"] > -100
    assert [*row["memory"]] == ["10", "20", "30", "40"]
    assert all(held["tensors"] > 100 and held["peak_mb"] > 100 for held in row["memory"].values())


def test_a_table_that_cannot_be_kept_is_refused_before_anything_is_measured(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("moe_core.benchmarks.layer.main", lambda arguments: pytest.fail("it measures"))
    for place, why in ((tmp_path / "none" / "a.json", "No such file or directory"), (tmp_path, "got the folder")):
        assert main(["bench", "layer", "--quick", "--out", str(place)]) == 2
        told = capsys.readouterr().err
        assert why in told
        assert told.count("\n") == 1
    check_place(tmp_path / "a.json")
    assert not [*tmp_path.iterdir()]
