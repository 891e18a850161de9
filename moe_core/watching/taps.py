"""Where the routers of a model are tapped: hooks that read which experts each token was sent to, with which weights.

What the experts receive is what happened, whatever biases, groups or samples chose it, so the tap is at the experts' input and
not at the router's output.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from moe_core.watching.places import Reader, Tap, parent_of
from moe_core.watching.routers import Router, score_statistics
from moe_core.watching.tally import SAMPLE, Call, Sums, Tally, add_up, counts_by_tap

# The second argument of experts, after the hidden states, as transformers and others call it.
IDS = ("top_k_index", "router_indices", "selected_experts", "topk_indices", "topk_ids", "expert_indices", "indices")
MOST = 1 << 22  # places of tokens that are kept before they are added up: some 50 MB
CALLS = 1 << 13  # calls in evaluation likewise, which may be of few tokens each
LOOKED_FOR = (
    "modules whose class ends in Experts and whose forward takes (hidden, ids, weights), as in transformers 5; "
    "MoELayer of moe_core.nn"
)


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
    by_output = {parent_of(tap.name) for tap in found if type(tap.module).__name__ in OUTPUTS}
    found = [tap for tap in found if not tap.early or parent_of(tap.name) not in by_output]
    taps = sorted([*own, *found], key=lambda tap: list(modules).index(tap.name))
    if not taps:
        raise ValueError(
            f"{type(model).__name__} has no experts that can be watched; looked for {LOOKED_FOR}. "
            f"Name its routers by routers={{path: reader}}"
        )
    return taps


def tap_of(name: str, module: nn.Module) -> Tap | None:
    """The tap of a module, if it is of a kind that is known."""
    kind = type(module).__name__
    if kind == "MoELayer" and hasattr(module, "gate"):
        gate: Any = module.gate
        return Tap(name, module, gate.num_experts, read_routing, early=False)
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
    """How many experts a module says that it has, else the first size of its weights; 0 if neither is known."""
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


def nothing(*given: Any) -> None:
    pass


def raise_it(error: Exception) -> None:
    raise error


class Hook:
    """A hook of this model alone: a copy of the model, or what is read from a file of it, has one that does nothing."""

    def __init__(self, call: Callable[..., Any] = nothing) -> None:
        self.call = call

    def __call__(self, *given: Any) -> Any:
        return self.call(*given)

    def __reduce__(self) -> Any:
        return Hook, ()


class Taps:
    """The hooks on a model, which keep what its layers selected until it is taken. Nothing that the model computes is changed.

    A forward in training counts once, however often a backward repeats it; one in evaluation counts as held-out; one of
    generate(), which hands the model a cache, does not count.
    routers: those whose logits are kept too, by the tap's name. failed: called with what went wrong in a hook, once.
    """

    def __init__(
        self,
        model: nn.Module,
        taps: Sequence[Tap],
        routers: Mapping[str, Router] = MappingProxyType({}),
        failed: Callable[[Exception], None] = raise_it,
    ) -> None:
        self.taps, self.failed = list(taps), failed
        self.routers = {number: routers[tap.name] for number, tap in enumerate(self.taps) if tap.name in routers}
        self.kept_N: Tensor | None = None
        self.silent = self.generating = self.compiled = False
        self.listening = True  # to the routers' logits
        self.hear_all = False  # in every step, and those of every token
        self.shown: dict[int, list[tuple[Tensor, Tensor | None]]] | None = None  # of show(), while it goes on
        self.off: dict[
            int, Tensor
        ] = {}  # by the tap's number, (E + 1,) 1 for the experts that are on, 0 for those that are off
        self.step = 1  # that is trained
        self.places = 0  # that are kept
        self.calls: list[Call] = []
        self.held_out: list[Call] = []
        self.sums: list[Sums] = []
        self.held_out_sums: list[Sums] = []
        self.logits: dict[int, Tensor] = {}  # of the forward that goes on, by the tap's number
        self.tallies = [Tally(number, tap.experts, device_of(tap.module)) for number, tap in enumerate(self.taps)]
        # generate() of a model within another, such as one that PEFT wraps, calls the inner one by itself.
        models = [m for m in model.modules() if m is model or callable(getattr(type(m), "generate", None))]
        self.handles = [m.register_forward_pre_hook(Hook(self._begin), with_kwargs=True) for m in models]
        for number, tap in enumerate(self.taps):
            if (router := self.routers.get(number)) is not None:
                hear = Hook(self._hear(number, router))
                self.handles.append(router.module.register_forward_hook(hear, with_kwargs=True))
            self.handles.append(self._hook(number, tap))

    def _begin(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        """The model's forward begins. A cache of what came before is handed to it by generate(), and where a prefix is trained:
        then gradients are taken."""
        if not torch.compiler.is_compiling():
            self.generating = kwargs.get("past_key_values") is not None and not torch.is_grad_enabled()
            self.logits.clear()

    def _hear(self, number: int, router: Router) -> Callable[..., None]:
        def hear(module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
            if torch.compiler.is_compiling() or self.shown is not None:
                return
            if (self.listening or self.hear_all) and not self.silent and not recomputed():
                self.logits[number] = router.read(module, args, kwargs, output)

        return hear

    def _hook(self, number: int, tap: Tap) -> Any:
        tally = self.tallies[number]

        def choose(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> Any:
            given = self._without(number, tap, args, kwargs) if number in self.off else None
            count(module, *(given or (args, kwargs)))
            return given

        def count(module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any = None) -> None:
            if torch.compiler.is_compiling():
                if module.training and (selection := tap.read(module, args, kwargs, output)) is not None:
                    self.compiled = True
                    tally.add(*flat(*selection, self.kept_N))
            elif self.shown is not None:
                if (selection := tap.read(module, args, kwargs, output)) is not None:
                    self.shown.setdefault(number, []).append(selection)
            elif not (self.silent or self.generating or recomputed()):
                try:
                    if (selection := tap.read(module, args, kwargs, output)) is not None:
                        self._keep(number, module.training, *flat(*selection, self.kept_N))
                except Exception as error:
                    self.silent = True
                    self.failed(error)

        if tap.early:
            return tap.module.register_forward_pre_hook(Hook(choose), with_kwargs=True)
        return tap.module.register_forward_hook(Hook(count), with_kwargs=True)

    def _without(self, number: int, tap: Tap, args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
        """The arguments of experts, with weight 0 for those that are off."""
        assert isinstance(tap.read, Arguments)
        ids, weights = tap.read(tap.module, args, kwargs, None)
        assert weights is not None
        on_E1 = self.off[number].to(weights)
        weights = weights * on_E1[ids.clamp(-1, tap.experts)]  # -1, for none, is the last place, which is E's
        if len(args) > 2:
            return (*args[:2], weights, *args[3:]), kwargs
        return args, {**kwargs, tap.read.weights: weights}

    def switch_off(self, off: Mapping[int, Sequence[int]]) -> None:
        """From now on these experts, by the tap's number, add nothing to what their layer gives."""
        self.off = {
            number: torch.tensor([float(e not in experts) for e in range(self.taps[number].experts + 1)])
            for number, experts in off.items()
            if experts
        }

    def _keep(self, tap: int, training: bool, ids_NK: Tensor, weights_NK: Tensor | None, kept_N: Tensor | None) -> None:
        logits_NE, stride = self.logits.pop(tap, None), 1 if self.hear_all else -(-len(ids_NK) // SAMPLE)
        if logits_NE is not None:
            logits_NE = logits_NE[::stride] if len(logits_NE) == len(ids_NK) > 0 and training else None
        calls = self.calls if training else self.held_out
        calls.append(Call(tap, self.step, ids_NK, weights_NK, kept_N, logits_NE, stride))
        self.places += ids_NK.numel()
        if self.places > MOST or len(self.held_out) > CALLS:
            self._fold(training=True)
            self._fold(training=False)
            self.places = 0

    def _fold(self, training: bool) -> None:
        calls, sums = (self.calls, self.sums) if training else (self.held_out, self.held_out_sums)
        alike: dict[Any, list[Call]] = {}
        for call in calls:
            weighed = call.weights_NK is not None
            heard = None if call.logits_ME is None else self.routers[call.tap].kind
            key = self.taps[call.tap].experts, call.ids_NK.shape, call.ids_NK.device, weighed, id(call.kept_N), heard
            alike.setdefault(key, []).append(call)
        for (experts, *_, heard), group in alike.items():
            scores_SC = self._scores(group) if heard is not None else None
            sums.append(add_up(group, experts)._replace(scores_SC=scores_SC))
        calls.clear()
        if not training:  # they may be many between two live.eval(), or never be asked for
            self.held_out_sums = [
                Sums([tap], [self.step], counts_E1[None], None, 1) for tap, counts_E1 in counts_by_tap(sums).items()
            ]

    def _scores(self, calls: Sequence[Call]) -> Tensor:
        """(S, C) the statistics of the scores of calls that are alike, of their sampled tokens."""
        routers = [self.routers[call.tap] for call in calls]
        biases = [router.bias for router in routers]
        first, stride = calls[0], calls[0].stride
        statistics = score_statistics(
            torch.stack([call.logits_ME for call in calls if call.logits_ME is not None]),
            torch.stack([call.ids_NK[::stride] for call in calls]).clamp(0, self.taps[first.tap].experts - 1).long(),
            routers[0].scores,
            None if biases[0] is None else torch.stack([bias for bias in biases if bias is not None]),
            routers[0].groups,
            None if first.kept_N is None else first.kept_N[::stride],
        )
        return torch.stack(statistics)

    @contextlib.contextmanager
    def show(self) -> Iterator[dict[int, list[tuple[Tensor, Tensor | None]]]]:
        """Forwards in here are not counted: what each layer was called with is in the dict, by the tap's number."""
        heard: dict[int, list[tuple[Tensor, Tensor | None]]] = {}
        self.shown = heard
        try:
            yield heard
        finally:
            self.shown = None

    def mask(self, mask: Tensor | None) -> None:
        """Of the next forwards, the tokens (any shape, flattened) that count; None: all. A copy is kept, where the experts are."""
        where = device_of(self.taps[0].module)
        self.kept_N = (
            None if mask is None else torch.as_tensor(mask).detach().to(where, torch.bool, copy=True).flatten()
        )

    def last(self) -> list[Call]:
        """The calls in training that are not added up yet."""
        return list(self.calls)

    def take(self) -> list[Sums]:
        """What was selected in training since the last take."""
        self._fold(training=True)
        taken, self.sums = self.sums, []
        return taken + ([tally.take(self.step) for tally in self.tallies] if self.compiled else [])

    def take_held_out(self) -> list[Sums]:
        """What was selected in evaluations since the last take_held_out."""
        self._fold(training=False)
        taken, self.held_out_sums = self.held_out_sums, []
        return taken

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self.handles:
            handle.remove()


def device_of(module: nn.Module) -> torch.device:
    """Where a module's first parameter is."""
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def flat(ids: Tensor, weights: Tensor | None, kept_N: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Ids and weights as (N, K), detached; the mask, if it is of as many tokens."""
    ids_NK = ids if ids.dim() == 2 else ids.flatten(0, -2)
    weights_NK = None if weights is None else weights.detach()
    if weights_NK is not None and weights_NK.dim() != 2:
        weights_NK = weights_NK.flatten(0, -2)
    return ids_NK, weights_NK, kept_N.to(ids.device) if kept_N is not None and len(kept_N) == len(ids_NK) else None
