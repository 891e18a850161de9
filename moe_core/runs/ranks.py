"""Several processes (ranks) that train one run together: how many this machine has room for, what they cannot share, and the words
that start them below torchrun."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from moe_core.runs.identity import deal_from, parts_of
from moe_core.runs.machine import cores, device_kind, gpus
from moe_core.runs.statistics import Deal
from moe_core.schema import Config


class RankCounts(NamedTuple):
    """How many processes train a run, and over how many of them the experts are dealt."""

    size: int = 1
    expert: int = 1


ALONE = RankCounts()


def first_ranks(facts: Mapping[str, Any]) -> RankCounts:
    """The ranks with which a run began; one process where its record, which another program may have written, does not say."""
    return last_ranks([deal_from(1, parts_of(facts.get("ranks")))])


def facts_of_ranks(ranks: RankCounts) -> dict[str, Any]:
    """What a record says of its ranks, which first_ranks() reads."""
    return {} if ranks == ALONE else {"ranks": {"data": ranks.size // ranks.expert, "expert": ranks.expert}}


def most_ranks(device: str) -> tuple[int, str]:
    """How many ranks this machine has room for on a device, and of what each has one, in words."""
    if device.startswith("cuda"):
        return gpus(), "GPU"
    return cores(), "core"


def last_ranks(deals: Sequence[Deal]) -> RankCounts:
    """The ranks that trained a run last, as its `deals` say."""
    return RankCounts(deals[-1].ranks, deals[-1].expert) if deals else ALONE


def ranks_again(deals: Sequence[Deal], facts: Mapping[str, Any]) -> RankCounts:
    """The ranks that go on with a run: as many as trained it last, or one process if this machine has no room for them. Any number
    of ranks can go on from a checkpoint."""
    last = last_ranks(deals)
    return last if last.size <= most_ranks(str(facts.get("device", "cpu")))[0] else ALONE


def again_text(deals: Sequence[Deal], facts: Mapping[str, Any]) -> str:
    """On which ranks a run goes on, in a sentence; "" for a run of one process."""
    last, (most, each) = last_ranks(deals), most_ranks(str(facts.get("device", "cpu")))
    if last == ALONE:
        return ""
    if last.size <= most:
        return f"On {last.size} ranks again."
    has = f"{most} {each}{'' if most == 1 else 's'}"
    return f"In one process: {last.size} ranks trained it, and this machine has {has}."


def check_room(ranks: RankCounts, config: Config) -> None:
    """ValueError unless this machine has room for so many ranks, and they can be on the device that a run is to have."""
    if ranks != ALONE and config.device.startswith("mps"):
        raise ValueError(f"ranks cannot exchange tensors on device {config.device!r}; use device cpu, or one process")
    most, each = most_ranks(device_kind(config))
    if not 1 <= ranks.size <= max(1, most):
        raise ValueError(
            f"ranks must be between 1 and {max(1, most)}, one for each {each} of this machine, got {ranks.size}"
        )


def check_dealt(ranks: RankCounts) -> None:
    """ValueError unless the ranks form whole groups, each of which has all experts."""
    if ranks.expert < 1 or ranks.size % ranks.expert:
        raise ValueError(
            f"expert_parallel must divide the number of ranks ({ranks.size}), got {ranks.expert}; change one of both"
        )


def check_shares(ranks: RankCounts, num_experts: int, rows: int) -> None:
    """ValueError unless experts and the batch's rows can be dealt evenly."""
    if num_experts % ranks.expert:
        raise ValueError(
            f"expert_parallel must divide num_experts ({num_experts}), got {ranks.expert}; change one of both"
        )
    if rows % ranks.size:
        raise ValueError(
            f"a batch must have a multiple of {ranks.size} rows or sequences, one part for each rank, got {rows}; "
            "change tokens"
        )


def rows_of(config: Config) -> int:
    """The rows of a batch, or of text its sequences, which are dealt to the ranks."""
    return config.tokens // config.context if config.task == "text" else config.tokens


def torchrun_words(words: Sequence[str], ranks: RankCounts) -> list[str]:
    """What follows `torchrun`, so that several ranks carry out a command of ours with its flags."""
    command, *flags = words
    start = ["--standalone", "--nproc-per-node", str(ranks.size), "-m", "moe_core", command]
    return [*start, "--expert-parallel", str(ranks.expert), *flags]


def python_words(words: Sequence[str], ranks: RankCounts = ALONE) -> list[str]:
    """What follows `python` to carry out a command of ours. torchrun may not be on the PATH, so this names its module."""
    if ranks == ALONE:
        return ["-m", "moe_core", *words]
    return ["-m", "torch.distributed.run", *torchrun_words(words, ranks)]


def command_words(words: Sequence[str], ranks: RankCounts = ALONE) -> list[str]:
    """The same as a person types it."""
    return ["python", "-m", "moe_core", *words] if ranks == ALONE else ["torchrun", *torchrun_words(words, ranks)]
