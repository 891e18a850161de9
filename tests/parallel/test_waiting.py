"""How ranks wait for each other at the start, and whom they name when one is lost, without starting any."""

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import distributed

from moe_core.parallel import alive as alive_module
from moe_core.parallel import session, trainer
from moe_core.parallel.alive import Alive, RankLost
from moe_core.parallel.trainer import ALL_READY, Leader, follow


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Alive]]:
    """Three of one store, quick to lose patience with each other."""
    for module in (alive_module, trainer):
        monkeypatch.setattr(module, "SILENT", 0.4)
    monkeypatch.setattr(alive_module, "EVERY", 0.1)
    store = distributed.HashStore()
    all_of_them = [Alive(store, rank, 3) for rank in range(3)]
    yield all_of_them
    for one in all_of_them:
        one.end()


class Gone:
    """A store that nobody answers for any more."""

    def __getattr__(self, name: str) -> Any:
        raise distributed.DistNetworkError("Connection reset by peer")


def test_the_silent_rank_is_named(ranks: list[Alive]) -> None:
    ranks[1].end()
    ranks[1].thread.join()
    rank, problem = ranks[2].lost()
    assert rank == 1
    assert "died or was stopped" in problem


def test_nobody_is_named_when_the_store_is_gone(ranks: list[Alive]) -> None:
    ranks[0].store = Gone()
    assert ranks[0].lost() == (-1, "")


def test_nobody_is_named_when_the_store_goes_while_they_are_asked(ranks: list[Alive]) -> None:
    asked = threading.Thread(target=lambda: found.append(ranks[0].lost()))
    found: list[tuple[int, str]] = []
    asked.start()
    time.sleep(0.1)
    ranks[0].store = Gone()
    asked.join()
    assert found == [(-1, "")]


def leading(*found: tuple[int, str]) -> Any:
    """What `together` needs of a leader. found: the answers to who is lost, of which the last comes first."""
    answers = list(found)
    return SimpleNamespace(tell=lambda order: None, alive=SimpleNamespace(lost=answers.pop), left=answers)


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


@pytest.fixture
def orders(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When a rank that follows asked for each order: to begin, and then to end."""
    times: list[float] = []

    def from_first(value: Any, group: Any) -> tuple[Any, ...]:
        times.append(time.monotonic())
        return ("begin", {"folder": ""}) if len(times) == 1 else ("end",)

    monkeypatch.setattr(trainer, "from_first", from_first)
    monkeypatch.setattr(
        trainer, "begin", lambda ranks, device: SimpleNamespace(committer=SimpleNamespace(close=lambda: None))
    )
    return times


def test_a_rank_that_is_ready_first_waits_outside_an_exchange(ranks: list[Alive], orders: list[float]) -> None:
    """An exchange fails after `patience`. Meanwhile it gives signs of life."""
    follower: Any = SimpleNamespace(control=None)
    ranks[1].store.set("begin", "1")
    follows = threading.Thread(target=follow, args=(follower, ranks[1], torch.device("cpu")))
    follows.start()
    time.sleep(1.0)  # longer than SILENT: the leader is alive
    assert len(orders) == 1
    assert ranks[0].store.add("ready", 0) == 1
    assert ranks[0].read("alive", 1)["beat"] > 5
    ranks[0].store.set(ALL_READY, "1")
    follows.join(5)
    assert len(orders) == 2


def test_a_rank_that_waits_for_the_others_notices_that_the_leader_is_gone(
    ranks: list[Alive], orders: list[float]
) -> None:
    ranks[0].end()
    follower: Any = SimpleNamespace(control=None)
    ranks[1].store.set("begin", "1")
    follow(follower, ranks[1], torch.device("cpu"))
    assert 0.8 < orders[1] - orders[0] < 5


def test_the_leader_lets_them_go_on_once_all_are_ready(ranks: list[Alive], monkeypatch: pytest.MonkeyPatch) -> None:
    store, orders = ranks[0].store, list[tuple[str, bool]]()
    monkeypatch.setattr(trainer, "from_first", lambda value, group: orders.append((value[0], store.check([ALL_READY]))))
    monkeypatch.setattr(trainer, "wait_for", lambda alive: orders.append(("waits", store.check([ALL_READY]))))
    leader: Any = SimpleNamespace(begin={"folder": ""}, alive=ranks[0], ranks=SimpleNamespace(control=None), step=0)
    Leader.tell(leader, "train")
    assert orders == [("begin", False), ("waits", False), ("train", True)]


def test_ranks_never_wait_for_a_leader_that_has_ended(ranks: list[Alive], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "from_first", lambda value, group: None)
    here: Any = SimpleNamespace(alive=ranks[0], ranks=SimpleNamespace(control=None))
    assert session.lead(here, lambda: 3) == 3
    assert ranks[1].store.check(["begin", ALL_READY])


def test_ranks_do_not_train_on_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    """gloo has no tensors of it: the CPU if nobody asked for it, else one line."""
    monkeypatch.setattr(session, "choose_device", lambda name: torch.device("mps" if name == "auto" else name))
    assert session.device_below_torchrun("auto") == torch.device("cpu")
    assert session.device_below_torchrun("cuda") == torch.device("cuda")
    with pytest.raises(ValueError, match="device 'mps'; use --device cpu"):
        session.device_below_torchrun("mps")
