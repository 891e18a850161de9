"""The statistics that follow from importance, load and counts: computed when read, in this one place.

Shapes: N steps, E experts. `load_NE` is (N, E). All are finite: E = 1 and an expert that has it all included.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def cv(x_NE: Array) -> Array:
    """Coefficient of variation over the experts, population variance. (N,) (Shazeer 2017, section 4)"""
    return np.sqrt(cv_squared(x_NE))


def cv_squared(x_NE: Array) -> Array:
    return np.asarray(x_NE.var(axis=1) / (x_NE.mean(axis=1) ** 2 + 1e-10))


def share(x_NE: Array) -> Array:
    """Each expert's part of the whole; 0 where there is nothing to share."""
    total = x_NE.sum(axis=1, keepdims=True)
    return x_NE / np.where(total > 0, total, 1.0)


def max_over_mean(x_NE: Array) -> Array:
    mean = x_NE.mean(axis=1)
    return np.asarray(x_NE.max(axis=1) / np.where(mean > 0, mean, 1.0))


def min_over_mean(x_NE: Array) -> Array:
    mean = x_NE.mean(axis=1)
    return np.asarray(x_NE.min(axis=1) / np.where(mean > 0, mean, 1.0))


def entropy(x_NE: Array) -> Array:
    """Entropy of the shares in nats. 0 log 0 is 0."""
    p_NE = share(x_NE)
    return np.asarray(-(p_NE * np.log(np.where(p_NE > 0, p_NE, 1.0))).sum(axis=1))


def normalised_entropy(x_NE: Array) -> Array:
    """1 even, 0 one expert has it all; a single expert is even."""
    experts = x_NE.shape[1]
    return entropy(x_NE) / np.log(experts) if experts > 1 else np.ones(len(x_NE))


# A statistic that is not stored: the stored one that it follows from, and how.
DERIVED: dict[str, tuple[str, Callable[[Array], Array]]] = {
    "importance_loss": ("importance", cv_squared),
    "load_loss": ("load", cv_squared),
    "cv_importance": ("importance", cv),
    "cv_load": ("load", cv),
    "cv_counts": ("counts", cv),
    "max_over_mean_load": ("load", max_over_mean),
    "max_vio": ("counts", lambda x_NE: max_over_mean(x_NE) - 1),
    "min_vio": ("counts", lambda x_NE: min_over_mean(x_NE) - 1),
    "effective_experts": ("counts", lambda x_NE: np.exp(entropy(x_NE))),
    "entropy": ("counts", normalised_entropy),
    "utilisation": ("counts", lambda x_NE: share(x_NE) * x_NE.shape[1]),
    "load_share": ("counts", share),
    "importance_share": ("importance", share),
}


def derive(stat: str, stored: Mapping[str, NDArray[np.floating]]) -> Array:
    """The derived statistic of one layer, (N,) or (N, E), from rows of importance, load and counts, each (N, E)."""
    source, formula = DERIVED[stat]
    return formula(np.asarray(stored[source], np.float64))
