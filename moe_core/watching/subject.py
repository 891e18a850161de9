"""A model and a batch of the user's, run as often as a check wants, each time from the same state."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from moe_core.remedies import COEFFICIENT
from moe_core.watching.readers import find_taps
from moe_core.watching.routers import BIASES as ROUTERS_BIASES
from moe_core.watching.routers import logit_indices
from moe_core.watching.state import State

Batch = Tensor | Mapping[str, Any]
Loss = Callable[[nn.Module, Any], Tensor]

# What the coefficient of an auxiliary loss is called, in transformers, Megatron and others.
COEFFICIENTS = (COEFFICIENT, "aux_loss_coef", "aux_loss_coeff", "moe_aux_loss_coeff", "moe_loss_weight")
BIASES = (*ROUTERS_BIASES, "correction_bias")
# Settings that make a forward in training random; 0 while a check runs, so that two runs can be compared.
NOISE = ("dropout", "jitter", "layerdrop", "drop_prob", "drop_path")
ROUTERS = ("Router", "Gate", "Gating", "GatingNetwork")
# So many numbers of a gradient are compared: all of the routers', then others' up to this many in all.
COMPARED = 2**24
# How far apart two gradients that ought to be equal may be, as a share of their length. Measured on tiny models: rounding takes
# them 3e-7 apart in float32 and up to 9e-3 in bfloat16; the bugs that the tests plant, 0.5 and more.
TOLERANCE = 0.01
TOLERANCE_IN_HALF = 0.1


class RoutingModule(NamedTuple):
    """A module that routes. at: the index of the logits in what it returns; None if it is not known."""

    module: nn.Module
    at: int | None

    def logits(self, output: Any) -> Tensor | None:
        """(N, E) the logits in what the module returned, None if they are not to be found."""
        if self.at is not None and not torch.is_tensor(output):
            output = output[self.at]
        outputs = [output] if torch.is_tensor(output) else output if isinstance(output, tuple) else []
        sizes = {parameter.shape[0] for parameter in self.module.parameters() if parameter.dim() == 2}
        found = [one for one in outputs if torch.is_tensor(one) and one.is_floating_point() and one.dim() >= 2]
        if self.at is None:
            found = [one for one in found if one.shape[-1] in sizes]
        return found[0].detach().flatten(0, -2) if found else None


def find_routing_modules(model: nn.Module) -> dict[str, RoutingModule]:
    """The routers of a model by their paths: the modules that a transformers model names as giving router logits; in other models
    those whose class is called a router or gate, or which are called so and stand beside experts."""
    kinds = logit_indices(model)
    found = {}
    for name, module in model.named_modules():
        kind = next((kind for kind in kinds if isinstance(module, kind)), None)
        beside = [child for child, _ in model.get_submodule(name.rpartition(".")[0]).named_children()]
        called = type(module).__name__.endswith(ROUTERS) or (
            name.rpartition(".")[2] in ("gate", "router") and any("expert" in child for child in beside)
        )
        if kind is not None or (not kinds and called and any(True for _ in module.parameters())):
            found[name] = RoutingModule(module, None if kind is None else kinds[kind])
    return found


def loss_of_output(model: nn.Module, batch: Any) -> Tensor:
    """The `.loss` of model(**batch). ValueError if it has none."""
    output = model(**batch) if isinstance(batch, Mapping) else model(batch)
    if not torch.is_tensor(loss := getattr(output, "loss", None)):
        raise ValueError(
            f"check needs a loss, and {type(model).__name__} gave none for this batch: put labels in the batch, or give "
            f"loss=lambda model, batch: ..."
        )
    return loss


def check_loss(loss: Any) -> None:
    """ValueError for what no gradient can be taken of."""
    if torch.is_tensor(loss) and loss.numel() == 1 and loss.requires_grad:
        return
    got = f"one of shape {tuple(loss.shape)}" if torch.is_tensor(loss) else type(loss).__name__
    if torch.is_tensor(loss) and loss.numel() == 1:
        got = "one that depends on no parameter with requires_grad"
    raise ValueError(f"check needs a loss that is a tensor of one number and has a gradient, got {got}")


class Subject:
    """What the checks share. zero, turned: the gradients with the coefficient at 0 and at TURNED, if the model has one."""

    TURNED = 100.0  # a coefficient at which the auxiliary gradient is seen in any precision

    def __init__(self, model: nn.Module, batch: Batch, loss: Loss | None, state: State) -> None:
        self.model, self.batch, self.loss, self.state = model, batch, loss or loss_of_output, state
        self.routers = find_routing_modules(model)
        if not self.routers:
            try:
                find_taps(model)
            except ValueError as error:  # it says what was looked for
                raise ValueError(
                    f"{error}. check() takes no readers: it looks at the routers that it finds by itself"
                ) from None
        held = [container for container, _ in state.containers if isinstance(container, dict)]
        self.coefficients = [
            (attributes, name, float(value)) for attributes in held for name in COEFFICIENTS
            if isinstance(value := attributes.get(name), int | float) and not isinstance(value, bool)
        ]  # fmt: skip
        self.noise = [
            (attributes, name) for attributes in held for name, value in attributes.items()
            if isinstance(name, str) and isinstance(value, float) and any(word in name for word in NOISE)
        ]  # fmt: skip
        self.noise += [(vars(one), "p") for one in model.modules() if isinstance(one, nn.modules.dropout._DropoutNd)]
        self.compared, self.slices = self._choose_compared()
        self.value = 0.0  # of the last loss
        self.applied = False  # whether turning the coefficient changes the loss or a gradient
        self.zero = self.turned = torch.zeros(0)
        self.plain = self.gradient()
        if not (math.isfinite(self.value) and self.plain.isfinite().all()):
            raise ValueError(
                f"check compares losses and gradients, and of this batch the loss is {self.value} and the gradient not finite "
                f"throughout; give a batch on which the model can be trained"
            )
        self.tolerance = TOLERANCE_IN_HALF if self._computes_in_half() else TOLERANCE
        self.is_random = relative_difference(self.gradient(seed=1), self.plain) > self.tolerance

    def _computes_in_half(self) -> bool:
        """Whether any module gives 16-bit numbers: by its parameters or by autocast, which may be within the user's loss."""
        dtypes: set[torch.dtype] = set()

        def hear(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                dtypes.add(output.dtype)

        self.prepare()
        with hooked(module.register_forward_hook(hear) for module in self.model.modules()):
            self.loss(self.model, self.batch)
        return not dtypes.isdisjoint((torch.bfloat16, torch.float16))

    def _choose_compared(self) -> tuple[list[nn.Parameter], dict[str, list[slice]]]:
        """The parameters whose gradients are compared, and where each router's stand in the vector of them."""
        of_routers = [p for router in self.routers.values() for p in router.module.parameters()]
        chosen: dict[nn.Parameter, slice] = {}
        end = 0
        for number, parameter in enumerate([*of_routers, *self.model.parameters()]):
            fits = number < len(of_routers) or end + parameter.numel() <= COMPARED
            if parameter not in chosen and parameter.requires_grad and fits:
                chosen[parameter] = slice(end, end + parameter.numel())
                end += parameter.numel()
        slices = {
            name: [chosen[p] for p in router.module.parameters() if p in chosen]
            for name, router in self.routers.items()
        }
        return list(chosen), slices

    def prepare(self, coefficient: float | None = None, seed: int = 0, training: bool = True) -> None:
        """Begin from the same state: modes, buffers, random numbers, no gradients, no noise, the coefficient as given."""
        self.state.rewind()
        if self.model.training != training:
            self.model.train(training)
        for attributes, name in self.noise:
            attributes[name] = 0.0
        for attributes, name, _ in self.coefficients:
            if coefficient is not None:
                attributes[name] = coefficient
        for parameter in self.model.parameters():
            parameter.grad = None
        torch.manual_seed(seed)

    def gradient(
        self,
        batch: Batch | None = None,
        coefficient: float | None = None,
        seed: int = 0,
        direct: bool = False,
        run: Callable[[], object] | None = None,
    ) -> Tensor:
        """(P,) float32 on the CPU: the gradient of the loss of a batch, or what `run` leaves in the parameters.

        direct: nothing flows back through what routers are given, so that a router gets no gradient by way of a later one.
        """
        self.prepare(coefficient, seed)
        routers = self.routers.values() if direct else ()
        with hooked(router.module.register_forward_pre_hook(detach, with_kwargs=True) for router in routers):
            if run is None:
                loss = self.loss(self.model, self.batch if batch is None else batch)
                check_loss(loss)
                self.value = float(loss.detach())
                loss.backward()
            else:
                run()
        parts = [
            torch.zeros(p.numel()) if p.grad is None else p.grad.detach().float().flatten().cpu() for p in self.compared
        ]
        return torch.cat(parts)

    def of_router(self, gradient_P: Tensor, name: str) -> Tensor:
        """The part of a gradient that is a router's."""
        return torch.cat([gradient_P[part] for part in self.slices[name]])

    def logits(self) -> dict[str, Tensor]:
        """The logits (N, E) of each router in one forward."""
        found: dict[str, Tensor] = {}

        def hear(name: str, router: RoutingModule) -> Callable[[nn.Module, Any, Any], None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                if (logits := router.logits(output)) is not None:
                    found[name] = logits

            return hook

        self.prepare()
        hooks = (router.module.register_forward_hook(hear(name, router)) for name, router in self.routers.items())
        with hooked(hooks):
            self.loss(self.model, self.batch)
        return found


@contextmanager
def hooked(hooks: Iterable[RemovableHandle]) -> Iterator[None]:
    """Take hooks off at the end."""
    handles = list(hooks)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def detach(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a module is given, detached."""
    cut: Callable[[Any], Any] = lambda one: one.detach() if isinstance(one, Tensor) else one
    return tuple(cut(one) for one in args), {name: cut(one) for name, one in kwargs.items()}


def relative_difference(a_P: Tensor, b_P: Tensor) -> float:
    """How far a is from b, as a share of b's length. 0 if both are 0."""
    length = float(b_P.norm())
    return float((a_P - b_P).norm()) / length if length else (0.0 if not a_P.any() else float("inf"))


def projection(a_P: Tensor, b_P: Tensor) -> float:
    """The length of a in the direction of b, over that of b: 1 if both are the same, 2 if a is twice b."""
    return float(a_P @ b_P) / (float(b_P @ b_P) or 1.0)


def weighted_sum(gradients: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted sum of gradients."""
    return torch.stack([weight * one for weight, one in zip(weights, gradients, strict=True)]).sum(0)
