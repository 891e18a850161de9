"""The trainers of the ranks: rank 0's leads, since it has the record, and the others follow what it tells them.

The leader is an ordinary trainer. Before each thing that all ranks must do together (a step, a look, an evaluation, the state
for a checkpoint) it tells the others what comes, with the knobs as they are to be: so a turn takes effect in the same step
everywhere, whatever the clock of a rank says. While it trains nothing it says every few seconds that it is still there.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from moe_core.parallel.alive import SILENT, Alive, RankLost, called, of_network, ranks_text
from moe_core.parallel.ranks import Ranks, spread, spread_optimizer
from moe_core.parallel.stopping import end_rank
from moe_core.schema import Config, Knobs
from moe_core.training import checkpoint
from moe_core.training.again import Nowhere
from moe_core.training.data import Data, load
from moe_core.training.devices import Dealt
from moe_core.training.loop import Trainer, empty_batch
from moe_core.training.step import optimizer_of, update

STILL = 5.0  # seconds without an order after which the leader says that it is still there; less if the ranks' patience is short
READY = 600.0  # seconds that a rank may take to load its data
POLL = 0.05  # seconds between two looks into the store: store.wait would keep this rank's signs of life waiting too
ALL_READY = "all ready"


class Member(Trainer):
    """A trainer that has its part of the experts, and trains with the others."""

    def __init__(self, ranks: Ranks, config: Config, knobs: Knobs, *rest: Any, **named: Any) -> None:
        super().__init__(config, knobs, *rest, **named)
        ranks.check(config.num_experts, len(self.data.batch(1).inputs))
        self.window.dealt = Dealt(ranks.data, ranks.expert)
        spread(self.model, ranks)
        self.optimizer = optimizer_of(self.model, config, knobs.lr, self.device)
        spread_optimizer(self.optimizer, self.model, ranks)
        # Never captured as a graph: each exchange waits for the numbers of rows.
        self.update = lambda batch, knobs, measure: update(
            self.model, self.optimizer, batch, config, knobs, measure, ranks
        )
        self.ranks = ranks


class Leader(Member):
    """Rank 0's: it writes the record and leads. begin: what the others need to make their own trainers; None once they have it."""

    def __init__(self, ranks: Ranks, alive: Alive, config: Config, knobs: Knobs, *rest: Any, **named: Any) -> None:
        super().__init__(ranks, config, knobs, *rest, **named)
        self.alive, self.told = alive, -STILL
        alive.store.set("folder", str(self.folder))  # for whoever has to write there that this rank is lost
        self.begin: dict[str, Any] | None = {
            "config": config, "knobs": knobs, "columns": self.telemetry.columns, "threads": torch.get_num_threads(), "state": None,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        if self.begin:
            self.begin["state"] = state

    def tell(self, order: str, *values: Any) -> None:
        """Tell the others what comes; the first time let them make their trainers before."""
        if self.begin:
            begin, self.begin = self.begin, None
            self.alive.store.set("begin", "1")
            self.ranks.from_first(("begin", begin))
            wait_for(self.alive)
            self.alive.store.set(ALL_READY, "1")
        self.alive.doing = f"step {self.step + 1}" if order == "train" else order
        self.ranks.from_first((order, *values))
        self.told = time.monotonic()

    @contextlib.contextmanager
    def together(self, order: str, *values: Any) -> Iterator[None]:
        """Tell the others what comes, and do it at the same time, in the body. RankLost, which names it, if a rank is lost."""
        try:
            self.tell(order, *values)
            yield
        except RuntimeError as error:
            if isinstance(error, RankLost) or not of_network(error):
                raise  # a look is within a step: what it named stays named, whatever words are in it
            rank, problem = self.alive.lost(error)
            if problem and rank != self.alive.rank:
                end_rank(self.alive, rank)
            raise RankLost(problem or self.alive.lost_touch(error)) from error

    def train_step(self, began: float) -> None:
        with self.together("train", self.knobs):
            super().train_step(began)

    def snapshot(self, full: bool, routings: Any = None) -> None:
        """Looks anew even where the probe was looked at in this step: the others cannot know whether it was."""
        if self.snapped != self.step or full:
            with self.together("look", self.knobs):
                super().snapshot(full)

    def evaluate(self, text: bool) -> None:
        with self.together("evaluate", self.knobs, text):
            super().evaluate(text)

    def write_checkpoint(self, command: int | None = None) -> None:
        if command is not None or self.checkpointed != self.step:
            with self.together("state"):
                super().write_checkpoint(command)

    def read(self) -> bool:
        if not self.begin and time.monotonic() - self.told > min(STILL, self.ranks.patience / 4):
            with self.together("still"):
                self.ranks.meet()
        return super().read()


def wait_for(alive: Alive) -> None:
    """Wait until all other ranks have made their trainers. RankLost if one cannot."""
    until, beats = time.monotonic() + READY, dict[int, tuple[int, float]]()
    while missing := [rank for rank in range(1, alive.size) if not alive.store.check([f"ready/{rank}"])]:
        for rank in range(1, alive.size):
            if report := alive.read("report", rank):
                raise RankLost(f"rank {rank} could not begin: {report['error']}")
            facts = alive.read("alive", rank)
            beat, since = beats.get(rank, (-1, 0.0))
            if facts.get("beat") != beat:
                beats[rank] = facts.get("beat", -1), time.monotonic()
            elif time.monotonic() - since > 2 * SILENT:
                raise RankLost(f"{called(rank, facts)} died before it had begun")
        if time.monotonic() > until:
            for rank in missing:
                end_rank(alive, rank)
            raise RankLost(f"{ranks_text(missing)} did not begin within {READY:.0f} s")
        time.sleep(POLL)


def wait_for_leader(alive: Alive, word: str) -> None:
    """Wait until the leader has said a word; not in an exchange, which would fail after `patience`. Returns early if it gives no sign
    of life: the exchange that comes then says what is wrong."""
    until, beat, since = time.monotonic() + READY, None, time.monotonic()
    while not alive.store.check([word]) and time.monotonic() < until:
        now = alive.read("alive", 0).get("beat")
        if now != beat:
            beat, since = now, time.monotonic()
        elif time.monotonic() - since > 2 * SILENT:
            return
        time.sleep(POLL)


def follow(ranks: Ranks, alive: Alive, device: torch.device) -> None:
    """What a rank other than 0 does: what it is told, until it is told to end."""
    wait_for_leader(alive, "begin")
    trainer: Member | None = None
    while True:
        order, *values = ranks.from_first(None)
        if order == "end":
            break
        if order == "begin":
            alive.waits = True  # or it would count as one that hangs while it loads the data
            trainer = begin(ranks, device, **values[0])
            alive.store.set(f"ready/{alive.rank}", "1")
            wait_for_leader(alive, ALL_READY)
            continue
        assert trainer, order
        alive.doing = f"step {trainer.step + 1}" if order == "train" else order
        obey(trainer, order, values)
    if trainer:
        trainer.committer.close()


def begin(
    ranks: Ranks, device: torch.device, config: Config, knobs: Knobs, columns: Any, threads: int, state: Any
) -> Member:
    """A trainer as the leader's, in the same state. It writes nothing."""
    torch.set_num_threads(threads)
    data: Data = load(config)
    writer: Any = Nowhere(Path())
    trainer = Member(ranks, config, knobs, data, device, writer, lambda event: None, columns=columns)
    trainer.replaying = True
    if state:
        checkpoint.restore(trainer, state)
    return trainer


def obey(trainer: Member, order: str, values: list[Any]) -> None:
    """Carry out what the leader does at the same time."""
    if order == "state":
        checkpoint.state_of(trainer)
    elif order == "still":
        trainer.ranks.meet()
    else:
        trainer.knobs = values[0]
        if order == "train":
            trainer.train_step(time.perf_counter())
        elif order == "look":
            trainer.snapshot(full=False)
        elif order == "evaluate":
            trainer.evaluate(text=values[1])
        trainer.snapped = -1
        trainer.collected = empty_batch()  # the leader records it
        trainer.telemetry.take()
