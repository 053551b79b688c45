"""The analysis as first published, with its measured defects."""

from __future__ import annotations

import numpy as np
import pytest

from chronomoe.decay.documented import documented_decay, ols_slope
from scripts.decay_rates import documented_taus

K = np.arange(50)


def test_its_tau_has_the_measured_defects() -> None:
    exact, noisy, flat = documented_taus()
    assert exact == pytest.approx(11.7, abs=0.05)
    assert noisy == pytest.approx(49.6, rel=0.1)  # of tau 5
    assert flat == pytest.approx(0.46, abs=4 * np.sqrt(0.25 / 1000))


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        (np.full(50, 0.64), "stable"),
        (0.6 + 0.01 * K, "stable"),
        (0.6 - 0.0009 * K, "stable"),
        (0.8 - 0.4 * (K >= 30), "cliff"),
        (0.8 * np.exp(-K / 10), "exponential"),
        (0.8 - 0.01 * K, "exponential"),  # the logarithm of a line falls: its verdict is hardly ever linear
    ],
)
def test_its_verdicts_are_its_rule(value: np.ndarray, verdict: str) -> None:
    assert documented_decay(value).verdict == verdict


def test_a_series_whose_logarithm_rises_has_no_tau_and_is_linear() -> None:
    value = 0.5 - 0.003 * K
    value[0] = 0.0  # the least comes first, and everything after it is a rise
    found = documented_decay(value)
    assert (found.tau, found.verdict) == (None, "linear")
    assert found.slope < -0.001


def test_slope_is_ordinary_least_squares() -> None:
    value = np.random.default_rng(0).normal(size=31)
    assert ols_slope(value) == pytest.approx(np.polyfit(np.arange(31), value, 1)[0])
    assert documented_decay(np.array([0.5])) == (0.0, None, 0.0, "stable")
