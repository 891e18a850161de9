"""A hook on anybody's PyTorch model: what its routers choose, read without changing a bit of what it computes."""

from moe_core.schema import Knob
from moe_core.watching.live import Live, StopTraining, watch

__all__ = ["Knob", "Live", "StopTraining", "watch"]
