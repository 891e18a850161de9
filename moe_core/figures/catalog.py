"""All figures by name: its title, its page, its tasks, how to read its arguments from a run, and how to draw it.

Adding a figure: write it in a module beside this one, write how it is read, add an entry to FIGURES. The pages, the
export and the tests take it from here. A source is anything with the methods of a run: config, knobs, steps or status,
history, evals, knob_changes, snapshot, probe, ablation.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from moe_core.figures import bars, routing, timeline
from moe_core.figures.ablation import ablation
from moe_core.figures.theme import Figure
from moe_core.figures.tiles import gestures, last_step, probe_at, rows_until
from moe_core.schema import AUTOBALANCE, METRICS, TASKS

Span = tuple[float, float] | None
Read = Callable[[Any, int, int | None, Span, int | None], dict[str, Any]]


class Entry(NamedTuple):
    """A figure and where its numbers come from.

    read(source, layer, step, span, bins) gives the keyword arguments of draw, `theme` and `size` aside. step: the step
    looked at, None being the last; span: (first, last) step of the visible range, None being all; bins: about how many
    points a line may have, None being every step.
    """

    title: str
    page: str
    tasks: tuple[str, ...]
    draw: Figure
    read: Read


def over_time(source: Any, stat: str, layer: int, span: Span, bins: int | None) -> tuple[Any, Any]:
    """A history within the visible range, with a step to either side so that lines reach the edges."""
    first = None if span is None else max(1, math.floor(span[0]) - 1)
    last = None if span is None else math.ceil(span[1]) + 1
    steps, values = source.history(stat, layer, first=first, last=last, bins=bins)
    return steps, values


def common(source: Any, step: int | None, span: Span) -> dict[str, Any]:
    """What every chart over time takes beside its values. A line marks a hand's change: autobalance's own would cover all."""
    changes = tuple(change for change in gestures(source.knob_changes()) if change.who != AUTOBALANCE)
    return {"span": span, "cursor": step, "changes": changes}


def read_load_share(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    steps, share_nE = over_time(source, "load_share", layer, span, bins)
    return {"steps": steps, "share_nE": share_nE} | common(source, step, span)


def read_balance(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    steps, cv_load = over_time(source, "cv_load", layer, span, bins)
    # Thinning picks rows by their steps alone, so both have the same x.
    _, cv_importance = over_time(source, "cv_importance", layer, span, bins)
    return {"steps": steps, "cv_load": cv_load, "cv_importance": cv_importance} | common(source, step, span)


def read_balance_now(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    last = last_step(source) if step is None else step
    steps, load = rows_until(source, "load", layer, last, 1)
    _, importance = rows_until(source, "importance", layer, last, 1)
    none = np.full(source.config.num_experts, np.nan)
    return {
        "load_E": bars.shares(load[-1]) if len(load) else none,
        "importance_E": bars.shares(importance[-1]) if len(importance) else none,
        "step": int(steps[-1]) if len(steps) else None,
    }


def read_loss(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    """Text is read in bits per byte, the others in nats, training and held-out alike."""
    text = source.config.task == "text"
    metric = METRICS["text"][0][0] if text else "loss"
    steps, train = over_time(source, "task_loss", 0, span, bins)
    evals = [(e.step, e.metrics[metric]) for e in source.evals() if metric in e.metrics]
    return {
        "steps": steps,
        "train": np.asarray(train) / math.log(2) if text else train,
        "heldout_steps": np.array([step for step, _ in evals], np.int64),
        "heldout": np.array([value for _, value in evals], np.float64),
        "unit": "bits per byte" if text else "nats",
    } | common(source, step, span)


def read_tokens(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    found = probe_at(source, step)
    experts_NK = np.zeros((0, 1), np.uint8) if found is None else found[1]["experts"][layer]
    return {
        "experts_NK": experts_NK,
        "num_experts": source.config.num_experts,
        "step": None if found is None else found[0],
    }


def read_probe(source: Any, layer: int, step: int | None) -> dict[str, Any]:
    """A layer's experts and gates of the last probe snapshot; of none, zero tokens."""
    found = probe_at(source, step)
    when, arrays = (None, {}) if found is None else found
    none = np.zeros((0, 1), np.uint8)
    return {
        "experts_NK": arrays["experts"][layer] if found else none,
        "gates_NK": arrays["gates"][layer] if found else none.astype(np.float16),
        "num_experts": source.config.num_experts,
        "step": when,
    }


def label_of_probe(probe: dict[str, Any]) -> Any:
    """The class (or the domain) of each probe token, or None."""
    return next((probe[name] for name in ("class", "domain") if name in probe), None)


def read_probe_text(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    probe = read_probe(source, layer, step)
    before = probe_at(source, probe["step"] - 1) if probe["step"] else None
    before_NK = None if before is None else before[1]["experts"][layer]
    return {"tokens_N": source.probe()["tokens"], "before_NK": before_NK} | probe


def read_probe_gates(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    return {"labels_N": label_of_probe(source.probe())} | read_probe(source, layer, step)


def read_digit_images(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    inputs, probe = source.probe(), read_probe(source, layer, step)
    del probe["gates_NK"]
    return {"images_NP": inputs["images"], "labels_N": label_of_probe(inputs)} | probe


def read_regions(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    inputs, probe, found = source.probe(), read_probe(source, layer, step), probe_at(source, step)
    del probe["gates_NK"]
    some = found is not None
    return {
        "regions_RR": found[1]["regions"][layer] if found else np.zeros((0, 0), np.uint8),
        "extent": inputs["extent"],
        "points_N2": inputs["points"] if some else inputs["points"][:0],
        "labels_N": label_of_probe(inputs) if some else None,
    } | probe


def read_churn(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    steps, churn_n = over_time(source, "churn", layer, span, bins)
    return {"steps": steps, "churn_n": churn_n} | common(source, step, span)


def read_ablation(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    """As `ablate` measured it last, at whatever step that was; NaN if it has not yet."""
    found = source.ablation()
    none = np.full(source.config.num_experts, np.nan)
    return {
        "rise_E": found.rise_LE[layer] if found else none,
        "share_E": found.share_LE[layer] if found else none,
        "step": found.step if found else None,
    }


FIGURES: dict[str, Entry] = {
    "load_share": Entry("Load share by expert", "live", TASKS, timeline.load_share, read_load_share),
    "balance_now": Entry("Balance now", "live", TASKS, bars.balance_now, read_balance_now),
    "balance": Entry("Balance over time", "live", TASKS, timeline.balance, read_balance),
    "loss": Entry("Loss", "live", TASKS, timeline.loss, read_loss),
    "probe_text": Entry("Who reads which byte", "routing", ("text",), routing.probe_text, read_probe_text),
    "probe_gates": Entry("Gates of the probe", "routing", ("digits", "plane"), routing.probe_gates, read_probe_gates),
    "digit_images": Entry("Images by first expert", "routing", ("digits",), routing.digit_images, read_digit_images),
    "regions": Entry("Who owns which region", "routing", ("plane",), routing.regions, read_regions),
    "tokens_by_expert": Entry("Tokens by first expert", "routing", TASKS, bars.tokens_by_expert, read_tokens),
    "churn": Entry("Router churn over time", "routing", TASKS, routing.churn, read_churn),
    "ablation": Entry("Loss without each expert", "experts", TASKS, ablation, read_ablation),
}
