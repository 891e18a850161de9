"""First derivatives are right in float64, and second ones are refused: never left out of a sum without a word."""

import importlib
import pkgutil

import pytest
import torch

import moe_core.nn
import moe_core.parallel
from moe_core.nn import HierarchicalMoELayer, MoELayer, importance_loss, load_loss, smooth_load
from moe_core.nn.experts import Fused, Grouped, Mixture, OneByOne, reference_mixture
from moe_core.nn.gating import Chance, Selection
from moe_core.parallel.exchange import Send
from moe_core.parallel.ranks import Gather
from moe_core.schema import STRATEGIES

REFUSAL = "cannot be differentiated again; leave out create_graph=True"
LAYERS = [
    *((MoELayer, strategy) for strategy in STRATEGIES),
    *((HierarchicalMoELayer, name) for name, strategy in STRATEGIES.items() if strategy.hierarchical),
]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def a_layer(kind):
    """Four experts of width 4 for tokens of 4, in float64, with a gate that tells them apart."""
    layer = (MoELayer(4, 4, 4, 2) if kind is MoELayer else HierarchicalMoELayer(4, 4, 4, 2, 1, 1)).double()
    with torch.no_grad():
        for name, parameter in layer.gate.named_parameters():
            if "w_" in name:
                parameter.normal_()
    return layer


def own_functions():
    """The autograd functions that the package defines."""
    for package in (moe_core.nn, moe_core.parallel):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    return {one for one in torch.autograd.Function.__subclasses__() if one.__module__.startswith("moe_core")}


def test_each_function_of_the_package_refuses_a_second_derivative():
    assert own_functions() == {Mixture, Selection, Chance, Send, Gather}
    for function in own_functions():
        with pytest.raises(NotImplementedError, match=REFUSAL) as caught:
            function.backward(None, torch.ones(2, 2))  # as torch calls it under create_graph=True
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "strategy"), LAYERS)
@pytest.mark.parametrize("weigh", ["kept", "all"])
def test_first_derivatives_are_right_in_float64(kind, strategy, weigh):
    """Of all that a layer returns with a gradient, with respect to its input and to each of its weights."""
    layer, x = a_layer(kind), torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    names, weights = zip(*layer.named_parameters(), strict=True)

    def outputs(x, *weights):
        torch.manual_seed(1)
        y, routing = torch.func.functional_call(
            layer, dict(zip(names, weights, strict=True)), (x,), {"strategy": strategy, "weigh": weigh, "noise": 1.0}
        )
        return [t for t in (y, routing.importance_E, routing.load_E, routing.clean_logits_TE) if t.requires_grad]

    assert torch.autograd.gradcheck(outputs, (x, *weights))


@pytest.mark.parametrize(("kind", "strategy"), LAYERS)
def test_a_second_derivative_through_a_layer_is_refused(kind, strategy):
    """Also where the gradient that comes in is a constant and the input has another way: torch's once_differentiable gave the
    second derivative of that way alone."""
    layer, x = a_layer(kind), torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    y, _ = layer(x, strategy=strategy)
    for of_y in (y.sum(), y.square().sum(), y.sum() + x.pow(3).sum()):
        with pytest.raises(RuntimeError, match=REFUSAL):
            torch.autograd.grad(of_y, x, create_graph=True)
        with pytest.raises(RuntimeError, match=REFUSAL):
            of_y.backward(create_graph=True, inputs=[x])
    torch.autograd.grad(y.sum(), x)  # a first one is as before


@pytest.mark.parametrize("kind", [MoELayer, HierarchicalMoELayer])
def test_a_second_derivative_of_each_loss_of_the_gate_is_refused(kind):
    layer, x = a_layer(kind), torch.randn(4, 4, dtype=torch.float64)
    for loss in (
        lambda routing: importance_loss(routing.importance_E),
        lambda routing: load_loss(routing.load_E),
        lambda routing: routing.weights_TK[:, 0].sum(),
    ):
        _, routing = layer(x, noise=1.0, weigh="all")
        gate = layer.gate if kind is MoELayer else layer.gate.primary
        with pytest.raises(RuntimeError, match=REFUSAL):
            torch.autograd.grad(loss(routing), gate.w_gate, create_graph=True)
    clean, std = torch.randn(2, 4, 4, dtype=torch.float64).exp().requires_grad_().unbind()
    with pytest.raises(RuntimeError, match=REFUSAL):
        torch.autograd.grad(smooth_load(clean, clean + 0.1, std, 2)[0], std, create_graph=True)


def test_a_second_derivative_that_needs_no_function_of_ours_is_right():
    """Of the lower of two levels: it is a graph of torch's own."""
    gate, x = a_layer(HierarchicalMoELayer).gate, torch.randn(4, 4, dtype=torch.float64)

    def loss(w_gate):
        routing = torch.func.functional_call(gate, {"w_gate": w_gate}, (x,), {"noisy": False, "weigh": "all"})
        return importance_loss(routing.importance_E)

    assert torch.autograd.gradgradcheck(loss, gate.w_gate)


@pytest.mark.parametrize("products", [OneByOne, Fused, Grouped])
def test_a_second_derivative_of_the_dispatch_is_refused_and_the_reference_has_it(products):
    dtype = torch.float64 if products is OneByOne else torch.float32  # the other two have no float64
    experts = torch.rand(6, 3).topk(2).indices
    inputs = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in ((6, 8), (6, 2), (3, 8, 8), (3, 8, 8))]
    counts = experts.flatten().bincount(minlength=3)
    y = Mixture.apply(*inputs[:2], experts, counts, *inputs[2:], products, experts.numel())
    for one in inputs:
        with pytest.raises(RuntimeError, match=REFUSAL):
            torch.autograd.grad(y.sum(), one, create_graph=True)
    wide = [one.detach().double().requires_grad_() for one in inputs]
    assert torch.autograd.gradgradcheck(lambda x, weights, w1, w2: reference_mixture(x, weights, experts, w1, w2), wide)


@pytest.mark.parametrize("kind", [MoELayer, HierarchicalMoELayer])
def test_transforms_of_functions_are_refused_by_torch(kind):
    """A plain call with other weights is no transform, and works."""
    layer, x = a_layer(kind).eval(), torch.randn(3, 4, 4, dtype=torch.float64)
    for transform in (
        lambda: torch.func.vmap(lambda rows: layer(rows)[0])(x),
        lambda: torch.func.grad(lambda rows: layer(rows)[0].sum())(x),
    ):
        with pytest.raises(RuntimeError, match=r"autograd\.Function"):
            transform()
    y, _ = torch.func.functional_call(layer, dict(layer.named_parameters()), (x,))
    assert torch.equal(y, layer(x)[0])
