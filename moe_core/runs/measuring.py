"""Throughput by batch size: a small benchmark in a process of its own, whose output file holds the results, shows the
progress and is the lock.

The file holds the JSON lines of `bench batch`. The process inherits it, locked, as its standard output, so the lock
lives as long as the process does, even if the process that started it has ended.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moe_core.folders import ABOVE
from moe_core.runs.limits import SIDE, read_json, read_side
from moe_core.runs.locks import OURS, is_locked, is_ours
from moe_core.schema import Config


class Measured(NamedTuple):
    """Tokens a second of one layer, forward and backward, at each batch size measured so far.

    tokens (m,), per_second (m,); of: how many sizes there will be; problem: why it ended early, "" if it did not.
    """

    tokens: NDArray[np.int64]
    per_second: NDArray[np.float64]
    of: int
    running: bool
    problem: str
    pid: int
    machine: str


Stamp = tuple[int, int, int]  # of a file: when it was written last, its size and its number
NOTHING_MEASURED = Measured(np.empty(0, np.int64), np.empty(0), 0, False, "", 0, "")


def bench_file(runs: Path, config: Config, k: int, device: str, threads: int) -> Path:
    """The file of the measurement for these sizes, which runs of the same shape share."""
    name = f"batch-d{config.d_model}-h{config.d_hidden}-E{config.num_experts}-k{k}-{device.replace(':', '')}-t{threads}"
    return runs / "bench" / f"{name}.jsonl"


def measured(path: Path) -> Measured:
    """The measurement so far; NOTHING_MEASURED's values if there is no file."""
    events, running, problem = read_events(path)
    sizes, begun = dict[int, float](), dict[str, Any]()
    for event in events:
        with contextlib.suppress(ValueError, LookupError, TypeError):  # a line that was changed by hand
            if event["event"] == "size":
                sizes[int(event["tokens"])] = float(event["tokens_per_second"])
            elif event["event"] == "start":
                begun = {"of": len(event["sizes"]), "pid": int(event["pid"]), "machine": str(event.get("machine", ""))}
    return Measured(
        np.array(list(sizes), np.int64),
        np.array(list(sizes.values()), np.float64),
        begun.get("of", 0),
        running,
        problem,
        begun.get("pid", 0),
        begun.get("machine", ""),
    )


def read_events(path: Path) -> tuple[list[dict[str, Any]], bool, str]:
    """The events that a measurement has printed so far, whether it runs, and why it ended early, "" if it did not."""
    running, stamp = is_locked(path), stamp_of(path)
    if not stamp:
        return [], running, ""
    try:
        events, words = events_of(path, stamp)
    except (ValueError, OSError) as error:
        events, words = [], str(error)
    ended = any(event["event"] == "end" for event in events)
    return events, running, "" if running or ended or not (stamp[1] or words) else words or "stopped before it was done"


def stamp_of(path: Path) -> Stamp | None:
    """What changes whenever something is written to a file; None if there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


@lru_cache(maxsize=8)
def events_of(path: Path, stamp: Stamp) -> tuple[list[dict[str, Any]], str]:
    """The events in a file and what it says beside them, read once as long as it has this stamp. ValueError and OSError as read_side."""
    events, words = list[dict[str, Any]](), ""
    for line in read_side(path, SIDE).decode(errors="replace").splitlines():
        try:
            event = read_json(line)
            events += [event] if isinstance(event["event"], str) else []
        except (ValueError, LookupError, TypeError):
            words = line.strip()[-200:] or words  # what it said of an error is not an event
    return events, words


def start_measuring(path: Path, config: Config, k: int, device: str, threads: int, seconds: float = 1.0) -> bool:
    """Start the measurement; False if it is under way already. An earlier measurement is overwritten."""
    options: dict[str, Any] = {
        "d-model": config.d_model, "d-hidden": config.d_hidden, "num-experts": config.num_experts, "k": k,
        "device": device, "threads": threads, "seconds": seconds,
    }  # fmt: skip
    return start_bench(
        path, ["batch", *(part for name, value in options.items() for part in (f"--{name}", str(value)))]
    )


def start_bench(path: Path, words: list[str]) -> bool:
    """Start `bench WORDS --json` with the file, locked, as its output; False if one is under way there already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | OURS, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return False
    try:
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
    _started[:] = [one for one in _started if one.poll() is None] + [process]
    return True


# Those that this process started, so that one which ended is not left as a zombie.
_started: list[subprocess.Popen[bytes]] = []


def stop_measuring(path: Path) -> None:
    """Stop a measurement that is under way; what it measured so far is kept."""
    events, running, _ = read_events(path)
    pids = [event.get("pid") for event in events if event["event"] == "start"]
    if running and pids and isinstance(pids[-1], int) and is_ours(pids[-1], "bench"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pids[-1], signal.SIGTERM)
