"""What one rank of `bench ranks` does: the run's model, dealt over 1, 2 and 4 ranks in turn, and the rows that its experts multiply.

Each rank stands for a device that brings a batch of its own, and the rows go to their experts as in a training (parallel/exchange.py). They are
counted where the products are made. Rank 0 then times the products of its own experts, once the other ranks have ended.

Shapes: L layers, E experts, e of them on a rank, M ranks, n batches that each rank brings, t tokens of one, D model width, K places for experts.
"""

import contextlib
import datetime
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.distributed.elastic.multiprocessing.errors import record

from moe_core.benchmarks.layer import keep_memory
from moe_core.benchmarks.ranks import READY
from moe_core.nn.experts import mixture
from moe_core.nn.models import build, routing_options
from moe_core.parallel import exchange
from moe_core.parallel.alive import Alive
from moe_core.parallel.parent import watch_parent
from moe_core.parallel.ranks import Ranks, spread
from moe_core.runs import cores, open_run
from moe_core.schema import Config, Knobs, describe, experts_per_token, from_dict
from moe_core.training import checkpoint
from moe_core.training.data import Data, load
from moe_core.training.recorded import load_recorded

# For the others, in each exchange. Longer than the launcher's patience: it names the rank that hangs, and not one that waits for it.
WAIT = datetime.timedelta(seconds=READY + 60)
CPU = torch.device("cpu")
AHEAD = 1_000_000  # more exchanges than a part of the measurement has


class Subject(NamedTuple):
    """What is measured: a model after `step` steps, with knobs, and the data that it trains on. state: its weights; None before step 1."""

    config: Config
    knobs: Knobs
    data: Data
    step: int
    state: Any


class Products(NamedTuple):
    """What a rank's experts were given by a layer: mixture()'s arguments, aside from weights, which are 1."""

    x_nD: Tensor
    expert_n1: Tensor
    counts_e: Tensor
    w1_eDH: Tensor
    w2_eDH: Tensor


class Counted(NamedTuple):
    """Of each call of a layer, in their order: rows of each expert from this rank's own tokens (E,), and what arrived from all ranks."""

    own: list[Tensor]
    arrived: list[Products]


def subject_of(given: dict[str, Any]) -> Subject:
    """given: a run's folder and a checkpoint in it, or settings and knobs of a run that nobody has begun."""
    if not given["run"]:
        config, knobs = from_dict(Config, given["config"]), from_dict(Knobs, given["knobs"])
        return Subject(config, knobs, load(config), 0, None)
    run = open_run(given["run"])
    data, _ = load_recorded(run, given["moved"])
    if not given["checkpoint"]:
        return Subject(run.config, run.started_knobs, data, 0, None)
    state = checkpoint.read(Path(given["checkpoint"]))
    return Subject(run.config, from_dict(Knobs, state["knobs"]), data, int(state["step"]), state["model"])


def model_of(subject: Subject, ranks: Ranks) -> nn.Module:
    """The model as a training on these ranks has it, in training mode: its gates draw their noise and look at the tokens of all ranks."""
    config, data, knobs = subject.config, subject.data, subject.knobs
    torch.manual_seed(config.seed)
    model = build(config, data.features, data.classes, knobs.k, knobs.noise, knobs.strategy)
    if subject.state:
        model.load_state_dict(subject.state)
    spread(model, ranks)
    return model.train()


@contextlib.contextmanager
def counting(model: nn.Module, ranks: Ranks) -> Iterator[Counted]:
    """Count while the model runs. What arrives is counted where it is multiplied, so a row that was not sent is not counted."""
    counted, plain, E = Counted([], []), exchange.mixture, model.moe_layers[0].num_experts

    def keep_arrived(x_nD: Tensor, ones_n1: Tensor, expert_n1: Tensor, counts_e: Tensor, *weights: Tensor) -> Tensor:
        counted.arrived.append(Products(x_nD, expert_n1, counts_e, *weights))
        return plain(x_nD, ones_n1, expert_n1, counts_e, *weights)

    def keep_own(
        mix: Callable[..., Tensor], x_tD: Tensor, weights_TK: Tensor, experts_TK: Tensor, *rest: Any
    ) -> Tensor:
        own_tK = experts_TK.chunk(ranks.size)[ranks.rank]
        counted.own.append(own_tK.flatten().bincount(minlength=E + 1)[:E])  # E itself marks an empty place
        return mix(x_tD, weights_TK, experts_TK, *rest)

    exchange.mixture = keep_arrived  # type: ignore[assignment]
    for layer in model.moe_layers:
        layer.mix = partial(keep_own, layer.mix)
    try:
        yield counted
    finally:
        exchange.mixture = plain


