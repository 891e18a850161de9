"""Balances a watched model from outside: by the selection bias that its routers carry, or by the weight of its own balancing loss.

Shapes: E experts, C calls of layers that are alike.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe_core.recording.holding import EVERY, factor, steer
from moe_core.remedies import COEFFICIENT
from moe_core.schema import Knob
from moe_core.watching.ranks import WatchedRanks
from moe_core.watching.steering import KINDS, Steering
from moe_core.watching.tally import Call, Sums, counts_by_tap
from moe_core.watching.taps import Taps, device_of
from moe_core.watching.turning import Turn

OFF = "off"


class Balance:
    """The knobs balance, bias_speed and autobalance, and what follows from them after each step.

    balance: how the bias is steered at first; None: not at all. ValueError if it is given for a model that carries no bias.
    turn: records a turn of the coefficient by autobalance.
    """

    def __init__(
        self,
        model: nn.Module,
        taps: Taps,
        balance: str | None,
        coefficient: float | None,
        turn: Callable[[float], None],
        ranks: WatchedRanks | None = None,
    ) -> None:
        if balance not in (None, *KINDS):
            raise ValueError(f"balance must be one of {', '.join(KINDS)}, or None, got {balance!r}")
        self.taps, self.turn, self.kind, self.target = taps, turn, balance or OFF, 0.0
        self.coefficient, self.ranks = coefficient, ranks
        self.steering = {kind: made for kind in KINDS if (made := steering_of(model, taps, kind, kind == balance))}
        self.speed = 1e-3
        self.measured = 0  # the last step in evenness
        self.evenness: list[Tensor] = []  # the mean CV of each of the last steps, on the device
        self.listen()

    def turns(self) -> dict[str, Turn]:
        """The knobs, those that can act on this model."""
        turns: dict[str, Turn] = {}
        if self.steering:
            help = "what moves the selection bias of the routers after each step"
            turns["balance"] = Turn(Knob(self.kind, choices=(OFF, *self.steering), help=help), self._follow)
            turns["bias_speed"] = Turn(
                Knob(self.speed, 0.0, 0.1, scale="log0", help="how far loss-free moves an expert's bias at each step"),
                lambda value: setattr(self, "speed", value),
            )
        if self.steering or self.coefficient is not None:
            help = f"CV(selections) to hold, 0: none. loss-free leaves layers below it alone; without a bias, {COEFFICIENT} is turned"
            turns["autobalance"] = Turn(
                Knob(0.0, 0.0, 1.0, scale="log0", help=help), lambda value: setattr(self, "target", value)
            )
        return turns

    def _follow(self, kind: str) -> None:
        self.kind = kind
        self.listen()

    def listen(self) -> None:
        """Tell the taps whether the logits of every token are needed in every step."""
        self.taps.hear_all = self.kind == "quantile"

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do after a step."""
        return self.kind == OFF and not self.target

    @torch.no_grad()
    def update(self, step: int, sums: Sequence[Sums], calls: Sequence[Call]) -> None:
        """After a step, move the biases or turn the coefficient. calls: those calls of the step that were not folded into sums.

        With several ranks the counts are added up first, and biases set from logits are averaged, so that all ranks hold the same.
        """
        if self.idle:
            return
        if self.ranks is not None:
            sums = self._over_ranks(sums, self.ranks)
        if self.kind != OFF and sums:
            steering = self.steering[self.kind]
            if self.kind == "loss-free":
                if self.speed:
                    steering.speed = self.speed
                    counts = counts_by_tap(sums)
                    steering.update(
                        {self.taps.taps[tap].name: self._held(tap, counts_E) for tap, counts_E in counts.items()}
                    )
            else:
                steering.update({}, self._logits(calls))
                for router in steering.routers.values() if self.ranks is not None else ():
                    bias_E = router.bias
                    assert bias_E is not None
                    assert self.ranks is not None
                    bias_E.copy_(self.ranks.add_up(bias_E) / self.ranks.size)
        elif self.target and sums and self.coefficient is not None:
            if step != self.measured + 1:
                self.evenness.clear()
            self.measured = step
            self.evenness.append(
                torch.stack(
                    [
                        cv(counts_E1[:-1], self._on(tap, counts_E1)).to(sums[0].counts_CE1.device)
                        for one in sums
                        for tap, counts_E1 in zip(one.taps, one.counts_CE1, strict=True)
                    ]
                ).mean()
            )
            if step % EVERY == 0 and len(self.evenness) >= EVERY:
                self._decide()

    def _over_ranks(self, sums: Sequence[Sums], ranks: WatchedRanks) -> list[Sums]:
        """The counts of all ranks. One array of the same shape on each of them: what a rank called, and how often, is its own."""
        taps = self.taps.taps
        counts_TE = torch.zeros(len(taps), max(tap.experts for tap in taps), dtype=torch.int64)
        for tap, counts_E1 in counts_by_tap(sums).items():
            counts_TE[tap, : taps[tap].experts] = counts_E1[:-1].cpu()
        return [
            Sums([n], [self.taps.step], F.pad(counts_E[None, : taps[n].experts], (0, 1)).to(device_of(taps[n].module)), None, 1)
            for n, counts_E in enumerate(ranks.add_up(counts_TE)) if counts_E.any()
        ]  # fmt: skip

    def _held(self, tap: int, counts_E1: Tensor) -> Tensor:
        """The counts (E,); the mean, which moves no bias, of experts that are off, and of all where they are even enough already."""
        on_E, counts_E = self._on(tap, counts_E1), counts_E1[:-1].float()
        mean = counts_E[on_E].mean()
        held_E = torch.where(on_E, counts_E, mean)
        return held_E if not self.target else torch.where(cv(counts_E, on_E) > self.target, held_E, mean)

    def _on(self, tap: int, counts_E1: Tensor) -> Tensor:
        """(E,) bool: which experts of a tap are on."""
        off_E1 = self.taps.off.get(tap)
        return (
            torch.ones_like(counts_E1[:-1], dtype=torch.bool)
            if off_E1 is None
            else off_E1[:-1].to(counts_E1.device) > 0
        )

    def _logits(self, calls: Sequence[Call]) -> dict[str, Tensor]:
        logits: dict[str, list[Tensor]] = {}
        for call in calls:
            if call.logits_ME is not None and call.stride == 1:
                kept_ME = call.logits_ME if call.kept_N is None else call.logits_ME[call.kept_N]
                logits.setdefault(self.taps.taps[call.tap].name, []).append(kept_ME)
        return {name: torch.cat(parts) for name, parts in logits.items()}

    def _decide(self) -> None:
        cv_n = torch.stack(self.evenness).tolist()
        self.evenness = self.evenness[-EVERY:]
        now, before = cv_n[-EVERY:], cv_n[:-EVERY] or cv_n[-EVERY:]
        by = factor(sum(now) / len(now), sum(before) / len(before), self.target)
        assert self.coefficient is not None
        for value in steer({COEFFICIENT: self.coefficient}, by).values():
            self.turn(value)


def steering_of(model: nn.Module, taps: Taps, kind: str, asked: bool) -> Steering | None:
    """The steering of one kind. Where the model does not allow it: ValueError if the user asked for it, else None."""
    try:
        return Steering(model, taps.taps, {taps.taps[n].name: router for n, router in taps.routers.items()}, kind)
    except ValueError:
        if asked:
            raise
        return None


def cv(counts_E: Tensor, on_E: Tensor) -> Tensor:
    """() the coefficient of variation over the experts that are on; 0 of nothing."""
    counts_E = counts_E[on_E].float()
    mean = counts_E.mean()
    return (counts_E - mean).square().mean().sqrt() / mean.clamp(min=math.ulp(1.0))
