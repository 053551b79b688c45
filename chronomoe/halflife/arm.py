"""Everything that is said about one quantity of one arm: its series one by one, and the arm as a whole.

    arm = the series of one model under one condition, prompts x seeds, P_0 ... P_(K-1) each
Every series is fitted by itself with the arm's phi; the arm is fitted with one shape and a level of each series. The arm's
shape must stand against prompts as well as against noise: constant is rejected only if, besides AICc, the interval of the
effect over prompts leaves out 0. Series that differ in their slopes would else make a trend of any mean.

Axes: S series, B resamples, F families.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chronomoe.halflife.cliffs import Cliff, find_cliffs
from chronomoe.halflife.documented import Documented, documented_decay
from chronomoe.halflife.events import half_events, refusal
from chronomoe.halflife.half_life import Fitted, HalfLife, by_midpoint, by_tau, by_threshold, documented
from chronomoe.halflife.identifiability import Identified, identify, judge
from chronomoe.halflife.intervals import Interval, cluster_interval, cluster_weights
from chronomoe.halflife.noise import noise_deviation, pooled_phi
from chronomoe.halflife.series import FEWEST_CHUNKS, Series, prompt_indices, shortage
from chronomoe.halflife.shapes import (
    EXPONENTIAL,
    FAMILIES,
    Fits,
    Moments,
    Verdict,
    akaike_weights,
    decide,
    fit,
    moments,
)
from chronomoe.halflife.survival import incidence, kaplan_meier, log_log_band, median_time, restricted_mean, risk_table
from chronomoe.settings import InputError
from chronomoe.study.progress import progress


class Shape(NamedTuple):
    """The shape of one series or of the arm, and the half-lives that follow."""

    verdict: Verdict
    fitted: Fitted
    """Of lowest AICc; the constant where the verdict is stable."""
    aicc_F: NDArray[np.float64]
    weight_F: NDArray[np.float64]
    identified: Identified | None
    """None unless the lowest AICc is the exponential's."""
    by_tau: HalfLife
    by_threshold: HalfLife
    by_midpoint: HalfLife


class Survival(NamedTuple):
    """Time to half over prompts x seeds; one row of each curve per chunk from 0 on."""

    at_risk_T: NDArray[np.float64]
    half_T: NDArray[np.float64]
    stopped_T: NDArray[np.float64]
    survival_T: NDArray[np.float64]
    """Kaplan-Meier: runs that ended themselves count as censored."""
    low_T: NDArray[np.float64]
    high_T: NDArray[np.float64]
    half_incidence_T: NDArray[np.float64]
    """Aalen-Johansen: runs that ended themselves compete."""
    stopped_incidence_T: NDArray[np.float64]
    median: Interval
    """Chunks; None: not reached."""
    median_band: tuple[float, float]
    """By the log-log band, runs taken for independent; infinite where it does not fall to 1/2."""
    restricted_mean: Interval
    """Chunks, up to `horizon`."""
    horizon: int


@dataclass(frozen=True)
class Arm:
    series: Sequence[Series]
    phi: float
    noise: float
    """Median over series of the deviation of the noise."""
    shortage: str | None
    """What the arm lacks to be large enough."""
    shapes: list[Shape | None]
    """None of a series with fewer than FEWEST_CHUNKS chunks."""
    cliffs: list[Cliff | None]
    documented: list[tuple[Documented, HalfLife]]
    """As first published, on all chunks, degenerate ones too."""
    pooled: Shape | None
    """None where no series is long enough."""
    effect: Interval | None
    """Over prompts, of the effect of the pooled shape of lowest AICc that is not constant."""
    survival: Survival | None
    refusal: str | None
    """Why there is no survival."""

    @property
    def verdicts(self) -> Counter[Verdict]:
        return Counter(shape.verdict for shape in self.shapes if shape is not None)


def measure_arm(arm: Sequence[Series], floor: float, ceiling: float, rng: np.random.Generator) -> Arm:
    """All statistics of a quantity whose attainable range is [floor, ceiling]. InputError for an arm without series."""
    if not arm:
        raise InputError("the arm has no series: measure at least one prompt")
    values = [series.observed_K for series in arm]
    long_enough = [index for index, value_K in enumerate(values) if len(value_K) >= FEWEST_CHUNKS]
    phi = pooled_phi(values)
    shapes: list[Shape | None] = [None] * len(arm)
    for index in progress(long_enough, "fitting", "series"):
        shapes[index] = series_shape(values[index], phi, floor, rng)
    kept = [arm[index] for index in long_enough]
    pooled, effect = pooled_shape(kept, phi, floor) if kept else (None, None)
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
        survival=None if refused else survival(arm),
        refusal=refused,
    )


