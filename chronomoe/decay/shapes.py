"""Which of four shapes a series has: none, a line, an exponential or a step.

    y_k = c + b x_k + AR(1) noise;   x_k = k (linear),  exp(-k/tau) (exponential),  [k >= k*] (step),  0 (constant)
    AICc = n ln(RSS/n) + 2 q + 2 q (q + 1)/(n - q - 1)      q = 2, 3, 4, 4 with the variance (Hurvich and Tsai 1989)
Least squares after whitening with the arm's phi, tau and k* profiled on a grid. The lowest AICc alone decides nothing:
a grid of k* always finds some step in noise. Constant is rejected only if the best shape is REJECT ahead of it, and a
shape is named only if it is NAME ahead of every other; between the two the series changes in an undetermined shape.

An exponential with tau beyond the run is a line within it, so tau ends at the number of chunks: with a longer grid the
exponential contains the line but for its parameter, which costs less than NAME, and hardly any line could be named.

Several series are fitted together with one b, tau and k* and a level c_s of each, which a series that ends early cannot
bend. All that a fit needs of a series are its sums of products with the regressors, and of several the sums of those: a
fit of any weighting of an arm's series is a product of matrices, so each series by itself, the arm and every bootstrap
resample of it are one call. tau is known up to the grid, neighbours of which differ by 5%.

Axes: S series, K chunks, G candidates (a shape with its tau or k*), B weightings, F families in the order of FAMILIES.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chronomoe.decay.noise import pooled_phi, whiten

Family = Literal["constant", "linear", "exponential", "step"]
Verdict = Literal["stable", "linear", "exponential", "step", "undetermined"]
FAMILIES: tuple[Family, ...] = ("constant", "linear", "exponential", "step")
LINEAR, EXPONENTIAL, STEP = 1, 2, 3
HAS_EFFECT_F = np.array([False, True, True, True])
NUM_PARAMETERS = np.array([2, 3, 4, 4])
REJECT, NAME = 10.0, 4.0
NUM_TAUS = 100
LEAST_TAU = 0.5
STEP_MARGIN = 3
"""Chunks before and after a step, at least."""
ROUNDING = 1e-18
"""Sums of squares below this share of the series' own are rounding, and no shape explains rounding."""


class Candidates(NamedTuple):
    family_G: NDArray[np.int64]
    """Place in FAMILIES; constant has no candidate."""
    parameter_G: NDArray[np.float64]
    """tau of an exponential, k* of a step, both in chunks; 0 of the line."""
    regressor_GK: NDArray[np.float64]


class Design(NamedTuple):
    one_K: NDArray[np.float64]
    """The whitened level."""
    x_GK: NDArray[np.float64]
    """The whitened regressors without their part along the level."""
    xx_G: NDArray[np.float64]
    level_G: NDArray[np.float64]
    """That part: c = level of y - b level of x."""


class Moments(NamedTuple):
    """What a fit needs of every series, after whitening; y and x without their part along the level."""

    candidates: Candidates
    chunks_S: NDArray[np.float64]
    square_S: NDArray[np.float64]
    """Of the series as it is, level included: the scale of its rounding errors."""
    yy_S: NDArray[np.float64]
    xy_SG: NDArray[np.float64]
    xx_SG: NDArray[np.float64]
    level_S: NDArray[np.float64]
    """Level of y under the constant shape."""
    level_SG: NDArray[np.float64]


class Fits(NamedTuple):
    """The best candidate of every family under every weighting."""

    chunks_B: NDArray[np.float64]
    levels_B: NDArray[np.float64]
    """How many series, each with a level of its own."""
    rss_BF: NDArray[np.float64]
    aicc_BF: NDArray[np.float64]
    """Infinite where the chunks are too few for the family."""
    level_BF: NDArray[np.float64]
    """c; the mean over series of c_s."""
    effect_BF: NDArray[np.float64]
    """b: slope per chunk, amplitude a, height of the step."""
    parameter_BF: NDArray[np.float64]

    def curve(self, row: int, family: int, k: ArrayLike) -> NDArray[np.float64]:
        """One fitted shape under one weighting, at chunk k."""
        level, effect, parameter = (of[row, family] for of in (self.level_BF, self.effect_BF, self.parameter_BF))
        return curve_of(FAMILIES[family], level, effect, parameter, k)


