"""Power-function averages of the weights (Karras et al., 2024, section 3 and appendix C).

The average of length sigma_rel after t steps gives the weights of step tau <= t the weight

    p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1),

which has the standard deviation sigma_rel t. An average of another length is close to a sum of snapshots of a few such
averages, and the inner products of their profiles p give the nearest sum in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

Profile = tuple[float, int]
"""The length sigma_rel of an average, and the step t that it reaches to."""


def gamma_of(sigma_rel: float) -> float:
    """Return gamma >= 0 with (gamma + 1)^(1/2) (gamma + 2)^(-1) (gamma + 3)^(-1/2) = sigma_rel <= 12^(-1/2)."""
    import numpy as np

    s = sigma_rel**-2
    return float(np.roots([1.0, 7.0, 16.0 - s, 12.0 - s]).real.max())


def decay_at(t: int, gamma: float) -> float:
    """Return the decay of the update of step t = 1, 2, ..., of which the first copies the weights."""
    return math.pow(1.0 - 1.0 / t, gamma + 1.0)


def inner_products(gamma_a: ArrayLike, t_a: ArrayLike, gamma_b: ArrayLike, t_b: ArrayLike) -> np.ndarray:
    """Return the integrals of p_a p_b over tau, element by element of arrays that broadcast."""
    import numpy as np

    gamma_a, t_a, gamma_b, t_b = np.broadcast_arrays(gamma_a, t_a, gamma_b, t_b)
    earlier, later = np.minimum(t_a, t_b), np.maximum(t_a, t_b)
    products = (gamma_a + 1.0) * (gamma_b + 1.0) / (gamma_a + gamma_b + 1.0) / later
    return np.asarray(products * (earlier / later) ** np.where(t_a < t_b, gamma_b, gamma_a))


def nearest_sum(snapshots: Sequence[Profile], wanted: Profile) -> tuple[list[float], float]:
    """Return the coefficients c of the sum of snapshots that is nearest to an average, and the error that remains.

    They minimise |p - sum c_i p_i|, and the error is this norm relative to |p|. They add up to 1, so that weights which
    never moved stay as they are; this hardly changes the fit.
    """
    import numpy as np

    gammas, times = (np.array(column, dtype=np.float64) for column in zip(*snapshots, strict=True))
    gammas, times = np.array([gamma_of(length) for length in gammas]), times / wanted[1]
    gamma = gamma_of(wanted[0])
    gram = inner_products(gammas[:, None], times[:, None], gammas, times)
    right, norm = inner_products(gammas, times, gamma, 1.0), inner_products(gamma, 1.0, gamma, 1.0)
    ones = np.ones((len(times), 1))
    system = np.block([[gram, ones], [ones.T, np.zeros((1, 1))]])  # with a Lagrange multiplier for the sum of 1
    c = np.linalg.lstsq(system, np.append(right, 1.0), rcond=None)[0][:-1]
    square = 1.0 + (c @ gram @ c - 2.0 * c @ right) / norm
    return c.tolist(), math.sqrt(max(0.0, float(square)))
