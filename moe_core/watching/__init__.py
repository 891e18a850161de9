"""watch() for any PyTorch model: what its routers choose, read without changing a bit of what the model computes."""

from typing import TYPE_CHECKING, Any

from moe_core.schema import Knob
from moe_core.watching.live import Live, StopTraining
from moe_core.watching.start import watch

if TYPE_CHECKING:
    from moe_core.watching.callback import MoECallback

__all__ = ["Knob", "Live", "MoECallback", "StopTraining", "watch"]


def __getattr__(name: str) -> Any:
    """MoECallback is imported when it is asked for: it needs transformers, which the rest does not."""
    if name != "MoECallback":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from moe_core.watching.callback import MoECallback

    return MoECallback
