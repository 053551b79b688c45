"""How well a fitted shape is known, and whether the tau of an exponential is knowable from this run at all.

    identifiable  <=>  95% bootstrap bound of tau < K/2,  |a| > 2 noise deviations,  95% interval of a without 0
A tau near the length of a run trades against its amplitude and its asymptote: many pairs fit alike, and the best of
them says nothing. For one series the bootstrap draws its whitened residuals anew around its fitted shape; for an arm it
draws prompts (intervals.py). Both are judged here alike.

Axes: K chunks, G candidates, B draws.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chronomoe.decay.noise import whiten
from chronomoe.decay.shapes import NUM_PARAMETERS, design, shape_candidates

DRAWS = 1_000
LEAST_AMPLITUDE = 2.0
"""In noise deviations."""


class Draws(NamedTuple):
    """A shape fitted to bootstrap draws."""

    effect_B: NDArray[np.float64]
    parameter_B: NDArray[np.float64]
    effect: float
    """Of the data."""
    noise: float
    """Standard deviation of the noise around the fitted curve."""


class Known(NamedTuple):
    """95% percentile intervals."""

    effect_low: float
    effect_high: float
    parameter_low: float
    """tau or k*, chunks; 0 of a line."""
    parameter_high: float


def known(draws: Draws) -> Known:
    ends = [np.quantile(of, [0.025, 0.975], method="inverted_cdf") for of in (draws.effect_B, draws.parameter_B)]
    return Known(*map(float, np.concatenate(ends)))


def fault(draws: Draws, chunks: int) -> str | None:
    """Which condition an exponential fails, in words; None: tau is identifiable."""
    bound = float(np.quantile(draws.parameter_B, 0.95, method="inverted_cdf"))
    of = known(draws)
    if bound >= chunks / 2:
        return f"tau may be {bound:.3g} chunks, half the run is {chunks / 2:g}"
    if abs(draws.effect) <= LEAST_AMPLITUDE * draws.noise:
        return f"the amplitude {draws.effect:.3g} is within 2 noise deviations of {draws.noise:.3g}"
    return "the interval of the amplitude holds 0" if of.effect_low <= 0 <= of.effect_high else None


def residual_draws(value_K: NDArray[np.float64], phi: float, family: int, rng: np.random.Generator) -> Draws:
    """Of one series that is not constant, and one family that has an effect (its place in FAMILIES)."""
    chunks = len(value_K)
    candidates = shape_candidates(chunks)
    one_K, x_GK, xx_G, _ = design(chunks, chunks, phi)
    member_G = (candidates.family_G == family) & (xx_G > 0)
    x_GK, xx_G, parameter_G = x_GK[member_G], xx_G[member_G], candidates.parameter_G[member_G]
    y_K = whiten(value_K, phi)
    y_K = y_K - one_K * (one_K @ y_K / (one_K @ one_K))
    xy_G = x_GK @ y_K
    best = int((xy_G**2 / xx_G).argmax())
    effect = float(xy_G[best] / xx_G[best])
    fitted_K = effect * x_GK[best]
    lost = int(NUM_PARAMETERS[family]) - 1  # of the curve; the variance is no parameter of it
    rest_K = (y_K - fitted_K) * np.sqrt(chunks / (chunks - lost))
    xy_BG = (fitted_K + rest_K[rng.integers(chunks, size=(DRAWS, chunks))]) @ x_GK.T
    best_B = (xy_BG**2 / xx_G).argmax(axis=1)
    effect_B = xy_BG[np.arange(DRAWS), best_B] / xx_G[best_B]
    return Draws(effect_B, parameter_G[best_B], effect, float(np.sqrt((rest_K**2).mean() / (1 - phi**2))))
