"""Throughput by batch size: a small benchmark in a process of its own, whose output file holds the results, shows the
progress and is the lock.

The file holds the JSON lines of `bench batch`. The process inherits it, locked, as its standard output, so the lock
lives as long as the process does, even if the process that started it has ended. A result that is whole lies beside it while
the next is measured, so that it is there again if the next one is cancelled or fails.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moe_core.folders import ABOVE
from moe_core.runs.limits import SIDE, read_json, read_side
from moe_core.runs.locks import OURS, is_locked, is_ours, started_with
from moe_core.schema import Config

# Seconds after a measurement was asked to end: it is killed, and the stop is given up.
UNTIL_KILLED, UNTIL_GIVEN_UP = 3.0, 10.0
LINES = 1000  # in the file of a measurement: ours have some twenty, or more where torch explains an error
RANK = "moe_core.benchmarks.one_rank"  # the program of the ranks that `bench ranks` starts


class Measured(NamedTuple):
    """Tokens a second of one layer, forward and backward, at each batch size measured so far.

    tokens (m,), per_second (m,); of: how many sizes there will be; problem: why the latest measurement ended early, "" if it did
    not; earlier: this is the whole result before it; progress: how far the latest is, from 0 to 1, and in words.
    """

    tokens: NDArray[np.int64]
    per_second: NDArray[np.float64]
    of: int
    running: bool
    problem: str
    pid: int
    machine: str
    earlier: bool = False
    progress: tuple[float, str] = (0.0, "Starting")


class Printed(NamedTuple):
    """The events of a measurement. shown: the newest complete measurement, or what the latest has found if none is complete;
    latest: of the one that runs or ran last; problem: why that one ended early, "" if it did not."""

    shown: list[dict[str, Any]]
    latest: list[dict[str, Any]]
    running: bool
    problem: str

    @property
    def earlier(self) -> bool:
        """Whether the result is of a measurement before the latest."""
        return self.shown is not self.latest


Stamp = tuple[int, int, int]  # of a file: when it was written last, its size and its number
NOTHING_MEASURED = Measured(np.empty(0, np.int64), np.empty(0), 0, False, "", 0, "")


def bench_file(runs: Path, config: Config, k: int, device: str, threads: int) -> Path:
    """The file of the measurement for these sizes, which runs of the same shape share."""
    name = f"batch-d{config.d_model}-h{config.d_hidden}-E{config.num_experts}-k{k}-{device.replace(':', '')}-t{threads}"
    return runs / "bench" / f"{name}.jsonl"


def measured(path: Path) -> Measured:
    """The measurement so far; NOTHING_MEASURED's values if there is no file."""
    printed = read_printed(path)
    latest = sizes_in(printed.latest)
    found = sizes_in(printed.shown) if printed.earlier else latest
    done, left = len(latest.tokens), f", about {latest.of - len(latest.tokens)} s left"  # each size takes a second
    words = f"{done} of {latest.of} batch sizes{left}" if latest.of else "Starting"
    return found._replace(
        running=printed.running,
        problem=printed.problem,
        pid=latest.pid,
        earlier=printed.earlier,
        progress=(done / max(latest.of, 1), words),
    )


def sizes_in(events: list[dict[str, Any]]) -> Measured:
    """The events that `bench batch --json` prints as arrays."""
    sizes, begun = dict[int, float](), dict[str, Any]()
    for event in events:
        with contextlib.suppress(ValueError, LookupError, TypeError):  # a line that was changed by hand
            if event["event"] == "size":
                sizes[int(event["tokens"])] = float(event["tokens_per_second"])
            elif event["event"] == "start":
                begun = {"of": len(event["sizes"]), "pid": int(event["pid"]), "machine": str(event.get("machine", ""))}
    tokens, per_second = np.array(list(sizes), np.int64), np.array(list(sizes.values()), np.float64)
    return NOTHING_MEASURED._replace(tokens=tokens, per_second=per_second, **begun)


def read_printed(path: Path) -> Printed:
    """The events that a measurement has printed so far, whether it runs, and why it ended early."""
    running = is_locked(path)
    latest, words = printed_in(path)
    if is_whole(latest):
        return Printed(latest, latest, running, "")
    stamp = stamp_of(path)
    early = "" if running or not stamp or not (stamp[1] or words) else words or "stopped before it was done"
    return Printed(earlier_in(path) or latest, latest, running, early)


def earlier_file(path: Path) -> Path:
    """Where the last whole result lies while the next is measured."""
    return path.with_suffix(".earlier")


def earlier_in(path: Path) -> list[dict[str, Any]]:
    """The events of the last whole result before the latest measurement; [] if there is none."""
    events, _ = printed_in(earlier_file(path))
    return events if is_whole(events) else []


def is_whole(events: list[dict[str, Any]]) -> bool:
    return any(event["event"] == "end" for event in events)


