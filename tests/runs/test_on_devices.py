"""The measurement on several devices: processes of their own, seen through a file in the run's folder, whatever that file holds."""

import contextlib
import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_core.folders import ABOVE
from moe_core.runs import (
    create_run,
    devices_for,
    measuring,
    nothing_on_devices,
    on_devices,
    open_run,
    remove_run,
    start_on_devices,
    stop_on_devices,
)
from moe_core.runs.database import StoreError
from moe_core.runs.locks import is_locked
from moe_core.runs.measuring import start_bench
from moe_core.runs.on_devices import NAME, how_far, of_events
from moe_core.schema import Config, Knobs
from tests.runs.test_measuring import wait

ONE = [[[2.0, 4.0, 7.0], [1.0, 4.0, 9.0]], [[5.0, 8.0, 13.0], [2.0, 8.0, 17.0]]]
EVENTS: list[dict[str, Any]] = [
    {"event": "start", "pid": 1, "devices": [1, 2]},
    {"event": "model", "step": 40, "tokens": 16, "k": [2, 2], "experts": [8, 8], "machine": "2 ranks on 1 core"},
    {"event": "rows", "devices": 1, "own": ONE[0], "all": ONE[0], "batches": 2},
    {"event": "rows", "devices": 2, "own": ONE[0], "all": ONE[1], "batches": 2},
    {"event": "speed", "devices": 1, "rows_per_second": [100.0, 110.0], "rounds": 3},
    {"event": "speed", "devices": 2, "rows_per_second": [150.0, 160.0], "rounds": 3},
    {"event": "end"},
]


def write(folder: Path, events: list[dict[str, Any]], more: str = "") -> None:
    (folder / NAME).write_text("".join(json.dumps(event) + "\n" for event in events) + more)


def test_what_was_measured_is_read_as_arrays(tmp_path: Path) -> None:
    write(tmp_path, EVENTS)
    found = on_devices(tmp_path, 2)
    assert (found.devices_m.tolist(), found.own_mL3.tolist(), found.all_mL3.tolist()) == ([1, 2], [ONE[0], ONE[0]], ONE)
    assert found.per_second_mL.tolist() == [[100, 110], [150, 160]]
    assert (found.k_L.tolist(), found.experts_L.tolist(), found.tokens, found.step) == ([2, 2], [8, 8], 16, 40)
    assert (found.done, found.problem, found.running, found.machine) == (True, "", False, "2 ranks on 1 core")


@pytest.mark.parametrize("kept", range(1, len(EVENTS)))
def test_half_of_it_is_what_is_there_and_is_not_done(tmp_path: Path, kept: int) -> None:
    write(tmp_path, EVENTS[:kept], json.dumps(EVENTS[kept])[:-5])
    found = on_devices(tmp_path, 2)
    assert len(found.devices_m) == max(0, min(2, kept - 2))
    assert found.done == (kept == len(EVENTS) - 1)
    assert found.problem
    assert 0 < found.progress[0] < 1
    words = found.progress[1]
    assert words
    assert words == {1: "The ranks start", 2: "Counting rows after step 40: 0 of 2 done"}.get(kept, words)


def test_before_it_there_is_nothing_and_nothing_wrong(tmp_path: Path) -> None:
    for found in (on_devices(tmp_path, 3), nothing_on_devices(3)):
        assert (len(found.devices_m), found.own_mL3.shape, found.per_second_mL.shape) == (0, (0, 3, 3), (0, 3))
        assert (found.done, found.problem) == (False, "")


