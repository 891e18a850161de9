"""The mathematics: gating, balancing losses, experts, the layer and the models built from it. Needs torch and the schema."""

from moe_core.nn.balance import (
    cv_squared,
    importance_loss,
    load_loss,
    sequence_loss,
    switch_loss,
    switch_sequence_loss,
    threshold_loss,
    z_loss,
)
from moe_core.nn.gating import NoisyTopKGate, Routing, smooth_load
from moe_core.nn.hierarchical import HierarchicalGate, HierarchicalMoELayer
from moe_core.nn.layer import MoELayer
from moe_core.nn.strategies import BALANCING, Balancing, Step, after_update, losses

__all__ = [
    "BALANCING",
    "Balancing",
    "HierarchicalGate",
    "HierarchicalMoELayer",
    "MoELayer",
    "NoisyTopKGate",
    "Routing",
    "Step",
    "after_update",
    "cv_squared",
    "importance_loss",
    "load_loss",
    "losses",
    "sequence_loss",
    "smooth_load",
    "switch_loss",
    "switch_sequence_loss",
    "threshold_loss",
    "z_loss",
]
