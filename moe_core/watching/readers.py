"""Where the routers of a model are tapped, and how their choice is read there.

What the experts receive is what happened, whatever biases, groups or samples chose it, so the tap is at the experts' input and
not at the router's output.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

# The second argument of experts, after the hidden states, as transformers and others call it.
IDS = ("top_k_index", "router_indices", "selected_experts", "topk_indices", "topk_ids", "expert_indices", "indices")
GATING = "noisy_top_k_gating"  # a gate within the forward of its layer, which is read by what this method returns
LOOKED_FOR = (
    "modules whose class ends in Experts and whose forward takes (hidden, ids, weights), as in transformers 5; "
    "TokenChoiceTopKRouter, as in torchtitan; modules with a method noisy_top_k_gating; MoELayer of moe_core.nn"
)

# (module, args, kwargs, output) of a call, to ids (N, K) and weights (N, K) or None; None where there is nothing to count.
Reader = Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any], Any], tuple[Tensor, Tensor | None] | None]


class Tap(NamedTuple):
    """Where one layer's choice is read. name: the path of the module in the model; experts: how many it has; early: whether it is
    read before the module's forward, from its arguments, and not after it."""

    name: str
    module: nn.Module
    experts: int
    read: Reader
    early: bool


def parent_of(name: str) -> str:
    """The path of the module that holds this one."""
    return name.rpartition(".")[0]


def find_taps(
    model: nn.Module, routers: Mapping[str, Reader] | None = None, experts: Mapping[str, int] | None = None
) -> list[Tap]:
    """The taps of a model, in the order of its modules. ValueError for a model without any, and for a path that it does not have.

    routers: for layers of another kind, a reader by the path of a module; experts: how many experts each of these has.
    """
    modules = dict(model.named_modules())
    own = []
    for name, read in (routers or {}).items():
        if name not in modules:
            raise ValueError(f"routers must name modules of the model, got {name!r}; see model.named_modules()")
        if not (experts or {}).get(name):
            raise ValueError(f"experts must say how many experts {name!r} has, for example experts={{{name!r}: 8}}")
        own.append(Tap(name, modules[name], (experts or {})[name], read, early=False))
    own_names = {tap.name for tap in own}
    found = [
        tap for name, module in modules.items() if name not in own_names and (tap := tap_of(name, module)) is not None
    ]
    # Where a router's output is read, its experts are not tapped too: Switch's are called with masks in place of ids.
    by_output = {parent_of(tap.name) for tap in found if type(tap.module).__name__ in OUTPUTS}
    found = [tap for tap in found if not tap.early or parent_of(tap.name) not in by_output]
    # Experts that hand on to others within them are one layer.
    by_input = {tap.name for tap in found if tap.early}
    found = [tap for tap in found if parent_of(tap.name) not in by_input]
    taps = sorted([*own, *found], key=lambda tap: list(modules).index(tap.name))
    if not taps:
        raise ValueError(
            f"{type(model).__name__} has no experts that can be watched; looked for {LOOKED_FOR}. "
            f"Name its routers by routers={{path: reader}}"
        )
    return taps


def no_calls(model: nn.Module, steps: int, held_out: bool) -> str:
    """Why nothing was counted. held_out: whether there were calls in evaluation."""
    if held_out:
        return (
            f"{type(model).__name__} was in evaluation mode in all {steps} steps, as from_pretrained leaves it, and its selections "
            f"would count as held-out; call model.train() before the first step"
        )
    return (
        f"no expert of {type(model).__name__} was called in {steps} steps; looked for {LOOKED_FOR}. If the model was compiled and "
        f"called before watch(), watch it first; if its experts run in a kernel of their own, name its routers by routers={{path: reader}}"
    )


