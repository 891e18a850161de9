"""Which rank died, hangs or failed: each says twice a second, where the others can read it, that it lives and what it does.

A thread of its own writes this into the store that torchrun keeps for the ranks. So a rank that waits for the others still gives
signs of life, and one that has died or was stopped gives none.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from torch import distributed
from torch._C._distributed_c10d import Store

from moe_core.schema import first_line

EVERY = 0.5  # seconds between two signs of life
SILENT = 2.5  # seconds without one after which a rank counts as gone


class RankLost(RuntimeError):
    """Another rank died, hangs or failed, and this one cannot go on without it."""


class Alive:
    """This rank's signs of life, and those of the others. doing: what this rank does now, in words."""

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self.store, self.rank, self.size = store, rank, size
        self.doing, self.progress = "the start", 0  # how many orders it has carried out
        # What lost() is to say, where this process ended that rank itself (stopping.py).
        self.gone: tuple[int, str] | None = None
        self.ended = threading.Event()
        self.sign(0)
        self.thread = threading.Thread(target=self._work, name="alive", daemon=True)
        self.thread.start()

    def at(self, doing: str) -> None:
        """Say what this rank does now."""
        self.doing, self.progress = doing, self.progress + 1

    def sign(self, beat: int) -> None:
        facts = {"beat": beat, "doing": self.doing, "progress": self.progress}
        self.store.set(f"alive/{self.rank}", json.dumps(facts | {"host": socket.gethostname(), "pid": os.getpid()}))

    def _work(self) -> None:
        beat = 0
        while not self.ended.wait(EVERY):
            beat += 1
            with contextlib.suppress(RuntimeError):  # torchrun, which keeps the store, is gone: see parent.py
                self.sign(beat)

    def end(self) -> None:
        """Say no more. A thread that is still in the store's C++ when Python ends would abort the process."""
        self.ended.set()
        self.thread.join(SILENT)

    def report(self, error: BaseException) -> None:
        """Let the others know why this rank ends. own: the error is its own, and not that it lost touch with another rank."""
        report = {"own": not of_network(error), "error": f"{type(error).__name__}: {first_line(error)}"}
        with contextlib.suppress(RuntimeError):
            self.store.set(f"report/{self.rank}", json.dumps(report))

    def read(self, kind: str, rank: int) -> dict[str, Any]:
        """What a rank has said of itself, {} if nothing."""
        with contextlib.suppress(RuntimeError):
            if self.store.check([f"{kind}/{rank}"]):
                facts: dict[str, Any] = json.loads(self.store.get(f"{kind}/{rank}"))
                return facts
        return {}

    @contextlib.contextmanager
    def coming(self) -> Iterator[None]:
        """Within it the ranks meet for the first time. RankLost, which names those that did not come, for the rank that notices it
        first; the others end without a word, but only once that one has spoken, since torchrun ends all after the first."""
        began = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            if not of_network(error):
                raise
            waited = time.monotonic() - began
            _, problem = self.lost()
            with contextlib.suppress(RuntimeError):  # the store is gone: then each speaks for itself
                if self.store.add("spoken", 1) > 1:
                    time.sleep(1.0)
                    raise SystemExit(1) from error
            unknown = "the ranks did not all come to the start; which did not cannot be told: torchrun's store is gone"
            words = f"; rank {self.rank} waited for {waited:.0f} s. Look at the machine and the log of what is missing, and start again"
            raise RankLost((problem or unknown) + words) from error

    def lost(self) -> tuple[int, str]:
        """To be asked after an exchange with the others has failed: the rank that is lost, and a sentence about it; (-1, "") if none
        can be named. Takes SILENT seconds."""
        if self.gone:
            return self.gone
        others = [rank for rank in range(self.size) if rank != self.rank]
        first, until = {rank: self.read("alive", rank) for rank in others}, time.monotonic() + SILENT
        while time.monotonic() < until:
            time.sleep(EVERY / 2)
            for rank in others:
                report = self.read("report", rank)
                if report.get("own"):
                    return rank, f"rank {rank} failed in {first[rank].get('doing', 'the start')}: {report['error']}"
        now = {rank: self.read("alive", rank) for rank in others}
        if not self.read("alive", self.rank):
            return -1, ""  # the store is gone, and with it whatever the others said
        if absent := [rank for rank in others if not now[rank]]:
            return absent[0], f"{ranks_text(absent)} did not come to the start"
        for rank in others:
            if not self.read("report", rank) and now[rank].get("beat") == first[rank].get("beat"):
                away = now[rank].get("host") != socket.gethostname()
                fate = "died, was stopped or cannot be reached" if away else "died or was stopped"
                return rank, f"{called(rank, now[rank])} {fate}, last seen in {now[rank].get('doing', 'the start')}"
        quiet = [rank for rank in others if not self.read("report", rank)]
        if not quiet:
            return -1, ""
        slowest = min(quiet, key=lambda rank: now[rank].get("progress", -1))
        return slowest, f"{called(slowest, now[slowest])} hangs in {now[slowest].get('doing', 'the start')}"


def ranks_text(ranks: Sequence[int]) -> str:
    """ "rank 1", "ranks 1 and 3"."""
    *most, last = map(str, ranks)
    return f"ranks {', '.join(most)} and {last}" if most else f"rank {last}"


def called(rank: int, facts: dict[str, Any]) -> str:
    return f"rank {rank} (process {facts['pid']} on {facts['host']})" if facts else f"rank {rank}"


def of_network(error: BaseException) -> bool:
    """Whether an error says no more than that an exchange with other ranks failed."""
    return isinstance(error, distributed.DistError) or "gloo/" in str(error) or "Connection" in str(error)
