"""What watching costs a training: `python benchmarks/watching.py`.

Two tiny Mixtrals of the same seed are trained in turn, a block of steps each; one of them is watched, with its optimizer. Printed, as
one JSON line, are the median and the quartiles of the ratios of neighbouring blocks, in per cent, and then the memory that is held
after more and more steps. One thread, since so small tensors are slower with more. --layers, --tokens: of the models; --quick: the
short form.
"""

import argparse
import gc
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from transformers import MixtralConfig, MixtralForCausalLM

from moe_core import watch
from moe_core.commands.common import count_flag


class Training:
    """A model and its optimizer; with `runs`, it is watched."""

    def __init__(self, layers: int, tokens: int, runs: str | None) -> None:
        torch.manual_seed(0)
        config = MixtralConfig(
            vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=4, num_local_experts=8, num_experts_per_tok=2, max_position_embeddings=tokens, use_cache=False,
        )  # fmt: skip
        self.model = MixtralForCausalLM(config).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.ids = torch.randint(0, 256, (2, tokens // 2), generator=torch.Generator().manual_seed(0))
        self.live = watch(self.model, "watched", optimizer=self.optimizer, runs=runs) if runs else None

    def step(self) -> None:
        loss = self.model(input_ids=self.ids, labels=self.ids).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.live is not None:
            self.live.step(loss=loss)

    def block(self, steps: int) -> float:
        """Seconds of so many steps."""
        began = time.perf_counter()
        for _ in range(steps):
            self.step()
        return time.perf_counter() - began


def measure_cost(plain: Training, watched: Training, blocks: int, steps: int) -> dict[str, float]:
    """Train both in turn; which of them comes first alternates."""
    ratios, took = [], []
    for pair in range(blocks):
        first, second = (plain, watched) if pair % 2 else (watched, plain)
        one, other = first.block(steps), second.block(steps)
        alone, together = (one, other) if first is plain else (other, one)
        ratios.append(100 * (together / alone - 1))
        took.append(1000 * alone / steps)
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "step_ms": round(statistics.median(took), 2),
        "cost_percent": round(middle, 2),
        "low": round(low, 2),
        "high": round(high, 2),
        "fastest_percent": round(compare_fastest(plain, watched, blocks * steps // 2), 2),
    }


def compare_fastest(plain: Training, watched: Training, steps: int) -> float:
    """By how many per cent the tenth percentile of the steps is longer when they are watched: of a shared machine, the steps in
    which nobody else had it."""
    took = [(plain.block(1), watched.block(1)) for _ in range(steps)]
    alone, together = (statistics.quantiles(times, n=10)[0] for times in zip(*took, strict=True))
    return 100 * (together / alone - 1)


def held() -> dict[str, float]:
    """How many tensors exist, and the most memory that the process has had."""
    gc.collect()
    tensors = sum(type(one) in (torch.Tensor, torch.nn.Parameter) for one in gc.get_objects())
    return {"tensors": tensors, "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=count_flag, default=2)
    parser.add_argument("--tokens", type=count_flag, default=128)
    parser.add_argument("--steps", type=count_flag, default=10_000, help="of the memory's measurement")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as runs:
        plain, watched = Training(given.layers, given.tokens, None), Training(given.layers, given.tokens, runs)
        for training in (plain, watched):
            training.block(3 if given.quick else 30)
        row: dict[str, Any] = measure_cost(plain, watched, 4 if given.quick else 100, 2 if given.quick else 20)
        row["memory"] = {}
        steps = 40 if given.quick else given.steps
        for part in range(1, 5):
            watched.block(steps // 4)
            row["memory"][part * steps // 4] = held()
        assert watched.live is not None
        watched.live.close()
    print(json.dumps(row))


if __name__ == "__main__":
    main()
