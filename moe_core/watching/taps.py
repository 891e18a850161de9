"""The hooks on a model, which keep what its layers select."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from moe_core.nn.checks import shown
from moe_core.watching.readers import GATING, Arguments, Tap, read_gates
from moe_core.watching.routers import Router, score_statistics
from moe_core.watching.tally import SAMPLE, Call, Sums, Tally, add_up, counts_by_tap, merged

log = logging.getLogger("moescope")

MOST = (
    1 << 22
)  # places of tokens that are kept before they are added up: some 50 MB, with their logits half of that or more
CALLS = 1 << 13  # calls likewise, which may be of few tokens each


def recomputed() -> bool:
    """Whether this call is a forward that a backward repeats, as gradient checkpointing does. Not to be asked while compiling."""
    return torch._C._current_graph_task_id() != -1


class Gating:
    """Hears what a module's gating method returns. The method is replaced for the time of a forward only, so that the module can be
    copied and saved as ever."""

    def __init__(self, module: nn.Module, hear: Callable[[nn.Module, Any], None]) -> None:
        self.hear = hear
        self.handles = [
            module.register_forward_pre_hook(Hook(self._begin)),
            module.register_forward_hook(Hook(self._end), always_call=True),
        ]

    def _begin(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling() or GATING in vars(module):
            return
        plain = getattr(module, GATING)

        def gating(*args: Any, **kwargs: Any) -> Any:
            gates = plain(*args, **kwargs)
            self.hear(module, gates)
            return gates

        vars(module)[GATING] = gating

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        vars(module).pop(GATING, None)

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self.handles:
            handle.remove()


def nothing(*given: Any) -> None:
    pass


def raise_it(error: Exception) -> None:
    raise error


class Hook:
    """Works on this model only. A copy of the model, or one loaded from a file, gets a hook that does nothing."""

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
        self.misfit = False  # whether it was said that a mask does not fit
        self.silent = self.generating = self.compiled = False
        self.listening = True  # whether the routers' logits of this step are kept
        self.hear_all = False  # whether to keep the logits of every token in every step
        self.shown: dict[int, list[tuple[Tensor, Tensor | None]]] | None = None  # of show(), while it goes on
        # By the tap's number, (E + 1,) 1 for the experts that are on, 0 for those that are off.
        self.off: dict[int, Tensor] = {}
        self.step = 1  # the one that is being trained
        self.places = 0  # in the ids of the calls below
        self.calls: list[Call] = []
        self.held_out: list[Call] = []
        self.sums: list[Sums] = []
        self.held_out_sums: list[Sums] = []
        self.logits: dict[int, Tensor] = {}  # of the current forward, by the tap's number
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
        self.generating = kwargs.get("past_key_values") is not None and not torch.is_grad_enabled()
        if not torch.compiler.is_compiling():
            self.logits.clear()

    def _hear(self, number: int, router: Router) -> Callable[..., None]:
        def hear(module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
            if not (self.listening or self.hear_all) or torch.compiler.is_compiling():
                return
            if self.shown is None and not self.silent and not recomputed():
                try:
                    self.logits[number] = router.read(module, args, kwargs, output)
                except Exception as error:
                    self._give_up(error)

        return hear

    def _give_up(self, error: Exception) -> None:
        """What went wrong in a hook: it is said, and from now on nothing is heard."""
        self.silent = True
        self.failed(error)

    def _hook(self, number: int, tap: Tap) -> Any:
        tally = self.tallies[number]

        def choose(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> Any:
            given = self._without(number, tap, args, kwargs) if number in self.off else None
            count(module, *(given or (args, kwargs)))
            return given

        def count(module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any = None) -> None:
            if torch.compiler.is_compiling():
                counts = module.training and not (self.silent or self.generating)
                if counts and (selection := tap.read(module, args, kwargs, output)) is not None:
                    self.compiled = True
                    ids_NK, weights_NK = flat(*selection)
                    tally.add(ids_NK, weights_NK, mask_for(ids_NK, self.kept_N))
            elif self.shown is not None:
                if (selection := tap.read(module, args, kwargs, output)) is not None:
                    self.shown.setdefault(number, []).append(selection)
            elif not (self.silent or self.generating or recomputed()):
                try:
                    if (selection := tap.read(module, args, kwargs, output)) is not None:
                        self._keep(number, module.training, *selection)
                except Exception as error:
                    self._give_up(error)

        if tap.early:
            return tap.module.register_forward_pre_hook(Hook(choose), with_kwargs=True)
        if tap.read is read_gates:
            return Gating(tap.module, lambda module, gates: count(module, (), {}, gates))
        return tap.module.register_forward_hook(Hook(count), with_kwargs=True)

    def _without(
        self, number: int, tap: Tap, args: Any, kwargs: Mapping[str, Any]
    ) -> tuple[Any, Mapping[str, Any]] | None:
        """The arguments of experts, with weight 0 for those that are off."""
        assert isinstance(tap.read, Arguments)
        ids, weights = tap.read(tap.module, args, kwargs, None)
        if weights is None:
            del self.off[number]
            log.warning("no expert of %s is switched off, since it is called without weights", tap.name)
            return None
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

    def _keep(self, tap: int, training: bool, ids: Tensor, weights: Tensor | None) -> None:
        ids_NK, weights_NK = flat(ids, weights)
        kept_N = self._mask_of(tap, ids_NK) if self.kept_N is not None else None
        logits_ME, stride = self._sample(tap, training, len(ids_NK)) if tap in self.logits else (None, 1)
        calls = self.calls if training else self.held_out
        size = ids_NK.numel()
        if (
            logits_ME is not None and not self.hear_all
        ):  # quantile balancing needs them until the step is done, however many
            size += logits_ME.numel()
        calls.append(Call(tap, self.step, ids_NK, weights_NK, kept_N, logits_ME, stride, size))
        self.places += size
        if self.places > MOST or len(calls) > CALLS:
            self._fold(training=True)
            self._fold(training=False)
            self.sums = merged(self.sums)

    def _mask_of(self, tap: int, ids_NK: Tensor) -> Tensor | None:
        """The mask for these tokens; None if it is for another number of them, which is said once."""
        kept_N = mask_for(ids_NK, self.kept_N)
        if kept_N is None and self.kept_N is not None and not self.misfit:
            self.misfit = True
            log.warning(
                "the mask is of %d tokens and %s was called with %d: there all of them count, padding too",
                len(self.kept_N), self.taps[tap].name, len(ids_NK),
            )  # fmt: skip
        return kept_N

    def _sample(self, tap: int, training: bool, tokens: int) -> tuple[Tensor | None, int]:
        """The logits of every stride-th token of this call, and the stride."""
        logits_NE, stride = self.logits.pop(tap), 1 if self.hear_all else -(-tokens // SAMPLE)
        return logits_NE[::stride] if training and len(logits_NE) == tokens > 0 else None, stride

    def _fold(self, training: bool) -> None:
        calls, sums = (self.calls, self.sums) if training else (self.held_out, self.held_out_sums)
        alike: dict[Any, list[Call]] = {}
        for call in calls:
            self.places -= call.size
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
        """Forwards in here are not counted. Gives a dict of what each layer was called with, by the tap's number."""
        heard: dict[int, list[tuple[Tensor, Tensor | None]]] = {}
        self.shown = heard
        try:
            yield heard
        finally:
            self.shown = None

    def mask(self, mask: Tensor | None) -> None:
        """Of the next forwards, the tokens (any shape, flattened) that count; None: all. A copy is kept, where the experts are.
        ValueError for what is no tensor, and cannot be made one."""
        if mask is None:
            self.kept_N = None
            return
        try:
            given = torch.as_tensor(mask)
        except (TypeError, ValueError, RuntimeError):  # by what it is given, torch raises one or the other
            raise ValueError(
                f"a mask must be a tensor with 0 where a token does not count, got {shown(mask)}"
            ) from None
        self.kept_N = given.detach().to(device_of(self.taps[0].module), torch.bool, copy=True).flatten()

    def last(self) -> list[Call]:
        """The calls in training that were not added up yet."""
        return list(self.calls)

    def take(self) -> list[Sums]:
        """What was selected in training since the last take."""
        self._fold(training=True)
        taken, self.sums = self.sums, []
        return taken + ([tally.take(self.step) for tally in self.tallies if tally.places] if self.compiled else [])

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


def flat(ids: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Ids and weights as (N, K), detached."""
    ids_NK = ids if ids.dim() == 2 else ids.flatten(0, -2)
    weights_NK = None if weights is None else weights.detach()
    if weights_NK is not None and weights_NK.dim() != 2:
        weights_NK = weights_NK.flatten(0, -2)
    return ids_NK, weights_NK


def mask_for(ids_NK: Tensor, kept_N: Tensor | None) -> Tensor | None:
    """The mask, where the ids are; None if it is for another number of tokens."""
    return kept_N.to(ids_NK.device) if kept_N is not None and len(kept_N) == len(ids_NK) else None
