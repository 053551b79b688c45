"""Runs paired by seed: the same initial weights and the same tokens in two arms that differ in their settings.

    difference_i = metric(arm, seed i) - metric(baseline, seed i);  95% interval by bootstrap over the pairs
A paired difference cancels what the seed alone does, which is usually more than what an arm does.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chronomoe.study.significance import sign_flip_p

RESAMPLES = 10_000
ENOUGH_PAIRS = 5


class Effect(NamedTuple):
    """One metric of one arm against the baseline."""

    n: int
    """Pairs."""
    mean: float
    """Of the arm."""
    mean_difference: float
    ci_low: float
    ci_high: float
    wins: int
    """Pairs in which the arm does better: higher or lower as `measurements.METRICS` says."""
    p: float | None = None
    """Two-sided, of the exact sign-flip test over the pairs; never below 2 / 2^n."""
    corrected_p: float | None = None
    """The same after Holm's correction over all cells of the comparison that have this metric."""


def effect(mine: Mapping[int, float], theirs: Mapping[int, float], higher_is_better: bool) -> Effect | None:
    """The paired effect on one metric, from its values by seed in the arm and in the baseline; None without a pair."""
    seeds = sorted(mine.keys() & theirs.keys())
    if not seeds:
        return None
    difference = np.array([mine[seed] - theirs[seed] for seed in seeds])
    low, high = bootstrap_interval(difference)
    wins = difference > 0 if higher_is_better else difference < 0
    return Effect(
        n=len(seeds),
        mean=float(np.mean([mine[seed] for seed in seeds])),
        mean_difference=float(difference.mean()),
        ci_low=low,
        ci_high=high,
        wins=int(wins.sum()),
        p=sign_flip_p(difference),
    )


def bootstrap_interval(values_N: NDArray[np.float64]) -> tuple[float, float]:
    """95% percentile interval of the mean, from `RESAMPLES` resamples with a fixed seed."""
    low, high = np.quantile(resampling_weights(len(values_N)) @ values_N, [0.025, 0.975])
    return float(low), float(high)


@lru_cache(maxsize=8)
def resampling_weights(count: int) -> NDArray[np.float64]:
    """How much of each of `count` values is in each resample's mean, [RESAMPLES, count]; the same for every metric."""
    draws = np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
    numbered = draws + count * np.arange(RESAMPLES)[:, None]
    return np.bincount(numbered.ravel(), minlength=RESAMPLES * count).reshape(RESAMPLES, count) / count
