"""What to try against a finding, in words and as knobs to turn. Numpy and the schema only.

A remedy is offered only where it was measured that it works (benchmarks/remedies.py and tests/watching/test_findings.py).
"""

from collections.abc import Sequence
from dataclasses import fields

from moe_core.evidence import Evidence, unchanged_since
from moe_core.schema import STRATEGIES, Knobs, meta_of, switched_off, value_text

SOON = 100  # steps that a remedy is given to work; the measured ones took a tenth to a half of that
CURE = 0.1  # both weights: evens a collapsed gate (Shazeer 2017, Table 6, and measured here)
COEFFICIENT = "router_aux_loss_coef"  # as the models of transformers call the weight of their balancing loss


def even_again(knobs: Knobs) -> dict[str, float | str]:
    """The knobs that even a collapsed gate: both losses at 0.1 or more, and noise, without which the load loss does nothing.

    Knobs that have such values already are left out, so nothing is offered while a gate recovers, nor under the strategies
    that balance by other means, where it was not measured.
    """
    if not STRATEGIES[knobs.strategy].losses_even:
        return {}
    wanted: dict[str, float | str] = {} if knobs.strategy == "paper" else {"strategy": "paper"}
    if knobs.noise < 1:
        wanted["noise"] = 1.0
    for name in ("w_importance", "w_load"):
        if getattr(knobs, name) < CURE:
            wanted[name] = CURE
    return wanted


def evens(knobs: Knobs, remedy: dict[str, float | str]) -> bool:
    """Whether a remedy turns everything that even_again() would."""
    return all(remedy.get(name, getattr(knobs, name)) == value for name, value in even_again(knobs).items())


def heavy(knobs: Knobs) -> dict[str, float | str]:
    """The loss weights above CURE, which is enough for a collapsed gate, each to be turned down to it.

    They pull the logits together until any noise drowns them. Where noise is above 1, noise is turned down first.
    """
    weights = ("w_importance", "w_load") if knobs.strategy == "paper" and knobs.noise <= 1 else ()
    return {name: CURE for name in weights if getattr(knobs, name) > CURE}


def turns(remedy: dict[str, float | str] | None) -> str:
    """A remedy in words: "noise to 1 and w_load to 0.1"."""
    parts = [f"{name} to {value_text(value)}" for name, value in (remedy or {}).items()]
    return " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part) if parts else ""


def mend(evidence: Evidence) -> tuple[str, dict[str, float | str] | None]:
    """(what to try, the remedy) for an uneven load."""
    if not isinstance(evidence.knobs, Knobs):
        return of_other_models(evidence)
    remedy = even_again(evidence.knobs) if evidence.groups <= 1 else {}
    if remedy:
        return f"Turn {turns(remedy)}: within {SOON} steps the load should be even.", remedy
    read = [f.name for f in fields(Knobs) if evidence.knobs.strategy in meta_of(Knobs, f.name).strategies]
    changed = unchanged_since(evidence, "strategy", *read)
    if changed > 1 and evidence.steps_n[-1] < changed + SOON:
        return f"The knobs were turned at step {changed}; give them until step {changed + SOON}.", None
    if evidence.knobs.strategy != "paper":
        return (
            f"{evidence.knobs.strategy} does not keep the load even; turn its own weight or speed up, or strategy to paper.",
            None,
        )
    if evidence.groups > 1:
        return "Turn the loss weights of both levels up, with noise and noise_primary at 1.", None
    return "The losses are on and do not help: turn the learning rate down, or w_importance up to 1.", None


def of_other_models(evidence: Evidence) -> tuple[str, dict[str, float | str] | None]:
    """mend() for a model that is not ours: by the knob that moves its selection bias, else by the weight of its own balancing loss.
    The latter was not measured."""
    knobs, declared = evidence.knobs, evidence.description.knobs
    if "balance" in declared:  # watch() gives this knob to models that choose by a bias
        kinds = declared["balance"].choices
        if "quantile" in kinds and knobs.balance != "quantile":
            remedy: dict[str, float | str] = {"balance": "quantile"}
            return (
                f"Turn {turns(remedy)}: it sets the selection bias so that each expert gets its share of a step.",
                remedy,
            )
        if knobs.balance == "off":
            return (
                "Turn balance to loss-free: it moves the selection bias towards an even load, a little in each step.",
                None,
            )
        if knobs.balance == "loss-free":
            return (
                f"Turn bias_speed up, which is {value_text(knobs.bias_speed)}: balance moves the bias too slowly.",
                None,
            )
    if COEFFICIENT not in declared:
        return "Turn up what balances this model's experts.", None
    now = float(getattr(knobs, COEFFICIENT))
    if now >= declared[COEFFICIENT].high:
        return (
            f"{COEFFICIENT} is at its largest, {value_text(now)}: a gate that collapsed long ago comes back slowly. Give it time, or "
            f"begin anew with it on from the start.",
            None,
        )
    return f"Turn {COEFFICIENT} up, which is {value_text(now)}: it weighs the model's own balancing loss.", None


def off_in(evidence: Evidence) -> tuple[int, ...]:
    """The experts of the layer that are switched off."""
    return switched_off(evidence.description.experts, str(getattr(evidence.knobs, "off", "")))[evidence.layer]


def named(experts: Sequence[int]) -> str:
    """Expert numbers, counted from 1: "4, 9 and 11"; of many the first few."""
    numbers = [str(e + 1) for e in experts[:8]]
    more = [f"{len(experts) - 8} more"] if len(experts) > 8 else []
    *first, last = numbers + more
    return f"{', '.join(first)} and {last}" if first else last
