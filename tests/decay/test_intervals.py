"""Intervals against scipy, against a published example, and at the rate they promise."""

from __future__ import annotations

import numpy as np
import pytest

from chronomoe.decay.intervals import RESAMPLES, bca_tails, cluster_interval, cluster_weights
from scripts.decay_rates import coverage

SPATIAL = np.array(
    [48, 36, 20, 29, 42, 42, 20, 42, 22, 41, 45, 14, 6, 0, 33, 28, 34, 4, 32, 24, 47, 41, 24, 26, 30, 41], float
)
"""26 neurologically impaired children, first spatial test: Efron and Tibshirani 1993, table 14.1."""


def variance(weight_BS: np.ndarray) -> np.ndarray:
    share = weight_BS / weight_BS.sum(axis=1, keepdims=True)
    return share @ SPATIAL**2 - (share @ SPATIAL) ** 2


def test_the_variance_of_the_spatial_test_has_its_published_bca_interval() -> None:
    """Published, 2,000 resamples, 90%: estimate 171.5, percentile (100.8, 233.9), BCa (115.8, 259.6).

    Tolerances are four standard errors of the difference of two such quantiles, wider in the upper BCa tail.
    """
    found = cluster_interval(variance, np.arange(26), level=0.90)
    assert found.estimate == pytest.approx(171.5, abs=0.05)
    assert (found.low, found.high) == (pytest.approx(100.8, abs=9), pytest.approx(233.9, abs=10))
    assert (found.bca_low, found.bca_high) == (pytest.approx(115.8, abs=10), pytest.approx(259.6, abs=18))


def test_bca_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    theirs = stats.bootstrap(
        (SPATIAL,), np.var, n_resamples=40_000, confidence_level=0.9, method="BCa", rng=np.random.default_rng(0)
    )
    found = cluster_interval(variance, np.arange(26), level=0.90)
    assert found.bca_low == pytest.approx(theirs.confidence_interval.low, abs=6)
    assert found.bca_high == pytest.approx(theirs.confidence_interval.high, abs=12)
    jackknife = variance((np.arange(26)[:, None] != np.arange(26)).astype(float))
    tails = bca_tails(171.534, theirs.bootstrap_distribution, jackknife, (0.05, 0.95))
    assert tails is not None
    exact = np.quantile(theirs.bootstrap_distribution, tails)
    assert exact == pytest.approx(theirs.confidence_interval, rel=2e-3)


def test_a_symmetric_statistic_without_skew_has_bca_near_percentile() -> None:
    value = np.concatenate([np.linspace(-3, 3, 31)])
    found = cluster_interval(lambda weight: weight @ value / weight.sum(axis=1), np.arange(31))
    assert (found.bca_low, found.bca_high) == (pytest.approx(found.low, abs=0.08), pytest.approx(found.high, abs=0.08))


def test_all_seeds_of_a_prompt_come_and_go_together() -> None:
    prompt_S = np.array([0, 1, 0, 2, 2, 1])
    weight = cluster_weights(prompt_S)
    assert weight.shape == (RESAMPLES, 6)
    np.testing.assert_array_equal(weight[:, [0, 1, 3]], weight[:, [2, 5, 4]])
    assert set(weight.sum(axis=1)) == {6}


def test_seeds_that_repeat_their_prompt_add_nothing() -> None:
    rng = np.random.default_rng(0)
    value, prompts = rng.normal(size=12), np.arange(12)
    once = cluster_interval(lambda weight: weight @ value / weight.sum(axis=1), prompts)
    thrice = cluster_interval(lambda weight: weight @ value.repeat(3) / weight.sum(axis=1), prompts.repeat(3))
    assert thrice == pytest.approx(once)


@pytest.mark.parametrize("prompts", [10, 20])
def test_intervals_over_prompts_hold_the_truth_where_seeds_as_prompts_do_not(prompts: int) -> None:
    percentile, bca, naive = coverage(prompts)
    documented = {10: 0.894, 20: 0.93}[prompts]
    error = 4 * np.sqrt(2 * documented * (1 - documented) / 500)
    assert percentile == pytest.approx(documented, abs=error)
    assert bca == pytest.approx(documented, abs=error)
    assert naive < percentile - 0.05


def test_what_is_undefined_has_no_bound() -> None:
    one = cluster_interval(lambda weight: weight[:, 0], np.zeros(3, int))
    assert one == (1.0, None, None, None, None)
    endless = cluster_interval(lambda weight: np.full(len(weight), np.inf), np.arange(4))
    assert endless == (None, None, None, None, None)
    half = cluster_interval(lambda weight: np.where(weight[:, 0] > 1, np.inf, weight[:, 0]), np.arange(4))
    assert half.low == 0
    assert half.high is None  # more than one resample in forty has the first series twice
    constant = cluster_interval(lambda weight: np.full(len(weight), 0.3), np.arange(4))
    assert constant == (0.3, 0.3, 0.3, None, None)
