"""A training on two hosts of two ranks each, which are namespaces on this machine (hosts.py): what crosses the link between them, that
the losses are those of four ranks on one host, and what happens when the link is cut."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moe_core.runs import Run, verify
from moe_core.schema import Knobs
from tests.parallel.hosts import ADDRESSES, LINK, Hosts, NoHosts, checked, two_hosts
from tests.parallel.test_live import until

ROOT = Path(__file__).parents[2]
SETTINGS = "--task text --context 16 --layers 2 --num-experts 4 --tokens 512 --d-model 64 --d-hidden 32 --threads 1 --churn-every 0 --eval-every 1000000 --checkpoint-every 0"
PATIENCE, COUNTED = 5, 30  # seconds; steps in which the link's bytes are counted
RANKS, WIDTH = 4, 64


def torchrun(
    hosts: Hosts, host: int, runs: Path, module: str = "moe_core", restarts: int = 1
) -> subprocess.Popen[bytes]:
    words = f"-m torch.distributed.run --nnodes 2 --nproc-per-node 2 --node-rank {host} --master-addr {ADDRESSES[0]} --master-port 29500 --max-restarts {restarts}"
    words += f" -m {module} train --expert-parallel {RANKS} --patience {PATIENCE} --runs {runs} --run-id two {SETTINGS}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": LINK}
    with open(runs / f"host-{host}.log", "wb") as log:
        return subprocess.Popen(
            [*hosts.within(host), sys.executable, *words.split()], cwd=ROOT, env=environment, stdout=log, stderr=log
        )


def paused(run: Run) -> int:
    """Pause; the step."""
    run.command("pause")
    until(lambda: run.status().state == "paused")
    return run.status().step


def train_until(run: Run, step: int) -> None:
    run.command("resume")
    until(lambda: run.status().step >= step)


def cut_once(hosts: Hosts, runs: Path, starters: list[subprocess.Popen[bytes]]) -> dict[str, Any]:
    """A run whose bytes are counted for some steps, and whose link is then cut until it has failed."""
    until(lambda: (runs / "two" / "run.db").exists() and Run(runs / "two").status().step > 3, 120)
    run = Run(runs / "two")
    first, crossed = paused(run), hosts.crossed()
    run.turn("person", {"noise": 0.25})
    train_until(run, first + COUNTED)
    last = paused(run)
    crossed = hosts.crossed() - crossed
    run.command("checkpoint")
    until(lambda: list(run.path.glob("checkpoint-*.pt")))
    train_until(run, last + 3)
    run.turn("person", {"w_load": 0.03})
    until(lambda: run.knob_changes()[-1].step)
    turns, cut_at, ranks = run.knob_changes(), run.status().step, hosts.processes("LOCAL_RANK")
    assert len(ranks) == RANKS
    hosts.link("down")
    began = time.monotonic()
    until(lambda: run.status().state == "failed")
    took, failed = time.monotonic() - began, run.status()
    until(lambda: not set(ranks) & set(hosts.processes()))
    ended = time.monotonic() - began
    hosts.link("up")
    until(lambda: run.status().state == "training" and run.status().step > failed.step + 3, 120)
    run.command("stop")
    codes = [starter.wait(40) for starter in starters]
    return {
        "run": run, "counted": (first, last), "crossed": crossed, "turns": turns, "cut_at": cut_at, "took": took,
        "failed": failed, "ended": ended, "codes": codes, "left": hosts.processes(),
    }  # fmt: skip


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    runs, starters = tmp_path_factory.mktemp("runs"), list[subprocess.Popen[bytes]]()
    try:
        with two_hosts() as hosts:
            starters = [torchrun(hosts, host, runs) for host in (0, 1)]
            lived = cut_once(hosts, runs, starters)
    except NoHosts as refused:
        pytest.skip(f"no two hosts on this machine: {refused}")
    finally:
        for starter in starters:
            starter.wait(10)
    yield lived
    lived["run"].close()


@pytest.fixture(scope="module")
def again(lived: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What four ranks on one host find that train again what is recorded."""
    folder, (first, last) = tmp_path_factory.mktemp("again"), lived["counted"]
    command = [sys.executable, "-m", "tests.parallel.again", str(folder), str(lived["run"].path), str(first), str(last)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


def test_a_link_that_is_cut_ends_the_run_with_a_rank_of_the_other_host(lived: dict[str, Any]) -> None:
    failed = lived["failed"]
    assert failed.reason.startswith("RankLost: rank 2 (process ")
    assert "on host-1) died, was stopped or cannot be reached, last seen in " in failed.reason
    assert lived["took"] < PATIENCE + 10
    assert lived["ended"] < PATIENCE + 35  # the ranks of both hosts; torchrun kills after 30 s


def test_the_ranks_go_on_by_themselves_once_the_link_is_back(lived: dict[str, Any]) -> None:
    run = lived["run"]
    assert lived["codes"] == [0, 0]
    assert lived["left"] == []
    assert run.status().state == "stopped"
    assert run.status().step > lived["failed"].step >= lived["cut_at"]
    assert run.knob_changes() == lived["turns"]
    assert verify(run) == []


def test_two_hosts_train_as_one(again: dict[str, Any]) -> None:
    """The same bits: of the steps before the link was cut, and of those after it."""
    assert again["difference"] is None


def test_what_crosses_the_link_is_what_was_counted(lived: dict[str, Any], again: dict[str, Any]) -> None:
    """Of each ring half of the bytes cross, since two of its four ways do; of tokens as many as have their expert on the other host. A
    look at the probe, which is not counted as sent, is made by every rank: so each choice crosses from the two ranks of the other host.
    """
    run, (first, last) = lived["run"], lived["counted"]
    place = next(c.start for c in run.layout if c.stat == "sent_bytes")
    sent = float(run.rows(first + 1, last)[:, place].sum())
    tokens, crossing = (16 * WIDTH * rows for rows in (again["left_a_rank"], again["left_a_host"]))
    told = (last - first) * 8 * run.config.layers * RANKS * (RANKS - 1) * 2
    counted = crossing + told * 2 / 3 + (sent - tokens - told) / 2
    looks = [step for step in run.snapshots() if first < step <= last]
    looked = len(looks) * run.config.layers * 2 * len(run.probe()["tokens"]) * Knobs().k * 2 * 4 * WIDTH
    assert tokens > 0.2 * sent
    assert 1 < lived["crossed"] / (counted + looked) < 1.1


def test_a_rank_that_hangs_on_the_other_host_is_named_and_ends(tmp_path: Path) -> None:
    """By itself: nobody on this host could kill it, and its torchrun would only do so after 30 s."""
    try:
        with two_hosts() as hosts:
            starters = [
                torchrun(hosts, host, tmp_path, "tests.parallel.hanging asleep 3 moe_core", 0) for host in (0, 1)
            ]
            for starter in starters:
                starter.wait(90)
            left = hosts.processes()
    except NoHosts as refused:
        pytest.skip(f"no two hosts on this machine: {refused}")
    run = Run(tmp_path / "two")
    assert re.fullmatch(r"RankLost: rank 3 \(process \d+ on host-1\) hangs in step 5", run.status().reason)
    run.close()
    assert left == []
    assert "SIGKILL" not in (tmp_path / "host-1.log").read_text()


def test_what_a_machine_does_not_allow_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoHosts, match=r"^ls --none: .*none"):
        checked(["ls", "--none"])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NoHosts, match=r"^unshare .* cat: No such file or directory$"), two_hosts():
        pass
