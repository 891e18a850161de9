"""Several ranks that train one run: what a machine has room for, the words that start them, and a start as the dashboard does it."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moe_core.__main__ import parser
from moe_core.commands.talk import must_train
from moe_core.commands.train import settings_of
from moe_core.dashboard import starting
from moe_core.runs import (
    Run,
    StoreError,
    command_of,
    create_run,
    fork,
    hold_lock,
    is_alive,
    is_running,
    last_words,
    machine,
    open_run,
    processes,
    ranks,
    resume,
    runner,
    script_of,
    start,
    stop,
    wait_ready,
)
from moe_core.runs.branch import branch_off
from moe_core.runs.locks import fetch, holder, post, started, stat_words
from moe_core.runs.log import NO_WORDS, last_problem, words_of_failure
from moe_core.runs.processes import Process
from moe_core.runs.ranks import (
    ALONE,
    RankCounts,
    again_text,
    check_dealt,
    check_room,
    check_shares,
    facts_of_ranks,
    first_ranks,
    ranks_again,
    rows_of,
)
from moe_core.runs.statistics import Deal
from moe_core.schema import Config, Knobs
from tests.runs.test_runner import wait_until

SMALL = Config.for_task(
    "plane", num_experts=4, tokens=64, d_model=16, d_hidden=16, eval_every=1000, checkpoint_every=0.0
)


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets how many cores and GPUs this machine has."""

    def has(cores: int, gpus: int = 0) -> None:
        monkeypatch.setattr(ranks, "cores", lambda: cores)
        monkeypatch.setattr(ranks, "gpus", lambda: gpus)

    return has


# The words


def read(words: list[str]) -> tuple[int, int, tuple[Config, Knobs]]:
    """Ranks, over how many the experts are dealt, and the settings, of what follows torchrun."""
    assert words[:2] == ["--standalone", "--nproc-per-node"]
    assert words[3:6] == ["-m", "moe_core", "train"]
    found = parser().parse_args(words[5:])
    return int(words[2]), found.expert_parallel, settings_of(found)


def test_the_command_that_is_shown_and_the_process_that_is_started_say_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, knobs, begun = (
        Config.for_task("text", text=("/a b/it's",), seed=7, threads=2),
        Knobs(noise=0.5),
        list[Any](),
    )
    monkeypatch.setattr(runner.subprocess, "Popen", lambda words, **named: begun.append((words, named)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(runner, "_children", {})
    shown = shlex.split(command_of(config, knobs, RankCounts(4, 2)))
    assert shown[0] == "torchrun"
    start(config, knobs, tmp_path, ranks=RankCounts(4, 2))
    ((started, named),) = begun
    assert started[:3] == [runner.sys.executable, "-m", "torch.distributed.run"]
    assert read(shown[1:]) == read(started[3:]) == (4, 2, (config, knobs))
    assert (named["start_new_session"], named["env"]["OMP_NUM_THREADS"]) == (True, "1")
    assert named["env"].keys() >= {"MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"}


def test_one_process_is_started_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Any] = []
    monkeypatch.setattr(runner.subprocess, "Popen", lambda words, **named: begun.append((words[1:4], named["env"])))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(runner, "_children", {})
    monkeypatch.setattr(runner, "_ahead", None)
    start(SMALL, Knobs(), tmp_path)
    ((words, env),) = begun
    assert words == ["-m", "moe_core", "train"]
    assert "OMP_NUM_THREADS" not in env


def test_what_has_loaded_torch_ahead_waits_on_while_ranks_are_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Any] = []
    monkeypatch.setattr(runner, "_hand_over", lambda words, log: pytest.fail("it was told to train"))
    monkeypatch.setattr(runner, "spawn", lambda name, words, log, **named: begun.append(named["ranks"]))
    start(SMALL, Knobs(), tmp_path, ranks=RankCounts(2, 1))
    assert begun == [RankCounts(2, 1)]


# What can be shared


