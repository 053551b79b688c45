"""Is the tau of a fitted exponential knowable from this run?

    identifiable  <=>  95% bootstrap bound of tau < K/2,  |a| > 2 noise deviations,  95% interval of a without 0
A tau near the length of a run trades against its amplitude and its asymptote: many pairs fit alike, and the best of them
says nothing. For one series the bootstrap draws its whitened residuals anew around its fitted exponential; for an arm it
draws prompts (intervals.py), and tau and a of the resampled fits are judged here alike.

Axes: K chunks, G candidates, B draws.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chronomoe.halflife.noise import whiten
from chronomoe.halflife.shapes import EXPONENTIAL, design, shape_candidates

DRAWS = 1_000
LEAST_AMPLITUDE = 2.0
"""In noise deviations."""


class Identified(NamedTuple):
    tau_low: float
    """2.5% quantile, chunks."""
    tau_high: float
    tau_bound: float
    """95% quantile, one-sided: what is held against K/2."""
    amplitude_low: float
    amplitude_high: float
    identifiable: bool
    fault: str
    """Which condition fails, in words; empty if none."""


def judge(
    tau_B: NDArray[np.float64], amplitude_B: NDArray[np.float64], amplitude: float, noise: float, chunks: int
) -> Identified:
    """From the bootstrapped tau and a, the fitted a and the standard deviation of the noise around the curve."""
    tau_low, tau_bound, tau_high = np.quantile(tau_B, [0.025, 0.95, 0.975])
    low, high = np.quantile(amplitude_B, [0.025, 0.975])
    faults = [
        (tau_bound >= chunks / 2, f"tau may be {tau_bound:.3g}, half the run is {chunks / 2:g}"),
        (abs(amplitude) <= LEAST_AMPLITUDE * noise, f"amplitude {amplitude:.3g} is within 2 noise deviations"),
        (low <= 0 <= high, "the interval of the amplitude holds 0"),
    ]
    fault = next((words for failed, words in faults if failed), "")
    return Identified(*map(float, (tau_low, tau_high, tau_bound, low, high)), not fault, fault)


def identify(value_K: NDArray[np.float64], phi: float, rng: np.random.Generator) -> Identified:
    """Of one series that is not constant, by its residuals."""
    chunks = len(value_K)
    is_exponential_G = shape_candidates(chunks).family_G == EXPONENTIAL
    one_K, x_GK, xx_G, _ = design(chunks, chunks, phi)
    x_GK, xx_G, tau_G = (
        x_GK[is_exponential_G],
        xx_G[is_exponential_G],
        shape_candidates(chunks).parameter_G[is_exponential_G],
    )
    y_K = whiten(value_K, phi)
    y_K = y_K - one_K * (one_K @ y_K / (one_K @ one_K))
    xy_G = x_GK @ y_K
    best = int((xy_G**2 / xx_G).argmax())
    amplitude = xy_G[best] / xx_G[best]
    fitted_K = amplitude * x_GK[best]
    rest_K = (y_K - fitted_K) * np.sqrt(chunks / (chunks - 3))  # three parameters were fitted
    drawn_BK = rest_K[rng.integers(chunks, size=(DRAWS, chunks))]
    xy_BG = (fitted_K + drawn_BK) @ x_GK.T
    best_B = (xy_BG**2 / xx_G).argmax(axis=1)
    amplitude_B = xy_BG[np.arange(DRAWS), best_B] / xx_G[best_B]
    noise = float(np.sqrt((rest_K**2).mean() / (1 - phi**2)))
    return judge(tau_G[best_B], amplitude_B, float(amplitude), noise, chunks)
