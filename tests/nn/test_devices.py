"""The layer on each device against float64 on the CPU: outputs, gradients, every strategy; and that a GPU need not wait.

The CPU's cases run everywhere; those marked `cuda` are what benchmarks/gpu.py runs on a machine with a GPU.
"""

import copy
import warnings

import pytest
import torch

from moe_core.nn.balance import importance_loss, load_loss
from moe_core.nn.experts import reference_mixture
from moe_core.nn.gating import smooth_load
from moe_core.nn.hierarchical import HierarchicalMoELayer
from moe_core.nn.layer import MoELayer
from moe_core.nn.strategies import route
from moe_core.schema import STRATEGIES

CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA GPU")],
)
DEVICES = ["cpu", CUDA]
# Relative to the size of the whole tensor: float32 sums a few hundred products, bfloat16 keeps 8 bits of each.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1.5e-2}
T, D, H, E = 96, 32, 48, 8


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """|a - b| / |b|, both in float64 on the CPU."""
    a, b = (x.detach().double().cpu() for x in (a, b))
    return float((a - b).norm() / b.norm().clamp(min=1e-12))


def layer_of(k: int, groups: int = 0) -> MoELayer:
    layer = HierarchicalMoELayer(D, H, E, groups, k) if groups else MoELayer(D, H, E, k)
    for name, p in layer.gate.named_parameters():
        if "w_gate" in name:
            torch.nn.init.normal_(p, std=0.3)
    return layer


