"""A few codes for what tokens look like, and how expected each step from code to code is.

    code of x = argmax_b <x, centre_b> ;  q_t = (N[b_(t-1), b_t] + 1/B) / (sum_b N[b_(t-1), b] + 1)
Centres are spherical k-means (Dhillon and Modha 2001) on a calibration text and frozen after that, so that codes never
change their meaning. N are counts that decay with the mid clock: N <- lambda_mid N, then N[b_(t-1), b_t] += 1. q is
taken before its own step is counted, and averaged arithmetically: independent codes then read 1/B.

Axes: N tokens, X observation, B codes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from chronomoe.session.clock_heads import DECAY_J, MID, Doubles
from chronomoe.session.reading import Floats, Integers
from chronomoe.settings import InputError

ROUNDS = 100
CANDIDATES = 4
"""Tokens tried for each first centre, of which the one stays that leaves least to describe."""


def spherical_kmeans(x_NX: Floats, num_codes: int, seed: int) -> Doubles:
    """Unit centres, fp64 [B, X]. Raises InputError if there are fewer different tokens than codes.

    The first centres are far apart (greedy k-means++ on 1 - cosine); a centre that loses all its tokens takes the
    token that its own centre describes worst.
    """
    rng = np.random.default_rng(seed)
    x_NX = x_NX.astype(np.float32)
    centre_BX = x_NX[rng.integers(len(x_NX))][None]
    away_N = distance(x_NX, centre_BX)
    while len(centre_BX) < num_codes:
        if not away_N.any():
            raise InputError(
                f"the calibration text has {len(centre_BX)} tokens that differ and the codebook {num_codes} codes: "
                "use a longer text"
            )
        drawn = rng.choice(len(x_NX), size=CANDIDATES, p=away_N / away_N.sum())
        left = [np.minimum(away_N, distance(x_NX, x_NX[candidate][None])) for candidate in drawn]
        best = int(np.argmin([rest.sum() for rest in left]))
        centre_BX, away_N = np.concatenate([centre_BX, x_NX[drawn[best]][None]]), left[best]
    code_N = np.full(len(x_NX), -1)
    for _ in range(ROUNDS):
        cosine_NB = x_NX @ centre_BX.T
        nearest_N = cosine_NB.argmax(axis=1)
        if np.array_equal(nearest_N, code_N):
            break
        code_N = nearest_N
        fit_N = cosine_NB.max(axis=1)
        for code in range(num_codes):
            members = x_NX[code_N == code]
            if len(members):
                centre_BX[code] = unit(members.sum(axis=0))
            else:
                centre_BX[code] = x_NX[fit_N.argmin()]
                fit_N[fit_N.argmin()] = 1.0
    return np.stack([unit(centre_X.astype(np.float64)) for centre_X in centre_BX])


def distance(x_NX: Floats, centre_BX: Floats) -> Doubles:
    """1 - cosine to the nearest centre, [N]; 0 for the same direction, rounding or not."""
    away_N = 1.0 - (x_NX @ centre_BX.T).max(axis=1).astype(np.float64)
    return np.where(away_N > 1e-6, away_N, 0.0)


def unit(x_X: Floats) -> Floats:
    return x_X / max(float(np.linalg.norm(x_X)), np.finfo(np.float64).tiny)


def nearest(x_X: Doubles, centre_BX: Doubles) -> int:
    return int((centre_BX @ x_X).argmax())


def codes_of(x_NX: Doubles, centre_BX: Doubles) -> Integers:
    return (x_NX @ centre_BX.T).argmax(axis=1)


class Transitions:
    """Leaky counts of the steps from code to code."""

    def __init__(self, num_codes: int) -> None:
        self.counts_BB = np.zeros((num_codes, num_codes))
        self.previous: int | None = None

    def follow(self, code: int) -> float:
        """Take in the next code; returns its q in (0, 1), NaN for the first."""
        before, self.previous = self.previous, code
        if before is None:
            return float("nan")
        row_B = self.counts_BB[before]
        q = float((row_B[code] + 1.0 / len(row_B)) / (row_B.sum() + 1.0))
        self.counts_BB *= DECAY_J[MID]
        self.counts_BB[before, code] += 1.0
        return q

    def to_dict(self) -> dict[str, Any]:
        return {"counts_BB": self.counts_BB.copy(), "previous": self.previous}

    def load_dict(self, saved: dict[str, Any]) -> None:
        self.counts_BB, self.previous = saved["counts_BB"].copy(), saved["previous"]
