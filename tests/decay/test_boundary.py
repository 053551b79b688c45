"""Breaks of the text: shifts against brute force, size and power."""

from __future__ import annotations

import numpy as np
import pytest

from chronomoe.decay.boundary import boundary_effect, shifted_sums
from scripts.decay_rates import boundary_rates


def test_shifted_sums_are_sums_over_rolled_flags() -> None:
    rng = np.random.default_rng(0)
    change, mark = rng.normal(size=17), (rng.random(17) < 0.3).astype(float)
    by_hand = [change @ np.roll(mark, shift) for shift in range(17)]
    np.testing.assert_allclose(shifted_sums(change, mark), by_hand)


def test_the_effect_is_the_difference_of_means() -> None:
    value, flag = np.array([5.0, 4.0, 4.5, 4.0, 3.5]), np.array([True, True, False, True, False])
    found = boundary_effect([value], [flag], np.random.default_rng(0))
    assert found is not None
    assert (found.flagged, found.unflagged) == (2, 2)
    assert found.effect == pytest.approx((-1 - 0.5) / 2 - (0.5 - 0.5) / 2)


@pytest.mark.parametrize("phi", [0.0, 0.6])
def test_breaks_that_do_nothing_are_found_at_the_level(phi: float) -> None:
    assert boundary_rates(0.0, phi) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)


def test_breaks_that_move_the_pressure_are_found() -> None:
    assert boundary_rates(0.5, 0.3, arms=50) > 0.95


def test_regular_breaks_on_a_slope_are_no_effect() -> None:
    rng = np.random.default_rng(1)
    k = np.arange(50)
    values = [1 - 0.02 * k + 0.001 * rng.normal(size=50) for _ in range(20)]
    found = boundary_effect(values, [k % 5 == 0] * 20, rng)
    assert found is not None
    assert found.p > 0.01


def test_without_a_break_or_with_nothing_else_there_is_no_effect() -> None:
    value = [np.arange(5.0)]
    assert boundary_effect(value, [np.array([True, False, False, False, False])], np.random.default_rng(0)) is None
    assert boundary_effect(value, [np.ones(5, bool)], np.random.default_rng(0)) is None
