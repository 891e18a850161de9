"""What the commands make of closed streams, of terminals that take no codes, and of odd words."""

import contextlib
import io
import json
import os
import pty
import shlex
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from moe_core.__main__ import main
from moe_core.commands import terminal
from moe_core.commands.talk import WHY
from moe_core.runs import open_run

ROOT = Path(__file__).parents[2]
MOE = shlex.join([sys.executable, "-m", "moe_core"])
TRAIN = "train --task plane --d-model 8 --d-hidden 8 --tokens 64 --threads 1 --steps 20"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def shell(line: str, runs: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """A line as a person types it, in a shell that has process substitution."""
    environment = ENVIRONMENT | {"MOE_RUNS": str(runs)} | more
    return subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment)


@pytest.mark.parametrize(
    ("line", "status", "out", "err"),
    [
        (f"{MOE} {TRAIN} 2>&-", 0, "finished at step 20", ""),
        (f"{MOE} {TRAIN} --k 99 2>&-", 2, "moe: k must be between", ""),
        (f"{MOE} {TRAIN} --k 99 --json 2>&-", 2, '{"event": "stderr", "text": "moe: k must be between', ""),
        (f"{MOE} {TRAIN} --nonsense --json 2>&-", 2, '{"event": "stderr", "text": "moe: unrecognized arguments', ""),
        (f"{MOE} {TRAIN} <&- >&- 2>&-", 0, "", ""),
        (f"{MOE} runs 2>&-", 0, "no runs in", ""),
        (f"{MOE} runs >&-", 0, "", "moe: stdout is closed, and what is printed there is lost"),
        (f"{MOE} sweep --help >/dev/full", 0, "", ""),
        (f"{MOE} runs | true; exit ${{PIPESTATUS[0]}}", 0, "", ""),
    ],
)
def test_closed_and_full_streams_end_nothing_without_a_word(
    line: str, status: int, out: str, err: str, tmp_path: Path
) -> None:
    done = shell(line, tmp_path)
    assert done.returncode == status, (done.stdout, done.stderr)
    assert out in done.stdout
    assert err in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    if "--json" in line:
        assert all(json.loads(one)["event"] for one in done.stdout.splitlines())
    if TRAIN in line and status == 0:
        (run,) = tmp_path.iterdir()
        assert open_run(run).state == "finished"


def test_a_file_of_a_run_never_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    """Or what torch prints on stderr would go into it."""
    code = "import moe_core.__main__ as m, os, sys; m.main(['runs']); print(os.open('/dev/null', 0))"
    done = shell(f"{shlex.join([sys.executable, '-c', code])} 2>&-", tmp_path)
    assert int(done.stdout.splitlines()[-1]) > 2


def on_a_terminal(words: list[str], runs: Path, **environment: str) -> bytes:
    """What a command writes to a terminal that is its stderr and its stdout."""
    here, there = pty.openpty()
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "NO_COLOR"} | environment
    command = [sys.executable, "-m", "moe_core", *words, "--runs", str(runs)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=there, stdout=there, stderr=there, env=environment)
    os.close(there)
    told = b""
    with contextlib.suppress(OSError):  # the terminal is closed with its last process
        while part := os.read(here, 4096):
            told += part
    os.close(here)
    assert process.wait() == 0, told
    return told


