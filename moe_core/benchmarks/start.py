"""`bench start`: how long everything takes to start, each in a process of its own, files in the disk's cache.

Timed are an import of moe_core, the command line, the dashboard until it answers a first request, and a training until its first
step is in the record; beside them the imports that these consist of, so that the table shows where the time goes. Each round
starts each of them once; the first round fills the caches and does not count.
"""

import argparse
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from moe_core.folders import ABOVE, APP
from moe_core.runs import StoreError, open_run

ROUNDS = 5
LATEST = 120.0  # seconds after which a start is given up
PROGRAMS = {  # as `python` is given them; the time until they end
    "python itself": ["-c", "pass"],
    "import moe_core": ["-c", "import moe_core"],
    "python -m moe_core --help": ["-m", "moe_core", "--help"],
    "import numpy": ["-c", "import numpy"],
    "import moe_core.runs": ["-c", "import moe_core.runs"],
    "import torch": ["-c", "import torch"],
    "import moe_core.training.session": ["-c", "import moe_core.training.session"],
    "import streamlit": ["-c", "import streamlit"],
}
WANTED = {"import moe_core": 0.1, "dashboard, first answer": 2.0, "train, first step recorded": 4.0}  # seconds


def main(arguments: argparse.Namespace) -> int:
    programs = ("import moe_core",) if arguments.quick else PROGRAMS
    tries: dict[str, Callable[[], float]] = {name: ended(PROGRAMS[name]) for name in programs}
    tries |= {"dashboard, first answer": first_answer, "train, first step recorded": first_step}
    rounds, first = (1, 0) if arguments.quick else (ROUNDS, -1)
    if not arguments.json:
        print(f"{'':34}{'seconds':>8}{'range':>18}{'CPU s':>8}")
    taken: dict[str, list[float]] = {name: [] for name in tries}
    busy: dict[str, list[float]] = {name: [] for name in tries}
    for counted in range(first, rounds):
        for name, seconds in tries.items():
            before, took = children_busy(), seconds()
            if counted >= 0:
                taken[name].append(took)
                busy[name].append(children_busy() - before)
    rows = [row_of(name, times, busy[name]) for name, times in taken.items()]
    for row in rows:
        if arguments.json:
            print(json.dumps(row))
        else:
            wanted = f"   wanted: {row['wanted_s']:g}" if row["wanted_s"] else ""
            cpu = f"{row['cpu_s']:8.3f}" if row["cpu_s"] else 8 * " "
            print(f"{row['what']:34}{row['median_s']:8.3f}{row['least_s']:8.3f} to{row['most_s']:7.3f}{cpu}{wanted}")
    if arguments.out:
        from moe_core.benchmarks.results import keep  # it says torch's version, and torch takes longest

        keep(arguments.out, rows, rounds=rounds)
    return 0


def row_of(name: str, times: list[float], busy: list[float]) -> dict[str, Any]:
    """cpu_s: CPU seconds of all threads of a program that ran to its end; None for one that was stopped."""
    cpu = round(statistics.median(busy), 4) if name in PROGRAMS else None
    seconds = {"median_s": statistics.median(times), "least_s": min(times), "most_s": max(times)}
    rounded = {key: round(value, 4) for key, value in seconds.items()}
    return {"what": name, "wanted_s": WANTED.get(name), **rounded, "cpu_s": cpu}


def children_busy() -> float:
    """CPU seconds of the processes that this one started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def ended(words: list[str]) -> Callable[[], float]:
    """A function that starts a program and returns the seconds to its end."""

    def seconds() -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, cwd=ABOVE, env=environment(), stdout=subprocess.DEVNULL)
        return time.perf_counter() - began

    return seconds


def first_answer() -> float:
    """Seconds from `streamlit run app.py` to the first page that it answers with."""
    with socket.create_server(("127.0.0.1", 0)) as free, tempfile.TemporaryDirectory() as runs:
        port = free.getsockname()[1]
        free.close()
        words = ["-m", "streamlit", "run", str(APP / "app.py"), "--server.headless", "true", "--server.port", str(port)]

        def answers() -> bool:
            try:
                with urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                    return int(answer.status) == 200
            except (URLError, ConnectionError, TimeoutError):
                return False

        return until(answers, words, {"MOE_RUNS": runs})


def first_step() -> float:
    """Seconds from `python -m moe_core train` to its first step in the record, of the text task as it is."""
    with tempfile.TemporaryDirectory() as runs:

        def recorded() -> bool:
            try:
                run = open_run("started", runs)
            except StoreError:
                return False
            try:
                return run.steps()[1] > 0
            finally:
                run.close()

        return until(recorded, ["-m", "moe_core", "train", "--runs", runs, "--run-id", "started"], {})


def until(happens: Callable[[], bool], words: list[str], more: Mapping[str, str]) -> float:
    """Seconds from the start of a program until happens() is true; the program is then ended. RuntimeError if that never is."""
    began = time.perf_counter()
    program = subprocess.Popen(
        [sys.executable, *words],
        cwd=APP,
        env=environment() | more,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not happens():
            if program.poll() is not None or time.perf_counter() - began > LATEST:
                raise RuntimeError(f"python {' '.join(words)} did not start within {LATEST:g} s, or ended")
            time.sleep(0.005)
        return time.perf_counter() - began
    finally:
        program.kill()  # nothing of it is needed, and a trainer that is asked to end writes a checkpoint first
        program.wait()


def environment() -> dict[str, str]:
    """This process's, with compiled modules kept, as a user's Python does."""
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return plain | {"PYTHONPATH": str(Path(ABOVE))}
