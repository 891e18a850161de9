"""How the Batch page's figures are read: the sizes chosen on the page, the run's counts, the measured throughput."""

from typing import Any

import numpy as np

from moe_core.figures.reading import (
    RECENT,
    batch_sizes,
    chosen_in,
    common,
    experts_of,
    k_now,
    of_those_on,
    on_at,
    over_time,
    rows_until,
    step_of,
)
from moe_core.runs.source import At, Source
from moe_core.runs.statistics import measured_by
from moe_core.schema import experts_per_token


def read_formula(source: Source, at: At) -> dict[str, Any]:
    last = step_of(source, at)
    counted = measured_by(source.description, "counts")
    counts_nE = rows_until(source, "counts", at.layer, last, RECENT)[1] if counted else ()
    return batch_sizes(source)._asdict() | {
        "measured_E": of_those_on(source, at.layer, [last], np.mean(counts_nE, axis=0)[None])[0]
        if len(counts_nE)
        else None,
        "run_experts": int(on_at(source, at.layer, [last]).sum()),
        "step": last or None,
    }


def read_throughput(source: Source, at: At) -> dict[str, Any]:
    measured = source.throughput()
    return {
        "tokens_m": measured.tokens,
        "per_second_m": measured.per_second,
        "k": k_now(source),
        "experts": experts_of(source, at.layer),
        "chosen": batch_sizes(source).tokens,
        "machine": measured.machine,
    }


def read_devices(source: Source, at: At) -> dict[str, Any]:
    """What was measured, with the k, T and E that it was measured at; before that, the run's own as they are now."""
    found, layer = source.on_devices(), at.layer
    if not found.tokens:
        last = step_of(source, at)
        k = experts_per_token(source.description, source.knobs_at(last), layer)
        return {"tokens": source.description.tokens, "k": k, "experts": int(on_at(source, layer, [last]).sum())}
    return {
        "tokens": found.tokens,
        "k": int(found.k_L[layer]),
        "experts": int(found.experts_L[layer]),
        "devices_m": found.devices_m,
        "own_m3": found.own_mL3[:, layer],
        "all_m3": found.all_mL3[:, layer],
        "per_second_m": found.per_second_mL[:, layer],
        "step": found.step,
        "machine": found.machine,
    }


def read_measured(source: Source, at: At) -> dict[str, Any]:
    steps, counts_nE = over_time(source, "counts", at)
    counts_nE = of_those_on(source, at.layer, steps, counts_nE)
    on_n, tokens = on_at(source, at.layer, steps).sum(axis=1), source.description.tokens
    selections_n = chosen_in(source, at.layer, steps) * tokens if tokens else np.nansum(counts_nE, axis=1)
    return {"steps": steps, "counts_nE": counts_nE, "ideal_n": selections_n / on_n} | common(source, at)
