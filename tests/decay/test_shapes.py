"""Shapes against least squares written out, against curves without noise, and at the rates of docs/decay.md."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chronomoe.decay.noise import ar1_noise, whiten
from chronomoe.decay.shapes import (
    FAMILIES,
    NAME,
    REJECT,
    akaike_weights,
    decide,
    fit,
    log_likelihood,
    moments,
    shape_candidates,
)
from scripts.decay_rates import shape_rates

K = np.arange(50)
PHIS = (0.0, 0.3, 0.6)
SLOW_MACHINE = settings(max_examples=30, deadline=None)


def least_squares(values: list[np.ndarray], phi: float, regressor: np.ndarray) -> tuple[float, float]:
    """RSS and effect of one shape common to all series with a level of each, by a design matrix."""
    rows = []
    for index, value in enumerate(values):
        design = np.zeros((len(value), len(values) + 1))
        design[:, index] = 1
        design[:, -1] = regressor[: len(value)]
        rows.append(whiten(design.T, phi).T)
    matrix, target = np.concatenate(rows), np.concatenate([whiten(value, phi) for value in values])
    solution, *_ = np.linalg.lstsq(matrix, target, rcond=None)
    return float(((target - matrix @ solution) ** 2).sum()), float(solution[-1])


@SLOW_MACHINE
@given(st.lists(st.integers(12, 30), min_size=1, max_size=4), st.sampled_from(PHIS), st.integers(0, 1000))
def test_a_fit_is_least_squares_with_a_level_a_series(lengths: list[int], phi: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = [rng.normal() + ar1_noise(rng, (length,), phi) for length in lengths]
    fits = fit(moments(values, phi), np.ones((1, len(values))))
    candidates = shape_candidates(max(lengths))
    short = candidates.parameter_G > min(lengths) - 3
    for family in (1, 2, 3):
        of_family = (candidates.family_G == family) & ~((family == 3) & short)
        by_hand = [least_squares(values, phi, regressor)[0] for regressor in candidates.regressor_GK[of_family]]
        assert fits.rss_BF[0, family] <= min(by_hand) * (1 + 1e-9)
    found = candidates.regressor_GK[
        (candidates.family_G == 2) & np.isclose(candidates.parameter_G, fits.parameter_BF[0, 2])
    ]
    rss, effect = least_squares(values, phi, found[0])
    assert fits.rss_BF[0, 2] == pytest.approx(rss, rel=1e-8)
    assert fits.effect_BF[0, 2] == pytest.approx(effect, rel=1e-6, abs=1e-9)


def test_a_weighting_counts_a_series_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    values = list(rng.normal(size=(3, 20)))
    weighted = fit(moments(values, 0.2), np.array([[2.0, 0.0, 1.0]]))
    repeated = fit(moments([values[0], values[0], values[2]], 0.2), np.ones((1, 3)))
    for left, right in zip(weighted, repeated, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("family", "curve", "effect", "parameter"),
    [
        ("linear", 0.7 - 0.01 * K, -0.01, 0),
        ("exponential", 0.2 + 0.3 * np.exp(-K / 8), 0.3, 8),
        ("exponential", 0.5 - 0.3 * np.exp(-K / 8), -0.3, 8),
        ("step", 0.6 - 0.25 * (K >= 17), -0.25, 17),
    ],
)
@pytest.mark.parametrize("phi", [0.0, 0.6])
def test_a_curve_without_noise_is_itself(
    family: str, curve: np.ndarray, effect: float, parameter: float, phi: float
) -> None:
    fits = fit(moments([curve], phi), np.ones((1, 1)))
    assert decide(fits.aicc_BF[0]) == family
    place = FAMILIES.index(family)
    assert fits.effect_BF[0, place] == pytest.approx(effect, rel=0.05)
    assert fits.parameter_BF[0, place] == pytest.approx(parameter, rel=0.03)
    np.testing.assert_allclose(fits.curve(0, place, K), curve, atol=0.01)


@SLOW_MACHINE
@given(st.floats(-1e6, 1e6, allow_nan=False), st.integers(10, 60), st.sampled_from(PHIS))
def test_what_never_moves_is_stable(level: float, chunks: int, phi: float) -> None:
    assert decide(fit(moments([np.full(chunks, level)], phi), np.ones((1, 1))).aicc_BF[0]) == "stable"


@SLOW_MACHINE
@given(st.floats(-100, 100), st.floats(0.01, 100), st.integers(0, 100))
def test_the_verdict_knows_neither_level_nor_unit(level: float, unit: float, seed: int) -> None:
    value = 4 * np.exp(-K / 7) + ar1_noise(np.random.default_rng(seed), (50,), 0.3)
    one, other = (fit(moments([series], 0.3), np.ones((1, 1))).aicc_BF[0] for series in (value, level + unit * value))
    np.testing.assert_allclose(one - one.min(), other - other.min(), atol=1e-5)


@pytest.mark.parametrize("phi", PHIS)
def test_the_likelihood_is_that_of_the_stationary_gaussian_process(phi: float) -> None:
    value = 2 - 0.05 * K + ar1_noise(np.random.default_rng(0), (50,), phi)
    fits = fit(moments([value], phi), np.ones((1, 1)))
    found = log_likelihood(fits.rss_BF, fits.chunks_B, fits.levels_B, phi)[0]
    for family in range(4):
        rest = value - fits.curve(0, family, K)
        correlation = phi ** np.abs(K[:, None] - K)
        variance = fits.rss_BF[0, family] / 50 / (1 - phi**2)
        _, log_determinant = np.linalg.slogdet(2 * np.pi * variance * correlation)
        by_hand = -(log_determinant + rest @ np.linalg.solve(variance * correlation, rest)) / 2
        assert found[family] == pytest.approx(by_hand)
    aicc = -2 * found + 2 * np.array([2, 3, 4, 4])
    aicc += 2 * np.array([2, 3, 4, 4]) * np.array([3, 4, 5, 5]) / (50 - np.array([3, 4, 5, 5]))
    np.testing.assert_allclose(aicc - aicc[0], fits.aicc_BF[0] - fits.aicc_BF[0, 0], atol=1e-9)


def test_decisions_by_hand() -> None:
    assert decide(np.array([0.0, -REJECT + 0.1, -5, -3])) == "stable"
    assert decide(np.array([0.0, -20, -20 + NAME, -3])) == "linear"
    assert decide(np.array([0.0, -20, -20 + NAME - 0.1, -3])) == "undetermined"
    assert decide(np.array([0.0, -5, -3, -REJECT])) == "step"
    assert decide(np.full(4, np.inf)) == "stable"


@given(st.lists(st.floats(-500, 500), min_size=4, max_size=4))
def test_weights_sum_to_one_and_follow_the_order(aicc: list[float]) -> None:
    weights = akaike_weights(np.array(aicc))
    assert weights.sum() == pytest.approx(1)
    assert weights[int(np.argmin(aicc))] == weights.max()


def test_a_series_that_ends_early_cannot_bend_the_arm() -> None:
    """Levels differ and the high ones end early: the mean of what is left falls, and no series does."""
    rng = np.random.default_rng(2)
    values = [level + 0.01 * rng.normal(size=int(50 - 30 * level)) for level in np.linspace(0, 1, 30)]
    mean = [np.mean([value[k] for value in values if len(value) > k]) for k in range(50)]
    assert mean[0] - mean[-1] > 0.4
    assert decide(fit(moments(values, 0.0), np.ones((1, 30))).aicc_BF[0]) == "stable"


@pytest.mark.parametrize("phi", PHIS)
def test_noise_is_called_a_change_in_at_most_two_percent(phi: float) -> None:
    assert shape_rates("constant", phi).rejected <= 0.02  # of 400 series


@pytest.mark.parametrize(
    ("name", "rejected", "lowest"),
    [  # the reference's measurements at AR 0, 0.3, 0.6: constant rejected, true shape of lowest AICc
        ("line, total -3", (0.99, 0.76, 0.30), (0.78, 0.52, 0.27)),
        ("exponential 6, tau 5", (1.0, 0.99, 0.66), (0.96, 0.89, 0.84)),
        ("exponential 6, tau 15", (1.0, 1.0, 0.94), (0.98, 0.90, 0.69)),
        ("exponential 6, tau 30", (1.0, 1.0, 0.82), (0.61, 0.44, 0.17)),
        ("exponential 3, tau 15", (0.95, 0.66, 0.28), (0.43, 0.32, 0.14)),
        ("step 3", (1.0, 1.0, 0.90), (0.99, 0.99, 0.97)),
    ],
)
def test_shapes_are_found_at_least_as_often_as_specified(
    name: str, rejected: tuple[float, ...], lowest: tuple[float, ...]
) -> None:
    """400 series a rate; four standard errors of the difference of two rates of 400, and phi of 20 arms besides."""
    for index, phi in enumerate(PHIS):
        found = shape_rates(name, phi)
        for share, specified in ((found.rejected, rejected[index]), (found.lowest, lowest[index])):
            error = np.sqrt(2 * max(specified * (1 - specified), 0.005) / 400)
            assert share >= specified - 4 * error, (phi, share, specified)


@pytest.mark.parametrize(
    ("name", "least"), [("line, total -12", 0.85), ("exponential 6, tau 5", 0.8), ("step 3", 0.95)]
)
def test_clear_shapes_are_named(name: str, least: float) -> None:
    assert shape_rates(name, 0.0).named >= least
