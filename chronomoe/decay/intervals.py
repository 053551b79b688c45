"""Intervals over prompts x seeds: prompts are drawn with replacement, each with all its seeds.

    percentile = quantiles alpha/2 and 1 - alpha/2 of the resampled statistic
    BCa = quantiles Phi(z0 + (z0 + z)/(1 - a (z0 + z))) at z = Phi^-1(alpha/2) and Phi^-1(1 - alpha/2)
    z0 = Phi^-1(share of resamples below the estimate),  a = sum d^3 / (6 (sum d^2)^1.5),  d = mean jackknife - own
Seeds of one prompt share its text, so they are no independent draws; the jackknife leaves out a prompt at a time
likewise. BCa (Efron 1987) corrects for bias and for a spread that changes with the value. A statistic is a function of
weights: how often every series is in each resample. It may be infinite (a median that is not reached).

Axes: B resamples, P prompts, S series.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chronomoe.study.pairs import resampling_weights

RESAMPLES = 2_000
LEVEL = 0.95
Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Weights [B, S] -> values [B]."""


class Interval(NamedTuple):
    """None: undefined, or without bound on that side."""

    estimate: float | None
    low: float | None
    high: float | None
    bca_low: float | None
    bca_high: float | None


def cluster_weights(prompt_S: NDArray[np.int64]) -> NDArray[np.float64]:
    """How often every series is in each of RESAMPLES resamples of prompts numbered from 0; the same at each call."""
    prompts = int(prompt_S.max()) + 1
    return np.rint(resampling_weights(prompts)[:RESAMPLES, prompt_S] * prompts)


def cluster_interval(statistic: Statistic, prompt_S: NDArray[np.int64], level: float = LEVEL) -> Interval:
    """Percentile and BCa interval; no bound at all where there is one prompt."""
    estimate = float(statistic(np.ones((1, len(prompt_S))))[0])
    prompts = int(prompt_S.max()) + 1
    if prompts < 2 or np.isnan(estimate):
        return Interval(finite(estimate), None, None, None, None)
    value_B = statistic(cluster_weights(prompt_S))
    jackknife_P = statistic((np.arange(prompts)[:, None] != prompt_S).astype(np.float64))
    tails = ((1 - level) / 2, (1 + level) / 2)
    bca = bca_tails(estimate, value_B, jackknife_P, tails)
    return Interval(finite(estimate), *quantiles(value_B, tails), *(quantiles(value_B, bca) if bca else (None, None)))


def quantiles(value_B: NDArray[np.float64], shares: tuple[float, float]) -> tuple[float | None, float | None]:
    """Of what is not NaN, without interpolation, which between a number and infinity there is none of."""
    known_B = value_B[~np.isnan(value_B)]
    if not len(known_B):
        return None, None
    low, high = np.quantile(known_B, shares, method="inverted_cdf")
    return finite(low), finite(high)


def finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def bca_tails(
    estimate: float, value_B: NDArray[np.float64], jackknife_P: NDArray[np.float64], tails: tuple[float, float]
) -> tuple[float, float] | None:
    """The shares below the ends of the BCa interval; None where its corrections are undefined."""
    normal = NormalDist()
    known_B = value_B[~np.isnan(value_B)]
    below = ((known_B < estimate).sum() + (known_B == estimate).sum() / 2) / max(len(known_B), 1)
    if not 0 < below < 1 or not np.isfinite(jackknife_P).all() or np.ptp(jackknife_P) == 0:
        return None
    z0 = normal.inv_cdf(float(below))
    d_P = jackknife_P.mean() - jackknife_P
    a = float((d_P**3).sum() / (6 * (d_P**2).sum() ** 1.5))
    shifted = [z0 + normal.inv_cdf(tail) for tail in tails]
    low, high = (normal.cdf(z0 + z / (1 - a * z)) for z in shifted)
    return low, high
