"""How many rows an expert multiplies where its tokens come from one device's batch, and where they come from those of 1, 2 and 4 devices.

`python -m moe_core bench ranks`. With k of E experts and T tokens a batch that is k*T/E and k*T*D/E (Shazeer 2017, section 3.1). The ranks are
started by torch's own launcher; what one of them does is in one_rank.py. torch is loaded only once main() has said that it begins.
"""

import argparse
import contextlib
import json
import logging
import os
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moe_core.folders import ABOVE
from moe_core.runs import Run, is_alive, open_run
from moe_core.runs.measuring import RANK, is_rank
from moe_core.runs.on_devices import devices_for
from moe_core.schema import Config, Knobs, check, first_line

BATCHES, QUICK = 20, 2  # that each device brings
ANSWER = 10.0  # seconds to wait for the checkpoint of a run that trains
START = 60.0  # seconds until the first sign of life of each rank
PATIENCE = 60.0  # seconds without another sign of life of a rank, or in which no rank gets on
READY = 600.0  # the same while a rank loads the data
FILES = 48  # that the launcher of 4 ranks opens, and some more; a rank opens fewer


def main(options: argparse.Namespace) -> int:
    """options: run (None: one that nobody has begun, of d_model, d_hidden, num_experts, k and tokens), runs, moved, seconds, json, quick, out.

    ValueError for what ranks cannot share, or where torch has none.
    """
    run = open_run(options.run, options.runs) if options.run else None
    config, knobs = settings_of(options)
    devices = devices_for((run.config if run else config).num_experts)
    if options.json:
        print(json.dumps({"event": "start", "pid": os.getpid(), "devices": devices}), flush=True)
    checkpoint, late = newest_checkpoint(run) if run else ("", False)
    given = {
        "run": str(run.path) if run else "", "checkpoint": checkpoint, "late": late, "moved": options.moved,
        "config": asdict(config), "knobs": asdict(knobs), "devices": devices, "batches": QUICK if options.quick else BATCHES,
        "seconds": 0.0 if options.quick else 1.0 if options.seconds is None else options.seconds,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows"
        launch(given | {"rows": str(rows), "json": options.json}, max(devices), Path(folder))
        model, *found = [json.loads(line) for line in rows.read_text().splitlines()]
    if not options.json:
        show(model, found)
    if options.out:
        from moe_core.benchmarks.results import keep

        said = {name: value for name, value in model.items() if name not in ("event", "machine")}
        keep(options.out, found, run=run.id if run else "", ranks=max(devices), threads=1, **said)
    if options.json:
        print(json.dumps({"event": "end"}), flush=True)
    return 0


def settings_of(options: argparse.Namespace) -> tuple[Config, Knobs]:
    """The settings and knobs of a run that nobody has begun: points in the plane, one MoE layer of these sizes, all else as usual."""
    sizes = {name: getattr(options, name) for name in ("d_model", "d_hidden", "num_experts", "tokens")}
    return check(Config.for_task("plane", layers=1, **sizes), Knobs(k=options.k))


def newest_checkpoint(run: Run) -> tuple[str, bool]:
    """The run's newest checkpoint, "" if it has none yet; and whether that is late. A run that trains is asked for one, so that its gate
    is measured as it is now; it is late if it does not answer within ANSWER seconds."""
    from moe_core.training.checkpoint import list_checkpoints

    late = False
    if is_alive(run.path) and run.state in ("training", "paused"):
        asked, until = run.command("checkpoint", who="bench ranks"), time.monotonic() + ANSWER
        while (
            late := not any(c.id == asked and c.step is not None for c in run.commands())
        ) and time.monotonic() < until:
            time.sleep(0.05)
    return str(next(iter(list_checkpoints(run.path).values()), "")), late


def launch(given: dict[str, Any], ranks: int, folder: Path) -> None:
    """Start the ranks as torchrun does, and wait for them. ValueError, which names the rank, if one fails, hangs or was halted."""
    from torch import distributed
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if not (distributed.is_available() and distributed.is_gloo_available()):
        raise ValueError(
            "bench ranks needs gloo, by which ranks on CPUs talk, and this torch was built without it; install another torch"
        )
    check_files()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ABOVE), os.environ.get("PYTHONPATH"))))
    # All ranks are on this machine; by its name, gloo would look for it in the network.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    logging.disable(logging.CRITICAL)  # torchrun writes pages about a rank that failed, and one line is enough
    words = [
        "--standalone",
        f"--nproc-per-node={ranks}",
        f"--log-dir={folder}",
        "-m",
        RANK,
    ]
    watch = Watch(ranks)
    try:
        torchrun.run(
            torchrun.parse_args([*words, json.dumps(given | {"launcher": os.getpid(), "signs": watch.store.port})])
        )
    except (ChildFailedError, SignalException) as failed:
        if watch.problem:
            raise ValueError(f"{watch.problem}; measure again") from None
        if isinstance(failed, SignalException):  # somebody cancelled it, and torchrun has ended the ranks
            raise ValueError("stopped before it was done") from None
        rank, failure = failed.get_first_failure()
        # What the rank itself wrote, with its traceback, or torchrun's words about its signal.
        said: Any = failure.message
        why = said["message"] if isinstance(said, dict) else said
        raise ValueError(f"rank {rank} failed: {first_line(why)}; measure again") from None
    finally:
        watch.end()
        logging.disable(logging.NOTSET)


