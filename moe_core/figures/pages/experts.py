"""The Experts page: its charts and its tiles, the chosen expert's share against the ideal first."""

import math

import numpy as np

from moe_core.figures import experts, favourites, flow, matrices, read_experts, rows, tokens
from moe_core.figures.ablation import ablation
from moe_core.figures.needs import ablated, layers, probe, stats, windows
from moe_core.figures.pages.entry import Entry, TileEntry
from moe_core.figures.pages.tile import NONE, Tile, number
from moe_core.figures.paper import percent
from moe_core.figures.read_experts import closest_partner, favourite_label, last_used
from moe_core.figures.reading import (
    RECENT,
    chosen_expert,
    experts_of,
    held_busiest,
    label_name,
    named_expert,
    on_at,
    recent_share,
    rows_until,
    step_of,
)
from moe_core.runs.source import At, Source
from moe_core.schema import DEAD_AFTER


def share_tile(source: Source, at: At) -> Tile:
    """The expert's share of the selections of the last steps."""
    step = step_of(source, at)
    E, e = experts_of(source, at.layer), chosen_expert(source, at.layer, step)
    share = recent_share(source, at.layer, step)[e]
    on_E = on_at(source, at.layer, [step])[0]
    on = int(on_E.sum())
    word = f"{number(share * on)} × ideal" if on_E[e] else "Switched off"
    held = None if named_expert(source, at.layer) is not None else held_busiest(source, at.layer)
    since = (f"the busiest at step {held.step:,}",) if held else ()
    ideal = f"ideal {percent(1 / on)}" + (f", last {RECENT} steps" if on == E else f" of {on} on")
    return Tile(
        "expert_share", f"Expert {e + 1}, share of selections", number(100 * share, 1), "%",
        word=word if math.isfinite(share) else "", lines=(ideal, *since),
    )  # fmt: skip


def expert_importance_tile(source: Source, at: At) -> Tile:
    """The expert's share of all gate weight of the last steps."""
    step = step_of(source, at)
    e, on = chosen_expert(source, at.layer, step), int(on_at(source, at.layer, [step]).sum())
    _, importance_nE = rows_until(source, "importance_share", at.layer, step, RECENT)
    importance = float(np.mean(importance_nE[:, e])) if len(importance_nE) else math.nan
    line = f"{number(importance * on)} × ideal"
    return Tile("expert_importance", "Importance", number(100 * importance, 1), "%", lines=(line,))


def rank_tile(source: Source, at: At) -> Tile:
    """The expert's place by its share of the selections."""
    step = step_of(source, at)
    e, share_E = chosen_expert(source, at.layer, step), recent_share(source, at.layer, step)
    on_E = on_at(source, at.layer, [step])[0]
    place = f"{int((share_E > share_E[e]).sum()) + 1}" if math.isfinite(share_E[e]) and on_E[e] else NONE
    return Tile("expert_rank", "Place", place, f"of {int(on_E.sum())}", lines=("by selections",))


def last_used_tile(source: Source, at: At) -> Tile:
    """When the expert was selected last; dead after DEAD_AFTER steps without a selection, unless it is off."""
    step = step_of(source, at)
    expert = chosen_expert(source, at.layer, step)
    on = bool(on_at(source, at.layer, [step])[0][expert])
    steps, counts_nE = rows_until(source, "counts", at.layer, step, DEAD_AFTER)
    if not len(steps):
        return Tile("last_used", "Last selected", NONE)
    used = np.flatnonzero(counts_nE[:, expert] > 0)
    last = int(steps[used[-1]]) if len(used) else last_used(source, at.layer, step, expert)
    if last is None:
        return Tile("last_used", "Last selected", "never", lines=("dead from the start" if on else "switched off",))
    idle = step - last
    line = f"dead since step {last + 1:,}" if idle >= DEAD_AFTER else "alive"
    line = line if on else "switched off"
    value, unit = ("now", "") if idle == 0 else (f"{idle:,}", "step ago" if idle == 1 else "steps ago")
    return Tile("last_used", "Last selected", value, unit, lines=(line,))


def favourite_tile(source: Source, at: At) -> Tile:
    """The class of which the expert gets the largest share."""
    step = step_of(source, at)
    name, lift = favourite_label(source, at.layer, step, chosen_expert(source, at.layer, step))
    line = f"{number(lift)} × its share of all" if name != NONE else "not seen yet"
    return Tile("favourite", f"Favourite {label_name(source)}", name, lines=(line,))


def partner_tile(source: Source, at: At) -> Tile:
    """The expert that shares most of its tokens."""
    step = step_of(source, at)
    partner, together = closest_partner(source, at.layer, step, chosen_expert(source, at.layer, step))
    words = "not seen yet" if math.isnan(together) else "shares no token"
    line = f"{number(100 * together, 0)} % of its tokens" if partner != NONE else words
    return Tile("partner", "Closest partner", partner, lines=(line,))


# In the order in which the page shows them.
FIGURES: dict[str, Entry] = {
    "expert_rank": Entry(
        "Experts by selections", experts.expert_rank, read_experts.read_rank, (stats("selection_share"),)
    ),
    "specialisation": Entry("Specialisation", matrices.specialisation, read_experts.read_specialisation, (windows,)),
    "coactivation": Entry("Co-activation", matrices.coactivation, read_experts.read_coactivation, (windows,)),
    "favourite_bytes": Entry(
        "Favourite bytes", favourites.favourite_bytes, read_experts.read_favourite_bytes, (probe("bytes"),)
    ),
    "favourite_tokens": Entry(
        "Favourite tokens", tokens.favourite_tokens, read_experts.read_favourite_tokens, (probe("tokens"),)
    ),
    "favourite_images": Entry(
        "Favourite images",
        favourites.favourite_images,
        read_experts.read_favourite_images,
        (probe("images"),),
    ),
    "favourite_rows": Entry("Favourite rows", rows.favourite_rows, read_experts.read_favourite_rows, (probe("rows"),)),
    "favourite_points": Entry(
        "Favourite points",
        favourites.favourite_points,
        read_experts.read_favourite_points,
        (probe("points"),),
    ),
    "similarity": Entry("Similarity of W_g", matrices.similarity, read_experts.read_similarity, (windows,)),
    "specialisation_byte": Entry(
        "Specialisation by byte",
        matrices.specialisation_byte,
        read_experts.read_bytes,
        (windows, probe("bytes")),
    ),
    "expert_share": Entry(
        "Share over time",
        experts.expert_share,
        read_experts.read_share,
        (stats("selection_share", "importance_share"),),
    ),
    "saturation": Entry("Router saturation over time", experts.saturation, read_experts.read_saturation, (probe(),)),
    "expert_flow": Entry(
        "From layer to layer",
        flow.expert_flow,
        read_experts.read_flow,
        (layers, probe(), lambda source: flow.fits(source.description.experts)),
    ),
    "ablation": Entry("Loss without each expert", ablation, read_experts.read_ablation, (ablated,)),
}

TILES: dict[str, TileEntry] = {
    "expert_share": TileEntry(share_tile, (stats("selection_share"),)),
    "expert_importance": TileEntry(expert_importance_tile, (stats("importance_share"),)),
    "expert_rank": TileEntry(rank_tile, (stats("selection_share"),)),
    "last_used": TileEntry(last_used_tile, (stats("counts"),)),
    "favourite": TileEntry(favourite_tile, (probe(), windows)),
    "partner": TileEntry(partner_tile, (probe(), windows)),
}
