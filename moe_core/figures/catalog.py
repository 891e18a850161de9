"""All figures by name: its title, its page, its kinds of probe, how to read its arguments from a run, and how to draw it.

Adding a figure: write it in a module beside this one, write how it is read, add an entry to FIGURES. The pages, the
export and the tests take it from here. A source is anything with the methods of a run: config, knobs, steps or status,
history, evals, knob_changes, snapshot, probe, ablation.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from moe_core.figures import (
    bars,
    batch,
    choice,
    compare,
    experts,
    favourites,
    flow,
    matrices,
    read_batch,
    read_choice,
    read_compare,
    read_experts,
    read_sweep,
    routing,
    rows,
    score,
    sweeps,
    timeline,
    treemap,
    turns,
)
from moe_core.figures.ablation import ablation
from moe_core.figures.paper import Figure
from moe_core.figures.read_choice import ever, measures
from moe_core.figures.read_sweep import Found
from moe_core.figures.reading import (
    KINDS,
    Read,
    Span,
    classes_of_probe,
    common,
    comparable_at,
    groups_of,
    last_step,
    of_those_on,
    on_at,
    over_time,
    probe_at,
    probe_kind,
    read_knobs,
    read_probe,
    recent_share,
    rows_of_probe,
    rows_until,
    share_at_end,
)
from moe_core.schema import METRICS


class Entry(NamedTuple):
    """A figure and where its numbers come from.

    read(source, layer, step, span, bins) gives the keyword arguments of draw, `theme` and `size` aside. step: the step
    looked at, None being the last; span: (first, last) step of the visible range, None being all; bins: about how many
    points a line may have, None being every step.
    """

    title: str
    page: str
    kinds: tuple[str, ...]  # of probe: see probe_kind
    draw: Figure
    read: Read


def read_load_share(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    steps, share_nE = over_time(source, "load_share", layer, span, bins)
    found = {"steps": steps, "share_nE": of_those_on(source, layer, steps, share_nE)}
    return found | {"now_E": share_at_end(source, layer, span).tolist()} | common(source, step, span)


def read_balance(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    steps, cv_load = over_time(source, "cv_load", layer, span, bins)
    # Thinning picks rows by their steps alone, so both have the same x.
    _, cv_importance = over_time(source, "cv_importance", layer, span, bins)
    return {"steps": steps, "cv_load": cv_load, "cv_importance": cv_importance} | common(source, step, span)


def read_balance_now(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    last = last_step(source) if step is None else step
    steps, load = rows_until(source, "load", layer, last, 1)
    _, importance = rows_until(source, "importance", layer, last, 1)
    none = np.full((1, source.config.num_experts), np.nan)
    load, importance = (
        of_those_on(source, layer, steps, bars.shares(of[-1])[None]) if len(of) else none for of in (load, importance)
    )
    return {
        "load_E": load[0],
        "importance_E": importance[0],
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
        "comparable": comparable_at(source, [step for step, _ in evals]),
    } | common(source, step, span)


def read_tokens(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    found = probe_at(source, step)
    experts_NK = np.zeros((0, 1), np.uint8) if found is None else found[1]["experts"][layer]
    return {
        "experts_NK": experts_NK,
        "num_experts": source.config.num_experts,
        "on_E": on_at(source, layer, [last_step(source) if found is None else found[0]])[0],
        "step": None if found is None else found[0],
    }


def read_probe_text(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    probe = read_probe(source, layer, step)
    before = probe_at(source, probe["step"] - 1) if probe["step"] else None
    before_NK = None if before is None else before[1]["experts"][layer]
    when = None if before is None else before[0]
    return {"tokens_N": source.probe()["tokens"], "before_NK": before_NK, "before": when} | probe


def read_probe_gates(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    return classes_of_probe(source) | read_probe(source, layer, step)


def read_probe_rows(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    probe = read_probe(source, layer, step)
    return rows_of_probe(source, source.probe()) | classes_of_probe(source) | probe


def read_digit_images(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    probe = read_probe(source, layer, step)
    del probe["gates_NK"]
    return {"images": source.probe()["images"]} | classes_of_probe(source) | probe


def read_regions(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    inputs, probe, found = source.probe(), read_probe(source, layer, step), probe_at(source, step)
    del probe["gates_NK"]
    some = found is not None
    classes = classes_of_probe(source)
    return {
        "regions_RR": found[1]["regions"][layer] if found else np.zeros((0, 0), np.uint8),
        "extent": inputs["extent"],
        "points_N2": inputs["points"] if some else inputs["points"][:0],
        **classes | ({} if some else {"labels_N": None}),
    } | probe


def read_churn(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    steps, churn_n = over_time(source, "churn", layer, span, bins)
    return {"steps": steps, "churn_n": churn_n, "every": source.config.churn_every} | common(source, step, span)


def read_ablation(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    """As `ablate` measured it last, at whatever step that was; NaN if it has not yet."""
    found = source.ablation()
    none = np.full(source.config.num_experts, np.nan)
    return {
        "rise_E": found.rise_LE[layer] if found else none,
        "share_E": found.share_LE[layer] if found else none,
        "step": found.step if found else None,
    }


def read_groups(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    last = last_step(source) if step is None else step
    share_E = of_those_on(source, layer, [last], recent_share(source, layer, last)[None])[0]
    return {"share_E": share_E, "groups": groups_of(source.config), "step": last or None}


FIGURES: dict[str, Entry] = {
    "load_share": Entry("Load share by expert", "live", KINDS, timeline.load_share, read_load_share),
    "balance_now": Entry("Balance now", "live", KINDS, bars.balance_now, read_balance_now),
    "balance": Entry("Balance over time", "live", KINDS, timeline.balance, read_balance),
    "loss": Entry("Loss", "live", KINDS, timeline.loss, read_loss),
    "knobs": Entry("Knobs over time", "live", KINDS, turns.knobs, read_knobs),
    "probe_text": Entry("Who reads which byte", "routing", ("bytes",), score.probe_text, read_probe_text),
    "probe_gates": Entry(
        "Gates of the probe", "routing", ("images", "rows", "points"), routing.probe_gates, read_probe_gates
    ),
    "probe_rows": Entry("Who reads which row", "routing", ("rows",), rows.probe_rows, read_probe_rows),
    "digit_images": Entry("Images by first expert", "routing", ("images",), routing.digit_images, read_digit_images),
    "regions": Entry("Who owns which region", "routing", ("points",), routing.regions, read_regions),
    "tokens_by_expert": Entry("Tokens by first expert", "routing", KINDS, bars.tokens_by_expert, read_tokens),
    "churn": Entry("Router churn over time", "routing", KINDS, routing.churn, read_churn),
    "ablation": Entry("Loss without each expert", "experts", KINDS, ablation, read_ablation),
    "expert_rank": Entry("Experts by load", "experts", KINDS, experts.expert_rank, read_experts.read_rank),
    "expert_share": Entry("Share over time", "experts", KINDS, experts.expert_share, read_experts.read_share),
    "specialisation": Entry(
        "Specialisation", "experts", KINDS, matrices.specialisation, read_experts.read_specialisation
    ),
    "specialisation_byte": Entry(
        "Specialisation by byte", "experts", ("bytes",), matrices.specialisation_byte, read_experts.read_bytes
    ),
    "favourite_bytes": Entry(
        "Favourite bytes", "experts", ("bytes",), favourites.favourite_bytes, read_experts.read_favourite_bytes
    ),
    "favourite_images": Entry(
        "Favourite images", "experts", ("images",), favourites.favourite_images, read_experts.read_favourite_images
    ),
    "favourite_rows": Entry(
        "Favourite rows", "experts", ("rows",), rows.favourite_rows, read_experts.read_favourite_rows
    ),
    "favourite_points": Entry(
        "Favourite points", "experts", ("points",), favourites.favourite_points, read_experts.read_favourite_points
    ),
    "coactivation": Entry("Co-activation", "experts", KINDS, matrices.coactivation, read_experts.read_coactivation),
    "similarity": Entry("Similarity of W_g", "experts", KINDS, matrices.similarity, read_experts.read_similarity),
    "saturation": Entry(
        "Router saturation over time", "experts", KINDS, experts.saturation, read_experts.read_saturation
    ),
    "expert_flow": Entry("From layer to layer", "experts", KINDS, flow.expert_flow, read_experts.read_flow),
    "compare_balance": Entry("Balance", "compare", KINDS, compare.compare_balance, read_compare.read_balance),
    "compare_loss": Entry("Loss", "compare", KINDS, compare.compare_loss, read_compare.read_loss),
    "compare_balance_difference": Entry(
        "Difference in balance",
        "compare",
        KINDS,
        compare.compare_balance_difference,
        read_compare.read_balance_difference,
    ),
    "compare_loss_difference": Entry(
        "Difference in loss", "compare", KINDS, compare.compare_loss_difference, read_compare.read_loss_difference
    ),
    "compare_load": Entry("Load by expert", "compare", KINDS, compare.compare_load, read_compare.read_load),
    "batch_formula": Entry("Tokens per expert", "batch", KINDS, batch.batch_formula, read_batch.read_formula),
    "batch_throughput": Entry("Throughput", "batch", KINDS, batch.batch_throughput, read_batch.read_throughput),
    "batch_measured": Entry("Tokens an expert got", "batch", KINDS, batch.batch_measured, read_batch.read_measured),
    "sweep_balance": Entry("Balance over the grid", "sweep", KINDS, sweeps.sweep_balance, read_sweep.read_balance),
    "sweep_quality": Entry("Quality over the grid", "sweep", KINDS, sweeps.sweep_quality, read_sweep.read_quality),
    "sweep_pareto": Entry("Quality against balance", "sweep", KINDS, sweeps.sweep_pareto, read_sweep.read_pareto),
    "group_treemap": Entry("Groups and experts", "live", KINDS, treemap.group_treemap, read_groups),
    "router_margin": Entry("Router margin over time", "routing", KINDS, choice.router_margin, read_choice.read_margin),
    "confidence": Entry("Confidence over time", "routing", KINDS, choice.confidence, read_choice.read_confidence),
    "bias_effect": Entry("What the bias changes", "routing", KINDS, choice.bias_effect, read_choice.read_bias_effect),
}


def shows(source: Any, name: str) -> bool:
    """Whether a source has something to show in a figure: a run in those of its kind, a comparison in those of it too."""
    entry = FIGURES[name]
    if isinstance(source, Found):
        return entry.page == "sweep" and (name == "sweep_pareto" or len(source.swept) == 2)
    if entry.page == "sweep" or probe_kind(source) not in entry.kinds:
        return False
    needs: dict[str, Callable[[], bool]] = {
        "compare": lambda: bool(getattr(source, "others", ())),
        "expert_flow": lambda: source.config.layers > 1 and flow.fits(source.config.layers, source.config.num_experts),
        "group_treemap": lambda: groups_of(source.config) > 1,
        "ablation": lambda: source.ablation() is not None,
        "router_margin": lambda: measures(source, "router_margin") and ever(source, "by_token"),
        "confidence": lambda: measures(source, "confidence"),
        "bias_effect": lambda: measures(source, "bias_effect") and ever(source, "biased"),
        "batch_throughput": lambda: bool(len(source.throughput().tokens)),
    }
    return all(need() for word, need in needs.items() if word in (name, entry.page))
