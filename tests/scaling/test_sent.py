"""What a step sends, beside an enumeration of who sends what to whom. What a training counts: tests/parallel/test_ranks.py."""

import numpy as np
import pytest

from moe_core.scaling.sent import NUMBER, SUMS, Step, collectives, sent_bytes

STEP = Step(
    ranks=4, expert=2, tokens=12, layers=2, experts=4, width=3, scores=(4, 4), standard=40, of_experts=24, rows=48
)


def ring(ranks: int, numbers: int) -> int:
    """Numbers that all ranks together send to add up a tensor: blocks go round once to be added, once to be known."""
    sent = 0
    for _ in ("added", "known"):
        for _ in range(ranks - 1):
            sent += sum(numbers // ranks for _ in range(ranks))
    return sent


def test_each_exchange_is_what_an_enumeration_counts() -> None:
    step, found = STEP, collectives(STEP)
    R, M, L, t = step.ranks, step.expert, step.layers, 3
    pairs = [(a, b) for a in range(R) for b in range(R) if a != b]
    own = [(a, b) for a, b in pairs if a // M == b // M]  # of the same group
    assert found["decisions"].sent == sum(NUMBER * L * t * sum(step.scores) for _ in pairs)
    assert found["numbers of rows"].sent == sum(8 * L * (step.experts // M + 1) for _ in own)
    assert found["gradients of all ranks"].sent == NUMBER * ring(R, 40)
    # Each rank adds up its part of the experts with the rank of its place in the other group.
    assert found["gradients of experts"].sent == M * NUMBER * ring(R // M, 24 // M)


def test_rows_of_tokens_that_choose_alike_leave_in_the_same_share_however_uneven_they_are() -> None:
    rows_E = np.array([20, 2, 1, 1])  # of both ranks of a group, half of each expert's rows from each
    leaving = sum(rows / 2 for e, rows in enumerate(rows_E) for sender in range(2) if e // 2 != sender)
    assert leaving == rows_E.sum() / 2
    found = collectives(STEP._replace(rows=48))["tokens"].sent
    # There and back, forward and backward.
    assert found == 4 * 4 * STEP.width * 48 / 2
    assert collectives(STEP._replace(leaving=7, number=2))["tokens"].sent == 4 * 2 * STEP.width * 7


def test_one_rank_sends_nothing_and_waits_for_nothing() -> None:
    for whole in (True, False):
        alone = STEP._replace(ranks=1, expert=1, whole=whole)
        assert all(of == (0, 0) for of in collectives(alone).values())


def test_messages_that_wait_for_each_other_are_those_of_rings() -> None:
    """A rank of 4 gets 3 messages to gather, 6 to add up; of a group of 2 one, and two; both gates' tensors in both layers."""
    waits = {name: of.waits for name, of in collectives(STEP).items()}
    assert waits == {
        "tokens": 8, "decisions": 12, "gradients of all ranks": 6, "gradients of experts": 2, "numbers of rows": 2,
        "norm of the gradients": 2, "orders and loss": 10,
    }  # fmt: skip


def test_to_decide_by_oneself_sends_a_few_numbers_of_each_expert_whatever_the_batch() -> None:
    small, large = (collectives(STEP._replace(tokens=tokens, whole=False))["decisions"] for tokens in (12, 4096))
    assert small == large
    assert small.sent == NUMBER * STEP.layers * ring(4, SUMS * STEP.experts)


@pytest.mark.parametrize("name", ["ranks", "tokens", "layers", "experts", "width", "standard", "of_experts", "rows"])
def test_what_is_sent_grows_with_everything(name: str) -> None:
    assert sent_bytes(STEP._replace(**{name: 2 * getattr(STEP, name)})) > sent_bytes(STEP)


def test_a_group_of_all_ranks_adds_up_no_experts_and_one_of_a_single_rank_exchanges_no_rows() -> None:
    assert collectives(STEP._replace(expert=4))["gradients of experts"].sent == 0
    alone = collectives(STEP._replace(expert=1))
    assert alone["tokens"].sent == alone["numbers of rows"].sent == alone["norm of the gradients"].sent == 0
