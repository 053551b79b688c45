from __future__ import annotations

import numpy as np
import pytest

from chronomoe.study.run import Curve
from chronomoe.study.series import (
    pool_counts,
    smooth,
    smoothing_window,
    thin,
    thin_indices,
    utilisation,
    utilisation_top,
)

RNG = np.random.default_rng(0)


def noisy_curve(length: int) -> Curve:
    return Curve(np.arange(1, length + 1), RNG.standard_normal(length))


def test_utilisation_is_each_experts_count_over_the_mean_count():
    tokens = RNG.integers(1, 100, (3, 2, 5))
    for step in range(3):
        for layer in range(2):
            counts = tokens[step, layer].tolist()
            by_hand = [count / (sum(counts) / len(counts)) for count in counts]
            np.testing.assert_allclose(utilisation(tokens)[step, layer], by_hand)


def test_a_layer_that_saw_no_token_has_no_utilisation():
    assert np.isnan(utilisation(np.array([[0, 0], [3, 1]]))[0]).all()
    np.testing.assert_allclose(utilisation(np.array([[0, 0], [3, 1]]))[1], [1.5, 0.5])


def test_the_colour_scale_ignores_one_spike_and_never_ends_below_two():
    spike = np.ones(1000)
    spike[0] = 50.0
    assert utilisation_top(spike) == 2.0
    assert utilisation_top(np.full(10, np.nan)) == 2.0
    assert utilisation_top(np.full(10, 5.0)) == 5.0


@pytest.mark.parametrize(("length", "limit"), [(1, 10), (10, 10), (11, 10), (103, 10)])
def test_pooling_counts_every_token_in_the_bin_of_its_step(length: int, limit: int):
    step = np.arange(length) * 4 + 8
    counts = RNG.integers(0, 9, (length, 2, 3))
    pooled = pool_counts(step, counts, limit)
    assert len(pooled.counts) == min(length, limit) == len(pooled.edges) - 1
    for index, (low, high) in enumerate(zip(pooled.edges, pooled.edges[1:], strict=False)):
        inside = [record for record, at in zip(counts, step, strict=True) if low < at < high]
        np.testing.assert_array_equal(pooled.counts[index], np.sum(inside, axis=0))


@pytest.mark.parametrize("length", [101, 1000, 12_345])
def test_thinning_keeps_the_ends_and_the_extremes(length: int):
    curve = noisy_curve(length)
    thinned = thin(curve, 100)
    assert len(thinned.step) <= 100
    assert (np.diff(thinned.step) > 0).all()
    assert (thinned.step[0], thinned.step[-1]) == (1, length)
    assert (thinned.value.min(), thinned.value.max()) == (curve.value.min(), curve.value.max())
    np.testing.assert_array_equal(thinned.value, curve.value[thinned.step - 1])


def test_a_curve_within_the_limit_is_left_alone():
    curve = noisy_curve(100)
    assert thin(curve, 100) is curve


def test_thinned_indices_are_evenly_spread_from_first_to_last():
    assert thin_indices(5, 10).tolist() == [0, 1, 2, 3, 4]
    assert thin_indices(101, 5).tolist() == [0, 25, 50, 75, 100]
    assert thin_indices(1, 5).tolist() == [0]


@pytest.mark.parametrize("window", [1, 3, 7])
def test_smoothing_is_the_mean_of_the_window_points_that_exist(window: int):
    curve = noisy_curve(20)
    for index in range(20):
        inside = [value for at, value in enumerate(curve.value) if abs(at - index) <= window // 2]
        assert smooth(curve, window).value[index] == pytest.approx(sum(inside) / len(inside))


def test_the_smoothing_window_is_odd_and_leaves_short_curves_alone():
    assert smoothing_window(79) == 1
    assert all(smoothing_window(length) % 2 == 1 for length in range(1, 1000, 37))
