# %% [markdown]
# Watch a fine-tune by TRL's SFTTrainer: `python examples/watch_trl.py`, and meanwhile `make run` in another terminal.
# The model is a tiny random Qwen3-MoE, and its tokenizer knows the words of the made-up data, so that nothing is downloaded. In
# place of both, put your own: what watches is the one line with MoECallback. It is the same for TRL's other trainers.
#
# Needs: `pip install 'moescope[train]' trl`

# %%
import sys

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM
from trl import SFTConfig, SFTTrainer

from moe_core import MoECallback

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 and sys.argv[1].isdigit() else 200

# %% [markdown]
# Data: sentences of different lengths, whose words are the vocabulary.

# %%
NAMES, DEEDS, PLACES = ("Ada", "Alan", "Grace"), ("reads", "writes", "mends a clock"), ("at home", "in the old library")
sentences = [f"{name} {deed} {place} ." for name in NAMES for deed in DEEDS for place in PLACES] * 40
words = sorted({word for sentence in sentences for word in sentence.split()})
known = {word: number for number, word in enumerate(["[PAD]", "[END]", "[UNKNOWN]", *words])}
tokenizer = Tokenizer(models.WordLevel(known, unk_token="[UNKNOWN]"))
tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", eos_token="[END]")

# %%
torch.manual_seed(0)
model = Qwen3MoeForCausalLM(
    Qwen3MoeConfig(
        vocab_size=len(known), hidden_size=64, intermediate_size=64, moe_intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_experts=8, num_experts_per_tok=2,
        max_position_embeddings=64, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )
)  # fmt: skip

# %% [markdown]
# Train. TRL switches the model's balancing loss on by itself. It switches gradient checkpointing on as well: each token still
# counts once.

# %%
trainer = SFTTrainer(
    model,
    SFTConfig(
        "trained", max_steps=STEPS, per_device_train_batch_size=16, learning_rate=1e-3, logging_steps=10,
        save_strategy="no", report_to="none", bf16=False,
    ),
    train_dataset=Dataset.from_dict({"text": sentences}),
    processing_class=tokenizer,
    callbacks=[MoECallback()],
)  # fmt: skip
trainer.train()
