"""What a recorded run loses without each of its experts: a checkpoint is loaded, and the held-out split measured.

Shapes: L layers, E experts.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from moe_core.nn.models import build, routing_options
from moe_core.runs import Ablation, Run
from moe_core.schema import Config, Knobs, first_line, from_dict
from moe_core.training import checkpoint
from moe_core.training.data import Batch
from moe_core.training.evaluation import ablation
from moe_core.training.recorded import load_recorded


def ablate(
    run: Run,
    at: int | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
    moved: Mapping[str, Any] = {},
) -> Ablation:
    """How much the held-out loss rises without each expert, at the checkpoint nearest to step `at` (the last, if None).

    progress is called with how many of how many experts are measured; moved: the present paths of the run's data. ValueError
    if there is no checkpoint, or the data are gone.
    """
    config = run.config  # before a checkpoint is searched: a run that our trainer cannot train has none
    path = nearest(run, at)
    state, (data, _) = checkpoint.read(path), load_recorded(run, moved)
    try:
        knobs = from_dict(Knobs, state["knobs"])
        model = build(config, data.features, data.classes, knobs.k)
        model.load_state_dict(state["model"])
    except (RuntimeError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path.name} does not fit run {run.id}: {first_line(error)}") from None
    model.eval()
    held_out = data.held_out()
    loss, rise_LE = ablation(model, held_out, config, knobs, progress)
    shares_LE = shares(model, held_out, routing_options(config, knobs), config)
    return Ablation(int(state["step"]), loss, rise_LE.double().numpy(), shares_LE)


def nearest(run: Run, at: int | None) -> Path:
    """The checkpoint whose step is nearest to `at`; the last if None."""
    paths = checkpoint.list_checkpoints(run.path)
    if not paths:
        raise ValueError(
            f"{run.id} has no checkpoint, from which its weights are read; write one with `checkpoint` while it trains"
        )
    return paths[max(paths) if at is None else min(paths, key=lambda step: (abs(step - at), -step))]


@torch.no_grad()
def shares(model: nn.Module, held_out: Sequence[Batch], options: Mapping[str, Any], config: Config) -> np.ndarray:
    """(L, E) each expert's share of the selections on the held-out split."""
    counts_LE = np.zeros((config.layers, config.num_experts))
    for batch in held_out:
        _, routings = model(batch.inputs, **options)
        counts_LE += torch.stack([routing.counts_E for routing in routings]).numpy()
    return counts_LE / np.maximum(counts_LE.sum(1, keepdims=True), 1)
