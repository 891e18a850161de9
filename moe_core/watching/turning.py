"""The knobs of a watched model: those of its optimizer, its balancing loss and its routers, and any that its user declares.

Nothing is changed until a knob is turned: until then the model computes the same bits as without.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from moe_core.remedies import COEFFICIENT
from moe_core.schema import Knob, switched_off
from moe_core.schema.description import read_knob
from moe_core.watching.readers import Tap
from moe_core.watching.routers import K_NAMES
from moe_core.watching.taps import Taps

log = logging.getLogger("moescope")

# The weights of the routers' own losses, as transformers' configs call them.
ROUTER_LOSSES = (COEFFICIENT, "router_z_loss_coef")
# The beginnings of the classes of models whose k cannot be turned: their code works for one k only, or keeps a copy of it.
FIXED = ("DeepseekV4", "LongcatFlash", "Phimoe", "SwitchTransformers")
UNSTEPPED = 10  # steps of the training without one of the optimizer, until it is said; a loss scaler leaves out a few
WIDE = 100.0  # a rate may be turned up to so many times its start


class Turn(NamedTuple):
    """A knob, and what makes the model follow it, called with each new value before the step in which it takes effect."""

    knob: Knob
    follow: Callable[[Any], None]


def turns_of(
    model: nn.Module, taps: Taps, rates: "Rates | None", switch_off: Callable[[str], None] | None
) -> dict[str, Turn]:
    """What can be turned, by name. rates: None without an optimizer; switch_off: follows the knob `off`, None where no expert
    can be switched off."""
    turns = coefficients(model) | experts_per_token(model, taps)
    if rates is not None:
        turns |= rates.turns()
    if switch_off is not None:
        help = "experts that take no part, such as 4 or 2:4 for layer 2's expert 4; what they would add is left out"
        turns["off"] = Turn(Knob("", help=help), switch_off)
    return turns


def with_own(turns: dict[str, Turn], own: Mapping[str, Knob]) -> dict[str, Turn]:
    """Ours and the user's knobs, which the user's own code follows. ValueError for one that has a name of ours, or that no record
    could hold."""
    if taken := sorted(turns.keys() & own.keys()):
        raise ValueError(f"knobs must have names of their own, and {', '.join(taken)} is a knob of the model already")
    for name, knob in own.items():
        if not isinstance(knob, Knob):
            raise ValueError(f"knobs must be Knobs, such as knobs={{{name!r}: Knob(0.1, 0, 1)}}, got {knob!r}")
        read_knob(name, knob._asdict())
    return turns | {name: Turn(knob, lambda value: None) for name, knob in own.items()}


def coefficients(model: nn.Module) -> dict[str, Turn]:
    """The weights of the model's own router losses: every module and config that holds one, since some models copy it from their
    config when they are made and others read it there at each forward."""
    help = "weight of the model's own router loss; it acts where the model is called with output_router_logits=True"
    turns = {}
    for name in ROUTER_LOSSES:
        held = Settings([(owner, name) for owner in owners(model) if isinstance(getattr(owner, name, None), float)])
        if held.attributes:
            turns[name] = Turn(Knob(float(held.value), 0.0, max(1.0, 10 * held.value), help=help, scale="log0"), held)
    return turns


def experts_per_token(model: nn.Module, taps: Taps) -> dict[str, Turn]:
    """The knob k, experts per token, where the model reads it at each forward and all its layers have the same."""
    kinds = [type(module).__name__ for module in model.modules()]
    if any(kind.startswith(FIXED) for kind in kinds):
        return {}
    held = Settings([(o, name) for o in owners(model) for name in K_NAMES if type(getattr(o, name, None)) is int])
    if not held.attributes or any(getattr(owner, name) != held.value for owner, name in held.attributes):
        return {}
    most = [tap.experts for tap in taps.taps]
    for number, router in taps.routers.items():
        if router.groups is not None:
            most[number] = taps.taps[number].experts // router.groups.many * router.groups.kept
    help = "experts that each token goes to, in every layer; a saved config holds the number that it was turned to"
    return {"k": Turn(Knob(held.value, 1, min(most), help=help, label="k, experts per token"), held)}


def off_of(taps: Sequence[Tap], text: str) -> Sequence[Sequence[int]]:
    """The experts that the knob `off` names, by layer. ValueError if a layer can switch none off."""
    off = switched_off([tap.experts for tap in taps], text)
    if fixed := [tap.name for tap, experts in zip(taps, off, strict=True) if experts and not tap.early]:
        raise ValueError(
            f"no expert of {', '.join(fixed)} can be switched off, since it is not called with ids and weights; "
            f"name the other layers, as in 2:4 for layer 2's expert 4"
        )
    return off


def owners(model: nn.Module) -> list[Any]:
    """The modules of a model and their configs, each once."""
    all = [one for module in model.modules() for one in (module, getattr(module, "config", None)) if one is not None]
    return list({id(one): one for one in all}.values())


@dataclass(frozen=True)
class Settings:
    """Attributes that hold the same value: (whose, name) of each."""

    attributes: Sequence[tuple[Any, str]]

    @property
    def value(self) -> Any:
        owner, name = self.attributes[0]
        return getattr(owner, name)

    def __call__(self, value: float) -> None:
        for owner, name in self.attributes:
            setattr(owner, name, value)


class Rates:
    """Learning rate and weight decay of an optimizer, and whether its routers are frozen.

    The rates are changed only while optimizer.step() runs, so that a scheduler, which sets them too, is not disturbed: a turn of
    the learning rate multiplies what the schedule gives. Groups keep their ratio.
    """

    def __init__(self, optimizer: Any, routers: Sequence[nn.Module]) -> None:
        self.optimizer = base_of(optimizer)
        groups = self.optimizer.param_groups
        self.starts = {
            "lr": max(float(group.get("initial_lr", group.get("lr", 0.0))) for group in groups),
            "weight_decay": max(float(group.get("weight_decay", 0.0)) for group in groups),
        }
        self.values = dict(self.starts)
        self.held = {id(parameter) for router in routers for parameter in router.parameters()}
        self.frozen = False
        self.before: list[tuple[dict[str, Any], str, Any, Any]] = []  # group, name, value before and as turned
        self.unstepped = 0  # calls of count_step() since the optimizer's last step
        if self.starts["lr"] == 0:
            log.warning(
                "there is no knob lr: the optimizer's learning rate is 0, and no scheduler has said which it starts from. "
                "Make the scheduler before you call watch()"
            )
        self.handles = [
            self.optimizer.register_step_pre_hook(self._set),
            self.optimizer.register_step_post_hook(self._restore),
        ]

    def turns(self) -> dict[str, Turn]:
        """lr, weight_decay and freeze_router, those that this optimizer has."""
        helps = {
            "lr": "learning rate of the fastest group of parameters; the others, and what a schedule makes of it, follow in ratio",
            "weight_decay": "weight decay of the group with the most; the others follow in ratio",
        }
        turns = {
            name: Turn(
                rate(self.starts[name], helps[name]),
                partial(self._follow, name),
            )
            for name in self.starts
            if any(name in group for group in self.optimizer.param_groups)
            and (name == "weight_decay" or self.starts[name] > 0)
        }
        if self.held and not isinstance(self.optimizer, torch.optim.LBFGS):  # it moves what has no gradient, too
            help = "1: the routers' parameters stay as they are"
            turns["freeze_router"] = Turn(Knob(0, 0, 1, help=help), lambda value: setattr(self, "frozen", bool(value)))
        return turns

    def count_step(self) -> None:
        """A step of the training is done. Says once if the optimizer took no part in several: perhaps another has its place."""
        if self.unstepped == UNSTEPPED:
            log.warning(
                "the %s that watch() was given did not step in the last %d steps, so its knobs turn nothing. If another took its "
                "place, close this run and watch with that one",
                type(self.optimizer).__name__, UNSTEPPED,
            )  # fmt: skip
        self.unstepped += 1

    def close(self) -> None:
        """Leave the optimizer as it was."""
        self._restore()
        for handle in self.handles:
            handle.remove()

    def _follow(self, name: str, value: float) -> None:
        self.values[name] = value

    def _set(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        """Before optimizer.step(): its arguments anew, or None if they stay."""
        self.unstepped = 0
        self._restore()  # of a step that an error ended
        for group in optimizer.param_groups:
            for name, start in self.starts.items():
                if self.values[name] != start:
                    turned = group[name] * (self.values[name] / start) if start else self.values[name]
                    self.before.append((group, name, group[name], turned))
                    group[name] = turned
        if not self.frozen:
            return None
        self._hold()
        closures = [one for one in (*args[1:], *kwargs.values()) if callable(one)]
        held = {id(one): self._holding(one) for one in closures}
        anew: Callable[[Any], Any] = lambda one: held.get(id(one), one)
        return tuple(map(anew, args)), {name: anew(one) for name, one in kwargs.items()}

    def _hold(self) -> None:
        """Take the routers' gradients away, so that the step leaves them as they are."""
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) in self.held:
                    parameter.grad = None

    def _holding(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """A closure as step() takes it, which computes the gradients itself, and after it _hold()."""

        def computed() -> Any:
            loss = closure()
            self._hold()
            return loss

        return computed

    def _restore(self, *given: Any) -> None:
        for group, name, value, turned in self.before:
            if group[name] is turned:  # a scheduler may have set it anew after a step that an error ended
                group[name] = value
        self.before.clear()


def rate(start: float, help: str) -> Knob:
    """A knob whose slider is logarithmic, and which can be turned to 0."""
    return Knob(start, 0.0, WIDE * start or 1.0, help=help, scale="log0")


def base_of(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer inside the wrappers of accelerate and others, which may be Optimizers too. ValueError if there is none."""
    inner = optimizer
    while (deeper := getattr(inner, "optimizer", None)) is not None:
        inner = deeper
    if not isinstance(inner, torch.optim.Optimizer):
        raise ValueError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    return inner
