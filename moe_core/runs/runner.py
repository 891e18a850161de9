"""Start, find and stop a trainer: a process of its own that outlives the page which started it."""

import contextlib
import json
import os
import re
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from moe_core.folders import ABOVE
from moe_core.runs.branch import branch_off
from moe_core.runs.database import StoreError, hold_lock, is_alive
from moe_core.runs.listing import open_run, runs_folder
from moe_core.runs.locks import holder, is_ours, post, sign
from moe_core.runs.log import LOG, open_log, words_of_failure
from moe_core.runs.processes import end_processes, is_torchrun, launched_with, processes_below
from moe_core.runs.ranks import ALONE, RankCounts, command_words, facts_of_ranks, python_words
from moe_core.runs.rows import ENDED, Status
from moe_core.runs.store import Run
from moe_core.schema import Config, Knobs, exact_text

LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"  # none that is easily mistaken for another
RUN_ID = r"\w[\w.-]{0,99}"  # it is part of a folder's name, a link, and a socket's path
DEMO = "watch-demo"  # the command, and the beginning of its runs' names
LONGEST_NAME = 200  # bytes; a disk takes 255, and files beside the folder have its name and some letters more
PATIENCE = 5.0  # seconds between asking a trainer to stop, SIGTERM, and SIGKILL
ENDING = 60.0  # the same for a trainer that still answers
NAMING = 15.0  # seconds more on ranks, after SIGTERM: a rank that hangs ends itself, and rank 0 names it (parallel/stopping.py)


def new_id(runs: str | Path | None, what: str) -> str:
    """An id that no run has: what it trains, date, time and four random letters, such as text-1124-0931-k7f2."""
    while True:
        tail = "".join(secrets.choice(LETTERS) for _ in range(4))
        name = f"{what}-{time.strftime('%m%d-%H%M')}-{tail}"
        if not (runs_folder(runs) / name).exists():
            return name


def checked_id(run_id: str) -> str:
    """The name as it is, if a run may have it: one folder in the runs' folder, and a word in a link. StoreError if not."""
    if not isinstance(run_id, str) or not re.fullmatch(RUN_ID, run_id) or len(run_id.encode()) > LONGEST_NAME:
        raise StoreError(
            f"a run's name is letters, digits, dots, dashes and underscores, at most 100 (200 bytes), none of - and . first, got {run_id!r}"
        )
    return run_id


def flags(config: Config, knobs: Knobs) -> list[str]:
    """The command line of these settings: every field, by name. `train` reads it back."""
    return [*words_of(config), *words_of(knobs)]


def words_of(settings: Config | Knobs, usual: Config | Knobs | None = None) -> list[str]:
    """The flags of one of both. usual: leave out what is as there."""
    words: list[str] = []
    for f in fields(settings):
        value = getattr(settings, f.name)
        if value in ((), "") or (usual and value == getattr(usual, f.name)):
            continue
        flag = "--" + f.name.replace("_", "-")
        if isinstance(value, tuple):
            words += [f"{flag}={part}" for part in value]  # a column may be called -x, or nothing
        else:
            word = exact_text(value) if isinstance(value, float) else str(value)
            words += [f"{flag}={word}"] if word.startswith("-") else [flag, word]
    return words


def command_of(config: Config, knobs: Knobs, ranks: RankCounts = ALONE) -> str:
    """The command line that trains the same, to copy: what differs from a task's defaults. `train` reads it back."""
    usual = Config.for_task(config.task)
    words = ["train", "--task", config.task, *words_of(whole_paths(config), usual), *words_of(knobs, Knobs())]
    return shlex.join(command_words(words, ranks))


def environment(ranks: RankCounts = ALONE) -> dict[str, str]:
    """The trainer's environment: malloc keeps memory instead of returning it, which took a third of a small model's step. Each of
    several ranks has one thread, which torchrun would choose too, but with a warning in the log."""
    malloc = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 30), "MALLOC_TOP_PAD_": str(64 << 20)}
    threads = {} if ranks == ALONE else {"OMP_NUM_THREADS": "1"}
    return {**malloc, **threads, **os.environ}


def start(
    config: Config,
    knobs: Knobs,
    runs: str | Path | None = None,
    who: str = "dashboard",
    run_id: str | None = None,
    ranks: RankCounts = ALONE,
) -> str:
    """Start a trainer in a session of its own, or several ranks that train together, and return its run's id at once. What it
    prints goes to trainer.log beside run.db. The id of a lesson's run begins with the lesson, so that every list can tell it."""
    what = who.replace(" ", "-") if who.startswith("lesson ") else config.task
    words = ["train", "--who", who, *flags(whole_paths(config), knobs)]
    return _spawn_new(words, runs, run_id or new_id(runs, what), ranks)


def start_demo(runs: str | Path | None = None) -> str:
    """Start the example of a model that is watched, as start() does a trainer of ours."""
    return _spawn_new([DEMO], runs, new_id(runs, DEMO))


