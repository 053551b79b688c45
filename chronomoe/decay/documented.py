"""The prototype's decay analysis as first published, defects included, for comparison beside shapes.py.

    slope = OLS of p on k;   drop = least first difference;   tau = -1 / OLS slope of ln(|p - min p| + 0.01) on k
    slope > -0.001: stable;  else |drop| > 0.1 and > 5 |slope|: cliff;  else there is a tau: exponential;  else: linear
Measured: exp(-k/15) without noise is given tau 11.7; tau 5 with noise of 0.05 a median of 50; noise around a constant a
finite tau in every second run. The line has no error, so no verdict of it can be wrong by a known rate.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

OFFSET = 0.01
STABLE_SLOPE = -0.001
CLIFF_DROP, CLIFF_SLOPES = 0.1, 5.0


class Documented(NamedTuple):
    slope: float
    """Per chunk."""
    tau: float | None
    """Chunks; None where the logarithm does not fall."""
    drop: float
    """The least first difference, 0 of a single chunk."""
    verdict: Literal["stable", "cliff", "exponential", "linear"]


def documented_decay(value_K: NDArray[np.float64]) -> Documented:
    slope = ols_slope(value_K)
    log_slope = ols_slope(np.log(np.abs(value_K - value_K.min()) + OFFSET))
    tau = -1 / log_slope if log_slope < 0 else None
    drop = float(np.diff(value_K).min(initial=np.inf)) if len(value_K) > 1 else 0.0
    if slope > STABLE_SLOPE:
        return Documented(slope, tau, drop, "stable")
    if abs(drop) > CLIFF_DROP and abs(drop) > CLIFF_SLOPES * abs(slope):
        return Documented(slope, tau, drop, "cliff")
    return Documented(slope, tau, drop, "linear" if tau is None else "exponential")


def ols_slope(value_K: NDArray[np.float64]) -> float:
    """Per chunk; 0 of a single chunk."""
    k = np.arange(len(value_K)) - (len(value_K) - 1) / 2
    return float(k @ value_K / (k @ k)) if len(value_K) > 1 else 0.0
