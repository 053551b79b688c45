"""Controls made of the series themselves: chunks in random order, and time run backwards.

    p = (1 + #{|shuffled - mean| >= |observed - mean|}) / (1 + SHUFFLES)
A statistic of decay must stand out among its values on shuffled chunks, which do not decay, and a verdict of decay
must turn into one of rise when time is reversed. Shuffling takes chunks for exchangeable: of noise that remembers it
gives a null that is too narrow (docs/decay.md has by how much), so that it can refute a decay and never prove one.

Axes: K chunks of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from chronomoe.decay.series import Series
from chronomoe.study.progress import progress

SHUFFLES = 999
ROUNDING = 1e-12


class Shuffled(NamedTuple):
    observed: float
    mean: float
    """Of the statistic on shuffled chunks."""
    low: float
    """2.5% quantile likewise."""
    high: float
    p: float
    """Two-sided."""


def against_shuffles(
    arm: Sequence[Series],
    statistic: Callable[[Sequence[Series]], float],
    rng: np.random.Generator,
    shuffles: int = SHUFFLES,
) -> Shuffled:
    """A finite statistic of an arm among its values on `shuffles` shuffled copies of the arm."""
    observed = statistic(arm)
    null_R = np.array([statistic(shuffled(arm, rng)) for _ in progress(range(shuffles), "shuffling", "copy")])
    mean = float(null_R.mean())
    as_far = np.abs(null_R - mean) >= abs(observed - mean) - ROUNDING * max(abs(observed), abs(mean))
    low, high = np.quantile(null_R, [0.025, 0.975])
    return Shuffled(observed, mean, float(low), float(high), float((1 + as_far.sum()) / (1 + shuffles)))


def shuffled(arm: Sequence[Series], rng: np.random.Generator) -> list[Series]:
    """The observed chunks of every run in random order; what is degenerate stays out."""
    return [observed(series, rng.permutation(series.onset)) for series in arm if series.onset]


def reversed_in_time(arm: Sequence[Series]) -> list[Series]:
    return [observed(series, np.arange(series.onset)[::-1]) for series in arm if series.onset]


def observed(series: Series, order_K: np.ndarray) -> Series:
    """A run of the observed chunks in another order, that ends as the run did."""
    stop = series.stop if series.onset == len(series.value_K) else "degenerate"
    return replace(series, value_K=series.value_K[order_K], stop=stop, degenerate_K=None)
