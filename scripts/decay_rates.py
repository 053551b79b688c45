"""How often the statistics of a half-life are wrong, by simulation: the tables of docs/decay.md.

    python scripts/decay_rates.py

Series of 50 chunks with AR(1) noise of deviation 1 in arms of 20, unless a table says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chronomoe.decay.arm import pooled_shape
from chronomoe.decay.boundary import boundary_effect
from chronomoe.decay.cliffs import fall, permutation_p, place_interval, surrogate_p
from chronomoe.decay.documented import documented_decay
from chronomoe.decay.entropy import mean_interval
from chronomoe.decay.events import HALF, half_events
from chronomoe.decay.half_life import documented
from chronomoe.decay.identifiability import fault, residual_draws
from chronomoe.decay.noise import ar1_noise, pooled_phi
from chronomoe.decay.nulls import against_shuffles
from chronomoe.decay.series import Series
from chronomoe.decay.shapes import EXPONENTIAL, FAMILIES, arm_phi, decide, fit, moments

CHUNKS, ARM = 50, 20
PHIS = (0.0, 0.3, 0.6)
K = np.arange(CHUNKS)
Curves = Callable[[np.random.Generator], NDArray[np.float64]]
"""Curves of an arm, [ARM, CHUNKS] or [CHUNKS]."""


def steps(height: float) -> Curves:
    """A fall at a chunk from 10 to 40 of its own in every series."""
    return lambda rng: -height * (rng.integers(10, 41, size=(ARM, 1)) <= K)


SHAPES: dict[str, tuple[str, Curves]] = {
    "constant": ("constant", lambda rng: np.zeros(CHUNKS)),
    "line, total -3": ("linear", lambda rng: -3 * K / (CHUNKS - 1)),
    "line, total -12": ("linear", lambda rng: -12 * K / (CHUNKS - 1)),
    "exponential 6, tau 5": ("exponential", lambda rng: 6 * np.exp(-K / 5)),
    "exponential 6, tau 15": ("exponential", lambda rng: 6 * np.exp(-K / 15)),
    "exponential 6, tau 30": ("exponential", lambda rng: 6 * np.exp(-K / 30)),
    "exponential 3, tau 15": ("exponential", lambda rng: 3 * np.exp(-K / 15)),
    "exponential 20, tau 5": ("exponential", lambda rng: 20 * np.exp(-K / 5)),
    "step 3": ("step", steps(3)),
    "step 5": ("step", steps(5)),
}


class ShapeRates(NamedTuple):
    rejected: float
    """Share of series for which constant is rejected."""
    lowest: float
    """... and the true shape has the lowest AICc."""
    named: float
    """... and is named."""
    phi: NDArray[np.float64]
    """Of every arm."""
    first_phi: NDArray[np.float64]
    """Of every arm, before shapes are taken out."""


def shape_rates(name: str, phi: float, arms: int = 20) -> ShapeRates:
    rng = np.random.default_rng(1)
    family, curves = SHAPES[name]
    rejected, lowest, named, phis, first = [], [], [], [], []
    for _ in range(arms):
        values = list(curves(rng) + ar1_noise(rng, (ARM, CHUNKS), phi))
        phis.append(arm_phi(values))
        first.append(pooled_phi(values))
        for aicc_F in fit(moments(values, phis[-1]), np.eye(ARM)).aicc_BF:
            verdict = decide(aicc_F)
            rejected.append(verdict != "stable")
            lowest.append(verdict != "stable" and FAMILIES[int(aicc_F.argmin())] == family)
            named.append(verdict == family)
    return ShapeRates(*map(float, map(np.mean, (rejected, lowest, named))), np.array(phis), np.array(first))


class TauRates(NamedTuple):
    quantiles: NDArray[np.float64]
    """5%, 50%, 95% of the fitted tau, chunks."""
    identifiable: float
    arm_quantiles: NDArray[np.float64]
    """The same of arms of 60 series fitted together."""
    arm_identifiable: float


def tau_rates(tau: float, arms: int = 10) -> TauRates:
    """Of 0.2 + 0.3 exp(-k/tau) with noise 0.05, phi 0.3."""
    rng = np.random.default_rng(2)
    taus, ok, arm_taus, arm_ok = [], [], [], []
    for _ in range(arms):
        values = 0.2 + 0.3 * np.exp(-K / tau) + 0.05 * ar1_noise(rng, (3 * ARM, CHUNKS), 0.3)
        phi = arm_phi(list(values))
        for value_K in values[:ARM]:
            draws = residual_draws(value_K, phi, EXPONENTIAL, rng)
            taus.append(float(fit(moments([value_K], phi), np.ones((1, 1))).parameter_BF[0, EXPONENTIAL]))
            ok.append(fault(draws, CHUNKS) is None)
        arm = [Series(value_K, f"prompt {index // 3}", index % 3) for index, value_K in enumerate(values)]
        shape, _ = pooled_shape(arm, phi, 0.0)
        arm_taus.append(shape.fitted.parameter)
        arm_ok.append(shape.by_tau.status == "reached")
    ends = [0.05, 0.5, 0.95]
    return TauRates(np.quantile(taus, ends), float(np.mean(ok)), np.quantile(arm_taus, ends), float(np.mean(arm_ok)))


def false_halves(deviation: float, phi: float, series: int = 2000) -> tuple[float, float]:
    """Share of series around 0.45 that never fall said to lose half: as documented, and by the running median."""
    rng = np.random.default_rng(3)
    values = 0.45 + deviation * ar1_noise(rng, (series, CHUNKS), phi)
    first = np.mean([documented(value_K).status == "reached" for value_K in values])
    return float(first), float(np.mean(half_events([Series(value_K, "", 0) for value_K in values]).kind_S == HALF))


class CliffRates(NamedTuple):
    """Share of series with p <= 0.05."""

    surrogates: float
    permutation: float
    blocks: float
    place_covered: float
    """Share of place intervals that hold the true place; of steps."""


def cliff_rates(name: str, phi: float, arms: int = 10) -> CliffRates:
    rng = np.random.default_rng(4)
    p_values, covered = [], []
    for _ in range(arms):
        curve = np.broadcast_to(SHAPES[name][1](rng), (ARM, CHUNKS))
        values = curve + ar1_noise(rng, (ARM, CHUNKS), phi)
        arms_phi = arm_phi(list(values))
        places = (np.diff(curve, axis=1) != 0).argmax(axis=1) + 1
        for value_K, place in zip(values, places, strict=True):
            p_values.append(
                (surrogate_p(value_K, arms_phi, rng), permutation_p(value_K, 1, rng), permutation_p(value_K, 5, rng))
            )
            if name.startswith("step"):
                low, high = place_interval(value_K, arms_phi, rng)
                covered.append(low <= place <= high)
    rates = (np.array(p_values) <= 0.05).mean(axis=0)
    return CliffRates(*map(float, rates), float(np.mean(covered)) if covered else float("nan"))


def linear_null_alarms(phi: float, series: int = 100) -> float:
    """Share of exponential decays (tau 5, amplitude 6) called cliffs if the trend of the null may only be a line."""
    rng = np.random.default_rng(5)
    values = 6 * np.exp(-K / 5) + ar1_noise(rng, (series, CHUNKS), phi)
    alarms = 0
    for value_K in values:
        line_K = np.polyval(np.polyfit(K, value_K, 1), K)
        deviation = np.median(np.abs(np.diff(value_K))) * 1.4826 / np.sqrt(2 * (1 - phi))
        null_R = fall(line_K + deviation * ar1_noise(rng, (999, CHUNKS), phi))[0]
        alarms += (1 + (null_R >= fall(value_K[None])[0]).sum()) / 1000 <= 0.05
    return alarms / series


def coverage(prompts: int, studies: int = 500) -> tuple[float, float, float]:
    """Share of 95% intervals of a mean over prompts x 3 seeds that hold it: percentile, BCa, seeds as if prompts.

    Half of the variance is the prompt's.
    """
    rng = np.random.default_rng(6)
    prompt_S = np.repeat(np.arange(prompts), 3)
    held = []
    for _ in range(studies):
        value_S = rng.normal(size=prompts)[prompt_S] + rng.normal(size=len(prompt_S))
        by_prompt, by_series = mean_interval(value_S, prompt_S), mean_interval(value_S, np.arange(len(prompt_S)))
        bounds = (by_prompt[1:3], by_prompt[3:5], by_series[1:3])
        held.append([low is not None and high is not None and low <= 0 <= high for low, high in bounds])
    percentile, bca, naive = np.mean(held, axis=0)
    return float(percentile), float(bca), float(naive)


def pooled_alarms(slope_deviation: float, arms: int = 200) -> tuple[float, float]:
    """Share of arms of 20 prompts x 3 seeds without a mean trend for which constant is rejected: by AICc, and as used.

    Every prompt has a slope of its own, in noise deviations over the whole run.
    """
    rng = np.random.default_rng(7)
    by_aicc, used = 0, 0
    for _ in range(arms):
        slopes = slope_deviation * rng.normal(size=ARM).repeat(3)
        values = slopes[:, None] * K / (CHUNKS - 1) + ar1_noise(rng, (3 * ARM, CHUNKS), 0.3)
        arm = [Series(value_K, f"prompt {index // 3}", index % 3) for index, value_K in enumerate(values)]
        phi = arm_phi(list(values))
        by_aicc += decide(fit(moments(list(values), phi), np.ones((1, len(arm)))).aicc_BF[0]) != "stable"
        used += pooled_shape(arm, phi, 0.0)[0].verdict != "stable"
    return by_aicc / arms, used / arms


def boundary_rates(effect: float, phi: float, arms: int = 400) -> float:
    """Share of arms with p <= 0.05 when every break, about one in five chunks, moves the series by `effect`."""
    rng = np.random.default_rng(8)
    found = 0
    for _ in range(arms):
        flags = rng.random((ARM, CHUNKS)) < 0.2
        values = effect * np.cumsum(flags, axis=1) + ar1_noise(rng, (ARM, CHUNKS), phi)
        result = boundary_effect(list(values), list(flags), rng)
        found += result is not None and result.p <= 0.05
    return found / arms


def shuffle_alarms(phi: float, arms: int = 200) -> float:
    """Share of arms of constants whose mean slope has p <= 0.05 among 199 shuffles of their chunks."""
    rng = np.random.default_rng(10)
    slope_K = (K - K.mean()) / ((K - K.mean()) ** 2).sum()

    def mean_slope(arm: Sequence[Series]) -> float:
        return float(np.mean([series.value_K @ slope_K for series in arm]))

    alarms = 0
    for _ in range(arms):
        arm = [Series(value_K, "", 0) for value_K in ar1_noise(rng, (5, CHUNKS), phi)]
        alarms += against_shuffles(arm, mean_slope, rng, 199).p <= 0.05
    return alarms / arms


def documented_taus(series: int = 1000) -> tuple[float, float, float]:
    """Of exp(-k/15); median of tau 5 with noise 0.05; share of constant noise that is given a tau."""
    rng = np.random.default_rng(9)
    exact = documented_decay(np.exp(-K / 15)).tau
    assert exact is not None
    noisy = [documented_decay(row).tau for row in 0.2 + 0.3 * np.exp(-K / 5) + rng.normal(0, 0.05, (series, CHUNKS))]
    flat = [documented_decay(row).tau for row in rng.normal(0.45, 0.1, (series, CHUNKS))]
    return exact, float(np.median([t for t in noisy if t is not None])), float(np.mean([t is not None for t in flat]))


def table(title: str, head: Sequence[object], rows: Iterable[Sequence[object]]) -> None:
    print(f"{title}\n")
    for cells in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(map(str, cells))} |")
    print(flush=True)


def percent(*shares: float) -> str:
    return " / ".join(f"{100 * share:.3g}" for share in shares) + " %"


def main() -> None:
    ar = [f"AR {phi:g}" for phi in PHIS]
    rates = {name: [shape_rates(name, phi) for phi in PHIS] for name in SHAPES}
    rows = [[name, *(percent(*of[:3]) for of in row)] for name, row in rates.items()]
    table("Shapes, 400 series: constant rejected / true shape lowest / true shape named", ["truth", *ar], rows)
    rows = [
        [name, *(f"{of.first_phi.mean():.2f} / {of.phi.mean():.2f} ± {of.phi.std():.2f}" for of in row)]
        for name, row in rates.items()
    ]
    table("phi of an arm of 20: of the series / used ± its deviation", ["truth", *ar], rows)
    head = ["tau", "fitted, 5-50-95 %", "identifiable", "arm of 60, 5-50-95 %", "identifiable"]
    rows = []
    for tau in (5, 10, 15, 20, 30):
        of = tau_rates(tau)
        one, arm = ("-".join(f"{value:.1f}" for value in ends) for ends in (of.quantiles, of.arm_quantiles))
        rows.append([tau, one, percent(of.identifiable), arm, percent(of.arm_identifiable)])
    table("tau of 0.2 + 0.3 exp(-k/tau), noise 0.05, phi 0.3; 200 series, 10 arms", head, rows)
    cases = [(deviation, phi) for deviation in (0.1, 0.15) for phi in (0.0, 0.5)]
    rows = [[deviation, phi, *map(percent, false_halves(deviation, phi))] for deviation, phi in cases]
    table("Half-lives of series that never fall, 2,000", ["noise", "phi", "documented", "running median"], rows)
    names = ("constant", "line, total -3", "line, total -12", "exponential 6, tau 5", "exponential 6, tau 15")
    cliffs = {name: [cliff_rates(name, phi) for phi in PHIS] for name in (*names, "step 3", "step 5")}
    rows = [[name, *(percent(*of[:3]) for of in row)] for name, row in cliffs.items()]
    table("Cliffs, p <= 0.05 of 200 series: surrogates / permutation / blocks of 5", ["truth", *ar], rows)
    rows = [[name, *(percent(of.place_covered) for of in cliffs[name])] for name in ("step 3", "step 5")]
    table("Intervals of a cliff's place that hold it", ["truth", *ar], rows)
    rows = [["exponential 6, tau 5", *(percent(linear_null_alarms(phi)) for phi in PHIS)]]
    table("Called a cliff if the null knows lines only, 100 series", ["truth", *ar], rows)
    rows = [[prompts, *map(percent, coverage(prompts))] for prompts in (5, 10, 20, 40)]
    table("Coverage of the 95% interval of a mean", ["prompts", "percentile", "BCa", "seeds as prompts"], rows)
    rows = [[slope, *map(percent, pooled_alarms(slope))] for slope in (0.0, 0.5, 1.0, 2.0)]
    table("Arms without a mean trend called changing, 200", ["slopes' deviation", "by AICc", "used"], rows)
    rows = [[effect, *(percent(boundary_rates(effect, phi)) for phi in PHIS)] for effect in (0.0, 0.1, 0.2)]
    table("Breaks, p <= 0.05 of 400 arms", ["effect", *ar], rows)
    table(
        "Slope among shuffled chunks, p <= 0.05 of 200 arms",
        ["truth", *ar],
        [["constant", *map(percent, map(shuffle_alarms, PHIS))]],
    )
    exact, noisy, flat = documented_taus()
    print(
        f"Documented tau: {exact:.1f} of exp(-k/15); {noisy:.1f} of tau 5 with noise; given to {percent(flat)} of noise"
    )


if __name__ == "__main__":
    main()
