"""Principal components: the two directions in which points differ most, found from all points together.

    X = points minus their mean [P, D];  X^T X v_k = s_k^2 v_k;  coordinate k = X v_k;  share k = s_k^2 / sum_j s_j^2
A projection shows that much of the spread and hides the rest: trajectories that cross in it need not meet.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Projection(NamedTuple):
    coordinates_PK: NDArray[np.float64]
    share_K: NDArray[np.float64]
    """Of the whole variance, in [0, 1]."""


def project(point_PD: NDArray[np.float64], components: int = 2) -> Projection | None:
    """None where the points do not differ in that many directions. A direction's largest weight is positive."""
    centred_PD = point_PD - point_PD.mean(axis=0)
    variance_D, direction_DD = np.linalg.eigh(centred_PD.T @ centred_PD)  # ascending
    variance_D = variance_D.clip(min=0)
    share_K = variance_D[::-1][:components] / max(variance_D.sum(), np.finfo(float).tiny)
    if len(share_K) < components or share_K[-1] < 1e-9:
        return None
    direction_DK = direction_DD[:, ::-1][:, :components]
    largest_K = np.abs(direction_DK).argmax(axis=0)
    direction_DK = direction_DK * np.sign(direction_DK[largest_K, np.arange(components)])
    return Projection(centred_PD @ direction_DK, share_K)
