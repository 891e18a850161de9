"""watch() itself: finds what can be watched in a model, and returns the live handle."""

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from moe_core.nn.checks import check_size, shown
from moe_core.remedies import COEFFICIENT
from moe_core.runs import StoreError, checked_id, folder_in, new_id, runs_folder
from moe_core.schema import Knob
from moe_core.schema.description import read_metric
from moe_core.schema.stats import CLASSES, Metric
from moe_core.watching.live import Live
from moe_core.watching.mirrors import Mirrors
from moe_core.watching.probe import EVERY, Probe
from moe_core.watching.ranks import bare
from moe_core.watching.readers import Reader, find_taps
from moe_core.watching.routers import find_routers
from moe_core.watching.taps import Taps

log = logging.getLogger("moescope")

KNOWN = {metric.name: metric for metric in CLASSES}  # what these names mean is known, the label and the unit too


def watch(
    model: nn.Module,
    run: str | None = None,
    *,
    optimizer: Any = None,
    knobs: Mapping[str, Knob] | None = None,
    metrics: Sequence[Metric | str] = ("loss",),
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
    run: the run's name; None: one made of the model's class and the time.
    optimizer: its learning rate and weight decay become knobs.
    knobs: your own; live.knobs.NAME is the value of each.
    metrics: names or Metrics of the numbers that you will give to live.eval(). Lower is better for
    every name but "accuracy"; give a Metric where higher is.
    routers: for layers that are not found by themselves: a reader by the path of a module. From (module, args, kwargs, output) of
    the module's forward it returns ids (N, K), and weights (N, K) or None.
    experts: how many experts each module of `routers` has, by its path.
    checkpoint: a function that the command `checkpoint` calls.
    balance: "loss-free" or "quantile" moves the selection bias of the routers after each step, if they have one. Also a knob.
    probe: texts, or a batch with input_ids, that the model is shown every probe_every steps: the pages show where its tokens go.
    tokenizer: the model's own. Texts need it; with a batch it makes the pages show text instead of ids.
    also: "tensorboard", "wandb", "trackio", or a list of these, to which the main scalars are sent as well.
    runs: the folder of the runs; None: the one that the dashboard shows.
    ValueError for a model without experts that can be watched, and for an argument of another type; StoreError for a name that
    another run has, and for runs= that is no folder.
    """
    check_given(model, knobs, routers, experts, checkpoint, runs)
    model, declared = bare(model), metrics_of(metrics)
    found = find_taps(model, routers, experts)
    folder = folder_in(runs_folder(runs)) / (checked_id(run) if run is not None else new_id(runs, class_of(model)))
    if (folder / "run.db").exists():
        raise StoreError(f"run {folder.name} exists already in {folder.parent}; choose another name")
    taps = Taps(model, found, find_routers(model, found))
    try:
        to_show = None if probe is None else Probe(model, taps, probe, tokenizer, probe_every)
        live = Live(model, folder, taps, optimizer, knobs or {}, declared, checkpoint, Mirrors(also), balance, to_show)
    except BaseException:
        taps.close()  # no hook stays on a model that is not watched
        raise
    if COEFFICIENT in live.turns and getattr(getattr(model, "config", None), "output_router_logits", None) is False:
        log.warning(
            "%s acts only in forwards with output_router_logits=True, and the model's config has it off; live.check(batch) tells "
            "whether it acts",
            COEFFICIENT,
        )
    return live


def check_given(model: Any, knobs: Any, routers: Any, experts: Any, checkpoint: Any, runs: Any) -> None:
    """ValueError for what is of another type than watch() takes."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"watch needs a model that is a torch.nn.Module, got {shown(model)}")
    for name, given, example in (
        ("knobs", knobs, "{'noise': Knob(0.1, 0, 1)}"),
        ("routers", routers, "{'layers.0.gate': reader}"),
        ("experts", experts, "{'layers.0.gate': 8}"),
    ):
        if not isinstance(given, Mapping | None):
            raise ValueError(f"{name} must be a dict, such as {name}={example}, got {shown(given)}")
    for name, read in (routers or {}).items():
        if not callable(read):
            raise ValueError(f"routers must give a function for {shown(name)}, got {shown(read)}")
    for name, many in (experts or {}).items():
        if name not in (routers or {}):
            raise ValueError(f"experts must name modules that routers= gives a reader for, got {shown(name)}")
        check_size(f"experts of {shown(name)}", many)
    if not isinstance(runs, str | Path | None) or "\0" in str(runs):
        raise ValueError(f"runs must be the path of a folder, got {shown(runs)}")
    if not (checkpoint is None or callable(checkpoint)):
        raise ValueError(f"checkpoint must be a function that is called without arguments, got {shown(checkpoint)}")


def metrics_of(given: Any) -> list[Metric]:
    """The Metrics that watch(metrics=...) gives. ValueError for what is none, or could not be recorded."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ValueError(f"metrics must be a list of names or Metrics, such as metrics=['loss'], got {shown(given)}")
    declared = []
    for one in given:
        metric = KNOWN.get(one, Metric(one, one, "", True)) if isinstance(one, str) else one
        if not isinstance(metric, Metric):
            raise ValueError(f"metrics must be names or Metrics, such as metrics=['loss'], got {shown(one)}")
        declared.append(read_metric(metric._asdict()))
    if twice := [one.name for at, one in enumerate(declared) if one.name in (before.name for before in declared[:at])]:
        raise ValueError(f"metrics must have names of their own, got {twice[0]} twice")
    return declared


def class_of(model: nn.Module) -> str:
    """The name of a model's class, in letters that a run's name may have."""
    return re.sub(r"[^A-Za-z0-9]", "", type(model).__name__)[:80] or "model"