def tap_of(name: str, module: nn.Module) -> Tap | None:
    """The tap of a module, if it is of a kind that is known."""
    kind = type(module).__name__
    if kind == "MoELayer" and hasattr(module, "gate"):
        gate: Any = module.gate
        return Tap(name, module, gate.num_experts, read_routing, early=False)
    if callable(getattr(module, GATING, None)) and (experts := experts_of(module)):
        return Tap(name, module, experts, read_gates, early=False)
    if kind in OUTPUTS:
        return Tap(name, module, experts_of(module), OUTPUTS[kind], early=False)
    if kind.endswith("Experts") and takes_ids(module) and (experts := experts_of(module)):
        ids, weights = list(inspect.signature(module.forward).parameters)[1:3]
        return Tap(name, module, experts, Arguments(ids, weights), early=True)
    return None


def takes_ids(module: nn.Module) -> bool:
    """Whether a module's forward takes the hidden states, then ids, then weights."""
    names = list(inspect.signature(module.forward).parameters)
    return len(names) > 2 and names[1] in IDS


def experts_of(module: nn.Module) -> int:
    """How many experts a module has: as it says itself, else the first size of its weights; 0 if neither is known."""
    for word in ("total_experts", "num_experts"):  # the first also counts experts that hand a token on as it is
        if isinstance(said := getattr(module, word, None), int):
            return said
    sizes = {parameter.shape[0] for parameter in module.parameters(recurse=False) if parameter.dim() == 3}
    return sizes.pop() if len(sizes) == 1 else 0


@dataclass(frozen=True)
class Arguments:
    """Reads ids and weights as the experts were called with them: the second and third argument, or by these names."""

    ids: str
    weights: str

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> tuple[Tensor, Tensor | None]:
        ids = args[1] if len(args) > 1 else kwargs[self.ids]
        return ids, args[2] if len(args) > 2 else kwargs.get(self.weights)


def read_routing(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
) -> tuple[Tensor, Tensor | None] | None:
    """Ids and weights of our own layer's Routing. A choice that its capacity dropped was a choice all the same."""
    routing = output[1]
    chosen_TK = routing.experts_TK if routing.dropped_from_TK is None else routing.dropped_from_TK
    return chosen_TK, routing.weights_TK if routing.dropped_from_TK is None else None


def read_gates(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
) -> tuple[Tensor, Tensor | None] | None:
    """What noisy_top_k_gating returned: gates (N, E), 0 where an expert is not chosen, alone or first of several (davidmrau's
    mixture-of-experts, and what is made after it)."""
    gates_NE = output[0] if isinstance(output, tuple) else output
    weights_NK, ids_NK = gates_NE.topk(min(int(getattr(module, "k", gates_NE.shape[1])), gates_NE.shape[1]), dim=-1)
    return ids_NK, weights_NK


def read_choice(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
) -> tuple[Tensor, Tensor | None] | None:
    """torchtitan: scores and ids, (N, K) each, and counts (E,); which comes first differs from version to version."""
    (ids_NK,) = (part for part in output if not part.is_floating_point() and part.dim() > 1)
    return ids_NK, next((part for part in output if part.is_floating_point() and part.shape == ids_NK.shape), None)


def read_scores(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
) -> tuple[Tensor, Tensor | None] | None:
    """Llama 4: scores (N, E), which are 0 where an expert is not chosen; its experts get rows only."""
    weights_NK, ids_NK = output[0].topk(module.top_k, dim=-1)
    return ids_NK, weights_NK


def read_first(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
) -> tuple[Tensor, Tensor | None] | None:
    """Switch: its logits (B, S, E); the mask that it returns leaves out what is above the capacity, which was a choice too."""
    weights_NK, ids_NK = output[2].softmax(-1).topk(1, dim=-1)
    return ids_NK.flatten(0, -2), weights_NK.flatten(0, -2)


def read_logits(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
) -> tuple[Tensor, Tensor | None] | None:
    """JetMoE: its logits (N, E), of which it takes the top k."""
    logits_NK, ids_NK = output[4].topk(module.top_k, dim=-1)
    return ids_NK, logits_NK.softmax(-1)


# Routers that are read by what they return, by their class: their experts are not called with ids.
OUTPUTS: dict[str, Reader] = {
    "JetMoeTopKGating": read_logits,
    "Llama4Router": read_scores,
    "SwitchTransformersTop1Router": read_first,
    "TokenChoiceTopKRouter": read_choice,
}
