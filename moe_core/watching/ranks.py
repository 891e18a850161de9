"""Several processes that train one model."""

from torch import nn


def bare(model: nn.Module) -> nn.Module:
    """The model within what torch and others wrap around it to train it on several devices or compiled."""
    while type(model).__name__ in WRAPPERS:
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            break
        model = inner
    return model


WRAPPERS = ("DataParallel", "DistributedDataParallel", "OptimizedModule")