@torch.no_grad()
def count(subject: Subject, ranks: Ranks, batches: int) -> tuple[Tensor, Tensor, list[Products]]:
    """(M, n, L, E) the rows of each expert from each rank's own batch; (n, L, E) those that its rank multiplied, from all ranks' batches;
    and what arrived here of the last batch, by layer."""
    model, L = model_of(subject, ranks), subject.config.layers
    with counting(model, ranks) as counted:
        for at in range(batches):
            torch.manual_seed(at)  # the noise is drawn for all tokens on every rank
            batch = subject.data.batch(subject.step + 1 + at * ranks.size + ranks.rank)
            model(batch.inputs, **routing_options(subject.config, subject.knobs))
    own_nLE = torch.stack(counted.own).view(batches, L, -1)
    multiplied = [one.expert_n1.flatten().bincount(minlength=len(one.counts_e)) for one in counted.arrived]
    all_nLe = torch.stack(multiplied).view(batches, L, -1)
    gathered = [[torch.empty_like(x) for _ in range(ranks.size)] for x in (own_nLE, all_nLe)]
    for parts, x in zip(gathered, (own_nLE, all_nLe), strict=True):
        with ranks.traffic.waiting():
            distributed.all_gather(parts, x)
    return torch.stack(gathered[0]), torch.cat(gathered[1], -1), counted.arrived[-L:]


def least_mean_most(rows_nLE: Tensor, on_LE: Tensor) -> list[list[float]]:
    """Of each layer: the rows of the expert that got the fewest in a step, of the mean one, and of the one that got the most. All three
    are means over the same steps, so the second lies between the others; experts that are off are left out."""
    found = []
    for rows_nE, on_E in zip(rows_nLE.double().unbind(1), on_LE, strict=True):
        rows_nE = rows_nE[:, on_E]
        found.append([float(x) for x in (rows_nE.amin(1).mean(), rows_nE.mean(), rows_nE.amax(1).mean())])
    return found


def speeds(
    products: Sequence[list[Products]], seconds: float, come: Callable[[], None]
) -> tuple[list[list[float]], int]:
    """Rows a second of rank 0's experts, forward and backward, for each number of devices and layer; and how many rounds were timed.

    CPU time, medians; the numbers of devices take turns, so that whatever else the machine does falls on all alike. seconds: for each of them;
    come: called in each round, to show that the timing gets on.
    """
    steps = [[step_of(one) for one in of_layers] for of_layers in products]
    taken: list[list[list[float]]] = [[[] for _ in of_layers] for of_layers in products]
    end, rounds = time.perf_counter() + seconds * len(products), 0
    while rounds < 4 or time.perf_counter() < end:
        come()
        for of_layers, times in zip(steps, taken, strict=True):
            for step, of_layer in zip(of_layers, times, strict=True):
                began = time.process_time()
                step()
                of_layer.append(time.process_time() - began)
        rounds += 1
    return [
        [len(one.x_nD) / max(statistics.median(times[1:]), 1e-9) for one, times in zip(of_layers, of, strict=True)]
        for of_layers, of in zip(products, taken, strict=True)
    ], rounds - 1  # the first round only warms up


def step_of(products: Products) -> Callable[[], None]:
    """The experts' products, forward and backward, as a training's rank makes them."""
    x_nD, w1_eDH, w2_eDH = (x.detach().requires_grad_() for x in (products.x_nD, products.w1_eDH, products.w2_eDH))
    ones_n1, grad_nD = x_nD.new_ones(len(x_nD), 1), torch.randn(x_nD.shape)

    def step() -> None:
        y_nD = mixture(x_nD, ones_n1, products.expert_n1, products.counts_e, w1_eDH, w2_eDH)
        torch.autograd.grad(y_nD, (x_nD, w1_eDH, w2_eDH), grad_nD)

    return step


