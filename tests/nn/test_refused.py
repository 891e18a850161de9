"""What a layer is called with: refused in one line, or computed as it should be."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from moe_core.nn import HierarchicalMoELayer, MoELayer, NoisyTopKGate, losses
from moe_core.nn.strategies import Step, after_update
from moe_core.schema import STRATEGIES, Knobs
from moe_core.training.step import Live

FLAT = list(STRATEGIES)
LEVELS = [name for name, strategy in STRATEGIES.items() if strategy.hierarchical]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def a_layer(kind=MoELayer):
    """Four experts of width 16 for tokens of 8, with a gate that tells them apart."""
    layer = MoELayer(8, 16, 4, 2) if kind is MoELayer else HierarchicalMoELayer(8, 16, 4, 2, 2, 1)
    with torch.no_grad():
        for name, parameter in layer.gate.named_parameters():
            if "w_" in name:
                parameter.normal_()
    return layer


def refusal(call, *args, **options):
    with pytest.raises(ValueError) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200
    return str(caught.value)


HUGE = 10**400
A_NOISE = "must be a number from 0 to 1e+30, got"
REFUSED = [
    *(({"k": k}, f"k must be a whole number, got {k!r}") for k in (1.5, 2.0, True, "2", [2])),
    *(({"k": k}, f"k must be between 1 and num_experts=4, got {k}") for k in (0, -1, 5, np.int64(5))),
    *(({"noise": noise}, f"noise {A_NOISE} {noise!r}") for noise in (math.nan, math.inf, -1, -1e-300, 1e308, "1", [1.0])),
    ({"noise": HUGE}, f"noise {A_NOISE} 1000"),
    ({"noise": torch.tensor(math.nan)}, f"noise {A_NOISE} tensor(nan)"),
    ({"noise": torch.ones(3)}, f"noise {A_NOISE} tensor([1., 1., 1.])"),
    *(
        ({"capacity_factor": factor}, f"capacity_factor must be a finite number, 0 or more, got {factor!r}")
        for factor in (math.nan, math.inf, -math.inf, -1, "1", None)
    ),
    ({"off": (1, 2, 3)}, "at least k=2 experts must stay on, got 1"),
    ({"off": (-1,)}, "off must name experts from 0 to 3, got -1"),
    ({"off": (4,)}, "off must name experts from 0 to 3, got 4"),
    ({"off": (1.0,)}, "an expert that is off must be a whole number, got 1.0"),
    ({"off": "1"}, "an expert that is off must be a whole number, got '1'"),
    ({"off": 1}, "off must be a list of experts, counted from 0, got 1"),
    ({"weigh": "some"}, "weigh must be one of own, kept, all, got 'some'"),
    ({"strategy": "some"}, "strategy must be one of none, paper"),
    ({"strategy": ["paper"]}, "strategy must be one of none, paper"),
    ({"weigh": ["kept"]}, "weigh must be one of "),
]  # fmt: skip


@pytest.mark.parametrize("strategy", FLAT)
@pytest.mark.parametrize(("options", "says"), REFUSED)
def test_an_impossible_option_is_one_line_under_each_strategy(strategy, options, says):
    assert refusal(a_layer(), torch.randn(6, 8), **({"strategy": strategy} | options)).startswith(says)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"k": 3}, "k must be between 1 and num_experts / groups=2, got 3"),
        ({"k": True}, "k must be a whole number, got True"),
        ({"k_primary": 3}, "k_primary must be between 1 and groups=2, got 3"),
        ({"k_primary": 1.5}, "k_primary must be a whole number, got 1.5"),
        ({"noise": math.nan}, f"noise {A_NOISE} nan"),
        ({"noise_primary": math.inf}, f"noise_primary {A_NOISE} inf"),
        ({"off": (4,)}, "off must name experts from 0 to 3, got 4"),
        ({"off": (0,), "k": 2}, "each group must keep k=2 experts on, or none, got 1, 2 on"),
        ({"off": (0, 1), "k_primary": 2}, "at least k_primary=2 groups must keep experts that are on, got 1"),
    ],
)
def test_an_impossible_option_of_two_levels_is_one_line(options, says):
    assert refusal(a_layer(HierarchicalMoELayer), torch.randn(6, 8), **options) == says + (
        "; give 0 for none" if "noise" in says else ""
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [({"noise": math.nan}, f"noise {A_NOISE} nan"), ({"off": (9,)}, "off must name"), ({"weigh": "own"}, "weigh must be kept or all, got 'own'")],
)  # fmt: skip
def test_a_gate_by_itself_refuses_too(options, says):
    for gate in (a_layer().gate, a_layer(HierarchicalMoELayer).gate):
        assert refusal(gate, torch.randn(6, 8), **options).startswith(says)


@pytest.mark.parametrize(
    ("x", "given"),
    [
        (torch.randn(3, 5), "torch.float32 (3, 5)"),
        (torch.randn(()), "torch.float32 ()"),
        (torch.ones(3, 8, dtype=torch.int64), "torch.int64 (3, 8)"),
        (torch.ones(3, 8, dtype=torch.complex64), "torch.complex64 (3, 8)"),
        (np.ones((3, 8)), "ndarray"),
        (None, "NoneType"),
    ],
)
def test_rows_of_another_kind_or_width_are_one_line(x, given):
    assert refusal(a_layer(), x) == f"x must be a tensor of floating-point numbers, 8 in each row, got {given}"


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ((0, 16, 4, 2), "d_model must be at least 1, got 0"),
        ((8, -1, 4, 2), "d_hidden must be at least 1, got -1"),
        ((8, 16, 0, 1), "num_experts must be at least 1, got 0"),
        ((8.0, 16, 4, 2), "d_model must be a whole number, got 8.0"),
        ((8, 16, 4, 5), "k must be between 1 and num_experts=4, got 5"),
        ((8, 16, 4, 1.5), "k must be a whole number, got 1.5"),
    ],
)
def test_impossible_sizes_are_one_line(sizes, says):
    assert refusal(MoELayer, *sizes) == says
    assert refusal(HierarchicalMoELayer, *sizes[:3], 2, sizes[3]).startswith(says[:20])


def test_impossible_groups_and_gates_are_one_line():
    assert refusal(HierarchicalMoELayer, 8, 16, 4, 1.5, 1) == "groups must be a whole number, got 1.5"
    assert refusal(HierarchicalMoELayer, 8, 16, 4, 2, 1, 3) == "k_primary must be between 1 and groups=2, got 3"
    gate = NoisyTopKGate(8, 8, 2)
    assert "the gate must have num_experts=4" in refusal(MoELayer, 8, 16, 4, 2, gate=gate)
    assert "gate must be a module with num_experts" in refusal(MoELayer, 8, 16, 4, 2, gate="paper")
    assert refusal(MoELayer, 8, 16, 4, 2, gate=nn.Linear(8, 4)).endswith(
        "got Linear(in_features=8, out_features=4, bias=True)"
    )


@pytest.mark.parametrize("strategy", FLAT)
def test_an_option_that_there_is_not_is_refused_under_each_strategy(strategy):
    with pytest.raises((ValueError, TypeError), match="capacity"):
        a_layer()(torch.randn(6, 8), strategy=strategy, capacity=1.0)


def test_the_smallest_capacity_is_one_token_an_expert():
    _, routing = a_layer()(torch.randn(40, 8), capacity_factor=1e-300)
    assert routing.counts_E.tolist() != [1, 1, 1, 1] == routing.kept_E.tolist()


def test_whole_numbers_of_numpy_and_numbers_on_a_device_are_taken():
    """A number on the device, as a captured step has it, is compared on the host and is a tensor in the arithmetic only."""
    layer, x = a_layer(), torch.randn(6, 8)
    for options, plain in (
        ({"k": np.int32(3)}, {"k": 3}),
        ({"noise": np.float32(0.5)}, {"noise": 0.5}),
        ({"noise": Live(0.5, torch.tensor(0.5))}, {"noise": 0.5}),
        ({"off": np.array([1, 2])}, {"off": (1, 2)}),
        ({"off": [1, 1, 1]}, {"off": (1,)}),
        ({"capacity_factor": 1.7e308}, {}),
    ):
        torch.manual_seed(1)
        y, routing = layer(x, **options)
        torch.manual_seed(1)
        expected, by_plain = layer(x, **plain)
        assert torch.equal(y, expected)
        assert torch.equal(routing.counts_E, by_plain.counts_E)


def test_a_number_on_a_device_is_never_waited_for(monkeypatch):
    noise = Live(0.5, torch.tensor(0.5))

    def waits(self):
        raise AssertionError("the host waited for the device")

    layer, x = a_layer(), torch.randn(6, 8)
    layer(x, noise=noise)  # what torch prepares once
    for name in ("__bool__", "__float__", "item"):
        monkeypatch.setattr(torch.Tensor, name, waits)
    layer(x, noise=noise)


@pytest.mark.parametrize("strategy", FLAT)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8)])
def test_no_tokens_give_no_output_and_statistics_of_zero(strategy, training, shape):
    layer = a_layer().train(training)
    x = torch.randn(shape, requires_grad=True)
    y, routing = layer(x, strategy=strategy)
    assert y.shape == shape
    assert not routing.counts_E.any()
    assert not routing.importance_E.any()
    assert not routing.load_E.any()
    y.sum().backward()
    assert x.grad.shape == shape
    assert not layer.w1.grad.any()
    step = Step(layer.gate, routing, Knobs(strategy=strategy, k=2), 1)
    assert losses(step).get("w_importance", 0) == 0
    after_update(step)
    assert all(buffer.isfinite().all() for buffer in layer.gate.buffers())


@pytest.mark.parametrize("strategy", FLAT)
@pytest.mark.parametrize("experts", [1, 4])
def test_one_token_and_one_expert(strategy, experts):
    layer = MoELayer(8, 16, experts, 1).eval()
    y, routing = layer(torch.randn(1, 8), strategy=strategy)
    assert y.isfinite().all()
    assert routing.importance_E.isfinite().all()
    # Each expert takes the one token, or none where its gate must be above a threshold that starts where even gates are.
    by_experts = {"expert-choice": experts, "strictly-balanced": 0}
    assert int(routing.counts_E.sum()) == by_experts.get(strategy, 1)


@pytest.mark.parametrize("kind", [MoELayer, HierarchicalMoELayer])
def test_each_precision_and_layout_agrees_with_float64(kind):
    layer, x = a_layer(kind).eval(), torch.randn(12, 8, dtype=torch.float64)
    expected, routing = layer(x)
    assert expected.dtype == routing.importance_E.dtype == torch.float64
    for rows, within in (
        (x.float(), 1e-5),
        (x.float().T.contiguous().T, 1e-5),
        (x.float().repeat_interleave(2, 1)[:, ::2], 1e-5),
        (x.float()[:1].expand(12, 8), None),
        (x.bfloat16(), 0.05),
        (x.half(), 0.01),
    ):
        y, routing = layer(rows)
        assert y.dtype == rows.dtype
        assert routing.importance_E.dtype == torch.float32
        close = layer(rows.double())[0] if within is None else expected
        assert (y.double() - close).norm() <= (within or 1e-5) * close.norm()


@pytest.mark.parametrize("kind", [MoELayer, HierarchicalMoELayer])
def test_without_a_graph_the_output_is_the_same(kind):
    layer, x = a_layer(kind).eval(), torch.randn(6, 8)
    y, routing = layer(x.requires_grad_())
    for plain in (
        lambda: layer(x.detach()),
        torch.no_grad()(lambda: layer(x)),
        torch.inference_mode()(lambda: layer(x)),
    ):
        again, by_plain = plain()
        assert torch.equal(again, y)
        assert torch.equal(by_plain.importance_E, routing.importance_E)
    layer(x.detach())[0].sum().backward()  # the weights have gradients though x has none
    assert layer.w1.grad.any()
    assert layer.gate.w_gate.grad.any()


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("strategy", FLAT)
def test_a_token_that_is_not_finite_touches_no_other(strategy, wrong):
    """Its own output is NaN, or 0 where experts choose. Counts stay whole; importance and smooth load say so."""
    layer, x = a_layer(), torch.randn(8, 8)
    x[3, 2] = wrong
    y, routing = layer(x, strategy=strategy, noise=1.0)
    chosen_by_experts = STRATEGIES[strategy].whole
    others = torch.arange(8) != 3
    assert y[others].isfinite().all()
    assert not y[3].any() if chosen_by_experts else y[3].isnan().all()
    assert int(routing.counts_E.sum()) == (8 * 2 - 4 if chosen_by_experts else 8 * 2)
    if STRATEGIES[strategy].noisy:
        assert routing.load_E.isnan().all()
        assert sorted(routing.importance_E.isnan().nonzero().flatten().tolist()) == sorted(
            routing.experts_TK[3].tolist()
        )