@pytest.mark.parametrize(
    ("check", "says"),
    [
        (lambda: check_room(RankCounts(5), SMALL), "ranks must be between 1 and 4, one for each core of this machine, got 5"),
        (lambda: check_room(RankCounts(0), SMALL), "ranks must be between 1 and 4, one for each core of this machine, got 0"),
        (lambda: check_room(RankCounts(3), Config(device="cuda")), "between 1 and 2, one for each GPU of this machine, got 3"),
        (lambda: check_room(RankCounts(2), Config(device="mps")), "ranks cannot exchange tensors on device 'mps'; use device cpu, or one process"),
        (lambda: check_dealt(RankCounts(4, 3)), "expert_parallel must divide the number of ranks (4), got 3; change one of both"),
        (lambda: check_dealt(RankCounts(4, 0)), "expert_parallel must divide the number of ranks (4), got 0"),
        (lambda: check_shares(RankCounts(2, 2), 3, 64), "expert_parallel must divide num_experts (3), got 2; change one of both"),
        (lambda: check_shares(RankCounts(2, 1), 3, 63), "a batch must have a multiple of 2 rows or sequences, one part for each rank, got 63; change tokens"),
    ],
)  # fmt: skip
def test_what_cannot_be_shared_is_said_in_a_line(room: Any, check: Any, says: str) -> None:
    room(4, 2)
    with pytest.raises(ValueError) as error:
        check()
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_what_can_be_shared_is_not_refused(room: Any) -> None:
    room(4, 2)
    for size, expert in ((1, 1), (2, 1), (2, 2), (4, 2), (4, 4)):
        check_room(RankCounts(size, expert), SMALL)
        check_dealt(RankCounts(size, expert))
        check_shares(RankCounts(size, expert), 4, 64)
    check_room(RankCounts(2), Config(device="cuda"))
    check_room(ALONE, Config(device="mps"))
    room(1, 0)
    check_room(ALONE, Config(device="cuda"))  # that there is none, the trainer says


def test_text_is_dealt_by_its_sequences() -> None:
    assert rows_of(Config.for_task("text", tokens=1024, context=128)) == 8
    assert rows_of(Config.for_task("plane", tokens=512)) == 512


def test_gpus_that_are_hidden_from_this_process_do_not_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.setattr(machine, "Path", lambda path: tmp_path)
    for visible, many in ((None, 3), ("", 0), ("-1", 0), ("1", 1), ("1,-1,2", 1), ("0, 2", 2), ("0,1,2,3", 3)):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert machine.gpus() == many
        assert machine.device_kind(Config()) == ("cuda" if many else "cpu")
        assert ranks.most_ranks(machine.device_kind(Config()))[1] == ("GPU" if many else "core")


# Going on


@pytest.mark.parametrize(
    "told",
    [None, 7, "x", [], {}, {"data": 2}, {"data": "2", "expert": 1}, {"data": True, "expert": 2}, {"data": 0, "expert": 2}, {"data": 10**9, "expert": 2}],
)  # fmt: skip
def test_a_record_that_says_nothing_sound_of_its_ranks_is_of_one_process(told: Any) -> None:
    assert first_ranks({"ranks": told}) == first_ranks({}) == ALONE


def test_a_run_goes_on_with_its_ranks_where_there_is_room_for_them(room: Any) -> None:
    facts = facts_of_ranks(RankCounts(4, 2))
    assert facts == {"ranks": {"data": 2, "expert": 2}}
    assert first_ranks(facts) == RankCounts(4, 2)
    deals = (Deal(1, 3, 1), Deal(50, 2, 2))  # it went on on others than it began with
    room(4)
    assert (ranks_again(deals, {}), again_text(deals, {})) == (RankCounts(4, 2), "On 4 ranks again.")
    room(3, 9)
    said = "In one process: 4 ranks trained it, and this machine has 3 cores."
    assert (ranks_again(deals, {}), again_text(deals, {})) == (ALONE, said)
    room(9, 1)
    on_gpus = {"device": "cuda:0"}
    said = "In one process: 4 ranks trained it, and this machine has 1 GPU."
    assert (ranks_again(deals, on_gpus), again_text(deals, on_gpus)) == (ALONE, said)
    for alone in ((), (Deal(1, 2, 2), Deal(90))):  # never, and not any more
        assert (ranks_again(alone, {}), again_text(alone, {})) == (ALONE, "")
    assert facts_of_ranks(ALONE) == {}


def test_the_command_line_names_the_command_that_goes_on_with_as_many_ranks(tmp_path: Path, room: Any) -> None:
    create_run(tmp_path / "a", SMALL, Knobs(), facts=facts_of_ranks(RankCounts(4, 2))).finish("stopped")
    below = "torchrun --standalone --nproc-per-node 4 -m moe_core train --expert-parallel 2 --resume a"
    for cores, command in ((4, below), (3, "train --resume a")):
        room(cores)
        with pytest.raises(ValueError, match=f"go on with it by `{command}`"):
            must_train(open_run("a", tmp_path))


