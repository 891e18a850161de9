"""How the Experts page's figures are read from a run: the chosen expert, its probe tokens, the windows of the last snapshot."""

import math
from typing import Any

import numpy as np

from moe_core.figures.called import beginnings
from moe_core.figures.matrices import cosines
from moe_core.figures.paper import Array
from moe_core.figures.probe import dense, kept, name_of_byte
from moe_core.figures.reading import (
    bytes_of_probe,
    chosen_expert,
    classes_of_probe,
    common,
    experts_of,
    k_now,
    label_name,
    marked,
    of_those_on,
    on_at,
    over_time,
    read_probe,
    recent_share,
    rows_of_probe,
    share_at_end,
    step_of,
    tokens_of_probe,
)
from moe_core.runs.source import At, Source
from moe_core.schema import value_text

SNAPSHOTS = 40  # about how many past snapshots saturation compares with the last one
BYTES = 20  # rows of specialisation by byte
NONE = value_text(None)


def full(source: Source, step: int | None, name: str, layer: int) -> tuple[int | None, Array | None]:
    """An array of the last full snapshot at or before a step, with its step; None before the first."""
    snapshot = source.snapshot(step=step, kind="full")
    if snapshot is None or name not in snapshot[1]:
        return None, None
    return int(snapshot[0]), np.asarray(snapshot[1][name][layer], np.float32)


def read_rank(source: Source, at: At) -> dict[str, Any]:
    last = step_of(source, at)
    return {
        "share_E": of_those_on(source, at.layer, [last], recent_share(source, at.layer, last)[None])[0],
        "chosen": chosen_expert(source, at.layer, last),
        "step": last or None,
    }


def read_share(source: Source, at: At) -> dict[str, Any]:
    steps, share_nE = over_time(source, "selection_share", at)
    _, importance_nE = over_time(source, "importance_share", at)
    chosen = chosen_expert(source, at.layer, step_of(source, at))
    share_nE, importance_nE = (of_those_on(source, at.layer, steps, of_nE) for of_nE in (share_nE, importance_nE))
    now = float(share_at_end(source, at.layer, at.span)[chosen])
    return {
        "steps": steps, "share_nE": share_nE, "importance_nE": importance_nE, "chosen": chosen, "now": now,
    } | common(source, at)  # fmt: skip


