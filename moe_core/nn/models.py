"""The models of the three tasks: a byte-level Transformer, and a small classifier, both with MoE layers.

Shapes: B sequences, S bytes each, N rows, F features, D model width, H attention heads, C classes, T tokens in all.
"""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_core.nn.gating import Routing
from moe_core.nn.hierarchical import HierarchicalMoELayer
from moe_core.nn.layer import MoELayer
from moe_core.schema import STRATEGIES, Config, Knobs, switched_off


class Attention(nn.Module):
    """Causal self-attention over a sequence of bytes, with rotary positions. (B, S, D) -> (B, S, D)

    Queries and keys are normalised (Henry et al. 2020, arXiv 2010.04245), then turned by their position (Su et al. 2021,
    arXiv 2104.09864): with learnt absolute positions the model took three times as long to look at the byte before.
    """

    def __init__(self, d_model: int):
        super().__init__()
        self.heads = next(h for h in (8, 4, 2, 1) if h == 1 or (d_model % h == 0 and d_model // h >= 16))
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.norm_q, self.norm_k = nn.RMSNorm(d_model // self.heads), nn.RMSNorm(d_model // self.heads)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        B, S, D = x_BSD.shape
        q_BHSd, k_BHSd, v_BHSd = self.qkv(x_BSD).view(B, S, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q_BHSd, k_BHSd = rotate(normalise(self.norm_q, q_BHSd)), rotate(normalise(self.norm_k, k_BHSd))
        y_BHSd = F.scaled_dot_product_attention(q_BHSd, k_BHSd, v_BHSd, is_causal=True)
        return self.out(y_BHSd.transpose(1, 2).reshape(B, S, D))


def normalise(norm: nn.RMSNorm, x_BHSd: Tensor) -> Tensor:
    """norm(x) with its weight in x's precision: under autocast torch takes a slow path for two, and warns of it."""
    return F.rms_norm(x_BHSd, norm.normalized_shape, norm.weight.to(x_BHSd.dtype), norm.eps)


def rotate(x_BHSd: Tensor) -> Tensor:
    """Each pair of features turned by an angle that grows with the position: products then depend on distances alone.

    A feature without a partner, where d is odd, stays as it is.
    """
    S, half = x_BHSd.shape[-2], x_BHSd.shape[-1] // 2
    # In float32 or wider: under bfloat16 neighbouring positions would share an angle.
    steps_S = torch.arange(S, device=x_BHSd.device, dtype=torch.float32)
    rates_h = 10_000.0 ** (-torch.arange(half, device=x_BHSd.device, dtype=torch.float32) / max(half, 1))
    angles_Sh = steps_S[:, None] * rates_h
    cos_Sh, sin_Sh = angles_Sh.cos().to(x_BHSd.dtype), angles_Sh.sin().to(x_BHSd.dtype)
    a, b, rest = x_BHSd.split([half, half, x_BHSd.shape[-1] - 2 * half], dim=-1)
    return torch.cat([a * cos_Sh - b * sin_Sh, a * sin_Sh + b * cos_Sh, rest], dim=-1)


class Block(nn.Module):
    """Attention, then the MoE layer in the place of the feed-forward network; both on a residual stream."""

    def __init__(self, d_model: int, moe: MoELayer):
        super().__init__()
        self.norm_attention, self.norm_moe = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.attention, self.moe = Attention(d_model), moe

    def forward(self, x_BSD: Tensor, k: int, noise: float, **options: Any) -> tuple[Tensor, Routing]:
        x_BSD = x_BSD + self.attention(self.norm_attention(x_BSD))
        y_BSD, routing = self.moe(self.norm_moe(x_BSD), k, noise, **options)
        return x_BSD + y_BSD, routing


class TextModel(nn.Module):
    """Byte-level language model. inputs (B, S) of 0..255, S up to context -> logits (B, S, 256), a Routing a layer."""

    def __init__(self, config: Config, moe: list[MoELayer]):
        super().__init__()
        self.context = config.context
        self.byte = nn.Embedding(256, config.d_model)
        # Small beside what attention adds: then tokens have much in common from the first layer on, and a gate without
        # balancing losses collapses there as it does further up (docs/decisions.md).
        nn.init.normal_(self.byte.weight, std=0.1)
        self.blocks = nn.ModuleList(Block(config.d_model, layer) for layer in moe)
        self.norm = nn.LayerNorm(config.d_model)
        self.head = nn.Linear(config.d_model, 256, bias=False)

    @property
    def moe_layers(self) -> list[MoELayer]:
        return [block.moe for block in self.blocks]

    def forward(
        self, inputs_BS: Tensor, k: int, noise: float = 1.0, off: Sequence[Sequence[int]] = (), **options: Any
    ) -> tuple[Tensor, list[Routing]]:
        x_BSD = self.byte(inputs_BS)
        routings = []
        for block, off_here in zip_longest(self.blocks, off, fillvalue=()):
            x_BSD, routing = block(x_BSD, k, noise, off=off_here, **options)
            routings.append(routing)
        return self.head(self.norm(x_BSD)), routings


class Classifier(nn.Module):
    """Rows of features to classes. inputs (N, F) -> logits (N, C), a Routing a layer."""

    def __init__(self, config: Config, features: int, classes: int, moe: list[MoELayer]):
        super().__init__()
        d = config.d_model
        # Three ReLU layers: each makes rows more alike (all its values are positive), and a gate without balancing losses
        # collapses only where tokens have much in common (docs/decisions.md).
        widths = (features, d, d)
        self.embed = nn.Sequential(*(part for width in widths for part in (nn.Linear(width, d), nn.ReLU())))
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in moe)
        self.moe = nn.ModuleList(moe)
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, classes)

    @property
    def moe_layers(self) -> list[MoELayer]:
        return list(self.moe)

    def forward(
        self, inputs_NF: Tensor, k: int, noise: float = 1.0, off: Sequence[Sequence[int]] = (), **options: Any
    ) -> tuple[Tensor, list[Routing]]:
        x_ND = self.embed(inputs_NF)
        routings = []
        for norm, moe, off_here in zip_longest(self.norms, self.moe, off, fillvalue=()):
            y_ND, routing = moe(norm(x_ND), k, noise, off=off_here, **options)
            x_ND = x_ND + y_ND
            routings.append(routing)
        return self.head(self.norm(x_ND)), routings


def build(
    config: Config, features: int, classes: int, k: int, start_noise: float = 1.0, strategy: str = "paper"
) -> TextModel | Classifier:
    """The task's model with fresh weights from torch's random state.

    features, classes: widths of a row and of the answer (both 256, and unused, for text). Without noise, or with a
    strategy that draws none, a gate of zeros would tie every logit, so it then starts from small random weights.
    """
    zero_init = start_noise > 0 and STRATEGIES[strategy].zero_start
    sizes = (config.d_model, config.d_hidden, config.num_experts)
    moe = [
        HierarchicalMoELayer(*sizes, config.groups, k, zero_init=zero_init)
        if config.groups > 1
        else MoELayer(*sizes, k, zero_init)
        for _ in range(config.layers)
    ]
    return TextModel(config, moe) if config.task == "text" else Classifier(config, features, classes, moe)


def routing_options(config: Config, knobs: Knobs) -> dict[str, Any]:
    """The routing options that the knobs give: keyword arguments of a model's call. In evaluation it draws no noise."""
    options = {
        "k": knobs.k,
        "noise": knobs.noise,
        "strategy": knobs.strategy,
        "weigh": knobs.weigh,
        "capacity_factor": knobs.capacity_factor,
        "off": switched_off([config.num_experts] * config.layers, knobs.off),
    }
    levels = {"k_primary": knobs.k_primary, "noise_primary": knobs.noise_primary}
    return options | levels if config.groups > 1 else options


@torch.no_grad()
def sample(
    model: TextModel, start: bytes, length: int, options: Mapping[str, Any], generator: torch.Generator
) -> bytes:
    """start continued by length bytes, each drawn from the model without gate noise. Leaves the model in eval mode.

    options: how to route, as routing_options() gives it.
    """
    model.eval()
    device = model.byte.weight.device
    written = list(start)
    for _ in range(length):
        inputs_1S = torch.tensor([written[-model.context :]], device=device)
        logits_1SV, _ = model(inputs_1S, **options)
        written.append(int(torch.multinomial(logits_1SV[0, -1].float().softmax(-1).cpu(), 1, generator=generator)))
    return bytes(written)
