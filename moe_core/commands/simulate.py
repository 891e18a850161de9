"""simulate: how long a step would take on more devices, by one device's recorded run and a stated network."""

import argparse
import json
import math
from typing import Any

from moe_core.commands.common import add, plain, real_flag, whole_flag
from moe_core.schema import Config, Knobs, check

POWERS = tuple(2**n for n in range(3, 13))  # 8 to 4,096
SIZES = ("tokens", "layers", "num_experts", "d_model", "d_hidden")
HEAD = (
    ("devices", "", "groups", "", "rows an", "max/mean", "max/mean", "step", "commu-", "effi-", "sent in", "weights", "scores"),
    ("", "experts", "of", "tokens", "expert", "experts", "devices", "ms", "nication", "ciency", "a step", "+ Adam", ""),
)  # fmt: skip


def declare(commands: Any) -> None:
    simulate = add(
        commands,
        "simulate",
        simulate_command,
        "predict a step's time and balance on more devices, from a run of one device and a stated network",
        run=False,
    )
    simulate.add_argument("run", metavar="RUN", nargs="?", help="a run that one process trained on one device")
    network = simulate.add_argument_group("the network")
    network.add_argument(
        "--bandwidth", type=real_flag, required=True, metavar="GB/S",
        help="gigabytes (1e9) a second that each device sends while it receives as many; 100 Gbit/s are 12.5",
    )  # fmt: skip
    network.add_argument(
        "--latency", type=real_flag, required=True, metavar="US", help="microseconds that each message takes beside that"
    )  # fmt: skip
    deal = simulate.add_argument_group("how it is dealt")
    deal.add_argument("--devices", type=whole_flag, nargs="+", metavar="N", help="default 8, 16, … 4096")
    deal.add_argument(
        "--expert-parallel", type=whole_flag, metavar="N",
        help="devices of a group that shares the experts (default: the greatest common divisor of devices and experts; with --grow-experts all devices)",
    )  # fmt: skip
    deal.add_argument(
        "--strong", action="store_true", help="the batch stays the run's; else each device brings one as large"
    )
    deal.add_argument(
        "--grow-experts", action="store_true",
        help="each device keeps as many experts as the run has, so there are more (Shazeer 2017, section 3.1); else the run's are shared",
    )  # fmt: skip
    deal.add_argument(
        "--decide", choices=("batch", "own"), default="batch",
        help="batch: each device decides for the whole batch, as `train` does (default); own: for its own tokens only, which `train` cannot",
    )  # fmt: skip
    deal.add_argument(
        "--cores", type=whole_flag, metavar="N", help="the devices are processes that share so many cores"
    )
    given = simulate.add_argument_group("instead of a RUN, of the text task")
    given.add_argument("--step-ms", type=real_flag, metavar="MS", help="milliseconds of a step on one device")
    for name in SIZES:
        default = getattr(Config, name)
        given.add_argument("--" + name.replace("_", "-"), type=whole_flag, metavar="N", help=f"default {default}")
    given.add_argument("--k", type=whole_flag, metavar="N", help=f"default {Knobs.k}")


def simulate_command(arguments: argparse.Namespace) -> int:
    from moe_core.scaling.predict import Network, predict

    if not 1e-6 <= arguments.bandwidth <= 1e6 or not 0 <= arguments.latency <= 1e9:
        raise ValueError(
            f"--bandwidth must be between 1e-6 and 1e6 GB/s and --latency between 0 and 1e9 us, got {arguments.bandwidth:g} and "
            f"{arguments.latency:g}"
        )
    one = measured_one(arguments)
    network = Network(1e9 * arguments.bandwidth, 1e-6 * arguments.latency)
    rows = [predict(one, plan, network) for plan in plans(arguments, one.config)]
    told = [told_of_device(one), *assumptions(arguments, one)]
    if arguments.json:
        for row in rows:
            print(json.dumps({"event": "prediction", **row._asdict()}))
        print(json.dumps({"event": "end", "step_seconds": one.seconds, "assumptions": told}))
        return 0
    print(plain(told[0]))
    print(f"Network: {arguments.bandwidth:g} GB/s to and from each device, {arguments.latency:g} us a message.\n")
    print("\n".join(table(rows)))
    print("\nAssumed:")
    print("\n".join(f"- {line}" for line in told[1:]))
    return 0


def measured_one(arguments: argparse.Namespace) -> Any:
    """The run that is named, or what the flags say. ValueError for both, or neither."""
    from moe_core.runs import open_run
    from moe_core.scaling.measured import measured_by_hand, measured_run

    by_hand = [name for name in ("step_ms", *SIZES, "k") if getattr(arguments, name) is not None]
    if arguments.run:
        if by_hand:
            flag = "--" + by_hand[0].replace("_", "-")
            raise ValueError(f"{flag} says what the run says; leave it out, or RUN")
        run = open_run(arguments.run, arguments.runs)
        try:
            return measured_run(run)
        finally:
            run.close()
    if arguments.step_ms is None or not 0 < arguments.step_ms <= 1e9:
        raise ValueError(
            "simulate needs the time of a step on one device: name a RUN, or give --step-ms, above 0 and at most 1e9"
        )
    sizes = {name: value for name in SIZES if (value := getattr(arguments, name)) is not None}
    knobs = Knobs() if arguments.k is None else Knobs(k=arguments.k)
    return measured_by_hand(*check(Config.for_task("text", **sizes), knobs), arguments.step_ms / 1e3)


