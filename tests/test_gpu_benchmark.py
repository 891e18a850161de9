"""benchmarks/gpu.py in its short form on a CPU: every part runs and finds what it is there to find."""

import json
import math
import multiprocessing
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from benchmarks.gpu import ended

ROOT = Path(__file__).parents[1]


def test_every_part_runs_and_says_what_it_measured(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--quick", "--limit", "600", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(out.read_text())
    assert {"processor", "cores", "load", "versions", "device"} <= results["machine"].keys()
    parts = {name: part["results"] for name, part in results["parts"].items()}
    assert list(parts) == ["tests", "text", "digits", "plane", "waits", "graph", "layer", "seeing", "ranks", "speed"]
    assert parts["tests"]["passed"] > 0
    assert parts["tests"]["failed"] == 0
    for task in ("text", "digits", "plane"):
        assert {name: verdict["same"] for name, verdict in parts[task].items()} == dict.fromkeys(
            ("trained twice", "resumed", "forked", "replayed"), True
        )
    (waits,) = parts["waits"].values()
    assert (waits["every wait an error"], waits["a step"]) == ("passes", {})
    assert list(waits["ten steps and a flush"].values()) == [1]
    assert "telemetry.py" in next(iter(waits["ten steps and a flush"]))
    assert parts["graph"]["loss after the first replay"]["same bits"]  # on a CPU the same function runs again
    assert all(ms > 0 for ms in parts["graph"]["ms a step"].values())
    assert list(parts["seeing"]) == ["float32", "float32, watched"]
    assert all(row["ms"] > 0 for row in parts["seeing"].values())
    (training,) = parts["ranks"]["training"].values()
    assert training["largest difference of a loss"] < 1e-5
    assert all(training[name] > 0 for name in ("ms of a process", "ms of a rank"))
    assert all(ms > 0 for ms in parts["ranks"]["ms forward and backward"].values())
    for rival in ("ours", "ours, weights float32", "sort + grouped_mm", "dense products"):
        assert parts["layer"][rival]["forward and backward"]["TFLOP/s"] > 0
        assert parts["layer"][rival]["forward"]["ms"] > 0
    assert parts["layer"]["dense products"]["of dense"] == {"forward": 1, "forward and backward": 1}
    assert [name.split(":")[0] for name in parts["speed"]] == ["text", "digits", "plane"]
    assert all(math.isfinite(row["held-out loss"]) and row["steps/s"] > 0 for row in parts["speed"].values())


def test_a_part_that_fails_is_said_and_hides_no_other(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--quick", "--limit", "0.01", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    parts = json.loads(out.read_text())["parts"]
    assert len(parts) == 10
    assert all(not part["ok"] and "not done in" in part["error"] for part in parts.values())


def tell(findings: tuple[str, str] | None, after: float, sender: Connection) -> None:
    """A part's process that ends some seconds after it told what it found."""
    if findings:
        sender.send(findings)
    sender.close()
    time.sleep(after)


@pytest.mark.parametrize(
    ("findings", "result"),
    [
        (('{"ms": 1}', ""), {"ok": True, "results": {"ms": 1}}),
        (("", "no room"), {"ok": False, "error": "no room"}),
        (None, {"ok": False, "error": f"its process ended without a word (exit status {-signal.SIGKILL})"}),
    ],
)
def test_a_part_that_does_not_end_is_killed(findings: tuple[str, str] | None, result: dict[str, object]) -> None:
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=tell, args=(findings, 60, sender))
    process.start()
    sender.close()
    assert ended(process, receiver, 0.5) == result
    assert process.exitcode == -signal.SIGKILL
