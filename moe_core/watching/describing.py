"""The description of a watched run: its layers, its statistics, its knobs, and the model and machine that it is of."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from moe_core.recording.facts import device_name, versions
from moe_core.schema import Description, Knob, Layer
from moe_core.schema.description import Loss
from moe_core.schema.stats import Metric
from moe_core.watching.measuring import OF_STEP, Step
from moe_core.watching.probe import MOVEMENT
from moe_core.watching.readers import parent_of
from moe_core.watching.tally import SCORE_STATS, Sums
from moe_core.watching.taps import Taps, device_of
from moe_core.watching.turning import base_of

CONFIG = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")  # of the model's config, for people


def description_of(
    model: nn.Module,
    optimizer: Any,
    taps: Taps,
    k_of_tap: Mapping[int, int],
    step: Step,
    sums: Sequence[Sums],
    knobs: Mapping[str, Knob],
    metrics: Sequence[Metric],
    checkpoint: bool,
    probe_every: int = 0,
) -> Description:
    """The description of a run whose first step is `step`, with `sums` as what was selected in it.

    k_of_tap: how many experts each token went to, by the tap's number, in the order of the layers. probe_every: steps between two
    looks at the probe, 0 without a probe.
    """
    measures = [name for name in OF_STEP if name in step.said] + ["seconds"]
    measures += ["importance"] if any(one.importance_CE1 is not None for one in sums) else []
    measures += ["counts"]
    if heard := [one.scores_SC for one in sums if one.scores_SC is not None]:
        some_S = torch.stack([~scores_SC.isnan().all(1) for scores_SC in heard]).any(0)
        measures += [name for name, some in zip(SCORE_STATS, some_S.tolist(), strict=True) if some]
    return Description(
        origin="watched",
        task=type(model).__name__,
        layers=tuple(layer_of(model, taps, tap, k) for tap, k in k_of_tap.items()),
        knobs=knobs,
        metrics=tuple(metrics),
        loss=Loss("nats", 1.0, "loss"),
        probe="tokens" if probe_every else "none",
        obeys=("pause", "step", "stop", *(["checkpoint"] if checkpoint else [])),
        settings=settings_of(model, optimizer),
        churn_every=probe_every,
        measures=(*measures, "dead_experts", *(MOVEMENT if probe_every else ())),
    )


def layer_of(model: nn.Module, taps: Taps, number: int, k: int) -> Layer:
    """A layer as its run declares it. It learns if its router has a parameter that is trained, or if its router was not found."""
    tap, router = taps.taps[number], taps.routers.get(number)
    learns = router is None or any(parameter.requires_grad for parameter in router.module.parameters())
    block = model.get_submodule(parent_of(tap.name))
    shared = int(any(hasattr(block, name) for name in ("shared_expert", "shared_experts", "shared_mlp")))
    return Layer(tap.name, tap.experts, min(k, tap.experts), 1, shared, learns)


def settings_of(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    """What people are shown of the model."""
    parameters = list(model.parameters())
    config = getattr(model, "config", None)
    said = {name: value for name in CONFIG if isinstance(value := getattr(config, name, None), (int, str))}
    return said | {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "dtype": str(parameters[0].dtype).removeprefix("torch.") if parameters else "",
        "optimizer": "" if optimizer is None else type(base_of(optimizer)).__name__,
    }


def facts_of(model: nn.Module) -> dict[str, Any]:
    """The device that the model is trained on, and the versions of the software."""
    device, used = device_of(model), versions()
    if (transformers := sys.modules.get("transformers")) is not None:
        used["transformers"] = str(transformers.__version__)
    return {
        "device": str(device),
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "versions": used,
    }
