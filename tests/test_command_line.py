"""The command line as a person or a script meets it: JSON lines, exit statuses, one line for what is wrong."""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from moe_core.commands.common import count_flag, seconds_flag
from moe_core.runs import open_run
from moe_core.schema import STATS
from tests import in_process

ROOT = Path(__file__).parents[1]
SMALL = ["--task", "plane", "--d-model", "8", "--d-hidden", "8", "--tokens", "64", "--threads", "1"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def moe(*words: str, runs: Path) -> subprocess.CompletedProcess[str]:
    return in_process.moe(words[0], "--runs", str(runs), *words[1:])


def test_train_prints_json_lines_and_leaves_every_statistic(tmp_path: Path) -> None:
    done = moe("train", *SMALL, "--steps", "60", "--json", "--run-id", "a", runs=tmp_path)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[0]["event"] == "start"
    assert events[0]["run"] == "a"
    assert {e["event"] for e in events} == {"start", "step", "eval", "end"}
    end = events[-1]
    assert end["state"] == "finished"
    assert end["step"] == 60
    assert set(end["eval"]) == {"accuracy", "loss"}
    run = open_run("a", tmp_path)
    for stat in (stat for stat in STATS if not stat.ranks):
        steps, values = run.history(stat.name)
        assert steps.tolist() == list(range(1, 61)), stat.name
        assert len(values) == 60
    assert end["cv_load"] == pytest.approx(run.history("cv_load", first=11)[1].mean())
    assert moe("verify", "a", runs=tmp_path).returncode == 0
    listed = json.loads(moe("runs", "--json", runs=tmp_path).stdout)
    assert (listed["run"], listed["state"], listed["step"]) == ("a", "finished", 60)
    late = moe("set", "a", "noise=0.5", runs=tmp_path)
    assert late.returncode == 2
    assert "a is finished" in late.stderr


def test_knobs_and_commands_reach_a_trainer(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "moe_core", "train", *SMALL, "--runs", str(tmp_path), "--run-id", "a", "--json"]
    trainer = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    try:
        assert json.loads(trainer.stdout.readline())["event"] == "start"
        assert moe("pause", "a", runs=tmp_path).returncode == 0
        run = open_run("a", tmp_path)
        held = run.steps()[1]
        assert run.state == "paused"
        assert moe("set", "a", "noise=0.5", "w-load=0", runs=tmp_path).returncode == 0
        assert moe("step", "a", runs=tmp_path).returncode == 0
        until = time.monotonic() + 60
        while run.steps()[1] == held and time.monotonic() < until:
            time.sleep(0.05)
        assert run.steps()[1] == held + 1
        assert [(c.name, c.value, c.step) for c in run.knob_changes()] == [
            ("noise", 0.5, held + 1),
            ("w_load", 0.0, held + 1),
        ]
        assert "checkpoint-" in moe("checkpoint", "a", runs=tmp_path).stdout
        assert moe("stop", "a", runs=tmp_path).returncode == 0
        out, _ = trainer.communicate(timeout=30)
        assert json.loads(out.splitlines()[-1])["state"] == "stopped"
        assert trainer.returncode == 0
        assert len(list((tmp_path / "a").glob("checkpoint-*.pt"))) == 1
    finally:
        trainer.kill()
        trainer.wait()


COLLAPSES = ["--task", "plane", "--w-importance", "0", "--w-load", "0", "--threads", "1", "--steps", "200"]


def test_a_collapse_is_told_and_handed_to_the_alert_command(tmp_path: Path) -> None:
    code = "import sys; open(sys.argv[1], 'a').write(sys.stdin.read())"
    command = shlex.join([sys.executable, "-c", code, str(tmp_path / "alerts")])
    done = moe("train", *COLLAPSES, "--json", "--on-alert", command, runs=tmp_path)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    alerts = [e for e in events if e["event"] == "alert"]
    assert [e["rule"] for e in alerts if e["rule"] == "collapse"] == ["collapse"]
    assert alerts[0]["remedy"] == {"w_importance": 0.1, "w_load": 0.1}
    lines = [json.loads(line) for line in (tmp_path / "alerts").read_text().splitlines()]
    assert sorted(map(str, lines)) == sorted(map(str, alerts))
    assert events[-1]["event"] == "end"


def test_a_failing_alert_command_is_one_line_and_the_training_goes_on(tmp_path: Path) -> None:
    done = moe("train", *COLLAPSES, "--on-alert", "false", runs=tmp_path)
    assert done.returncode == 0
    assert done.stderr.count("moe: --on-alert false: it ended with status 1") == 1
    assert "The gate has collapsed" in done.stderr
    assert "finished at step 200" in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--k", "99"], "k must be between 1 and num_experts=16"),
        (["--noise", "-1"], "noise must be between 0 and 4"),
        (["--speed", "3"], "--speed"),
        (["--task", "poetry"], "task must be one of"),
        (["--text", "not-there"], "is not there"),
        (["--task", "digits", "--data", "not-there.npz"], "is not a file"),
        (["--data", "x.npz"], "add --task digits"),
        (["--device", "nonsense"], "device must be"),
        (["--tokens", "100"], "tokens must be a multiple"),
        (["--on-alert", "no-such-program"], "--on-alert needs a program"),
        (["--run-id", "../outside"], "a run's name is letters"),
        (["--run-id", "two words"], "a run's name is letters"),
        (["--script", "not-there.txt"], "No such file or directory; give a file with lines"),
        (
            ["--script", str(ROOT / "docs/screens/start-light-1280x800.png")],
            "it is not text in UTF-8; give a file with lines",
        ),
    ],
)
def test_bad_input_is_one_line_status_2_and_nothing_written(words: list[str], says: str, tmp_path: Path) -> None:
    done = moe("train", *words, "--steps", "1", runs=tmp_path / "runs")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("moe: ")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "words",
    [["verify", "nothing"], ["set", "nothing", "noise=1"], ["stop", "nothing"], ["export", "nothing", "--out", "x"]],
)
def test_a_run_that_is_not_there_is_one_line_and_status_2(words: list[str], tmp_path: Path) -> None:
    done = moe(*words, runs=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_a_folder_without_runs_says_so(tmp_path: Path) -> None:
    done = moe("runs", runs=tmp_path / "none")
    assert (done.returncode, done.stdout) == (0, "")
    assert f"no runs in {tmp_path / 'none'}; `train` makes one" in done.stderr
    assert moe("runs", "--json", runs=tmp_path).stderr == ""


def test_talking_to_runs_needs_no_torch(tmp_path: Path) -> None:
    code = "import sys; from moe_core.__main__ import main; main(['runs', '--runs', sys.argv[1]]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    ("flag", "fine", "wrong"),
    [(count_flag, "1", ["0", "-2", "1.5", "nan"]), (seconds_flag, "0", ["-1", "3601", "inf", "nan"])],
)
def test_a_flag_of_a_benchmark_takes_no_number_that_measures_nothing(
    flag: Callable[[str], float], fine: str, wrong: list[str]
) -> None:
    assert flag(fine) == float(fine)
    for text in wrong:
        with pytest.raises(argparse.ArgumentTypeError, match=f"got .?{text}"):
            flag(text)
