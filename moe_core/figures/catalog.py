"""All figures by name: title, page, how to draw it, how to read its arguments from a run, and what it needs of the run.

Adding a figure: write it in a module beside this one, write how it is read, add an entry to FIGURES. The pages, the
export and the tests take it from here.
"""

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
    read_layers,
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
from moe_core.figures.layers import layers as layers_by_experts
from moe_core.figures.layers import layers_spread
from moe_core.figures.needs import (
    Need,
    ablated,
    compared,
    fixed_batch,
    groups,
    knobs,
    layers,
    many_layers,
    probe,
    stats,
    timed,
    used,
    windows,
)
from moe_core.figures.paper import Figure
from moe_core.figures.read_sweep import SweepResults
from moe_core.figures.reading import (
    classes_of_probe,
    common,
    comparable_at,
    experts_of,
    of_those_on,
    on_at,
    over_time,
    probe_at,
    read_knobs,
    read_probe,
    recent_share,
    rows_of_probe,
    rows_until,
    share_at_end,
    step_of,
)
from moe_core.runs.source import At, Source


class Entry(NamedTuple):
    """A figure, its page, and how its numbers are read.

    read(source, at) gives the keyword arguments of draw, `theme` and `size` aside. needs: what a run must have for the figure
    to be offered, on its page and in exports; filled: what it must have besides to be exported: a page draws empty axes instead.
    """

    title: str
    page: str
    draw: Figure
    read: Callable[[Any, At], dict[str, Any]]  # of a Source; a sweep's figures of a SweepResults
    needs: tuple[Need, ...] = ()
    filled: tuple[Need, ...] = ()


def read_selection_share(source: Source, at: At) -> dict[str, Any]:
    steps, share_nE = over_time(source, "selection_share", at)
    shares = {"steps": steps, "share_nE": of_those_on(source, at.layer, steps, share_nE)}
    return shares | {"now_E": share_at_end(source, at.layer, at.span).tolist()} | common(source, at)


def read_balance(source: Source, at: At) -> dict[str, Any]:
    stat = source.description.balance
    steps, cv_load = over_time(source, stat, at)
    # Thinning picks rows by their steps alone, so both have the same x.
    _, cv_importance = over_time(source, "cv_importance", at)
    lines = {"steps": steps, "cv_load": cv_load, "cv_importance": cv_importance} | common(source, at)
    return lines if stat == "cv_load" else lines | {"counted": "selections"}


def read_balance_now(source: Source, at: At) -> dict[str, Any]:
    last = step_of(source, at)
    steps, load = rows_until(source, "load", at.layer, last, 1)
    _, importance = rows_until(source, "importance", at.layer, last, 1)
    none = np.full((1, experts_of(source, at.layer)), np.nan)
    load, importance = (
        of_those_on(source, at.layer, steps, bars.shares(of[-1])[None]) if len(of) else none
        for of in (load, importance)
    )
    return {
        "load_E": load[0],
        "importance_E": importance[0],
        "step": int(steps[-1]) if len(steps) else None,
    }


def read_loss(source: Source, at: At) -> dict[str, Any]:
    """Training and held-out in the run's own unit, such as bits per byte."""
    loss = source.description.loss
    steps, train = over_time(source, "task_loss", at)
    evals = [(e.step, e.metrics[loss.metric]) for e in source.evals() if loss.metric in e.metrics]
    return {
        "steps": steps,
        "train": np.asarray(train) / loss.nats,
        "heldout_steps": np.array([step for step, _ in evals], np.int64),
        "heldout": np.array([value for _, value in evals], np.float64),
        "unit": loss.unit,
        "comparable": comparable_at(source, [step for step, _ in evals]),
    } | common(source, at)


def read_tokens(source: Source, at: At) -> dict[str, Any]:
    snapshot = probe_at(source, at.step)
    experts_NK = np.zeros((0, 1), np.uint8) if snapshot is None else snapshot[1]["experts"][at.layer]
    return {
        "experts_NK": experts_NK,
        "num_experts": experts_of(source, at.layer),
        "on_E": on_at(source, at.layer, [step_of(source, at._replace(step=None)) if snapshot is None else snapshot[0]])[
            0
        ],
        "step": None if snapshot is None else snapshot[0],
    }


def read_probe_text(source: Source, at: At) -> dict[str, Any]:
    probe = read_probe(source, at.layer, at.step)
    before = probe_at(source, probe["step"] - 1) if probe["step"] else None
    before_NK = None if before is None else before[1]["experts"][at.layer]
    when = None if before is None else before[0]
    return {"tokens_N": source.probe()["tokens"], "before_NK": before_NK, "before": when} | probe


