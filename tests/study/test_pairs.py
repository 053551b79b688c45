"""Pairing by seed, against the long way round."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronomoe.study.pairs import RESAMPLES, bootstrap_interval, effect


def test_effect_is_the_mean_of_differences_within_seeds() -> None:
    mine = {1: 3.0, 2: 5.0, 3: 9.0}
    theirs = {3: 8.0, 2: 5.5, 1: 2.0, 4: 1e9}  # a seed without a partner counts for nothing
    found = effect(mine, theirs, higher_is_better=False)
    assert found is not None
    assert (found.n, found.wins) == (3, 1)
    assert found.mean == pytest.approx(17 / 3)
    assert found.mean_difference == pytest.approx((1.0 - 0.5 + 1.0) / 3)
    assert found.ci_low == pytest.approx(-0.5)
    assert found.ci_high == pytest.approx(1.0)
    assert found.p == pytest.approx(4 / 8)  # of the sums of 1, 0.5 and 1 with any signs, +-2.5 and +-1.5 are as far
    assert found.corrected_p is None


def test_wins_are_on_the_better_side() -> None:
    mine, theirs = {1: 3.0, 2: 5.0, 3: 4.0}, {1: 2.0, 2: 5.5, 3: 4.0}
    assert [effect(mine, theirs, higher_is_better=better).wins for better in (False, True)] == [
        1,
        1,
    ]  # a tie is neither


def test_without_a_pair_there_is_no_effect() -> None:
    assert effect({1: 2.0}, {2: 2.0}, higher_is_better=False) is None
    assert effect({}, {}, higher_is_better=False) is None


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=12), st.floats(-10, 10))
def test_interval_holds_the_mean_and_moves_with_it(values: list[float], shift: float) -> None:
    low, high = bootstrap_interval(np.array(values))
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    assert bootstrap_interval(np.array(values) + shift) == pytest.approx((low + shift, high + shift), abs=1e-9)


def test_interval_is_that_of_resampled_means() -> None:
    values = np.random.default_rng(0).normal(size=7)
    draws = np.random.default_rng(0).integers(7, size=(RESAMPLES, 7))
    assert bootstrap_interval(values) == pytest.approx(np.quantile(values[draws].mean(axis=1), [0.025, 0.975]))


def test_bootstrap_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        low, high = bootstrap_interval(rng.normal(0.3, 1.0, size=40))
        covered += low <= 0.3 <= high
    assert 86 <= covered <= 100