def run(layer: MoELayer, x_TD: torch.Tensor, grad_TD: torch.Tensor, dtype: torch.dtype, **asked):
    """(y, routing, gradients of x and of the parameters that got one) of a training step."""
    x_TD = x_TD.detach().requires_grad_()
    with torch.autocast(x_TD.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        y_TD, routing = layer(x_TD, **asked)
    balance = importance_loss(routing.importance_E) + load_loss(routing.load_E)
    wanted = [(y_TD.to(grad_TD.dtype), grad_TD)] + [(balance, None)] * balance.requires_grad
    torch.autograd.backward(*zip(*wanted, strict=True))
    gradients = {"x": x_TD.grad} | {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    return y_TD, routing, gradients


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("k", [1, 2, E])
def test_output_and_gradients_of_the_experts_agree_with_float64(device: str, dtype: torch.dtype, k: int) -> None:
    layer, x_TD, grad_TD = layer_of(k).to(device), torch.randn(T, D).to(device), torch.randn(T, D).to(device)
    y_TD, routing, gradients = run(layer, x_TD, grad_TD, dtype, noise=1.0)
    # The reference reads what the products read: rounded first, or it would be compared on other sides of the relu.
    read = (t.detach().to(dtype) for t in (x_TD, routing.weights_TK, layer.w1, layer.w2))
    wide = [t.double().cpu().requires_grad_() for t in read]
    reference_TD = reference_mixture(wide[0], wide[1], routing.experts_TK.cpu(), wide[2], wide[3])
    assert y_TD.dtype == dtype
    assert distance(y_TD, reference_TD) < TOLERANCE[dtype]
    _, _, w1_grad, w2_grad = torch.autograd.grad(reference_TD, wide, grad_TD.double().cpu())
    assert distance(gradients["w1"], w1_grad) < TOLERANCE[dtype]
    assert distance(gradients["w2"], w2_grad) < TOLERANCE[dtype]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("strategy", "groups"),
    [(name, groups) for name, s in STRATEGIES.items() for groups in ((0, 4) if s.hierarchical else (0,))],
)
def test_every_strategy_routes_and_learns_on_a_device_as_on_the_cpu(strategy: str, groups: int, device: str) -> None:
    """Without noise, whose draws differ: the same experts for all but tokens whose choice is a matter of rounding."""
    layer, x_TD, grad_TD = layer_of(2, groups), torch.randn(T, D), torch.randn(T, D)
    there = copy.deepcopy(layer).to(device)
    asked = {"strategy": strategy, "noise": 0.0} | ({"noise_primary": 0.0} if groups else {})
    y_TD, routing, gradients = run(there, x_TD.to(device), grad_TD.to(device), torch.float32, **asked)
    wide_y_TD, wide, wide_gradients = run(layer.double(), x_TD.double(), grad_TD.double(), torch.float32, **asked)
    same_T = (routing.experts_TK.cpu() == wide.experts_TK).all(1)
    assert same_T.float().mean() > 0.97
    assert distance(routing.importance_E, wide.importance_E) < 1e-2
    if same_T.all():
        assert distance(y_TD, wide_y_TD) < TOLERANCE[torch.float32]
        assert gradients.keys() == wide_gradients.keys()
        for name, gradient in gradients.items():
            assert distance(gradient, wide_gradients[name]) < 1e-3 or not wide_gradients[name].any(), name


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("noise", [1e-3, 1.0, 4.0])
def test_the_smooth_load_and_its_gradients_agree_with_float64(device: str, noise: float) -> None:
    clean_TE, std_TE = torch.randn(T, E), noise * (torch.rand(T, E) + 0.01)
    noisy_TE = clean_TE + torch.randn(T, E) * std_TE
    weigh_E = torch.randn(E)

    def load_of(*tensors: torch.Tensor):
        leaves = [t.detach().requires_grad_() for t in tensors]
        load_E = smooth_load(*leaves, k=2)
        return load_E, torch.autograd.grad(load_E, leaves, weigh_E.to(load_E))

    load_E, gradients = load_of(*(t.to(device) for t in (clean_TE, noisy_TE, std_TE)))
    reference_E, references = load_of(*(t.double() for t in (clean_TE, noisy_TE, std_TE)))
    assert distance(load_E, reference_E) < 1e-5
    for gradient, reference in zip(gradients, references, strict=True):
        assert distance(gradient, reference) < 1e-3


@pytest.mark.parametrize("device", DEVICES)
def test_off_and_a_capacity_hold_on_a_device(device: str) -> None:
    layer, x_TD = layer_of(2).to(device), torch.randn(T, D).to(device)
    _, routing = layer(x_TD, off=(1, 5), capacity_factor=0.5)
    counts = routing.counts_E.tolist()
    assert counts[1] == counts[5] == 0
    assert sum(counts) == 2 * T
    assert max(routing.kept_E.tolist()) <= -(-T * 2 // (2 * E))


STATIC = [*((name, 0) for name in ("none", "paper", "switch", "loss-free", "quantile", "even")), ("paper", 4)]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA GPU")
@pytest.mark.parametrize(("strategy", "groups"), STATIC)
@pytest.mark.parametrize(("dtype", "waits"), [(torch.bfloat16, 0), (torch.float32, 1)], ids=str)
def test_how_often_the_host_waits_for_the_gpu_in_a_layer(strategy, groups, dtype: torch.dtype, waits: int) -> None:
    """In 32 bits the host reads the counts, once; in 16 bits nothing is read."""
    layer, x_TD, grad_TD = layer_of(2, groups).cuda(), torch.randn(T, D).cuda(), torch.randn(T, D).cuda()
    run(layer, x_TD, grad_TD, dtype, strategy=strategy)  # kernels are loaded at their first use
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run(layer, x_TD, grad_TD, dtype, strategy=strategy)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    told = [str(warning.message) for warning in seen if "called a synchronizing" in str(warning.message)]
    assert len(told) == waits, told


@pytest.mark.parametrize("device", DEVICES)
def test_routing_alone_leaves_its_tensors_on_the_device(device: str) -> None:
    gate = layer_of(2).gate.to(device)
    routing = route(gate, torch.randn(T, D).to(device), 2, "paper", noise=1.0)
    assert {t.device.type for t in routing if isinstance(t, torch.Tensor)} == {device}
