"""Bands of mean curves against the same done point by point."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_runs import made_run

from chronomoe.study.bands import (
    BAND_RESAMPLES,
    TokenCurve,
    at,
    difference_band,
    learning_curve,
    mean_band,
    over_tokens,
    token_grid,
)
from chronomoe.study.pairs import resampling_weights
from chronomoe.study.run import Curve

RNG = np.random.default_rng(0)
POINTS = st.lists(st.integers(0, 60), min_size=1, max_size=12, unique=True).map(sorted)


def curve(tokens: list[float], value: object) -> TokenCurve:
    return TokenCurve(np.array(tokens, float), np.broadcast_to(np.asarray(value, float), len(tokens)))


@given(st.lists(POINTS, min_size=1, max_size=4), st.integers(1, 30))
def test_a_grid_lies_in_the_range_of_every_curve(tokens: list[list[int]], limit: int) -> None:
    grid = token_grid([curve(points, 1) for points in tokens], limit)
    inside = {point for points in tokens for point in points if all(other[0] <= point <= other[-1] for other in tokens)}
    assert len(grid) == min(limit, len(inside))
    assert set(grid) <= inside
    assert (np.diff(grid) > 0).all()


def test_no_curve_goes_on_beyond_its_own_points() -> None:
    short, long = curve([10, 20], [1, 2]), curve([0, 30], [0, 3])
    assert token_grid([short, long]).tolist() == [10, 20]
    with pytest.raises(AssertionError):
        at(short, np.array([10.0, 21.0]))
    assert len(token_grid([short, curve([30, 40], 1)])) == 0
    assert len(token_grid([short, curve([], 1)])) == 0


def test_a_band_is_the_interval_of_the_resampled_means_at_each_point() -> None:
    grid = np.arange(5.0)
    value_SG = RNG.normal(size=(4, 5))
    band = mean_band([TokenCurve(grid, row) for row in value_SG], grid)
    weights = resampling_weights(4)[:BAND_RESAMPLES]
    for point in range(5):
        low, high = np.quantile(weights @ value_SG[:, point], [0.025, 0.975])
        assert (band.low[point], band.high[point]) == pytest.approx((low, high))
    np.testing.assert_allclose(band.mean, value_SG.mean(axis=0))
    assert band.seeds == 4


def test_a_single_seed_has_no_band() -> None:
    band = mean_band([curve([0, 1], [2, 3])], np.array([0.0, 1.0]))
    assert band.mean.tolist() == [2, 3]
    assert np.isnan([band.low, band.high]).all()


def test_what_a_seed_does_to_both_curves_cancels() -> None:
    tokens = np.arange(20.0)
    seeds = {seed: RNG.normal(scale=5) + RNG.normal(size=20) for seed in range(6)}
    theirs = {seed: TokenCurve(tokens, value) for seed, value in seeds.items()}
    mine = {seed: TokenCurve(tokens[::2], value[::2] + 0.5) for seed, value in seeds.items()}
    mine[99] = curve([0, 19], 1e9)  # a seed without a partner counts for nothing
    band = difference_band(mine, theirs)
    assert band is not None
    on_both = np.isin(band.tokens, tokens[::2])
    np.testing.assert_allclose(band.mean[on_both], 0.5)
    np.testing.assert_allclose(band.high[on_both], 0.5)
    assert band.seeds == 6


def test_curves_that_never_meet_have_no_difference() -> None:
    assert difference_band({1: curve([0, 1], 1)}, {1: curve([2, 3], 1)}) is None
    assert difference_band({1: curve([0, 1], 1)}, {2: curve([0, 1], 1)}) is None


def test_coverage_of_the_band_is_that_of_the_interval_of_a_mean() -> None:
    covered = []
    for _ in range(200):
        band = mean_band([curve([0, 1], RNG.normal(1.0, 2.0, size=2)) for _ in range(20)], np.array([0.0, 1.0]))
        covered.append((band.low <= 1.0) & (band.high >= 1.0))
    assert 0.89 <= np.mean(covered) <= 0.98


def test_steps_become_the_tokens_they_had_seen() -> None:
    tokens = Curve(np.array([1, 10, 20]), np.array([100.0, 1000.0, 4000.0]))
    found = over_tokens(Curve(np.array([0, 10, 15, 25]), np.array([9.0, 5.0, 4.0, 3.0])), tokens)
    assert found.tokens.tolist() == [1000, 2500]
    assert found.value.tolist() == [5, 4]
    assert len(over_tokens(tokens, Curve(np.empty(0, int), np.empty(0))).tokens) == 0


def test_a_learning_curve_is_the_validation_loss_where_there_is_one() -> None:
    step = np.arange(1.0, 101.0)
    validation = np.where(step % 20 == 0, 5 - step / 100, np.nan)
    columns = {"step": step, "train/tokens": 64 * step, "train/loss": 6 - step / 100, "val/loss": validation}
    assert learning_curve(made_run(metrics=columns)).tokens.tolist() == [64 * 20 * k for k in range(1, 6)]
    del columns["val/loss"]
    assert len(learning_curve(made_run(metrics=columns)).tokens) == 100
