"""The knob balance_over: Switch's loss over a sequence, the batch, or the last batches together, against float64 loops."""

import pytest
import torch

from moe_core.nn.gating import NoisyTopKGate
from moe_core.nn.hierarchical import HierarchicalGate
from moe_core.nn.strategies import Step, after_update, losses, route
from moe_core.schema import GLOBAL_BATCHES, Knobs

T, D, E = 24, 5, 6


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def gate_of(num_experts=E, k=2):
    gate = NoisyTopKGate(D, num_experts, k)
    with torch.no_grad():
        gate.w_gate.normal_()
    return gate


def train_once(gate, over, k=2, sequence=8, off=(), strategy="switch", **options):
    """One step's routing and loss, and what follows the update."""
    routing = route(gate, torch.randn(T, D), k, strategy, off=off, **options)
    step = Step(gate, routing, Knobs(strategy=strategy, k=k, balance_over=over), sequence)
    loss = losses(step).get("w_switch")
    after_update(step)
    return routing, loss


def defined(logits, batches, k):
    """E sum_i f_i P_i in float64 loops: f over all the batches' tokens, P of the present one."""
    rows = [row.tolist() for experts in batches for row in experts]
    num_experts = logits.shape[1]
    gates = [row.exp() / row.exp().sum() for row in logits]
    return num_experts * sum(
        sum(i in row for row in rows) / (len(rows) * k) * sum(gate[i] for gate in gates) / len(gates)
        for i in range(num_experts)
    )


def agree(loss, routing, reference_of, flat=False):
    """Value, and gradient by the logits. flat: the loss is the same for all logits."""
    wide = routing.clean_logits_TE.detach().double().requires_grad_()
    reference = reference_of(wide)
    torch.testing.assert_close(loss.double(), reference, atol=1e-6, rtol=1e-5)
    ours = torch.autograd.grad(loss, routing.clean_logits_TE)[0]
    torch.testing.assert_close(ours.double(), torch.autograd.grad(reference, wide)[0], atol=1e-6, rtol=1e-4)
    assert (ours.abs().max() < 1e-6) == flat


@pytest.mark.parametrize(("num_experts", "k"), [(6, 1), (6, 2), (1, 1)])
def test_global_takes_f_over_the_last_8_batches_and_p_of_the_present_one(num_experts, k):
    gate, batches = gate_of(num_experts, k), []
    for _ in range(GLOBAL_BATCHES + 3):
        routing, loss = train_once(gate, "global", k)
        batches = [*batches, routing.experts_TK][-8:]
        agree(loss, routing, lambda wide, of=batches: defined(wide, of, k), num_experts == 1)


def test_global_begins_as_the_batch_and_forgets_what_is_past_when_it_is_turned_away():
    gate = gate_of()
    first, alone = train_once(gate, "global")
    agree(alone, first, lambda wide: defined(wide, [first.experts_TK], 2))
    assert gate.recent_WE[-1].tolist() == first.counts_E.tolist()
    for over, strategy in (("batch", "switch"), ("sequence", "switch"), ("global", "paper")):
        train_once(gate, "global")
        train_once(gate, over, strategy=strategy)
        assert not gate.recent_WE.any()


def test_batch_is_the_loss_that_there_was_to_the_last_bit():
    gate = gate_of()
    routing, loss = train_once(gate, "batch")
    share = routing.counts_E.float() / routing.counts_E.sum()
    assert torch.equal(loss, E * (share * routing.clean_logits_TE.softmax(1).mean(0)).sum())


@pytest.mark.parametrize("capacity_factor", [0.0, 0.5])
def test_sequence_is_the_mean_of_the_sequences_losses_before_any_drop(capacity_factor):
    routing, loss = train_once(gate_of(), "sequence", noise=0.0, capacity_factor=capacity_factor)
    chosen = routing.clean_logits_TE.topk(2).indices
    parts = [slice(start, start + 8) for start in (0, 8, 16)]
    agree(loss, routing, lambda wide: sum(defined(wide[part], [chosen[part]], 2) for part in parts) / 3)


def test_where_the_batch_is_one_sequence_they_are_the_same():
    gate = gate_of()
    routing, batch = train_once(gate, "batch")
    sequence = losses(Step(gate, routing, Knobs(strategy="switch", balance_over="sequence"), T))["w_switch"]
    torch.testing.assert_close(sequence, batch)


def test_an_expert_that_is_off_has_no_part_in_f_though_it_was_chosen_before():
    gate = gate_of()
    before, _ = train_once(gate, "global")
    assert before.counts_E[1] > 0
    routing, loss = train_once(gate, "global", off=(1,))
    on = routing.on
    counts = (before.counts_E + routing.counts_E)[on].double()
    gates = routing.clean_logits_TE[:, on].double().softmax(1).mean(0)
    torch.testing.assert_close(loss.double(), (E - 1) * (counts / counts.sum() * gates).sum())


def test_two_levels_count_all_experts():
    gate = HierarchicalGate(D, E, 2, 1, 2, zero_init=False)
    one, _ = train_once(gate, "global", k=1)
    two, loss = train_once(gate, "global", k=1)
    batches = [one.experts_TK, two.experts_TK]
    torch.testing.assert_close(loss.double(), defined(two.clean_logits_TE.double(), batches, 2))
    assert train_once(gate, "sequence", k=1)[1].isfinite()


@pytest.mark.parametrize("gate", [gate_of(), HierarchicalGate(D, E, 2, 1, 2)])
def test_a_checkpoint_from_before_there_were_counts_has_none(gate):
    state = {name: value for name, value in gate.state_dict().items() if "recent" not in name}
    kept = dict(state)
    gate.recent_WE.fill_(3)
    gate.load_state_dict(state)
    assert not gate.recent_WE.any()
    assert state == kept
