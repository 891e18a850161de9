"""Start, find and stop a trainer: a process of its own that outlives the page which started it."""

import contextlib
import os
import re
import secrets
import signal
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
from moe_core.runs.locks import OURS, holder, is_ours, sign
from moe_core.runs.log import LOG, last_words
from moe_core.runs.rows import ENDED, Status
from moe_core.runs.store import Run
from moe_core.schema import Config, Knobs

LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"  # none that looks like another
RUN_ID = r"\w[\w.-]{0,99}"  # of a folder, a link, and a socket's path
PATIENCE = 5.0  # seconds between asking a trainer to stop, SIGTERM, and SIGKILL
ENDING = 60.0  # and for one that answers


def new_id(runs: str | Path | None, config: Config) -> str:
    """An id that no run has: task, date, time and four random letters, such as text-1124-0931-k7f2."""
    while True:
        tail = "".join(secrets.choice(LETTERS) for _ in range(4))
        name = f"{config.task}-{time.strftime('%m%d-%H%M')}-{tail}"
        if not (runs_folder(runs) / name).exists():
            return name


def checked_id(run_id: str) -> str:
    """The name as it is, if a run may have it: one folder in the runs' folder, and a word in a link. StoreError if not."""
    if not re.fullmatch(RUN_ID, run_id):
        raise StoreError(
            f"a run's name is letters, digits, dots, dashes and underscores, at most 100, none of - and . first, got {run_id!r}"
        )
    return run_id


def flags(config: Config, knobs: Knobs) -> list[str]:
    """The command line that says the same: every field, by name. `train` reads it back."""
    words: list[str] = []
    for settings in (config, knobs):
        for f in fields(settings):
            value = getattr(settings, f.name)
            if value in ((), ""):
                continue
            flag = "--" + f.name.replace("_", "-")
            if isinstance(value, tuple):
                words += [f"{flag}={part}" for part in value]  # a column may be called -x, or nothing
            else:
                words += [flag, repr(value) if isinstance(value, float) else str(value)]
    return words


def cores() -> int:
    """The processor's cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment() -> dict[str, str]:
    """The trainer's: memory is kept instead of returned to the system, which took a third of a small model's step."""
    kept = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 30), "MALLOC_TOP_PAD_": str(64 << 20)}
    return {**kept, **os.environ}


def start(
    config: Config,
    knobs: Knobs,
    runs: str | Path | None = None,
    who: str = "dashboard",
    run_id: str | None = None,
) -> str:
    """Start a trainer in a session of its own and return its run's id at once. Its words go to trainer.log beside run.db."""
    folder = runs_folder(runs).absolute()
    run_id = run_id or new_id(folder, config)
    (folder / run_id).mkdir(parents=True)
    words = ["train", "--runs", str(folder), "--run-id", run_id, "--who", who, *flags(whole_paths(config), knobs)]
    spawn(run_id, words, folder / run_id / LOG)
    return run_id


def whole_paths(config: Config) -> Config:
    """The same data wherever a trainer works: one that resumes a run may be started from another folder."""
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
) -> str:
    """Start a trainer that goes on from step `at` of a run with some knobs turned; its run's id at once.

    The new run lies beside its parent, unless `runs` says where; moved: where the run's data lie now. ValueError, and nothing is written, as branch_off says.
    """
    folder = (runs_folder(runs) if runs else run.path.parent).absolute()
    run_id = run_id or new_id(folder, run.config)
    _go_on(folder / run_id, branch_off(run, at, changes, folder / run_id, steps, who), None, who, moved)
    return run_id


def resume(run: Run, steps: int | None = None, who: str = "dashboard") -> None:
    """Start a trainer that resumes a run that has ended or was interrupted. StoreError if one trains it already."""
    _go_on(run.path.absolute(), hold_lock(run.path), steps, who)


def _go_on(folder: Path, lock: int, steps: int | None, who: str, moved: Mapping[str, Any] = {}) -> None:
    """The lock is handed to the trainer, so that the run never looks as if nobody cared for it."""
    try:
        words = ["train", "--resume", str(folder), "--lock", str(lock), "--who", who]
        words += [] if steps is None else ["--steps", str(steps)]
        words += ["--text", *moved["text"]] if "text" in moved else []
        words += ["--data", moved["data"]] if "data" in moved else []
        spawn(folder.name, words, folder / LOG, (lock,))
        sign(lock, _children[folder.name].pid)
    finally:
        os.close(lock)


