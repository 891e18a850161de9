"""How ranks wait for each other at the start, and whom they name when one is lost, without starting any."""

import argparse
import datetime
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import distributed

from moe_core.commands.ranks import wanted_device
from moe_core.parallel import alive as alive_module
from moe_core.parallel import session, stopping, trainer
from moe_core.parallel.alive import Alive, RankLost
from moe_core.parallel.trainer import ALL_READY, Leader, follow, obey
from moe_core.runs import Run, create_run
from moe_core.schema import Config, Knobs
from moe_core.training.data import load
from moe_core.training.loop import Trainer
from moe_core.training.session import conduct, train
from tests.parallel.conftest import BROKEN, LATE, Gone


def test_the_silent_rank_is_named(ranks: list[Alive]) -> None:
    ranks[1].end()
    ranks[1].thread.join()
    rank, problem = ranks[2].lost(BROKEN)
    assert rank == 1
    assert "died or was stopped" in problem


def test_nobody_is_named_when_the_store_is_gone(ranks: list[Alive]) -> None:
    ranks[0].store = Gone()
    assert ranks[0].lost(LATE) == (-1, "")


def test_where_no_rank_can_be_named_the_reason_says_what_to_do(ranks: list[Alive]) -> None:
    """Without gloo's source files and advice."""
    error = RuntimeError(f"{BROKEN}. This is typically caused by a remote worker crashing. GLHF!")
    said = (
        "the ranks lost touch with each other{} (Connection closed by peer [127.0.0.1]:4711); go on with train --resume"
    )
    assert ranks[0].lost_touch(error) == said.format("")
    ranks[0].store = Gone()
    leader: Any = SimpleNamespace(tell=lambda order: None, alive=ranks[0])
    with pytest.raises(RankLost) as lost, Leader.together(leader, "train"):
        raise error
    assert str(lost.value) == said.format(", and torchrun, which started them, has ended")


def test_nobody_is_named_when_the_store_goes_while_they_are_asked(ranks: list[Alive]) -> None:
    asked = threading.Thread(target=lambda: found.append(ranks[0].lost(LATE)))
    found: list[tuple[int, str]] = []
    asked.start()
    time.sleep(0.1)
    ranks[0].store = Gone()
    asked.join()
    assert found == [(-1, "")]


def came(store: distributed.Store, ranks: list[int], size: int) -> dict[int, str]:
    """What each of these ranks says at the start of `size` ranks, when all wait for a word of the first that does not come."""
    said, all_of_them = dict[int, str](), [Alive(store, rank, size) for rank in ranks]

    def wait(one: Alive) -> None:
        try:
            with one.coming():
                one.store.get("device/1")
        except (RankLost, SystemExit) as error:
            said[one.rank] = str(error)

    threads = [threading.Thread(target=wait, args=(one,)) for one in all_of_them]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in all_of_them:
        one.end()
    return said


@pytest.mark.parametrize(
    ("ranks", "size", "names"),
    [
        ([0], 2, "rank 1 did not come to the start; rank 0 waited for 0 s."),
        ([1], 2, "rank 0 did not come to the start; rank 1 waited for 0 s."),
        ([0, 2], 5, "ranks 1, 3 and 4 did not come to the start; "),
    ],
)
def test_ranks_that_never_came_are_named_once(
    monkeypatch: pytest.MonkeyPatch, ranks: list[int], size: int, names: str
) -> None:
    for name, seconds in (("SILENT", 0.3), ("EVERY", 0.1)):
        monkeypatch.setattr(alive_module, name, seconds)
    store = distributed.HashStore()
    store.set_timeout(datetime.timedelta(seconds=0.2))
    said = came(store, ranks, size)
    assert len(said) == len(ranks)
    assert sum(words.startswith(names) for words in said.values()) == 1
    assert sum(words == "1" for words in said.values()) == len(ranks) - 1  # an exit status


