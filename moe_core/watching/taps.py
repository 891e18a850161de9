"""Where the routers of a model are tapped: hooks that read which experts each token was sent to, with which weights.

What the experts receive is what happened, whatever biases, groups or samples chose it, so the tap is at the experts' input and
not at the router's output.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from moe_core.watching.tally import Tally

# The second argument of experts, after the hidden states, as transformers and others call it.
IDS = ("top_k_index", "router_indices", "selected_experts", "topk_indices", "topk_ids", "expert_indices", "indices")
LOOKED_FOR = (
    "modules whose class ends in Experts and whose forward takes (hidden, ids, weights), as in transformers 5; "
    "MoELayer of moe_core.nn"
)

# (module, args, kwargs, output) of a call, to ids (N, K) and weights (N, K) or None; None where there is nothing to count.
Reader = Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any], Any], tuple[Tensor, Tensor | None] | None]


class Tap(NamedTuple):
    """One router's place. name: the path of its module in the model; early: read before the module's forward, not after it."""

    name: str
    module: nn.Module
    experts: int
    read: Reader
    early: bool


def find_taps(
    model: nn.Module, routers: Mapping[str, Reader] | None = None, experts: Mapping[str, int] | None = None
) -> list[Tap]:
    """The taps of a model, in the order of its modules. ValueError for a model without any, and for a name that it has not.

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
    # The experts of a router that is read by itself are not asked: Switch's are called with masks in place of ids.
    read = {parent_of(tap.name) for tap in found if type(tap.module).__name__ in OUTPUTS}
    found = [tap for tap in found if not tap.early or parent_of(tap.name) not in read]
    taps = sorted([*own, *found], key=lambda tap: list(modules).index(tap.name))
    if not taps:
        raise ValueError(
            f"{type(model).__name__} has no experts that can be watched; looked for {LOOKED_FOR}. "
            f"Name its routers by routers={{path: reader}}"
        )
    return taps


def parent_of(name: str) -> str:
    """The path of the module that holds this one."""
    return name.rpartition(".")[0]


def tap_of(name: str, module: nn.Module) -> Tap | None:
    """The tap of a module, if it is of a kind that is known."""
    kind = type(module).__name__
    if kind == "MoELayer" and hasattr(module, "gate"):
        return Tap(name, module, module.gate.num_experts, read_routing, early=False)
    if kind in OUTPUTS:
        return Tap(name, module, int(module.num_experts), OUTPUTS[kind], early=False)
    if kind.endswith("Experts") and takes_ids(module) and (experts := experts_of(module)):
        return Tap(name, module, experts, read_arguments, early=True)
    return None


def takes_ids(module: nn.Module) -> bool:
    """Whether a module's forward takes the hidden states, then ids, then weights."""
    names = list(inspect.signature(module.forward).parameters)
    return len(names) > 2 and names[1] in IDS


def experts_of(module: nn.Module) -> int:
    """How many experts a module says that it has, else the first size of its weights; 0 if neither is known."""
    for word in ("total_experts", "num_experts"):  # the first also counts experts that hand a token on as it is
        if isinstance(said := getattr(module, word, None), int):
            return said
    sizes = {parameter.shape[0] for parameter in module.parameters(recurse=False) if parameter.dim() == 3}
    return sizes.pop() if len(sizes) == 1 else 0


def read_arguments(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
) -> tuple[Tensor, Tensor | None] | None:
    """Ids and weights as the experts were called with them."""
    given = [*args, *kwargs.values()]
    return (given[1], given[2]) if len(given) > 2 else None


def read_routing(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
) -> tuple[Tensor, Tensor | None] | None:
    """Ids and weights of our own layer's Routing. A choice that its capacity dropped was a choice all the same."""
    routing = output[1]
    chosen_TK = routing.experts_TK if routing.dropped_from_TK is None else routing.dropped_from_TK
    return chosen_TK, routing.weights_TK if routing.dropped_from_TK is None else None


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
}


def recomputed() -> bool:
    """Whether this call is a forward that a backward repeats, as gradient checkpointing does. A compiled graph is not asked."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class Taps:
    """The hooks on a model. Only forwards of a module in training count, each once; `kept` is the mask of the tokens that count."""

    def __init__(self, taps: list[Tap]) -> None:
        self.taps = taps
        self.kept_N: Tensor | None = None
        self.tallies = {tap.name: Tally(tap.experts) for tap in taps}
        self.handles = [self._hook(tap) for tap in taps]

    def _hook(self, tap: Tap) -> Any:
        tally = self.tallies[tap.name]

        def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any = None) -> None:
            if not module.training or recomputed():
                return
            if (selection := tap.read(module, args, kwargs, output)) is not None:
                ids_NK, weights_NK = (None if one is None else one.detach() for one in selection)
                assert ids_NK is not None
                kept_N = self.kept_N if self.kept_N is not None and len(self.kept_N) == len(ids_NK) else None
                tally.add(ids_NK.flatten(0, -2), None if weights_NK is None else weights_NK.flatten(0, -2), kept_N)

        if tap.early:
            return tap.module.register_forward_pre_hook(
                lambda module, args, kwargs: count(module, args, kwargs), with_kwargs=True
            )
        return tap.module.register_forward_hook(count, with_kwargs=True)

    def mask(self, mask: Tensor | None) -> None:
        """Of the next forwards, the tokens (any shape, flattened) that count; None: all."""
        self.kept_N = None if mask is None else mask.detach().bool().flatten()

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self.handles:
            handle.remove()
