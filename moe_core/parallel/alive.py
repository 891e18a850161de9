"""Which rank died, hangs or failed: each says twice a second, where the others can read it, that it lives and what it does.

A thread of its own writes this into the store that torchrun keeps for the ranks. So a rank that waits for the others still gives
signs of life, and one that has died or was stopped gives none. A rank whose training hangs goes on giving them; so each also says
to how many exchanges it has come. All come to the same ones in the same order: whoever waits in one is ahead of the rank that it
waits for.
"""

import contextlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import distributed
from torch._C._distributed_c10d import Store

from moe_core.schema import first_line

EVERY = 0.5  # seconds between two signs of life
SILENT = 2.5  # seconds without one after which a rank counts as gone
# Seconds, once the ranks are told to end, after which one that has come to no exchange counts as one that hangs. torchrun would kill it
# after 30 s.
WAITS = 6.0
SOURCE = re.compile(r"^\[[^]]*\] *")  # of an error of gloo's: where in its source it was raised


class RankLost(RuntimeError):
    """Another rank died, hangs or failed, and this one cannot go on without it."""


class Alive:
    """This rank's signs of life, and those of the others. doing: what this rank does now, in words."""

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self.store, self.rank, self.size = store, rank, size
        self.doing, self.progress = "the start", 0  # progress: to how many exchanges it has come
        # waits: whether it is in an exchange, or loads the data, and so cannot hang; since: when the last exchange was done.
        self.waits, self.since = True, time.monotonic()
        # What lost() is to say, where this process ended that rank itself (stopping.py).
        self.gone: tuple[int, str] | None = None
        self.ended = threading.Event()
        self.sign(0)
        self.thread = threading.Thread(target=self._work, name="alive", daemon=True)
        self.thread.start()

    def come(self) -> None:
        """Say that this rank comes to an exchange."""
        self.progress += 1
        self.waits = True

    def go_on(self) -> None:
        """Say that the exchange is done."""
        self.since = time.monotonic()  # first: another thread asks hangs() meanwhile
        self.waits = False

    def hangs(self, since: float) -> bool:
        """Whether this rank has come to no exchange for WAITS seconds. They are counted from `since` at the earliest."""
        return not self.waits and time.monotonic() - max(since, self.since) > WAITS

    def sign(self, beat: int) -> None:
        facts = {"beat": beat, "doing": self.doing, "progress": self.progress}
        self.store.set(f"alive/{self.rank}", json.dumps(facts | {"host": socket.gethostname(), "pid": os.getpid()}))

    def _work(self) -> None:
        beat, heard = 0, time.monotonic()
        while not self.ended.wait(EVERY):
            beat += 1
            # Nothing is read from the store here. While the link to it is cut, a read would wait, and block all others that read from it.
            try:
                self.sign(beat)
                heard = time.monotonic()
            except RuntimeError:  # torchrun, which keeps the store, is gone: see parent.py
                if self.rank and self.hangs(heard):  # not rank 0, which may be writing a checkpoint
                    os._exit(1)

    def end(self) -> None:
        """Say no more. A thread that is still in the store's C++ when Python ends would abort the process."""
        self.ended.set()
        self.thread.join(SILENT)

    def report(self, error: BaseException) -> None:
        """Let the others know why this rank ends. own: the error is its own, and not that it lost touch with another rank."""
        own, late = not of_network(error), of_waiting(error)
        report = {"own": own, "late": late, "error": f"{type(error).__name__}: {first_line(error)}"}
        with contextlib.suppress(RuntimeError):
            self.store.set(f"report/{self.rank}", json.dumps(report))

    def read(self, kind: str, rank: int) -> dict[str, Any]:
        """What a rank has said of itself, {} if nothing."""
        return said(self.store, kind, rank)

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
            _, problem = self.lost(error)
            with contextlib.suppress(RuntimeError):  # the store is gone: then each speaks for itself
                if self.store.add("spoken", 1) > 1:
                    time.sleep(1.0)
                    raise SystemExit(1) from error
            why = first_line(error)[:200] if self.read("alive", self.rank) else "torchrun's store is gone"
            unknown = f"the ranks did not all come to the start; which did not cannot be told: {why}"
            words = f"; rank {self.rank} waited for {waited:.0f} s. Look at the machine and the log of what is missing, and start again"
            raise RankLost((problem or unknown) + words) from error

    def lost(self, error: BaseException) -> tuple[int, str]:
        """To be asked after an exchange with the others has failed with an error: the rank that is lost, and a sentence about it; (-1, "")
        if none can be named. Takes SILENT seconds."""
        if self.gone:
            return self.gone
        others = [rank for rank in range(self.size) if rank != self.rank]
        first, until = {rank: self.read("alive", rank) for rank in range(self.size)}, time.monotonic() + SILENT
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
        if not of_waiting(error) and not any(self.read("report", rank).get("late") for rank in others):
            return -1, ""  # nobody has waited for long: a connection broke, and no rank hangs
        # By what they said first: a rank that goes on after all has come, by now, to the exchange that the others have given up.
        if (last := behind(first)) is None:
            return -1, ""
        return last, f"{called(last, first[last])} hangs in {first[last].get('doing', 'the start')}"

    def lost_touch(self, error: BaseException) -> str:
        """Why the ranks cannot go on, for where lost() names none. error: that of the exchange."""
        gone = "" if self.read("alive", self.rank) else ", and torchrun, which started them, has ended"
        # gloo's error without its source file, and without its advice.
        why = SOURCE.sub("", first_line(error)).partition(". This is typically")[0]
        return f"the ranks lost touch with each other{gone} ({why}); go on with train --resume"


def said(store: Store, kind: str, rank: int) -> dict[str, Any]:
    """What a rank has said of itself in this store, {} if nothing, or if the store is gone."""
    with contextlib.suppress(RuntimeError):
        if store.check([f"{kind}/{rank}"]):
            facts: dict[str, Any] = json.loads(store.get(f"{kind}/{rank}"))
            return facts
    return {}


def behind(signs: Mapping[int, dict[str, Any]]) -> int | None:
    """The rank that has come to the fewest exchanges, by what all have said; None if all have come to as many."""
    progress = {rank: facts.get("progress", 0) for rank, facts in signs.items()}
    rank = min(progress, key=progress.__getitem__)
    return rank if progress[rank] < max(progress.values()) else None


def ranks_text(ranks: Sequence[int]) -> str:
    """ "rank 1", "ranks 1 and 3"."""
    *most, last = map(str, ranks)
    return f"ranks {', '.join(most)} and {last}" if most else f"rank {last}"


def called(rank: int, facts: dict[str, Any]) -> str:
    return f"rank {rank} (process {facts['pid']} on {facts['host']})" if facts else f"rank {rank}"


def of_waiting(error: BaseException) -> bool:
    """Whether an error says that a wait for another rank took too long. gloo says it of an exchange, the store of a rank's entry."""
    words = str(error).lower()
    return "timed out" in words or "timeout" in words


def of_network(error: BaseException) -> bool:
    """Whether an error says no more than that an exchange with other ranks failed."""
    return isinstance(error, distributed.DistError) or "gloo/" in str(error) or "Connection" in str(error)
