"""How the Batch page's figures are read: the sizes chosen on the page, the run's counts, the measured throughput."""

from typing import Any

import numpy as np

from moe_core.figures.reading import (
    RECENT,
    Span,
    batch_sizes,
    common,
    last_step,
    of_those_on,
    on_at,
    over_time,
    rows_until,
)


def read_formula(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    last = last_step(source) if step is None else step
    _, counts_nE = rows_until(source, "counts", layer, last, RECENT)
    return batch_sizes(source)._asdict() | {
        "measured_E": of_those_on(source, layer, [last], counts_nE.mean(axis=0)[None])[0] if len(counts_nE) else None,
        "run_experts": int(on_at(source, layer, [last]).sum()),
        "step": last or None,
    }


def read_throughput(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    found = source.throughput()
    some = found is not None
    return {
        "tokens_m": found.tokens if some else np.zeros(0, np.int64),
        "per_second_m": found.per_second if some else np.zeros(0),
        "k": int(source.knobs.k),
        "experts": source.config.num_experts,
        "chosen": batch_sizes(source).tokens,
        "machine": found.machine if some else "",
    }


def read_measured(source: Any, layer: int, step: int | None, span: Span, bins: int | None) -> dict[str, Any]:
    steps, counts_nE = over_time(source, "counts", layer, span, bins)
    config = source.config
    counts_nE = of_those_on(source, layer, steps, counts_nE)
    ideal_n = np.array(k_at(source, steps)) * config.tokens / on_at(source, layer, steps).sum(axis=1)
    return {"steps": steps, "counts_nE": counts_nE, "ideal_n": ideal_n} | common(source, step, span)


def k_at(source: Any, steps: Any) -> list[int]:
    """The k that each step ran with, from the recorded turns."""
    turns = [change for change in source.knob_changes() if change.name == "k" and change.step is not None]
    start = int(turns[0].previous) if turns else int(source.knobs.k)
    return [
        int(next((t.value for t in reversed(turns) if t.step <= step), start)) for step in np.asarray(steps).tolist()
    ]