@pytest.mark.parametrize(
    "bad",
    [
        {"event": "model", "step": 1, "tokens": 16, "k": [2], "experts": [8], "machine": ""},  # of another model
        {"event": "model", "step": 1, "tokens": 16, "k": [2, 0], "experts": [8, 0], "machine": ""},
        {"event": "rows", "devices": 1, "own": [[1, 2]], "all": [[1, 2]]},
        {"event": "rows", "devices": "two", "own": ONE[0], "all": ONE[0]},
        {"event": "start", "pid": 1, "devices": 4},
        {"event": "speed", "devices": 1, "rows_per_second": ["fast"]},
        {"event": "rows"},
        {"event": "rows", "devices": 3, "own": ONE[0], "all": ONE[0]},
        {"event": "rows", "devices": 2**62, "own": ONE[0], "all": ONE[0]},
        {"event": "rows", "devices": 1, "own": [[-1, 2, 3]] * 2, "all": ONE[0]},
        {"event": "speed", "devices": 1, "rows_per_second": [1e300, 1e300]},
        {"event": "model", "step": -1, "tokens": 16, "k": [2, 2], "experts": [8, 8], "machine": ""},
        {"event": "model", "step": 1, "tokens": -16, "k": [2, 2], "experts": [8, 8], "machine": ""},
    ],
)
def test_a_file_that_somebody_changed_counts_as_none_and_says_so(tmp_path: Path, bad: dict[str, Any]) -> None:
    write(tmp_path, [*EVENTS[:6], bad, EVENTS[6]])
    found = on_devices(tmp_path, 2)
    assert (len(found.devices_m), found.problem) == (0, "devices.jsonl cannot be read; measure again")


def test_one_damaged_file_does_not_hide_the_result_in_the_other(tmp_path: Path) -> None:
    damaged = [{**event, "k": [2]} if event["event"] == "model" else event for event in EVENTS]
    for latest in (damaged, damaged[:5]):  # whole, and not
        write(tmp_path, EVENTS)
        (tmp_path / NAME).rename(tmp_path / "devices.earlier")
        write(tmp_path, latest)
        found = on_devices(tmp_path, 2)
        assert (found.done, found.earlier, found.problem) == (True, True, "devices.jsonl cannot be read; measure again")
    write(tmp_path, damaged)
    (tmp_path / NAME).rename(tmp_path / "devices.earlier")
    write(tmp_path, EVENTS[:5])
    found = on_devices(tmp_path, 2)
    assert (found.devices_m.tolist(), found.done, found.earlier) == ([1, 2], False, False)
    assert found.problem == "devices.earlier cannot be read; measure again"
    write(tmp_path, EVENTS)
    found = on_devices(tmp_path, 2)
    assert (found.done, found.earlier, found.problem) == (True, False, "")


def test_a_file_of_very_many_lines_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the limit of bytes there is room for a million, which would hold up the page for seconds."""
    write(tmp_path, EVENTS)
    (tmp_path / NAME).rename(tmp_path / "devices.earlier")
    write(tmp_path, EVENTS[:5], "\n" * (measuring.LINES - 5))
    assert on_devices(tmp_path, 2).problem == "stopped before it was done"
    monkeypatch.setattr(measuring, "read_json", lambda line: pytest.fail("it is read"))
    (tmp_path / NAME).write_text("{}\n" * (measuring.LINES + 1))
    assert on_devices(tmp_path, 2).problem == "it has more than 1,000 lines"


def test_a_link_or_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text(json.dumps(EVENTS[0]))
    (tmp_path / NAME).symlink_to(tmp_path / "elsewhere")
    assert on_devices(tmp_path, 2).problem == "it is not a plain file"
    with pytest.raises(OSError):
        start_on_devices(tmp_path)
    assert (tmp_path / "elsewhere").read_text() == json.dumps(EVENTS[0])


def test_experts_that_cannot_be_dealt_are_refused() -> None:
    assert [devices_for(E) for E in (2, 4, 6, 64)] == [[1, 2], [1, 2, 4], [1, 2], [1, 2, 4]]
    for E in (1, 3):
        with pytest.raises(ValueError, match=f"must be even, got {E}"):
            devices_for(E)


def rank_zero(launcher: int) -> int | None:
    """The process of rank 0 below a launcher."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher and b"\0RANK=0\0" in b"\0" + (folder / "environ").read_bytes():
                return int(folder.name)
    return None


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds the rank by /proc")
def test_a_rank_that_dies_is_named_and_what_was_counted_is_kept(tmp_path: Path) -> None:
    config = Config(task="plane", num_experts=2, d_model=4, d_hidden=4, layers=1, tokens=64)
    create_run(tmp_path / "a", config, Knobs(k=1)).finish("stopped")
    run = open_run("a", tmp_path)
    words = ["ranks", "--run", str(run.path), "--seconds", "100"]  # rank 0 goes on timing until it is killed
    assert start_bench(run.path / NAME, words)
    assert not start_on_devices(run.path)  # one at a time
    assert run.on_devices().running
    wait(lambda: len(run.on_devices().devices_m) == 2)
    rank = rank_zero(run.on_devices().pid)
    assert rank
    os.kill(rank, signal.SIGKILL)
    wait(lambda: not is_locked(run.path / NAME))
    found = run.on_devices()
    assert found.devices_m.tolist() == [1, 2]
    np.testing.assert_allclose(found.all_mL3[:, 0, 1], [32, 64])
    assert "rank 0 failed: Signal 9 (SIGKILL)" in found.problem
    assert not found.done
    assert start_bench(run.path / NAME, words)  # the next begins anew, and loses its launcher
    wait(lambda: run.on_devices().tokens > 0)
    os.kill(run.on_devices().pid, signal.SIGKILL)
    wait(lambda: not is_locked(run.path / NAME))  # so its ranks have ended too
    assert run.on_devices().problem == "stopped before it was done"
    run.close()


