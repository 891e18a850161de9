"""How good a model is on the held-out split, and how much worse without an expert. Draws no random number.

Shapes: T tokens, C classes, L layers, E experts.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_core.nn.models import routing_options, sample
from moe_core.schema import METRICS, SELECTIONS, Config, Knobs, check_knob
from moe_core.training.data import Batch, generator_for

SAMPLE_BYTES = 96


class Evaluation(NamedTuple):
    """What an evaluation measures. metrics: loss (nats a token), accuracy, bits_per_byte and perplexity; counts_LE: how often
    each expert of each layer was selected, before any drop."""

    metrics: dict[str, float]
    counts_LE: Tensor


@torch.no_grad()
def evaluate(model: nn.Module, held_out: Sequence[Batch], options: Mapping[str, Any]) -> Evaluation:
    """The held-out split, all batches of it, without noise.

    options: how to route, as models.routing_options() gives it. The model is left in training or evaluation as it was.
    """
    was_training = model.training
    model.eval()
    nats, right, count, selected = 0.0, 0, 0, list[Tensor]()
    for batch in held_out:
        logits, routings = model(batch.inputs, **options)
        logits_TC, targets_T = logits.float().flatten(0, -2), batch.targets.flatten()
        nats += F.cross_entropy(logits_TC, targets_T, reduction="sum").item()
        right += int((logits_TC.argmax(-1) == targets_T).sum())
        count += len(targets_T)
        selected.append(torch.stack([r.counts_E for r in routings]))
    model.train(was_training)
    loss = nats / count
    metrics = {
        "loss": loss,
        "accuracy": right / count,
        "bits_per_byte": loss / math.log(2),
        "perplexity": math.exp(min(loss, 700.0)),
    }
    return Evaluation(metrics, torch.stack(selected).sum(0))


def evaluation_of(
    model: nn.Module, held_out: Sequence[Batch], config: Config, options: Mapping[str, Any]
) -> dict[str, Any]:
    """What the record keeps of an evaluation: the task's metrics, and each layer's selections by expert, None for one that is off."""
    measured = evaluate(model, held_out, options)
    metrics: dict[str, Any] = {name: measured.metrics[name] for name, *_ in METRICS[config.task]}
    metrics[SELECTIONS] = [
        [None if expert in off else count for expert, count in enumerate(counts)]
        for counts, off in zip(measured.counts_LE.tolist(), options["off"], strict=True)
    ]
    return metrics


def write_sample(
    model: nn.Module, held_out: Sequence[Batch], config: Config, options: Mapping[str, Any], step: int
) -> str | None:
    """A text that the model writes, the same for the same step and weights. None for tasks without text."""
    if config.task != "text":
        return None
    start = bytes(held_out[0].inputs[0, :16].tolist())
    text = sample(model, start, SAMPLE_BYTES, options, generator_for(config.seed, "sample", step))
    return text.decode("utf-8", "replace")


def held_out_loss(model: nn.Module, held_out: Sequence[Batch], options: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of evaluate(), without the counts."""
    return evaluate(model, held_out, options).metrics


def ablation(
    model: nn.Module,
    held_out: Sequence[Batch],
    config: Config,
    knobs: Knobs,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[float, Tensor]:
    """(the held-out loss, (L, E) how much it rises without each expert), in nats a token. Changes nothing.

    An expert's logits are masked, beside those that are off already: its tokens go to the experts that the gate ranks next.
    NaN for an expert that is off, and where too few would be left to choose k from. progress is called with how many of
    how many experts are done.
    """
    options = routing_options(config, knobs)
    loss = held_out_loss(model, held_out, options)["loss"]
    rise_LE = torch.full((config.layers, config.num_experts), math.nan)
    for layer in range(config.layers):
        for expert in set(range(config.num_experts)) - set(options["off"][layer]):
            progress(layer * config.num_experts + expert, rise_LE.numel())
            try:
                check_knob(config, "off", f"{knobs.off},{layer + 1}:{expert + 1}", knobs)
            except ValueError:
                continue
            off = tuple((*e, expert) if at == layer else e for at, e in enumerate(options["off"]))
            rise_LE[layer, expert] = held_out_loss(model, held_out, {**options, "off": off})["loss"] - loss
    return loss, rise_LE
