"""bench: what is measured side by side with peers, by batch size, and from a start."""

import argparse
from pathlib import Path
from typing import Any

from moe_core.commands.common import add, check_installed, moved, seconds_flag, take_places, whole_flag, word_flag
from moe_core.schema import Config, Knobs, check

SIZES = {
    "d_model": Config.d_model,
    "d_hidden": Config.d_hidden,
    "num_experts": Config.num_experts,
    "k": Knobs.k,
    "tokens": Config.tokens,
}

# Which of the flags for some benchmarks only each takes.
TAKES = {
    "layer": {"seconds", "peer", "allocator"},
    "batch": {"seconds", "d_model", "d_hidden", "num_experts", "k", "device", "threads"},
    "ranks": {"seconds", *SIZES, "run", "text", "data"},
    "seeing": set[str](),
    "start": set[str](),
}
DEFAULTS = SIZES | {"device": "auto", "threads": 1, "allocator": "kept"}


def declare(commands: Any) -> None:
    bench = add(
        commands,
        "bench",
        bench_command,
        "measure the MoE layer beside its peers, by batch size or by devices, what seeing costs, or how long a start takes",
        run=False,
        extra="train",
    )
    bench.add_argument("what", choices=tuple(TAKES))
    bench.add_argument("--quick", action="store_true", help="a few small sizes, to see that it works")
    bench.add_argument(
        "--out", type=Path, metavar="FILE.json", help="write the table here too, with the machine described"
    )
    bench.add_argument(
        "--seconds",
        type=seconds_flag,
        help="time for each size of layer (default 4) or batch (default 1), or number of ranks (default 1)",
    )
    take_sizes(bench)
    take_run(bench)
    take_peers(bench)


def take_sizes(bench: argparse.ArgumentParser) -> None:
    sizes = bench.add_argument_group("the layer that batch and ranks measure")
    for name, default in SIZES.items():
        words = "of a batch of ranks; " if name == "tokens" else ""
        sizes.add_argument("--" + name.replace("_", "-"), type=whole_flag, help=f"{words}default {default}")
    sizes.add_argument("--device", help="of batch (default cpu); ranks are on the CPU")
    sizes.add_argument(
        "--threads",
        type=whole_flag,
        help="torch's CPU threads for batch; 0 leaves them to torch (default 1); ranks have one each",
    )


def settle(arguments: argparse.Namespace) -> None:
    """Put the default of each flag that was not given. ValueError for one that this benchmark would ignore, and for sizes that no layer has."""
    what, all_flags = arguments.what, set[str]().union(*TAKES.values())
    given = [name for name in sorted(all_flags) if getattr(arguments, name) is not None]
    flags = {name: "--" + name.replace("_", "-") for name in given}
    for name in given:
        if name not in TAKES[what]:
            raise ValueError(f"bench {what} does not take {flags[name]}; leave it out")
        if name in SIZES and arguments.run:
            raise ValueError(f"{flags[name]} says what the run says; leave it out, or --run")
    for name in DEFAULTS.keys() - given:
        setattr(arguments, name, DEFAULTS[name])
    if not arguments.run:
        sizes = {name: getattr(arguments, name) for name in SIZES if name != "k"}
        place = {"device": arguments.device, "threads": arguments.threads}
        check(Config.for_task("plane", layers=1, **sizes, **place), Knobs(k=arguments.k))


def take_run(bench: argparse.ArgumentParser) -> None:
    run = bench.add_argument_group("what ranks measures instead of a layer that has learnt nothing")
    run.add_argument(
        "--run",
        type=word_flag,
        metavar="RUN",
        help="the layers of this run: as they are now if it trains and writes a checkpoint within 10 s, else of its last one",
    )
    take_places(run)


def take_peers(bench: argparse.ArgumentParser) -> None:
    peers = bench.add_argument_group("what layer measures beside it")
    peers.add_argument(
        "--peer",
        action="append",
        metavar="NAME[=FILE.py]",
        help="also measure mixtral, mixtral-loop or st-moe (pip install -r requirements-bench.txt), or a file of yours that "
        "has layer(d_model, d_hidden, num_experts, k) -> module, or a class MoE as davidmrau's moe.py; may be given again",
    )
    peers.add_argument("--allocator", choices=("kept", "default"), help="kept: as in the trainer (default); glibc only")


def bench_command(arguments: argparse.Namespace) -> int:
    settle(arguments)
    if arguments.out:
        from moe_core.benchmarks.results import check_place

        check_place(arguments.out)
    if arguments.what == "batch":
        from moe_core.benchmarks.batch import main as batch
        from moe_core.training.machine import choose_device

        arguments.device = str(choose_device("cpu" if arguments.device == "auto" else arguments.device))
        return int(batch(arguments))
    if arguments.what == "ranks":
        from moe_core.benchmarks.ranks import main as ranks

        arguments.moved = moved(arguments)
        return int(ranks(arguments))
    if arguments.what == "seeing":
        from moe_core.benchmarks.seeing import main as seeing

        return int(seeing(arguments))
    if arguments.what == "start":
        from moe_core.benchmarks.start import main as start

        check_installed("dashboard", "bench start")
        return int(start(arguments))
    from moe_core.benchmarks.layer import main as layer

    return int(layer(arguments))