def check_files() -> None:
    """ValueError unless this process may open FILES files more. If torch's store may not, it leaves a rank waiting without a word."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    free = allowed - len(os.listdir("/dev/fd"))
    if allowed != resource.RLIM_INFINITY and free < FILES:
        raise ValueError(
            f"bench ranks wants to open {FILES} files more, and the limit of {allowed} open files leaves {max(0, free)}; raise it, as with "
            "ulimit -n 1024, and measure again"
        )


class Watch:
    """Names a rank that hangs or was halted, and ends it, so that torchrun ends the others. torchrun itself only notices one that ends.

    store: in which the ranks say that they live; problem: a sentence that names the rank, "" as long as none hangs.
    """

    def __init__(self, ranks: int) -> None:
        from torch.distributed import TCPStore

        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.ranks, self.problem, self.over = ranks, "", threading.Event()
        # What was seen last of each rank, and of all together, and since when.
        self.seen: dict[Any, tuple[Any, float]] = {}
        self.thread = threading.Thread(target=self.work, name="watch", daemon=True)
        self.thread.start()

    def end(self) -> None:
        """Watch no more. A thread that is still in the store's C++ when Python ends would abort the process."""
        self.over.set()
        self.thread.join(PATIENCE)

    def work(self) -> None:
        from moe_core.parallel.alive import EVERY, said

        while not self.problem and not self.over.wait(EVERY):
            signs = [said(self.store, "alive", rank) for rank in range(self.ranks)]
            if (rank := self.hanging(signs)) is not None:
                # Only torchrun knows the process of a rank that has said nothing yet. It ends all ranks if this process gets a SIGTERM.
                pid, number = (signs[rank]["pid"], signal.SIGKILL) if signs[rank] else (os.getpid(), signal.SIGTERM)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def hanging(self, signs: Sequence[dict[str, Any]]) -> int | None:
        """The rank that hangs or was halted, which `problem` then names. To be asked again and again, each time with what each rank has
        said of itself by now: {} if nothing."""
        from moe_core.parallel.alive import called

        there = [rank for rank, facts in enumerate(signs) if not facts or is_rank(facts["pid"])]
        for rank in there:
            facts = signs[rank]
            if self.unchanged(rank, facts.get("beat")) > (PATIENCE if facts else START):
                last = f"gives no sign of life, last seen in {facts['doing']}" if facts else "did not come to the start"
                self.problem = f"{called(rank, facts)} {last}"
                return rank
        stands = self.unchanged("all", [facts.get("progress") for facts in signs])
        behind = min(there, key=lambda rank: signs[rank].get("progress", 0), default=0)
        if there and stands > (PATIENCE if signs[behind].get("progress") else READY):
            self.problem = f"{called(behind, signs[behind])} hangs in {signs[behind]['doing']}"
            return behind
        return None

    def unchanged(self, what: Any, value: Any) -> float:
        """For how many seconds the value has been this one."""
        now = time.monotonic()
        if what not in self.seen or self.seen[what][0] != value:
            self.seen[what] = value, now
        return now - self.seen[what][1]


def show(model: dict[str, Any], found: list[dict[str, Any]]) -> None:
    """The table: a line for each number of devices and layer."""
    print(
        f"{model['machine']}; after step {model['step']}, {model['tokens']} tokens a batch; median step, forward + backward, float32"
    )
    if model["late"]:
        print(
            f"The run wrote no checkpoint within {ANSWER:g} s, so its weights after step {model['step']:,} were measured."
        )
    print(f"{'':16}{'formula':>21}  {'from its own batch':^24}  {'from all batches':^24}")
    print(
        f"{'devices':>8}{'layer':>8}{'k·T/E':>10}{'k·T·D/E':>11}"
        + f"  {'least':>8}{'mean':>8}{'most':>8}" * 2
        + f"{'rows/s':>12}"
    )
    speeds = {one["devices"]: one["rows_per_second"] for one in found if one["event"] == "speed"}
    for one in (one for one in found if one["event"] == "rows"):
        for at, (own, all_) in enumerate(zip(one["own"], one["all"], strict=True)):
            each = model["k"][at] * model["tokens"] / model["experts"][at]
            numbers = "".join(f"  {a:>8.4g}{b:>8.4g}{c:>8.4g}" for a, b, c in (own, all_))
            print(
                f"{one['devices']:>8}{at + 1:>8}{each:>10.4g}{one['devices'] * each:>11.4g}{numbers}{speeds[one['devices']][at]:>12,.0f}"
            )
