"""What the same series show when what is asked about is taken out of them.

| null | construction | must show |
|---|---|---|
| shuffled | chunks of every text in random order, SHUFFLES times | the slopes that chance gives; no decay |
| reversed | every text backwards | the slope with the other sign, no decay where there was one |
| constant | every input at the mean of its text | stable, variance 0, all inputs named as frozen |
Models that must show nothing are arms (arms.py). The slope is that of least squares, averaged over texts.

Axes: S series, K chunks, R shuffles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chronomoe.decay.documented import ols_slope
from chronomoe.decay.series import Series
from chronomoe.halflife.pressure import INPUTS, pressure, sound
from chronomoe.halflife.recording import Recording

SHUFFLES = 999


class Shuffled(NamedTuple):
    slope: float
    """Of the texts as they are, per chunk."""
    low: float
    high: float
    """95% of the shuffled ones."""
    p: float
    """Two-sided, of the slope among shuffled ones."""


def shuffled(arm: Sequence[Series], rng: np.random.Generator) -> Shuffled:
    values = [series.observed_K for series in arm if len(series.observed_K) > 1]
    slope = float(np.mean([ols_slope(value_K) for value_K in values]))
    slope_R = np.mean([shuffled_slopes(value_K, rng) for value_K in values], axis=0)
    low, high = np.quantile(slope_R, [0.025, 0.975])
    as_far = int((np.abs(slope_R) >= abs(slope)).sum())
    return Shuffled(slope, float(low), float(high), (1 + as_far) / (1 + SHUFFLES))


def shuffled_slopes(value_K: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    k = np.arange(len(value_K)) - (len(value_K) - 1) / 2
    order_RK = np.argsort(rng.random((SHUFFLES, len(value_K))), axis=1)
    slope_R: NDArray[np.float64] = value_K[order_RK] @ k / (k @ k)
    return slope_R


def reversed_arm(arm: Sequence[Series]) -> list[Series]:
    return [
        replace(series, value_K=series.observed_K[::-1].copy(), degenerate_K=None)
        for series in arm
        if len(series.observed_K)
    ]


def constant_arm(arm: Sequence[Series], recordings: Sequence[Recording]) -> list[Series]:
    """The pressure of inputs that stand at the mean of their text."""
    by_text = {(recording.prompt, recording.seed): sound(recording) for recording in recordings}
    found = []
    for series in arm:
        chunks = by_text[series.prompt, series.seed]
        if not chunks:
            continue
        means = {name: np.full(len(chunks), np.mean([chunk.inputs[name] for chunk in chunks])) for name in INPUTS}
        found.append(replace(series, value_K=pressure(means), degenerate_K=None))
    return found
