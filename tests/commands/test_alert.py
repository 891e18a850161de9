"""--on-alert: the finding arrives whole, nothing of it is run, and a command that hangs or fails harms nobody."""

import json
import shlex
import sys

import pytest

from moe_core.__main__ import main
from moe_core.commands import alert
from moe_core.commands.alert import AT_ONCE, Alarm, words_of

FINDING = {
    "event": "alert",
    "rule": "collapse",
    "layer": 0,
    "since": 3,
    "what": "$(touch x); `touch y` \"'é\n",
    "remedy": None,
}


def python(code: str, *arguments: object) -> str:
    return shlex.join([sys.executable, "-c", code, *map(str, arguments)])


def test_the_finding_arrives_on_stdin_and_nothing_of_it_is_run(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = []
    code = "import sys; open(sys.argv[1], 'wb').write(sys.stdin.buffer.read())"
    alarm = Alarm(python(code, "a file; touch z"), said.append)
    alarm.call(FINDING)
    alarm.close()
    assert json.loads((tmp_path / "a file; touch z").read_text()) == FINDING
    assert [path.name for path in tmp_path.iterdir()] == ["a file; touch z"]
    assert said == []


def test_a_command_that_fails_is_told_of_once() -> None:
    said = []
    alarm = Alarm(python("import sys; sys.exit(3)"), said.append)
    for _ in range(3):
        alarm.call(FINDING)
        alarm.close()
    assert len(said) == 1
    assert "ended with status 3" in said[0]


def test_only_so_many_run_at_once_and_the_caller_never_waits(tmp_path) -> None:
    said, gate = [], tmp_path / "gate"
    code = "import sys, time, pathlib\nwhile not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.02)"
    alarm = Alarm(python(code, gate), said.append)
    for _ in range(AT_ONCE + 2):
        alarm.call(FINDING)  # would never return if it waited: the gate is still shut
    assert len(said) == 1
    assert "left out" in said[0]
    assert sum(thread.is_alive() for thread in alarm.threads) == AT_ONCE
    gate.touch()
    alarm.close()
    before = alarm.threads
    alarm.call(FINDING)  # there is room again
    assert alarm.threads[-1] not in before
    alarm.close()
    assert len(said) == 1


def test_a_command_that_hangs_is_ended(monkeypatch) -> None:
    monkeypatch.setattr(alert, "PATIENCE", 0.3)
    said = []
    alarm = Alarm(python("import time; time.sleep(600)"), said.append)
    alarm.call(FINDING)
    alarm.close()
    assert "was ended" in said[0]
    assert not any(thread.is_alive() for thread in alarm.threads)


def test_a_command_that_does_not_read_its_input_is_no_failure() -> None:
    said = []
    alarm = Alarm(python("pass"), said.append)
    alarm.call(FINDING | {"what": "x" * 1_000_000})
    alarm.close()
    assert said == []


def test_the_end_does_not_wait_for_ever(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(alert, "FAREWELL", 0.05)
    code = "import sys, time, pathlib\nwhile not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.02)"
    alarm = Alarm(python(code, tmp_path / "gate"), lambda line: None)
    alarm.call(FINDING)
    alarm.close()
    assert alarm.threads[0].is_alive()
    (tmp_path / "gate").touch()
    alarm.threads[0].join(30)


@pytest.mark.parametrize("command", ["", "   ", "no-such-program --x", "'unfinished"])
def test_a_command_that_cannot_be_run_is_refused(command: str) -> None:
    with pytest.raises(ValueError, match="--on-alert"):
        words_of(command)


def test_a_run_that_is_gone_on_with_calls_it_too(tmp_path) -> None:
    words = ["--runs", str(tmp_path), "--json"]
    tiny = [
        "--task",
        "plane",
        "--num-experts",
        "4",
        "--tokens",
        "32",
        "--d-model",
        "8",
        "--d-hidden",
        "8",
        "--threads",
        "1",
    ]
    idle = ["--noise", "0", "--w-load", "0.1", "--steps", "20", "--run-id", "a"]  # a load loss that does nothing
    assert main(["train", *words, *tiny, *idle]) == 0
    code = "import sys; open(sys.argv[1], 'ab').write(sys.stdin.buffer.read())"
    assert main(["train", "--resume", "a", *words, "--steps", "40", "--on-alert", python(code, tmp_path / "told")]) == 0
    told = [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    assert "idle_load_loss" in [finding["rule"] for finding in told]
