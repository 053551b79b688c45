"""AR(1) noise: its coefficient is found whatever the curve under it, and whitening is its inverse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chronomoe.decay.noise import ar1_noise, colour, mad_deviation, noise_deviation, pooled_phi, whiten
from scripts.decay_rates import SHAPES, shape_rates


@settings(deadline=None)
@given(st.floats(0, 0.95), st.integers(0, 100))
def test_whitening_undoes_colouring(phi: float, seed: int) -> None:
    shock = np.random.default_rng(seed).normal(size=(3, 20))
    np.testing.assert_allclose(whiten(colour(shock, phi), phi), shock, atol=1e-12)


@pytest.mark.parametrize("phi", [0.0, 0.3, 0.6, 0.9])
def test_noise_is_stationary_with_unit_deviation_and_the_autocorrelation_of_its_coefficient(phi: float) -> None:
    noise = ar1_noise(np.random.default_rng(0), (20_000, 12), phi)
    np.testing.assert_allclose(noise.std(axis=0), 1.0, atol=4 / np.sqrt(2 * 20_000))
    for lag in (1, 3):
        found = (noise[:, lag:] * noise[:, :-lag]).mean()
        assert found == pytest.approx(phi**lag, abs=0.02)


@settings(deadline=None)
@given(st.floats(-5, 5), st.floats(-2, 2), st.floats(0.1, 9), st.integers(0, 50))
def test_phi_sees_neither_level_nor_slope_nor_scale(level: float, slope: float, scale: float, seed: int) -> None:
    noise = ar1_noise(np.random.default_rng(seed), (4, 40), 0.4)
    line = level + slope * np.arange(40)
    assert pooled_phi(list(line + scale * noise)) == pytest.approx(pooled_phi(list(noise)), abs=1e-6)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("phi", [0.0, 0.3, 0.6])
def test_phi_of_an_arm_is_within_a_tenth_on_average_whatever_its_shape(name: str, phi: float) -> None:
    found = shape_rates(name, phi, arms=10).phi
    assert found.mean() == pytest.approx(phi, abs=0.1)
    assert np.mean(np.abs(found - phi) < 0.2) == 1.0


def test_a_large_fast_decay_is_no_persistence_once_its_shape_is_taken_out() -> None:
    rates = shape_rates("exponential 20, tau 5", 0.3, arms=5)
    assert rates.first_phi.mean() > 0.9
    assert rates.phi.mean() == pytest.approx(0.3, abs=0.1)


@pytest.mark.parametrize("chunks", [20, 50, 500])
@pytest.mark.parametrize("phi", [0.3, 0.6])
def test_phi_of_noise_is_right_on_average_however_long_the_series(chunks: int, phi: float) -> None:
    found = [pooled_phi(list(ar1_noise(np.random.default_rng(seed), (20, chunks), phi))) for seed in range(40)]
    assert np.mean(found) == pytest.approx(phi, abs=0.02 + 3 * np.std(found) / np.sqrt(40))


def test_a_jump_is_one_difference_of_many() -> None:
    noise = ar1_noise(np.random.default_rng(0), (20, 50), 0.3)
    jumped = noise + 100 * (np.arange(50) >= 20)
    assert pooled_phi(list(jumped)) == pytest.approx(pooled_phi(list(noise)), abs=0.1)


def test_what_never_moves_has_no_phi_and_no_noise() -> None:
    assert pooled_phi([np.full(20, 0.3), np.arange(3.0), np.zeros(1)]) == 0.0
    assert noise_deviation(np.full(20, 0.3), 0.0) == 0.0
    assert mad_deviation(np.zeros(0)) == 0.0


@pytest.mark.parametrize("phi", [0.0, 0.3, 0.6])
def test_the_deviation_of_the_noise_is_read_from_differences_past_slope_and_jump(phi: float) -> None:
    k = np.arange(2000)
    series = 0.01 * k - 40 * (k > 900) + 3 * ar1_noise(np.random.default_rng(1), (2000,), phi)
    assert noise_deviation(series, phi) == pytest.approx(3, rel=0.08)
