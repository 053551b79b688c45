"""Everything that is said about one quantity of one arm: its series one by one, and the arm as a whole.

    arm = the series of one model under one condition, prompts x seeds, P_0 ... P_(K-1) each
Every series is fitted by itself with the arm's phi; the arm is fitted with one shape and a level of each series. The
arm's shape must stand against prompts as well as against noise: constant is rejected only if, besides AICc, the
interval of the effect over prompts leaves out 0. Series that differ in their slopes would else make a trend of any
mean.

Axes: S series, B resamples, F families.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chronomoe.decay.cliffs import Cliff, find_cliffs
from chronomoe.decay.documented import Documented, documented_decay
from chronomoe.decay.events import refusal
from chronomoe.decay.half_life import Fitted, HalfLife, by_midpoint, by_tau, by_threshold, documented
from chronomoe.decay.identifiability import Draws, Known, fault, known, residual_draws
from chronomoe.decay.intervals import Interval, cluster_interval, cluster_weights
from chronomoe.decay.noise import noise_deviation
from chronomoe.decay.series import FEWEST_CHUNKS, Series, prompt_indices, shortage
from chronomoe.decay.shapes import (
    EXPONENTIAL,
    FAMILIES,
    Fits,
    Verdict,
    akaike_weights,
    arm_phi,
    decide,
    fit,
    log_likelihood,
    moments,
)
from chronomoe.decay.survival import Survival, survive
from chronomoe.settings import InputError
from chronomoe.study.progress import progress


class Shape(NamedTuple):
    """The shape of one series or of the arm, and the half-lives that follow."""

    verdict: Verdict
    fitted: Fitted
    """Of lowest AICc; the constant where the verdict is stable."""
    known: Known | None
    """Intervals of its effect and its tau or k*; None of a constant."""
    fault: str | None
    """Why the tau of a fitted exponential is not identifiable; None if it is, and of other shapes."""
    fits_F: tuple[Fitted, ...]
    """The best of every family."""
    log_likelihood_F: NDArray[np.float64]
    aicc_F: NDArray[np.float64]
    weight_F: NDArray[np.float64]
    """Akaike weights."""
    by_tau: HalfLife
    by_threshold: HalfLife
    by_midpoint: HalfLife


@dataclass(frozen=True)
class Arm:
    series: Sequence[Series]
    phi: float
    noise: float
    """Median over series of the standard deviation of the noise."""
    shortage: str | None
    """What the arm lacks to be large enough."""
    shapes: list[Shape | None]
    """None of a series with fewer than FEWEST_CHUNKS chunks."""
    cliffs: list[Cliff | None]
    """Likewise."""
    documented: list[tuple[Documented, HalfLife]]
    """As first published, on all chunks, degenerate ones too."""
    pooled: Shape | None
    """None where fewer than two prompts have a series that is long enough."""
    effect: Interval | None
    """Over prompts: of the effect of the pooled shape of lowest AICc that is not constant."""
    survival: Survival | None
    refusal: str | None
    """Why there is no survival."""

    @property
    def verdicts(self) -> Counter[Verdict]:
        """Of the series that are long enough."""
        return Counter(shape.verdict for shape in self.shapes if shape is not None)


def measure_arm(arm: Sequence[Series], floor: float, ceiling: float, rng: np.random.Generator) -> Arm:
    """All statistics of a quantity whose attainable range is [floor, ceiling]. InputError for an arm without series."""
    if not arm:
        raise InputError("the arm has no series: measure at least one prompt")
    values = [series.observed_K for series in arm]
    long_enough = [index for index, value_K in enumerate(values) if len(value_K) >= FEWEST_CHUNKS]
    phi = arm_phi(values)
    shapes: list[Shape | None] = [None] * len(arm)
    for index in progress(long_enough, "fitting", "series"):
        shapes[index] = series_shape(values[index], phi, floor, rng)
    kept = [arm[index] for index in long_enough]
    several = len({series.prompt for series in kept}) > 1
    pooled, effect = pooled_shape(kept, phi, floor) if several else (None, None)
    refused = refusal(arm, phi)
    return Arm(
        series=arm,
        phi=phi,
        noise=float(np.median([noise_deviation(value_K, phi) for value_K in values])),
        shortage=shortage(arm),
        shapes=shapes,
        cliffs=find_cliffs(values, phi, ceiling - floor, rng),
        documented=[(documented_decay(series.value_K), documented(series.value_K)) for series in arm],
        pooled=pooled,
        effect=effect,
        survival=None if refused else survive(arm),
        refusal=refused,
    )


def series_shape(value_K: NDArray[np.float64], phi: float, floor: float, rng: np.random.Generator) -> Shape:
    fits = fit(moments([value_K], phi), np.ones((1, 1)))
    verdict = decide(fits.aicc_BF[0])
    draws = None if verdict == "stable" else residual_draws(value_K, phi, best_family(fits), rng)
    return shape(fits, verdict, draws, len(value_K), phi, floor)


def pooled_shape(arm: Sequence[Series], phi: float, floor: float) -> tuple[Shape, Interval]:
    """The shape of the series of at least two prompts together, and the interval over prompts of its effect."""
    of, prompt_S = moments([series.observed_K for series in arm], phi), prompt_indices(arm)
    fits = fit(of, np.ones((1, len(arm))))
    changing = 1 + int(fits.aicc_BF[0, 1:].argmin())
    effect = cluster_interval(lambda weight_BS: fit(of, weight_BS).effect_BF[:, changing], prompt_S)
    stands = effect.low is not None and effect.high is not None and not effect.low <= 0 <= effect.high
    verdict = decide(fits.aicc_BF[0]) if stands else "stable"
    draws = None
    if verdict != "stable":
        resampled = fit(of, cluster_weights(prompt_S))
        noise = float(np.sqrt(fits.rss_BF[0, changing] / fits.chunks_B[0] / (1 - phi**2)))
        columns = (resampled.effect_BF[:, changing], resampled.parameter_BF[:, changing])
        draws = Draws(*columns, float(fits.effect_BF[0, changing]), noise)
    return shape(fits, verdict, draws, max(len(series.observed_K) for series in arm), phi, floor), effect


def best_family(fits: Fits) -> int:
    """Of the first weighting."""
    return int(fits.aicc_BF[0].argmin())


def shape(fits: Fits, verdict: Verdict, draws: Draws | None, chunks: int, phi: float, floor: float) -> Shape:
    """Of the first weighting in `fits`; `draws` are None where the verdict is stable."""
    columns = (fits.level_BF[0].tolist(), fits.effect_BF[0].tolist(), fits.parameter_BF[0].tolist())
    fits_F = tuple(Fitted(*row, chunks) for row in zip(FAMILIES, *columns, strict=True))
    family = 0 if draws is None else best_family(fits)
    fitted = fits_F[family]
    unknowable = fault(draws, chunks) if draws is not None and family == EXPONENTIAL else None
    return Shape(
        verdict=verdict,
        fitted=fitted,
        known=None if draws is None else known(draws),
        fault=unknowable,
        fits_F=fits_F,
        log_likelihood_F=log_likelihood(fits.rss_BF, fits.chunks_B, fits.levels_B, phi)[0],
        aicc_F=fits.aicc_BF[0],
        weight_F=akaike_weights(fits.aicc_BF[0]),
        by_tau=by_tau(fitted, identifiable=verdict == "exponential" and unknowable is None),
        by_threshold=by_threshold(fitted),
        by_midpoint=by_midpoint(fitted, floor),
    )
