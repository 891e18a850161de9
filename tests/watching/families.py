"""Tiny models of the transformers families that have a router, each from a random config."""

import importlib
import inspect
from pathlib import Path
from typing import Any

import torch
import transformers

# What makes a config small, wherever it has a setting of that name.
SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 16, "ffn_hidden_size": 32, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8, "max_position_embeddings": 64, "use_cache": False,
    "num_experts": 8, "num_local_experts": 8, "n_routed_experts": 8, "moe_num_experts": 8,
    "num_experts_per_tok": 2, "num_experts_per_token": 2, "moe_k": 2, "moe_topk": 2, "top_k_experts": 2, "n_group": 2, "topk_group": 1,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "first_k_dense_replace": 1, "shared_expert_intermediate_size": 16, "moe_shared_expert_intermediate_size": 16,
    "num_shared_experts": 1, "n_shared_experts": 1, "shared_intermediate_size": 16, "expert_ffn_hidden_size": 16,
    "index_n_heads": 2, "index_head_dim": 8, "index_topk": 8, "sliding_window": 16,
    "linear_head_dim": 8, "linear_num_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 4,
    "linear_num_value_heads": 4,
}  # fmt: skip
# What a family wants otherwise.
OWN: dict[str, dict[str, Any]] = {
    "beam": {"num_hidden_layers": 5},  # the first three are dense
    "dbrx": {
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 64,
        "attn_config": {"kv_n_heads": 4, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 8, "moe_top_k": 2, "hidden_size": 32},
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
    "switch_transformers": {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "num_sparse_encoder_layers": 1,
        "num_sparse_decoder_layers": 1,
    },
    "ernie4_5_vl_moe": {"moe_intermediate_size": [16, 16]},
    "gemma4": {"enable_moe_block": True},
    "glm4v_moe": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [1, 1, 2],
            "partial_rotary_factor": 1.0,
        }
    },
    "glm5_next": {"index_topk": 16, "qk_rope_head_dim": 0},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "mimo_v2_flash": {"head_dim": 16, "v_head_dim": 16, "rope_parameters": None},
    "step3p7": {"mlp_layer_types": ["dense", "sparse", "sparse"]},
    "zaya": {"num_experts_per_tok": 1},
}
MODELS = Path(transformers.__file__).parent / "models"


def families() -> list[str]:
    """Every family whose modelling file records router logits."""
    return sorted(p.parent.name for p in MODELS.glob("*/modeling_*.py") if '"router_logits": ' in p.read_text())


def classes_of(family: str) -> list[type]:
    """Its model classes, those of text alone first."""
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    ends = ("TextForCausalLM", "TextModel", "ForCausalLM", "Model")
    classes = [
        one for one in vars(module).values()
        if inspect.isclass(one) and one.__module__ == module.__name__ and issubclass(one, transformers.PreTrainedModel)
        and one.config_class is not None and "PreTrained" not in one.__name__ and one.__name__.endswith(ends)
    ]  # fmt: skip
    return sorted(classes, key=lambda one: next(n for n, end in enumerate(ends) if one.__name__.endswith(end)))


def build(family: str, seed: int = 0) -> torch.nn.Module:
    """A tiny random model in training mode. Exception of whatever kind the family raises if it cannot be built so."""
    cls = classes_of(family)[0]
    config = cls.config_class
    names = {name for base in config.__mro__ for name in getattr(base, "__annotations__", {})}
    names |= set(inspect.signature(config.__init__).parameters) | set(getattr(config, "attribute_map", {}).values())
    torch.manual_seed(seed)
    return cls(config(**{name: value for name, value in SMALL.items() if name in names} | OWN.get(family, {}))).train()