def about(subject: Subject, ranks: int) -> dict[str, Any]:
    """What the counts are of. k and experts: of each layer; experts that are off are left out."""
    config, knobs = subject.config, subject.knobs
    description = describe(config, knobs)
    return {
        "event": "model", "step": subject.step, "tokens": config.tokens,
        "k": [experts_per_token(description, knobs, layer) for layer in range(config.layers)],
        "experts": on_of(subject).sum(1).tolist(),
        "machine": f"{ranks} ranks on {cores()} core{'s' if cores() > 1 else ''}",
    }  # fmt: skip


def on_of(subject: Subject) -> Tensor:
    """(L, E) bool: which experts take part."""
    config = subject.config
    on_LE = torch.ones(config.layers, config.num_experts, dtype=torch.bool)
    for on_E, off in zip(on_LE, routing_options(config, subject.knobs)["off"], strict=False):
        on_E[list(off)] = False
    return on_LE


def tell(event: dict[str, Any], rows: Path, printed: bool) -> None:
    """Add an event to the file from which the launcher makes its table; with --json print it too."""
    if printed:
        print(json.dumps(event), flush=True)
    with rows.open("a") as file:
        file.write(json.dumps(event) + "\n")


@record  # torchrun then tells the launcher why this rank failed
def main() -> None:
    given = json.loads(sys.argv[1])
    watch_parent(given["launcher"])
    signs = distributed.TCPStore("127.0.0.1", given["signs"], is_master=False)
    alive = Alive(signs, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    try:
        measure(given, alive)
    finally:
        alive.end()


def begin(alive: Alive, devices: int, doing: str) -> None:
    """Say what this rank does now. A rank that takes no part in the first counts waits in a later one, so it counts as ahead of those
    that still do the first."""
    alive.progress, alive.doing = devices * AHEAD, doing


def measure(given: dict[str, Any], alive: Alive) -> None:
    """given: what the launcher tells (ranks.py)."""
    torch.set_num_threads(1)
    keep_memory()
    say: Callable[[dict[str, Any]], None] = partial(tell, rows=Path(given["rows"]), printed=given["json"])
    store, rank, size = next(distributed.rendezvous("env://", timeout=WAIT))
    subject, arrived = subject_of(given), []
    if rank == 0:
        say(about(subject, size) | {"late": given["late"]})
    for devices in given["devices"]:
        if rank >= devices:
            continue
        begin(alive, devices, f"the count on {devices} device{'s' if devices > 1 else ''}")
        place = distributed.PrefixStore(f"of {devices}", store)
        distributed.init_process_group("gloo", store=place, rank=rank, world_size=devices, timeout=WAIT)
        ranks = Ranks(devices, CPU, WAIT.total_seconds(), alive)
        own_MnLE, all_nLE, products = count(subject, ranks, given["batches"])
        arrived.append(products)
        if rank == 0:
            own, all_ = (least_mean_most(rows, on_of(subject)) for rows in (own_MnLE.flatten(0, 1), all_nLE))
            say({"event": "rows", "devices": devices, "own": own, "all": all_, "batches": given["batches"]})
        ranks.meet()
        ranks.end()
    if rank == 0:
        begin(alive, 2 * size, "the timing")
        wait_for_the_others(store, size)
        per_second, rounds = speeds(arrived, given["seconds"], alive.come)
        for devices, of_layers in zip(given["devices"], per_second, strict=True):
            say({"event": "speed", "devices": devices, "rows_per_second": of_layers, "rounds": rounds})
    else:
        store.add("ended", 1)


def wait_for_the_others(store: Any, size: int) -> None:
    """Wait until the other ranks have ended, and have left the cores to this one."""
    until = time.monotonic() + WAIT.total_seconds()
    while store.add("ended", 0) < size - 1 and time.monotonic() < until:
        time.sleep(0.05)


if __name__ == "__main__":
    # torch prints pages about an exchange that broke. The launcher says why, in one line.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        main()
    except Exception:
        os._exit(1)
