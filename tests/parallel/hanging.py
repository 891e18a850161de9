"""A rank that hangs in the middle of a step: HOW is asleep, alone (in an exchange to which no other rank comes) or halted. But for a
halted one its signs of life go on.

`torchrun … -m tests.parallel.hanging HOW RANK moe_core train …` trains as `-m moe_core train …` does, but for rank RANK. And
`python -m tests.parallel.hanging FOLDER moe_core train` starts all CASES, for test_hanging.py: FOLDER/found.json then has for each the
reason in the record, the process that hung, and whether all ranks have ended by themselves. There the ranks are forks of one process, since
importing torch takes longer than all else, and no torchrun ends those that stay.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from torch import distributed

from moe_core.__main__ import main
from moe_core.parallel import exchange
from moe_core.parallel.trainer import Member
from moe_core.runs import Run

AT = 5  # the step
PATIENCE = 5
SETTINGS = "--task plane --layers 2 --num-experts 4 --tokens 64 --d-model 16 --d-hidden 16 --threads 1 --eval-every 1000000 --checkpoint-every 0 --steps 0"
# How many ranks there are, and over how many the experts are dealt; how one hangs, and which.
CASES = {
    "the first of two": (2, 1, "asleep", 0),
    "the second of two": (2, 2, "asleep", 1),
    "the first of four": (4, 2, "asleep", 0),
    "of the second group": (4, 2, "asleep", 2),
    "alone in an exchange": (4, 4, "alone", 3),
    "halted": (4, 2, "halted", 1),
}


def hang(how: str) -> None:
    if how == "halted":
        os.kill(os.getpid(), signal.SIGSTOP)
    if how == "alone":
        distributed.barrier()
    while how == "asleep":
        time.sleep(1)


def train(how: str, hangs: int, words: list[str]) -> int:
    """The command, as a rank; if this is the one that hangs, its step AT never gets beyond the first exchange of rows."""
    step, plain = Member.train_step, exchange.all_to_all

    def all_to_all(*given: Any) -> Any:
        hang(how)
        return plain(*given)

    def train_step(trainer: Member, began: float) -> None:
        if trainer.step + 1 == AT:
            exchange.all_to_all = all_to_all
        step(trainer, began)

    if os.environ["RANK"] == str(hangs):
        Member.train_step = train_step  # type: ignore[method-assign]
    return main(words)


def fork(name: str, rank: int, port: int, folder: Path) -> int:
    """The process of a rank."""
    if pid := os.fork():
        return pid
    many, expert, how, hangs = CASES[name]
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(many), "TORCHELASTIC_RUN_ID": name}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    named = f"--expert-parallel {expert} --patience {PATIENCE} --runs {folder} --run-id {name.replace(' ', '-')}"
    status = 1
    try:
        status = train(how, hangs, ["train", *named.split(), *SETTINGS.split()])
    finally:
        os._exit(status)


def keep_stores() -> tuple[int, list[int]]:
    """A process that keeps a store for each case, as torchrun does, and their ports. It is a process of its own since a store has a thread:
    a fork of that could begin with a lock that nobody lets go."""
    theirs, ours = os.pipe()
    if pid := os.fork():
        with os.fdopen(theirs) as told:
            return pid, json.loads(told.readline())
    try:
        stores = [distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) for _ in CASES]
        os.write(ours, json.dumps([store.port for store in stores]).encode() + b"\n")
        signal.pause()
    finally:
        os._exit(1)


def ended(pid: int) -> bool:
    return os.waitpid(pid, os.WNOHANG)[0] == pid


def start_all(folder: Path) -> None:
    found, processes = dict[str, Any](), dict[str, list[int]]()
    keeper, ports = keep_stores()
    for name, port in zip(CASES, ports, strict=True):
        processes[name] = [fork(name, rank, port, folder) for rank in range(CASES[name][0])]
    left, until = {pid for pids in processes.values() for pid in pids}, time.monotonic() + 90
    while left and time.monotonic() < until:
        left = {pid for pid in left if not ended(pid)}
        time.sleep(0.1)
    for name, pids in processes.items():
        run = Run(folder / name.replace(" ", "-"))
        found[name] = {"reason": run.status().reason, "hung": pids[CASES[name][3]], "gone": not left & set(pids)}
        run.close()
    for pid in (*left, keeper):
        os.kill(pid, signal.SIGKILL)
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    if "RANK" in os.environ:  # torchrun has started it
        sys.exit(train(sys.argv[1], int(sys.argv[2]), sys.argv[4:]))
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    start_all(Path(sys.argv[1]))
