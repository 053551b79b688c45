"""When a run has lost half of its pressure, or how long it was seen not to have.

    event: the first five neighbouring chunks whose median is at or below half the mean of the first five chunks
One chunk decides nothing: against a single first chunk, noise alone is called a half-life in almost every second run.
The time of an event is the middle one of its five chunks; the time of a run without one is the middle of its last five,
the last at which an event could have been seen. A run that ended itself (`stopped`) did not merely go out of sight:
what ends a text may be what ends the pressure, so that is a competing event. A run shorter than five chunks was seen at
time 0 only.

Axes: S series.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chronomoe.decay.noise import noise_deviation
from chronomoe.decay.series import Series

WINDOW = 5
LARGEST_NOISE = 0.25
"""Deviation of the noise over the baseline: above it, noise alone crosses half too often."""
CENSORED, HALF, STOPPED = 0, 1, 2


class Events(NamedTuple):
    time_S: NDArray[np.int64]
    """In chunks since chunk 0."""
    kind_S: NDArray[np.int64]
    """CENSORED, HALF or STOPPED."""


def half_events(arm: Sequence[Series]) -> Events:
    """Of series whose baseline is above 0 (`refusal` says so of others)."""
    found = [half_event(series) for series in arm]
    return Events(*(np.array(column, dtype=np.int64) for column in zip(*found, strict=True)))


def half_event(series: Series) -> tuple[int, int]:
    value_K = series.observed_K
    ending = STOPPED if series.ending == "stopped" else CENSORED
    if len(value_K) < WINDOW:
        return 0, ending
    median_K = np.median(np.lib.stride_tricks.sliding_window_view(value_K, WINDOW), axis=1)
    reached = np.flatnonzero(median_K <= baseline(value_K) / 2)
    if len(reached):
        return int(reached[0]) + WINDOW // 2, HALF
    return len(median_K) - 1 + WINDOW // 2, ending


def baseline(value_K: NDArray[np.float64]) -> float:
    return float(value_K[:WINDOW].mean())


def refusal(arm: Sequence[Series], phi: float) -> str | None:
    """Why half of this quantity cannot be timed in this arm, in words; None if it can."""
    baseline_S = np.array([baseline(series.observed_K) if series.onset else np.nan for series in arm])
    if not np.isfinite(baseline_S).any():
        return "no series has a chunk that is not degenerate"
    low = int((baseline_S <= 0).sum())
    if low:
        return f"{low} of {len(arm)} series start at or below 0, where half means nothing"
    noise_S = np.array([noise_deviation(series.observed_K, phi) for series in arm])
    ratio = float(np.nanmedian(noise_S / baseline_S))
    return (
        f"noise is {ratio:.2f} of the baseline; above {LARGEST_NOISE} it crosses half by itself"
        if ratio > LARGEST_NOISE
        else None
    )
