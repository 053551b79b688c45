"""Clock heads: how far a text has moved, on three time scales, from what its tokens look like.

    a = unit(h - mean h) ;  u = concat_l sqrt(p_l / L) ;  b = unit(u - mean u) ;  x = (a, b) / sqrt(2)
    c_j <- lambda_j c_j + (1 - lambda_j) x,  lambda_j = 2^(-1/h_j) ;  M_j = c_j / (1 - lambda_j^t)
    S_ab = (1-l_a)(1-l_b) / ((1-l_a^t)(1-l_b^t)) (1 - (l_a l_b)^t) / (1 - l_a l_b) ;  nu_ab^2 = S_aa + S_bb - 2 S_ab
    d_meso = |M_fast - M_mid| / (s_mid nu_fast,mid) ;  d_macro = |M_mid - M_slow| / (s_slow nu_mid,slow)
h is the final hidden state, p the clean router distribution (distances of u are Hellinger distances), the means are of
a frozen calibration text. S_ab is the overlap of the weights of two clocks, so that d reads about 1 (root mean square)
for independent tokens; autocorrelated ones read more. s_j^2 is the leaky mean of |x_t - M_j(t-1)|^2 / (1 + S_jj(t-1)).
Confidence is the mean resultant length without its finite-sample part: c_j^2 = max(0, (|M_j|^2 - S_jj) / (1 - S_jj)).

Accumulators are fp64. One update is one token. Axes: J clocks (fast, mid, slow), X observation, D model dim, L layers,
E experts.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chronomoe.session.reading import Floats
from chronomoe.settings import RunFailed

HALF_LIVES = (5.0, 50.0, 500.0)
"""Updates: fast, mid, slow."""
DECAY_J = np.array([2.0 ** (-1.0 / half_life) for half_life in HALF_LIVES])
FAST, MID, SLOW = 0, 1, 2
LEAST_UPDATES = 32
"""Before as many, the clocks have seen too little to differ."""
ALIKE = 1e-12
"""A spread of observations, which have unit norm, that is rounding."""

Doubles = NDArray[np.float64]


class Distances(NamedTuple):
    """Multiples of what independent tokens would read."""

    d_meso: float
    d_macro: float


def signature(probabilities_LE: Floats) -> Floats:
    """u, of unit norm, [..., L*E]."""
    scaled = np.sqrt(probabilities_LE / probabilities_LE.shape[-2])
    return scaled.reshape(*scaled.shape[:-2], -1)


def observation(hidden_D: Floats, u: Floats, mean_hidden_D: Floats, mean_u: Floats) -> Doubles:
    """x, of unit norm unless a token is exactly the mean, fp64 [..., X]."""
    parts = []
    for value, mean in ((hidden_D, mean_hidden_D), (u, mean_u)):
        centred = value.astype(np.float64) - mean
        length = np.sqrt((centred * centred).sum(axis=-1, keepdims=True))
        parts.append(centred / np.where(length > 0, length, 1.0))
    return np.concatenate(parts, axis=-1) * 0.5**0.5


@lru_cache(maxsize=8192)
def weight_overlap(updates: int) -> Doubles:
    """S_ab of all pairs of clocks after so many updates, [J, J]: sum over tokens of both clocks' weights."""
    weight_J = (1 - DECAY_J) / (1 - DECAY_J**updates)
    product_JJ = DECAY_J[:, None] * DECAY_J
    return weight_J[:, None] * weight_J * (1 - product_JJ**updates) / (1 - product_JJ)


def null_distance(first: int, second: int, updates: int) -> float:
    """nu_ab: |M_a - M_b| of independent tokens, in units of their spread."""
    S_JJ = weight_overlap(updates)
    return float(np.sqrt(S_JJ[first, first] + S_JJ[second, second] - 2 * S_JJ[first, second]))


class ClockHeads:
    def __init__(self, width: int) -> None:
        self.updates = 0
        self.centroid_JX = np.zeros((len(HALF_LIVES), width))
        self.spread_J = np.zeros(len(HALF_LIVES))
        """Leaky sums of squared distances; they weigh 1 - lambda^(t-1) together."""

    @property
    def mean_JX(self) -> Doubles:
        """M, bias-corrected."""
        result: Doubles = self.centroid_JX / (1 - DECAY_J**self.updates)[:, None]
        return result

    def update(self, x_X: Doubles) -> Doubles:
        """Take in one token. Returns its distance from each clock's mean before it, [J]; NaN for the first token."""
        distance_J = np.full(len(HALF_LIVES), np.nan)
        if self.updates:
            gap_JX = x_X - self.mean_JX
            square_J = np.einsum("jx,jx->j", gap_JX, gap_JX)
            distance_J = np.sqrt(square_J)
            corrected_J = square_J / (1 + weight_overlap(self.updates).diagonal())
            self.spread_J = DECAY_J * self.spread_J + (1 - DECAY_J) * corrected_J
        self.centroid_JX *= DECAY_J[:, None]
        self.centroid_JX += (1 - DECAY_J)[:, None] * x_X
        self.updates += 1
        return distance_J

    def distances(self) -> Distances:
        """Raises RunFailed before LEAST_UPDATES tokens, and where no token has ever differed from another."""
        if self.updates < LEAST_UPDATES:
            raise RunFailed(
                f"signal d_meso: the clocks have seen {self.updates} tokens of the {LEAST_UPDATES} they need; "
                "give a longer prompt"
            )
        spread_J = np.sqrt(self.spread_J / (1 - DECAY_J ** (self.updates - 1)))
        if spread_J[MID:].min() < ALIKE:
            raise RunFailed("signal d_meso: every token looks the same to the clocks, so that no distance is defined")
        mean_JX = self.mean_JX
        meso, macro = mean_JX[FAST] - mean_JX[MID], mean_JX[MID] - mean_JX[SLOW]
        return Distances(
            float(np.sqrt(meso @ meso) / (spread_J[MID] * null_distance(FAST, MID, self.updates))),
            float(np.sqrt(macro @ macro) / (spread_J[SLOW] * null_distance(MID, SLOW, self.updates))),
        )

    def confidences(self) -> Doubles:
        """c_j, [J] in [0, 1], of at least two tokens."""
        own_J = weight_overlap(self.updates).diagonal()
        mean_JX = self.mean_JX
        length_J = np.einsum("jx,jx->j", mean_JX, mean_JX)
        result: Doubles = np.sqrt(np.maximum(0.0, (length_J - own_J) / (1 - own_J)))
        return result

    def fill(self) -> Doubles:
        """1 - lambda^t, [J]: how much of each clock's memory there is text for."""
        result: Doubles = 1 - DECAY_J**self.updates
        return result

    def to_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "centroid_JX": self.centroid_JX.copy(), "spread_J": self.spread_J.copy()}

    def load_dict(self, saved: dict[str, Any]) -> None:
        self.updates = saved["updates"]
        self.centroid_JX, self.spread_J = saved["centroid_JX"].copy(), saved["spread_J"].copy()
