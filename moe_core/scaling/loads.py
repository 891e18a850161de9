"""How evenly devices would be loaded, by what one device recorded: rows of each expert in single steps.

Shapes: S recorded steps, G groups, L layers, R rows of a layer, E experts of the run, N experts on all devices of a group (E, or a multiple of it), M
devices in a group.
"""

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]
CHANCE = 200  # steps that are drawn where none was recorded


def drawn(
    rows_SLE: Rows, groups: int, expert: int, multiple: int, strong: bool, generator: np.random.Generator
) -> Rows:
    """(G, L, N) the rows of each group's experts in a step.

    Weak scaling: each of a group's M devices brings a batch of its own, which chooses as one of the recorded steps did, drawn at
    random. Strong: all groups share one recorded step, and each row of it is in one of them. With `multiple`
    times as many experts each is as popular as one of the recorded, drawn at random, and rows choose by popularity.
    """
    if strong:
        whole_LE = rows_SLE[generator.integers(len(rows_SLE))]
        group_GLE = np.stack([part(whole_E, groups, generator) for whole_E in whole_LE], 1)
    else:
        times_GS = generator.multinomial(expert, np.full(len(rows_SLE), 1 / len(rows_SLE)), size=groups)
        group_GLE = np.tensordot(times_GS.astype(np.float64), rows_SLE, 1)
    if multiple == 1:
        return group_GLE
    popular_GLN = group_GLE[..., generator.integers(rows_SLE.shape[2], size=multiple * rows_SLE.shape[2])]
    total_GL1 = popular_GLN.sum(2, keepdims=True)
    # If all that were drawn are experts that no row chose, the rows choose evenly.
    chance_GLN = np.where(total_GL1 > 0, popular_GLN / np.where(total_GL1 > 0, total_GL1, 1), 1 / popular_GLN.shape[2])
    rows_GL = np.rint(group_GLE.sum(2)).astype(np.int64)
    return generator.multinomial(rows_GL, chance_GLN).astype(np.float64)


def part(whole_E: Rows, groups: int, generator: np.random.Generator) -> Rows:
    """(G, E) a layer's rows, dealt at random over the groups: as many to each, but for one where they cannot be."""
    rows_E = np.rint(whole_E).astype(np.int64)
    expert_R = generator.permutation(np.repeat(np.arange(len(rows_E)), rows_E))  # of each row
    group_R = np.arange(len(expert_R)) * groups // max(1, len(expert_R))
    in_each = np.bincount(group_R * len(rows_E) + expert_R, minlength=groups * len(rows_E))
    return in_each.reshape(groups, -1).astype(np.float64)


def of_devices(rows_GLN: Rows, expert: int) -> Rows:
    """(G, L, M) the rows of each device: the experts are dealt in their order, as many to each."""
    rows_GLM: Rows = rows_GLN.reshape(*rows_GLN.shape[:2], expert, -1).sum(3)
    return rows_GLM


def by_chance(tokens: int, experts: int, layers: int, k: int) -> Rows:
    """(S, L, E) rows of tokens that choose k different experts each, all with the same chance: where no run was recorded.

    Drawn expert by expert: a token that has r choices left among m experts takes the next one with chance r / m.
    """
    generator = np.random.default_rng(0)
    rows_ESL, left_kSL = np.zeros((experts, CHANCE, layers)), np.zeros((k + 1, CHANCE, layers), np.int64)
    left_kSL[k] = tokens  # tokens by how many choices they have left
    for expert in range(experts):
        chance_k = np.minimum(1, np.arange(k + 1) / (experts - expert))
        taken_kSL = generator.binomial(left_kSL, chance_k[:, None, None])
        rows_ESL[expert] = taken_kSL.sum(0)
        left_kSL -= taken_kSL
        left_kSL[:-1] += taken_kSL[1:]
    return rows_ESL.transpose(1, 2, 0)


def max_over_mean(rows: Rows) -> float:
    """The largest along the last axis over the mean, averaged over the others; 1 where there are no rows at all."""
    mean = rows.mean(-1)
    return float(np.where(mean > 0, rows.max(-1) / np.where(mean > 0, mean, 1), 1).mean())
