"""The numbers that an ended run is judged by, read from its record."""

from typing import Any

from moe_core.runs.statistics import mean_balance, measured_by
from moe_core.runs.store import Run
from moe_core.schema import BALANCE, BALANCE_STEPS, HELD_OUT_BALANCE, looks_ahead


def ending(run: Run, state: str | None = None) -> dict[str, Any]:
    """The end event's numbers: state, step, loss, the last evaluation, and balance: in training (mean over the last steps and
    all layers) and, in HELD_OUT_BALANCE's names, of the evaluation, None where it did not record selections.

    comparable: whether the evaluation compares with those of other strategies; None where there was none. A run without
    a step has neither loss nor balance, nor has one that does not measure them.
    """
    _, last = run.steps()
    first = max(1, last - BALANCE_STEPS + 1)
    numbers: dict[str, Any] = {"state": state or run.state, "step": last, "loss": None, "eval": {}, "comparable": None}
    numbers |= dict.fromkeys(name for name, *_ in HELD_OUT_BALANCE)
    if last:
        if measured_by(run.description, "loss"):
            numbers["loss"] = float(run.history("loss", first=last, last=last)[1][-1])
        for stat in [stat for stat in BALANCE if measured_by(run.description, stat)]:
            layers = [
                run.history(stat, layer, first=first, last=last)[1].mean()
                for layer in range(len(run.description.layers))
            ]
            numbers[stat] = float(sum(layers) / len(layers))
    if evals := run.evals():
        numbers["eval"] = evals[-1].metrics
        numbers |= mean_balance(evals[-1].counts)
        numbers["comparable"] = not looks_ahead(run.description, run.knobs_at(evals[-1].step))
    return numbers