def printed_in(path: Path) -> tuple[list[dict[str, Any]], str]:
    """The events in a file, and what it says beside them or why it cannot be read."""
    stamp = stamp_of(path)
    if not stamp:
        return [], ""
    try:
        return events_of(path, stamp)
    except (ValueError, OSError) as error:
        return [], str(error)


def stamp_of(path: Path) -> Stamp | None:
    """What changes whenever something is written to a file; None if there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


@lru_cache(maxsize=16)
def events_of(path: Path, stamp: Stamp) -> tuple[list[dict[str, Any]], str]:
    """The events in a file and what it says beside them, read once as long as it has this stamp. ValueError for more than LINES lines, and
    ValueError and OSError as read_side."""
    events, words, lines = list[dict[str, Any]](), "", read_side(path, SIDE).decode(errors="replace").splitlines()
    if len(lines) > LINES:
        raise ValueError(f"it has more than {LINES:,} lines")
    for line in lines:
        try:
            event = read_json(line)
            events += [event] if isinstance(event["event"], str) else []
        except (ValueError, LookupError, TypeError):
            words = line.strip()[-200:] or words  # what it said of an error is not an event
    return events, words


def start_measuring(path: Path, config: Config, k: int, device: str, threads: int, seconds: float = 1.0) -> bool:
    """Start the measurement; False if it is under way already."""
    options: dict[str, Any] = {
        "d-model": config.d_model, "d-hidden": config.d_hidden, "num-experts": config.num_experts, "k": k,
        "device": device, "threads": threads, "seconds": seconds,
    }  # fmt: skip
    return start_bench(
        path, ["batch", *(part for name, value in options.items() for part in (f"--{name}", str(value)))]
    )


def start_bench(path: Path, words: list[str]) -> bool:
    """Start `bench WORDS --json` with the file, locked, as its output; False if one is under way there already. What is there and
    is whole remains the result until the new one is whole too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | OURS, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return False
    try:
        keep_whole(path)
        os.ftruncate(handle, 0)
        process = subprocess.Popen(
            [sys.executable, "-m", "moe_core", "bench", *words, "--json"],
            stdin=subprocess.DEVNULL,
            stdout=handle,
            stderr=handle,
            start_new_session=True,
            cwd=ABOVE,
        )
    finally:
        os.close(handle)
    for one, begun in list(_started.items()):  # another thread may start or forget one meanwhile
        if begun.poll() is not None:
            _started.pop(one, None)
    _started[path] = process
    return True


# Those that this process started, by their files, so that one which ended is not left as a zombie.
_started: dict[Path, subprocess.Popen[bytes]] = {}


def keep_whole(path: Path) -> None:
    """Put the file's result aside, if it is whole. It is written beside its place and moved there, so what lies there is whole too."""
    events, _ = printed_in(path)
    if is_whole(events):
        draft = path.with_suffix(".draft")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | OURS, 0o644)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(read_side(path, SIDE))
            draft.replace(earlier_file(path))
        except OSError:
            draft.unlink(missing_ok=True)
            raise


def stop_measuring(path: Path) -> bool:
    """Stop a measurement that is under way, with each of its processes: it is asked to, and what still runs UNTIL_KILLED seconds later is
    killed. What it has found is kept. Returns whether all have ended; a measurement that is begun meanwhile goes on.

    The lock tells whether any of them lives, also before the first has said which process it is.
    """
    began, asked, last = time.monotonic(), set[int](), set[int]()
    while is_locked(path):
        waited, there = time.monotonic() - began, {*processes_of(path)}
        # One begins only when all of the one before have ended: so if none of those of the last look is left, these are another's.
        if last and there and not last & there:
            return True
        if waited > UNTIL_GIVEN_UP:
            return False
        last = there or last
        for pid in there:
            if waited > UNTIL_KILLED:
                send(pid, signal.SIGKILL)
            elif pid not in asked and is_ours(pid, "bench"):  # which ends its ranks
                send(pid, signal.SIGTERM)
                asked.add(pid)
        time.sleep(0.02)
    return True


def processes_of(path: Path) -> Iterator[int]:
    """The processes of a measurement that is under way: those that have the file as their standard output. Without /proc only the first
    process is known; its ranks end once it has ended."""
    if not Path("/proc/self/fd").exists():
        known = _started.get(path)
        pids = [event.get("pid") for event in printed_in(path)[0] if event["event"] == "start"]
        pid = known.pid if known and known.poll() is None else pids[-1] if pids else None
        if isinstance(pid, int) and is_ours(pid, "bench"):
            yield pid
        return
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            same, pid = os.path.samestat((folder / "fd" / "1").stat(), path.stat()), int(folder.name)
            if same and (is_ours(pid, "bench") or is_rank(pid)):
                yield pid


def is_rank(pid: int) -> bool:
    """Whether a process is a rank of a measurement on several devices."""
    return started_with(pid, lambda words: RANK.encode() in words)


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may have ended meanwhile."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
