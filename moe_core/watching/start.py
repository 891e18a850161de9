"""watch(): the way in."""

import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from moe_core.runs import StoreError, checked_id, runs_folder
from moe_core.schema import Knob
from moe_core.schema.stats import Metric
from moe_core.watching.live import Live
from moe_core.watching.mirrors import Mirrors
from moe_core.watching.places import Reader
from moe_core.watching.probe import EVERY, Probe
from moe_core.watching.ranks import bare
from moe_core.watching.routers import find_routers
from moe_core.watching.taps import Taps, find_taps

HELD_OUT_LOSS = Metric("loss", "held-out loss", "nats", True)


def watch(
    model: nn.Module,
    run: str | None = None,
    *,
    optimizer: Any = None,
    knobs: Mapping[str, Knob] | None = None,
    metrics: Sequence[Metric | str] = (HELD_OUT_LOSS,),
    routers: Mapping[str, Reader] | None = None,
    experts: Mapping[str, int] | None = None,
    checkpoint: Callable[[], object] | None = None,
    balance: str | None = None,
    probe: Any = None,
    tokenizer: Any = None,
    probe_every: int = EVERY,
    also: str | Sequence[str] = (),
    runs: str | Path | None = None,
) -> Live:
    """Watch a model's routers while you train it: call live.step(loss=...) after each step of the optimizer.

    The record begins with the first step; the dashboard shows it beside all other runs.
    run: its name; None: one is made of the model's class and the time. optimizer: its learning rate and weight decay become
    knobs. knobs: your own, which live.knobs.NAME gives you. metrics: what you will report by live.eval(), names or Metrics.
    routers: for layers that are not found by themselves, by the path of a module what reads ids (N, K), and weights (N, K) or
    None, from (module, args, kwargs, output) of its forward; experts: how many experts each of these has. checkpoint: what the
    command checkpoint calls. balance: "loss-free" or "quantile" steers the selection bias of a model whose routers carry one,
    after each step; a knob turns it. probe: texts, or a batch with input_ids and perhaps attention_mask, which the model is shown
    every probe_every steps, so that the pages show where each of its tokens goes; tokenizer: the model's, for texts, and so that
    tokens are shown as text. also: "tensorboard", "wandb" or "trackio", or a list of them, which get the main scalars too. runs:
    the folder of the runs; None: that of the dashboard.
    ValueError for a model without experts that can be watched; StoreError for a name that is taken.
    """
    model = bare(model)
    found = find_taps(model, routers, experts)
    folder = runs_folder(runs) / (checked_id(run) if run else new_name(model, runs_folder(runs)))
    if folder.exists():
        raise StoreError(f"run {folder.name} exists already in {folder.parent}; choose another name")
    declared = [Metric(one, one, "", True) if isinstance(one, str) else one for one in metrics]
    taps = Taps(model, found, find_routers(model, found))
    shown = None if probe is None else Probe(model, taps, probe, tokenizer, probe_every)
    return Live(model, folder, taps, optimizer, knobs or {}, declared, checkpoint, Mirrors(also), balance, shown)


def new_name(model: nn.Module, runs: Path) -> str:
    """A name that no run has: class, date, time and four random letters."""
    while True:
        word = re.sub(r"[^A-Za-z0-9]", "", type(model).__name__) or "model"
        name = f"{word}-{time.strftime('%m%d-%H%M')}-{secrets.token_hex(2)}"
        if not (runs / name).exists():
            return name
