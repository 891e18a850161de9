"""How a chosen CV is held by turning a weight of a balancing loss: a damped controller in log space."""

import math

EVERY = 25  # steps between two decisions, over which the CV is averaged
GAIN = 1.0  # twice as uneven as wanted doubles the weights
FORESIGHT = 2.0  # windows for which the last window's drift is expected to continue, which damps the control
LARGEST = 4.0  # a weight changes at most by this factor at once
LEAST = 1.25  # smaller factors are not worth a row in the record: windows differ by a tenth anyway
LOW, HIGH = 1e-4, 1.0  # the bounds of a steered weight


def factor(cv_now: float, cv_before: float, target: float) -> float:
    """The factor for the weights: above 1 where the load is less even than wanted, or soon will be."""
    now, before = max(cv_now, 1e-6), max(cv_before, 1e-6)
    missing = math.log(now / target) + FORESIGHT * math.log(now / before)
    return math.exp(max(-math.log(LARGEST), min(math.log(LARGEST), GAIN * missing)))


def steer(weights: dict[str, float], by: float) -> dict[str, float]:
    """The weights that change, with their new values: within bounds, three digits. A weight of 0 stays 0, unless all
    are 0 and more balance is needed: then all start."""
    if not any(weights.values()):
        weights = dict.fromkeys(weights, LOW)
    changed = {}
    for name, weight in weights.items():
        wanted = float(f"{min(max(HIGH, weight), max(LOW, weight * by)):.3g}")
        if weight and max(wanted / weight, weight / wanted) >= LEAST:
            changed[name] = wanted
    return changed
