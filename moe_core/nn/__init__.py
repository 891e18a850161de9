"""The mathematics: gating, balancing losses, experts, the layer and the models made of it. Needs torch and the schema."""

from moe_core.nn.balance import cv_squared, importance_loss, load_loss
from moe_core.nn.gating import NoisyTopKGate, Routing, smooth_load
from moe_core.nn.layer import MoELayer

__all__ = ["MoELayer", "NoisyTopKGate", "Routing", "cv_squared", "importance_loss", "load_loss", "smooth_load"]