def series_shape(value_K: NDArray[np.float64], phi: float, floor: float, rng: np.random.Generator) -> Shape:
    fits = fit(moments([value_K], phi), np.ones((1, 1)))
    exponential = best_family(fits.aicc_BF[0]) == EXPONENTIAL
    identified = identify(value_K, phi, rng) if exponential else None
    return shape(fits, decide(fits.aicc_BF[0]), identified, len(value_K), floor)


def pooled_shape(arm: Sequence[Series], phi: float, floor: float) -> tuple[Shape, Interval]:
    """The shape of all series together, and the interval over prompts of its effect."""
    of = moments([series.observed_K for series in arm], phi)
    prompt_S = prompt_indices(arm)
    fits = fit(of, np.ones((1, len(arm))))
    changing = 1 + int(fits.aicc_BF[0, 1:].argmin())
    effect = cluster_interval(lambda weight_BS: fit(of, weight_BS).effect_BF[:, changing], prompt_S)
    chunks = max(len(series.observed_K) for series in arm)
    identified = identify_arm(of, fits, phi, prompt_S, chunks) if changing == EXPONENTIAL else None
    stands = effect.low is not None and effect.high is not None and not effect.low <= 0 <= effect.high
    verdict = decide(fits.aicc_BF[0]) if stands else "stable"
    return shape(fits, verdict, identified, chunks, floor), effect


def identify_arm(of: Moments, fits: Fits, phi: float, prompt_S: NDArray[np.int64], chunks: int) -> Identified:
    drawn = fit(of, cluster_weights(prompt_S))
    noise = float(np.sqrt(fits.rss_BF[0, EXPONENTIAL] / fits.chunks_B[0] / (1 - phi**2)))
    amplitude = float(fits.effect_BF[0, EXPONENTIAL])
    return judge(drawn.parameter_BF[:, EXPONENTIAL], drawn.effect_BF[:, EXPONENTIAL], amplitude, noise, chunks)


def best_family(aicc_F: NDArray[np.float64]) -> int:
    return int(aicc_F.argmin())


def shape(fits: Fits, verdict: Verdict, identified: Identified | None, chunks: int, floor: float) -> Shape:
    """Of the first weighting in `fits`."""
    aicc_F = fits.aicc_BF[0]
    family = 0 if verdict == "stable" else best_family(aicc_F)
    level, effect, parameter = (float(of[0, family]) for of in (fits.level_BF, fits.effect_BF, fits.parameter_BF))
    fitted = Fitted(FAMILIES[family], level, effect, parameter, chunks)
    knowable = verdict == "exponential" and identified is not None and identified.identifiable
    return Shape(
        verdict=verdict,
        fitted=fitted,
        aicc_F=aicc_F,
        weight_F=akaike_weights(aicc_F),
        identified=identified,
        by_tau=by_tau(fitted, knowable),
        by_threshold=by_threshold(fitted),
        by_midpoint=by_midpoint(fitted, floor),
    )


def survival(arm: Sequence[Series]) -> Survival:
    events, prompt_S = half_events(arm), prompt_indices(arm)
    table = risk_table(events, np.ones((1, len(arm))))
    survival_BT, (low_BT, high_BT), (half_BT, stopped_BT) = kaplan_meier(table), log_log_band(table), incidence(table)
    horizon = int(events.time_S.max())

    def curves(weight_BS: NDArray[np.float64]) -> NDArray[np.float64]:
        return kaplan_meier(risk_table(events, weight_BS))

    rows: Iterable[NDArray[np.float64]] = (*table, survival_BT, low_BT, high_BT, half_BT, stopped_BT)
    return Survival(
        *(of[0] for of in rows),
        median=cluster_interval(lambda weight_BS: median_time(curves(weight_BS)), prompt_S),
        median_band=(float(median_time(low_BT)[0]), float(median_time(high_BT)[0])),
        restricted_mean=cluster_interval(lambda weight_BS: restricted_mean(curves(weight_BS), horizon), prompt_S),
        horizon=horizon,
    )
