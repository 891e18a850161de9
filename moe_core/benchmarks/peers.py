"""The MoE layers of others beside which `bench layer` measures ours: each as its authors wrote it, with its own gate and its own
balancing loss. None is part of this repository: they are installed by requirements-bench.txt or given as a file.

Shapes: T tokens, D model width.
"""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

Forward = Callable[
    [Tensor], tuple[Tensor, Tensor | None]
]  # x (T, D) -> y (T, D), and the balancing loss if there is one
Sizes = tuple[int, int, int, int]  # model width, expert width, experts, k

INSTALL = "pip install -r requirements-bench.txt"
# What differs from ours in what is computed. All have k * T rows of experts, as ours.
NOTES = {
    "mixtral": "transformers' Mixtral block, grouped_mm: gated experts, 1.5 times the products; no noise; its auxiliary loss",
    "mixtral-loop": "the same, its loop over experts",
    "st-moe": "st-moe-pytorch: gated experts of 2/3 the width, the same products; biases; a capacity of k T / E, "
    "what does not fit is dropped; no noise; balance and z loss",
}


def peer(text: str, sizes: Sizes) -> tuple[torch.nn.Module, Forward]:
    """The module of a peer and its forward. text: one of NOTES, or NAME=FILE.py.

    The file has a function layer(d_model, d_hidden, num_experts, k) that returns a module, or a class MoE as in
    github.com/davidmrau/mixture-of-experts: MoE(input_size, output_size, num_experts, hidden_size, k=…). The module takes
    x (T, D) and returns y, or (y, balancing loss, …). ValueError where the peer is unknown or not there.
    """
    name, _, path = text.partition("=")
    if path:
        return from_file(Path(path), sizes)
    if name not in NOTES:
        raise ValueError(f"a peer is one of {', '.join(NOTES)}, or NAME=FILE.py, got {text!r}")
    try:
        return (
            st_moe(sizes) if name == "st-moe" else mixtral(sizes, "eager" if name == "mixtral-loop" else "grouped_mm")
        )
    except ImportError as error:
        raise ValueError(f"the peer {name} is not installed ({error}): {INSTALL}") from None


def from_file(path: Path, sizes: Sizes) -> tuple[torch.nn.Module, Forward]:
    """What a file of layer() or MoE gives; the file is run."""
    if not path.is_file():
        raise ValueError(f"a peer's file must be a Python file, there is none at {path}")
    spec = importlib.util.spec_from_file_location(f"peer_{path.stem}", path)
    source = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = source  # where dataclasses and pickles of the file look for it
    spec.loader.exec_module(source)
    d_model, d_hidden, num_experts, k = sizes
    if hasattr(source, "layer"):
        module = source.layer(d_model, d_hidden, num_experts, k)
    elif hasattr(source, "MoE"):
        module = source.MoE(d_model, d_model, num_experts, d_hidden, k=k)
    else:
        raise ValueError(f"{path} must define layer(d_model, d_hidden, num_experts, k) or a class MoE, it has neither")

    def forward(x_TD: Tensor) -> tuple[Tensor, Tensor | None]:
        given = module(x_TD)
        return given[:2] if isinstance(given, tuple) else (given, None)

    return module, forward


def mixtral(sizes: Sizes, experts: str) -> tuple[torch.nn.Module, Forward]:
    """Of transformers; experts: which of its implementations."""
    from transformers.models.mixtral import modeling_mixtral as source

    d_model, d_hidden, num_experts, k = sizes
    config = source.MixtralConfig(
        hidden_size=d_model, intermediate_size=d_hidden, num_local_experts=num_experts, num_experts_per_tok=k
    )
    config._experts_implementation = experts
    block = source.MixtralSparseMoeBlock(config)
    for weights in block.parameters():
        torch.nn.init.normal_(weights, std=config.initializer_range)
    logits: list[Tensor] = []
    block.gate.register_forward_hook(lambda gate, given, out: logits.append(out[0]))

    def forward(x_TD: Tensor) -> tuple[Tensor, Tensor | None]:
        logits.clear()
        y_TD = block(x_TD[None])[0]
        return y_TD, source.load_balancing_loss_func(tuple(logits), num_experts, k)

    return block, forward


def st_moe(sizes: Sizes) -> tuple[torch.nn.Module, Forward]:
    from st_moe_pytorch import MoE

    d_model, d_hidden, num_experts, k = sizes
    module = MoE(
        d_model,
        num_experts=num_experts,
        expert_hidden_mult=d_hidden / d_model,
        gating_top_n=k,
        capacity_factor_train=float(k),
    )

    def forward(x_TD: Tensor) -> tuple[Tensor, Tensor | None]:
        given = module(x_TD[None])
        return given.outputs[0], given.total_aux_loss

    return module, forward
