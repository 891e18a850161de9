"""How the figures over all layers are read: each layer's selections of the last steps together, over ideal."""

from typing import Any

import numpy as np

from moe_core.figures.paper import Array
from moe_core.figures.reading import RECENT, rows_until, step_of
from moe_core.runs.source import At, Source
from moe_core.runs.statistics import derive, on_mask


def read_over_ideal(source: Source, step: int) -> Array:
    """(L, E) each expert's selections in the last RECENT steps up to `step`, over those that it would have had ideally.

    NaN for an expert that is off at the step, beyond a layer's experts, and for a layer without a selection.
    """
    experts_L = source.description.experts
    over_ideal_LE = np.full((len(experts_L), max(experts_L)), np.nan)
    off = source.off_spans()
    for layer, E in enumerate(experts_L):
        steps, counts_nE = rows_until(source, "counts", layer, step, RECENT)
        if len(steps) and counts_nE.any():
            over_ideal_LE[layer, :E] = over_ideal(counts_nE, on_mask(off, layer, steps, E))
    return over_ideal_LE


def over_ideal(counts_nE: Array, on_nE: Array | None) -> Array:
    """(E,) selections of n steps over the ideal, which in each step is the same for all experts that are on; None: all are."""
    counts_E = counts_nE.sum(axis=0, dtype=np.float64)
    if on_nE is None:
        return np.asarray(counts_E / counts_E.mean())
    ideal_n = np.where(on_nE, counts_nE, 0).sum(axis=1, dtype=np.float64) / on_nE.sum(axis=1)
    ideal_E = (on_nE * ideal_n[:, None]).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(on_nE[-1], np.where(on_nE, counts_nE, 0).sum(axis=0) / ideal_E, np.nan))


def shared(source: Source, at: At) -> dict[str, Any]:
    """What both figures take beside their numbers."""
    last = step_of(source, at)
    names = [layer.name for layer in source.description.layers]
    return {"names_L": names, "chosen": at.layer, "steps": min(RECENT, last), "step": last or None}


def read_layers(source: Source, at: At) -> dict[str, Any]:
    over_ideal_LE = read_over_ideal(source, step_of(source, at))
    return {"over_ideal_LE": over_ideal_LE, "experts_L": source.description.experts} | shared(source, at)


def read_layers_spread(source: Source, at: At) -> dict[str, Any]:
    """CV and MaxVio of the steps together: in one step a large layer's experts get few tokens each, and chance sets them apart."""
    over_ideal_LE = read_over_ideal(source, step_of(source, at))
    known_LE = np.isfinite(over_ideal_LE)
    known_L = np.asarray(known_LE.any(axis=1))
    stored, on_LE = {"counts": np.nan_to_num(over_ideal_LE)}, known_LE | ~known_L[:, None]
    cv_L, max_vio_L = (np.where(known_L, derive(name, stored, on_LE), np.nan) for name in ("cv_counts", "max_vio"))
    return {"cv_L": cv_L, "max_vio_L": max_vio_L} | shared(source, at)