def spawn(name: str, words: list[str], log: Path, handles: tuple[int, ...] = ()) -> None:
    """Run `python -m moe_core WORDS` in a session of its own, so that it outlives this process; known here by its name."""
    try:
        out = open(log, "ab", opener=lambda path, flags: os.open(path, flags | OURS, 0o644))  # noqa: SIM115
    except OSError as error:
        raise StoreError(f"{name} cannot be started: {log.name} cannot be written: {error.strerror}") from None
    with out:
        _children[name] = subprocess.Popen(
            [sys.executable, "-m", "moe_core", *words],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment(),
            cwd=ABOVE,
            pass_fds=handles,
        )


# What this process started, so that a process which ended is not left as a zombie.
_children: dict[str, subprocess.Popen[bytes]] = {}


def is_running(name: str, runs: str | Path | None = None) -> bool:
    """Whether a process of this name runs: a child of ours, from its first moment, or anyone's that holds the lock."""
    process = _children.get(name)
    return (process is not None and process.poll() is None) or is_alive(runs_folder(runs) / name)


def end_child(name: str, patience: float = PATIENCE) -> None:
    """End a child that has no record yet by which it could be asked: SIGTERM, and after patience seconds SIGKILL."""
    process = _children.get(name)
    if process is None or process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def reap() -> None:
    for name, process in list(_children.items()):
        if process.poll() is not None:
            del _children[name]


def wait_ready(run_id: str, timeout: float = 30.0, runs: str | Path | None = None) -> Run:
    """The run once its trainer has made it. StoreError with the trainer's last words if it ends before, or takes too long."""
    folder = runs_folder(runs) / run_id
    until = time.monotonic() + timeout
    while not (folder / "run.db").exists():
        process = _children.get(run_id)
        if (process is not None and process.poll() is not None) or time.monotonic() > until:
            raise StoreError(f"the trainer of {run_id} did not start: {last_words(folder)}")
        time.sleep(0.02)
    return open_run(folder)


def stop(run: Run, patience: float | None = None, who: str = "runner") -> str:
    """Ask the trainer to stop and wait until it has; to one that does not answer for patience seconds SIGTERM, and after as
    many again SIGKILL, to its own process only. Returns "" if it obeyed, else the signal that ended it."""
    if not is_alive(run.path):
        return ""
    asked = 0
    with contextlib.suppress(StoreError):  # a frozen one may keep everybody from writing
        asked = run.command("stop", who)
    return _see_it_end(run, asked, PATIENCE if patience is None else patience)


def stop_later(run: Run, who: str = "dashboard") -> None:
    """As stop(), but a thread does the waiting."""
    asked = run.command("stop", who)

    def see() -> None:
        with contextlib.suppress(StoreError):  # the page then shows that it does not answer
            own = Run(run.path)
            try:
                _see_it_end(own, asked, PATIENCE)
            finally:
                own.close()

    threading.Thread(target=see, name=f"stop {run.id}", daemon=True).start()


def _see_it_end(run: Run, asked: int, patience: float) -> str:
    if _ended_within(run, asked, patience):
        return ""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not (pid := trainer_of(run)):
            break
        os.kill(pid, number)
        if _ended_within(run, asked, patience):
            return number.name
    raise StoreError(f"the trainer of {run.id} cannot be stopped; its process is {run.status().pid}")


def trainer_of(run: Run) -> int:
    """The process that trains a run, if it is one of ours; else 0. Its lock says which; where it does not, its record does."""
    named = holder(run.path / "lock")
    pid = run.status().pid if named is None else named
    return pid if is_alive(run.path) and is_ours(pid, "train", "fork") else 0


def _ended_within(run: Run, asked: int, patience: float) -> bool:
    """Whether the trainer ends within patience seconds. One that gives signs of life, or has obeyed, has ENDING seconds: a
    step, or a checkpoint on a slow disk, may take its time."""
    began = time.monotonic()
    while is_alive(run.path):
        status = run.status()
        if status.state in ENDED:
            run.close()  # or it could not seal its file
        waited = time.monotonic() - began
        if waited > patience and (waited > ENDING or not _answers(run, asked, status, patience)):
            return False
        time.sleep(0.02)
    return True


def _answers(run: Run, asked: int, status: Status, patience: float) -> bool:
    obeyed = any(command.id == asked and command.step is not None for command in run.commands())
    return obeyed or status.heartbeat_age < patience
