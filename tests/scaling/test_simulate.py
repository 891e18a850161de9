"""The command: what it prints, what it refuses, and that it needs no torch."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moe_core.__main__ import main
from moe_core.commands.simulate import size
from moe_core.scaling.predict import Network, Plan, predict
from moe_core.schema import Config, Knobs
from tests.scaling.test_predict import record

ROOT = Path(__file__).parents[2]
NETWORK = ["--bandwidth", "12.5", "--latency", "10"]
BY_HAND = ["simulate", "--step-ms", "30", *NETWORK]


def test_a_run_is_predicted_in_rows_and_in_json(tmp_path: Path, capsys: Any) -> None:
    one = record(tmp_path / "a")
    words = ["simulate", "a", "--runs", str(tmp_path), *NETWORK, "--devices", "1", "4", "64"]
    assert main([*words, "--json"]) == 0
    *rows, end = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    plans = [Plan(1, 1), Plan(4, 4), Plan(64, 4)]
    network = Network(12.5e9, 1e-5)
    assert rows == [{"event": "prediction", **predict(one, plan, network)._asdict()} for plan in plans]
    assert (rows[0]["seconds"], rows[0]["efficiency"]) == (pytest.approx(0.25), pytest.approx(1))
    assert (end["event"], end["step_seconds"]) == ("end", 0.25)
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "Measured: 250 ms a step (run a, median of its last 55 steps on one device (cpu))" in out
    assert "Network: 12.5 GB/s to and from each device, 10 us a message." in out
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[5:8]] == ["1", "4", "64"]
    assert len({len(line) for line in lines[5:8]}) == 1
    assert all(f"- {line}" in out for line in end["assumptions"][1:])


def test_one_expert_is_said_to_be_one(capsys: Any) -> None:
    _, said = told(capsys, "--num-experts", "1", "--k", "1", "--devices", "1", "--expert-parallel", "1")
    assert "The one expert stays; each device has it." in said


@pytest.mark.parametrize("more", ["--strong", "--grow-experts", "--decide own", "--cores 2"])
def test_each_way_to_deal_is_said_and_does_something(more: str, capsys: Any) -> None:
    (usual, said), (other, said_then) = (told(capsys, *words) for words in ([], more.split()))
    assert other["seconds"] != usual["seconds"]
    assert said_then != said


@pytest.mark.parametrize(
    "more",
    [
        "--k 1",
        "--tokens 2048",
        "--layers 3",
        "--num-experts 32",
        "--d-model 128",
        "--d-hidden 256",
        "--expert-parallel 4",
    ],
)
def test_each_size_does_something(more: str, capsys: Any) -> None:
    other, usual = told(capsys, *more.split())[0], told(capsys)[0]
    name = (
        "weight_bytes" if more == "--d-hidden 256" else "sent_bytes"
    )  # of one group: its experts' gradients go nowhere
    assert other[name] != usual[name]


def told(capsys: Any, *more: str) -> tuple[dict[str, Any], list[str]]:
    """The prediction for 8 devices, and what it assumes."""
    assert main([*BY_HAND, "--devices", "8", "--json", *more]) == 0
    row, end = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return row, end["assumptions"][1:]


def test_what_was_not_measured_is_given(capsys: Any) -> None:
    assert main([*BY_HAND, "--devices", "8"]) == 0
    assert capsys.readouterr().out.startswith("Given: 30 ms a step (of the text task on one device). Tokens: 1,024;")


@pytest.mark.parametrize("strategy", ["expert-choice", "strictly-balanced"])
def test_what_chooses_from_the_whole_batch_cannot_decide_for_its_own_tokens(
    strategy: str, tmp_path: Path, capsys: Any
) -> None:
    record(tmp_path / "a", knobs=Knobs(strategy=strategy))
    words = ["simulate", "a", "--runs", str(tmp_path), *NETWORK, "--devices", "4"]
    assert main(words) == 0
    assert not capsys.readouterr().err
    assert main([*words, "--decide", "own"]) == 2
    said = capsys.readouterr().err
    assert f"--decide own needs a strategy by which a token chooses by itself: {strategy}, as the run has it" in said
    assert said.count("\n") == 1


def test_what_is_only_nearly_true_of_a_run_is_assumed(tmp_path: Path, capsys: Any) -> None:
    record(tmp_path / "capped", knobs=Knobs(capacity_factor=1.5))
    record(tmp_path / "quantile", knobs=Knobs(strategy="quantile"))

    def assumed(run: str, *more: str) -> str:
        assert main(["simulate", run, "--runs", str(tmp_path), *NETWORK, "--devices", "4", *more]) == 0
        return str(capsys.readouterr().out).partition("Assumed:")[2]

    own, strong = ("--decide", "own"), ("--strong",)
    assert "together would lose fewer" in assumed("capped")
    assert "each device's part would lose more" in assumed("capped", *own, *strong)
    for exact in (assumed("capped", *own), assumed("capped", *strong), assumed("quantile")):
        assert "capacity" not in exact
        assert "quantile" not in exact
    assert "The quantile that sets the biases is of all tokens." in assumed("quantile", *own)


def test_without_devices_it_is_powers_of_two(capsys: Any) -> None:
    for more, last in (([], 4096), (["--strong", "--tokens", "4096"], 32)):
        assert main([*BY_HAND, "--json", *more]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()][:-1]
        assert [row["devices"] for row in rows] == [2**n for n in range(3, last.bit_length())]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["simulate", "a"], "required: --bandwidth, --latency"),
        (["simulate", *NETWORK], "name a RUN, or give --step-ms, above 0 and at most 1e9"),
        (["simulate", *NETWORK, "--step-ms", "0"], "name a RUN, or give --step-ms, above 0 and at most 1e9"),
        (["simulate", "a", *NETWORK, "--d-model", "8"], "--d-model says what the run says; leave it out, or RUN"),
        (["simulate", "none", *NETWORK], "none"),
        (
            [*BY_HAND, "--bandwidth", "0"],
            "--bandwidth must be between 1e-6 and 1e6 GB/s and --latency between 0 and 1e9 us, got 0 and 10",
        ),
        ([*BY_HAND, "--bandwidth", "5e-324"], "--bandwidth must be between 1e-6 and 1e6 GB/s"),
        ([*BY_HAND, "--latency", "1e308"], "--latency between 0 and 1e9 us, got 12.5 and 1e+308"),
        (["simulate", *NETWORK, "--step-ms", "1e308"], "above 0 and at most 1e9"),
        ([*BY_HAND, "--latency", "-1"], "got 12.5 and -1"),
        ([*BY_HAND, "--bandwidth", "fast"], "must be a number, got 'fast'"),
        ([*BY_HAND, "--k", "17"], "k"),
        ([*BY_HAND, "--tokens", "100"], "tokens must be a multiple of context=128"),
        ([*BY_HAND, "--expert-parallel", "3"], "--expert-parallel must divide the number of devices, got 3 for 8"),
        ([*BY_HAND, "--expert-parallel", "0"], "--expert-parallel must divide the number of devices, got 0 for 8"),
        ([*BY_HAND, "--devices", "0"], "--devices must be between 1 and 65,536, got 0"),
        ([*BY_HAND, "--strong", "--tokens", "512"], "cannot be dealt over 8 devices; give --devices"),
        ([*BY_HAND, "--strong", "--devices", "16"], "a batch of 8 sequences cannot be dealt over 16 devices"),
    ],
)
def test_what_cannot_be_predicted_is_said_in_one_line(
    words: list[str], message: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setenv("MOE_RUNS", str(tmp_path))
    record(tmp_path / "a")
    assert status(words) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert not said.out


def status(words: list[str]) -> Any:
    try:
        return main(words)
    except SystemExit as ended:  # of the parser
        return ended.code


def test_it_needs_no_torch() -> None:
    code = "import sys; from moe_core.__main__ import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *BY_HAND, "--devices", "8"], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_bytes_are_said_in_two_or_three_digits() -> None:
    given = (0, 830, 999.4, 999.6, 1234, 99_600, 34e6, 5.62e12, 2e18)
    assert [size(count) for count in given] == ["0 B", "830 B", "999 B", "1 kB", "1.2 kB", "100 kB", "34 MB", "5.6 TB", "2000 PB"]  # fmt: skip


def test_defaults_of_the_sizes_are_the_text_tasks() -> None:
    assert Config.for_task("text") == Config()