# What Python does as it starts: the launcher has less patience, and a rank never goes on from its first products in the count on 2 devices.
HANGS = """
import os, signal, sys, time
if "bench" in sys.orig_argv:
    from moe_core.benchmarks import ranks
    ranks.PATIENCE = 3.0
if os.environ.get("RANK") == "{rank}" and "moe_core.benchmarks.one_rank" in sys.orig_argv:
    from moe_core.parallel import exchange, ranks
    plain, begun = exchange.mixture, ranks.Ranks.__init__
    def mixture(*given):
        if exchange.expert == 2:
            if "{how}" == "halted":
                os.kill(os.getpid(), signal.SIGSTOP)
            while True:
                time.sleep(1)
        return plain(*given)
    def init(self, expert, *rest):
        exchange.expert = expert
        begun(self, expert, *rest)
    exchange.mixture, ranks.Ranks.__init__ = mixture, init
"""


@pytest.mark.parametrize(
    ("how", "rank", "says"),
    [("halted", 0, "gives no sign of life, last seen in the .*"), ("asleep", 1, "hangs in the count on 2 devices")],
)
def test_a_rank_that_hangs_ends_the_measurement_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, rank: int, says: str
) -> None:
    """Ranks 2 and 3 wait for the others, who count on 2 devices. The result before it stays."""
    config = Config(task="plane", num_experts=4, d_model=4, d_hidden=4, layers=2, tokens=64)
    create_run(tmp_path / "a", config, Knobs(k=1)).finish("stopped")
    (tmp_path / "sitecustomize.py").write_text(HANGS.format(how=how, rank=rank))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ABOVE}")
    write(tmp_path / "a", EVENTS)
    assert start_on_devices(tmp_path / "a")
    wait(lambda: not is_locked(tmp_path / "a" / NAME))  # so no process is left
    found = on_devices(tmp_path / "a", 2)
    words = rf"moe: rank {rank} \(process \d+ on .*\) {says}; measure again"
    assert re.fullmatch(words, found.problem), found.problem
    assert (found.earlier, found.done, found.tokens) == (True, True, 16)


def test_it_is_started_as_the_command_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(start_on_devices.__globals__, "start_bench", lambda *given: given)
    assert start_on_devices(tmp_path) == (tmp_path / NAME, ["ranks", "--run", str(tmp_path)])