def _spawn_new(words: list[str], runs: str | Path | None, run_id: str, ranks: RankCounts = ALONE) -> str:
    folder = runs_folder(runs).absolute()
    (folder / run_id).mkdir(parents=True)
    words, log = [*words, "--runs", str(folder), "--run-id", run_id], folder / run_id / LOG
    # torchrun starts ranks of its own: what has loaded torch ahead waits on for a run of one process.
    if words[0] == "train" and ranks == ALONE and (process := _hand_over(words[1:], log)):
        _children[run_id] = process
    else:
        spawn(run_id, words, log, ranks=ranks)
    return run_id


def load_torch_ahead(runs: str | Path | None = None) -> None:
    """Let a process load torch and wait, so that the next start() trains at once: loading takes most of a start. It ends when it
    was not needed for ten minutes, or when this process ends."""
    global _ahead
    with _ahead_lock:
        if _ahead and _ahead.poll() is None:
            return
        if _ahead and _ahead.stdin:
            _ahead.stdin.close()
        _ahead = subprocess.Popen(
            [sys.executable, "-m", "moe_core", "train", "--wait", "--runs", str(runs_folder(runs).absolute())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=environment(),
            cwd=ABOVE,
        )


def _hand_over(words: list[str], log: Path) -> subprocess.Popen[bytes] | None:
    """The process that has loaded torch ahead, told what to train; None if there is none."""
    global _ahead
    with _ahead_lock:
        process, _ahead = _ahead, None
    if process is None or process.stdin is None or process.stdin.closed:
        return None
    try:
        with process.stdin as pipe:
            # By its log a page knows that a trainer starts; the process opens it only once it has loaded torch.
            os.close(open_log(log))
            pipe.write(json.dumps({"words": words, "log": str(log)}).encode() + b"\n")
    except OSError:  # it has ended, or the log cannot be written, which spawn() then says
        return None
    return process if process.poll() is None else None


def whole_paths(config: Config) -> Config:
    """The config with absolute paths of its data: a trainer that resumes the run may be started from another folder."""
    text = tuple(os.path.abspath(path) for path in config.text)
    return replace(config, text=text, data=config.data and os.path.abspath(config.data))


def fork(
    run: Run,
    at: int,
    changes: Mapping[str, Any],
    runs: str | Path | None = None,
    steps: int | None = None,
    run_id: str | None = None,
    who: str = "fork",
    moved: Mapping[str, Any] = {},
    ranks: RankCounts = ALONE,
) -> str:
    """Start a trainer, or ranks, that go on from step `at` of a run with some knobs turned; its run's id at once.

    The new run lies beside its parent, unless `runs` says where; moved: the present paths of the run's data. ValueError,
    and nothing is written, as branch_off says.
    """
    folder = (runs_folder(runs) if runs else run.path.parent).absolute()
    run_id = run_id or new_id(folder, run.config.task)
    lock = branch_off(run, at, changes, folder / run_id, steps, who, facts_of_ranks(ranks))
    _spawn_resume(folder / run_id, lock, None, who, moved, ranks)
    return run_id


def resume(run: Run, steps: int | None = None, who: str = "dashboard", ranks: RankCounts = ALONE) -> None:
    """Start a trainer, or ranks, that resume a run that has ended or was interrupted. StoreError if it is trained already."""
    _spawn_resume(run.path.absolute(), hold_lock(run.path), steps, who, {}, ranks)


def _spawn_resume(
    folder: Path, lock: int, steps: int | None, who: str, moved: Mapping[str, Any] = {}, ranks: RankCounts = ALONE
) -> None:
    """Start the trainer, which inherits the lock: there is no moment in which nobody holds it and the run looks
    interrupted. torchrun would keep it, so there it goes to the first rank by mail."""
    words = ["--who", who]
    words += [] if steps is None else ["--steps", str(steps)]
    words += ["--text", *moved["text"]] if "text" in moved else []
    words += ["--data", moved["data"]] if "data" in moved else []
    with contextlib.ExitStack() as open_here:
        open_here.callback(os.close, lock)
        mailbox = None if ranks == ALONE else open_here.enter_context(post(lock))
        handle, handles = (lock, (lock,)) if mailbox is None else (0, ())
        words = ["train", "--resume", str(folder), "--lock", str(handle), *words]
        spawn(folder.name, words, folder / LOG, handles, ranks, mailbox)
        sign(lock, _children[folder.name].pid)


def spawn(
    name: str,
    words: list[str],
    log: Path,
    handles: tuple[int, ...] = (),
    ranks: RankCounts = ALONE,
    stdin: socket.socket | None = None,
) -> None:
    """Run `python -m moe_core WORDS` in a session of its own, so that it outlives this process, several ranks below torchrun. It is
    kept in _children under its name."""
    try:
        out = os.fdopen(open_log(log), "ab")
    except OSError as error:
        raise StoreError(f"{name} cannot be started: {log.name} cannot be written: {error.strerror}") from None
    with out:
        _children[name] = subprocess.Popen(
            [sys.executable, *python_words(words, ranks)],
            stdin=subprocess.DEVNULL if stdin is None else stdin.fileno(),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment(ranks),
            cwd=ABOVE,
            pass_fds=handles,
        )


_ahead: subprocess.Popen[bytes] | None = None  # what load_torch_ahead() started, until it is told what to train
_ahead_lock = threading.Lock()  # several pages may load ahead or start at once

# The processes that this one started, so that none is left as a zombie when it ends.
_children: dict[str, subprocess.Popen[bytes]] = {}


def is_running(name: str, runs: str | Path | None = None) -> bool:
    """Whether a process of this name runs: a child of ours, from its first moment, or anyone's that holds the lock."""
    process = _children.get(name)
    return (process is not None and process.poll() is None) or is_alive(runs_folder(runs) / name)


def end_child(name: str, patience: float = PATIENCE) -> None:
    """End a child that has no record yet, and so cannot be sent a stop: SIGTERM, and after patience seconds SIGKILL. The ranks of a torchrun are
    killed then; what any other child has started goes on: a sweep may have begun runs meanwhile. StoreError as end_processes says."""
    process = _children.get(name)
    if process is None or process.poll() is not None:
        return
    ranks = processes_below(process.pid) if is_torchrun(process.pid) else []
    process.terminate()
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    end_processes(ranks, 0.0)


def reap() -> None:
    for name, process in list(_children.items()):
        if process.poll() is not None:
            del _children[name]


def wait_ready(run_id: str, timeout: float = 30.0, runs: str | Path | None = None) -> Run:
    """The run, once its trainer has created it. StoreError with the trainer's last words if it ends before, or takes too long."""
    folder = runs_folder(runs) / run_id
    until = time.monotonic() + timeout
    while not (folder / "run.db").exists():
        process = _children.get(run_id)
        if (process is not None and process.poll() is not None) or time.monotonic() > until:
            raise StoreError(f"the trainer of {run_id} did not start: {words_of_failure(folder)}")
        time.sleep(0.02)
    return open_run(folder)


def stop(run: Run, patience: float | None = None, who: str = "runner") -> str:
    """Ask the trainer to stop and wait until it has. Returns "" if it obeyed, else the name of the signal that ended it.

    If it does not answer for `patience` seconds its process gets SIGTERM, and after as many again (on ranks NAMING more) SIGKILL. A torchrun
    that started it gets the same signals, and its other ranks on this machine are ended too. StoreError if something cannot be ended.
    """
    if not is_alive(run.path):
        return ""
    command = 0
    with contextlib.suppress(StoreError):  # a frozen trainer may keep everybody from writing
        command = run.command("stop", who)
    return _wait_for_end(run, command, PATIENCE if patience is None else patience)


def stop_later(run: Run, who: str = "dashboard") -> None:
    """As stop(), but returns at once: a thread waits."""
    command = run.command("stop", who)

    def wait() -> None:
        with contextlib.suppress(StoreError):  # the page then shows that it does not answer
            reader = Run(run.path)
            try:
                _wait_for_end(reader, command, PATIENCE)
            finally:
                reader.close()

    threading.Thread(target=wait, name=f"stop {run.id}", daemon=True).start()


def _wait_for_end(run: Run, command: int, patience: float) -> str:
    launched = launched_with(trainer_of(run))
    if _ended_within(run, command, patience):
        end_processes(launched, patience)
        return ""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not (pid := trainer_of(run)):
            break
        # torchrun too, and first: it would start the ranks again, and the run would go on.
        for one in (*(process.pid for process in launched[:1] if process.state), pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, number)
        if _ended_within(run, command, patience + (NAMING if launched else 0.0)):
            end_processes(launched, patience)
            return number.name
    raise StoreError(f"the trainer of {run.id} cannot be stopped; its process is {run.status().pid}")


def trainer_of(run: Run) -> int:
    """The process that trains a run, if it is one of ours; else 0. The lock's file names it, else the record does."""
    named = holder(run.path / "lock")
    pid = run.status().pid if named is None else named
    return pid if is_alive(run.path) and is_ours(pid, "train", "fork", DEMO) else 0


def _ended_within(run: Run, command: int, patience: float) -> bool:
    """Whether the trainer ends within patience seconds. One whose heartbeat goes on, or that has obeyed, is given ENDING
    seconds: a step, or a checkpoint on a slow disk, may take long."""
    began = time.monotonic()
    while is_alive(run.path):
        status = run.status()
        if status.state in ENDED:
            run.close()  # or it could not seal its file
        waited = time.monotonic() - began
        if waited > patience and (waited > ENDING or not _answers(run, command, status, patience)):
            return False
        time.sleep(0.02)
    return True


def _answers(run: Run, command: int, status: Status, patience: float) -> bool:
    obeyed = any(row.id == command and row.step is not None for row in run.commands())
    return obeyed or status.heartbeat_age < patience
