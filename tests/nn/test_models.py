"""The models: causal, the right shapes, k and noise live from call to call, every parameter trained."""

import pytest
import torch

from moe_core.nn.models import build, rotate, sample
from moe_core.schema import Config

TEXT = Config(num_experts=4, d_model=16, d_hidden=16, layers=2, tokens=32, context=16)
PLANE = Config.for_task("plane", num_experts=4, d_model=16, d_hidden=16, layers=3)


def model_of(config: Config, k: int = 2, noise: float = 1.0):
    torch.manual_seed(0)
    return build(config, 2, 5, k, noise)


def test_text_shapes_and_one_routing_a_layer() -> None:
    logits, routings = model_of(TEXT)(torch.randint(256, (2, 16)), 2, 1.0)
    assert logits.shape == (2, 16, 256)
    assert [r.experts_TK.shape for r in routings] == [(32, 2)] * 2


def test_classifier_shapes_and_one_routing_a_layer() -> None:
    logits, routings = model_of(PLANE)(torch.randn(7, 2), 1, 1.0)
    assert logits.shape == (7, 5)
    assert [r.experts_TK.shape for r in routings] == [(7, 1)] * 3


def test_a_later_byte_changes_no_earlier_prediction() -> None:
    model = model_of(TEXT).eval()
    inputs = torch.randint(256, (1, 16))
    changed = inputs.clone()
    changed[0, 10] = (changed[0, 10] + 1) % 256
    one, other = model(inputs, 2, 0.0)[0], model(changed, 2, 0.0)[0]
    assert torch.allclose(one[0, :10], other[0, :10], atol=1e-6)
    assert not torch.allclose(one[0, 10:], other[0, 10:], atol=1e-4)


@pytest.mark.parametrize("d", [1, 2, 5, 16])
def test_rotated_products_depend_on_distances_alone(d: int) -> None:
    q, k = torch.randn(2, d, dtype=torch.float64).unbind()
    products_SS = rotate(q.expand(1, 1, 8, d))[0, 0] @ rotate(k.expand(1, 1, 8, d))[0, 0].T
    for distance in range(-7, 8):
        same = products_SS.diagonal(distance)
        assert torch.allclose(same, same[0].expand_as(same), atol=1e-5)
    if d > 1:
        assert products_SS.diagonal(1)[0] != pytest.approx(float(products_SS.diagonal()[0]))
    assert rotate(q.expand(1, 1, 8, d)).norm(dim=-1) == pytest.approx(float(q.norm()), rel=1e-5)


def test_the_order_of_bytes_matters() -> None:
    model = model_of(TEXT).eval()
    one, other = (model(torch.tensor([[*order, 5]]), 2, 0.0)[0][0, -1] for order in ((1, 2, 3), (3, 2, 1)))
    assert not torch.allclose(one, other, atol=1e-4)


def test_k_and_noise_are_of_the_call() -> None:
    model = model_of(TEXT).train()
    inputs = torch.randint(256, (2, 16))
    assert [model(inputs, k, 1.0)[1][0].weights_TK.shape[1] for k in (1, 4, 2)] == [1, 4, 2]
    assert model(inputs, 2, 0.0)[1][0].noise_std_TE.max() == 0
    assert model(inputs, 2, 2.0)[1][0].noise_std_TE.min() > 0


@pytest.mark.parametrize("config", [TEXT, PLANE], ids=["text", "plane"])
def test_every_parameter_gets_a_gradient(config: Config) -> None:
    model = model_of(config)
    inputs = torch.randint(256, (2, 16)) if config.task == "text" else torch.randn(64, 2)
    logits, routings = model(inputs, 2, 1.0)
    (logits.square().mean() + sum(r.load_E.square().mean() for r in routings)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None and "threshold" not in name] == []


def test_without_noise_a_gate_does_not_start_with_ties() -> None:
    assert model_of(TEXT, noise=1.0).moe_layers[0].gate.w_gate.abs().max() == 0
    assert model_of(TEXT, noise=0.0).moe_layers[0].gate.w_gate.abs().max() > 0


@pytest.mark.parametrize("width", [1, 3, 48, 100])
def test_any_width_works(width: int) -> None:
    model = model_of(Config(num_experts=2, d_model=width, d_hidden=4, layers=1, context=4, tokens=4))
    assert model(torch.zeros(1, 4, dtype=torch.long), 1, 1.0)[0].shape == (1, 4, 256)


def test_a_sample_follows_its_generator_and_not_torchs_state() -> None:
    model = model_of(TEXT)
    before = torch.get_rng_state()
    one, again = (sample(model, b"ab", 30, {"k": 2}, torch.Generator().manual_seed(3)) for _ in range(2))
    assert one == again
    assert one[:2] == b"ab"
    assert len(one) == 32
    assert torch.equal(before, torch.get_rng_state())
