"""Holds a chosen CV(load) by steering the loss weights: a damped controller in log space, by step and not by the clock.

It keeps nothing but the last loads, which the record has too: a weight is its own memory, so there is no integral that
could wind up, and its decisions are a function of recorded history. Its changes are rows in the record like a person's. A
decision is dropped if a knob that it follows from has a turn for the coming step already, by a person or a script: so
nobody's turn is overwritten, and a script that holds the changes of a run it steered trains that run again, bit for bit.

Shapes: L layers, E experts, n steps. `load_LE` is (L, E).
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe_core.nn.gating import Routing
from moe_core.recording.holding import EVERY, factor, steer
from moe_core.runs.statistics import cv
from moe_core.schema import AUTOBALANCE, Config, Knobs, switched_off

STEERED = {"paper": ("w_importance", "w_load"), "switch": ("w_switch",)}  # by strategy; the others have no weight


def follows_from(knobs: Knobs) -> set[str]:
    """The knobs that a decision follows from."""
    return {AUTOBALANCE, "strategy", *STEERED.get(knobs.strategy, ())}


class Autobalance:
    """The last loads, and a decision each EVERY steps."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.loads: deque[tuple[int, Sequence[Tensor]]] = deque(maxlen=2 * EVERY)

    def add(self, step: int, routings: list[Routing]) -> None:
        """Add the loads of a step. Copies nothing off the device."""
        self.loads.append((step, [r.load_E.detach() for r in routings]))

    def recall(self, run: Any, step: int) -> None:
        """Read the loads up to `step` from a run's record, so that a resumed trainer decides as if it had never stopped."""
        first = max(1, step - 2 * EVERY + 1)
        layers = [run.history("load", layer, first, step) for layer in range(run.config.layers)]
        load_nLE = torch.from_numpy(np.stack([np.asarray(load, np.float32) for _, load in layers], axis=1))
        self.loads.extend((int(at), load_LE.unbind()) for at, load_LE in zip(layers[0][0], load_nLE, strict=True))

    def is_due(self, step: int, knobs: Knobs) -> bool:
        """Whether there is something to decide after a step."""
        return bool(knobs.autobalance) and step % EVERY == 0 and len(self.loads) >= EVERY

    def decide(self, step: int, knobs: Knobs) -> dict[str, float]:
        """The weights that are to change after `step`, with their new values."""
        if not self.is_due(step, knobs):
            return {}
        off = switched_off([self.config.num_experts] * self.config.layers, knobs.off)
        cv_n = mean_cv([load_LE for at, load_LE in self.loads if at > step - 2 * EVERY], off)
        if not np.isfinite(cv_n).all():
            return {}
        now, before = cv_n[-EVERY:], cv_n[:-EVERY]
        names = STEERED.get(knobs.strategy, ())
        by = factor(float(now.mean()), float((before if len(before) else now).mean()), knobs.autobalance)
        return steer({name: getattr(knobs, name) for name in names}, by)


def mean_cv(loads: Sequence[Sequence[Tensor]], off: Sequence[Sequence[int]]) -> np.ndarray:
    """(n,) CV(load) of each step, mean over the layers, each over the experts that are on: no weight moves the others.

    loads: of each step those of each layer, (E,). off: for each layer, the experts that are switched off.
    """
    device = loads[-1][-1].device  # those that were read from a record are not on a GPU yet
    load_nLE = torch.stack([torch.stack(list(load_LE)).float().to(device) for load_LE in loads]).double().cpu().numpy()
    return np.mean([cv(np.delete(load_nLE[:, layer], off_here, axis=1)) for layer, off_here in enumerate(off)], axis=0)