@lru_cache(maxsize=64)
def shape_candidates(chunks: int, least_tau: float = LEAST_TAU) -> Candidates:
    """For series of up to `chunks` chunks: tau in [least_tau, chunks], k* from 3 to 3 before the end."""
    k = np.arange(chunks, dtype=np.float64)
    taus = np.geomspace(least_tau, max(chunks, least_tau), NUM_TAUS)
    steps = np.arange(STEP_MARGIN, chunks - STEP_MARGIN + 1, dtype=np.float64)
    regressor_GK = np.concatenate([k[None], np.exp(-k / taus[:, None]), (k >= steps[:, None]).astype(np.float64)])
    family_G = np.repeat([LINEAR, EXPONENTIAL, STEP], [1, len(taus), len(steps)])
    return Candidates(family_G, np.concatenate([[0.0], taus, steps]), regressor_GK)


@lru_cache(maxsize=64)
def design(candidates_chunks: int, chunks: int, phi: float, least_tau: float = LEAST_TAU) -> Design:
    """The whitened regressors of a series of `chunks` chunks, for candidates that may be made for longer ones.

    A step is a candidate where it leaves STEP_MARGIN chunks after it; elsewhere its regressor is 0.
    """
    candidates = shape_candidates(candidates_chunks, least_tau)
    one_K = whiten(np.ones(chunks), phi)
    x_GK = whiten(candidates.regressor_GK[:, :chunks], phi)
    level_G = x_GK @ one_K / (one_K @ one_K)
    x_GK = x_GK - level_G[:, None] * one_K
    x_GK[(candidates.family_G == STEP) & (candidates.parameter_G > chunks - STEP_MARGIN)] = 0.0
    return Design(one_K, x_GK, (x_GK**2).sum(axis=1), level_G)


def moments(values: Sequence[NDArray[np.float64]], phi: float, least_tau: float = LEAST_TAU) -> Moments:
    """Of at least one series."""
    longest = max(map(len, values))
    rows = []
    for value_K in values:
        one_K, x_GK, xx_G, level_G = design(longest, len(value_K), phi, least_tau)
        y_K = whiten(value_K, phi)
        square, level = y_K @ y_K, one_K @ y_K / (one_K @ one_K)
        y_K = y_K - level * one_K
        rows.append((len(value_K), square, y_K @ y_K, x_GK @ y_K, xx_G, level, level_G))
    columns = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    return Moments(shape_candidates(longest, least_tau), *columns)


def fit(of: Moments, weight_BS: NDArray[np.float64]) -> Fits:
    """Fit the shapes to weighted sets of series: a row of the identity is one series, a row of ones the arm."""
    chunks_B, levels_B = weight_BS @ of.chunks_S, weight_BS.sum(axis=1)
    xy_BG, xx_BG = weight_BS @ of.xy_SG, weight_BS @ of.xx_SG
    there_BG = xx_BG > ROUNDING * chunks_B[:, None]
    slope_BG = np.divide(xy_BG, xx_BG, out=np.zeros_like(xy_BG), where=there_BG)
    gain_BG = slope_BG * xy_BG
    best_BF, effect_BF = pick(gain_BG, slope_BG, of.candidates.family_G)
    rows = np.arange(len(weight_BS))[:, None]
    level_x_BF = (weight_BS @ of.level_SG)[rows, best_BF]
    level_BF = ((weight_BS @ of.level_S)[:, None] - effect_BF * level_x_BF) / levels_B[:, None]
    gain_BF = np.where(HAS_EFFECT_F, gain_BG[rows, best_BF], 0.0)
    rss_BF = np.maximum((weight_BS @ of.yy_S)[:, None] - gain_BF, (ROUNDING * (weight_BS @ of.square_S))[:, None])
    parameter_BF = np.where(HAS_EFFECT_F, of.candidates.parameter_G[best_BF], 0.0)
    return Fits(chunks_B, levels_B, rss_BF, aicc(rss_BF, chunks_B, levels_B), level_BF, effect_BF, parameter_BF)