def test_a_measurement_that_is_cancelled_ends_and_says_so(tmp_path: Path) -> None:
    process = pretend(tmp_path, "bench")
    write(tmp_path, [EVENTS[0] | {"pid": process.pid}])
    found = on_devices(tmp_path, 2)
    assert (found.running, found.problem, len(found.devices_m)) == (True, "", 0)
    stop_on_devices(tmp_path)
    assert process.wait(10) == -signal.SIGTERM
    assert on_devices(tmp_path, 2).problem == "stopped before it was done"


def pretend(folder: Path, *words: str, does: str = "") -> subprocess.Popen[bytes]:
    """A process in the place of `moe_core WORDS`, with the measurement's file, locked, as its output. does: what it does before it waits."""
    with (folder / NAME).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        does = f"import signal, subprocess, sys, time\n{does}\nprint('ready', flush=True); time.sleep(100)"
        process = subprocess.Popen([sys.executable, "-c", does, "moe_core", *words], stdout=file)
    wait(lambda: "ready" in (folder / NAME).read_text())
    return process


DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
RANK_OF_IT = (
    f"deaf = 'import signal, time; {DEAF}; time.sleep(100)'\n"
    "rank = [sys.executable, '-c', deaf, 'moe_core.benchmarks.one_rank']\n"
    "subprocess.Popen(rank, start_new_session=True)"
)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="elsewhere ranks end by themselves")
@pytest.mark.parametrize("does", [DEAF, RANK_OF_IT])
def test_what_does_not_listen_to_the_cancel_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str
) -> None:
    """A command that goes on, and a rank that goes on after its command has ended."""
    monkeypatch.setattr(measuring, "UNTIL_KILLED", 0.2)
    process, bystander = pretend(tmp_path, "bench", does=does), subprocess.Popen(["sleep", "100"])
    try:
        assert stop_on_devices(tmp_path)
        assert process.wait(10) == (-signal.SIGKILL if does == DEAF else -signal.SIGTERM)
        assert not is_locked(tmp_path / NAME)  # so no process has it any more
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_only_processes_of_the_measurement_are_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "UNTIL_KILLED", 0.1)
    monkeypatch.setattr(measuring, "UNTIL_GIVEN_UP", 0.3)
    other = pretend(tmp_path, "train")  # what the file says of its process is not believed
    try:
        write(tmp_path, [EVENTS[0] | {"pid": other.pid}])
        assert not stop_on_devices(tmp_path)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_measurement_that_is_begun_while_another_is_stopped_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From another tab, between two looks at the processes."""
    first, later = pretend(tmp_path, "bench"), list[subprocess.Popen[bytes]]()

    def send(pid: int, number: signal.Signals) -> None:
        os.kill(pid, number)
        if pid == first.pid:
            first.wait(10)
            later.append(pretend(tmp_path, "bench"))

    monkeypatch.setattr(measuring, "send", send)
    assert stop_on_devices(tmp_path)
    (second,) = later
    assert second.poll() is None
    second.kill()
    second.wait()


def test_without_proc_the_process_is_known_from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        measuring, "Path", lambda path: tmp_path / str(path).lstrip("/")
    )  # there is no such folder below it
    process = pretend(tmp_path, "bench")
    monkeypatch.setitem(measuring._started, tmp_path / NAME, process)
    assert [*measuring.processes_of(tmp_path / NAME)] == [process.pid]
    stop_on_devices(tmp_path)
    assert process.wait(10) == -signal.SIGTERM
    write(
        tmp_path, [EVENTS[0] | {"pid": os.getpid()}]
    )  # of another server, it is what the file says, if that is one of ours
    assert [*measuring.processes_of(tmp_path / NAME)] == []


@pytest.mark.parametrize("later", [0.0, 0.02, 0.05, 0.3])
def test_a_cancel_ends_it_at_any_moment(tmp_path: Path, later: float) -> None:
    create_run(tmp_path / "a", Config(task="plane", num_experts=2, layers=1), Knobs(k=1)).finish("stopped")
    assert start_on_devices(tmp_path / "a")
    time.sleep(later)
    stop_on_devices(tmp_path / "a")
    assert not is_locked(tmp_path / "a" / NAME)


def test_a_result_stays_until_the_next_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def commands(*words: str, **given: Any) -> subprocess.Popen[bytes]:
        return plain(["true"], **given)

    plain = subprocess.Popen
    monkeypatch.setattr(measuring.subprocess, "Popen", commands)
    write(tmp_path, EVENTS)
    whole = on_devices(tmp_path, 2)
    later = [json.loads(json.dumps(event).replace("100.0", "300.0")) for event in EVENTS]
    for kept in range(len(EVENTS)):  # it is cancelled again and again, ever later
        assert start_on_devices(tmp_path)
        wait(lambda: not is_locked(tmp_path / NAME))
        write(tmp_path, later[:kept])
        found = on_devices(tmp_path, 2)
        assert (found.per_second_mL.tolist(), found.tokens, found.earlier) == (whole.per_second_mL.tolist(), 16, True)
        assert (found.done, found.problem) == (True, "stopped before it was done" if kept else "")
        with (tmp_path / NAME).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            found = on_devices(tmp_path, 2)
            assert (found.running, found.per_second_mL.tolist()) == (True, whole.per_second_mL.tolist())
            assert found.progress == how_far(of_events(later[:kept], 2))
    write(tmp_path, later)
    found = on_devices(tmp_path, 2)
    assert (found.per_second_mL[0, 0], found.earlier, found.problem) == (300, False, "")
    (tmp_path / "devices.earlier").unlink()
    (tmp_path / "devices.draft").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        start_on_devices(tmp_path)
    assert on_devices(tmp_path, 2).per_second_mL[0, 0] == 300
    assert not (tmp_path / "elsewhere").exists()


def test_two_threads_may_start_measurements_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As two tabs do: one starts and forgets measurements while the other looks which have ended."""

    class Ended:
        def poll(self) -> int:
            started.pop(tmp_path / "a", None)
            started[tmp_path / "b"] = Ended()
            return 0

    started: dict[Path, Any] = {tmp_path / "a": Ended()}
    monkeypatch.setattr(measuring, "_started", started)
    monkeypatch.setattr(measuring.subprocess, "Popen", lambda words, **given: Ended())
    assert start_on_devices(tmp_path)
    assert tmp_path / NAME in started


