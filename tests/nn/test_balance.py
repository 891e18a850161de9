"""The losses after the paper's against loops in float64, and the mistakes that copies of them make."""

import math

import pytest
import torch

from moe_core.nn.balance import (
    importance_loss,
    load_loss,
    sequence_loss,
    switch_loss,
    switch_sequence_loss,
    threshold_loss,
    z_loss,
)

T, E, K = 24, 6, 2


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def defined_switch(logits, experts, num_experts, k):
    loss = 0.0
    for i in range(num_experts):
        f = sum((row == i).sum().item() for row in experts) / (len(experts) * k)
        p = sum(row.exp()[i] / row.exp().sum() for row in logits) / len(logits)
        loss = loss + f * p
    return num_experts * loss


def defined_sequence(logits, k, length):
    affinity, losses = 1 / (1 + (-logits).exp()), []
    for start in range(0, len(logits), length):
        a, loss = affinity[start : start + length], 0.0
        for i in range(a.shape[1]):
            f = a.shape[1] / (k * length) * sum(i in row.topk(k).indices.tolist() for row in a)
            p = sum(row[i] / row.sum() for row in a) / length
            loss = loss + f * p
        losses.append(loss)
    return sum(losses) / len(losses)


def same_with_gradient(ours, reference, logits, wide, flat=False):
    """flat: the loss is the same for all logits."""
    torch.testing.assert_close(ours.double(), reference, atol=1e-6, rtol=1e-5)
    a, b = torch.autograd.grad(ours, logits)[0], torch.autograd.grad(reference, wide)[0]
    torch.testing.assert_close(a.double(), b, atol=1e-6, rtol=1e-4)
    assert (a.abs().max() < 1e-6) == flat


def pair(*shape):
    logits = torch.randn(*shape, requires_grad=True)
    return logits, logits.detach().double().requires_grad_()


@pytest.mark.parametrize("k", [1, 2, 6])
def test_switch_loss_and_its_gradient_agree_with_the_definition(k):
    logits, wide = pair(T, E)
    experts = torch.randn(T, E).topk(k).indices  # not the logits' own: f and P may disagree
    counts = experts.flatten().bincount(minlength=E)
    same_with_gradient(switch_loss(logits, counts), defined_switch(wide, experts, E, k), logits, wide, k == E)


def test_switch_loss_is_1_when_even_whatever_k_and_may_be_below():
    for k in (1, 2):
        assert switch_loss(torch.zeros(T, E), torch.full((E,), T * k // E)).item() == pytest.approx(1)
    logits = torch.tensor([[1.0, 0.0]])
    assert switch_loss(logits, torch.tensor([0, 5])).item() < 1


@pytest.mark.parametrize(("num_experts", "k"), [(6, 1), (6, 2), (6, 6), (1, 1)])
@pytest.mark.parametrize("length", [1, 8, T])
def test_switch_loss_of_each_sequence_and_its_gradient_agree_with_the_definition(num_experts, k, length):
    logits, wide = pair(T, num_experts)
    experts = torch.randn(T, num_experts).topk(k).indices
    parts = [slice(start, start + length) for start in range(0, T, length)]
    reference = sum(defined_switch(wide[part], experts[part], num_experts, k) for part in parts) / len(parts)
    ours = switch_sequence_loss(logits, experts, length)
    same_with_gradient(ours, reference, logits, wide, k == num_experts)
    if length == T:
        torch.testing.assert_close(ours, switch_loss(logits, experts.flatten().bincount(minlength=num_experts)))


def test_switch_loss_of_sequences_sees_an_imbalance_that_the_batch_hides():
    """Each sequence uses one expert only, and each expert has one sequence."""
    logits = 4 * torch.eye(4).repeat_interleave(4, 0)
    experts = logits.topk(1).indices
    assert switch_loss(logits, torch.full((4,), 4)).item() == pytest.approx(1)
    assert switch_sequence_loss(logits, experts, 16).item() == pytest.approx(1)
    assert switch_sequence_loss(logits, experts, 4).item() > 3


def test_losses_leave_out_the_experts_that_are_off():
    on = torch.tensor([0, 2, 3])
    logits = torch.randn(T, 4)
    logits[:, 1] = -math.inf
    counts = torch.tensor([10, 0, 8, 6])
    less = logits[:, on]
    ranks = torch.randn(T, 3).topk(2).indices
    for ours, theirs in (
        (importance_loss(counts.float(), on), importance_loss(counts[on].float())),
        (load_loss(counts.float(), on), load_loss(counts[on].float())),
        (switch_loss(logits, counts, on), switch_loss(less, counts[on])),
        (switch_sequence_loss(logits, on[ranks], 8, on), switch_sequence_loss(less, ranks, 8)),
        (sequence_loss(logits, 2, 8, on), sequence_loss(less, 2, 8)),
        (z_loss(logits), z_loss(less)),
        (
            threshold_loss(logits, torch.tensor([[0, 4]] * T), torch.full((4,), -5.0)),
            threshold_loss(less, torch.tensor([[0, 3]] * T), torch.full((3,), -5.0)),
        ),
    ):
        assert ours.isfinite()
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("k", "length"), [(1, 24), (2, 8), (2, 1), (6, 12)])
def test_sequence_loss_and_its_gradient_agree_with_the_definition(k, length):
    logits, wide = pair(T, E)
    same_with_gradient(sequence_loss(logits, k, length), defined_sequence(wide, k, length), logits, wide, k == E)


def test_sequence_loss_sees_an_imbalance_within_sequences_that_the_batch_hides():
    """Each sequence uses one expert only, and each expert has one sequence."""
    logits = 4 * torch.eye(4).repeat_interleave(4, 0)
    assert sequence_loss(logits, 1, 16).item() == pytest.approx(1, abs=1e-5)
    assert sequence_loss(logits, 1, 4).item() > 1.3


def test_sequence_loss_is_finite_where_affinities_saturate():
    for scale in (1e3, 1e30):
        logits = (scale * torch.randn(T, E)).requires_grad_()
        sequence_loss(logits, 2, 8).backward()
        assert logits.grad.isfinite().all()


def test_z_loss_and_its_gradient_agree_with_the_definition():
    logits, wide = pair(T, E)
    reference = sum(row.exp().sum().log() ** 2 for row in wide) / T
    same_with_gradient(z_loss(logits), reference, logits, wide)
    assert z_loss(torch.zeros(3, E)).item() == pytest.approx(math.log(E) ** 2)
