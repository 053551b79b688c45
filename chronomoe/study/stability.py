"""How smoothly a run trained, from the rows of `metrics.csv`: loss spikes and the tail of the gradient norm.

    level_t = median of loss over the logged steps t - h .. t + h                      (h = HALF_WINDOW)
    rest_t  = loss_t - level_t;  bend_t = (loss_(t-1) - 2 loss_t + loss_(t+1)) / sqrt(6)
    scale_t = 1.4826 max(median |rest|, median |bend|) over the judged steps t - w .. t + w     (w = SCALE_WINDOW)
    loss_spikes    = share of the judged steps with rest_t > SPIKE scale_t
    grad_norm_tail = 99th percentile / median of the gradient norm before clipping

The median of a window that looks both ways is the middle value of any falling or rising curve, so a trend, however
steep, leaves no rest; a causal one would lag behind a falling loss and hide spikes. Judged are the steps that have the
whole window, which leaves out the first and the last h. A rise that outlasts half the window is a new level and no
spike. The scale is that of the noise nearby, so a loss that grows calmer is judged by its own calm. Both of its parts
read the standard deviation of white noise; on a steep trend the rest vanishes and the bend, which knows no slope, still
reads it; in correlated noise the bend reads too little. Beyond SPIKE lies one step of Gaussian noise in 3 million.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

HALF_WINDOW = 10
SCALE_WINDOW = 50
SPIKE = 5.0
TO_DEVIATION = 1.4826
"""Standard deviation of a Gaussian over the median of its absolute value."""
LEAST_JUDGED = 20
"""Judged steps below which a scale says little."""
WARM_UP = 0.1
"""Share of the logged steps that the gradient norm's tail leaves out at the start: norms fall there by themselves."""


def loss_spikes(loss_N: NDArray[np.float64]) -> float | None:
    """Share in [0, 1] of the judged steps that are spikes; None with fewer than 40 logged steps."""
    if len(loss_N) < 2 * HALF_WINDOW + LEAST_JUDGED:
        return None
    rest = loss_N[HALF_WINDOW:-HALF_WINDOW] - np.median(sliding_window_view(loss_N, 2 * HALF_WINDOW + 1), axis=-1)
    bend = np.diff(loss_N, 2)[HALF_WINDOW - 1 : 1 - HALF_WINDOW] / np.sqrt(6)
    scale = TO_DEVIATION * np.maximum(nearby_median(np.abs(rest)), nearby_median(np.abs(bend)))
    return float(np.mean(rest > SPIKE * scale))


def nearby_median(value_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median over the steps at most SCALE_WINDOW away, of those there are."""
    padded = np.pad(value_N, SCALE_WINDOW, constant_values=np.nan)
    return np.nanmedian(sliding_window_view(padded, 2 * SCALE_WINDOW + 1), axis=-1)


def grad_norm_tail(norm_N: NDArray[np.float64]) -> float | None:
    """At least 1; None with fewer than 20 logged steps after the warm-up, or where the median is 0."""
    settled = norm_N[round(WARM_UP * len(norm_N)) :]
    if len(settled) < LEAST_JUDGED or np.median(settled) <= 0:
        return None
    return float(np.quantile(settled, 0.99) / np.median(settled))