def read_probe_gates(source: Source, at: At) -> dict[str, Any]:
    return classes_of_probe(source) | read_probe(source, at.layer, at.step)


def read_probe_rows(source: Source, at: At) -> dict[str, Any]:
    probe = read_probe(source, at.layer, at.step)
    return rows_of_probe(source, source.probe()) | classes_of_probe(source) | probe


def read_digit_images(source: Source, at: At) -> dict[str, Any]:
    probe = read_probe(source, at.layer, at.step)
    del probe["gates_NK"]
    return {"images": source.probe()["images"]} | classes_of_probe(source) | probe


def read_regions(source: Source, at: At) -> dict[str, Any]:
    inputs, probe, snapshot = source.probe(), read_probe(source, at.layer, at.step), probe_at(source, at.step)
    del probe["gates_NK"]
    any_yet = snapshot is not None
    classes = classes_of_probe(source)
    return {
        "regions_RR": snapshot[1]["regions"][at.layer] if snapshot else np.zeros((0, 0), np.uint8),
        "extent": inputs["extent"],
        "points_N2": inputs["points"] if any_yet else inputs["points"][:0],
        **classes | ({} if any_yet else {"labels_N": None}),
    } | probe


def read_churn(source: Source, at: At) -> dict[str, Any]:
    steps, churn_n = over_time(source, "churn", at)
    return {"steps": steps, "churn_n": churn_n, "every": source.description.churn_every} | common(source, at)


def read_ablation(source: Source, at: At) -> dict[str, Any]:
    """The last measurement by `ablate`, whatever its step; NaN before the first."""
    measured = source.ablation()
    none = np.full(experts_of(source, at.layer), np.nan)
    return {
        "rise_E": measured.rise_LE[at.layer, : len(none)] if measured else none,
        "share_E": measured.share_LE[at.layer, : len(none)] if measured else none,
        "step": measured.step if measured else None,
    }


def read_groups(source: Source, at: At) -> dict[str, Any]:
    last = step_of(source, at)
    share_E = of_those_on(source, at.layer, [last], recent_share(source, at.layer, last)[None])[0]
    return {"share_E": share_E, "groups": source.description.layers[at.layer].groups, "step": last or None}


NON_TEXT = probe("images", "rows", "points")

