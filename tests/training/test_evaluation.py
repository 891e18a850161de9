"""The held-out loss by hand, and what an ablation measures and leaves alone."""

import math
from dataclasses import replace

import pytest
import torch

from moe_core.nn.models import build, routing_options
from moe_core.schema import Config, Knobs
from moe_core.training.data import load
from moe_core.training.evaluation import ablation, evaluate, held_out_loss

CONFIG = Config.for_task("plane", num_experts=4, layers=2, tokens=64, d_model=8, d_hidden=8)
KNOBS = Knobs()


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = build(CONFIG, 2, 2, 2, strategy="loss-free")
    with torch.no_grad():
        for layer in model.moe_layers:
            layer.gate.w_gate.normal_()
    return model


def test_the_loss_is_the_mean_over_all_tokens_of_all_batches(model) -> None:
    batches = load(CONFIG).held_out()
    parts = [
        batches[0]._replace(inputs=batches[0].inputs[a:b], targets=batches[0].targets[a:b])
        for a, b in ((0, 10), (10, 300))
    ]
    measured = held_out_loss(model, parts, routing_options(CONFIG, KNOBS))
    model.eval()
    logits = model(batches[0].inputs[:300], 2, 0.0)[0]
    loss = -logits.log_softmax(1).gather(1, batches[0].targets[:300, None]).mean().item()
    assert measured["loss"] == pytest.approx(loss, rel=1e-5)
    assert measured["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert measured["bits_per_byte"] == pytest.approx(loss / math.log(2), rel=1e-5)
    assert measured["accuracy"] == pytest.approx((logits.argmax(1) == batches[0].targets[:300]).float().mean().item())


def test_selections_are_counted_over_all_batches_and_without_noise(model) -> None:
    batches = load(CONFIG).held_out()
    random = torch.get_rng_state()
    counts = evaluate(model, batches, routing_options(CONFIG, replace(KNOBS, off="2:3"))).counts_LE
    assert torch.equal(random, torch.get_rng_state())
    model.eval()
    _, routings = model(torch.cat([b.inputs for b in batches]), 2, 0.0, off=((), (2,)))
    by_hand = [[int((r.experts_TK == e).sum()) for e in range(4)] for r in routings]
    assert counts.tolist() == by_hand
    assert counts[1, 2] == 0
    assert counts.sum(1).tolist() == [2 * sum(len(b.targets) for b in batches)] * 2


def test_an_ablation_says_how_the_loss_rises_and_changes_nothing(model) -> None:
    batches = load(CONFIG).held_out()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    model.train()
    whole, rise_LE = ablation(model, batches, CONFIG, KNOBS)
    assert model.training
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert whole == held_out_loss(model, batches, routing_options(CONFIG, KNOBS))["loss"]
    for layer in range(2):
        for expert in range(4):
            without = held_out_loss(
                model, batches, routing_options(CONFIG, replace(KNOBS, off=f"{layer + 1}:{expert + 1}"))
            )
            assert rise_LE[layer, expert].item() == pytest.approx(without["loss"] - whole, abs=1e-6)
    assert (rise_LE != 0).sum() >= 4  # an expert that no held-out point goes to costs nothing


def test_an_expert_that_is_off_or_cannot_be_spared_has_no_number(model) -> None:
    _, rise_LE = ablation(model, load(CONFIG).held_out(), CONFIG, replace(KNOBS, off="1:1,1:2,2:3"))
    assert rise_LE[0].isnan().all()
    assert rise_LE[1].isnan().tolist() == [False, False, True, False]
