"""What taps counted, as plain lists."""

from moe_core.watching.tally import Sums
from moe_core.watching.taps import Taps


def counts_of(taps: Taps) -> dict[int, list[int]]:
    """Of each tap, the counts since the last take: experts, and last the places without one."""
    return of(taps.take(), "counts_CE1")


def importance_of(taps: Taps) -> dict[int, list[float]]:
    """Of each tap, the sums of weights since the last take."""
    return of(taps.take(), "importance_CE1")


def of(sums: list[Sums], name: str) -> dict[int, list]:
    added: dict[int, list] = {}
    for one in sums:
        for tap, row in zip(one.taps, getattr(one, name).tolist(), strict=True):
            added[tap] = [a + b for a, b in zip(added.get(tap, [0] * len(row)), row, strict=True)]
    return dict(sorted(added.items()))
