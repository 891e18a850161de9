"""Which rank hangs: the one that did not come to the exchange in which the others wait. It is named, and ended."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import distributed

from moe_core.benchmarks import ranks as measurement
from moe_core.benchmarks.one_rank import WAIT
from moe_core.benchmarks.ranks import PATIENCE, READY, START, Watch
from moe_core.parallel import alive as alive_module
from moe_core.parallel import session, stopping, trainer
from moe_core.parallel.alive import Alive, RankLost
from moe_core.parallel.stopping import end_rank
from moe_core.parallel.traffic import Traffic
from moe_core.parallel.trainer import Leader, obey, wait_for
from moe_core.runs import Run, stop
from moe_core.runs.processes import launched_with
from tests.parallel.conftest import BROKEN, LATE, Gone
from tests.parallel.hanging import CASES, SETTINGS
from tests.parallel.several import trainer_of
from tests.parallel.test_live import until

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hung(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What came of each case."""
    folder = tmp_path_factory.mktemp("runs")
    words = [sys.executable, "-m", "tests.parallel.hanging", str(folder), "moe_core", "train"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads((folder / "found.json").read_text())
    return found


@pytest.mark.parametrize("name", CASES)
def test_the_record_names_the_rank_that_hangs_and_no_process_stays(hung: dict[str, dict[str, Any]], name: str) -> None:
    found, (_, _, how, rank) = hung[name], CASES[name]
    fate = "died or was stopped, last seen in " if how == "halted" else "hangs in step 5"
    assert found["reason"].startswith(
        f"RankLost: rank {rank} (process {found['hung']} on {socket.gethostname()}) {fate}"
    )
    assert found["gone"]


def signed(ranks: list[Alive], came: list[int]) -> None:
    """Let each rank have come to so many exchanges, and say so."""
    for one, exchanges in zip(ranks, came, strict=True):
        for _ in range(exchanges):
            one.come()
        one.doing = f"step {exchanges}"
        one.sign(0)


@pytest.mark.parametrize("hangs", [0, 1, 2])
def test_a_rank_that_waits_is_not_named(ranks: list[Alive], hangs: int) -> None:
    """Whoever asks; the one that hangs, too, if it waits in an exchange that is none."""
    signed(ranks, [7 - (rank == hangs) for rank in range(3)])
    for one in ranks:
        rank, problem = one.lost(LATE)
        assert (rank, problem) == (hangs, f"rank {hangs} (process {os.getpid()} on {socket.gethostname()}) hangs in step 6")  # fmt: skip


def test_whose_exchange_broke_learns_from_the_others_that_they_waited(ranks: list[Alive]) -> None:
    signed(ranks, [7, 6, 7])
    ranks[2].report(LATE)
    assert ranks[0].lost(BROKEN)[0] == 1


def test_nobody_hangs_where_nobody_waited(ranks: list[Alive]) -> None:
    """A connection broke, while a rank was a step behind."""
    signed(ranks, [7, 6, 7])
    ranks[2].report(BROKEN)
    assert ranks[0].lost(BROKEN) == (-1, "")


def test_nobody_is_named_where_all_wait_for_the_same(ranks: list[Alive]) -> None:
    signed(ranks, [7, 7, 7])
    assert ranks[0].lost(LATE) == (-1, "")


def test_a_rank_that_goes_on_too_late_is_named(ranks: list[Alive], monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes to the exchange that the others have given up."""
    signed(ranks, [7, 6, 7])
    plain = alive_module.time.sleep

    def sleep(seconds: float) -> None:
        ranks[1].come()
        ranks[1].sign(1)
        plain(seconds)

    monkeypatch.setattr(alive_module.time, "sleep", sleep)
    assert ranks[0].lost(LATE)[0] == 1


def test_a_rank_that_hangs_before_it_has_a_device_is_named(ranks: list[Alive], monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait for it: rank 0 for its word, rank 1 in a process group. Rank 2 has not come as far."""
    monkeypatch.setattr(session, "choose_device", lambda name: torch.device("cpu"))
    store = distributed.HashStore()
    store.set("device", "cpu")
    session.device_for_all(store, 1, 3, "auto", ranks[1].come)
    store.set("device/2", "")
    session.device_for_all(store, 0, 3, "auto", ranks[0].come)
    for one in ranks:
        one.sign(0)
    with pytest.raises(RankLost, match=r"rank 2 \(.*\) hangs in the start; rank 0 waited for "), ranks[0].coming():
        raise distributed.DistStoreError("wait timeout after 60000ms, keys: /0/device/2")


def test_every_exchange_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a rank that hangs before one that is not would have come to as many as those that wait there."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", str(port))):
        monkeypatch.setenv(name, value)
    made: list[str] = []
    with session.joined(1, "cpu") as here:
        for name in ("all_gather", "all_reduce", "all_to_all_single", "barrier", "broadcast_object_list"):
            plain = getattr(distributed, name)
            counted = lambda *given, name=name, plain=plain, **named: made.append(name) or plain(*given, **named)
            monkeypatch.setattr(distributed, name, counted)
        before = here.alive.progress
        member = trainer_of(({}, {}), here.ranks)
        for order in (["still"], ["train", member.knobs], ["look", member.knobs], ["evaluate", member.knobs, False], ["state"]):  # fmt: skip
            obey(member, order[0], order[1:])
        here.ranks.from_first("an order")
        member.committer.close()
        assert here.alive.progress - before == len(made)
    assert {"all_gather", "all_reduce", "all_to_all_single", "barrier", "broadcast_object_list"} == {*made}


