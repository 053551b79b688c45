"""Change points against brute force, against planted changes, and against curves that have none."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chronomoe.study.phases import (
    COEFFICIENTS,
    LEAST_VARIANCE,
    MAX_POINTS,
    MIN_LENGTH,
    Phases,
    ar1,
    costs,
    find_phases,
    gain,
    label_changes,
    least_costs,
    partition,
)
from chronomoe.study.run import Curve


def curve(value: np.ndarray) -> Curve:
    return Curve(np.arange(1, len(value) + 1), np.asarray(value, float))


def found_in(value: np.ndarray) -> Phases:
    found = find_phases(curve(value))
    assert found is not None
    return found


def cost_by_hand(value: np.ndarray, coefficient: float) -> float:
    """From the whole covariance of stationary AR(1) noise with shocks of unit variance."""
    apart = np.abs(np.subtract.outer(np.arange(len(value)), np.arange(len(value))))
    inverse = np.linalg.inv(coefficient**apart / (1 - coefficient**2))
    rest = value - (inverse @ value).sum() / inverse.sum()
    return len(value) * np.log(rest @ inverse @ rest / len(value) + LEAST_VARIANCE) - np.linalg.slogdet(inverse)[1]


def partitions(length: int):
    for number in range(length // MIN_LENGTH):
        for changes in itertools.combinations(range(MIN_LENGTH, length - MIN_LENGTH + 1), number):
            bounds = [0, *changes, length]
            if all(high - low >= MIN_LENGTH for low, high in itertools.pairwise(bounds)):
                yield list(changes), bounds


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.integers(20, 36), st.sampled_from([0.0, 0.6]), st.floats(0, 30))
def test_the_partition_is_the_best_of_all(seed: int, length: int, coefficient: float, penalty: float) -> None:
    value = ar1(np.random.default_rng(seed), length, coefficient)
    value[length // 2 :] += 2
    scaled = (value - value.mean()) / value.std()
    phase = cache(lambda low, high, a: cost_by_hand(scaled[low:high], a))
    everything = [
        (sum(phase(low, high, a) for low, high in itertools.pairwise(bounds)), a, changes)
        for a in COEFFICIENTS
        for changes, bounds in partitions(length)
    ]
    best = min(everything, key=lambda entry: entry[0] + penalty * len(entry[2]))
    least = least_costs(value)
    found_coefficient, found_changes = partition(value, least, penalty)
    assert (found_coefficient, found_changes) == best[1:]
    without = min(entry[0] for entry in everything if not entry[2])
    expected = max((without - entry[0]) / len(entry[2]) for entry in everything if entry[2])
    assert gain(least) == pytest.approx(expected)


@given(st.integers(0, 10_000), st.sampled_from(COEFFICIENTS))
def test_costs_are_likelihoods_of_ar1_noise(seed: int, coefficient: float) -> None:
    value = ar1(np.random.default_rng(seed), 30, coefficient)
    scaled = (value - value.mean()) / value.std()
    found = costs(value, coefficient)
    for low, high in ((0, 30), (0, 10), (7, 19), (20, 30)):
        assert found[low, high] == pytest.approx(cost_by_hand(scaled[low:high], coefficient))
    assert np.isinf(found[3, 3 + MIN_LENGTH - 1])


@given(st.integers(0, 10_000))
def test_costs_depend_on_neither_unit_nor_origin(seed: int) -> None:
    value = np.random.default_rng(seed).normal(size=30)
    np.testing.assert_allclose(costs(1e-3 * value + 5, 0.4), costs(value, 0.4), atol=1e-5)


@pytest.mark.parametrize("coefficient", [0.0, 0.5, 0.8, 0.93])
def test_stationary_noise_has_no_change_at_about_the_nominal_rate(coefficient: float) -> None:
    rng = np.random.default_rng(1)
    found = [found_in(ar1(rng, 60, coefficient)) for _ in range(250)]
    for rate in (np.mean([len(each.changes) > 0 for each in found]), np.mean([each.p <= 0.05 for each in found])):
        assert 0.005 <= rate <= 0.12


def test_a_test_for_independent_points_would_find_changes_in_such_noise() -> None:
    rng = np.random.default_rng(2)
    wrong = [partition(value, least_costs(value)[:1], 16)[1] for value in (ar1(rng, 60, 0.8) for _ in range(40))]
    assert np.mean([len(changes) > 0 for changes in wrong]) > 0.4


@pytest.mark.parametrize("coefficient", [0.0, 0.6])
def test_planted_changes_are_found_where_they_are(coefficient: float) -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(20):
        noise = ar1(rng, 140, coefficient)
        noise[50:] += 6
        noise[100:] -= 4
        found = found_in(noise)
        hits += len(found.changes) == 2 and all(
            abs(change - planted) <= 2 for change, planted in zip(found.changes, (51, 101), strict=True)
        )
        assert found.p <= 0.01
    assert hits >= 16


def test_a_change_of_spread_alone_is_found_and_named() -> None:
    noise = np.random.default_rng(4).normal(size=150)
    louder = np.where(np.arange(150) < 75, 1, 5) * noise
    for value, label in ((louder, "exploration"), (louder[::-1], "settling")):
        found = found_in(value)
        assert [phase.label for phase in found.phases] == ["start", label]
        assert abs(found.changes[0] - 76) <= 3


def test_a_falling_curve_settles_and_an_excursion_is_exploration() -> None:
    noise = 0.1 * np.random.default_rng(5).normal(size=150)
    falling = np.repeat([3.0, 2.0, 1.0], 50) + noise
    assert [phase.label for phase in found_in(falling).phases] == ["start", "settling", "settling"]
    excursion = np.repeat([1.0, 3.0, 1.2], 50) + noise
    assert [phase.label for phase in found_in(excursion).phases] == ["start", "exploration", "settling"]
    rising = np.repeat([0.0, 0.5, 1.0], 50) + noise  # as stability does, whose end is 1
    assert [phase.label for phase in found_in(rising).phases] == ["start", "settling", "settling"]


def test_a_level_that_only_seems_to_move_away_is_no_exploration() -> None:
    noise = np.random.default_rng(6).normal(size=(3, 40))
    noise = (noise - noise.mean(axis=1, keepdims=True)) / noise.std(axis=1, keepdims=True)
    assert label_changes(list(noise + np.array([[0.02], [0.05], [0.0]])), 0.0) == ["settling", "settling"]
    assert label_changes(list(noise + np.array([[0.02], [1.05], [0.0]])), 0.0) == ["exploration", "settling"]


def test_phases_cover_the_curve_and_say_its_level_and_spread() -> None:
    value = np.repeat([1.0, 5.0], 60) + 0.3 * np.random.default_rng(7).normal(size=120)
    found = found_in(value)
    assert [(phase.first_step, phase.last_step) for phase in found.phases] == [(1, 60), (61, 120)]
    assert [phase.level for phase in found.phases] == pytest.approx([1, 5], abs=0.2)
    assert [phase.spread for phase in found.phases] == pytest.approx([0.3, 0.3], abs=0.1)


def test_a_long_curve_is_averaged_in_bins_and_keeps_its_steps() -> None:
    value = np.repeat([0.0, 1.0], 2000) + np.random.default_rng(8).normal(size=4000)
    found = found_in(value)
    assert len(found.changes) == 1
    assert abs(found.changes[0] - 2001) <= 2 * 4000 / MAX_POINTS
    assert found.phases[-1].last_step == 4000


def test_short_and_still_curves_have_no_phases() -> None:
    assert find_phases(curve(np.arange(2 * MIN_LENGTH - 1))) is None
    assert find_phases(curve(np.zeros(100))) is None
    assert find_phases(curve(np.empty(0))) is None


def test_a_curve_that_comes_to_a_standstill_is_read() -> None:
    value = np.append(np.random.default_rng(9).normal(size=60), np.zeros(60))
    found = found_in(value)
    assert found.phases[-1].label == "settling"
    assert found.phases[-1].spread == 0
