# %% [markdown]
# Watch a fine-tune by transformers' Trainer: `python examples/watch_trainer.py`, and meanwhile `make run` in another terminal.
# The model is a tiny random Mixtral and the data are made up, so that it runs on any computer in a minute. In place of both, put
# your own: what watches is the one line with MoECallback.
#
# Needs: `pip install 'moescope[train]' transformers accelerate`

# %%
import sys

import torch
from transformers import MixtralConfig, MixtralForCausalLM, Trainer, TrainingArguments

from moe_core import MoECallback

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 and sys.argv[1].isdigit() else 300

# %% [markdown]
# A model. Its balancing loss acts only with `output_router_logits=True`, which is off by default; then the knob
# `router_aux_loss_coef` on the page turns it.

# %%
torch.manual_seed(0)
model = MixtralForCausalLM(
    MixtralConfig(
        vocab_size=256, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2, max_position_embeddings=64,
        output_router_logits=True, router_aux_loss_coef=0.01,
    )
)  # fmt: skip

# %% [markdown]
# Data: sums as bytes, such as `12+34=46`, some shorter than others. What pads them is 0 in their attention mask, and does not
# count in the charts.


# %%
def example(number: int, length: int = 12) -> dict[str, torch.Tensor]:
    a, b = number * 7 % 100, number * 13 % 97
    ids = torch.tensor(list(f"{a}+{b}={a + b}".encode()))
    padding = length - len(ids)
    return {
        "input_ids": torch.nn.functional.pad(ids, (0, padding)),
        "attention_mask": torch.nn.functional.pad(torch.ones_like(ids), (0, padding)),
        "labels": torch.nn.functional.pad(ids, (0, padding), value=-100),
    }


train, held_out = [example(n) for n in range(2000)], [example(n) for n in range(2000, 2100)]

# %% [markdown]
# Train. The page shows each step's own loss, though the Trainer logs only every tenth; its Stop ends the training, and its
# Checkpoint has the Trainer save.

# %%
trainer = Trainer(
    model,
    TrainingArguments(
        "trained", max_steps=STEPS, per_device_train_batch_size=16, learning_rate=1e-3, logging_steps=10,
        eval_strategy="steps", eval_steps=max(STEPS // 3, 1), save_strategy="no", report_to="none",
    ),
    train_dataset=train,
    eval_dataset=held_out,
    callbacks=[MoECallback()],
)  # fmt: skip
trainer.train()