def test_no_result_is_put_aside_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk."""

    def full(path: Path, most: int) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    write(tmp_path, EVENTS)
    assert on_devices(tmp_path, 2).done  # so it is read no more
    monkeypatch.setattr(measuring, "read_side", full)
    with pytest.raises(OSError, match="No space"):
        start_on_devices(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    assert on_devices(tmp_path, 2).done


def test_a_run_whose_measurement_does_not_end_is_not_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_run(tmp_path / "a", Config(task="plane", num_experts=2, layers=1), Knobs(k=1)).finish("stopped")
    monkeypatch.setattr(measuring, "UNTIL_GIVEN_UP", 0.1)
    with (tmp_path / "a" / NAME).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(
            StoreError, match="run a cannot be deleted: its measurement on several devices does not end"
        ):
            remove_run(tmp_path / "a")
        assert open_run("a", tmp_path).state == "stopped"
    remove_run(tmp_path / "a")
    assert not [*tmp_path.iterdir()]


def test_a_run_is_deleted_with_its_measurement(tmp_path: Path) -> None:
    create_run(tmp_path / "a", Config(task="plane", num_experts=2, layers=1), Knobs(k=1)).finish("stopped")
    process = pretend(tmp_path / "a", "bench")
    remove_run(tmp_path / "a")
    assert process.wait(10) == -signal.SIGTERM
    assert not (tmp_path / "a").exists()


def test_more_than_was_to_be_measured_is_no_more_than_all() -> None:
    found = nothing_on_devices()._replace(devices_m=np.array([1, 2, 4]), tokens=64)
    assert how_far(found)[0] == 1.0
