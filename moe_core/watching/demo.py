"""A watched training to look at: a tiny Qwen3-MoE of random weights learns to predict bytes, in a loop as anybody writes it.

The weight of its balancing loss starts at 0, so that its routers collapse, and is turned while it trains.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moe_core.watching.live import Live
from moe_core.watching.start import watch

EVERY = 50  # steps between two evaluations
RATE = 3e-3


def tiny_qwen(seed: int) -> nn.Module:
    """4 layers of 16 experts, 2 for each byte, in training mode."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    # Without output_router_logits the coefficient has no effect; grouped_mm saves a quarter of a step.
    settings: dict[str, Any] = {
        "vocab_size": 256, "hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 4,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "num_experts": 16, "num_experts_per_tok": 2,
        "norm_topk_prob": True, "router_aux_loss_coef": 0.0, "output_router_logits": True, "max_position_embeddings": 64,
        "use_cache": False, "experts_implementation": "grouped_mm",
    }  # fmt: skip
    torch.manual_seed(seed)
    model: nn.Module = Qwen3MoeForCausalLM(Qwen3MoeConfig(**settings))
    return model.train()


class Bytes:
    """The part of a tokenizer that a probe needs: here an id is a byte."""

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode("utf-8", "backslashreplace")


def fine_tune(
    name: str,
    batch: Callable[[int], Tensor],
    held_out: Sequence[Tensor],
    probe: Tensor,
    steps: int = 0,
    runs: str | Path | None = None,
    seed: int = 0,
    begun: Callable[[Live], object] = lambda live: None,
) -> Live:
    """Train a tiny model to `steps`, 0 being until it is stopped, by the page, by `moescope stop` or by Ctrl-C.

    batch: gives the ids (B, S) of a step's bytes; held_out: the ids of each batch of an evaluation; probe: ids (B, S) whose
    routing is shown. begun: called once the record has begun.
    """
    torch.set_num_threads(1)  # more threads make so small a model slower
    model = tiny_qwen(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    with watch(model, name, optimizer=optimizer, probe=probe, tokenizer=Bytes(), runs=runs) as live:
        try:
            while not steps or live.number < steps:
                ids = batch(live.number + 1)
                output = model(input_ids=ids, labels=ids)
                output.loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                balancing = live.knobs.router_aux_loss_coef * output.aux_loss
                live.step(loss=output.loss, task_loss=output.loss - balancing)
                if live.number == 1:
                    begun(live)
                if live.number % EVERY == 0:
                    live.eval(loss=evaluate(model, held_out))
        except KeyboardInterrupt:
            live.close("stopped")
    return live


@torch.no_grad()
def evaluate(model: nn.Module, held_out: Sequence[Tensor]) -> float:
    """The loss of the task alone, on bytes that the training never sees."""
    model.eval()
    losses = [model(input_ids=ids, labels=ids, output_router_logits=False).loss for ids in held_out]
    model.train()
    return float(torch.stack(losses).mean())