def read_saturation(source: Source, at: At) -> dict[str, Any]:
    """How much of the last choices, at or before the step that is shown, each past snapshot of choices already had. The past
    snapshots lie on a grid of steps that stays where it is while the run grows.

    All are at multiples of churn_every, so that runs and machines compare; an earlier version took them by the clock.
    A damaged snapshot is left out.
    """
    E, every = experts_of(source, at.layer), source.description.churn_every
    kind = "choices" if every else "probe"
    there = np.asarray(source.snapshots(kind))
    there = there if at.step is None else there[there <= at.step]
    changes = tuple(marked(source))
    choices: dict[int, Array] = {}
    if len(there):
        step = max(1, every)
        width = step * 2 ** int(np.ceil(np.log2(max(1, there[-1] / step / SNAPSHOTS))))
        _, firsts = np.unique(there // width, return_index=True)
        grid = np.unique(np.r_[there[firsts], there[-1]]).tolist()
        choices = {
            at_step: experts[at.layer] for at_step in grid if (experts := source.experts_at(at_step, kind)) is not None
        }
    if not choices:
        return {"steps": there[:0], "kept_n": np.zeros(0), "against": None, "chance": 0.0, "every": every, "span": at.span, "changes": changes}  # fmt: skip
    steps, now = np.array([*choices]), [*choices.values()][-1]
    shares = np.array([kept(now, before, E) for before in choices.values()])
    return {
        "steps": steps, "kept_n": shares, "against": int(steps[-1]), "chance": now.shape[1] / E, "every": every, "span": at.span,
        "changes": changes,
    }  # fmt: skip


def read_specialisation(source: Source, at: At) -> dict[str, Any]:
    label = label_name(source)
    when, share_CE = full(source, at.step, f"specialisation_{label}", at.layer)
    names = list(source.labels.get(label, []))
    return {
        "share_CE": np.zeros((0, experts_of(source, at.layer)), np.float32) if share_CE is None else share_CE,
        "names_C": names if share_CE is not None else [],
        "on_E": on_at(source, at.layer, [when or 0])[0],
        "label": label,
        "chosen": chosen_expert(source, at.layer, at.step),
        "step": when,
    }


def read_bytes(source: Source, at: At) -> dict[str, Any]:
    """The bytes that the probe holds most of, the most frequent first."""
    when, share_CE = full(source, at.step, "specialisation_byte", at.layer)
    counts = np.bincount(source.probe()["tokens"], minlength=256)
    shown = np.argsort(-counts, kind="stable")[: min(BYTES, int((counts > 0).sum()))]
    rows_CE = np.zeros((0, experts_of(source, at.layer)), np.float32) if share_CE is None else share_CE[shown]
    names = [name_of_byte(int(byte)) for byte in shown] if share_CE is not None else []
    return {
        "share_CE": rows_CE,
        "names_C": names,
        "on_E": on_at(source, at.layer, [when or 0])[0],
        "chosen": chosen_expert(source, at.layer, at.step),
        "step": when,
    }


def read_coactivation(source: Source, at: At) -> dict[str, Any]:
    when, share_EE = full(source, at.step, "coactivation", at.layer)
    E = experts_of(source, at.layer)
    probe = read_probe(source, at.layer, at.step)
    return {
        "share_EE": np.zeros((E, E), np.float32) if share_EE is None else share_EE,
        "k": int(probe["experts_NK"].shape[1]) if len(probe["experts_NK"]) else k_now(source),
        "chosen": chosen_expert(source, at.layer, at.step),
        "step": when,
    }


def read_similarity(source: Source, at: At) -> dict[str, Any]:
    when, w_DE = full(source, at.step, "w_gate", at.layer)
    E = experts_of(source, at.layer)
    return {
        "cosine_EE": np.full((E, E), np.nan) if w_DE is None else cosines(w_DE),
        "chosen": chosen_expert(source, at.layer, at.step),
        "step": when,
    }


def read_favourites(source: Source, layer: int, step: int | None) -> dict[str, Any]:
    """The gate weight of the chosen expert for each probe token."""
    probe, chosen = read_probe(source, layer, step), chosen_expert(source, layer, step)
    gates_NE = dense(probe["experts_NK"], probe["gates_NK"], experts_of(source, layer))
    return {"gate_N": gates_NE[:, chosen], "chosen": chosen, "step": probe["step"]}


def read_favourite_bytes(source: Source, at: At) -> dict[str, Any]:
    return bytes_of_probe(source) | read_favourites(source, at.layer, at.step)


def read_favourite_tokens(source: Source, at: At) -> dict[str, Any]:
    return tokens_of_probe(source) | read_favourites(source, at.layer, at.step)


def read_favourite_images(source: Source, at: At) -> dict[str, Any]:
    inputs, favourites = source.probe(), read_favourites(source, at.layer, at.step)
    return {"images": inputs["images"][: len(favourites["gate_N"])]} | classes_of_probe(source) | favourites


def read_favourite_rows(source: Source, at: At) -> dict[str, Any]:
    return rows_of_probe(source, source.probe()) | classes_of_probe(source) | read_favourites(source, at.layer, at.step)


def read_favourite_points(source: Source, at: At) -> dict[str, Any]:
    inputs, favourites = source.probe(), read_favourites(source, at.layer, at.step)
    some = slice(len(favourites["gate_N"]))
    classes = classes_of_probe(source)
    labels = classes["labels_N"]
    return {
        "points_N2": inputs["points"][some],
        "extent": inputs["extent"],
        **classes | {"labels_N": None if labels is None else labels[some]},
    } | favourites


def read_flow(source: Source, at: At) -> dict[str, Any]:
    snapshot = source.snapshot(step=at.step, kind="probe")
    experts_L = source.description.experts
    none = np.zeros((len(experts_L), 0, 1), np.uint8)
    experts_LNK = none if snapshot is None else np.asarray(snapshot[1]["experts"])
    if len(set(experts_L)) > 1:  # an empty place is a number beyond the experts of its own layer
        beyond = np.reshape(experts_L, (-1, 1, 1))
        experts_LNK = np.where(experts_LNK < beyond, experts_LNK, max(experts_L))
    return {
        "experts_LNK": experts_LNK,
        "num_experts": max(experts_L),
        "layer": at.layer,
        "chosen": chosen_expert(source, at.layer, at.step),
        "step": None if snapshot is None else int(snapshot[0]),
    }


# For the tiles


def favourite_label(source: Source, layer: int, step: int, expert: int) -> tuple[str, float]:
    """The class (or domain) of which an expert gets the largest share, and that share over its share of all selections."""
    label = label_name(source)
    snapshot = source.snapshot(step=step, kind="full")
    if snapshot is None or f"specialisation_{label}" not in snapshot[1]:
        return NONE, math.nan
    share_CE = np.asarray(snapshot[1][f"specialisation_{label}"][layer], np.float64)
    at, share = int(share_CE[:, expert].argmax()), recent_share(source, layer, step)[expert]
    names = source.labels.get(label, [])
    if not share_CE[at, expert] > 0 or not share > 0:
        return NONE, math.nan
    return beginnings(names, 12)[at] if at < len(names) else str(at), float(share_CE[at, expert] / share)


def closest_partner(source: Source, layer: int, step: int, expert: int) -> tuple[str, float]:
    """The expert that shares most of an expert's tokens, and their share: 0 if none shares any, NaN if that was not counted yet."""
    snapshot = source.snapshot(step=step, kind="full")
    if snapshot is None or "coactivation" not in snapshot[1]:
        return NONE, math.nan
    share_E = np.array(snapshot[1]["coactivation"][layer][expert], np.float64)
    share_E[expert] = 0.0
    at = int(share_E.argmax())
    return f"{at + 1}" if share_E[at] > 0 else NONE, float(share_E[at])


def last_used(source: Source, layer: int, step: int, expert: int) -> int | None:
    """The last step at which an expert was selected, or None. A thinned history keeps every maximum, so its last bin with a
    selection is where to search."""
    steps, counts_nE = source.history("counts", layer, last=step, bins=200)
    used = np.flatnonzero(counts_nE[:, expert] > 0)
    if not len(used):
        return None
    near = steps[max(used[-1] - 2, 0)], steps[min(used[-1] + 4, len(steps) - 1)]
    exact, counts_nE = source.history("counts", layer, first=int(near[0]), last=int(near[1]))
    return int(exact[np.flatnonzero(counts_nE[:, expert] > 0)[-1]])


def read_ablation(source: Source, at: At) -> dict[str, Any]:
    """The last measurement by `ablate`, whatever its step; NaN before the first."""
    measured = source.ablation()
    none = np.full(experts_of(source, at.layer), np.nan)
    return {
        "rise_E": measured.rise_LE[at.layer, : len(none)] if measured else none,
        "share_E": measured.share_LE[at.layer, : len(none)] if measured else none,
        "step": measured.step if measured else None,
    }