def pick(
    gain_BG: NDArray[np.float64], slope_BG: NDArray[np.float64], family_G: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The candidate of each family that explains most, [B, F] (0 for constant), and its b, which is 0 for constant."""
    best_BF = np.zeros((len(gain_BG), len(FAMILIES)), np.int64)
    for family in (LINEAR, EXPONENTIAL, STEP):
        members = np.flatnonzero(family_G == family)
        if len(members):
            best_BF[:, family] = members[gain_BG[:, members].argmax(axis=1)]
    effect_BF = slope_BG[np.arange(len(gain_BG))[:, None], best_BF]
    return best_BF, np.where(HAS_EFFECT_F, effect_BF, 0.0)


def aicc(
    rss_BF: NDArray[np.float64], chunks_B: NDArray[np.float64], levels_B: NDArray[np.float64]
) -> NDArray[np.float64]:
    """With one level a series; infinite where n <= q + 1, and where a series of zeros leaves nothing to explain."""
    n_B1 = chunks_B[:, None]
    q_BF = NUM_PARAMETERS + levels_B[:, None] - 1
    room_BF = n_B1 - q_BF - 1
    tiny = np.finfo(np.float64).tiny
    penalty_BF = 2 * q_BF + np.divide(2 * q_BF * (q_BF + 1), room_BF, out=np.full_like(q_BF, np.inf), where=room_BF > 0)
    return n_B1 * np.log(np.maximum(rss_BF, tiny) / n_B1) + penalty_BF


def log_likelihood(
    rss_BF: NDArray[np.float64], chunks_B: NDArray[np.float64], levels_B: NDArray[np.float64], phi: float
) -> NDArray[np.float64]:
    """Of Gaussian noise with the best variance; what AICc is made of, up to a constant common to all families."""
    n_B1 = chunks_B[:, None]
    variance_BF = np.maximum(rss_BF, np.finfo(np.float64).tiny) / n_B1
    return levels_B[:, None] * np.log(1 - phi**2) / 2 - n_B1 / 2 * (np.log(2 * np.pi * variance_BF) + 1)


def decide(aicc_F: NDArray[np.float64]) -> Verdict:
    """`stable` where constant is not rejected, `undetermined` where it is and no shape is NAME ahead."""
    order = np.argsort(aicc_F)
    best = int(order[0])
    if not aicc_F[0] >= aicc_F[best] + REJECT or best == 0:
        return "stable"
    if aicc_F[order[1]] - aicc_F[best] < NAME:
        return "undetermined"
    names: tuple[Verdict, ...] = ("stable", "linear", "exponential", "step")
    return names[best]


def arm_phi(values: Sequence[NDArray[np.float64]]) -> float:
    """phi of an arm: of its series, and once more of what their shapes leave where constant is rejected.

    A fast and large decay is a run of like differences, which the first phi takes for persistence. Series for which
    constant is not rejected stay as they are: a shape fitted to noise would take its persistence with it.
    """
    phi = pooled_phi(values)
    rests = []
    for value_K in values:
        fits = fit(moments([value_K], phi), np.ones((1, 1)))
        family = 0 if decide(fits.aicc_BF[0]) == "stable" else int(fits.aicc_BF[0].argmin())
        rests.append(value_K - fits.curve(0, family, np.arange(len(value_K))))
    return pooled_phi(rests)


def curve_of(family: Family, level: float, effect: float, parameter: float, k: ArrayLike) -> NDArray[np.float64]:
    """The fitted shape at chunk k, which may be a fraction."""
    k_K = np.asarray(k, dtype=np.float64)
    if family == "linear":
        return level + effect * k_K
    if family == "exponential":
        return level + effect * np.exp(-k_K / parameter)
    if family == "step":
        return level + effect * (k_K >= parameter).astype(np.float64)
    return np.full_like(k_K, level)


def akaike_weights(aicc_BF: NDArray[np.float64]) -> NDArray[np.float64]:
    """exp(-dAICc/2), normalised to sum 1 over families."""
    likelihood_BF = np.exp(-(aicc_BF - aicc_BF.min(axis=-1, keepdims=True)) / 2)
    return likelihood_BF / likelihood_BF.sum(axis=-1, keepdims=True)