def test_a_rank_that_hangs_at_the_start_is_named_and_an_error_of_its_own_is_not_lost(ranks: list[Alive]) -> None:
    ranks[1].end()
    with pytest.raises(RankLost, match=r"rank 1 \(process \d+ on .*\) died or was stopped, last seen in the start; rank 0 waited"), ranks[0].coming():  # fmt: skip
        raise distributed.DistStoreError("wait timeout")
    with pytest.raises(RuntimeError, match="shapes"), ranks[0].coming():
        raise RuntimeError("shapes differ")


def test_where_nobody_can_be_named_that_is_said(ranks: list[Alive]) -> None:
    ranks[0].store = Gone()
    with pytest.raises(RankLost, match="which did not cannot be told: torchrun's store is gone"), ranks[0].coming():
        raise distributed.DistStoreError("wait timeout")


@pytest.mark.parametrize("fails", ["rendezvous", "Alive"])
def test_a_store_that_cannot_be_reached_is_said(monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    """Or that goes before this rank has said a word."""

    def fail(*given: Any, **named: Any) -> Any:
        raise distributed.DistNetworkError("The client socket has timed out")

    store = distributed.HashStore()
    monkeypatch.setattr(session, "rendezvous", lambda url, timeout: iter([(store, 1, 2)]))
    monkeypatch.setattr(session, fails, fail)
    for name, value in (("RANK", "1"), ("MASTER_ADDR", "first"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    with pytest.raises(RankLost, match=r"rank 1 cannot reach torchrun's store at first:29500 \(The client"):
        session.meeting()


@pytest.fixture
def hung(ranks: list[Alive], monkeypatch: pytest.MonkeyPatch) -> Iterator["subprocess.Popen[bytes]"]:
    """A process of this machine that says no more; it is rank 1 of the three."""
    monkeypatch.setattr(stopping, "is_ours", lambda pid, *commands: True)
    process = subprocess.Popen(["sleep", "60"])
    ranks[1].end()
    said = {"beat": 1, "doing": "step 3", "progress": 3, "host": socket.gethostname(), "pid": process.pid}
    ranks[1].store.set("alive/1", json.dumps(said))
    before = {one: signal.signal(one, lambda number, frame: None) for one in (signal.SIGTERM, signal.SIGHUP)}
    yield process
    for number, handler in before.items():
        signal.signal(number, handler)
    process.kill()
    process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_stop_ends_a_rank_that_hangs_and_it_is_named(
    ranks: list[Alive], hung: "subprocess.Popen[bytes]", number: int
) -> None:
    """So does a terminal that closes. The exchange that waits for it then fails at once."""
    with stopping.told_to_end(partial(stopping.end_what_is_halted, ranks[0])):
        with pytest.raises(subprocess.TimeoutExpired):
            hung.wait(0.8)  # nobody has stopped the run
        os.kill(os.getpid(), number)
        hung.wait(10)
    rank, problem = ranks[0].lost(BROKEN)
    assert (rank, hung.returncode) == (1, -signal.SIGKILL)
    assert problem == f"rank 1 (process {hung.pid} on {socket.gethostname()}) hung, last seen in step 3; it was ended when the run was stopped"  # fmt: skip


@pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN])
def test_another_rank_than_the_first_is_told_by_a_terminal_that_closes_unless_under_nohup(
    monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    told: list[threading.Event] = []

    def follow(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.3)

    monkeypatch.setattr(session, "follow", follow)
    monkeypatch.setattr(session, "end_itself", lambda alive, over: told.append(over))
    handlers = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    handlers[signal.SIGHUP] = signal.signal(signal.SIGHUP, before)
    try:
        assert session.follow_on(SimpleNamespace(alive=None, ranks=None, device=None)) == 0  # type: ignore[arg-type]
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert len(told) == (before == signal.SIG_DFL)


def test_no_rank_is_ended_while_the_first_gets_on(ranks: list[Alive], hung: "subprocess.Popen[bytes]") -> None:
    on = threading.Event()

    def get_on() -> None:
        while not on.wait(0.05):
            ranks[0].come()

    works = threading.Thread(target=get_on)
    works.start()
    assert not stopping.end_silent(ranks[0], threading.Event())
    on.set()
    works.join()
    assert hung.poll() is None
    assert ranks[0].gone is None
    elsewhere = json.loads(ranks[1].store.get("alive/1")) | {"host": "elsewhere"}
    ranks[1].store.set("alive/1", json.dumps(elsewhere))
    assert not stopping.end_silent(ranks[0], threading.Event())
    assert hung.poll() is None


def test_no_rank_is_ended_once_the_run_is_over(
    ranks: list[Alive], hung: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends between the two looks: a healthy rank says no more by then."""
    over, plain = threading.Event(), ranks[0].read
    looks: list[int] = []

    def read(kind: str, rank: int) -> dict[str, Any]:
        looks.append(rank)
        if len(looks) > 2:  # the second time
            over.set()
        return plain(kind, rank)

    monkeypatch.setattr(ranks[0], "read", read)
    assert stopping.end_silent(ranks[0], over)
    assert looks == [1, 2, 1]
    assert (hung.poll(), ranks[0].gone) == (None, None)


def test_a_stop_does_not_wait_for_a_silence_once_the_run_is_over(
    ranks: list[Alive], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, looked = signal.signal(signal.SIGTERM, lambda number, frame: None), threading.Event()
    monkeypatch.setattr(stopping.signs, "SILENT", 60.0)
    monkeypatch.setattr(ranks[0], "read", lambda kind, rank: looked.set() or {})
    try:
        with stopping.told_to_end(partial(stopping.end_what_is_halted, ranks[0])):
            os.kill(os.getpid(), signal.SIGTERM)
            assert looked.wait(10)
            left = time.monotonic()
        assert time.monotonic() - left < 20
    finally:
        signal.signal(signal.SIGTERM, before)


def leading(*found: tuple[int, str]) -> Any:
    """What `together` needs of a leader. found: the answers to who is lost, of which the last comes first."""
    answers = list(found)
    alive = SimpleNamespace(lost=lambda error: answers.pop(), rank=0, read=lambda *_: {}, store=distributed.HashStore())
    return SimpleNamespace(tell=lambda order: None, alive=alive, left=answers)


def look_within_a_step(leader: Any) -> None:
    with Leader.together(leader, "train"), Leader.together(leader, "look"):
        raise RuntimeError("[gloo/transport] Connection closed by peer")


def test_a_look_within_a_step_does_not_ask_twice_who_is_lost() -> None:
    """Whatever words are in the answer."""
    leader = leading((1, "rank 1 hangs"), (2, "rank 2 failed in look: Connection reset, gloo/transport"))
    with pytest.raises(RankLost, match="rank 2 failed in look"):
        look_within_a_step(leader)
    assert leader.left == [(1, "rank 1 hangs")]


def test_an_error_of_its_own_is_not_a_lost_rank() -> None:
    leader = leading((1, "rank 1 died"))
    with pytest.raises(RuntimeError, match="shapes"), Leader.together(leader, "train"):
        raise RuntimeError("shapes differ")
    assert leader.left


class Orders:
    """The ranks for one that follows, which is told to begin, and then to end. times: when it asked for each order."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def from_first(self, value: Any) -> tuple[Any, ...]:
        self.times.append(time.monotonic())
        return ("begin", {}) if len(self.times) == 1 else ("end",)


@pytest.fixture
def orders(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(
        trainer, "begin", lambda ranks, device: SimpleNamespace(committer=SimpleNamespace(close=lambda: None))
    )
    return Orders()


def test_a_rank_that_is_ready_first_waits_outside_an_exchange(ranks: list[Alive], orders: Any) -> None:
    """An exchange fails after `patience`. Meanwhile it gives signs of life."""
    ranks[1].store.set("begin", "1")
    ranks[1].go_on()
    follows = threading.Thread(target=follow, args=(orders, ranks[1], torch.device("cpu")))
    follows.start()
    time.sleep(1.0)  # longer than SILENT: the leader is alive
    assert len(orders.times) == 1
    assert ranks[1].waits  # though it is in no exchange by now
    assert ranks[0].store.check(["ready/1"])
    assert ranks[0].read("alive", 1)["beat"] > 5
    ranks[0].store.set(ALL_READY, "1")
    follows.join(5)
    assert len(orders.times) == 2


def test_a_rank_that_waits_for_the_others_notices_that_the_leader_is_gone(ranks: list[Alive], orders: Any) -> None:
    ranks[0].end()
    ranks[1].store.set("begin", "1")
    follow(orders, ranks[1], torch.device("cpu"))
    assert 0.8 < orders.times[1] - orders.times[0] < 5


def test_the_leader_lets_them_go_on_once_all_are_ready(ranks: list[Alive], monkeypatch: pytest.MonkeyPatch) -> None:
    store, orders = ranks[0].store, list[tuple[str, bool]]()
    told = lambda value: orders.append((value[0], store.check([ALL_READY])))
    monkeypatch.setattr(trainer, "wait_for", lambda alive: orders.append(("waits", store.check([ALL_READY]))))
    leader: Any = SimpleNamespace(begin={"knobs": None}, alive=ranks[0], ranks=SimpleNamespace(from_first=told), step=0)
    Leader.tell(leader, "train")
    assert orders == [("begin", False), ("waits", False), ("train", True)]


def test_ranks_never_wait_for_a_leader_that_has_ended(ranks: list[Alive], monkeypatch: pytest.MonkeyPatch) -> None:
    group: Any = SimpleNamespace(from_first=lambda value: None, dismissed=False)
    here = session.Joined(group, ranks[0], torch.device("cpu"), Leader, {})
    assert session.lead(here, lambda: 3) == 3
    assert ranks[1].store.check(["begin", ALL_READY])


def test_the_others_are_let_go_before_the_record_is_closed(tmp_path: Path) -> None:
    """Closing takes seconds while somebody reads along: the others would lose patience, and rank 1 end rank 0."""
    dismissed: list[str] = []
    joined: Any = SimpleNamespace(dismiss=lambda: dismissed.append(Run(tmp_path / "run").status().state))
    writer = create_run(tmp_path / "run", config := Config.for_task("plane", threads=1, tokens=64, steps=1), Knobs())
    make = lambda: Trainer(config, Knobs(), load(config), torch.device("cpu"), writer, lambda event: None)
    assert conduct(make, Trainer.run, writer, lambda event: None, joined)[1] == "finished"
    assert dismissed == ["training"]


def test_ranks_do_not_train_on_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    """gloo has no tensors of it: the CPU if nobody asked for it, else one line."""
    monkeypatch.setattr(session, "choose_device", lambda name: torch.device("mps" if name == "auto" else name))
    assert session.device_below_torchrun("auto") == torch.device("cpu")
    assert session.device_below_torchrun("cuda") == torch.device("cuda")
    with pytest.raises(ValueError, match="device 'mps'; use device cpu, or one process"):
        session.device_below_torchrun("mps")


def test_a_signal_does_not_keep_a_failure_from_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a rank is lost and another one has ended over it, torchrun sends the first a signal, which may come while it writes that."""

    def fail(trainer: Trainer, began: float) -> None:
        raise RankLost("rank 1 died")

    def notify(event: dict[str, Any]) -> None:
        if event["event"] == "error":  # before it is written
            os.kill(os.getpid(), signal.SIGTERM)

    ended: list[int] = []  # by the signal, if whatever had it before has it again
    before = signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
    monkeypatch.setattr(Trainer, "train_step", fail)
    try:
        folder, state = train(Config.for_task("plane", threads=1, tokens=64), Knobs(), tmp_path, "lost", notify)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not ended
    assert (state, Run(folder).status().reason) == ("failed", "RankLost: rank 1 died")


def said_by(rank: int, name: str, store: distributed.Store) -> str:
    """The device that a rank takes of two, or what it says if it has none of the kind."""
    try:
        return str(session.device_for_all(store, rank, 2, name, lambda: None))
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize(
    ("has", "takes"),
    [
        (("cuda", "cuda"), ["cuda", "cuda"]),
        (("cpu", "cuda"), ["cpu", "cpu"]),
        (("cuda", "cpu"), ["rank 1 on {host} cannot train as rank 0 does: no cuda here", "no cuda here"]),
    ],
)
def test_all_ranks_take_the_kind_of_device_of_the_first(
    has: tuple[str, str], takes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """has: what auto would be on each. A rank that cannot take it says so in one line, and the first does."""

    def choose(name: str) -> torch.device:
        own = has[1 if threading.current_thread() is follower else 0]
        if name not in ("auto", "cpu", own):
            raise ValueError(f"no {name} here")
        return torch.device(own if name == "auto" else name)

    monkeypatch.setattr(session, "choose_device", choose)
    store, said = distributed.HashStore(), ["", ""]
    follower = threading.Thread(target=lambda: said.__setitem__(1, said_by(1, "auto", store)))
    follower.start()
    said[0] = said_by(0, "auto", store)
    follower.join()
    assert said == [words.format(host=socket.gethostname()) for words in takes]


def test_no_rank_waits_for_a_device_that_the_first_cannot_have(monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(name: str) -> torch.device:
        raise ValueError("no cuda here")

    monkeypatch.setattr(session, "choose_device", choose)
    store = distributed.HashStore()
    said = [said_by(rank, "cuda", store) for rank in (0, 1)]
    assert said == ["no cuda here", "rank 0 cannot have the device that it was asked to train on"]


def test_the_first_rank_asks_for_the_device_of_the_run_that_it_goes_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_run(tmp_path / "one", Config.for_task("plane"), Knobs(), facts={"device": "cuda:3"}).finish("stopped", "")
    given = argparse.Namespace(runs=str(tmp_path), resume="one", device=None, run_id=None)
    monkeypatch.setenv("RANK", "0")
    assert wanted_device(given) == "cuda"
    assert wanted_device(argparse.Namespace(runs=str(tmp_path), run="one", run_id=None)) == "cuda"  # a fork
    given.resume = "none"  # said once the ranks have joined
    assert wanted_device(given) == "auto"
    given.device = "cpu"
    assert wanted_device(given) == "cpu"
    given.resume = "one"
    monkeypatch.setenv("RANK", "1")
    assert wanted_device(given) == "cpu"


def test_a_rank_of_another_host_may_be_out_of_reach(ranks: list[Alive]) -> None:
    ranks[1].end()
    said = {"beat": 1, "doing": "step 3", "progress": 3, "host": "elsewhere", "pid": 4711}
    ranks[1].store.set("alive/1", json.dumps(said))
    assert ranks[2].lost(BROKEN) == (
        1, "rank 1 (process 4711 on elsewhere) died, was stopped or cannot be reached, last seen in step 3"
    )  # fmt: skip


def test_who_leads_meets_the_others_while_it_is_paused(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a rank that hangs then is noticed; more often than the others lose patience."""
    orders, met = list[str](), list[int]()
    leader: Any = Leader.__new__(Leader)
    leader.begin, leader.told, leader.tell = None, time.monotonic() - 0.3, orders.append
    leader.ranks = SimpleNamespace(patience=2.0, meet=lambda: met.append(1))
    monkeypatch.setattr(Trainer, "read", lambda self: True)
    assert leader.read()
    assert (orders, met) == ([], [])
    leader.told -= 0.3
    assert leader.read()
    assert (orders, met) == (["still"], [1])
    obey(SimpleNamespace(ranks=leader.ranks), "still", [])
    assert met == [1, 1]
