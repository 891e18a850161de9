"""A tiny Mixtral learns to continue a sequence while it is watched. Run it whole, or cell by cell in an editor.

Needs transformers: pip install 'moescope[watch-demo]'. Beside it: python -m moe_core dashboard
"""

# %% A model and its data: any MoE in PyTorch will do
import os

import torch
from transformers import MixtralConfig, MixtralForCausalLM

from moe_core import watch

STEPS = int(os.environ.get("STEPS", "2000"))
torch.manual_seed(0)
config = MixtralConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    num_local_experts=8,
    num_experts_per_tok=2,
    max_position_embeddings=32,
    output_router_logits=True,  # without it, router_aux_loss_coef has no effect
    router_aux_loss_coef=0.0,  # turn it up on the Live page
)
model = MixtralForCausalLM(config).train()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)


def sequences(rows: int) -> torch.Tensor:
    """Rows of numbers modulo 64, each of which counts up by 1, 2 or 3 from a random start."""
    starts, steps = torch.randint(0, 64, (rows, 1)), torch.randint(1, 4, (rows, 1))
    return (starts + steps * torch.arange(24)) % 64


# %% The loop: watch(), and live.step() after each step of the optimizer
with watch(model, run=os.environ.get("RUN"), optimizer=optimizer) as live:
    print(f"run {live.path.name}")
    for step in range(1, STEPS + 1):
        ids = sequences(16)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        live.step(loss=loss)
        if step % 50 == 0:
            model.eval()
            held_out = sequences(64)
            with torch.no_grad():
                live.eval(loss=model(input_ids=held_out, labels=held_out).loss)
            model.train()

# %% What was recorded, as arrays
from moe_core.runs import open_run  # noqa: E402

run = open_run(live.path)
steps, cv = run.history("cv_counts", layer=1)
print(f"{run.state} after {steps[-1]} steps; CV(selections) of layer 2 is {cv[-1]:.2f}")
