"""Does a series fall off a cliff, rather than down a slope? A change-point statistic against smooth surrogates.

    D = max over k of [mean(p_(k-5..k-1)) - mean(p_k..k+4)] / MAD deviation of the first differences
    null: the best smooth trend (line, or exponential with tau >= 2) + AR(1) noise with the arm's phi;
          p = (1 + #{D of a surrogate >= D}) / (1 + draws)
A cliff has a p-value below the level after Benjamini and Hochberg over the arm's series, and a size: a drop of at least
a tenth of the range the pressure can attain. Fast smooth decay is no cliff, hence the exponential in the null; noise
that remembers is none, hence AR(1). The p-values of permutations beside it, of the CUSUM of what a line leaves, take
neighbours for exchangeable; with phi above 0.2 they find cliffs in noise.

    CUSUM = max over k of |sum of the first k residuals| / (deviation sqrt(K))

Axes: R surrogates or permutations, K chunks, S series.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chronomoe.decay.noise import ar1_noise, mad_deviation, noise_deviation
from chronomoe.decay.series import FEWEST_CHUNKS
from chronomoe.decay.shapes import EXPONENTIAL, LINEAR, STEP, fit, moments
from chronomoe.study.significance import benjamini_hochberg

WINDOW = 5
DRAWS = 999
LEVEL = 0.05
LEAST_TAU = 2.0
LEAST_DROP = 0.1
"""Of the attainable range."""
BLOCK = 5
LARGEST_EXCHANGEABLE_PHI = 0.2
ROUNDING = 1e-9


class Cliff(NamedTuple):
    found: bool
    statistic: float
    """D."""
    p: float
    """Of the surrogates; decides, after correction."""
    corrected_p: float
    place: int
    """The first chunk after the fall."""
    place_low: int
    place_high: int
    """95% of where the largest D lies in surrogates with the step that fits best."""
    drop: float
    """Mean of the five chunks before minus mean of the five after."""
    permutation_p: float
    block_permutation_p: float
    """Blocks of five chunks. Both are printed, neither decides."""
    permutation_valid: bool


def find_cliffs(
    values: Sequence[NDArray[np.float64]], phi: float, attainable_range: float, rng: np.random.Generator
) -> list[Cliff | None]:
    """Of every series of an arm; None of one with fewer than FEWEST_CHUNKS chunks."""
    long_enough = [index for index, value_K in enumerate(values) if len(value_K) >= FEWEST_CHUNKS]
    draws = surrogate_draws(len(long_enough))
    tested = {index: surrogate_p(values[index], phi, rng, draws) for index in long_enough}
    corrected = benjamini_hochberg(tested)
    cliffs: list[Cliff | None] = [None] * len(values)
    for index in long_enough:
        value_K = values[index]
        statistic, place = (item[0] for item in fall(value_K[None]))
        drop = float(value_K[place - WINDOW : place].mean() - value_K[place : place + WINDOW].mean())
        low, high = place_interval(value_K, phi, rng)
        cliffs[index] = Cliff(
            found=corrected[index] <= LEVEL and drop >= LEAST_DROP * attainable_range,
            statistic=float(statistic),
            p=tested[index],
            corrected_p=corrected[index],
            place=int(place),
            place_low=low,
            place_high=high,
            drop=drop,
            permutation_p=permutation_p(value_K, 1, rng),
            block_permutation_p=permutation_p(value_K, BLOCK, rng),
            permutation_valid=phi <= LARGEST_EXCHANGEABLE_PHI,
        )
    return cliffs


def surrogate_draws(series: int) -> int:
    """As many that one cliff among so many series can survive the correction."""
    return max(DRAWS, int(np.ceil(series / LEVEL)) - 1)


def fall(value_RK: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """D and its k for every row, of at least two windows."""
    means = np.lib.stride_tricks.sliding_window_view(value_RK, WINDOW, axis=-1).mean(axis=-1)
    drop_RK = means[:, :-WINDOW] - means[:, WINDOW:]
    place_R = drop_RK.argmax(axis=-1)
    drop_R, deviation_R = drop_RK[np.arange(len(drop_RK)), place_R], mad_deviation(np.diff(value_RK, axis=-1))
    unbounded_R = np.where(drop_R == 0, 0.0, np.copysign(np.inf, drop_R))
    return np.divide(drop_R, deviation_R, out=unbounded_R, where=deviation_R > 0), place_R + WINDOW


def surrogate_p(value_K: NDArray[np.float64], phi: float, rng: np.random.Generator, draws: int = DRAWS) -> float:
    surrogate_RK = smooth_trend(value_K, phi) + noise_deviation(value_K, phi) * ar1_noise(
        rng, (draws, len(value_K)), phi
    )
    as_far = fall(surrogate_RK)[0] >= fall(value_K[None])[0]
    return float((1 + as_far.sum()) / (1 + draws))


def smooth_trend(value_K: NDArray[np.float64], phi: float) -> NDArray[np.float64]:
    """The line or the exponential of lower AICc, [K]."""
    fits = fit(moments([value_K], phi, LEAST_TAU), np.ones((1, 1)))
    family = LINEAR if fits.aicc_BF[0, LINEAR] <= fits.aicc_BF[0, EXPONENTIAL] else EXPONENTIAL
    return fits.curve(0, family, np.arange(len(value_K)))


def place_interval(value_K: NDArray[np.float64], phi: float, rng: np.random.Generator) -> tuple[int, int]:
    fits = fit(moments([value_K], phi), np.ones((1, 1)))
    step_K = fits.curve(0, STEP, np.arange(len(value_K)))
    noise_RK = noise_deviation(value_K, phi) * ar1_noise(rng, (DRAWS, len(value_K)), phi)
    low, high = np.quantile(fall(step_K + noise_RK)[1], [0.025, 0.975], method="inverted_cdf")
    return int(low), int(high)


def permutation_p(value_K: NDArray[np.float64], block: int, rng: np.random.Generator) -> float:
    """Of the CUSUM when blocks of what a line leaves are put in random order and a line is fitted again."""
    rest_K = without_line(value_K)
    if np.abs(rest_K).max() <= ROUNDING * np.abs(value_K).max():
        return 1.0  # a line, whose rounding errors would have an order
    order_RK = np.argsort(rng.random((DRAWS, -(-len(value_K) // block))), axis=-1)
    order_RK = (order_RK[..., None] * block + np.arange(block)).reshape(DRAWS, -1)
    order_RK = order_RK[order_RK < len(value_K)].reshape(DRAWS, -1)
    as_far = cusum(without_line(rest_K[order_RK])) >= cusum(rest_K) * (1 - ROUNDING)
    return float((1 + as_far.sum()) / (1 + DRAWS))


def without_line(value_RK: NDArray[np.float64]) -> NDArray[np.float64]:
    k = np.arange(value_RK.shape[-1]) - (value_RK.shape[-1] - 1) / 2
    rest_RK = value_RK - value_RK.mean(axis=-1, keepdims=True)
    return rest_RK - (rest_RK @ k / (k @ k))[..., None] * k


def cusum(rest_RK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of every row, which sums to 0; 0 where nothing is left."""
    peak_R = np.abs(np.cumsum(rest_RK, axis=-1)).max(axis=-1)
    scale_R = np.sqrt((rest_RK**2).sum(axis=-1))
    return np.divide(peak_R, scale_R, out=np.zeros_like(peak_R), where=scale_R > 0)