def test_a_fork_has_its_own_ranks_and_not_its_parent_s(tmp_path: Path) -> None:
    create_run(tmp_path / "a", SMALL, Knobs(), facts={"launch": "x", **facts_of_ranks(RankCounts(4, 2))}).finish(
        "stopped"
    )
    for name, own in (("one", ALONE), ("two", RankCounts(2, 2))):
        os.close(branch_off(open_run("a", tmp_path), 0, {}, tmp_path / name, facts=facts_of_ranks(own)))
        child = open_run(name, tmp_path)
        assert first_ranks(child.facts) == own
        assert "launch" not in child.facts
        command = "torchrun --standalone --nproc-per-node 2 -m moe_core train --expert-parallel 2 " if own != ALONE else "python -m moe_core train "  # fmt: skip
        assert f"# {command}" in script_of(child)


def test_a_fork_on_ranks_holds_its_lock_from_the_first_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_run(tmp_path / "a", SMALL, Knobs()).finish("stopped")
    begun: list[Any] = []

    def popen(words: list[str], stdin: int, pass_fds: Any, **_: Any) -> Any:
        begun.append((words, os.dup(stdin), pass_fds))
        return SimpleNamespace(pid=os.getpid())

    monkeypatch.setattr(runner.subprocess, "Popen", popen)
    monkeypatch.setattr(runner, "_children", {})
    child = fork(open_run("a", tmp_path), 0, {"k": 1}, steps=9, ranks=RankCounts(2, 2))
    ((words, mailbox, handles),) = begun
    assert (words[words.index("--lock") + 1], handles) == ("0", ())
    assert first_ranks(open_run(child, tmp_path).facts) == RankCounts(2, 2)
    assert is_alive(tmp_path / child)
    assert holder(tmp_path / child / "lock") == os.getpid()
    os.close(mailbox)
    assert not is_alive(tmp_path / child)