# In the order in which a page shows them.
FIGURES: dict[str, Entry] = {
    "layers": Entry(
        "Layers by experts", "live", layers_by_experts, read_layers.read_layers, (many_layers, stats("counts"))
    ),
    "layers_spread": Entry(
        "Balance over the layers", "live", layers_spread, read_layers.read_layers_spread, (many_layers, stats("counts"))
    ),
    "selection_share": Entry(
        "Share of selections by expert",
        "live",
        timeline.selection_share,
        read_selection_share,
        (stats("selection_share"),),
    ),
    "balance_now": Entry("Balance now", "live", bars.balance_now, read_balance_now, (stats("load", "importance"),)),
    "balance": Entry(
        "Balance over time", "live", timeline.balance, read_balance, (stats("cv_counts", "cv_importance"),)
    ),
    "loss": Entry("Loss", "live", timeline.loss, read_loss, (stats("task_loss"),)),
    "knobs": Entry("Knobs over time", "live", turns.knobs, read_knobs, (knobs,)),
    "group_treemap": Entry(
        "Groups and experts", "live", treemap.group_treemap, read_groups, (groups, stats("selection_share"))
    ),
    "probe_text": Entry("Who reads which byte", "routing", score.probe_text, read_probe_text, (probe("bytes"),)),
    "digit_images": Entry(
        "Images by first expert", "routing", routing.digit_images, read_digit_images, (probe("images"),)
    ),
    "probe_rows": Entry("Who reads which row", "routing", rows.probe_rows, read_probe_rows, (probe("rows"),)),
    "regions": Entry("Who owns which region", "routing", routing.regions, read_regions, (probe("points"),)),
    "probe_gates": Entry("Gates of the probe", "routing", routing.probe_gates, read_probe_gates, (NON_TEXT,)),
    "tokens_by_expert": Entry("Tokens by first expert", "routing", bars.tokens_by_expert, read_tokens, (probe(),)),
    "churn": Entry("Router churn over time", "routing", routing.churn, read_churn, (probe(), stats("churn"))),
    "router_margin": Entry(
        "Router margin over time",
        "routing",
        choice.router_margin,
        read_choice.read_margin,
        (stats("router_margin", "router_margin_p10"), used("by_token")),
    ),
    "confidence": Entry(
        "Confidence over time", "routing", choice.confidence, read_choice.read_confidence, (stats("confidence"),)
    ),
    "bias_effect": Entry(
        "What the bias changes",
        "routing",
        choice.bias_effect,
        read_choice.read_bias_effect,
        (stats("bias_effect"), used("biased")),
    ),
    "expert_rank": Entry(
        "Experts by selections", "experts", experts.expert_rank, read_experts.read_rank, (stats("selection_share"),)
    ),
    "specialisation": Entry(
        "Specialisation", "experts", matrices.specialisation, read_experts.read_specialisation, (windows,)
    ),
    "coactivation": Entry(
        "Co-activation", "experts", matrices.coactivation, read_experts.read_coactivation, (windows,)
    ),
    "favourite_bytes": Entry(
        "Favourite bytes", "experts", favourites.favourite_bytes, read_experts.read_favourite_bytes, (probe("bytes"),)
    ),
    "favourite_images": Entry(
        "Favourite images",
        "experts",
        favourites.favourite_images,
        read_experts.read_favourite_images,
        (probe("images"),),
    ),
    "favourite_rows": Entry(
        "Favourite rows", "experts", rows.favourite_rows, read_experts.read_favourite_rows, (probe("rows"),)
    ),
    "favourite_points": Entry(
        "Favourite points",
        "experts",
        favourites.favourite_points,
        read_experts.read_favourite_points,
        (probe("points"),),
    ),
    "similarity": Entry("Similarity of W_g", "experts", matrices.similarity, read_experts.read_similarity, (windows,)),
    "specialisation_byte": Entry(
        "Specialisation by byte",
        "experts",
        matrices.specialisation_byte,
        read_experts.read_bytes,
        (windows, probe("bytes")),
    ),
    "expert_share": Entry(
        "Share over time",
        "experts",
        experts.expert_share,
        read_experts.read_share,
        (stats("selection_share", "importance_share"),),
    ),
    "saturation": Entry(
        "Router saturation over time", "experts", experts.saturation, read_experts.read_saturation, (probe(),)
    ),
    "expert_flow": Entry(
        "From layer to layer",
        "experts",
        flow.expert_flow,
        read_experts.read_flow,
        (layers, probe(), lambda source: flow.fits(source.description.experts)),
    ),
    "ablation": Entry("Loss without each expert", "experts", ablation, read_ablation, (ablated,)),
    "compare_balance": Entry(
        "Balance", "compare", compare.compare_balance, read_compare.read_balance, (stats("cv_load"),), (compared,)
    ),
    "compare_loss": Entry(
        "Loss", "compare", compare.compare_loss, read_compare.read_loss, (stats("task_loss"),), (compared,)
    ),
    "compare_balance_difference": Entry(
        "Difference in balance",
        "compare",
        compare.compare_balance_difference,
        read_compare.read_balance_difference,
        (stats("cv_load"),),
        (compared,),
    ),
    "compare_loss_difference": Entry(
        "Difference in loss",
        "compare",
        compare.compare_loss_difference,
        read_compare.read_loss_difference,
        (stats("task_loss"),),
        (compared,),
    ),
    "compare_selections": Entry(
        "Selections by expert",
        "compare",
        compare.compare_selections,
        read_compare.read_selections,
        (stats("selection_share"),),
        (compared,),
    ),
    "batch_formula": Entry("Tokens per expert", "batch", batch.batch_formula, read_batch.read_formula, (fixed_batch,)),
    "batch_throughput": Entry(
        "Throughput", "batch", batch.batch_throughput, read_batch.read_throughput, (fixed_batch,), (timed,)
    ),
    "batch_measured": Entry(
        "Tokens an expert got", "batch", batch.batch_measured, read_batch.read_measured, (stats("counts"),)
    ),
    "sweep_balance": Entry("Balance over the grid", "sweep", sweeps.sweep_balance, read_sweep.read_balance),
    "sweep_quality": Entry("Quality over the grid", "sweep", sweeps.sweep_quality, read_sweep.read_quality),
    "sweep_pareto": Entry("Quality against balance", "sweep", sweeps.sweep_pareto, read_sweep.read_pareto),
}


def offered(source: Source, name: str) -> bool:
    """Whether a run has what a figure needs."""
    return all(need(source) for need in FIGURES[name].needs)


def on_page(source: Source, page: str) -> list[str]:
    """The figures of a page that a run has, in their order."""
    return [name for name, entry in FIGURES.items() if entry.page == page and offered(source, name)]


def shows(source: Source | SweepResults, name: str) -> bool:
    """Whether an export of the figure would not be empty. Of a sweep: its own figures; of a run: those that it is offered and
    whose numbers are there."""
    entry = FIGURES[name]
    if isinstance(source, SweepResults):
        return entry.page == "sweep" and (name == "sweep_pareto" or len(source.swept) == 2)
    return entry.page != "sweep" and offered(source, name) and all(need(source) for need in entry.filled)
