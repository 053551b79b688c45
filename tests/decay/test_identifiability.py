"""tau is known where it is, said not to be where it is not, and its bootstrap holds it."""

from __future__ import annotations

import numpy as np
import pytest

from chronomoe.decay.identifiability import Draws, fault, known, residual_draws
from chronomoe.decay.noise import ar1_noise
from chronomoe.decay.shapes import EXPONENTIAL, LINEAR, STEP
from scripts.decay_rates import tau_rates

K = np.arange(50)


@pytest.mark.parametrize(("tau", "low", "high"), [(5, 0.95, 1.0), (10, 0.7, 0.95), (30, 0.0, 0.05)])
def test_a_tau_is_identifiable_as_often_as_documented(tau: float, low: float, high: float) -> None:
    assert low <= tau_rates(tau).identifiable <= high


def test_tau_15_is_found_where_specified() -> None:
    """Specified: median 15.4, 5% to 95% 9.6 to 30.9, of single series of 50 chunks."""
    low, median, high = tau_rates(15).quantiles
    assert median == pytest.approx(15.4, abs=1.5)
    assert low == pytest.approx(9.6, abs=1.5)
    assert high == pytest.approx(30.9, abs=8)


def test_what_one_series_cannot_tell_an_arm_can() -> None:
    rates = tau_rates(15, arms=4)
    assert rates.identifiable < 0.6
    assert rates.arm_identifiable == 1.0
    assert rates.arm_quantiles[1] == pytest.approx(15, rel=0.1)


@pytest.mark.parametrize(
    ("family", "curve", "effect"),
    [(LINEAR, -0.1 * K, -0.1), (EXPONENTIAL, 5 * np.exp(-K / 6), 5), (STEP, 5.0 * (K >= 20), 5)],
)
def test_the_interval_of_an_effect_holds_it(family: int, curve: np.ndarray, effect: float) -> None:
    rng = np.random.default_rng(3)
    held = []
    for _ in range(100):
        of = known(residual_draws(curve + ar1_noise(rng, (50,), 0.3), 0.3, family, rng))
        held.append(of.effect_low <= effect <= of.effect_high)
    assert np.mean(held) >= 0.95 - 4 * np.sqrt(0.95 * 0.05 / 100)


def test_each_condition_is_said_by_its_name() -> None:
    steady, wide = np.full(100, 5.0), np.linspace(1, 60, 100)
    sure, unsure = np.full(100, 3.0), np.linspace(-1, 3, 100)
    assert fault(Draws(sure, steady, 3.0, 1.0), 50) is None
    assert "tau may be" in str(fault(Draws(sure, wide, 3.0, 1.0), 50))
    assert "noise deviations" in str(fault(Draws(sure, steady, 3.0, 1.5), 50))
    assert "holds 0" in str(fault(Draws(unsure, steady, 3.0, 1.0), 50))