def test_a_lock_that_is_mailed_is_held_until_nobody_can_fetch_it(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for fetched in (True, False):
        lock = hold_lock(tmp_path / "run")
        mailbox = post(lock)
        os.close(lock)
        assert is_alive(tmp_path / "run")
        if fetched:
            lock = fetch(mailbox.fileno())
            assert not os.get_inheritable(lock)
            with pytest.raises(ValueError, match="leave it out"):
                fetch(mailbox.fileno())
        mailbox.close()
        assert is_alive(tmp_path / "run") == fetched
        if fetched:
            os.close(lock)
            assert not is_alive(tmp_path / "run")


def test_what_is_no_mailbox_is_refused() -> None:
    with open(os.devnull) as nothing, pytest.raises(ValueError, match="leave it out"):
        fetch(nothing.fileno())


# The log

TORCHRUN = """W1128 14:14:29.889000 7919 torch/distributed/elastic/multiprocessing/api.py:1028] Sending process 7924 closing signal SIGTERM
E1128 14:14:29.953000 7919 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: CODE) local_rank: 1 (pid: 7923) of binary: /bin/python
Traceback (most recent call last):
  File "torch/distributed/run.py", line 1032, in <module>
    main()
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
moe_core FAILED
------------------------------------------------------------
[0]:
  exitcode  : CODE (pid: 7923)
============================================================
"""


def test_what_a_rank_said_is_told_and_not_what_torchrun_says_of_it(tmp_path: Path) -> None:
    log, began = tmp_path / "trainer.log", time.time()
    log.write_text("a note\nmoe: no such data\nother words\n" + TORCHRUN.replace("CODE", "2"))
    assert last_words(tmp_path) == "moe: no such data"
    assert last_problem(tmp_path, began) == "no such data"
    with log.open("a") as file:  # and then it was resumed, and killed
        file.write(TORCHRUN.replace("CODE", "-9"))
    assert last_problem(tmp_path, began) == "rank 1 ended without a word (exit status -9)"
    log.write_text("moe: no room\n" + TORCHRUN.replace("CODE", "1").replace("[0]:\n", "[0]: of many ranks\n" * 500))
    assert last_words(tmp_path) == "moe: no room"
    log.write_text(
        TORCHRUN.replace("CODE", "-9").replace("=" * 60, "=" * 54)
    )  # its rule is as long as its longest line
    assert last_words(tmp_path) == "moe: rank 1 ended without a word (exit status -9)"
    log.write_text("=" * 60 + "\n")
    assert last_words(tmp_path) == "=" * 60
    log.write_text("torch.distributed.elastic.multiprocessing.api.SignalException: Process 8491 got signal: 15\n")
    assert last_problem(tmp_path, began) == "its torchrun was ended by signal 15"


def test_a_failure_on_a_full_disk_says_so_and_no_other_words_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callers tell by NO_WORDS that a trainer is still starting."""
    log, full = tmp_path / "trainer.log", "; this disk is full now, so its last words may be missing"
    for free, more in ((4096, full), (1 << 30, "")):
        monkeypatch.setattr("moe_core.runs.log.shutil.disk_usage", lambda folder, free=free: SimpleNamespace(free=free))
        log.write_text("")
        assert last_words(tmp_path) == NO_WORDS
        assert words_of_failure(tmp_path) == NO_WORDS + more
        log.write_text("W1128 14:14:29.889000 7919 torch/distri")  # the first block of what was printed
        assert last_words(tmp_path) == log.read_text()
        assert words_of_failure(tmp_path) == log.read_text() + more
        log.write_text("moe: no such data\n")
        assert words_of_failure(tmp_path) == "moe: no such data"


# What is left when a run was stopped


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="it asks /proc which processes there are")
def test_what_torchrun_started_ends_with_a_run_that_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is halted after the patience, any after UNTIL_KILLED; what torchrun has not started is not touched."""
    program = tmp_path / "torchrun"
    program.write_text("import subprocess; print(subprocess.Popen(['sleep', '60']).pid, flush=True); input()")
    for halted, longest, patience in ((True, 60.0, 0.2), (False, 0.2, 60.0), (False, 60.0, 0.0)):
        monkeypatch.setattr(processes, "UNTIL_KILLED", longest)
        torchrun = subprocess.Popen([sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert torchrun.stdout
        rank = int(torchrun.stdout.readline())
        found = processes.launched_with(rank)
        assert [process.pid for process in found] == [torchrun.pid, rank]
        if halted:
            for process in found:
                os.kill(process.pid, signal.SIGSTOP)
        processes.end_processes(found, patience)
        assert not there([torchrun.pid, rank])
        torchrun.communicate()
    assert processes.launched_with(os.getpid()) == processes.launched_with(0) == []


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="it asks /proc which processes there are")
@pytest.mark.parametrize("name", ["torchrun", "sweep"])
def test_a_child_that_is_ended_takes_ranks_with_it_and_no_trainers(tmp_path: Path, name: str) -> None:
    """A sweep may have begun trainers before it could be cancelled; they write their checkpoints."""
    program = tmp_path / name
    program.write_text("import subprocess; print(subprocess.Popen(['sleep', '60']).pid, flush=True); input()")
    command = [sys.executable, str(program)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout
    below = int(child.stdout.readline())
    try:
        runner._children[name] = child
        runner.end_child(name)
        assert there([child.pid, below]) == ([below] if name == "sweep" else [])
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(below, signal.SIGKILL)
        child.communicate()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="it asks /proc which processes there are")
def test_a_process_that_cannot_be_killed_is_named_once_the_others_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(pid: int, number: int) -> None:
        if pid == stays.pid:
            raise PermissionError
        ends.send_signal(number)

    stays, ends = subprocess.Popen(["sleep", "60"]), subprocess.Popen(["sleep", "60"])
    monkeypatch.setattr(processes, "os", SimpleNamespace(kill=kill))
    monkeypatch.setattr(processes, "UNTIL_GIVEN_UP", 0.2)
    monkeypatch.setattr(processes, "UNTIL_KILLED", 1.0)
    stays.send_signal(signal.SIGSTOP)  # so it would be killed first
    try:
        with pytest.raises(StoreError, match=rf"cannot be ended; see on this machine why process {stays.pid} stays"):
            processes.end_processes([processes.Process(one.pid, started(one.pid)) for one in (stays, ends)], 0.1)
        assert ends.poll() == -signal.SIGKILL
    finally:
        for one in (stays, ends):
            one.kill()
            one.wait()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="it asks /proc which processes there are")
def test_a_process_has_ended_once_all_of_its_threads_have() -> None:
    """The system lists one without its first thread as ended, and it still holds its locks."""
    code = "import ctypes, threading, time; threading.Thread(target=time.sleep, args=(60,)).start(); ctypes.CDLL(None).pthread_exit(None)"
    child = subprocess.Popen([sys.executable, "-c", code])
    try:
        wait_until(lambda: stat_words(child.pid)[0] == "Z")
        found = processes.Process(child.pid, started(child.pid))
        assert found.state
        processes.end_processes([found], 0.0)
        assert found.state == ""
        assert child.poll() == -signal.SIGKILL
    finally:
        child.kill()
        child.wait()


# A start as the dashboard does it


def below(pid: int) -> list[int]:
    """A process and all that it has started."""
    found = [pid]
    for process in found:
        found += map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split())
    return found