def test_where_all_came_and_the_start_fails_its_error_is_said(ranks: list[Alive]) -> None:
    with pytest.raises(RankLost, match="which did not cannot be told: no route to host; rank 0"), ranks[0].coming():
        raise distributed.DistNetworkError("no route to host")


def test_what_does_not_begin_is_named_and_ended(ranks: list[Alive], monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(trainer, "READY", 0.3)
    monkeypatch.setattr(trainer, "end_rank", lambda alive, rank: ended.append(rank))
    ranks[1].store.set("ready/1", "1")
    with pytest.raises(RankLost, match=r"^rank 2 did not begin within 0 s$"):
        wait_for(ranks[0])
    assert ended == [2]


def together(alive: Any) -> None:
    leader: Any = SimpleNamespace(tell=lambda order: None, alive=alive)
    with pytest.raises(RankLost), Leader.together(leader, "train"):
        raise LATE


def test_the_first_rank_ends_whom_it_names_but_not_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(trainer, "end_rank", lambda alive, rank: ended.append(rank))
    for found in ((2, "rank 2 hangs"), (0, "rank 0 hangs"), (-1, "")):
        together(SimpleNamespace(rank=0, lost=lambda error, found=found: found, lost_touch=str))
    assert ended == [2]


def test_only_a_rank_of_this_machine_is_killed(ranks: list[Alive], monkeypatch: pytest.MonkeyPatch) -> None:
    """And only if the process is still a rank."""
    process = subprocess.Popen(["sleep", "60"])
    ranks[1].end()
    said = {"beat": 1, "doing": "step 3", "progress": 3, "pid": process.pid}
    for host, ours in (("elsewhere", True), (socket.gethostname(), False), (socket.gethostname(), True)):
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        monkeypatch.setattr(stopping, "is_ours", lambda pid, *commands, ours=ours: ours)
        ranks[1].store.set("alive/1", json.dumps(said | {"host": host}))
        end_rank(ranks[0], 1)
    assert process.wait(10) == -signal.SIGKILL


class Clock:
    """In the place of time: it goes on when it is told to."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(measurement, "time", clock)
    return clock


def watched() -> Watch:
    """A watch whose thread has ended, to be told what the ranks say."""
    watch = Watch(1)
    watch.end()
    return watch


def said(progress: int, pid: int = 1, beat: int = 0, doing: str = "the count on 4 devices") -> dict[str, Any]:
    return {"pid": pid, "host": "here", "beat": beat, "progress": progress, "doing": doing}


@pytest.mark.parametrize(
    ("signs", "seconds", "rank", "problem"),
    [
        ([{}, said(0)], START, 0, "rank 0 did not come to the start"),
        ([said(7), said(6), said(7)], PATIENCE, 1, "rank 1 (process 1 on here) hangs in the count on 4 devices"),
        ([said(8, doing="the timing")], PATIENCE, 0, "rank 0 (process 1 on here) hangs in the timing"),
        ([said(7), said(0, doing="the start")], READY, 1, "rank 1 (process 1 on here) hangs in the start"),
    ],
)
def test_a_rank_of_a_measurement_that_does_not_get_on_is_named_in_time(
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    signs: list[dict[str, Any]],
    seconds: float,
    rank: int,
    problem: str,
) -> None:
    """Their signs of life go on, if they have given any."""
    watch, began = watched(), clock.now
    monkeypatch.setattr(measurement, "is_rank", lambda pid: True)
    while watch.hanging([one and one | {"beat": clock.now} for one in signs]) is None:
        assert clock.now <= began + seconds
        clock.now += 1
    assert clock.now > began + seconds
    assert watch.hanging([one and one | {"beat": clock.now} for one in signs]) == rank
    assert watch.problem == problem


def test_a_rank_that_gives_no_sign_of_life_is_named_though_the_others_get_on(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But one that has ended is not."""
    watch, found = watched(), None
    monkeypatch.setattr(measurement, "is_rank", lambda pid: pid != 2)
    for at in range(int(PATIENCE) + 2):
        assert found is None
        clock.now += 1
        found = watch.hanging([said(at, beat=at), said(0, 2), said(9, 3)])
    assert (found, watch.problem) == (2, "rank 2 (process 3 on here) gives no sign of life, last seen in the count on 4 devices")  # fmt: skip


def test_nobody_is_named_while_one_gets_on(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = watched()
    monkeypatch.setattr(measurement, "is_rank", lambda pid: True)
    for at in range(10):
        clock.now += 0.9 * PATIENCE
        assert watch.hanging([said(at, beat=at), said(0, beat=at)]) is None


def test_no_exchange_of_a_measurement_gives_up_before_its_launcher_does() -> None:
    """Or the rank that waits would fail, and be named."""
    assert WAIT.total_seconds() > max(START, PATIENCE, READY)


def test_a_rank_that_has_said_nothing_is_ended_by_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal to this process lets torchrun end all."""
    ended: list[tuple[int, int]] = []
    monkeypatch.setattr(measurement, "START", 0.2)
    monkeypatch.setattr(measurement.os, "kill", lambda pid, number: ended.append((pid, number)))
    watch = Watch(2)
    until(lambda: ended)
    watch.end()
    assert not watch.thread.is_alive()
    assert (watch.problem, ended) == ("rank 0 did not come to the start", [(os.getpid(), signal.SIGTERM)])


def test_a_watch_ends_with_the_measurement() -> None:
    """Its thread asks a store, and one that did so while Python ends would abort the process."""
    watch = Watch(1)
    watch.end()
    assert (watch.thread.is_alive(), watch.problem) == (False, "")


def test_a_stop_while_a_rank_hangs_names_it_and_ends_all(tmp_path: Path) -> None:
    """Long before the others lose patience with it. It gives signs of life, and does not end by the signal alone, as each rank but the first."""
    words = "-m torch.distributed.run --standalone --nproc-per-node 2 -m tests.parallel.hanging asleep 1 moe_core train --expert-parallel 2"
    torchrun = subprocess.Popen(
        [sys.executable, *words.split(), "--runs", str(tmp_path), "--run-id", "two", *SETTINGS.split()],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until(lambda: (tmp_path / "two" / "run.db").exists())
        run = Run(tmp_path / "two")
        until(lambda: run.status().heartbeat_age > 3)
        launched = launched_with(run.status().pid)
        assert len(launched) == 3
        assert stop(run, 1.0) == "SIGTERM"
        assert run.status().reason == "RankLost: rank 1 failed in step 5: Hung: it came to no exchange any more, and ended itself when it was told to end"  # fmt: skip
        assert not any(process.state for process in launched)
        run.close()
    finally:
        torchrun.kill()
        torchrun.wait()


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The statuses with which this process would have ended itself, in a clock by which a rank soon hangs."""
    statuses: list[int] = []
    monkeypatch.setattr(alive_module, "WAITS", 0.5)
    monkeypatch.setattr(alive_module.os, "_exit", statuses.append)
    return statuses


def exchange(one: Alive) -> None:
    one.come()
    one.go_on()


@pytest.mark.parametrize("does", ["hangs", "waits", "is slow"])
def test_a_rank_that_is_told_to_end_ends_itself_only_if_it_hangs(
    ranks: list[Alive], ended: list[int], does: str
) -> None:
    """It says so, and the first rank names it. A slow one comes to an exchange now and then, before it ends in peace."""
    over = threading.Event()
    exchange(ranks[1])
    time.sleep(1.0)  # it is counted from the signal on
    if does == "waits":
        ranks[1].come()
    works = threading.Thread(target=stopping.end_itself, args=(ranks[1], over))
    works.start()
    for nth in range(15):
        time.sleep(0.1)
        if does == "is slow" and nth % 2:
            exchange(ranks[1])
    over.set()
    works.join()
    assert set(ended) == ({1} if does == "hangs" else set())
    if does == "hangs":
        assert ranks[0].lost(BROKEN) == (1, "rank 1 failed in the start: Hung: it came to no exchange any more, and ended itself when it was told to end")  # fmt: skip


@pytest.mark.parametrize(("rank", "does", "ends"), [(1, "hangs", True), (0, "hangs", False), (1, "waits", False)])
def test_a_rank_that_hangs_ends_once_the_store_is_gone(
    ranks: list[Alive], ended: list[int], rank: int, does: str, ends: bool
) -> None:
    """It may be alone on its machine, where its torchrun notices nothing. The first rank may have a checkpoint to write."""
    exchange(ranks[rank])
    if does == "waits":
        ranks[rank].come()
    time.sleep(1.0)
    assert not ended  # the store is there
    ranks[rank].store = Gone()
    time.sleep(0.3)
    assert not ended  # it has just gone
    time.sleep(1.0)
    assert set(ended) == ({1} if ends else set())


def test_a_rank_never_hangs_at_the_end_of_an_exchange_that_took_long(
    ranks: list[Alive], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread may ask between any two lines of go_on()."""
    one, asked = ranks[1], list[bool]()
    exchange(one)
    one.come()
    one.since -= 100.0

    def set_and_ask(self: Alive, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        asked.append(one.hangs(0.0))

    monkeypatch.setattr(Alive, "__setattr__", set_and_ask)
    one.go_on()
    assert asked
    assert not any(asked)


def test_a_rank_whose_exchange_failed_does_not_hang(ranks: list[Alive], ended: list[int]) -> None:
    """It has to say so, which may take long, before it ends."""
    traffic = Traffic(ranks[1])
    with traffic.waiting():
        pass
    time.sleep(0.6)
    assert ranks[1].hangs(0.0)
    with pytest.raises(RuntimeError), traffic.waiting():
        raise BROKEN
    time.sleep(0.6)
    assert not ranks[1].hangs(0.0)