@pytest.mark.parametrize(
    ("environment", "codes"),
    [({"TERM": "xterm"}, True), ({"TERM": "dumb"}, False), ({}, False), ({"TERM": "xterm", "NO_COLOR": "1"}, False)],
)
def test_only_a_terminal_that_takes_codes_gets_them(environment: dict[str, str], codes: bool, monkeypatch) -> None:
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    here, there = pty.openpty()
    with os.fdopen(there, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        assert terminal.live(False) == codes
        assert not terminal.live(True)
        assert terminal.width() == 79  # this one does not say how wide it is
    os.close(here)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not terminal.live(False)
    assert terminal.width() == 79


def test_a_dumb_terminal_sees_whole_lines(tmp_path: Path) -> None:
    told = on_a_terminal(TRAIN.split(), tmp_path, TERM="dumb")
    assert b"\x1b" not in told
    assert b"\r" not in told.replace(b"\r\n", b"")
    assert b"finished at step 20" in told


def test_no_command_asks_for_a_terminal_by_itself() -> None:
    """terminal.live() is asked, which knows TERM and NO_COLOR."""
    for path in (ROOT / "moe_core" / "commands").glob("*.py"):
        assert path.name == "terminal.py" or "isatty" not in path.read_text(), path


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("/dev/zero", "neither a file nor a pipe"),
        ("- < /dev/null", "neither a file nor a pipe"),
        ("- <&-", "neither a file nor a pipe"),
        (".", "Is a directory"),
        ("<(yes)", "more than 4.2 MB"),
        ("<(yes | tr -d '\\n' | head -c 1000000)", "1,000,000 characters, and at most 10,000 are read"),
        ("<(echo ٣ noise=1)", "wanted a step and changes"),
        ("<(echo 3 noise=٣)", "noise must be a number, got '٣'"),
        ("<(echo 3 who=x)", "unknown knob 'who'"),
    ],
)
def test_what_is_no_script_is_refused_in_a_line(script: str, says: str, tmp_path: Path) -> None:
    done = shell(f"{MOE} {TRAIN} --run-id a --script {script}", tmp_path / "runs")
    if says:
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert says in done.stderr
        assert len(done.stderr) < 1100
    else:
        assert done.returncode == 0, done.stderr
        assert [(c.name, c.value, c.step) for c in open_run("a", tmp_path / "runs").knob_changes()] == [
            ("noise", 0.5, 3)
        ]


def test_a_long_reason_is_cut_where_it_is_read_and_shorter_in_the_list(tmp_path: Path, capsys) -> None:
    folder = Path(shutil.copytree(ROOT / "tests/fixtures/v0.1/plane", tmp_path / "a"))  # whose state has no sum
    db = sqlite3.connect(folder / "run.db", isolation_level=None)
    db.execute("UPDATE state SET reason = ?", ("because " + "x" * 900_000 + " do this",))
    db.close()
    assert main(["runs", "--runs", str(tmp_path)]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert "because xxx" in line
    assert line.endswith("xxx do this")
    assert len(line) < WHY + 150
    assert len(open_run(folder).status().reason) <= 2_000


def test_a_problem_is_one_line_that_a_person_can_read(capsys) -> None:
    assert terminal.complain("k must be\n a number, got \x1b[31m" + "9" * 10**6 + "; change it") == 2
    said = capsys.readouterr().err
    assert said.startswith("moe: k must be  a number, got ?[31m999")
    assert said.endswith("999; change it\n")
    assert len(said) < 1_100
    with pytest.raises(SystemExit):
        main(["train", "--steps", "1", "--" + "x" * 10**6])
    assert len(capsys.readouterr().err) < 1_100


@pytest.mark.parametrize("entry", ["moe_core/__main__.py", "app.py"])
def test_a_system_without_file_locks_is_told_in_a_line(entry: str) -> None:
    code = f"import runpy, sys; sys.modules['fcntl'] = None; runpy.run_path({entry!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "Linux and macOS, on Windows in WSL" in done.stderr
    assert "on Linux or macOS; on Windows in WSL" in (ROOT / "README.md").read_text()


def test_a_line_that_keeps_itself_up_to_date_is_never_wider_than_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "width", lambda: 10)
    terminal.update("a line of more than\nten letters")
    terminal.line("done", live=True)
    assert capsys.readouterr().err == "\r\x1b[Ka line of \r\x1b[Kdone\n"
    assert (terminal.bar(0, 3), terminal.bar(3, 3)) == (f"[{'.' * 20}]", f"[{'#' * 20}]")