def there(pids: list[int]) -> list[int]:
    """Which of these processes run: not those that have ended, and that nobody has asked for."""
    runner.reap()
    states = {pid: Path(f"/proc/{pid}/stat") for pid in pids}
    return [
        pid for pid, path in states.items() if path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z"
    ]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="it asks /proc which processes there are")
def test_two_ranks_are_started_stopped_and_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE_RUNS", str(tmp_path))
    monkeypatch.setattr(ranks, "cores", lambda: 2)
    run_id = starting.start(
        SMALL, Knobs(speed_limit=50), "dashboard", RankCounts(2, 2)
    )  # the other tests have a core too
    begun = starting.unstarted(run_id)
    assert begun
    assert "sent_bytes" in begun.description.measures
    run = wait_ready(run_id, 60)
    assert run.description == begun.description
    trains(run, 5)
    first = below(runner._children[run_id].pid)
    assert len(first) == 3
    assert run.status().pid in first[1:]
    run.turn("me", {"noise": 0.5})
    wait_until(lambda: run.knob_changes()[-1].step is not None)
    os.kill(first[0], signal.SIGSTOP)  # torchrun, which would stay for ever
    assert stop(run) == ""
    assert not there(first)
    assert (run.state, is_running(run_id), ranks_again(run.deals, run.facts)) == ("stopped", False, RankCounts(2, 2))

    last = run.steps()[1]
    resume(run, last + 20, ranks=ranks_again(run.deals, run.facts))
    assert is_alive(run.path)  # at once, and until it has ended
    second = below(runner._children[run_id].pid)
    assert holder(run.path / "lock") == second[0]
    held = []
    wait_until(lambda: (held.append(is_alive(run.path)), run.state == "finished")[1])
    assert all(held[:-2])
    assert run.steps()[1] == last + 20
    wait_until(lambda: not there(second) and not is_running(run_id))
    place = next(c.start for c in run.layout if c.stat == "sent_bytes")
    assert (run.rows(1, last + 20)[:, place] > 0).all()


def trains(run: Run, steps: int) -> None:
    wait_until(lambda: run.steps()[1] >= steps, 60)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="it asks /proc which processes there are")
def test_ranks_that_cannot_share_a_run_say_so_and_leave_nothing(tmp_path: Path) -> None:
    run_id = start(Config.for_task("plane", num_experts=3), Knobs(), tmp_path, ranks=RankCounts(2, 2))
    process, pids = runner._children[run_id], list[int]()
    with contextlib.suppress(OSError):  # it has ended
        while len(pids) < 3:
            pids = below(process.pid)
            time.sleep(0.02)
    assert len(pids) == 3
    with pytest.raises(StoreError, match=r"did not start: moe: expert_parallel must divide num_experts \(3\), got 2"):
        wait_ready(run_id, 60, tmp_path)
    assert not there(pids)


def test_torchrun_is_ended_with_its_rank_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or it would start the ranks again, and a run that somebody stopped would go on."""
    sent, ended, answers = list[tuple[int, int]](), list[Any](), iter([False, False, True])
    launched = [Process(11, "1"), Process(12, "2"), Process(13, "3")]
    monkeypatch.setattr(runner, "launched_with", lambda rank: launched)
    monkeypatch.setattr(Process, "state", "S")
    monkeypatch.setattr(runner, "trainer_of", lambda run: 12)
    monkeypatch.setattr(runner, "_ended_within", lambda *_: next(answers))
    monkeypatch.setattr(runner, "end_processes", lambda *given: ended.append(given))
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    assert runner._wait_for_end(SimpleNamespace(id="a"), 1, 3.0) == "SIGKILL"  # type: ignore[arg-type]
    assert sent == [(11, signal.SIGTERM), (12, signal.SIGTERM), (11, signal.SIGKILL), (12, signal.SIGKILL)]
    assert ended == [(launched, 3.0)]
