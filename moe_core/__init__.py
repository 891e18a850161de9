"""MoEscope: an oscilloscope for Mixture-of-Experts routers.

`from moe_core import watch` is the way in for a model of your own; it needs torch, which importing moe_core does not.
"""

from typing import Any

__version__ = "0.1.0"

WATCHING = ("watch", "Knob", "Live", "MoECallback", "StopTraining")


def __getattr__(name: str) -> Any:
    if name not in WATCHING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from moe_core import watching
    except ModuleNotFoundError as error:
        raise ImportError(
            f"watching a model needs {error.name}: pip install 'moescope[train]'", name=error.name
        ) from None
    return getattr(watching, name)
