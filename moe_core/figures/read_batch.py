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


def read_measured(source: Source, at: At) -> dict[str, Any]:
    steps, counts_nE = over_time(source, "counts", at)
    counts_nE = of_those_on(source, at.layer, steps, counts_nE)
    on_n, tokens = on_at(source, at.layer, steps).sum(axis=1), source.description.tokens
    ideal_n = chosen_in(source, at.layer, steps) * tokens / on_n if tokens else np.nansum(counts_nE, axis=1) / on_n
    return {"steps": steps, "counts_nE": counts_nE, "ideal_n": ideal_n} | common(source, at)
