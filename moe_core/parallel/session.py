"""A training by several ranks, as torchrun starts them: each joins the others, rank 0 leads, the rest follow."""

import contextlib
import datetime
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import distributed
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed import DistError
from torch.distributed.rendezvous import rendezvous

from moe_core.parallel.alive import Alive, RankLost, of_network
from moe_core.parallel.launch import launch_name
from moe_core.parallel.parent import store_address
from moe_core.parallel.ranks import PATIENCE, Ranks
from moe_core.parallel.stopping import end_itself, end_rank, end_what_is_halted, told_to_end
from moe_core.parallel.trainer import ALL_READY, Leader, follow
from moe_core.runs import ENDED, RunWriter, StoreError, hold_lock
from moe_core.schema import first_line
from moe_core.training.machine import choose_device
from moe_core.training.session import ending_signals

START = 60.0  # seconds in which the ranks must come


class Joined(NamedTuple):
    """This process among the ranks. make: builds rank 0's trainer; facts: what the record says of the ranks."""

    ranks: Ranks
    alive: Alive
    device: torch.device
    make: Callable[..., Leader]
    facts: dict[str, Any]

    def dismiss(self) -> None:
        """Tell the others that it is over, if they have not been told: rank 0 closes the record alone, which may take longer than they
        wait for it."""
        if self.ranks.dismissed:
            return
        self.ranks.dismissed = True
        with contextlib.suppress(RuntimeError):  # if torchrun was killed its store is gone, and the ranks still run
            for name in ("begin", ALL_READY):  # ranks that wait for either then hear the order to end
                self.alive.store.set(name, "1")
        with contextlib.suppress(RuntimeError):
            self.ranks.from_first(("end",))


@contextlib.contextmanager
def joined(expert: int, device_name: str = "auto", patience: float = PATIENCE) -> Iterator[Joined]:
    """This process as one of the ranks. ValueError, on every rank, for ranks that cannot be laid out so; RankLost where not all come."""
    store, alive = meeting()
    rank, size = alive.rank, alive.size
    try:
        with alive.coming():
            wanted = device_for_all(store, rank, size, device_name, alive.come)
            if wanted.type == "cuda":
                wanted = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
                torch.cuda.set_device(wanted)
            alive.come()
            distributed.init_process_group(
                "cpu:gloo,cuda:nccl" if wanted.type == "cuda" else "gloo",
                store=PrefixStore("group", store), rank=rank, world_size=size, timeout=datetime.timedelta(seconds=patience),
            )  # fmt: skip
            ranks = Ranks(expert, wanted, patience, alive)
        facts = {
            "ranks": {"data": ranks.data, "expert": ranks.expert},
            "launch": launch_name(),
        }
        yield Joined(ranks, alive, wanted, partial(Leader, ranks, alive), facts)
        ranks.end()
    finally:
        alive.end()


def meeting() -> tuple[Store, Alive]:
    """The store at which the ranks of this launch meet, and this one's signs of life in it. RankLost if it cannot be reached."""
    try:
        whole, rank, size = next(rendezvous("env://", timeout=datetime.timedelta(seconds=START)))
        # After a restart torchrun's store still has what the ranks of the last try said of themselves: it must not be read again.
        store = PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), whole)
        return store, Alive(PrefixStore("alive", store), rank, size)
    except DistError as error:
        raise RankLost(
            f"rank {os.environ.get('RANK')} cannot reach torchrun's store at {store_address()} ({first_line(error)[:200]}); "
            "see whether torchrun runs on the first machine, and that it can be reached from here"
        ) from error


def device_for_all(store: Store, rank: int, size: int, name: str, come: Callable[[], None]) -> torch.device:
    """A device of the kind that rank 0 chooses, by its name for it. ValueError on a rank that has none, and then on rank 0, which names it;
    on all of them if rank 0 has none. come: called once this rank has a device, before rank 0 waits for the others."""
    if rank:
        if not (kind := store.get("device").decode()):
            raise ValueError("rank 0 cannot have the device that it was asked to train on")
        try:
            wanted = device_below_torchrun(kind)
        except ValueError as error:
            store.set(f"device/{rank}", f"rank {rank} on {socket.gethostname()} cannot train as rank 0 does: {error}")
            raise
        store.set(f"device/{rank}", "")
        come()
        return wanted
    try:
        wanted = device_below_torchrun(name)
    except ValueError:
        store.set("device", "")  # or the others would wait for it
        raise
    store.set("device", wanted.type)
    come()
    for other in range(1, size):
        if problem := store.get(f"device/{other}").decode():
            raise ValueError(problem)
    return wanted


def device_below_torchrun(name: str) -> torch.device:
    """As choose_device, but for mps: gloo carries no tensors of it."""
    wanted = choose_device(name)
    if wanted.type != "mps":
        return wanted
    if name != "auto":
        raise ValueError(f"ranks cannot exchange tensors on device {name!r}; use device cpu, or one process")
    return torch.device("cpu")


def lead(joined: Joined, work: Callable[[], Any]) -> Any:
    """Do rank 0's work, and then tell the others that it is over."""
    with told_to_end(partial(end_what_is_halted, joined.alive)):
        try:
            return work()
        finally:
            joined.dismiss()


def follow_on(joined: Joined) -> int:
    """What the other ranks do. The exit status: 0 if rank 0 told this one to end, else 1."""
    for number in ending_signals():
        signal.signal(number, lambda *_: None)  # rank 0 gets them too; it ends the run after its step, and all with it
    try:
        with told_to_end(partial(end_itself, joined.alive)):
            follow(joined.ranks, joined.alive, joined.device)
        return 0
    except Exception as error:
        joined.alive.report(error)
        if not of_network(error):
            time.sleep(1.0)  # rank 0 reads the report before torchrun ends it
        elif joined.ranks.rank == 1:
            rank, problem = joined.alive.lost(error)
            with contextlib.suppress(RuntimeError):  # the store is gone
                if rank == 0 and joined.alive.store.check(["folder"]):
                    speak_for_first(Path(joined.alive.store.get("folder").decode()), problem, joined.alive)
        return 1  # at once, so that whoever waits for this rank need not


def speak_for_first(folder: Path, problem: str, alive: Alive) -> None:
    """End rank 0, wait for its lock, and write into the record that it is lost, unless it has ended the run itself."""
    end_rank(alive, 0)
    with contextlib.suppress(StoreError):
        lock = hold_lock(folder, wait=5.0)
        writer = RunWriter(folder, lock)
        ended = writer.state["state"] in ENDED
        writer.finish(
            *(writer.state["state"], writer.state["reason"])
            if ended
            else ("failed", f"{RankLost.__name__}: {first_line(problem)}")
        )
