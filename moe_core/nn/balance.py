"""The two balancing losses of Shazeer et al. 2017 (arXiv 1701.06538), unweighted: the knobs' weights are applied in training.

Shapes: E experts. `x_E` is (E,).
"""

import torch
from torch import Tensor


def cv_squared(x_E: Tensor) -> Tensor:
    """Squared coefficient of variation: 0 when all are equal, E - 1 when one has it all. (Shazeer 2017, section 4)

    Population variance, in float32 or wider; 0 for E = 1.
    """
    x_E = x_E.to(torch.promote_types(x_E.dtype, torch.float32))
    return x_E.var(correction=0) / (x_E.mean().square() + 1e-10)


def importance_loss(importance_E: Tensor) -> Tensor:
    """CV(importance) squared: every expert should get the same sum of gates. (Shazeer 2017, section 4)"""
    return cv_squared(importance_E)


def load_loss(load_E: Tensor) -> Tensor:
    """CV(load) squared: every expert should get the same number of tokens. (Shazeer 2017, appendix A)

    It has a gradient only where there is noise and k < E: without noise the load is a count.
    """
    return cv_squared(load_E)