def plans(arguments: argparse.Namespace, config: Config) -> list[Any]:
    """One for each number of devices."""
    from moe_core.runs.ranks import rows_of
    from moe_core.scaling.predict import Plan, shared

    devices = arguments.devices or [n for n in POWERS if not arguments.strong or rows_of(config) % n == 0]
    if not devices:
        raise ValueError(
            f"a batch of {config.tokens:,} tokens cannot be dealt over {POWERS[0]} devices; give --devices"
        )
    whole, found = arguments.decide == "batch", []
    for n in devices:
        most = n if arguments.grow_experts else shared(n, config.num_experts)
        expert = most if arguments.expert_parallel is None else arguments.expert_parallel
        found.append(Plan(n, expert, arguments.strong, arguments.grow_experts, whole, arguments.cores))
    return found


# In words


def told_of_device(one: Any) -> str:
    config, knobs = one.config, one.knobs
    return (
        f"{'Measured' if one.recorded else 'Given'}: {1e3 * one.seconds:.4g} ms a step ({one.about}). Tokens: {config.tokens:,}; MoE layers: {config.layers}, "
        f"{config.d_model} wide; experts: {config.num_experts} a layer, {config.d_hidden} wide; k = {knobs.k}."
    )


def assumptions(arguments: argparse.Namespace, one: Any) -> list[str]:
    """What the prediction goes by, a sentence or two each."""
    from moe_core.scaling.predict import DRAWS

    tokens, experts = one.config.tokens, one.config.num_experts
    choose = (
        f"choose experts as those of one of the run's last {one.recorded} steps did, drawn at random"
        if one.recorded
        else "choose each expert with the same chance, since no run is given"
    )
    told = [
        f"The batch stays {tokens:,} tokens, dealt over the devices; they {choose}."
        if arguments.strong
        else f"Each device brings {tokens:,} tokens; they {choose}.",
        f"Each device of a group keeps {experts} expert{'s' * (experts > 1)}, so there are more of them; each is as popular as one of the {experts}, drawn at random."
        if arguments.grow_experts
        else f"The {experts} experts stay, dealt in their order over the devices of a group; each group has them all."
        if experts > 1
        else "The one expert stays; each device has it.",
        f"All figures are means of {DRAWS} simulated steps. A layer takes as long as its most loaded device.",
        "Of the step only its sum was measured. It is shared out by the sizes, as fitted on a processor core (docs/decisions.md)"
        + ("." if one.device == "cpu" else f"; on {one.device} the shares are others, and were never measured."),
        "Each device decides for the whole batch, as `train` does: it receives all logits, and its gates' work grows with the batch."
        if arguments.decide == "batch"
        else "Each device decides for its own tokens, and 3 numbers of each expert are added up over all. `train` cannot do that.",
        *approximations(arguments, one),
        "Nothing is sent while something is computed. Collectives are rings, and their messages wait for each other; no link is "
        f"shared. To pack what is sent {'is part of the measured step' if one.as_rank else 'takes no time'}.",
        "Weights + Adam: 16 bytes a parameter. Scores: what the gates keep of them for the backward pass. Both of one device.",
    ]
    if arguments.cores:
        told.append(
            f"All devices share {arguments.cores} cores. What it takes these to send must be in the stated bandwidth and latency."
        )
    return told


def approximations(arguments: argparse.Namespace, one: Any) -> list[str]:
    """What is only nearly true of a run's strategy or capacity."""
    from moe_core.scaling.measured import capacity

    own, told = arguments.decide == "own", []
    # Recorded steps are capped as they are. So a device drops of its own batch, and all of one batch that they share.
    if math.isfinite(capacity(one.config, one.knobs)) and own == arguments.strong:
        fewer = "each device's part would lose more" if own else "the devices' batches together would lose fewer"
        told.append(f"Rows beyond the capacity are dropped of each recorded step by itself; {fewer}.")
    if own and one.knobs.strategy == "quantile":
        told.append(
            "The quantile that sets the biases is of all tokens. Numbers that are added up do not give it; to send more is left out."
        )
    return told


def table(rows: list[Any]) -> list[str]:
    """Lines of aligned columns, numbers to the right."""
    body = [
        (
            f"{row.devices:,}", f"{row.experts:,}", f"{row.expert_parallel:,}", f"{row.tokens:,}", f"{row.rows_per_expert:,.1f}",
            f"{row.max_over_mean_experts:.2f}", f"{row.max_over_mean_devices:.2f}", f"{1e3 * row.seconds:,.1f}",
            f"{100 * row.communication:.1f} %", f"{100 * row.efficiency:.3g} %", size(row.sent_bytes), size(row.weight_bytes),
            size(row.score_bytes),
        )
        for row in rows
    ]  # fmt: skip
    cells = [*HEAD, *body]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(str.rjust, line, widths)).rstrip() for line in cells]


def size(count: float) -> str:
    """Bytes: 830 B, 1.2 kB, 34 MB, 5.6 TB."""
    units = ("B", "kB", "MB", "GB", "TB", "PB")
    power = 0
    while count >= 999.5 and power < len(units) - 1:
        count, power = count / 1000, power + 1
    return f"{count:.0f} {units[power]}" if count >= 99.5 or not power else f"{count:.2g} {units[power]}"
